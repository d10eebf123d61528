"""A tiny task is solved in seconds: the smallest door-and-key, from four demonstrations, then a little PPO."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headstart.envs.banks import Levels, bank
from headstart.envs.collect import branch, collect_demos
from headstart.envs.evaluation import evaluate
from headstart.envs.simulator import uniform_actor
from headstart.envs.transitions import Demos
from headstart.envs.vector import make_vec_env
from headstart.learners import BC, PPO, BCConfig, JudgeConfig, Reflection, ReflectionConfig
from headstart.models import HeadstartPolicy

ENV_ID = "MiniGrid-DoorKey-5x5-v0"  # 48 levels in all; those of the test split are in no demonstration
PLAYED = {"history": 1, "horizon": 60}
REFLECT = ReflectionConfig(
    bc=BCConfig(updates=300, batch_size=32, learning_rate=1e-3),
    judge=JudgeConfig(members=1, dropout=0.0, updates=200),
    rounds=1,
    levels=20,
    level_steps=40,
    states=800,
    round_updates=200,
)


@pytest.fixture(scope="module")
def demos(cache: Path) -> Demos:
    return collect_demos(ENV_ID, 4, **PLAYED, cache=cache)


@pytest.fixture(scope="module")
def unseen(cache: Path) -> Levels:
    return bank(ENV_ID, "test", 200, cache=cache)


def fresh_model(cache: Path) -> PPO:
    env = make_vec_env(ENV_ID, 64, seed=0, n_levels=256, **PLAYED, cache=cache)
    settings = {"n_steps": 64, "batch_size": 512, "n_epochs": 4, "learning_rate": 1e-3, "ent_coef": 0.01}
    settings |= {"critic_updates": 3, "actor_warm_up": 2}
    extractor = {"memory": 0, "width": 32, "channels": 8}
    return PPO(HeadstartPolicy, env, seed=0, policy_kwargs={"features_extractor_kwargs": extractor}, **settings)


def success(levels: Levels, actor: Any) -> float:
    return float(evaluate(levels, actor, **PLAYED, rng=np.random.default_rng(0))[0].mean())


def test_a_warm_start_is_far_better_than_chance_and_ppo_makes_it_better_still(
    cache: Path, demos: Demos, unseen: Levels
) -> None:
    model = fresh_model(cache)
    BC(model.policy, BCConfig(updates=300, batch_size=32, learning_rate=1e-3)).fit(demos)
    chance, warm = (success(unseen, actor) for actor in (uniform_actor(7), model.policy.actor()))
    assert chance < 0.05
    assert warm > 0.25
    model.learn(12 * 64 * 64)
    assert success(unseen, model.policy.actor()) > warm + 0.2


def test_reflection_is_far_better_than_chance(cache: Path, demos: Demos, unseen: Levels) -> None:
    model = fresh_model(cache)
    Reflection(model.policy, REFLECT).fit(demos, branch(demos), model.env)
    assert success(unseen, model.policy.actor()) > 0.25
