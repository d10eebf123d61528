"""Observation -> features. What a frame's bytes mean, its layout says: see envs/spaces.py.

Legend: N frames, F bytes of a frame (MiniGrid: 49 packed cells of the 7 x 7 view, then the direction), X numbers in it,
E pairs of frames before and after an action, L words of a mission, D width.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from headstart.envs.spaces import Layout

__all__ = [
    "CELLS",
    "CELL_PARTS",
    "VIEW",
    "Features",
    "Memo",
    "MissionEncoder",
    "PictureEncoder",
    "VectorEffectEncoder",
    "VectorEncoder",
    "ViewEffectEncoder",
    "ViewEncoder",
    "apart",
    "cell_classes",
    "cell_table",
    "distinct_rows",
    "effect_encoder",
    "every_row",
    "frame_encoder",
]

LIMIT = 10.0  # of a standardised number: nothing that was never seen may drown all else
SMALL = 8  # pixels: what is no larger is not halved again
VIEW = 7
CELLS = VIEW * VIEW
CELL_PARTS = (11, 6, 3)  # classes of type, colour and state; a packed cell is type * 18 + colour * 3 + state

Tables = tuple[Tensor, ...]
"""What is computed of rows: a row for each of them in every tensor."""


def cell_classes(cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Packed cells (...) -> type, colour and state, each (...) int64."""
    cell = cell.long()
    return cell // 18, cell % 18 // 3, cell % 3


def cell_table() -> Tensor:
    """(256, 20) one-hot type, colour and state of every packed cell."""
    kind, color, state = cell_classes(torch.arange(256))
    parts = zip((kind.clamp(max=CELL_PARTS[0] - 1), color, state), CELL_PARTS, strict=True)
    return torch.cat([F.one_hot(classes, n) for classes, n in parts], dim=1).float()


def row_keys(rows: Tensor) -> Tensor:
    """A number (N,) int64 for each row of a byte matrix (N, F), to tell rows apart by.

    It is a 64-bit sum of random odd multiples: sorting or looking up one number a row is much cheaper than comparing
    rows, and the chance that two of a million share a number is about 1e-7.
    """
    if rows.is_cpu and rows.numel() > 2**20 and len(rows) > 1:  # as int64, all at once would not fit into a cache
        return torch.cat([row_keys(part) for part in rows.split(max(1, 2**15 // rows.shape[1]))])
    return (rows.long() * _odd_numbers(rows.shape[1], rows.device)).sum(1)


@cache
def _odd_numbers(n: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0x5EED)
    return (torch.randint(-(2**62), 2**62, (n,), generator=generator) * 2 + 1).to(device)


_every_row = False


@contextmanager
def every_row() -> Iterator[None]:
    """Within it, nothing is computed once for rows that are equal: how many there are would decide shapes, and what
    is vectorised over several networks (stack.py) has one shape for all."""
    global _every_row
    _every_row, before = True, _every_row
    try:
        yield
    finally:
        _every_row = before


def distinct_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct rows (U, F) of a byte matrix (N, F) and the place (N,) of each row among them.

    ``distinct[place]`` equals ``rows``, so what is computed once per distinct row and gathered by ``place`` has the
    gradient of the whole batch.
    """
    if _every_row:
        return rows, torch.arange(len(rows), device=rows.device)
    values, place = torch.unique(row_keys(rows), return_inverse=True)
    first = torch.empty(len(values), dtype=torch.long, device=rows.device)
    first[place] = torch.arange(len(rows), device=rows.device)  # any of several equal rows will do
    return rows[first], place


def _same(ones: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether all are equal, asked once where asking means waiting for a device."""
    if [(x.shape, x.dtype, x.device) for x in ones] != [(x.shape, x.dtype, x.device) for x in others]:
        return False
    if any(x.device.type != "cpu" for x in ones):
        ones, others = ([torch.cat([x.flatten() for x in some])] for some in (ones, others))
    return all(map(torch.equal, ones, others))


class Memo:
    """What has been computed of rows, so that nothing is computed twice while weights stay as they are.

    Of each thing that is computed it starts over when it would remember more than ``limit`` rows. ``weights`` are those
    that it was computed with. A copy of what holds a memo, such as a network, holds none.
    """

    def __init__(self, limit: int = 2**15):
        self.limit = limit
        self.weights: list[Tensor] = []
        self.kept: dict[str, tuple[dict[int, int], Tables]] = {}  # of each thing: a row's key -> its place; the tables

    def __deepcopy__(self, copies: dict) -> None:
        return None

    def computed_with(self, weights: Sequence[Tensor]) -> None:
        """Forget everything, if it was computed with others."""
        if not _same(weights, self.weights):
            self.weights, self.kept = [weight.detach().clone() for weight in weights], {}

    def __call__(self, what: str, rows: Tensor, compute: Callable[[Tensor], Tables]) -> tuple[Tables, Tensor]:
        """Tables, one for each result of ``compute``, and the place (N,) of each of the rows (N, F) in them."""
        keys = row_keys(rows).tolist()
        known, tables = self.kept.pop(what, ({}, ()))  # and put back when all has gone well
        if len(known) + len(keys) > self.limit:
            known, tables = {}, ()
        before = len(known)
        place = np.array([known.setdefault(key, len(known)) for key in keys], np.int64)
        highest = np.maximum.accumulate(np.append(before - 1, place))
        new = np.flatnonzero(np.diff(highest))  # where a row occurs for the first time
        if len(new) or not tables:
            results = compute(rows[torch.as_tensor(new, device=rows.device)])
            if not tables:
                tables = tuple(result.new_empty(0, *result.shape[1:]) for result in results)
            if len(known) > len(tables[0]):  # twice the room that is needed, so that growing stays rare
                more = 2 * len(known) - len(tables[0])
                tables = tuple(torch.cat([table, table.new_empty(more, *table.shape[1:])]) for table in tables)
            for table, result in zip(tables, results, strict=True):
                table[before : len(known)] = result
        self.kept[what] = known, tables
        return tables, torch.as_tensor(place, device=rows.device)


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


class ViewEffectEncoder(nn.Module):
    """Views before and after an action, (E, 49) each -> (E, D): both, and a plane that marks where they differ."""

    cell: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("cell", cell_table(), persistent=False)
        self.width = channels * 9
        self.layers = nn.Sequential(
            nn.Conv2d(2 * sum(CELL_PARTS) + 1, channels, 3),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3),
            nn.ReLU(),
            nn.Flatten(),
        )

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        differs = (before != after).float().unsqueeze(-1)
        planes = torch.cat([self.cell[before.long()], self.cell[after.long()], differs], dim=-1)
        return self.layers(rearrange(planes, "e (i j) c -> e c i j", i=VIEW))


class Features(nn.Module):
    """Frames of any other layout (N, F), uint8 or as floats -> numbers (N, X), choices one-hot.

    Standardised by the statistics of the demonstrations, which are kept with the weights as parameters that nothing
    trains.
    """

    mean: Tensor
    scale: Tensor
    change: Tensor

    def __init__(self, layout: Layout):
        super().__init__()
        self.layout, self.width = layout, layout.n_features
        statistics = {"mean": (layout.mean, 0.0), "scale": (layout.scale, 1.0), "change": (layout.change, 1.0)}
        for name, (values, default) in statistics.items():
            value = torch.tensor(values) if values else torch.full((self.width,), default)
            self.register_parameter(name, nn.Parameter(value.float(), requires_grad=False))

    def raw(self, frame: Tensor) -> Tensor:
        """The numbers as they are, (N, X): what `Layout.features` gives, exactly."""
        columns = [frame[:, :0].float()]
        parts = frame.to(torch.uint8).split([part.n_bytes for part in self.layout.parts], dim=1)
        for part, content in zip(self.layout.parts, parts, strict=True):
            dtype = getattr(torch, np.dtype(part.dtype).name)
            values = content.clone(memory_format=torch.contiguous_format).view(dtype)  # (N, count), aligned
            if part.choices:
                chosen = values.long().unbind(1)
                columns += [F.one_hot(c, n).float() for c, n in zip(chosen, part.choices, strict=True)]
            else:
                columns.append(values.float())
        return torch.cat(columns, dim=1)

    def forward(self, frame: Tensor) -> Tensor:
        return ((self.raw(frame) - self.mean) / self.scale).clamp(-LIMIT, LIMIT)

    def difference(self, before: Tensor, after: Tensor) -> Tensor:
        """What has changed from frames (N, F) to frames (N, F), in units of what usually does: (N, X)."""
        return ((self.raw(after) - self.raw(before)) / self.change).clamp(-LIMIT, LIMIT)


class PictureEncoder(nn.Sequential):
    """Pixels (N, C, H, W) -> (N, ``.width``): convolutions that halve them until the shorter side is small, then one
    layer on all that is left, where it is, standardised as the numbers beside it are."""

    def __init__(self, shape: tuple[int, int, int], channels: int):
        n, size = shape[0], [*shape[1:]]
        layers: list[nn.Module] = []
        while min(size) > SMALL:
            convolution = nn.Conv2d(n, channels, 4, stride=2)
            nn.init.orthogonal_(convolution.weight, nn.init.calculate_gain("relu"))
            layers += [convolution, nn.ReLU()]
            n, size = channels, [(length - 4) // 2 + 1 for length in size]
        width = 4 * channels
        convolutions = nn.Sequential(*layers)
        super().__init__(
            convolutions, nn.Flatten(), nn.Linear(n * size[0] * size[1], width), nn.LayerNorm(width), nn.ReLU()
        )
        self.width = width


def picture_encoders(layout: Layout, channels: int, times: int = 1) -> tuple[nn.ModuleList, int]:
    """One for each picture of a layout, or for ``times`` as many channels; and how many numbers come of all."""
    shapes = [part.picture for part in layout.pictures]
    encoders = [PictureEncoder((times * n, height, width), channels) for n, height, width in shapes]
    return nn.ModuleList(encoders), sum(encoder.width for encoder in encoders)


def apart(layout: Layout, frame: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The bytes of what is no picture (N, F'), and every picture (N, C, H, W) as numbers from -1/2 to 1/2."""
    if not layout.pictures:
        return frame, []
    plain, pictures = [frame[:, :0]], []
    for part, content in zip(layout.parts, frame.split([part.n_bytes for part in layout.parts], dim=1), strict=True):
        if part.picture:
            pictures.append(content.reshape(-1, *part.picture).float() / 255 - 0.5)
        else:
            plain.append(content)
    return torch.cat(plain, dim=1), pictures


class VectorEncoder(nn.Module):
    """Frames (N, F) of any layout but a grid's -> (N, D): pixels by convolutions, all else as numbers. Equal frames are
    encoded once."""

    def __init__(self, layout: Layout, width: int, channels: int = 32):
        super().__init__()
        self.layout, self.features = layout, Features(layout.plain)
        self.pictures, seen = picture_encoders(layout, channels)
        self.layers = nn.Sequential(nn.Linear(self.features.width + seen, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, frame: Tensor) -> Tensor:
        distinct, place = distinct_rows(frame)
        plain, pictures = apart(self.layout, distinct)
        seen = [encode(picture) for encode, picture in zip(self.pictures, pictures, strict=True)]
        return self.layers(torch.cat([self.features(plain), *seen], dim=1))[place]


class VectorEffectEncoder(nn.Module):
    """Frames before and after an action, (E, F) each -> (E, D): what was there, and what has changed."""

    def __init__(self, layout: Layout, width: int, channels: int = 32):
        super().__init__()
        self.layout, self.features, self.width = layout, Features(layout.plain), width
        self.pictures, seen = picture_encoders(layout, channels, times=2)
        self.layers = nn.Sequential(
            nn.Linear(2 * self.features.width + seen, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        (before, old), (after, new) = apart(self.layout, before), apart(self.layout, after)
        pairs = zip(self.pictures, old, new, strict=True)
        seen = [encode(torch.cat([was, now - was], dim=1)) for encode, was, now in pairs]
        return self.layers(torch.cat([self.features(before), self.features.difference(before, after), *seen], dim=1))


def frame_encoder(layout: Layout, width: int, channels: int) -> nn.Module:
    """(N, layout.seen) -> (N, ``width``), whatever the layout."""
    return ViewEncoder(width, channels) if layout.grid else VectorEncoder(layout, width, channels)


def effect_encoder(layout: Layout, channels: int) -> ViewEffectEncoder | VectorEffectEncoder:
    """(E, layout.seen), (E, layout.seen) -> (E, ``.width``), whatever the layout."""
    return ViewEffectEncoder(channels) if layout.grid else VectorEffectEncoder(layout, channels * 4, channels)


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
        if not _every_row:
            longest = int((distinct != 0).sum(1).max().clamp(min=1))
            distinct = distinct[:, :longest]  # the rest is padding
        table = rearrange(self.phrase(self.word.weight), "w (side d) -> side w d", side=3)  # padding's is zero
        left, middle, right = (F.embedding(distinct.long(), part, padding_idx=0) for part in table)  # (U, L, D)
        phrase = middle + F.pad(left[:, :-1], (0, 0, 1, 0)) + F.pad(right[:, 1:], (0, 0, 0, 1)) + self.bias
        return (phrase.relu() * (distinct != 0).unsqueeze(2)).amax(dim=1)[place]
