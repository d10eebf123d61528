"""What an agent sees of a Python environment: frames of bytes and mission tokens.

Legend: F bytes of a frame, L mission tokens.
"""

import functools
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from minigrid.core.mission import MissionSpace
from numpy.typing import NDArray

from headstart.envs import engine, missions
from headstart.envs.episode import Episode, env_name
from headstart.envs.errors import Diverged, UsageError

__all__ = ["FrameReader"]


class FrameReader:
    """Turns the observations of an environment into frames (F,) and mission tokens (L,), both uint8.

    MiniGrid's image and direction become the engine's packed frame, so that the same policy reads both. The
    bytes of everything else follow one another: a Discrete observation as a little-endian number, counted
    from its start, in as few bytes as the space needs; Box, MultiDiscrete and MultiBinary as they are stored.
    So a float is four bytes of a frame, fit to be compared, and has to be viewed as float32 to be learned
    from. Text has to be the entry `mission` and in MiniGrid's words; without it L is 0.
    """

    def __init__(self, env: gymnasium.Env, mission_length: int | None = None) -> None:
        space = env.observation_space
        entries = space.spaces if isinstance(space, spaces.Dict) else {}
        self.has_mission = isinstance(entries.get("mission"), MissionSpace | spaces.Text)
        self.mission_length = 0
        if self.has_mission:
            self.mission_length = _mission_length(env) if mission_length is None else mission_length
        self.is_grid = (
            self.has_mission
            and set(entries) == {"image", "direction", "mission"}
            and entries["image"].shape == (engine.VIEW, engine.VIEW, 3)
            and entries["image"].dtype == np.uint8
        )
        self._parts = [part for part in _parts(space) if not (self.has_mission and part[0] == ("mission",))]
        for path, part in self._parts:
            if not isinstance(part, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
                name = "".join(f"[{key!r}]" for key in path)
                raise UsageError(
                    f"{env_name(env)}: its observation{name} is a {type(part).__name__}, which no frame "
                    "can hold. Use a wrapper that turns it into a Box or a Discrete."
                )
        self.width = engine.FRAME if self.is_grid else sum(_n_bytes(part) for _, part in self._parts)

    def read(self, episode: Episode) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Frame and mission of what `episode` shows now."""
        obs = episode.obs
        mission = _tokens(obs["mission"], self.mission_length) if self.has_mission else np.zeros(0, np.uint8)
        if self.is_grid:
            return _packed(episode), mission
        frame = [
            _bytes(episode, part, functools.reduce(lambda o, key: o[key], path, obs)) for path, part in self._parts
        ]
        return np.concatenate(frame), mission


def _parts(space: gymnasium.Space, path: tuple = ()) -> list[tuple[tuple, gymnasium.Space]]:
    """The spaces that a space is made of, each with the keys that lead to it."""
    if isinstance(space, spaces.Dict):
        return [part for key, entry in space.spaces.items() for part in _parts(entry, (*path, key))]
    if isinstance(space, spaces.Tuple):
        return [part for key, entry in enumerate(space.spaces) for part in _parts(entry, (*path, key))]
    return [(path, space)]


def _number_type(space: spaces.Discrete) -> np.dtype:
    return np.min_scalar_type(int(space.n) - 1).newbyteorder("<")


def _n_bytes(space: gymnasium.Space) -> int:
    if isinstance(space, spaces.Discrete):
        return _number_type(space).itemsize
    return int(np.prod(cast(tuple, space.shape))) * np.dtype(space.dtype).itemsize


def _bytes(episode: Episode, space: gymnasium.Space, value: Any) -> NDArray[np.uint8]:
    if isinstance(space, spaces.Discrete):
        number = int(value) - int(space.start)
        if not 0 <= number < space.n:
            raise episode.failed("an observation", f"it is {value}, outside {space}")
        return np.array([number], _number_type(space)).view(np.uint8)
    array = np.asarray(value)
    if array.shape != space.shape or not np.can_cast(array.dtype, cast(Any, space.dtype), "same_kind"):
        raise episode.failed("an observation", f"it is {array.dtype} of shape {array.shape}, not {space}")
    array = array.astype(space.dtype)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise Diverged(f"{episode.name}: an observation is not finite {episode.where()}: {array}")
    return array.reshape(-1).view(np.uint8)


def _packed(episode: Episode) -> NDArray[np.uint8]:
    """The engine's frame: type * 18 + color * 3 + state of every cell, then the direction."""
    image = episode.obs["image"].reshape(-1, 3)
    limit = (256 // engine.TYPE_STEP, engine.TYPE_STEP // engine.COLOR_STEP, engine.COLOR_STEP)
    if (image >= limit).any():
        raise episode.failed("an image", "a cell has a type, color or state that minigrid does not have")
    frame = np.empty(engine.FRAME, np.uint8)
    frame[:-1] = image @ np.array([engine.TYPE_STEP, engine.COLOR_STEP, 1])
    frame[-1] = episode.obs["direction"]
    return frame


@functools.lru_cache(1 << 16)
def _tokens(mission: str, length: int) -> NDArray[np.uint8]:
    return missions.encode(mission, length)


def _mission_length(env: gymnasium.Env) -> int:
    if env.unwrapped.spec is not None:
        return missions.mission_length(env.unwrapped.spec.id)
    raise UsageError(
        f"{env_name(env)}: how long its missions can be is unknown, as it was not made by gymnasium.make(). "
        "Register it (gymnasium.register), or give mission_length, the words in its longest mission."
    )
