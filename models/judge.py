"""The judge: scores what an action led to, never which button was pressed.

Legend: N states, A actions, F bytes of a frame.
"""

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from headstart.models.encoders import CELL_PARTS, CELLS, VIEW, cell_table, distinct_rows

__all__ = ["Judge"]


class Judge(nn.Module):
    """(present view, future view, seen before?) -> a score.

    The two views and a plane that marks where they differ go through two convolutions; equal cases, such as all
    actions that change nothing, are scored once.
    """

    cell: Tensor

    def __init__(self, channels: int = 32, width: int = 128, dropout: float = 0.0):
        super().__init__()
        self.register_buffer("cell", cell_table(), persistent=False)
        self.views = nn.Sequential(
            nn.Conv2d(2 * sum(CELL_PARTS) + 1, channels, 3),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.score = nn.Sequential(
            nn.Linear(channels * 9 + 1, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 1)
        )

    def forward(self, frame: Tensor, future: Tensor, revisit: Tensor) -> Tensor:
        """Frames (N, F), futures (N, A, F), revisits (N, A) -> scores (N, A), comparable within a state only."""
        a = revisit.shape[1]
        before = repeat(frame[:, :CELLS], "n c -> (n a) c", a=a)
        after = rearrange(future[:, :, :CELLS], "n a c -> (n a) c")
        case = torch.cat([before, after, rearrange(revisit, "n a -> (n a) 1").to(before.dtype)], dim=1)
        distinct, place = distinct_rows(case)
        before, after, seen = distinct.split([CELLS, CELLS, 1], dim=1)
        differs = (before != after).float().unsqueeze(-1)
        planes = torch.cat([self.cell[before.long()], self.cell[after.long()], differs], dim=-1)
        views = self.views(rearrange(planes, "u (i j) c -> u c i j", i=VIEW))
        return rearrange(self.score(torch.cat([views, seen.float()], dim=1))[place], "(n a) 1 -> n a", a=a)
