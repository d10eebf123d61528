"""World model, then reflection: one trunk goes through both, and both are paid for."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from small import fresh_policy, weights
from torch import Tensor

from headstart.envs.collect import branch, collect_demos
from headstart.envs.errors import DataError, UsageError
from headstart.envs.transitions import Branches, Demos
from headstart.envs.vector import HeadstartVecEnv, make_vec_env
from headstart.learners import (
    IWM,
    BCConfig,
    IWMConfig,
    IWMReflect,
    IWMReflectConfig,
    JudgeConfig,
    Reflection,
    ReflectionConfig,
)

ENV_ID = "MiniGrid-DoorKey-5x5-v0"
SMALL = IWMReflectConfig(
    iwm=IWMConfig(updates=4, batch_size=8),
    reflect=ReflectionConfig(
        bc=BCConfig(updates=2, batch_size=8),
        judge=JudgeConfig(members=1, updates=3),
        rounds=1,
        levels=2,
        level_steps=4,
        states=10,
        round_updates=2,
    ),
)


@pytest.fixture(scope="module")
def demos(cache: Path) -> Demos:
    return collect_demos(ENV_ID, 1, history=2, cache=cache)


@pytest.fixture(scope="module")
def branches(demos: Demos) -> Branches:
    return branch(demos, horizon=3)


@pytest.fixture(scope="module")
def env(cache: Path) -> HeadstartVecEnv:
    return make_vec_env(ENV_ID, 2, history=2, n_levels=64, cache=cache)


def test_branches_of_others_are_refused_before_the_world_model_has_learned(
    env: HeadstartVecEnv, demos: Demos, branches: Branches, cache: Path
) -> None:
    policy = fresh_policy(env)
    before = weights(policy)
    others = branch(collect_demos(ENV_ID, 1, seed=1, history=2, cache=cache), horizon=3)
    with pytest.raises(DataError, match="are not those of the"):
        IWMReflect(policy, SMALL).fit(demos, others, env)
    assert all(torch.equal(value, before[name]) for name, value in weights(policy).items())


def test_longer_branches_are_cut_where_luck_decides(cache: Path) -> None:
    """There the world model looks further than the judges, who draw all actions again."""
    obstacles = "MiniGrid-Dynamic-Obstacles-6x6-v0"
    demos = collect_demos(obstacles, 1, history=2, cache=cache)
    env = make_vec_env(obstacles, 2, history=2, n_levels=16, cache=cache)
    fitted = IWMReflect(fresh_policy(env), SMALL).fit(demos, branch(demos, horizon=3), env)
    assert np.isfinite(fitted.metrics["reflect/judge_loss"])


def test_reflection_goes_on_with_the_world_models_trunk(
    monkeypatch: pytest.MonkeyPatch, env: HeadstartVecEnv, demos: Demos, branches: Branches
) -> None:
    """The weights that reflection begins with are those of the world-model stage alone, to the last bit."""
    found: list[dict[str, Tensor]] = []
    fit = Reflection.fit
    monkeypatch.setattr(
        Reflection, "fit", lambda self, *data: (found.append(weights(self.policy)), fit(self, *data))[1]
    )
    policy, alone = fresh_policy(env), fresh_policy(env)
    before = weights(policy)
    IWM(alone, SMALL.iwm, seed=3).predict(branches)
    fitted = IWMReflect(policy, SMALL, seed=3).fit(demos, branches, env)
    trunk = {id(parameter) for parameter in policy.features_extractor.parameters()}
    for name, parameter in policy.named_parameters():
        assert torch.equal(found[0][name], weights(alone)[name]), name
        assert torch.equal(found[0][name], before[name]) == (id(parameter) not in trunk), name
    assert any(not torch.equal(value, found[0][name]) for name, value in weights(policy).items())
    assert policy.warm_start == "iwm+reflect"
    assert {"iwm/loss", "reflect/own_loss", "bc/loss"} <= fitted.metrics.keys()


def test_both_are_counted(env: HeadstartVecEnv, demos: Demos, branches: Branches) -> None:
    logged: list[int] = []
    reflect = dataclasses.replace(SMALL.reflect, round_updates=60)
    config = IWMReflectConfig(dataclasses.replace(SMALL.iwm, updates=70), reflect)
    fitted = IWMReflect(fresh_policy(env), config, log=lambda update, metrics: logged.append(update)).fit(
        demos, branches, env
    )
    assert fitted.updates == config.total_updates == 70 + 2 + 3 + 60
    assert logged == [50, 70 + 2 + 3 + 50]  # of each stage's updates, after those of the stages before
    assert fitted.env_steps == Reflection(fresh_policy(env), reflect).fit(demos, branches, env).env_steps > 0
    assert np.isfinite(list(fitted.metrics.values())).all()


def test_it_needs_branches_and_a_place_to_practise(env: HeadstartVecEnv, demos: Demos, branches: Branches) -> None:
    for missing in ((), (branches,), (None, env)):
        with pytest.raises(UsageError, match=r"IWMReflect needs fit\(demos, branches, practise\)"):
            IWMReflect(fresh_policy(env), SMALL).fit(demos, *missing)
