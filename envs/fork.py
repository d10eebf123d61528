"""Forking any other Gymnasium environment: by deepcopy, by pickle, or by replay of its seed and actions.

    fork = choose_fork_mode(make_env)               # tries which modes are exact, or refuses with the reason
    states = CopiedStates(make_env, seeds=range(64), mode=fork.mode)
    simulator = Simulator(states, history=4, horizon=200)

What the engine knows is forked a thousand times faster there (engine.py). This is for the rest: MiniGrid with
a wrapper or a rule of its own, and any environment that runs in Python.

A fork is exact if it cannot be told from the original and neither disturbs the other. That is tried, not
assumed: episodes of random actions are played and forked on the way, and copies, copies of copies and
originals have to show what the same episode showed without forks. An environment that draws random numbers
from a place that its copies share, such as `np.random`, fails this. So does one that does not repeat itself.

N is the number of states.
"""

import contextlib
import copy
import hashlib
import math
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import gymnasium
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from headstart.envs import engine
from headstart.envs.episode import MODES, Episode, ForkMode, MakeEnv, Success, close, env_name, make
from headstart.envs.errors import EnvironmentFailed, UsageError
from headstart.envs.frames import FrameReader
from headstart.envs.spaces import Choices

__all__ = ["CopiedStates", "ForkReport", "choose_fork_mode", "succeeded"]

ALTERNATIVES = 4  # copies of one state that are timed, about as many as an agent has actions
MIN_EPISODES, MAX_EPISODES = 2, 20  # of the self-check
UNREADABLE = "unreadable"


# ---- the self-check ----
@dataclass(frozen=True)
class ForkReport:
    """Which ways to fork an environment are exact.

    mode: the fastest exact one.
    branches_per_second: of every exact one that was tried; a branch is a copy and one step.
    refused: why the others are not exact.
    episodes, steps, states: how many episodes were played, with how many steps, and how many states were forked.
    rewards_compared: false where the rewards cannot be read as numbers. Only this check ever compares them.
    """

    mode: ForkMode
    branches_per_second: dict[ForkMode, float]
    refused: dict[ForkMode, str]
    episodes: int
    steps: int
    states: int
    rewards_compared: bool


class _Moment(NamedTuple):
    """What an environment shows after a step, in a form that can be compared exactly."""

    observation: bytes
    reward: str
    terminated: bool
    truncated: bool


class _Trace(NamedTuple):
    """An episode as it is when nobody forks it; moment 0 is after reset()."""

    seed: int
    actions: list[Any]
    moments: list[_Moment]


class _Inexact(Exception):
    """A mode of forking has been refuted; the message says by what."""


def choose_fork_mode(
    make_env: MakeEnv,
    *,
    seed: int = 0,
    steps: int = 1000,
    states: int = 12,
    horizon: int = 8,
    limit: float = math.inf,
    all_modes: bool = True,
) -> ForkReport:
    """Find out by trying how `make_env()` can be forked.

    Episodes of random actions are played from `seed` on, until they have `steps` steps together. At about
    `states` of their states, every episode's first and last among them, copies are made and followed for
    `horizon` steps. Randomness that is too rare to show there is missed: raise the numbers to be surer.
    No episode has more than `limit` steps, as an environment may not be fit for more than it will be used for.
    All of that takes some thousand steps, and most of them are those of "replay": without `all_modes` it is left out
    where a copy is exact, and hence (but for states of many megabytes) faster.
    Raises EnvironmentFailed, with the reasons, if the environment does not repeat itself or no mode is exact.
    """
    traces: list[_Trace] = []
    left = steps
    with tqdm(desc="finding out how to fork it", unit="step", delay=2, disable=None) as bar:
        while len(traces) < MIN_EPISODES or (left > 0 and len(traces) < MAX_EPISODES):
            traces.append(_play(make_env, seed + len(traces), min(steps, limit), bar))
            left -= len(traces[-1].actions)
        for trace in traces:
            with contextlib.closing(Episode(make_env, trace.seed)) as episode:
                _check_repeats(episode, trace, bar)
        rng = np.random.default_rng(seed)
        chosen = [_sample(len(trace.actions), states // len(traces), rng) for trace in traces]
        speed: dict[ForkMode, float] = {}
        refused: dict[ForkMode, str] = {}
        for mode in MODES:
            if mode == "replay" and speed and not all_modes:
                continue
            try:
                seconds = [
                    _prove(make_env, mode, trace, at, horizon, limit, bar)
                    for trace, at in zip(traces, chosen, strict=True)
                ]
                speed[mode] = ALTERNATIVES * sum(map(len, chosen)) / sum(seconds)
            except _Inexact as flaw:
                refused[mode] = str(flaw)
    if not speed:
        reasons = "".join(f"\n  {mode}: {why}" for mode, why in refused.items())
        raise EnvironmentFailed(
            f"{env_name(make(make_env))} cannot be forked, because no copy of it is exact:{reasons}\n"
            "Keep all that changes in attributes of the environment, and none of it in modules or classes."
        )
    best = max(speed, key=lambda mode: speed[mode])
    readable = all(moment.reward != UNREADABLE for trace in traces for moment in trace.moments)
    return ForkReport(
        best, speed, refused, len(traces), sum(len(one.actions) for one in traces), sum(map(len, chosen)), readable
    )


def _sample(n: int, states: int, rng: np.random.Generator) -> set[int]:
    """Some of n states, with the first and the last, after which a time limit strikes."""
    return {0, n - 1, *rng.integers(n, size=max(0, states - 2)).tolist()}


def _play(make_env: MakeEnv, seed: int, steps: float, bar: tqdm) -> _Trace:
    with contextlib.closing(Episode(make_env, seed)) as episode:
        sample = _sampler(episode.env, seed)
        moments = [_moment(episode)]
        while not episode.ended and len(episode.actions) < steps:
            before = _global_generators()
            episode.step(sample())
            drawn = [name for name, state in _global_generators().items() if before.get(name, state) != state]
            if drawn:
                raise EnvironmentFailed(
                    f"{episode.name} cannot be forked: its step() draws from the global generator of {drawn[0]}, "
                    f"which all copies share ({episode.where()}). Draw from self.np_random instead."
                )
            moments.append(_moment(episode))
            bar.update()
        return _Trace(seed, episode.actions, moments)


def _sampler(env: gymnasium.Env, seed: int) -> Callable[[], Any]:
    """Random actions, from a copy of the space: the environment's own may be part of its state."""
    space = copy.deepcopy(env.action_space)
    space.seed(seed)
    return space.sample


def _global_generators() -> dict[str, object]:
    """The state of every random generator that a copy of an environment would share with the original."""
    legacy = cast(dict, np.random.get_state(legacy=False))  # noqa: NPY002  read, not used
    states: dict[str, object] = {
        "random": random.getstate(),
        "np.random": (legacy["state"]["key"].tobytes(), legacy["state"]["pos"], legacy["has_gauss"]),
    }
    if "torch" in sys.modules:
        states["torch"] = sys.modules["torch"].get_rng_state().numpy().tobytes()
    return states


def _moment(episode: Episode) -> _Moment:
    digest = hashlib.blake2b(digest_size=16)
    _feed(digest.update, episode.obs)
    try:
        reward = repr(float(episode.reward))
    except Exception:  # whatever a reward that must not be read raises: do without
        reward = UNREADABLE
    return _Moment(digest.digest(), reward, episode.terminated, episode.truncated)


def _feed(update: Callable[[bytes], None], value: Any) -> None:
    """Every bit of an observation, with what is needed to tell apart observations of equal bits."""
    if isinstance(value, dict):
        value = [part for item in sorted(value.items()) for part in item]
    if isinstance(value, list | tuple):
        update(f"{len(value)} parts".encode())
        for part in value:
            _feed(update, part)
        return
    array = np.asarray(value)
    update(f"{array.dtype} {array.shape}".encode())
    update(repr(value).encode() if array.dtype == object else array.tobytes())


def _check_repeats(episode: Episode, trace: _Trace, bar: tqdm) -> None:
    for step, moment in enumerate(trace.moments):
        if step:
            episode.step(trace.actions[step - 1])
            bar.update()
        if what := _difference(_moment(episode), moment):
            place = f"step {step}" if step else "reset()"
            raise EnvironmentFailed(
                f"{episode.name} does not repeat itself: with seed {trace.seed} and the same actions, {what} "
                f"after {place} was another one the second time. Draw all that is random from "
                "self.np_random, which reset(seed=...) seeds, and keep nothing outside the environment."
            )


def _difference(moment: _Moment, expected: _Moment) -> str | None:
    """The first thing in which they differ."""
    return next((name for name in _Moment._fields if getattr(moment, name) != getattr(expected, name)), None)


def _prove(
    make_env: MakeEnv, mode: ForkMode, trace: _Trace, at: set[int], horizon: int, limit: float, bar: tqdm
) -> float:
    """Seconds that the branches of this episode took. Raises _Inexact if anybody can notice the forks."""
    try:
        with contextlib.closing(Episode(make_env, trace.seed)) as original:
            return _follow(original, mode, trace, at, horizon, limit, bar)
    except _Inexact:
        raise
    except Exception as error:  # nothing was raised when the episode was played: the copies are to blame
        raise _Inexact(f"{type(error).__name__}: {error}") from error


def _follow(
    original: Episode, mode: ForkMode, trace: _Trace, at: set[int], horizon: int, limit: float, bar: tqdm
) -> float:
    sample = _sampler(original.env, trace.seed + 1)
    seconds = 0.0
    for step, action in enumerate(trace.actions):
        if step in at:
            start = time.perf_counter()
            strays = [original.fork(mode) for _ in range(ALTERNATIVES)]
            for stray in strays:
                stray.step(sample())
            seconds += time.perf_counter() - start
            follower = original.fork(mode).fork(mode)
            for _ in range(horizon):  # goes elsewhere, which nobody else may notice
                if not strays[0].ended and len(strays[0].actions) < limit:
                    strays[0].step(sample())
            for later in range(step, min(step + horizon, len(trace.actions))):
                follower.step(trace.actions[later])
                if what := _difference(_moment(follower), trace.moments[later + 1]):
                    raise _Inexact(
                        f"with seed {trace.seed}, a copy made after step {step} has another {what} than "
                        f"the original after step {later + 1}"
                    )
        original.step(action)
        bar.update()
        if what := _difference(_moment(original), trace.moments[step + 1]):
            raise _Inexact(
                f"with seed {trace.seed}, its copies disturb the original: it has another {what} than "
                f"without them after step {step + 1}"
            )
    return seconds


# ---- N environments ----
class CopiedStates:
    """N states of Python environments: the `States` of simulator.py for what the engine cannot run.

    A copy is made when it is stepped, not when it is taken; so is one of the original, which cannot know that nobody
    will step the copy.
    """

    def __init__(
        self,
        make_env: MakeEnv,
        seeds: Iterable[int],
        mode: ForkMode,
        *,
        mission_length: int | None = None,
        reader: FrameReader | None = None,
        choices: Choices | None = None,
        success: Success | None = None,
    ) -> None:
        """Environments at the start of their episodes; `mode` is what `choose_fork_mode` has proved exact.

        `reader` and `choices` are made from the environment's spaces, unless they are there already; actions in a Box
        need them. `success` says which ends are a success (default: see `success`).
        """
        if mode not in MODES:
            raise UsageError(f"mode={mode!r}: choose one of {', '.join(MODES)}.")
        self.mode: ForkMode = mode
        if reader is None or choices is None:
            env = make(make_env)
            reader = reader or FrameReader(env, mission_length)
            choices = choices or Choices.of(env.action_space, name=env_name(env))
            close(env)
        self._reader, self._choices, self._is_success = reader, choices, success
        self._episodes = [Episode(make_env, int(seed)) for seed in seeds]
        self.env_id = self._episodes[0].name if self._episodes else ""
        if mode == "replay":  # copies made otherwise may share something with the original, and outlive it
            for episode in self._episodes:
                episode.close_when_dropped()
        read = [self._reader.read(episode) for episode in self._episodes]
        self._frame = np.array([frame for frame, _ in read])
        self._mission = np.array([mission for _, mission in read])
        seed = np.array([[episode.seed] for episode in self._episodes], "<i8").view(np.uint8)
        self._hash = engine.frame_hash(np.concatenate([seed, self._frame, self._mission], axis=1))

    def __len__(self) -> int:
        return len(self._episodes)

    @property
    def n_actions(self) -> int:
        return len(self._choices)

    def take(self, index: NDArray[np.int64]) -> "CopiedStates":
        other = copy.copy(self)
        other._episodes = [self._episodes[i] for i in index]
        for episode in other._episodes:
            episode.shared = True
        other._frame, other._mission, other._hash = (
            self._frame[index],
            self._mission[index],
            self._hash[index],
        )
        return other

    def put(self, index: NDArray[np.int64], states: "CopiedStates") -> None:
        for i, episode in zip(index, states._episodes, strict=True):
            episode.shared = True
            self._episodes[i] = episode
        self._frame[index], self._mission[index] = states._frame, states._mission
        self._hash[index] = states._hash

    def step(
        self, at: NDArray[np.int64], action: NDArray, exact: Sequence[Any] | None = None
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        action = np.asarray(action, np.int64)
        if action.shape != at.shape or not np.isin(action, np.arange(self.n_actions)).all():
            raise UsageError(f"Actions must be {len(at)} numbers in 0..{self.n_actions - 1}, not {action.tolist()}.")
        ended = np.zeros((len(at), 2), np.bool_)
        for n, (i, a) in enumerate(zip(at.tolist(), action.tolist(), strict=True)):
            episode = self._own(i)
            episode.step(self._choices.action(a) if exact is None else exact[n])
            self._frame[i], self._mission[i] = self._reader.read(episode)
            ended[n] = episode.terminated, episode.truncated
        self._hash[at] = engine.frame_hash(
            np.concatenate(
                [
                    self._hash[at].astype("<u8")[:, None].view(np.uint8),
                    action[:, None].astype(np.uint8),
                    ended.view(np.uint8),
                    self._frame[at],
                    self._mission[at],
                ],
                axis=1,
            )
        )
        return ended[:, 0], ended[:, 1]

    def _own(self, i: int) -> Episode:
        """The episode of state i, which from now on belongs to it alone."""
        episode = self._episodes[i]
        if episode.shared:
            try:
                fork = episode.fork(self.mode)
            except Exception as error:
                raise episode.failed(f"a fork by {self.mode}", error) from error
            if self.mode == "replay" and not np.array_equal(self._reader.read(fork)[0], self._frame[i]):
                raise episode.failed("a fork by replay", "the same actions led to another observation")
            episode = self._episodes[i] = fork
        return episode

    def frame(self) -> NDArray[np.uint8]:
        return self._frame.copy()

    def mission(self) -> NDArray[np.uint8]:
        return self._mission.copy()

    def state_hash(self) -> NDArray[np.uint64]:
        """(N,) hash of the seed, the actions, and all that was shown: the same for every mode and process.

        Where an environment repeats itself this stands for the state, whose own bytes need not be comparable:
        the pickles of two equal states may differ.
        """
        return self._hash.copy()

    def reward(self) -> NDArray[np.float64]:
        """(N,) reward of the last step, which must be finite. This is the only place where states look at a reward."""
        reward = np.array([_reward(episode) for episode in self._episodes], np.float64)
        if not np.isfinite(reward).all():
            i = int(np.flatnonzero(~np.isfinite(reward))[0])
            raise self._episodes[i].failed("reading the reward", f"it is {reward[i]}")
        return reward

    def success(self) -> NDArray[np.bool_]:
        """(N,) whether the episode has ended in success.

        What that is, the user has said. If not, it is `is_success` in the info of its last step, a convention of
        Stable-Baselines3 and Gymnasium-Robotics; without it, to have terminated with a positive reward.
        """
        return np.array([succeeded(episode, self._is_success) for episode in self._episodes], np.bool_)


def succeeded(episode: Episode, success: Success | None) -> bool:
    """Whether an episode has ended in success: see `CopiedStates.success`."""
    if success is not None:
        return episode.ended and bool(success(episode.outcome()))
    if episode.ended and "is_success" in episode.info:
        return bool(episode.info["is_success"])
    if episode.ended:
        warnings.warn(
            f"{episode.name} does not say what success is, so that an episode counts which terminates with a positive "
            "reward. Say it: demonstrate(..., success=lambda end: end.total >= 100), for example.",
            stacklevel=2,
        )
    return episode.terminated and _reward(episode) > 0


def _reward(episode: Episode) -> float:
    try:
        return float(episode.reward)
    except Exception as error:
        raise episode.failed("reading the reward", error) from error
