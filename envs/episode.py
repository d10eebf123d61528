"""One Python environment in the middle of an episode: stepped, forked, and named where it fails."""

import contextlib
import copy
import io
import pickle
import weakref
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import gymnasium

from headstart.envs.errors import EnvironmentFailed, UsageError

__all__ = ["MODES", "Episode", "ForkMode", "MakeEnv", "Outcome", "Success", "close", "env_name", "make", "make_new"]

MakeEnv = Callable[[], gymnasium.Env]
ForkMode = Literal["deepcopy", "pickle", "replay"]
MODES: tuple[ForkMode, ...] = get_args(ForkMode)
SHOWN_ACTIONS = 30  # of the actions that led to an error


class Outcome(NamedTuple):
    """How an episode has ended, for whoever decides whether that is a success. Nobody asks before evaluation."""

    total: float
    """The sum of all rewards."""
    reward: float
    """The last one."""
    steps: int
    terminated: bool
    """False if time ran out."""
    info: dict[str, Any]
    """Of the last step."""


Success = Callable[[Outcome], bool]
"""Whether an episode that ended so has succeeded."""


class Episode:
    """A Python environment in the middle of an episode, with the seed and the actions that led there.

    `reward` is what the environment returned last, `rewards` all that it has returned: neither is looked at here but
    in `outcome`. A `shared` episode is held by several states and never stepped again: who wants to go on forks it
    first.
    """

    def __init__(self, make_env: MakeEnv, seed: int) -> None:
        self.make_env, self.seed = make_env, seed
        self.actions: list[Any] = []
        self.reward: Any = 0.0
        self.rewards: list[Any] = []
        self.terminated = self.truncated = self.shared = False
        self._pickled: bytes | None = None
        self.env = make(make_env)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # BabyAI prints when it rejects a level
                self.obs, self.info = self.env.reset(seed=seed)
            if not isinstance(self.info, dict):
                raise TypeError(f"it has to return an observation and a dict, not a {type(self.info).__name__}")
        except (Exception, SystemExit) as error:
            raise self.failed("reset()", error) from error

    @property
    def name(self) -> str:
        return env_name(self.env)

    @property
    def ended(self) -> bool:
        return self.terminated or self.truncated

    def step(self, action: Any) -> None:
        """Take an action; kept is a copy, as policies and environments may write into theirs later."""
        self._pickled = None
        try:
            self.obs, self.reward, terminated, truncated, self.info = self.env.step(copy.deepcopy(action))
            self.terminated, self.truncated = bool(terminated), bool(truncated)
        except (Exception, SystemExit) as error:
            raise self.failed(f"step({action})", error) from error
        self.actions.append(copy.deepcopy(action))
        self.rewards.append(self.reward)

    def fork(self, mode: ForkMode) -> "Episode":
        """Another environment in the same state. Raises whatever the environment raises when it is copied."""
        if mode == "replay":
            other = Episode(self.make_env, self.seed)
            other.close_when_dropped()
            for action in self.actions:
                other.step(action)
            return other
        other = copy.copy(self)
        other.shared, other._pickled = False, None
        other.actions, other.rewards = list(self.actions), list(self.rewards)
        if mode == "deepcopy":
            other.env = copy.deepcopy(self.env)
        else:
            self._pickled = self._pickled or pickle.dumps(self.env, pickle.HIGHEST_PROTOCOL)
            other.env = pickle.loads(self._pickled)  # noqa: S301  these bytes have never left this process
        return other

    def close(self) -> None:
        """End the environment: its threads, processes and windows."""
        close(self.env)

    def close_when_dropped(self) -> None:
        """Close it when nobody holds this episode any more: for one whose environment no copy shares anything with."""
        weakref.finalize(self, close, self.env)

    def outcome(self) -> Outcome:
        """How the episode has ended. This reads every reward."""
        try:
            rewards = [float(reward) for reward in self.rewards]
        except Exception as error:
            raise self.failed("reading the reward", error) from error
        return Outcome(sum(rewards), rewards[-1], len(rewards), self.terminated, self.info)

    def failed(self, what: str, why: object) -> EnvironmentFailed:
        """The error that says where this environment failed."""
        why = f"{type(why).__name__}: {why}" if isinstance(why, BaseException) else why
        return EnvironmentFailed(f"{self.name}: {what} failed {self.where()}: {why}")

    def where(self) -> str:
        actions = ", ".join(map(str, self.actions[-SHOWN_ACTIONS:]))
        after = f" after the actions {'... ' * (len(self.actions) > SHOWN_ACTIONS)}{actions}" if actions else ""
        return f"in the episode of seed {self.seed}, step {len(self.actions)}{after}"


def make(make_env: MakeEnv, called: str = "make_env()") -> gymnasium.Env:
    """The environment that `make_env()` makes. Raises EnvironmentFailed or UsageError if it makes none.

    ``called`` is what the user knows it by.
    """
    if not callable(make_env):
        kind = f"is the id {make_env!r}" if isinstance(make_env, str) else f"is a {type(make_env).__name__}"
        raise UsageError(
            f"make_env {kind}. Give a function that makes a new environment, such as lambda: gymnasium.make(...)."
        )
    try:
        env = make_env()
    except (Exception, SystemExit) as error:
        raise EnvironmentFailed(f"{called} raised {type(error).__name__}: {error}") from error
    if not isinstance(env, gymnasium.Env):
        raise UsageError(
            f"{called} returned a {type(env).__name__}, not a gymnasium.Env: "
            "give a function without arguments that returns a new environment."
        )
    return env


def make_new(make_env: MakeEnv, called: str = "make_env()") -> gymnasium.Env:
    """What `make` makes. Raises UsageError if it is the same environment each time: all episodes would be one."""
    env, other = make(make_env, called), make(make_env, called)
    if env.unwrapped is other.unwrapped:
        raise UsageError(
            f"{env_name(env)}: {called} returns the same environment each time. Give a function that makes a new one."
        )
    close(other)
    return env


def close(env: gymnasium.Env) -> None:
    """Close an environment that nobody needs any more; that it cannot be closed is then nobody's trouble."""
    with contextlib.suppress(Exception):
        env.close()


def env_name(env: gymnasium.Env) -> str:
    """Its id, or its class if it has none."""
    spec = env.unwrapped.spec
    return spec.id if spec else type(env.unwrapped).__name__
