"""Taxi: regrets by value iteration, and a judge that ranks by them what it has never seen rewarded."""

from typing import Any, cast

import numpy as np
import pytest

from headstart.envs import branch, demonstrate, make_vec_env
from headstart.experiments.taxi import (
    HORIZON,
    DecodedTaxi,
    agreement,
    best_actions,
    make_taxi,
    number,
    optimal_values,
    rank,
)
from headstart.learners import PPO, BCConfig, JudgeConfig, Reflection, ReflectionConfig
from headstart.models import HeadstartPolicy


@pytest.fixture(scope="module")
def q() -> np.ndarray:
    return optimal_values(cast(Any, make_taxi().unwrapped).P)


def test_values_by_hand() -> None:
    """Two rooms and a door: go (1 lost), then leave (10 earned); or wait for ever."""
    table = {
        0: {0: [(1.0, 1, -1.0, False)], 1: [(1.0, 0, -1.0, False)]},
        1: {0: [(0.5, 1, 10.0, True), (0.5, 1, 8.0, True)], 1: [(1.0, 0, -1.0, False)]},
    }
    assert optimal_values(table).tolist() == [[8.0, 7.0], [9.0, 7.0]]


def test_agreement_by_hand() -> None:
    regret = np.array([[0.0, 1.0, 2.0]])
    assert agreement(np.array([[3.0, 2.0, 1.0]]), regret) == 1
    assert agreement(np.array([[1.0, 2.0, 3.0]]), regret) == 0
    assert agreement(np.array([[5.0, 5.0, 5.0]]), regret) == 0.5
    assert agreement(np.array([[2.0, 3.0, 1.0]]), regret) == pytest.approx(2 / 3)
    assert agreement(np.array([[9.0, 1.0, 2.0]]), np.array([[0.0, 0.0, 1.0]])) == 0.5  # the two best are not compared


def test_the_expert_delivers_and_states_come_apart(q: np.ndarray) -> None:
    env = DecodedTaxi()
    expert = best_actions(q)
    for seed in range(5):
        obs, _ = env.reset(seed=seed)
        expected = q[number(obs[None])[0]].max()
        earned, over = 0.0, False
        while not over:
            assert number(obs[None])[0] == env.taxi.s
            obs, reward, over, truncated, _ = env.step(expert(obs))
            earned += float(reward)
            assert not truncated
        assert earned == pytest.approx(expected)


@pytest.mark.slow
def test_the_judge_ranks_actions_by_their_true_regret_in_states_that_it_has_not_seen(q: np.ndarray) -> None:
    """Chance is 0.5 for a pair of actions. That a simple rule ranks pairs as well is printed by the script."""
    demos = demonstrate(make_taxi, best_actions(q), 16, seed=1, horizon=HORIZON, mode="deepcopy")
    env = make_vec_env(demos, 4)
    kwargs = {"features_extractor_kwargs": {"memory": 0, "width": 64}}
    policy = PPO(HeadstartPolicy, env, seed=1, n_steps=16, batch_size=64, policy_kwargs=kwargs).policy
    judge = JudgeConfig(members=2, updates=150)
    learner = Reflection(policy, ReflectionConfig(bc=BCConfig(hidden_past=0.0), judge=judge), seed=1)
    learner.fit_judges(branch(demos))
    ranking = rank(learner, demos, q)
    assert ranking.states > 200
    assert ranking.pairs > 0.6
    assert ranking.best > 0.7
    assert ranking.favourite > 2 * ranking.chance
