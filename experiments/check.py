"""`headstart check module:make_env`: can this environment be used, and what does a branch cost?

    Taxi-v4
      observations  Discrete(500): frames of 2 bytes
      actions       Discrete(6): 6 branches from every state
      episodes      5 of random actions, 1,000 steps: all that was shown can be read
      engine        no, it is for MiniGrid and BabyAI: this is forked in Python
      step limit    200
      repeats       yes: 5 episodes of random actions, 1,000 steps, played twice, were the same (rewards too)
      fork          by pickle, the fastest way that was exact from 15 states ...

The target is a function that makes an environment, or an id that `gymnasium.make` knows. Of a slow one fewer steps are
tried, and replay only if no copy is exact. Rewards are compared here, and nowhere else before PPO.
"""

import contextlib
import difflib
import importlib
import math
import os
import sys
import time
from collections.abc import Callable
from typing import cast

import gymnasium
import minigrid.envs  # noqa: F401  registers the ids
import numpy as np
from gymnasium import spaces
from minigrid.minigrid_env import MiniGridEnv

from headstart.envs import levels
from headstart.envs.collect import branch
from headstart.envs.episode import MODES, Episode, close, env_name, make_new
from headstart.envs.errors import EnvironmentFailed, HeadstartError, UsageError, check_numbers
from headstart.envs.experts import known_experts
from headstart.envs.fork import ForkReport, choose_fork_mode
from headstart.envs.frames import FrameReader
from headstart.envs.simulator import GridStates, Simulator
from headstart.envs.spaces import Choices
from headstart.envs.tasks import step_limit

__all__ = ["check", "load_target"]

MakeEnv = Callable[[], gymnasium.Env]
TIMED_ROWS = 256
MAX_STEPS, MAX_EPISODES = 1000, 20  # that are read
PATIENCE = 10.0  # seconds: reading stops after so many, and to fork a slow environment takes about as long
MAX_TEXT = 80  # of the description of a space


def check(target: str, horizon: int | None = None) -> int:
    """Probe an environment and print what is found, line by line; returns the exit code.

    No episode is played for more than ``horizon`` steps (default: to its end).
    0: it can be used. 2: its spaces do not fit. 4: it raises, shows what is not of its space, does not repeat itself or
    cannot be forked. 5: it shows what is not finite.
    Raises UsageError or EnvironmentFailed if there is no such target, or it cannot be made.
    """
    make_env = load_target(target)
    (horizon,) = check_numbers(target, horizon=horizon)
    close(make_new(make_env, target))
    env = Episode(make_env, seed=0).env
    print(target)
    reader, unfit = _report_spaces(env)
    unreadable, steps, seconds = _report_episodes(make_env, reader, horizon or math.inf)
    exit_code = unfit or unreadable
    compiled = _report_engine(env)
    limited = compiled or _report_limit(env, horizon)
    try:
        fork = _fork(make_env, horizon or math.inf, steps, seconds)
    except HeadstartError as error:
        _line("fork", f"no. {error}")
        return error.exit_code
    _report_fork(fork)
    if exit_code == 0:
        limit = f", horizon={horizon}" if horizon else "" if limited else ", horizon=200"
        _report_next(target, fork.mode, compiled, limit)
    return exit_code


# ---- the target ----
def load_target(target: str) -> MakeEnv:
    """The function that `module:function` names, or one that makes the environment of an id."""
    if not _names_function(target):
        return _load_id(target)
    module, _, function = target.partition(":")
    _import(target, module)
    make_env = getattr(sys.modules[module], function, None)
    if make_env is None:
        close = difflib.get_close_matches(function, dir(sys.modules[module]), 1)
        meant = f" Perhaps you meant {module}:{close[0]}?" if close else ""
        raise UsageError(f"{target}: the module {module} has no function {function}.{meant}")
    if not callable(make_env):
        kind = type(make_env).__name__
        raise UsageError(f"{target} is of type {kind}, not a function that makes an environment.")
    return cast(MakeEnv, make_env)


def _names_function(target: str) -> bool:
    """Ids may have a module too, as in `my_envs:Maze-v0`, but end in a version, which no function does."""
    return target.partition(":")[2].isidentifier()


def _load_id(env_id: str) -> MakeEnv:
    module, colon, name = env_id.rpartition(":")
    if colon:
        _import(env_id, module)
    try:
        gymnasium.spec(name)
    except gymnasium.error.Error as error:
        why = f"{error}" if str(error).endswith((".", "?", "!")) else f"{error}."
        raise UsageError(
            f"{env_id}: {why} Give an id that gymnasium.make knows, or module:function, "
            "where function() returns a new environment."
        ) from error
    # the checker looks at rewards, and nothing may before PPO
    return lambda: gymnasium.make(env_id, disable_env_checker=True)


def _import(target: str, module: str) -> None:
    if not all(part.isidentifier() for part in module.split(".")):
        raise UsageError(f"{target}: {module!r} is not the name of a module. Give module:function.")
    here = os.getcwd()
    if here not in sys.path:  # a console script does not search the directory in which it is started
        sys.path.insert(0, here)
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise EnvironmentFailed(f"{target}: importing {module} needs {error.name}: install it.") from error
        raise UsageError(
            f"{target}: there is no module {error.name}, neither installed nor in {here}. "
            "Start the command in the directory that has it, or install it."
        ) from error
    except (Exception, SystemExit) as error:
        why = f"{type(error).__name__}: {error}"
        raise EnvironmentFailed(f"{target}: importing {module} raised {why}") from error


# ---- the report ----
def _line(name: str, text: str) -> None:
    print(f"  {name:<13} {text}".replace("\n", "\n" + " " * 16), flush=True)


def _report_spaces(env: gymnasium.Env) -> tuple[FrameReader | None, int]:
    """A reader, if frames can hold what is observed, and the exit code: 0 if also actions can be branched over."""
    reader, exit_code = None, 0
    try:
        reader = FrameReader(env)
        _line("observations", f"{_short(env.observation_space)}: frames of {reader.width} bytes")
        if reader.has_mission:
            _line("missions", f"up to {reader.mission_length} words")
    except UsageError as error:
        _line("observations", f"cannot be used. {error}")
        exit_code = error.exit_code
    try:
        if isinstance(env.action_space, spaces.Box):
            _line("actions", f"{env.action_space}: as many branches as the codebook that demonstrations give it")
        else:
            choices = Choices.of(env.action_space, name=env_name(env))
            _line("actions", f"{env.action_space}: {len(choices)} branches from every state")
    except UsageError as error:
        _line("actions", f"cannot be used. {error}")
        exit_code = error.exit_code
    return reader, exit_code


def _report_episodes(make_env: MakeEnv, reader: FrameReader | None, limit: float) -> tuple[int, int, float]:
    """The exit code, 0 if all that episodes of random actions show is of its space, their steps, and their seconds.

    The episodes are those of `choose_fork_mode`.
    """
    read = reader.read if reader else lambda episode: None
    start, steps, episodes, exit_code = time.perf_counter(), 0, 0, 0

    def enough() -> bool:
        return steps >= MAX_STEPS or time.perf_counter() - start > PATIENCE

    try:
        while episodes < MAX_EPISODES and not enough():
            with contextlib.closing(Episode(make_env, seed=episodes)) as episode:
                space = episode.env.action_space
                space.seed(episodes)
                read(episode)
                while not episode.ended and len(episode.actions) < limit and not enough():
                    episode.step(space.sample())
                    read(episode)
                    steps += 1
            episodes += 1
        result = ": all that was shown can be read" if reader else ""
        _line("episodes", f"{episodes} of random actions, {steps:,} steps{result}")
    except HeadstartError as error:
        _line("episodes", f"cannot be used. {error}")
        exit_code = error.exit_code
    return exit_code, steps, time.perf_counter() - start


def _report_limit(env: gymnasium.Env, horizon: int | None) -> bool:
    """Whether there is a step limit that demonstrations can keep to."""
    try:
        _line("step limit", str(step_limit(env, horizon)))
    except UsageError:
        _line("step limit", "none that can be read: give horizon, the most steps of an episode")
        return False
    return True


def _short(space: gymnasium.Space) -> str:
    text = str(space)
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 3]}..."


def _report_engine(env: gymnasium.Env) -> bool:
    if not isinstance(env.unwrapped, MiniGridEnv):
        _line("engine", "no, it is for MiniGrid and BabyAI: this is forked in Python")
        return False
    try:
        row = levels.import_level(env)
    except UsageError as error:
        _line("engine", f"no. {error}")
        return False
    rows = np.repeat(row[None], TIMED_ROWS, axis=0)
    states = Simulator(GridStates(rows, np.zeros((TIMED_ROWS, 1), np.uint8)), history=4, horizon=200)
    branch(states)  # compiles, the first time
    start = time.perf_counter()
    made = branch(states)
    _line("engine", f"yes, {made.env_steps / (time.perf_counter() - start):,.0f} branches a second")
    return True


def _fork(make_env: MakeEnv, limit: float, steps: int, seconds: float) -> ForkReport:
    """How it can be forked, tried with fewer steps if ``steps`` took it many ``seconds``."""
    spare = PATIENCE / 10  # for two episodes are played four times, and branches follow
    if seconds < spare:
        return choose_fork_mode(make_env, limit=limit)
    few = max(10, int(steps * spare / seconds))
    return choose_fork_mode(make_env, steps=few, states=4, limit=limit, all_modes=False)


def _report_fork(fork: ForkReport) -> None:
    rewards = "rewards too" if fork.rewards_compared else "rewards left out, which are not numbers"
    played = f"{fork.episodes} episodes of random actions, {fork.steps:,} steps"
    _line("repeats", f"yes: {played}, played twice, were the same ({rewards})")
    _line("fork", f"by {fork.mode}, the fastest way that was exact from {fork.states} states")
    for mode in MODES:
        if mode in fork.refused:
            _line("", f"{mode:<9} not exact: {fork.refused[mode]}")
        elif mode in fork.branches_per_second:
            _line("", f"{mode:<9} exact, {fork.branches_per_second[mode]:,.0f} branches a second")
        else:
            _line("", f"{mode:<9} not tried: it takes most steps, and this environment is slow")


def _report_next(target: str, mode: str, compiled: bool, limit: str) -> None:
    """A few lines of Python that run as they are printed, but for the policy that only the user can give."""
    if target in known_experts():
        code = [
            "from headstart.envs import branch, collect_demos, make_vec_env",
            f'env = make_vec_env("{target}", n_envs=64, seed=0)',
            f'demos = collect_demos("{target}", episodes=8, seed=0{limit})',
            "branches = branch(demos)",
        ]
    else:
        code = [
            "from headstart.envs import branch, demonstrate, make_vec_env",
            "from headstart.experiments.check import load_target",
            f'make_env = load_target("{target}")',
            f'demos = demonstrate(make_env, policy, episodes=10, mode="{mode}"{limit})  # policy: obs -> action',
            "branches, env = branch(demos), make_vec_env(demos)",
        ]
        if compiled and _names_function(target):
            code.insert(0, "# gymnasium.register() it: an environment that has an id can be run by the engine")
    _line("next", "\n".join(code))
