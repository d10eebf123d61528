"""What learners learn from: demonstrations, and the futures of an agent's own actions. Neither has a reward.

Legend: E episodes, N states, A actions, H steps of a future, T = history + 1 frames, F bytes of a frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from headstart.envs.errors import DataError, Diverged
from headstart.envs.simulator import Obs, push
from headstart.envs.spaces import GRID, Layout
from headstart.envs.tasks import Task

__all__ = ["Branches", "Demos", "Walk"]


def _check(name: str, array: NDArray, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise DataError(f"{name} has shape {array.shape}, not {shape}. Collect it again.")


@dataclass(frozen=True)
class Demos:
    """Expert episodes, concatenated step by step.

    env_id, horizon: the environment and its step limit here.
    seed (E,) int64, length (E,) int64: the level and the number of steps of each episode.
    action (N,) int64: the expert's action in each state; N = length.sum().
    state_hash (N,) uint64: hash of each state before its action, which proves a replay.
    obs (N, ...): what was observed and remembered in each state.
    dropped: episodes that the expert failed and that were not kept.
    task: the environment, if it runs in Python; None for those of the engine.
    exact (N, ...): the environment's own actions, where ``action`` is only the choice nearest to each.
    unbranchable: why no state can be reached again, if none can: then nothing but imitation is left.
    """

    env_id: str
    horizon: int
    seed: NDArray[np.int64]
    length: NDArray[np.int64]
    action: NDArray[np.int64]
    state_hash: NDArray[np.uint64]
    obs: Obs
    dropped: int = 0
    task: Task | None = None
    exact: NDArray | None = None
    unbranchable: str = ""

    def __post_init__(self) -> None:
        if len(self.length) == 0 or self.length.min() < 1:
            raise DataError(f"{self.env_id}: the demonstrations are empty. Collect at least one episode.")
        n = int(self.length.sum())
        _check("Demos.seed", self.seed, (len(self.length),))
        _check("Demos.action", self.action, (n,))
        _check("Demos.state_hash", self.state_hash, (n,))
        _check("Demos.obs frames", self.obs["frames"], (n, *self.obs["frames"].shape[1:]))
        if not self.layout.grid:
            wrong = np.flatnonzero(~np.isfinite(self.layout.features(self.obs["frames"][:, -1])).all(1))
            if len(wrong):
                raise Diverged(
                    f"{self.env_id}: an observation is not finite in {self.where(int(wrong[0]))}, or too large for a "
                    f"float32, which ends at {np.finfo(np.float32).max:.1e}. Scale it down, or leave it out."
                )

    def __len__(self) -> int:
        return len(self.action)

    def __repr__(self) -> str:
        return f"Demos({self.env_id}: {len(self.length)} episodes, {len(self)} states)"

    @property
    def history(self) -> int:
        return self.obs["frames"].shape[1] - 1

    @property
    def last(self) -> NDArray[np.int64]:
        """(E,) where the last state of each episode is: its action leads to what the demonstration was for."""
        return np.cumsum(self.length) - 1

    def take(self, episodes: NDArray[np.int64]) -> "Demos":
        """The demonstrations at ``episodes``, in that order."""
        states = np.split(np.arange(len(self)), np.cumsum(self.length)[:-1])
        rows = np.concatenate([states[e] for e in episodes] or [np.empty(0, np.int64)])
        return replace(
            self,
            seed=self.seed[episodes],
            length=self.length[episodes],
            action=self.action[rows],
            state_hash=self.state_hash[rows],
            obs={name: value[rows] for name, value in self.obs.items()},
            exact=None if self.exact is None else self.exact[rows],
        )

    @property
    def layout(self) -> Layout:
        """What the bytes of the frames mean."""
        return GRID if self.task is None else self.task.layout

    def where(self, i: int) -> str:
        """The place of state i in words."""
        episode = int(self.episode[i])
        return f"demonstration {episode} (seed {self.seed[episode]}), step {i - int(self.length[:episode].sum())}"

    @property
    def episode(self) -> NDArray[np.int64]:
        """(N,) which episode each state belongs to."""
        return np.repeat(np.arange(len(self.length)), self.length)


@dataclass(frozen=True)
class Branches:
    """All actions tried in each of N states, and the futures they led to.

    obs (N, ...): the states, as observed.
    expert_action (N,) int64: what the expert did there, -1 where no expert has been.
    action (N, A, H) uint8: branch k begins with action k and goes on with the agent's own actions.
    future (N, A, H, F) uint8: the frame after each of these steps. An episode that has ended keeps its last frame.
    revisit (N, A) bool: the first step led to an observation that the episode had shown before.
    ended (N, A, H) bool: the episode was over after this step. How it ended is not recorded; learners use this
    only to leave out what comes after.
    env_steps: environment steps that were spent on it; not those that a fork by replay takes to come back to a state.
    tried (N, A) bool: which actions were tried (default: all). One that was not has the present as its future, and no
    learner may take it for one.
    env_id: of which environment, "" if that is not known.
    """

    obs: Obs
    expert_action: NDArray[np.int64]
    action: NDArray[np.uint8]
    future: NDArray[np.uint8]
    revisit: NDArray[np.bool_]
    ended: NDArray[np.bool_]
    env_steps: int
    tried: NDArray[np.bool_] = None  # type: ignore[assignment]  # a frozen dataclass fills it in below
    env_id: str = ""

    def __post_init__(self) -> None:
        n, a, h = self.action.shape
        if self.tried is None:
            object.__setattr__(self, "tried", np.ones((n, a), np.bool_))
        _check("Branches.tried", self.tried, (n, a))
        _check("Branches.expert_action", self.expert_action, (n,))
        _check("Branches.future", self.future, (n, a, h, self.obs["frames"].shape[-1]))
        _check("Branches.revisit", self.revisit, (n, a))
        _check("Branches.ended", self.ended, (n, a, h))
        if self.expert_action.max(initial=-1) >= a:
            raise DataError(f"an expert took action {self.expert_action.max()}, but there are only {a} actions")

    def __len__(self) -> int:
        return len(self.action)

    def __repr__(self) -> str:
        n, a, h = self.action.shape
        name = f"{self.env_id}: " if self.env_id else ""
        return f"Branches({name}{n} states, {a} actions, {h} steps; {self.env_steps} environment steps)"

    def take(self, index: NDArray[np.int64]) -> "Branches":
        """The branches of the states at ``index``; ``env_steps`` stays what all of them have cost."""
        parts = ("expert_action", "action", "future", "revisit", "ended", "tried")
        obs = {name: value[index] for name, value in self.obs.items()}
        return replace(self, obs=obs, **{name: getattr(self, name)[index] for name in parts})

    @classmethod
    def join(cls, parts: "Sequence[Branches]") -> "Branches":
        """The states of all parts, in order; what they have cost is added up."""
        names = ("expert_action", "action", "future", "revisit", "ended", "tried")
        obs = {name: np.concatenate([part.obs[name] for part in parts]) for name in parts[0].obs}
        arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        return replace(parts[0], obs=obs, env_steps=sum(part.env_steps for part in parts), **arrays)

    @property
    def frame(self) -> NDArray[np.uint8]:
        """(N, F) the present, beside which the futures are judged."""
        return self.obs["frames"][:, -1]

    def transitions(self, steps: int | None = None) -> tuple[Obs, NDArray[np.int64], NDArray[np.uint8]]:
        """Every executed step as (obs before (M, ...), action (M,), frame after (M, F)), M <= N * A * H.

        At most the first ``steps`` of each branch.
        """
        n, a, horizon = self.action.shape
        horizon = horizon if steps is None else min(steps, horizon)
        obs = {name: np.repeat(value, a, axis=0) for name, value in self.obs.items()}
        alive = self.tried.reshape(-1).copy()
        executed = []
        for h in range(horizon):
            action, future = self.action[:, :, h].reshape(-1), self.future[:, :, h].reshape(n * a, -1)
            executed.append(({name: value[alive] for name, value in obs.items()}, action[alive], future[alive]))
            obs = push(obs, action, future)
            alive &= ~self.ended[:, :, h].reshape(-1)
        before = {name: np.concatenate([step[0][name] for step in executed]) for name in obs}
        return (
            before,
            np.concatenate([step[1] for step in executed]).astype(np.int64),
            np.concatenate([step[2] for step in executed]),
        )


@dataclass(frozen=True)
class Walk:
    """What an agent has done by itself in N states, one step in each.

    action (N,) int64: -1 in the states that its episodes were left in.
    future (N, F) uint8, revisit (N,) bool, ended (N,) bool: as in `Branches`, of this step.
    env_steps: environment steps that were walked.
    """

    action: NDArray[np.int64]
    future: NDArray[np.uint8]
    revisit: NDArray[np.bool_]
    ended: NDArray[np.bool_]
    env_steps: int

    def take(self, index: NDArray[np.int64]) -> "Walk":
        """The steps at ``index``; ``env_steps`` stays what all of them have cost."""
        parts = ("action", "future", "revisit", "ended")
        return replace(self, **{name: getattr(self, name)[index] for name in parts})

    @classmethod
    def join(cls, walks: "Sequence[Walk]") -> "Walk":
        """The steps of all walks, in order; what they have cost is added up."""
        parts = ("action", "future", "revisit", "ended")
        arrays = {name: np.concatenate([getattr(walk, name) for walk in walks]) for name in parts}
        return cls(env_steps=sum(walk.env_steps for walk in walks), **arrays)
