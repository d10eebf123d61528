"""Any observation as a frame of bytes, any action as one of A choices: what the rest is built on, beyond grids.

    layout = Layout.of(env.observation_space)     # which bytes of a frame are what; says no to what it cannot hold
    layout.features(frames)                       # (N, D) float32: numbers as they are, choices one-hot
    choices = Choices.of(env.action_space)        # Discrete, MultiDiscrete and MultiBinary: every action
    choices = Choices.of(env.action_space, taken) # Box: a codebook of the actions that an expert has taken

Bytes can be compared, hashed and told apart exactly, whatever they mean; so everything that steps, forks and remembers
works on them, and only an encoder asks the layout for numbers. With a finite set of actions, "all of my own actions"
can be tried. For a Box that set is a codebook, as in Behavior Transformers (arXiv 2206.11251), without their offsets.

Legend: N frames, F bytes of a frame, D features, A actions.
"""

import dataclasses
import zlib
from dataclasses import dataclass
from itertools import compress
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from minigrid.core.mission import MissionSpace
from numpy.typing import NDArray

from headstart.envs import engine
from headstart.envs.errors import DataError, UsageError

__all__ = ["CODES", "GRID", "MAX_ACTIONS", "Choices", "FrameSpace", "Layout", "Part"]

MAX_ACTIONS = 254  # an action is a byte, and two more values mean "none yet" and "hidden"
MAX_CHOICES = 4096  # of a Discrete observation, which becomes that many features
PIXELS = 32  # wide and high: what is smaller may be a board
CODES = 16  # actions of a codebook, unless asked for otherwise
CHANGED = 0.1  # of the usual change of a feature: what changed by less has not changed
MAX_BYTES = len(engine.HASH_WEIGHTS) - 1024  # of a frame, which is hashed with its mission and what led there
CELLS = engine.VIEW * engine.VIEW


# ---- observations ----
@dataclass(frozen=True)
class Part:
    """One entry of an observation: ``count`` values of numpy's ``dtype``, little-endian.

    ``choices`` is empty for numbers. For choices it says among how many each value chooses, counted from 0.
    ``picture`` is the shape of pixels, whose channels come first in a frame; empty for all else.
    """

    name: str
    dtype: str
    count: int
    choices: tuple[int, ...] = ()
    picture: tuple[int, ...] = ()

    @property
    def n_bytes(self) -> int:
        return self.count * np.dtype(self.dtype).itemsize

    @property
    def n_features(self) -> int:
        return sum(self.choices) or self.count


@dataclass(frozen=True)
class Layout:
    """What the bytes of a frame mean.

    width: bytes of a frame. grid: MiniGrid's packed view and direction, which no ``parts`` describe.
    mean, scale, change: of each of the D features over some demonstrations: its mean, its standard deviation, and the
    root mean square of its change in one step. Empty before there are demonstrations.
    """

    width: int
    parts: tuple[Part, ...] = ()
    grid: bool = False
    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    change: tuple[float, ...] = ()

    @classmethod
    def of(cls, space: gymnasium.Space, name: str = "this environment") -> "Layout":
        """The layout of an observation space, entry after entry; a mission has a place of its own.

        Raises UsageError naming what no frame can hold.
        """
        parts = tuple(_part(name, path, entry) for path, entry in entries(space))
        width = sum(part.n_bytes for part in parts)
        if not width:
            raise UsageError(f"{name}: its observation {space} holds no numbers. Use a wrapper that adds what is seen.")
        if width > MAX_BYTES:
            raise UsageError(
                f"{name}: its observation {space} has {width} bytes. Use a wrapper that resizes it to at most "
                f"{MAX_BYTES} bytes."
            )
        return cls(width, parts)

    @property
    def seen(self) -> int:
        """How many leading bytes of a frame an encoder looks at: of MiniGrid's all but the direction."""
        return CELLS if self.grid else self.width

    @property
    def n_features(self) -> int:
        return sum(part.n_features for part in self.parts)

    @property
    def pictures(self) -> tuple[Part, ...]:
        """Those of its parts that a convolution reads."""
        return tuple(part for part in self.parts if part.picture)

    @property
    def plain(self) -> "Layout":
        """This layout without its pictures, statistics and all."""
        parts = tuple(part for part in self.parts if not part.picture)
        kept = [not part.picture for part in self.parts for _ in range(part.n_features)]
        mean, scale, change = (tuple(compress(x, kept)) for x in (self.mean, self.scale, self.change))
        return Layout(sum(part.n_bytes for part in parts), parts, self.grid, mean, scale, change)

    def features(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Frames (N, F) -> (N, D): numbers as they are, choices one-hot."""
        columns: list[NDArray] = []
        at = 0
        for part in self.parts:
            values = np.ascontiguousarray(frame[:, at : at + part.n_bytes]).view(np.dtype(part.dtype).newbyteorder("<"))
            at += part.n_bytes
            if part.choices:
                columns += [values[:, i, None] == np.arange(n) for i, n in enumerate(part.choices)]
            else:
                columns.append(values)
        return np.concatenate([column.astype(np.float32) for column in columns], axis=1)

    def fitted(self, frame: NDArray[np.uint8], episode: NDArray[np.int64]) -> "Layout":
        """This layout with the statistics of frames (N, F) in the order of their ``episode`` (N,).

        A feature that never varied keeps the scale 1, and one that never changed has its scale for a change. One-hot
        features are left as they are.
        """
        if self.grid:
            return self
        x = self.features(frame).astype(np.float64)
        mean, scale = x.mean(0), x.std(0)
        scale = np.where(scale > 1e-6 * np.maximum(1.0, np.abs(mean)), scale, 1.0)
        steps = np.diff(x, axis=0)[np.diff(episode) == 0]
        change = np.sqrt((steps**2).sum(0) / max(1, len(steps)))
        change = np.where(change > 1e-6 * scale, change, scale)
        one_hot = np.concatenate([np.full(part.n_features, bool(part.choices)) for part in self.parts])
        return dataclasses.replace(
            self,
            mean=tuple(np.where(one_hot, 0.0, mean).tolist()),
            scale=tuple(np.where(one_hot, 1.0, scale).tolist()),
            change=tuple(np.where(one_hot, 1.0, change).tolist()),
        )

    def changed(self, before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Which cells of a view (N, 49), or features (N, D), a step from ``before`` to ``after`` (N, F) has changed.

        A feature has changed if it did by more than a tenth of what it usually does.
        """
        if self.grid:
            return before[:, :CELLS] != after[:, :CELLS]
        usual = np.array(self.change or np.ones(self.n_features), np.float32)
        return np.abs(self.features(after) - self.features(before)) > CHANGED * usual


GRID = Layout(engine.FRAME, grid=True)
"""Of all MiniGrid and BabyAI environments."""


class FrameSpace(spaces.Box):
    """T frames in an observation space, with their layout: this is how a policy learns what it looks at.

    It also says of which environment they are, and what its actions stand for, where that is known. Two-dimensional:
    Stable-Baselines3 transposes and scales three-dimensional bytes.
    """

    def __init__(
        self, layout: Layout, frames: int, *, env_id: str | None = None, choices: "Choices | None" = None
    ) -> None:
        super().__init__(0, 255, (frames, layout.width), np.uint8)
        self.layout, self.env_id, self.choices = layout, env_id, choices

    def __eq__(self, other: object) -> bool:
        """Whether a policy for one can act in the other: the statistics of a layout are the policy's own affair."""
        layout, choices = getattr(other, "layout", GRID), getattr(other, "choices", None)
        read_alike = (self.layout.parts, self.layout.grid) == (layout.parts, layout.grid)
        return super().__eq__(other) and read_alike and self.choices == choices

    __hash__ = None  # type: ignore[assignment]  # as of any Box

    def __repr__(self) -> str:
        return f"{self.shape[0]} frames of {self.env_id}, in which to choose from {self.choices or 'its actions'}"


def entries(space: gymnasium.Space) -> list[tuple[tuple, gymnasium.Space]]:
    """The spaces that a space is made of, each with the keys that lead to it, except the mission."""
    return [(path, entry) for path, entry in _entries(space, ()) if not (path == ("mission",) and is_text(entry))]


def is_picture(space: gymnasium.Space) -> bool:
    """Whether a space looks like pixels, of one or several channels."""
    shape = cast(tuple, space.shape or ())
    return space.dtype == np.uint8 and len(shape) in (2, 3) and sum(length >= PIXELS for length in shape) >= 2


def channels_first(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a picture: channels, which are fewer than it is high and wide, height and width."""
    if len(shape) == 2:
        return (1, *shape)
    return shape if shape[0] <= shape[-1] else (shape[-1], *shape[:-1])


def is_text(space: Any) -> bool:
    return isinstance(space, MissionSpace | spaces.Text)


def _entries(space: gymnasium.Space, path: tuple) -> list[tuple[tuple, gymnasium.Space]]:
    if isinstance(space, spaces.Dict):
        return [part for key, entry in space.spaces.items() for part in _entries(entry, (*path, key))]
    if isinstance(space, spaces.Tuple):
        return [part for key, entry in enumerate(space.spaces) for part in _entries(entry, (*path, key))]
    return [(path, space)]


def _part(env: str, path: tuple, space: gymnasium.Space) -> Part:
    name = "/".join(map(str, path))
    count = int(np.prod(cast(tuple, space.shape or ())))
    if isinstance(space, spaces.Box | spaces.MultiBinary):
        picture = channels_first(cast(tuple, space.shape)) if is_picture(space) else ()
        return Part(name, np.dtype(space.dtype).name, count, picture=picture)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        choices = np.atleast_1d(space.n if isinstance(space, spaces.Discrete) else space.nvec).reshape(-1)
        if choices.sum() > MAX_CHOICES:
            raise UsageError(
                f"{env}: its observation{_keys(path)} is {space}, and only {MAX_CHOICES} choices can be learned from. "
                "Use a wrapper that takes the number apart into what it stands for."
            )
        return Part(name, np.min_scalar_type(int(choices.max()) - 1).name, count, tuple(choices.tolist()))
    raise UsageError(
        f"{env}: its observation{_keys(path)} is a {type(space).__name__}, which no frame "
        "can hold. Use a wrapper that turns it into a Box or a Discrete."
    )


def _keys(path: tuple) -> str:
    return "".join(f"[{key!r}]" for key in path)


# ---- actions ----
@dataclass(frozen=True, eq=False, repr=False)
class Choices:
    """A actions to choose from: ``table`` (A, ...) has the environment's own action behind each."""

    space: gymnasium.Space
    table: NDArray

    @classmethod
    def of(
        cls,
        space: gymnasium.Space,
        taken: NDArray | None = None,
        *,
        codes: int = CODES,
        seed: int = 0,
        name: str = "this environment",
    ) -> "Choices":
        """All actions of a finite space, or at most ``codes`` that stand for those ``taken`` (N, ...) in a Box.

        Raises UsageError naming the space if it is of another kind, or has too many actions to try them all.
        """
        if isinstance(space, spaces.Box):
            if taken is None:
                raise UsageError(
                    f"{name}: its actions are {space}, and which of them to choose from is learned from "
                    "demonstrations: collect them first, with envs.datasets.demonstrate."
                )
            return cls(space, codebook(space, np.asarray(taken), codes, seed, name))
        if isinstance(space, spaces.Discrete):
            ranges, start = np.array([space.n]), np.array([space.start])
        elif isinstance(space, spaces.MultiDiscrete):
            ranges, start = space.nvec.reshape(-1), space.start.reshape(-1)
        elif isinstance(space, spaces.MultiBinary):
            ranges = np.full(int(np.prod(space.shape)), 2)
            start = np.zeros_like(ranges)
        else:
            raise UsageError(
                f"{name}: its actions are {space}, but only Discrete, MultiDiscrete, MultiBinary and Box can be "
                "chosen from. Use a wrapper that offers one of these."
            )
        n = int(np.prod(ranges.astype(object)))
        if n > MAX_ACTIONS:
            raise UsageError(
                f"{name}: its actions are {space}, {n} in all, and at most {MAX_ACTIONS} can be tried from every "
                "state. Use a wrapper that offers fewer."
            )
        table = np.stack(np.unravel_index(np.arange(n), tuple(ranges.tolist())), axis=1) + start
        return cls(space, table.reshape(n, *cast(tuple, space.shape)).astype(cast(Any, space.dtype)))

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        """Of a codebook with a checksum: two may differ in nothing else."""
        checksum = f" (codebook {zlib.crc32(self.table.tobytes()):08x})" if isinstance(self.space, spaces.Box) else ""
        return f"{len(self)} of {self.space}{checksum}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Choices) and self.space == other.space and np.array_equal(self.table, other.table)

    __hash__ = None  # type: ignore[assignment]

    def action(self, code: int) -> Any:
        """What the environment is given: a plain number where it is Discrete, else an array of its own."""
        return int(self.table[code]) if isinstance(self.space, spaces.Discrete) else self.table[code].copy()

    def codes(self, action: NDArray) -> NDArray[np.int64]:
        """The choice (N,) that each action (N, ...) is, or is nearest to in a codebook.

        Nearest in units of the codebook's own spread, so that no dimension decides alone. Raises DataError naming the
        first action that is none.
        """
        action = np.asarray(action)
        given, table = (x.reshape(len(x), -1).astype(np.float64) for x in (action, self.table))
        if isinstance(self.space, spaces.Box):
            spread = table.std(0)
            distance = (given[:, None] - table) / np.where(spread > 0, spread, 1.0)
            return (distance**2).sum(2).argmin(1)
        same = (given[:, None] == table).all(2)
        if not same.any(1).all():
            step = int(np.flatnonzero(~same.any(1))[0])
            raise DataError(f"step {step}: the action {action[step].tolist()} is none of {self.space}.")
        return same.argmax(1)


def is_action(space: gymnasium.Space, action: Any) -> bool:
    """Whether ``action`` is one of a space, whatever its type: True is 1. In a Box its bounds are not looked at."""
    try:
        array = np.asarray(action)
        own = array.astype(cast(Any, space.dtype))
    except (TypeError, ValueError):  # ragged, or no numbers
        return False
    if array.shape != space.shape or array.dtype.kind not in "biuf":
        return False
    if isinstance(space, spaces.Box):
        return bool(np.isfinite(array).all())
    return bool((own == array).all()) and space.contains(own)


def codebook(space: spaces.Box, taken: NDArray, codes: int, seed: int, name: str) -> NDArray:
    """At most ``codes`` actions (A, ...) that stand for those ``taken`` (N, ...): these themselves, if they are so few.

    Otherwise the centres that k-means (Lloyd's, from k-means++) finds in units of each dimension's spread.
    """
    if not 2 <= codes <= MAX_ACTIONS:
        raise UsageError(f"{name}: a codebook has 2 to {MAX_ACTIONS} actions, not {codes}.")
    if taken.shape[1:] != space.shape:
        raise DataError(f"{name}: the actions taken are of shape {taken.shape[1:]}, not of {space}.")
    flat = taken.reshape(len(taken), -1).astype(np.float64)
    if not np.isfinite(flat).all():
        raise DataError(f"{name}: the action of step {np.flatnonzero(~np.isfinite(flat).all(1))[0]} is not finite.")
    flat = np.clip(flat, space.low.reshape(-1), space.high.reshape(-1))  # or several codes would be the same bound
    centres = np.unique(flat, axis=0)
    if len(centres) < 2:
        raise DataError(f"{name}: its demonstrations always take the same action, so there is nothing to choose from.")
    if len(centres) > codes:
        spread = np.where(flat.std(0) > 0, flat.std(0), 1.0)
        centres = np.unique(_k_means(flat / spread, codes, np.random.default_rng(seed)) * spread, axis=0)
    return np.clip(centres.reshape(-1, *space.shape), space.low, space.high).astype(cast(Any, space.dtype))


def _k_means(points: NDArray[np.float64], k: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """k centres of points (N, d), which are at least k different ones."""
    centres = points[rng.integers(len(points), size=1)]
    nearest = ((points - centres) ** 2).sum(1)
    while len(centres) < k:  # far from all others, more likely
        centres = np.append(centres, points[[rng.choice(len(points), p=nearest / nearest.sum())]], axis=0)
        nearest = np.minimum(nearest, ((points - centres[-1]) ** 2).sum(1))
    for _ in range(50):
        member = ((points[:, None] - centres) ** 2).sum(2).argmin(1)
        centres = np.array([points[member == i].mean(0) if (member == i).any() else centres[i] for i in range(k)])
    return centres
