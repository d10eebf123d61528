"""`headstart check`: what is reported about good and bad targets, and the exit codes."""

import sys
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from headstart.envs.errors import Diverged, EnvironmentFailed, UsageError
from headstart.experiments import check as check_module
from headstart.experiments import cli
from headstart.experiments.check import check, load_target

USER_MODULE = """
import random
import time
import gymnasium
import minigrid.envs
import numpy as np

def make_env():
    return gymnasium.Wrapper(gymnasium.make("MiniGrid-DoorKey-5x5-v0", max_steps=40))

class Noisy(gymnasium.ObservationWrapper):
    def observation(self, observation):
        return observation + np.float32(random.random())

def make_noisy():
    return Noisy(gymnasium.make("CartPole-v1"))

def make_many():
    env = gymnasium.make("CartPole-v1")
    env.action_space = gymnasium.spaces.Discrete(255)
    env.step = lambda action: type(env).step(env, action % 2)
    return env

def make_pendulum():
    return gymnasium.make("Pendulum-v1", max_episode_steps=20)

class Lies(gymnasium.Wrapper):
    # what it shows after five steps is another thing than its space says

    shown = np.zeros(3, np.float32)

    def reset(self, **settings):
        self.steps = 0
        return self.env.reset(**settings)

    def step(self, action):
        self.steps += 1
        obs, *rest = self.env.step(action)
        return (self.shown if self.steps == 5 else obs), *rest

class Nan(Lies):
    shown = np.full(4, np.nan, np.float32)

class Ends(gymnasium.Wrapper):
    # its first episode is over after two steps

    def reset(self, *, seed=None, options=None):
        self.left = 9 if seed else 2
        return self.env.reset(seed=seed, options=options)

    def step(self, action):
        self.left -= 1
        obs, reward, _, *rest = self.env.step(action)
        return obs, reward, self.left == 0, *rest

class Expires(Lies):
    def step(self, action):
        assert self.steps < 30
        self.steps += 1
        return self.env.step(action)

class Slow(gymnasium.Wrapper):
    def step(self, action):
        time.sleep(0.005)
        return self.env.step(action)

def make_lies():
    return Lies(gymnasium.make("CartPole-v1"))

def make_nan():
    return Nan(gymnasium.make("CartPole-v1"))

def make_later_nan():
    return Ends(Nan(gymnasium.make("CartPole-v1")))

def make_expires():
    return Expires(gymnasium.make("Pendulum-v1").unwrapped)

def make_slow():
    return Slow(gymnasium.make("Pendulum-v1").unwrapped)

one = gymnasium.make("CartPole-v1")

def make_one():
    return one

def make_endless():
    return gymnasium.make("Pendulum-v1").unwrapped

def make_short():
    return gymnasium.make("MiniGrid-Empty-5x5-v0", max_steps=10)

def broken():
    return 1 / 0

def nothing():
    pass

settings = {}
"""


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the directory where the command is started; `sys.path` is as a console script has it."""
    name = f"my_envs_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(USER_MODULE)
    (tmp_path / f"{name}_needs.py").write_text("import a_module_that_is_missing")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    return name


def test_a_good_environment(capsys):
    assert check("CartPole-v1") == 0
    report = capsys.readouterr().out
    assert report.startswith("CartPole-v1\n  observations  Box(")
    assert "frames of 16 bytes" in report
    assert "Discrete(2): 2 branches from every state" in report
    assert "episodes      20 of random actions, " in report
    assert " steps: all that was shown can be read" in report
    assert "step limit    500" in report
    assert "engine        no, it is for MiniGrid and BabyAI" in report
    assert "repeats       yes" in report
    assert report.count("exact, ") == 3
    assert report.count("branches a second") == 3


def test_a_wrapped_minigrid_of_the_user_and_the_code_that_comes_next(user_module, capsys):
    assert check(f"{user_module}:make_env") == 0
    report = capsys.readouterr().out
    assert "frames of 50 bytes" in report
    assert "up to 13 words" in report
    assert "its wrapper Wrapper may change what a step does or shows" in report
    code = report.split("next")[1]
    names: dict = {"policy": lambda obs: 2}
    exec("\n".join(line.strip() for line in code.splitlines()), names)  # noqa: S102  it must run as printed
    assert len(names["branches"]) == len(names["demos"]) >= 10
    assert names["env"].num_envs == 64


def test_what_the_engine_runs(user_module, capsys):
    assert check("MiniGrid-Empty-Random-5x5-v0") == 0
    report = capsys.readouterr().out
    assert "engine        yes, " in report
    code, names = report.split("next")[1], dict[str, Any]()
    assert 'collect_demos("MiniGrid-Empty-Random-5x5-v0", episodes=8, seed=0)' in code
    exec("\n".join(line.strip() for line in code.splitlines()), names)  # noqa: S102  it must run as printed
    assert len(names["branches"]) == len(names["demos"]) >= 8
    assert names["env"].num_envs == 64
    assert check(f"{user_module}:make_short") == 0
    assert "gymnasium.register() it" in capsys.readouterr().out


def test_what_the_engine_runs_and_nobody_here_solves(capsys):
    """The user brings the policy."""
    assert check("MiniGrid-Playground-v0") == 0
    report = capsys.readouterr().out
    assert "engine        yes, " in report
    assert "demos = demonstrate(make_env, policy" in report
    assert "register() it" not in report


@pytest.mark.parametrize(
    ("make_env", "error", "why"),
    [
        ("make_lies", EnvironmentFailed, "seed 0, step 5 after the actions"),
        ("make_nan", Diverged, "an observation is not finite in the episode of seed 0, step 5"),
        ("make_later_nan", Diverged, "an observation is not finite in the episode of seed 1, step 5"),
    ],
)
def test_what_an_environment_shows_is_read_to_the_end_of_several_episodes(user_module, capsys, make_env, error, why):
    assert check(f"{user_module}:{make_env}") == error.exit_code
    report = capsys.readouterr().out
    assert why in report.split("episodes      cannot be used. ")[1]
    assert "next" not in report


def test_one_environment_for_all_episodes(user_module):
    with pytest.raises(UsageError, match="returns the same environment each time"):
        check(f"{user_module}:make_one")


def test_where_there_is_no_step_limit_one_has_to_be_given(user_module, capsys):
    assert check(f"{user_module}:make_endless") == 0
    report = capsys.readouterr().out
    assert "step limit    none that can be read: give horizon" in report
    assert ", horizon=200)" in report.split("next")[1]


def test_an_environment_that_lasts_as_long_as_the_horizon(user_module, capsys):
    target = f"{user_module}:make_expires"
    assert check(target) == EnvironmentFailed.exit_code
    capsys.readouterr()
    assert cli.main(["check", target, "--horizon", "30"]) == 0
    report = capsys.readouterr().out
    assert "episodes      20 of random actions, 600 steps" in report
    assert "step limit    30" in report
    assert ", horizon=30)" in report.split("next")[1]
    with pytest.raises(UsageError, match=r"make_expires: horizon=0\. Give at least 1"):
        check(target, 0)


def test_of_a_slow_environment_less_is_tried_and_that_is_said(user_module, capsys, monkeypatch):
    monkeypatch.setattr(check_module, "PATIENCE", 0.5)
    assert check(f"{user_module}:make_slow") == 0
    report = capsys.readouterr().out
    assert "episodes      1 of random actions, " in report
    assert "yes: 2 episodes of random actions, 20 steps, played twice" in report
    assert "that was exact from 4 states" in report
    assert "replay    not tried" in report


def test_an_environment_that_cannot_be_forked(user_module, capsys):
    assert check(f"{user_module}:make_noisy") == EnvironmentFailed.exit_code
    report = capsys.readouterr().out
    assert "fork          no. CartPole-v1 cannot be forked: its step() draws from the global generator" in report
    assert "next" not in report


def test_actions_in_a_box_get_a_codebook_from_demonstrations(user_module, capsys):
    assert check(f"{user_module}:make_pendulum") == 0
    report = capsys.readouterr().out
    assert "Box(-2.0, 2.0, (1,), float32): as many branches as the codebook that demonstrations give it" in report
    assert "demos = demonstrate(make_env, policy" in report


def test_spaces_that_do_not_fit(user_module, capsys):
    assert check(f"{user_module}:make_many") == UsageError.exit_code
    report = capsys.readouterr().out
    assert "actions       cannot be used. CartPole-v1: its actions are Discrete(255), 255 in all" in report
    assert "exact, " in report  # the rest is reported all the same


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ("{}:make_evn", UsageError, r"has no function make_evn\. Perhaps you meant my_envs_.*:make_env\?"),
        ("{}:settings", UsageError, "is of type dict, not a function"),
        (
            "no_such_module:make_env",
            UsageError,
            "there is no module no_such_module, neither installed nor in /",
        ),
        ("envs/maze.py:make_env", UsageError, "'envs/maze.py' is not the name of a module"),
        (":make_env", UsageError, "'' is not the name of a module"),
        ("no_such_module:Maze-v0", UsageError, "there is no module no_such_module"),
        ("{}_needs:make_env", EnvironmentFailed, "needs a_module_that_is_missing: install it"),
        ("{}:broken", EnvironmentFailed, r"^my_envs_.*:broken raised ZeroDivisionError"),
        ("{}:nothing", UsageError, r"^my_envs_.*:nothing returned a NoneType, not a gymnasium\.Env"),
        ("{}:make_one", UsageError, r"my_envs_.*:make_one returns the same environment each time"),
        ("CartPoel-v1", UsageError, "Environment `CartPoel` doesn't exist.*Give an id"),
        ("CartPole", UsageError, r"No registered env with id: CartPole\. Give an id"),
    ],
)
def test_bad_targets(user_module, capsys, target, error, message):
    with pytest.raises(error, match=message):
        check(target.format(user_module))
    assert capsys.readouterr().out == ""


def test_ids_with_a_module(user_module):
    gymnasium.register("HeadstartTest/Cart-v0", "gymnasium.envs.classic_control:CartPoleEnv")
    try:
        env = load_target(f"{user_module}:HeadstartTest/Cart-v0")()
        assert env.action_space == gymnasium.spaces.Discrete(2)
    finally:
        del gymnasium.registry["HeadstartTest/Cart-v0"]
