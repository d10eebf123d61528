"""Acrobot: from one demonstration in numbers to a policy that swings up, and a world model that beats the present."""

import numpy as np
import pytest

from headstart.envs import Demos, branch, demonstrate, evaluate, make_vec_env
from headstart.experiments.acrobot import HORIZON, add_energy, make_acrobot, swung_up
from headstart.learners import BC, IWM, PPO, BCConfig, IWMConfig
from headstart.models import HeadstartPolicy


@pytest.fixture(scope="module")
def demos() -> Demos:
    return demonstrate(
        make_acrobot, add_energy, 1, seed=0, horizon=HORIZON, success=swung_up, only_successes=True, mode="deepcopy"
    )


def fresh_policy(demos: Demos) -> HeadstartPolicy:
    kwargs = {"features_extractor_kwargs": {"memory": 0, "width": 64}}
    env = make_vec_env(demos, 4)
    return PPO(HeadstartPolicy, env, seed=0, n_steps=16, batch_size=64, policy_kwargs=kwargs).policy


def success(demos: Demos, policy: HeadstartPolicy, n: int) -> float:
    assert demos.task is not None
    levels, rng = demos.task.levels("test", n), np.random.default_rng(0)
    return float(evaluate(levels, policy.actor(greedy=True), history=1, horizon=HORIZON, rng=rng)[0].mean())


def test_the_expert_swings_up() -> None:
    env = make_acrobot()
    for seed in range(3):
        obs, up = env.reset(seed=seed)[0], False
        for _ in range(150):
            if not up:
                obs, _, up, _, _ = env.step(add_energy(obs))
        assert up


@pytest.mark.slow
def test_one_demonstration_is_enough_to_clone_it(demos: Demos) -> None:
    policy = fresh_policy(demos)
    assert success(demos, policy, 20) < 0.2
    BC(policy, BCConfig(updates=200, hidden_past=0.0)).fit(demos)
    assert success(demos, policy, 20) > 0.6


@pytest.mark.slow
def test_the_world_model_foresees_what_changes(demos: Demos) -> None:
    policy = fresh_policy(demos)
    learned = IWM(policy, IWMConfig(updates=400, learning_rate=3e-3, bc=BCConfig(updates=1))).fit(demos, branch(demos))
    # a copy of the present gets none of these right
    assert learned.metrics["iwm/changed_cell_accuracy"] > 0.8
