"""What an agent sees of a Python environment: frames of bytes and mission tokens.

Legend: F bytes of a frame, L mission tokens.
"""

import functools
from typing import Any, Protocol, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from headstart.envs import engine, missions
from headstart.envs.episode import env_name
from headstart.envs.errors import Diverged, EnvironmentFailed, UsageError
from headstart.envs.spaces import GRID, Layout, Part, entries, is_text

__all__ = ["FrameReader", "Shown"]


class Shown(Protocol):
    """An observation that can say where it was made: an episode, or a step of a recorded one."""

    @property
    def obs(self) -> Any: ...
    @property
    def name(self) -> str: ...
    def where(self) -> str: ...
    def failed(self, what: str, why: object) -> EnvironmentFailed: ...


class FrameReader:
    """Turns the observations of an environment into frames (F,) and mission tokens (L,), both uint8.

    MiniGrid's image and direction become the engine's packed frame, so that the same policy reads both. The
    bytes of everything else follow one another, as ``layout`` says: Discrete and MultiDiscrete as little-endian
    numbers, counted from their start, in as few bytes as the space needs; Box and MultiBinary as they are stored, but
    for the channels of a picture, which come first.
    So a float is four bytes of a frame, fit to be compared. Text has to be the entry `mission` and in MiniGrid's
    words; where there is none, the mission is one token of padding.
    """

    def __init__(self, env: gymnasium.Env, mission_length: int | None = None) -> None:
        self._space = space = env.observation_space
        named = space.spaces if isinstance(space, spaces.Dict) else {}
        self.has_mission = is_text(named.get("mission"))
        self.mission_length = 1
        if self.has_mission:
            self.mission_length = _mission_length(env) if mission_length is None else mission_length
        is_grid = (
            self.has_mission
            and set(named) == {"image", "direction", "mission"}
            and named["image"].shape == (engine.VIEW, engine.VIEW, 3)
            and named["image"].dtype == np.uint8
        )
        self.layout = GRID if is_grid else Layout.of(space, env_name(env))
        self._entries = entries(space)

    @property
    def width(self) -> int:
        return self.layout.width

    def read(self, shown: Shown) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Frame and mission of what `shown` shows now. Raises EnvironmentFailed if that is not of its space."""
        try:
            return self._read(shown)
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            why = f"it is not of {self._space}: {type(error).__name__}: {error}"
            raise shown.failed("an observation", why) from error

    def _read(self, shown: Shown) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        mission = np.zeros(self.mission_length, np.uint8)
        if self.has_mission:
            mission = _tokens(shown.obs["mission"], self.mission_length)
        if self.layout.grid:
            return _packed(shown), mission
        frame = [
            _bytes(shown, part, entry, functools.reduce(lambda o, key: o[key], path, shown.obs))
            for part, (path, entry) in zip(self.layout.parts, self._entries, strict=True)
        ]
        return np.concatenate(frame), mission


def _bytes(shown: Shown, part: Part, space: gymnasium.Space, value: Any) -> NDArray[np.uint8]:
    array = np.asarray(value)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        number = array.astype(np.int64) - space.start
        fits = array.dtype.kind in "iub" and number.shape == space.shape
        if not fits or (number < 0).any() or (number.reshape(-1) >= part.choices).any():
            raise shown.failed("an observation", f"it is {value}, outside {space}")
        return number.reshape(-1).astype(np.dtype(part.dtype).newbyteorder("<")).view(np.uint8)
    if array.shape != space.shape or not np.can_cast(array.dtype, cast(Any, space.dtype), "same_kind"):
        raise shown.failed("an observation", f"it is {array.dtype} of shape {array.shape}, not {space}")
    given, array = array, array.astype(np.dtype(part.dtype).newbyteorder("<"))
    if array.dtype.kind in "iu" and (array != given).any():
        raise shown.failed("an observation", f"it is {given}, which does not fit into {array.dtype}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise Diverged(f"{shown.name}: an observation is not finite {shown.where()}: {array}")
    if part.picture and array.ndim == 3 and array.shape != part.picture:
        array = np.moveaxis(array, -1, 0)
    return array.reshape(-1).view(np.uint8)


def _packed(shown: Shown) -> NDArray[np.uint8]:
    """The engine's frame: type * 18 + color * 3 + state of every cell, then the direction."""
    image = shown.obs["image"].reshape(-1, 3)
    limit = (256 // engine.TYPE_STEP, engine.TYPE_STEP // engine.COLOR_STEP, engine.COLOR_STEP)
    if (image >= limit).any():
        raise shown.failed("an image", "a cell has a type, color or state that minigrid does not have")
    frame = np.empty(engine.FRAME, np.uint8)
    frame[:-1] = image @ np.array([engine.TYPE_STEP, engine.COLOR_STEP, 1])
    frame[-1] = shown.obs["direction"]
    return frame


@functools.lru_cache(1 << 16)
def _tokens(mission: str, length: int) -> NDArray[np.uint8]:
    return missions.encode(mission, length)


def _mission_length(env: gymnasium.Env) -> int:
    if env.unwrapped.spec is not None:
        return missions.mission_length(env.unwrapped.spec.id)
    raise UsageError(
        f"{env_name(env)}: how long its missions can be is unknown, as it was not made by gymnasium.make(). "
        "Give mission_length, the words in its longest mission."
    )
