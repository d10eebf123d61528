"""Inverse dynamics: its loss by hand, who shares credit, that the answer is not shown, what each stage touches."""

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small import fresh_policy, weights
from torch import Tensor

from headstart.envs.collect import branch, collect_demos
from headstart.envs.errors import UsageError
from headstart.envs.mirror import mirror_branches
from headstart.envs.transitions import Branches, Demos
from headstart.envs.vector import HeadstartVecEnv, make_vec_env
from headstart.learners import BCConfig, Fitted, inverse
from headstart.learners.inverse import Inverse, InverseConfig
from headstart.models.policy import as_tensors

ENV_ID = "MiniGrid-DoorKey-5x5-v0"
SMALL = InverseConfig(updates=4, batch_size=8, bc=BCConfig(updates=3, batch_size=8, mirror=False))


@pytest.fixture(scope="module")
def demos(cache: Path) -> Demos:
    return collect_demos(ENV_ID, 1, history=2, cache=cache)


@pytest.fixture(scope="module")
def branches(demos: Demos) -> Branches:
    return branch(demos, horizon=3)


@pytest.fixture(scope="module")
def env(cache: Path) -> HeadstartVecEnv:
    return make_vec_env(ENV_ID, 2, history=2, n_levels=8, cache=cache)


def watched(learner: Inverse, monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Tensor], Tensor, Tensor]]:
    """The batches that the loss is asked for."""
    batches: list[tuple[dict[str, Tensor], Tensor, Tensor]] = []
    loss = learner.loss
    monkeypatch.setattr(learner, "loss", lambda *batch: (batches.append(batch), loss(*batch))[1])
    return batches


# ---- loss ----
def test_loss_worked_by_hand(env: HeadstartVecEnv) -> None:
    """Three pairs; two actions lead to the second view, so either is right; the third is not recognised."""
    learner = Inverse(fresh_policy(env), SMALL)
    p = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.5, 0.2, 0.3]])
    credit = torch.tensor([[True, False, False], [True, True, False], [False, False, True]])
    learner.policy = SimpleNamespace(  # type: ignore[assignment]
        features=lambda obs: torch.zeros(6, 2),
        observation_space={"actions": np.zeros(1)},
        n_actions=3,
    )
    learner.head = lambda features: p.log()  # type: ignore[assignment]
    obs = {"frames": torch.zeros(3, 2, 5), "actions": torch.zeros(3, 1), "mission": torch.zeros(3, 4)}
    loss, metrics = learner.loss(obs, torch.zeros(3, 5), credit)
    assert float(loss) == pytest.approx(-(math.log(0.7) + math.log(0.9) + math.log(0.3)) / 3)
    assert metrics == {
        "inverse/loss": pytest.approx(float(loss)),
        "inverse/accuracy": pytest.approx(2 / 3),
        "inverse/accuracy_of_telling": pytest.approx(1 / 2),
    }


def test_the_answer_is_not_shown(env: HeadstartVecEnv, branches: Branches) -> None:
    """What follows is read without the last action and the frames before it: as the first view of an episode."""
    learner, read = Inverse(fresh_policy(env), SMALL), []
    features = learner.policy.features
    learner.policy.features = lambda obs: (read.append(obs), features(obs))[1]  # type: ignore[method-assign]
    obs = as_tensors({name: value[2:6] for name, value in branches.obs.items()}, "cpu")
    later = torch.as_tensor(branches.future[2:6, 3, 0])
    learner.loss(obs, later, torch.ones(4, 7, dtype=torch.bool))
    for name, value in obs.items():
        assert torch.equal(read[0][name][:4], value)
    assert (read[0]["actions"][4:] == 7).all()
    assert (read[0]["frames"][4:, :-1] == 0).all()
    assert torch.equal(read[0]["frames"][4:, -1], later)


# ---- who shares credit ----
@pytest.mark.parametrize("horizon", [1, 2, 3])
@pytest.mark.parametrize("mirror", [False, True])
def test_actions_that_lead_to_the_same_view_share_credit(
    monkeypatch: pytest.MonkeyPatch, env: HeadstartVecEnv, demos: Demos, branches: Branches, horizon: int, mirror: bool
) -> None:
    """Every pair is a branch (or one in the mirror) that was still running, with the credit found by comparing."""
    known: dict[bytes, tuple[Any, Any, Any]] = {}
    for b in (branches, mirror_branches(branches)) if mirror else (branches,):
        for i in range(len(b)):
            running = ~b.ended[i, :, : horizon - 1].any(1)
            state = b"".join(b.obs[name][i].tobytes() for name in ("frames", "actions", "mission"))
            known[state] = b.future[i, :, horizon - 1], running, b.obs["frames"][i, -1]
    config = dataclasses.replace(SMALL, horizon=horizon, updates=30, bc=dataclasses.replace(SMALL.bc, mirror=mirror))
    learner = Inverse(fresh_policy(env), config)
    batches = watched(learner, monkeypatch)
    learner.fit(demos, branches)
    changes = []
    for obs, later, credit in batches:
        for i in range(len(later)):
            state = b"".join(obs[name][i].numpy().tobytes() for name in ("frames", "actions", "mission"))
            future, running, present = known[state]
            wanted = (future[:, :49] == later[i, :49].numpy()).all(1) & running  # the policy does not read the compass
            assert wanted.any()
            np.testing.assert_equal(credit[i].numpy(), wanted)
            changes.append(bool((later[i, :49].numpy() != present[:49]).any()))
    assert np.mean(changes) == 0.5  # as many that change something as not


def test_the_inverse_stage_trains_the_trunk_and_neither_actor_nor_critic(
    monkeypatch: pytest.MonkeyPatch, env: HeadstartVecEnv, demos: Demos, branches: Branches
) -> None:
    monkeypatch.setattr(inverse.BC, "fit", lambda self, demos: Fitted(updates=0))
    policy = fresh_policy(env)
    before, learner = weights(policy), Inverse(policy, SMALL)
    head = [parameter.detach().clone() for parameter in learner.head.parameters()]
    learner.fit(demos, branches)
    trunk = {id(parameter) for parameter in policy.features_extractor.parameters()}
    still = 0
    for name, parameter in policy.named_parameters():
        changed = not torch.equal(parameter, before[name])
        assert not changed or id(parameter) in trunk, name
        still += not changed and id(parameter) in trunk
    assert still == 0
    assert all(not torch.equal(p, earlier) for p, earlier in zip(learner.head.parameters(), head, strict=True))


def test_imitation_follows_with_the_same_trunk(
    monkeypatch: pytest.MonkeyPatch, env: HeadstartVecEnv, demos: Demos, branches: Branches
) -> None:
    found: list[dict[str, Tensor]] = []
    fit = inverse.BC.fit
    monkeypatch.setattr(
        inverse.BC, "fit", lambda self, demos: (found.append(weights(self.policy)), fit(self, demos))[1]
    )
    policy = fresh_policy(env)
    before, logged = weights(policy), []
    config = dataclasses.replace(SMALL, updates=60, bc=dataclasses.replace(SMALL.bc, updates=70))
    fitted = Inverse(policy, config, log=lambda update, metrics: logged.append(update)).fit(demos, branches)
    assert (fitted.updates, fitted.env_steps, policy.warm_start) == (130, 0, "inverse")
    assert (config.total_updates, logged) == (130, [50, 110])
    assert {"bc/loss", "inverse/loss"} <= fitted.metrics.keys()
    assert any(not torch.equal(found[0][name], before[name]) for name in before)


def test_actions_are_recognised(monkeypatch: pytest.MonkeyPatch, env: HeadstartVecEnv, demos: Demos) -> None:
    """By heart: nearly every action that leads to a view of its own is named."""
    monkeypatch.setattr(inverse.BC, "fit", lambda self, demos: Fitted(updates=0))
    config = dataclasses.replace(SMALL, updates=250, batch_size=64, learning_rate=3e-3)
    fitted = Inverse(fresh_policy(env), config).fit(demos, branch(demos))
    assert fitted.metrics["inverse/accuracy"] > 0.95
    assert fitted.metrics["inverse/accuracy_of_telling"] > 0.9


def test_the_seed_decides(env: HeadstartVecEnv, demos: Demos, branches: Branches) -> None:
    policies = []
    for noise, seed in ((0, 5), (3, 5), (0, 6)):
        policy = fresh_policy(env)
        torch.manual_seed(noise)
        Inverse(policy, SMALL, seed=seed).fit(demos, branches)
        policies.append(weights(policy))
    assert all(torch.equal(policies[0][name], policies[1][name]) for name in policies[0])
    assert any(not torch.equal(policies[0][name], policies[2][name]) for name in policies[0])


# ---- bad input ----
def test_it_needs_branches_that_are_long_enough(env: HeadstartVecEnv, demos: Demos, branches: Branches) -> None:
    with pytest.raises(UsageError, match=r"envs\.branch\(demos\)"):
        Inverse(fresh_policy(env), SMALL).fit(demos)
    with pytest.raises(UsageError, match=r"4 steps ahead.*3 long.*horizon=4"):
        Inverse(fresh_policy(env), dataclasses.replace(SMALL, horizon=4)).fit(demos, branches)
