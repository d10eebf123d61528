"""Many episodes of one environment that start again as they end, for Stable-Baselines3 and for Gymnasium.

    env = make_vec_env("MiniGrid-DoorKey-8x8-v0", n_envs=64)                         # for Stable-Baselines3
    env = HeadstartVectorEnv(bank("MiniGrid-DoorKey-8x8-v0", "train", 8192), 64)     # for Gymnasium
    env = make_vec_env(demos, n_envs=16)        # any other environment: that of its demonstrations

All are a thin layer over `Episodes`, which steps all of them at once. `Simulator.reward` is asked here and nowhere
else in envs, and only for the steps that are taken here: never for those of `fresh` or of a fork.

Legend: N episodes, T = history + 1 frames, L mission tokens, E episodes that ended in this step.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv

from headstart.envs import engine, missions
from headstart.envs.banks import Levels, bank
from headstart.envs.errors import DataError, UsageError, check_numbers
from headstart.envs.simulator import GridStates, Obs, Simulator
from headstart.envs.tasks import TaskLevels
from headstart.envs.transitions import Demos

__all__ = ["Advance", "Episodes", "HeadstartVecEnv", "HeadstartVectorEnv", "make_vec_env"]


class Advance(NamedTuple):
    """What one step brought.

    obs (N, ...): where an episode ended, the first observation of the next one.
    reward, terminated, truncated (N,).
    at (E,): which episodes ended; ended: these E episodes as they ended; total (E,): the sum of their rewards.
    """

    obs: Obs
    reward: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    at: NDArray[np.int64]
    ended: Simulator
    total: NDArray[np.float64]


class Episodes:
    """N running episodes; where one ends, the next begins in the same step, at a random level of a bank.

    ``horizon`` None leaves the time limit to the levels' own max_steps. A level that is played again brings
    the same random numbers again, as minigrid's `reset(seed)` does.

    Attributes: ``levels`` the bank; ``level`` (N,) which of them each episode plays; ``simulator`` the
    running episodes; ``rng`` draws the levels.
    """

    def __init__(
        self, levels: Levels | TaskLevels, n: int, rng: np.random.Generator, *, history: int, horizon: int | None
    ) -> None:
        n, history, horizon = check_numbers(levels.env_id, n_envs=n, history=history, horizon=horizon)
        self.levels, self.rng = levels, rng
        self.history, self.horizon = history, levels.horizon if horizon is None else min(horizon, levels.horizon)
        self._start = levels if isinstance(levels, TaskLevels) else GridStates.of(levels)
        self.level, self.simulator = self._first(n)
        self._total = np.zeros(n)  # rewards of the running episodes so far

    def _draw(self, n: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], Simulator]:
        level = rng.integers(len(self.levels), size=n)
        return level, Simulator(self._start.take(level), history=self.history, horizon=self.horizon)

    def _first(self, n: int) -> tuple[NDArray[np.int64], Simulator]:
        """n episodes that others will follow. What is saved of grids has one shape, however far they are."""
        level, simulator = self._draw(n, self.rng)
        if isinstance(simulator.states, GridStates):
            simulator.make_room(self.horizon)
        return level, simulator

    def fresh(self, n: int, rng: np.random.Generator) -> Simulator:
        """n episodes at the start of random levels, to practise in; the running episodes do not notice."""
        return self._draw(n, rng)[1]

    def begin(self) -> Obs:
        """Drop all running episodes and begin new ones."""
        self.level, self.simulator = self._first(len(self.simulator))
        self._total[:] = 0.0
        return self.simulator.observe()

    def advance(self, action: NDArray) -> Advance:
        """Take ``action`` (N,) in every episode, and begin a new one where that ended it."""
        running, action = self.simulator, np.asarray(action)
        if action.shape != (len(running),) or action.dtype.kind not in "iu":
            raise UsageError(
                f"{self.levels.env_id}: actions are {action.dtype}{action.shape}, "
                f"give integers of shape ({len(running)},)."
            )
        running.step(action)
        reward, terminated, truncated = running.reward(), running.terminated.copy(), running.truncated.copy()
        at = np.flatnonzero(terminated | truncated)
        ended = running.fork(at)
        self._total += reward
        total = self._total[at]
        if len(at):
            self._total[at] = 0.0
            self.level[at], begun = self._draw(len(at), self.rng)
            running.put(at, begun)
        return Advance(running.observe(), reward, terminated, truncated, at, ended, total)

    def state_dict(self) -> dict[str, NDArray]:
        """Everything that the next steps depend on, as plain arrays."""
        arrays = {name: getattr(self.simulator, name) for name in Simulator.REMEMBERED}
        arrays |= {"rows": self._rows(), "level": self.level}
        return {name: array.copy() for name, array in arrays.items()} | {
            "generator": _generator_words(self.rng),
            "bank": self._bank_hash(),
        }

    def load_state_dict(self, state: Mapping[str, NDArray]) -> None:
        """Go on from `state_dict`, of the same bank, number of episodes, history and horizon."""
        for name, array in self.state_dict().items():
            there = state.get(name)
            if there is None or there.shape != array.shape or there.dtype != array.dtype:
                found = "is missing" if there is None else f"is {there.dtype}{there.shape}"
                raise DataError(
                    f"{self.levels.env_id}: saved episodes do not fit: {name!r} {found}, not {array.dtype}"
                    f"{array.shape}. Use the n_envs, history and horizon that they were saved with."
                )
            if name == "bank" and (there != array).any():
                raise DataError(
                    f"{self.levels.env_id}: saved episodes are of another bank of levels. "
                    "Use the split and n_levels that they were saved with."
                )
        self.level[:] = state["level"]
        everyone = np.arange(len(self.level))
        self.simulator.states.put(everyone, self._start.take(self.level))  # whose seeds and missions these are
        self._rows()[:] = state["rows"]
        for name in Simulator.REMEMBERED:
            getattr(self.simulator, name)[:] = state[name]
        _set_generator_words(self.rng, state["generator"])

    def _rows(self) -> NDArray[np.uint8]:
        states = self.simulator.states
        if not isinstance(states, GridStates):
            raise UsageError(f"{self.levels.env_id}: running episodes of a Python environment cannot be saved.")
        return states.rows

    def _bank_hash(self) -> NDArray[np.uint64]:
        """(1,) of all levels in their order: odd factors, so that equal levels do not cancel out."""
        order = np.arange(1, 2 * len(self.levels), 2, dtype=np.uint64)
        assert isinstance(self._start, GridStates)  # or `_rows` has raised
        return (engine.state_hash(self._start.rows) * order).sum(keepdims=True)

    def _observation_space(self) -> spaces.Dict:
        """Frames know their layout: see FrameSpace."""
        shape = {name: value.shape[1:] for name, value in self.simulator.observe().items()}
        return spaces.Dict(
            {
                "frames": self.levels.frame_space(self.history),
                "actions": spaces.Box(0, self.simulator.n_actions, shape["actions"], np.uint8),
                "mission": spaces.Box(0, len(missions.VOCABULARY) - 1, shape["mission"], np.uint8),
            }
        )


class HeadstartVecEnv(Episodes, VecEnv):
    """Episodes as Stable-Baselines3 wants them.

    The infos of an ended episode have what SB3 reads: "terminal_observation", "TimeLimit.truncated" (and not
    terminated: then PPO bootstraps), "episode" (return and length, as its Monitor records), "is_success".
    """

    render_mode = None

    def __init__(
        self,
        levels: Levels | TaskLevels,
        n_envs: int = 64,
        *,
        seed: int = 0,
        history: int = 4,
        horizon: int | None = None,
    ):
        if history == 0:
            raise UsageError(
                f"{levels.env_id}: history=0 has no past actions, and Stable-Baselines3 cannot reshape an "
                "empty array. Use history >= 1, with a policy that does not look at the past."
            )
        n_envs, seed = check_numbers(levels.env_id, n_envs=n_envs, seed=seed)
        Episodes.__init__(self, levels, n_envs, np.random.default_rng(seed), history=history, horizon=horizon)
        VecEnv.__init__(self, n_envs, self._observation_space(), spaces.Discrete(self.simulator.n_actions))
        self.spec = gymnasium.registry.get(levels.env_id)

    def reset(self) -> Obs:  # type: ignore[override]
        if self._seeds[0] is not None:  # from `seed`, which takes effect here
            self.rng = np.random.default_rng(self._seeds[0])
            self._reset_seeds()
        return self.begin()

    def step_async(self, actions: NDArray) -> None:
        self._action = actions

    def step_wait(self) -> tuple[Obs, NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:  # type: ignore[override]
        obs, reward, terminated, truncated, at, ended, total = self.advance(self._action)
        last, success = ended.observe(), ended.success()
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]  # wrappers write into them
        for e, i in enumerate(at.tolist()):
            infos[i] = {
                "terminal_observation": {name: value[e] for name, value in last.items()},
                "TimeLimit.truncated": bool(truncated[i] and not terminated[i]),
                "episode": {"r": float(total[e]), "l": int(ended.t[e])},
                "is_success": bool(success[e]),
            }
        return obs, reward.astype(np.float32), terminated | truncated, infos

    def close(self) -> None:
        """Nothing to release."""

    def set_options(self, options: Any = None) -> None:
        _refuse(options)

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise UsageError(f"set_attr({attr_name!r}): all episodes are one object, set its attribute.")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise UsageError(f"env_method({method_name!r}): all episodes are one object, call its method.")

    def env_is_wrapped(self, wrapper_class: type[gymnasium.Wrapper], indices: Any = None) -> list[bool]:
        """True of Monitor, because the infos have what it records: SB3's evaluation asks for that."""
        return [issubclass(wrapper_class, Monitor)] * len(list(self._get_indices(indices)))


class HeadstartVectorEnv(Episodes, VectorEnv):
    """Episodes as Gymnasium wants them.

    Same-step autoreset, because every step is then a step of an episode, as in Stable-Baselines3, and one
    engine serves both. ``infos`` have "final_obs" and "final_info" {"is_success"} where an episode ended.
    """

    def __init__(
        self,
        levels: Levels | TaskLevels,
        n_envs: int = 64,
        *,
        seed: int = 0,
        history: int = 4,
        horizon: int | None = None,
    ):
        n_envs, seed = check_numbers(levels.env_id, n_envs=n_envs, seed=seed)
        VectorEnv.reset(self, seed=seed)  # seeds np_random
        Episodes.__init__(self, levels, n_envs, self.np_random, history=history, horizon=horizon)
        self.num_envs, self.spec = n_envs, gymnasium.registry.get(levels.env_id)
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space = self._observation_space()
        self.single_action_space = spaces.Discrete(self.simulator.n_actions)
        self.observation_space = batch_space(self.single_observation_space, n_envs)
        self.action_space = batch_space(self.single_action_space, n_envs)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Obs, dict[str, Any]]:
        _refuse(options)
        super().reset(seed=seed)
        self.rng = self.np_random
        return self.begin(), {}

    def step(
        self, actions: NDArray
    ) -> tuple[Obs, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        obs, reward, terminated, truncated, at, ended, _ = self.advance(actions)
        last, success = ended.observe(), ended.success()
        infos: dict[str, Any] = {}
        for e, i in enumerate(at.tolist()):
            final_obs = {name: value[e] for name, value in last.items()}
            final_info = {"is_success": bool(success[e])}
            infos = self._add_info(infos, {"final_obs": final_obs, "final_info": final_info}, i)
        return obs, reward, terminated, truncated, infos


def make_vec_env(
    env: str | Demos,
    n_envs: int = 64,
    *,
    seed: int = 0,
    split: str = "train",
    n_levels: int = 8192,
    history: int | None = None,
    horizon: int | None = None,
    cache: str | Path | None = None,
) -> HeadstartVecEnv:
    """An environment for Stable-Baselines3, over the first levels of a split.

    ``env`` is a MiniGrid or BabyAI id, or demonstrations: then it is theirs, whatever it is, with their history
    unless another is given (default for an id: 4).
    """
    if not isinstance(env, str | Demos):
        raise UsageError(
            f"make_vec_env takes demonstrations, or an id of MiniGrid or BabyAI, and not a {type(env).__name__}. For "
            "any other environment use demonstrate(make_env, ...), and make_vec_env(demos) with what it returns."
        )
    (n_levels,) = check_numbers(env if isinstance(env, str) else env.env_id, n_levels=n_levels)
    if isinstance(env, str):
        levels, remembered = bank(env, split, n_levels, cache=cache), 4
    else:
        task, remembered, horizon = env.task, env.history, env.horizon if horizon is None else horizon
        levels = bank(env.env_id, split, n_levels, cache=cache) if task is None else task.levels(split, n_levels)
    return HeadstartVecEnv(
        levels, n_envs, seed=seed, history=remembered if history is None else history, horizon=horizon
    )


def _refuse(options: Any) -> None:
    if options:
        raise UsageError(f"Options of reset are not supported, and these would have no effect: {options!r}.")


def _generator_words(rng: np.random.Generator) -> NDArray[np.uint64]:
    """The state of PCG64, numpy's default, as six 64-bit words."""
    state: Any = rng.bit_generator.state
    words = [word for number in state["state"].values() for word in divmod(number, 1 << 64)]
    return np.array([*words, state["has_uint32"], state["uinteger"]], np.uint64)


def _set_generator_words(rng: np.random.Generator, words: NDArray[np.uint64]) -> None:
    high, low, increment_high, increment_low, has_half, half = words.tolist()
    rng.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": high << 64 | low, "inc": increment_high << 64 | increment_low},
        "has_uint32": has_half,
        "uinteger": half,
    }
