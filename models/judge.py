"""The judge: scores what an action led to, never which button was pressed.

Legend: N states, A actions, F bytes of a frame, L words of a mission.
"""

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from headstart.models.encoders import CELL_PARTS, CELLS, VIEW, MissionEncoder, cell_table, distinct_rows

__all__ = ["Judge"]


class Judge(nn.Module):
    """(present view, future view, seen before?, mission) -> a score.

    The two views and a plane that marks where they differ go through two convolutions, whose features the mission
    scales and shifts; equal cases, such as all actions that change nothing, are scored once.
    """

    cell: Tensor

    def __init__(self, words: int, channels: int = 32, width: int = 128, dropout: float = 0.0):
        super().__init__()
        self.register_buffer("cell", cell_table(), persistent=False)
        self.views = nn.Sequential(
            nn.Conv2d(2 * sum(CELL_PARTS) + 1, channels, 3),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.hidden = nn.Linear(channels * 9 + 1, width)
        self.mission = MissionEncoder(words, width)
        self.film = nn.Linear(width, 2 * width)
        nn.init.zeros_(self.film.weight)  # a mission changes nothing until it has been learned
        nn.init.zeros_(self.film.bias)
        self.score = nn.Sequential(nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 1))

    def forward(self, frame: Tensor, future: Tensor, revisit: Tensor, mission: Tensor) -> Tensor:
        """Frames (N, F), futures (N, A, F), revisits (N, A), missions (N, L) -> scores (N, A).

        Scores are comparable within a state only.
        """
        a = revisit.shape[1]
        before = repeat(frame[:, :CELLS], "n c -> (n a) c", a=a)
        after = rearrange(future[:, :, :CELLS], "n a c -> (n a) c")
        seen = rearrange(revisit, "n a -> (n a) 1").to(before.dtype)
        case = torch.cat([before, after, seen, repeat(mission, "n l -> (n a) l", a=a)], dim=1)
        distinct, place = distinct_rows(case)
        before, after, seen, mission = distinct.split([CELLS, CELLS, 1, mission.shape[1]], dim=1)
        differs = (before != after).float().unsqueeze(-1)
        planes = torch.cat([self.cell[before.long()], self.cell[after.long()], differs], dim=-1)
        views = self.views(rearrange(planes, "u (i j) c -> u c i j", i=VIEW))
        scale, shift = self.film(self.mission(mission)).chunk(2, dim=1)
        hidden = self.hidden(torch.cat([views, seen.float()], dim=1)) * (1 + scale) + shift
        return rearrange(self.score(hidden)[place], "(n a) 1 -> n a", a=a)
