"""Preference: its loss by hand, which pairs are compared, that it starts from the reference, what it moves."""

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small import fresh_policy, weights

from headstart.envs.collect import branch, collect_demos, practise, replay
from headstart.envs.errors import UsageError
from headstart.envs.mirror import mirror_branches
from headstart.envs.simulator import uniform_actor
from headstart.envs.transitions import Branches, Demos
from headstart.envs.vector import HeadstartVecEnv, make_vec_env
from headstart.learners import BCConfig, preference
from headstart.learners.preference import Preference, PreferenceConfig

ENV_ID = "MiniGrid-DoorKey-5x5-v0"
SMALL = PreferenceConfig(updates=4, batch_size=8, bc=BCConfig(updates=3, batch_size=8, mirror=False))


@pytest.fixture(scope="module")
def demos(cache: Path) -> Demos:
    return collect_demos(ENV_ID, 1, history=2, cache=cache)


@pytest.fixture(scope="module")
def branches(demos: Demos) -> Branches:
    return branch(demos)


@pytest.fixture(scope="module")
def env(cache: Path) -> HeadstartVecEnv:
    return make_vec_env(ENV_ID, 2, history=2, n_levels=8, cache=cache)


def watched(learner: Preference, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    batches: list[Any] = []
    loss = learner.loss
    monkeypatch.setattr(learner, "loss", lambda *batch: (batches.append((batch, loss(*batch))), batches[-1][1])[1])
    return batches


def test_pasts_are_hidden_as_in_imitation(
    env: HeadstartVecEnv, demos: Demos, branches: Branches, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(SMALL, updates=60, bc=dataclasses.replace(SMALL.bc, hidden_past=0.5))
    learner = Preference(fresh_policy(env), config)
    batches = watched(learner, monkeypatch)
    learner.fit(demos, branches)
    hidden = np.mean([(obs["actions"] >= 7).all(1).float().mean() for (obs, *_), _ in batches])
    unhidden = float((demos.obs["actions"] >= 7).all(1).mean())
    assert hidden == pytest.approx(unhidden + 0.5 * (1 - unhidden), abs=0.1)


def test_loss_worked_by_hand(env: HeadstartVecEnv) -> None:
    """The expert's action went from 1/4 to 1/2 and the other from 1/2 to 1/4; in the second state nothing moved."""
    learner = Preference(fresh_policy(env), dataclasses.replace(SMALL, beta=0.5))
    now = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.7, 0.1]])
    before = torch.tensor([[0.25, 0.5, 0.25], [0.2, 0.7, 0.1]])
    learner.policy = SimpleNamespace(logits=lambda obs: now.log() + 3)  # type: ignore[assignment]
    chosen, rejected = torch.tensor([0, 2]), torch.tensor([1, 0])
    loss, metrics = learner.loss({}, before.log() - 1, chosen, rejected)
    assert float(loss) == pytest.approx((math.log(1 + 4**-0.5) + math.log(2)) / 2)
    assert metrics == {
        "preference/loss": pytest.approx(float(loss)),
        "preference/accuracy": pytest.approx(0.5),
        "preference/expert_gain": pytest.approx(math.log(2) / 2, abs=1e-6),
        "preference/own_gain": pytest.approx(-math.log(2) / 2, abs=1e-6),
    }


@pytest.mark.parametrize("mirror", [False, True])
def test_the_experts_action_is_compared_with_each_that_leads_elsewhere(
    monkeypatch: pytest.MonkeyPatch, env: HeadstartVecEnv, demos: Demos, branches: Branches, mirror: bool
) -> None:
    bc = dataclasses.replace(SMALL.bc, mirror=mirror, hidden_past=0.0)
    learner = Preference(fresh_policy(env), dataclasses.replace(SMALL, updates=60, bc=bc))
    batches = watched(learner, monkeypatch)
    learner.fit(demos, branches)
    wanted = set()
    for b in (branches, mirror_branches(branches)) if mirror else (branches,):
        for i, action in enumerate(b.expert_action):
            for k in range(7):
                if (b.future[i, k] != b.future[i, action]).any():
                    wanted.add((b.obs["frames"][i].tobytes(), b.obs["actions"][i].tobytes(), int(action), k))
    seen = set()
    for (obs, _, chosen, rejected), _ in batches:
        for i in range(len(chosen)):
            frames, actions = obs["frames"][i].numpy().tobytes(), obs["actions"][i].numpy().tobytes()
            seen.add((frames, actions, int(chosen[i]), int(rejected[i])))
    assert seen <= wanted
    assert len(seen) > 0.9 * len(wanted)


def test_it_starts_where_imitation_ends_and_the_reference_stays_there(
    monkeypatch: pytest.MonkeyPatch, env: HeadstartVecEnv, demos: Demos, branches: Branches
) -> None:
    """log 2 at the first update, whatever is hidden; then the policy moves, and the reference does not."""
    config = dataclasses.replace(SMALL, bc=dataclasses.replace(SMALL.bc, updates=20))
    imitated = fresh_policy(env)
    preference.BC(imitated, config.bc, seed=0).fit(demos)
    policy = fresh_policy(env)
    learner = Preference(policy, config)
    batches = watched(learner, monkeypatch)
    fitted = learner.fit(demos, branches)
    assert batches[0][1][0].item() == pytest.approx(math.log(2), abs=1e-6)
    for (obs, reference, _, _), _ in batches:
        torch.testing.assert_close(reference, imitated.logits(obs).detach())
        assert not reference.requires_grad
    assert any(not torch.equal(value, weights(imitated)[name]) for name, value in weights(policy).items())
    assert (fitted.updates, fitted.env_steps, config.total_updates) == (24, 0, 24)
    assert policy.warm_start == "preference"


def test_actor_and_trunk_move_and_the_critic_does_not(env: HeadstartVecEnv, demos: Demos, branches: Branches) -> None:
    policy = fresh_policy(env)
    before = weights(policy)
    Preference(policy, SMALL).fit(demos, branches)
    critic = {id(parameter) for parameter in policy.critic_parameters()}
    for name, parameter in policy.named_parameters():
        assert torch.equal(parameter, before[name]) == (id(parameter) in critic), name


def test_preferences_are_learned(env: HeadstartVecEnv, demos: Demos, branches: Branches) -> None:
    """From a reference that knows little, every pair is told apart, and the expert's action is the likeliest."""
    policy = fresh_policy(env)
    bc = dataclasses.replace(SMALL.bc, hidden_past=0.0)
    config = dataclasses.replace(SMALL, updates=300, batch_size=64, learning_rate=3e-3, bc=bc)
    fitted = Preference(policy, config).fit(demos, branches)
    assert fitted.metrics["preference/accuracy"] > 0.95
    assert fitted.metrics["preference/expert_gain"] > 0 > fitted.metrics["preference/own_gain"]
    same = (branches.future[:, :, 0] == branches.future[np.arange(len(demos)), demos.action, :1]).all(2)
    best = policy.probabilities(demos.obs).argmax(1)
    assert same[np.arange(len(demos)), best].mean() > 0.9


def test_updates_are_logged_after_those_of_imitation(env: HeadstartVecEnv, demos: Demos, branches: Branches) -> None:
    logged: list[tuple[int, bool]] = []
    config = dataclasses.replace(SMALL, updates=50, bc=dataclasses.replace(SMALL.bc, updates=60))
    Preference(
        fresh_policy(env), config, log=lambda update, metrics: logged.append((update, "preference/loss" in metrics))
    ).fit(demos, branches)
    assert logged == [(50, False), (110, True)]


def test_it_needs_branches_at_the_experts_states(env: HeadstartVecEnv, demos: Demos, branches: Branches) -> None:
    states, _ = practise(replay(demos), uniform_actor(7), steps=1, rng=np.random.default_rng(0))
    for wrong in (None, branch(states)):
        with pytest.raises(UsageError, match=r"envs\.branch\(demos\)"):
            Preference(fresh_policy(env), SMALL).fit(demos, wrong)
    alike = dataclasses.replace(branches, future=np.zeros_like(branches.future))
    with pytest.raises(UsageError, match="nothing to compare"):
        Preference(fresh_policy(env), SMALL).fit(demos, alike)
