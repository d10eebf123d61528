"""Every learner, fitted to three seeds as one, comes out as it would three times alone."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from small import fresh_model, shortened

from headstart.envs import demonstrate
from headstart.envs.collect import branch, collect_demos
from headstart.envs.transitions import Demos
from headstart.envs.vector import HeadstartVecEnv, make_vec_env
from headstart.learners import LEARNERS, BCConfig, IWMConfig, JudgeConfig, ReflectionConfig, affordance
from headstart.models.stack import Together

World = Callable[[int, Path], tuple[Demos, HeadstartVecEnv]]
ENV_ID = "Headstart-Fetch-8x8-N3-v0"  # with missions that differ
BC = BCConfig(updates=2, batch_size=8, hidden_actions=0.1)  # rounding grows with every update
REFLECT = ReflectionConfig(
    bc=BC,
    judge=JudgeConfig(members=2, dropout=0.0, updates=2),  # dropout draws other numbers in a stack
    levels=3,
    level_steps=5,
    states=18,
    round_updates=2,
)


VARIANTS = {config.__name__: shortened(config, BC, REFLECT) for config in LEARNERS} | {
    "held out": dataclasses.replace(BC, held_out=0.3),
    "joint": IWMConfig(bc=BC, updates=2, mode="joint"),
    "rationale": dataclasses.replace(REFLECT, rationale_weight=0.3),
    "exhaustive": dataclasses.replace(REFLECT, sparing=False),
}


def grid(seed: int, cache: Path, history: int = 6) -> tuple[Demos, HeadstartVecEnv]:
    env = make_vec_env(ENV_ID, 4, seed=0, history=history, n_levels=64, cache=cache)
    return collect_demos(ENV_ID, 4, seed=seed, history=history, cache=cache), env


def one_mission(seed: int, cache: Path) -> tuple[Demos, HeadstartVecEnv]:
    """Where the past is never old, the contexts of one demonstration do not differ; those of the other seeds' do."""
    demos, env = grid(seed, cache, history=2)
    return demos.take(np.arange(4 if seed else 1)), env


def numbers(seed: int, cache: Path) -> tuple[Demos, HeadstartVecEnv]:
    """Whose means and scales are those of a seed's own demonstrations, and not trained."""
    make_env = lambda: gymnasium.make("Acrobot-v1", max_episode_steps=12)  # noqa: E731
    expert = lambda obs: 2 if obs[5] > 0 else 0  # noqa: E731
    demos = demonstrate(make_env, expert, 4, seed=seed, success=lambda end: True)
    return demos, make_vec_env(demos, 4)


def fits(config: Any, cache: Path, device: str, world: World = grid) -> tuple[list[Any], list[Any]]:
    """Policies of three seeds, and what fits each to demonstrations of its own when it is called."""
    policies, work = [], []
    for seed in range(3):
        demos, env = world(seed, cache)
        branches = branch(demos, horizon=4, rng=np.random.default_rng(1)) if config.horizon else None
        policy = fresh_model(env, device=device).policy
        learner = LEARNERS[type(config)](policy, config, seed=seed)
        policies.append((policy, demos))
        work.append(lambda learner=learner, demos=demos, branches=branches, env=env: learner.fit(demos, branches, env))
    return policies, work


NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NO_CUDA)])
@pytest.mark.parametrize(
    ("world", "name"),
    [*((grid, name) for name in VARIANTS), (numbers, "IWMReflectConfig"), (one_mission, "ReflectionConfig")],
)
def test_learners_agree(world: World, name: str, device: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affordance, "UPDATES", 2)
    policies, work = fits(VARIANTS[name], cache, device, world)
    alone = [fit() for fit in work]
    stacked, work = fits(VARIANTS[name], cache, device, world)
    together = Together().fit(work)
    fresh, _ = fits(VARIANTS[name], cache, device, world)
    for one, other, (policy, demos), (like, _), (before, _) in zip(
        alone, together, policies, stacked, fresh, strict=True
    ):
        assert not isinstance(other, BaseException), other
        assert (other.updates, other.env_steps) == (one.updates, one.env_steps)
        assert other.metrics == pytest.approx(one.metrics, rel=1e-2, abs=1e-3)
        np.testing.assert_allclose(
            like.probabilities(demos.obs), policy.probabilities(demos.obs), atol=1e-5 if device == "cpu" else 1e-2
        )
        assert np.abs(policy.probabilities(demos.obs) - before.probabilities(demos.obs)).max() > 1e-4  # it was trained
