"""Observation -> features.

Legend: N frames, F = 50 bytes of a frame (49 packed cells of the 7 x 7 view, then the direction), L words of a mission,
D width.
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "CELLS",
    "CELL_PARTS",
    "VIEW",
    "MissionEncoder",
    "ViewEncoder",
    "cell_classes",
    "cell_table",
    "distinct_rows",
]

VIEW = 7
CELLS = VIEW * VIEW
CELL_PARTS = (11, 6, 3)  # classes of type, colour and state; a packed cell is type * 18 + colour * 3 + state


def cell_classes(cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Packed cells (...) -> type, colour and state, each (...) int64."""
    cell = cell.long()
    return cell // 18, cell % 18 // 3, cell % 3


def cell_table() -> Tensor:
    """(256, 20) one-hot type, colour and state of every packed cell."""
    kind, color, state = cell_classes(torch.arange(256))
    parts = zip((kind.clamp(max=CELL_PARTS[0] - 1), color, state), CELL_PARTS, strict=True)
    return torch.cat([F.one_hot(classes, n) for classes, n in parts], dim=1).float()


def distinct_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct rows (U, F) of a byte matrix (N, F) and the place (N,) of each row among them.

    ``distinct[place]`` equals ``rows``, so what is computed once per distinct row and gathered by ``place`` has the
    gradient of the whole batch. Rows are told apart by a 64-bit sum of random odd multiples: sorting one number a
    row is much cheaper than ``torch.unique(dim=0)``, and the chance that two of a million rows share a number
    is about 1e-7.
    """
    generator = torch.Generator().manual_seed(0x5EED)
    odd = torch.randint(-(2**62), 2**62, (rows.shape[1],), generator=generator) * 2 + 1
    key = (rows.long() * odd.to(rows.device)).sum(1)
    values, place = torch.unique(key, return_inverse=True)
    first = torch.empty(len(values), dtype=torch.long, device=rows.device)
    first[place] = torch.arange(len(rows), device=rows.device)  # any of several equal rows will do
    return rows[first], place


class ViewEncoder(nn.Module):
    """Frames (N, F) -> (N, D); equal views are encoded once.

    Two valid 3 x 3 convolutions keep where things are relative to the agent, and are cheaper than padded ones. No
    dropout and no batch norm: they would make equal views differ.
    """

    cell: Tensor

    def __init__(self, width: int, channels: int):
        super().__init__()
        self.register_buffer("cell", cell_table(), persistent=False)
        self.layers = nn.Sequential(
            nn.Conv2d(sum(CELL_PARTS), channels, 3),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(channels * 9, width),
        )

    def forward(self, frame: Tensor) -> Tensor:
        view, place = distinct_rows(frame[:, :CELLS])
        planes = rearrange(self.cell[view.long()], "u (i j) c -> u c i j", i=VIEW)
        return self.layers(planes)[place]


class MissionEncoder(nn.Module):
    """Missions (N, L) -> (N, D), for any L; equal missions are encoded once, and an empty one is zero.

    A convolution over three neighbouring words tells "put the ball next to the box" from its reverse, and the
    maximum over the sentence takes sentences longer than any in training (text CNN, arXiv 1408.5882). It is done as
    a sum of three columns of a table: what each word contributes from the left, in the middle and from the right.
    """

    def __init__(self, words: int, width: int):
        super().__init__()
        self.word = nn.Embedding(words, width, padding_idx=0)
        self.phrase = nn.Linear(width, 3 * width, bias=False)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, mission: Tensor) -> Tensor:
        distinct, place = distinct_rows(mission)
        longest = int((distinct != 0).sum(1).max().clamp(min=1))
        distinct = distinct[:, :longest]  # the rest is padding
        table = rearrange(self.phrase(self.word.weight), "w (side d) -> side w d", side=3)  # padding's is zero
        left, middle, right = (F.embedding(distinct.long(), part, padding_idx=0) for part in table)  # (U, L, D)
        phrase = middle + F.pad(left[:, :-1], (0, 0, 1, 0)) + F.pad(right[:, 1:], (0, 0, 0, 1)) + self.bias
        return (phrase.relu() * (distinct != 0).unsqueeze(2)).amax(dim=1)[place]
