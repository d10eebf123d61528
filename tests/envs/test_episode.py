"""Episodes: forks that live alone, and failures that say where."""

from typing import Any

import gymnasium
import numpy as np
import pytest

from headstart.envs.episode import MODES, Episode, ForkMode, env_name, make, make_new
from headstart.envs.errors import EnvironmentFailed, UsageError


def frozen_lake() -> gymnasium.Env:
    return gymnasium.make("FrozenLake-v1", disable_env_checker=True)


@pytest.mark.parametrize("mode", MODES)
def test_a_fork_lives_alone(mode: ForkMode) -> None:
    original = Episode(frozen_lake, seed=0)
    original.step(1)
    fork = original.fork(mode)
    assert (fork.obs, fork.actions, fork.seed) == (original.obs, [1], 0)
    rng = np.random.default_rng(0)
    while not fork.ended:
        fork.step(int(rng.integers(4)))
    assert original.actions == [1]
    assert not original.ended
    again = original.fork(mode)
    for action in fork.actions[1:]:
        again.step(action)
    assert (again.obs, again.terminated, again.truncated) == (fork.obs, fork.terminated, fork.truncated)


def test_a_failure_says_where() -> None:
    episode = Episode(lambda: gymnasium.make("CartPole-v1"), seed=7)
    with pytest.raises(EnvironmentFailed, match=r"CartPole-v1: step\(5\) failed in the episode of seed 7, step 0: Ass"):
        episode.step(5)
    episode.actions = list(range(40))
    assert (
        episode.where() == f"in the episode of seed 7, step 40 after the actions ... {str(list(range(10, 40)))[1:-1]}"
    )


def test_what_is_not_gymnasiums_interface_is_named() -> None:
    class Arrays(gymnasium.Wrapper):
        def step(self, action: Any):
            return self.env.step(action)[0], 0.0, np.zeros(2), False, {}

    class Old(gymnasium.Wrapper):
        def reset(self, **settings: Any):
            return np.zeros(2)

    with pytest.raises(EnvironmentFailed, match=r"FrozenLake-v1: step\(1\) failed .* step 0: ValueError: .* ambiguous"):
        Episode(lambda: Arrays(frozen_lake()), 0).step(1)
    with pytest.raises(EnvironmentFailed, match=r"FrozenLake-v1: reset\(\) failed .* it has to return an obs"):
        Episode(lambda: Old(frozen_lake()), 0)


def test_what_makes_no_environment_is_refused() -> None:
    assert env_name(make(frozen_lake)) == "FrozenLake-v1"
    with pytest.raises(UsageError, match=r"make_env\(\) returned a str, not a gymnasium.Env"):
        make(lambda: "CartPole-v1")  # type: ignore[arg-type,return-value]
    with pytest.raises(EnvironmentFailed, match=r"make_env\(\) raised ZeroDivisionError"):
        make(lambda: 1 / 0)  # type: ignore[arg-type,return-value]
    with pytest.raises(EnvironmentFailed, match=r"^mine:env raised ZeroDivisionError"):
        make_new(lambda: 1 / 0, "mine:env")  # type: ignore[arg-type,return-value]


def test_one_environment_for_all_episodes_is_refused() -> None:
    one = gymnasium.make("FrozenLake-v1").unwrapped
    assert make_new(frozen_lake).unwrapped is not one
    for make_env in (lambda: one, lambda: gymnasium.wrappers.TimeLimit(one, 5)):
        with pytest.raises(UsageError, match=r"FrozenLake-v1: make_env\(\) returns the same environment each"):
            make_new(make_env)


def test_that_an_environment_cannot_be_closed_is_nobodys_trouble() -> None:
    class Stuck(gymnasium.Wrapper):
        def close(self) -> None:
            raise RuntimeError("it is gone already")

    Episode(lambda: Stuck(frozen_lake()), 0).close()
