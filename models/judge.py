"""The judge: scores what an action led to, never which button was pressed.

Legend: N states, A actions, F bytes of a frame, M members.
"""

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from headstart.models.encoders import CELL_PARTS, CELLS, VIEW, cell_table, distinct_rows

__all__ = ["Judge"]


class Judge(nn.Module):
    """M judges in one network: (present view, future view, seen before?) -> a score from each.

    The two views and a plane that marks where they differ go through two convolutions. Members share nothing but
    the batches; they are groups of the same convolutions because three small networks cost what one costs.
    """

    def __init__(self, members: int = 3, channels: int = 32, width: int = 128, dropout: float = 0.3):
        super().__init__()
        self.members = members
        self.register_buffer("cell", cell_table(), persistent=False)
        planes = 2 * sum(CELL_PARTS) + 1
        self.views = nn.Sequential(
            nn.Conv2d(members * planes, members * channels, 3, groups=members),
            nn.ReLU(),
            nn.Conv2d(members * channels, members * channels, 3, groups=members),
            nn.ReLU(),
            nn.Flatten(),
        )
        # a convolution over one cell, in groups, is a linear layer for each member
        self.score = nn.Sequential(
            nn.Conv1d(members * (channels * 9 + 1), members * width, 1, groups=members),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Conv1d(members * width, members, 1, groups=members),
        )

    def forward(self, frame: Tensor, future: Tensor, revisit: Tensor) -> Tensor:
        """(N, F), (N, A, F), (N, A) -> scores (M, N, A); only their differences within a state mean anything."""
        n, a = revisit.shape
        before = repeat(frame[:, :CELLS], "n c -> (n a) c", a=a)
        after = rearrange(future[:, :, :CELLS], "n a c -> (n a) c")
        case = torch.cat([before, after, rearrange(revisit, "n a -> (n a) 1").to(before.dtype)], dim=1)
        distinct, place = distinct_rows(case)
        before, after, seen = distinct.split([CELLS, CELLS, 1], dim=1)
        planes = torch.cat(
            [self.cell[before.long()], self.cell[after.long()], (before != after).float().unsqueeze(-1)],
            dim=-1,
        )
        planes = repeat(planes, "u (i j) c -> u (m c) i j", i=VIEW, m=self.members)
        views = rearrange(self.views(planes), "u (m d) -> u m d", m=self.members)
        seen = repeat(seen.float(), "u 1 -> u m 1", m=self.members)
        score = self.score(rearrange(torch.cat([views, seen], dim=-1), "u m d -> u (m d) 1"))  # (U, M, 1)
        return rearrange(score.squeeze(-1)[place], "(n a) m -> m n a", n=n)

    @torch.no_grad()
    def prefer(self, frame: Tensor, future: Tensor, revisit: Tensor, temperature: float = 1.0) -> Tensor:
        """(N, A) probability of each action by its future: the members' geometric mean."""
        self.eval()
        log_p = torch.log_softmax(self(frame, future, revisit), dim=-1).mean(0)
        return torch.softmax(log_p / temperature, dim=-1)
