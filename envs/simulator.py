"""N episodes in lockstep that can be forked at any moment, each with its own memory of what it has seen.

Demonstrations, branches, practice, evaluation and PPO all step this and nothing else. Below it are *states*:
rows of the engine here, copies of any other Gymnasium environment in fork.py.

Legend: N episodes, T = history + 1 frames, F bytes of a frame, L mission tokens, A actions.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from headstart.envs import engine, missions
from headstart.envs.banks import Levels
from headstart.envs.errors import UsageError

ROOM = 16  # steps to come that an episode has room for at first: limits may be far away, and a fork copies the room

__all__ = ["Actor", "GridStates", "Obs", "Simulator", "States", "push", "uniform_actor"]

Obs = dict[str, NDArray]
"""{"frames": (N, T, F), "actions": (N, T-1), "mission": (N, L)}, all uint8.

The newest frame is last, and ``actions[:, i]`` was taken in ``frames[:, i]``. Before the episode's start frames are
zero and actions are A. Two-dimensional bytes are what Stable-Baselines3 hands to a policy unchanged.
"""

Actor = Callable[[Obs, np.random.Generator], NDArray[np.int64]]
"""Chooses actions (N,) from what is observed; all randomness comes from the generator."""


def uniform_actor(n_actions: int) -> Actor:
    """Every action equally often: how an agent explores before it knows anything."""
    return lambda obs, rng: rng.integers(n_actions, size=len(obs["frames"]))


def push(obs: Obs, action: NDArray, frame: NDArray[np.uint8]) -> Obs:
    """What is remembered after taking ``action`` (N,) in ``obs`` and seeing ``frame`` (N, F)."""
    return {
        "frames": np.concatenate([obs["frames"][:, 1:], frame[:, None]], axis=1),
        "actions": np.concatenate([obs["actions"], action[:, None].astype(np.uint8)], axis=1)[:, 1:],
        "mission": obs["mission"],
    }


class States(Protocol):
    """N environment states without memory."""

    @property
    def n_actions(self) -> int: ...
    @property
    def env_id(self) -> str:
        """Of which environment they are, "" if that is not known."""
        ...

    def take(self, index: NDArray[np.int64]) -> Self:
        """Copies of the states at ``index``."""
        ...

    def put(self, index: NDArray[np.int64], states: Self) -> None:
        """Replace the states at ``index``."""
        ...

    def step(
        self, at: NDArray[np.int64], action: NDArray, exact: Sequence[Any] | None = None
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Step the states at ``at`` in place; (terminated, truncated) of those.

        ``exact``: the environment's own actions, where a choice is only the nearest to what an expert did.
        """
        ...

    def frame(self) -> NDArray[np.uint8]: ...
    def mission(self) -> NDArray[np.uint8]: ...
    def state_hash(self) -> NDArray[np.uint64]: ...
    def reward(self) -> NDArray[np.float64]: ...
    def success(self) -> NDArray[np.bool_]: ...


class GridStates:
    """MiniGrid and BabyAI states as rows of the engine: a copy of a state is a copy of its bytes.

    ``env_id`` and ``seed`` (N,) say which `reset(seed)` made each level, for an expert that is asked about it
    (advice.py): "" and -1 where that is not known.
    """

    def __init__(
        self,
        rows: NDArray[np.uint8],
        mission: NDArray[np.uint8],
        env_id: str = "",
        seed: NDArray[np.int64] | None = None,
    ):
        self.rows, self._mission, self.env_id = rows, mission, env_id
        self.seed = np.full(len(rows), -1) if seed is None else seed

    @property
    def n_actions(self) -> int:
        return engine.n_actions(self.rows)

    @property
    def random(self) -> bool:
        """Whether what a step leads to is a matter of luck: others move too."""
        return len(self.rows) > 0 and bool(self.rows[0, engine.RULE] == engine.OBSTACLES)

    @classmethod
    def of(cls, levels: Levels) -> "GridStates":
        """Levels at the start of their episodes."""
        length = missions.mission_length(levels.env_id)
        words, which = np.unique(levels.mission, return_inverse=True)
        tokens = np.stack([missions.encode(str(mission), length) for mission in words])
        rows, seed = np.array(levels.rows, order="C"), levels.seed.copy()  # stepping must not change the levels
        return cls(rows, tokens[which], levels.env_id, seed)

    def take(self, index: NDArray[np.int64]) -> "GridStates":
        return GridStates(self.rows[index], self._mission[index], self.env_id, self.seed[index])

    def put(self, index: NDArray[np.int64], states: "GridStates") -> None:
        self.rows[index], self._mission[index], self.seed[index] = states.rows, states._mission, states.seed

    def step(
        self, at: NDArray[np.int64], action: NDArray, exact: Sequence[Any] | None = None
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        assert exact is None  # in a grid every action is a choice
        if len(at) == len(self.rows):
            return engine.step(self.rows, action)
        rows = self.rows[at]
        ended = engine.step(rows, action)
        self.rows[at] = rows
        return ended

    def frame(self) -> NDArray[np.uint8]:
        return engine.observe(self.rows)

    def mission(self) -> NDArray[np.uint8]:
        return self._mission.copy()

    def state_hash(self) -> NDArray[np.uint64]:
        return engine.state_hash(self.rows)

    def reward(self) -> NDArray[np.float64]:
        return engine.reward(self.rows)

    def success(self) -> NDArray[np.bool_]:
        return engine.succeeded(self.rows)


class Simulator:
    """N forkable episodes with memory.

    ``history`` earlier frames and actions are part of what an agent observes. ``horizon`` truncates an episode
    after so many steps. An episode that has ended stays as it ended: further actions do not touch it.

    Attributes, all (N,): ``t`` steps taken; ``terminated``, ``truncated``; ``revisit``: what the last step
    showed had been seen before in this episode.
    """

    REMEMBERED = ("_frames", "_actions", "_mission", "_seen", "_taken", "t", "terminated", "truncated", "revisit")

    def __init__(self, states: States, *, history: int, horizon: int):
        if history < 0 or horizon < 1:
            raise UsageError(f"history={history}, horizon={horizon}: give history >= 0 and horizon >= 1.")
        self.states, self.history, self.horizon, self.n_actions = states, history, horizon, states.n_actions
        frame = states.frame()
        n, width = frame.shape
        self._frames = np.zeros((n, history + 1, width), np.uint8)
        self._frames[:, -1] = frame
        self._actions = np.full((n, history), self.n_actions, np.uint8)
        self._mission = states.mission()
        room = min(horizon, ROOM)
        self._seen = np.zeros((n, room + 1), np.uint64)  # hash of the frame at every step so far
        self._seen[:, 0] = engine.frame_hash(frame)
        self._taken = np.zeros((n, room), np.uint8)  # every action so far
        self.t = np.zeros(n, np.int64)
        self.terminated, self.truncated, self.revisit = np.zeros((3, n), np.bool_)

    def __len__(self) -> int:
        return len(self.t)

    @property
    def done(self) -> NDArray[np.bool_]:
        return self.terminated | self.truncated

    def observe(self) -> Obs:
        """What each agent sees and remembers."""
        return {
            "frames": self._frames.copy(),
            "actions": self._actions.copy(),
            "mission": self._mission.copy(),
        }

    def luck(self, seed: int) -> "Simulator | None":
        """The same episodes with other luck from here on; None where nothing is known to depend on luck."""
        if not isinstance(self.states, GridStates) or not self.states.random:
            return None
        other = self.fork()
        assert isinstance(other.states, GridStates)
        engine.reseed(other.states.rows, seed)
        return other

    def frame(self) -> NDArray[np.uint8]:
        """What each agent sees now, (N, F)."""
        return self._frames[:, -1].copy()

    def taken(self) -> list[NDArray[np.uint8]]:
        """All actions of each episode so far, N arrays."""
        return [actions[:t] for actions, t in zip(self._taken.copy(), self.t, strict=True)]

    def state_hash(self) -> NDArray[np.uint64]:
        """(N,) hash of the whole state, which proves what was forked."""
        return self.states.state_hash()

    def step(self, action: NDArray, exact: Sequence[Any] | None = None) -> int:
        """Take ``action`` (N,) in every episode that has not ended; returns how many steps that were.

        ``exact`` (N) is what an expert really did, where ``action`` is only the choice nearest to it.
        """
        action = np.asarray(action)
        if action.shape != (len(self),) or action.dtype.kind not in "iu":
            kind = f"{action.dtype}{action.shape}"
            raise UsageError(f"{self.states.env_id}: actions are {kind}, give integers of shape ({len(self)},).")
        live = np.flatnonzero(~self.done)
        own = None if exact is None else [exact[int(i)] for i in live]
        terminated, truncated = self.states.step(live, action[live], own)
        room = self._taken.shape[1]
        if room < self.horizon and self.t[live].max(initial=0) == room:
            self.make_room(min(self.horizon, 2 * room))
        self._taken[live, self.t[live]] = action[live]
        self.t[live] += 1
        self.terminated[live] = terminated
        self.truncated[live] = truncated | (self.t[live] >= self.horizon)
        rows = live if len(live) < len(self) else slice(None)  # of which nothing is copied
        frame = self.states.frame()[rows]
        if self.history:
            self._frames[rows, :-1] = self._frames[rows, 1:]
            self._actions[rows, :-1] = self._actions[rows, 1:]
            self._actions[rows, -1] = action[rows]
        self._frames[rows, -1] = frame
        key = engine.frame_hash(frame)
        earlier = self._seen[rows, : self.t.max(initial=0)]
        self.revisit[rows] = (earlier == key[:, None]).any(axis=1)
        self._seen[live, self.t[live]] = key
        return len(live)

    def reward(self) -> NDArray[np.float64]:
        """(N,) reward of the last step; of grids, whose reward is in the end, 0 where none has ended. PPO asks for it,
        nothing before does."""
        return self.states.reward()

    def success(self) -> NDArray[np.bool_]:
        """(N,) whether the episode has ended in success. For evaluation only."""
        return self.states.success()

    def fork(self, index: NDArray[np.int64] | None = None) -> "Simulator":
        """Copies of the episodes at ``index`` (all of them by default, repeats allowed), memory included."""
        index = np.arange(len(self)) if index is None else np.asarray(index, np.int64)
        other = object.__new__(Simulator)
        other.history, other.horizon, other.n_actions = self.history, self.horizon, self.n_actions
        other.states = self.states.take(index)
        for name in self.REMEMBERED:
            if name not in ("_seen", "_taken"):
                setattr(other, name, getattr(self, name)[index])
        room = min(self._taken.shape[1], 2 * int(other.t.max(initial=0)) + ROOM)
        other._seen, other._taken = self._seen[index, : room + 1], self._taken[index, :room]
        return other

    def put(self, index: NDArray[np.int64], episodes: "Simulator") -> None:
        """Replace the episodes at ``index`` by ``episodes``."""
        self.states.put(index, episodes.states)
        self.make_room(episodes._taken.shape[1])
        episodes.make_room(self._taken.shape[1])
        for name in self.REMEMBERED:
            getattr(self, name)[index] = getattr(episodes, name)

    def make_room(self, steps: int) -> None:
        """Let what is remembered of each step be as long as so many steps, if it is shorter."""
        more = steps - self._taken.shape[1]
        if more > 0:
            self._seen, self._taken = (np.pad(x, ((0, 0), (0, more))) for x in (self._seen, self._taken))
