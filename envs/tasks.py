"""Environments that run in Python, with all that it takes to play, fork and learn them.

    task = Task.of(make_env, success=lambda outcome: outcome.total >= 200)
    levels = task.levels("test", 100)       # where grids have a bank of levels, tasks have seeds

Everything that takes a bank's `Levels` of a grid takes `TaskLevels` too.

Legend: N levels.
"""

import dataclasses
from dataclasses import dataclass

import gymnasium
import numpy as np
from minigrid.minigrid_env import MiniGridEnv
from numpy.typing import NDArray

from headstart.envs.episode import ForkMode, MakeEnv, Success, close, env_name, make_new
from headstart.envs.errors import UsageError, check_numbers
from headstart.envs.fork import CopiedStates, choose_fork_mode
from headstart.envs.frames import FrameReader
from headstart.envs.spaces import CODES, Choices, FrameSpace, Layout

__all__ = ["SPLITS", "Task", "TaskLevels", "step_limit"]

SPLITS = ("train", "validation", "test")
SEEDS = 2**29  # of each split, one after the other


@dataclass(frozen=True)
class Task:
    """An environment that runs in Python.

    name: its id, or its class. make_env: makes one more of it.
    mode: how it is forked, exactly.
    choices: the actions that its agents choose from. reader: what they see.
    layout: what a frame's bytes mean, with the statistics of the demonstrations once there are some.
    horizon: its step limit.
    success: which ends count as success; None leaves it to `CopiedStates.success`. Evaluation only.
    """

    name: str
    make_env: MakeEnv
    mode: ForkMode
    choices: Choices
    reader: FrameReader
    layout: Layout
    horizon: int
    success: Success | None = None

    @classmethod
    def of(
        cls,
        make_env: MakeEnv,
        *,
        horizon: int | None = None,
        success: Success | None = None,
        mode: ForkMode | None = None,
        taken: NDArray | None = None,
        codes: int = CODES,
        seed: int = 0,
        mission_length: int | None = None,
    ) -> "Task":
        """What ``make_env()`` makes.

        ``horizon`` defaults to the environment's own step limit. ``mode`` defaults to what
        `choose_fork_mode` finds to be exact and fast, which takes it some thousand steps. ``taken`` (N, ...) are the
        actions of an expert, from which actions in a Box get a codebook of ``codes``. Raises UsageError naming what
        cannot be used, and EnvironmentFailed if the environment cannot be forked.
        """
        env = make_new(make_env)
        name = env_name(env)
        reader = FrameReader(env, mission_length)
        choices = Choices.of(env.action_space, taken, codes=codes, seed=seed, name=name)
        limit = step_limit(env, horizon)
        close(env)
        mode = mode or choose_fork_mode(make_env, seed=seed, limit=limit, all_modes=False).mode
        return cls(name, make_env, mode, choices, reader, reader.layout, limit, success)

    def fitted(self, frame: NDArray[np.uint8], episode: NDArray[np.int64]) -> "Task":
        """With the statistics of frames (N, F), in the order of their ``episode`` (N,), in its layout."""
        return dataclasses.replace(self, layout=self.layout.fitted(frame, episode))

    def states(self, seeds: NDArray[np.int64]) -> CopiedStates:
        """The start of an episode for each seed."""
        return CopiedStates(
            self.make_env, seeds, self.mode, reader=self.reader, choices=self.choices, success=self.success
        )

    def levels(self, split: str, n: int) -> "TaskLevels":
        """The first ``n`` seeds of a split. No two splits share a seed; how much their levels differ, nobody knows."""
        if split not in SPLITS:
            raise UsageError(f"{self.name}: there is no split {split!r}: choose one of {', '.join(SPLITS)}.")
        (n,) = check_numbers(self.name, n=n)
        return TaskLevels(self, SPLITS.index(split) * SEEDS + np.arange(n))


def step_limit(env: gymnasium.Env, horizon: int | None = None) -> int:
    """``horizon``, or the step limit of the environment itself. Raises UsageError if there is none."""
    name = env_name(env)
    (horizon,) = check_numbers(name, horizon=horizon)
    own = env.spec.max_episode_steps if env.spec else None
    if own is None and env.has_wrapper_attr("_max_episode_steps"):  # TimeLimit's, around what has no spec
        own = env.get_wrapper_attr("_max_episode_steps")
    if own is None and isinstance(env.unwrapped, MiniGridEnv):
        own = env.unwrapped.max_steps  # 0 in BabyAI, where each level gets a limit of its own
    limit = horizon or own
    if not limit:
        raise UsageError(
            f"{name}: it has no step limit that is the same in every episode. Give horizon, the most steps of one."
        )
    return limit


@dataclass(frozen=True)
class TaskLevels:
    """Seeds (N,) of a task: what a bank of levels is to a grid."""

    task: Task
    seed: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.seed)

    @property
    def env_id(self) -> str:
        return self.task.name

    def frame_space(self, history: int) -> FrameSpace:
        """The frames that an agent is shown there, with what its choices stand for."""
        return FrameSpace(self.task.layout, history + 1, env_id=self.env_id, choices=self.task.choices)

    @property
    def horizon(self) -> int:
        """Their step limit."""
        return self.task.horizon

    def take(self, index: NDArray[np.int64]) -> CopiedStates:
        """The start of the episodes of these seeds."""
        return self.task.states(self.seed[index])
