"""The judge: scores what an action led to, never which button was pressed.

Legend: N states, A actions, F bytes of a frame, D width, E distinct effects.
"""

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from headstart.models.encoders import CELL_PARTS, CELLS, VIEW, cell_table, distinct_rows

__all__ = ["Judge"]


class Judge(nn.Module):
    """(what the agent knows, what it sees after an action, seen before?) -> a score.

    ``situation`` reads what the policy reads: the present view, the past, the mission. An effect is the pair of
    views before and after, with a plane that marks where they differ, and whether the second had been seen before.
    Effects go through two convolutions; the situation scales and shifts what comes out (FiLM, arXiv 1709.07871), so
    that the same effect is good here and bad there. Equal effects, such as all actions that change nothing, are
    encoded once.
    """

    cell: Tensor

    def __init__(self, situation: nn.Module, width: int = 128, channels: int = 32, dropout: float = 0.0):
        super().__init__()
        self.situation = situation
        self.register_buffer("cell", cell_table(), persistent=False)
        self.views = nn.Sequential(
            nn.Conv2d(2 * sum(CELL_PARTS) + 1, channels, 3),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.effect = nn.Linear(channels * 9 + 1, width)
        self.film = nn.Linear(int(situation.features_dim), 2 * width)  # type: ignore[arg-type]
        self.score = nn.Sequential(nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 1))

    def forward(self, obs: dict[str, Tensor], future: Tensor, revisit: Tensor) -> Tensor:
        """Observations (N, ...), frames after each action (N, A, F), revisits (N, A) -> scores (N, A).

        Scores are comparable within a state only.
        """
        a = revisit.shape[1]
        before = repeat(obs["frames"][:, -1, :CELLS], "n c -> (n a) c", a=a)
        after = rearrange(future[:, :, :CELLS], "n a c -> (n a) c")
        seen = rearrange(revisit, "n a -> (n a) 1").to(before.dtype)
        distinct, place = distinct_rows(torch.cat([before, after, seen], dim=1))
        before, after, seen = distinct.split([CELLS, CELLS, 1], dim=1)
        differs = (before != after).float().unsqueeze(-1)
        planes = torch.cat([self.cell[before.long()], self.cell[after.long()], differs], dim=-1)
        views = self.views(rearrange(planes, "e (i j) c -> e c i j", i=VIEW))
        effect = self.effect(torch.cat([views, seen.float()], dim=1))  # (E, D)
        scale, shift = self.film(self.situation(obs)).unsqueeze(1).chunk(2, dim=2)  # (N, 1, D)
        return self.score(rearrange(effect[place], "(n a) d -> n a d", a=a) * (1 + scale) + shift).squeeze(2)
