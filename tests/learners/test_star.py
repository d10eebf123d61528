"""Ungrounded rationales: their loss by hand, who makes them up, which are kept, and that no future is looked at."""

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

from headstart.envs.collect import collect_demos
from headstart.envs.errors import DataError
from headstart.envs.transitions import Demos
from headstart.envs.vector import HeadstartVecEnv, make_vec_env
from headstart.learners import BC, BCConfig, Star, StarConfig
from headstart.learners.bc import imitation_targets
from headstart.models.policy import as_tensors
from headstart.models.rationale import RationaleHead

ENV_ID = "MiniGrid-DoorKey-5x5-v0"
SMALL = StarConfig(bc=BCConfig(updates=3, batch_size=8), rounds=2, updates=4)


@pytest.fixture(scope="module")
def demos(cache: Path) -> Demos:
    return collect_demos(ENV_ID, 2, history=2, cache=cache)


@pytest.fixture(scope="module")
def env(cache: Path) -> HeadstartVecEnv:
    return make_vec_env(ENV_ID, 2, history=2, n_levels=8, cache=cache)


def test_loss_worked_by_hand(env: HeadstartVecEnv) -> None:
    """Two states of two actions; the rationale of the second was thrown away."""
    config = dataclasses.replace(SMALL, rationale_weight=0.5, bc=BCConfig(label_smoothing=0.0))
    learner = Star(fresh_policy(env), config)
    p = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    said = torch.tensor([[[0.5, 0.5], [0.8, 0.2]], [[0.9, 0.1], [0.9, 0.1]]])
    learner.policy = SimpleNamespace(  # type: ignore[assignment]
        features=lambda obs: obs,
        logits_of=lambda features: p.log(),
    )
    learner.head = RationaleHead(4, 2, 2)
    learner.head.forward = lambda features: (said.log(), torch.zeros(2, 2))  # type: ignore[method-assign]
    target, weight = torch.eye(2), torch.tensor([0.5, 1.5])
    effect, margin = torch.tensor([[0, 1], [1, 1]]), torch.tensor([[0.5, -0.5], [9.0, -9.0]])
    loss, metrics = learner.loss({}, target, weight, effect, margin, torch.tensor([True, False]))
    imitation = (0.5 * -math.log(0.25) + 1.5 * -math.log(0.5)) / 2
    rationale = 0.5 * (-math.log(0.5) - math.log(0.2) + 2 * 0.125) / 4
    assert float(loss) == pytest.approx(imitation + 0.5 * rationale)
    assert metrics["bc/loss"] == pytest.approx(imitation)
    assert metrics["star/kept"] == 0.5


def test_rationales_are_the_policys_own_and_kept_where_it_acts_as_the_expert(
    env: HeadstartVecEnv, demos: Demos
) -> None:
    policy = fresh_policy(env)
    BC(policy, BCConfig(updates=60, batch_size=16)).fit(demos)
    learner = Star(policy, SMALL)
    rows, share, _ = imitation_targets(policy, demos, mirror=True)
    many = {name: np.repeat(value, 400, axis=0) for name, value in rows.items()}
    target = torch.as_tensor(np.repeat(share, 400, axis=0))
    obs = as_tensors(many, "cpu")
    effect, margin, kept = learner.invent(obs, target, torch.Generator().manual_seed(0))
    p = policy.probabilities(rows)
    right = (p * (share > 0)).sum(1)  # how often its action is one that an expert took
    np.testing.assert_allclose(kept.view(-1, 400).float().mean(1).numpy(), right, atol=0.09)
    assert 0.02 < right.min() < right.max() < 0.999
    gap = margin.view(-1, 400, 7)[:, 0].numpy()
    np.testing.assert_allclose(gap[:, :1] - gap, np.log(p[:, :1] / p), atol=1e-3)
    with torch.no_grad():
        says = torch.softmax(learner.head(policy.features(as_tensors(rows, "cpu")))[0], 2)
    often = torch.nn.functional.one_hot(effect.long(), says.shape[2]).view(-1, 400, 7, says.shape[2]).float().mean(1)
    torch.testing.assert_close(often, says, atol=0.1, rtol=0)


def test_it_imitates_then_invents_anew_in_each_round(
    monkeypatch: pytest.MonkeyPatch, env: HeadstartVecEnv, demos: Demos
) -> None:
    policy = fresh_policy(env)
    learner, found = Star(policy, SMALL), []
    invent = learner.invent
    monkeypatch.setattr(learner, "invent", lambda *given: (found.append(weights(policy)), invent(*given))[1])
    fitted = learner.fit(demos)
    imitated = fresh_policy(env)
    BC(imitated, SMALL.bc, seed=0).fit(demos)
    assert len(found) == 2
    assert all(torch.equal(value, found[0][name]) for name, value in weights(imitated).items())
    critic = {id(parameter) for parameter in policy.critic_parameters()}
    for name, parameter in policy.named_parameters():
        assert torch.equal(parameter, found[1][name]) == (id(parameter) in critic), name
    assert (fitted.updates, fitted.env_steps, policy.warm_start) == (3 + 2 * 4, 0, "star")
    assert fitted.updates == SMALL.total_updates
    assert {"bc/loss", "star/kept", "rationale/loss"} <= fitted.metrics.keys()


def test_each_rationale_stays_with_its_state(
    monkeypatch: pytest.MonkeyPatch, env: HeadstartVecEnv, demos: Demos
) -> None:
    config = dataclasses.replace(SMALL, rounds=1, updates=20, bc=dataclasses.replace(SMALL.bc, hidden_past=0.0))
    learner = Star(fresh_policy(env), config)
    rows, share, count = imitation_targets(learner.policy, demos, mirror=True)
    known: dict[bytes, Any] = {}
    invent, loss = learner.invent, learner.loss

    def kept(obs: dict[str, Tensor], *given: Any) -> Any:
        made = invent(obs, *given)
        for i in range(len(share)):
            state = obs["frames"][i].numpy().tobytes() + obs["actions"][i].numpy().tobytes()
            known[state] = [share[i], count[i], *(part[i].numpy() for part in made)]
        return made

    def watched(obs: dict[str, Tensor], *parts: Tensor) -> Any:
        for i in range(len(parts[0])):
            state = obs["frames"][i].numpy().tobytes() + obs["actions"][i].numpy().tobytes()
            for part, wanted in zip(parts, known[state], strict=True):
                np.testing.assert_equal(part[i].numpy(), wanted)
        return loss(obs, *parts)

    monkeypatch.setattr(learner, "invent", kept)
    monkeypatch.setattr(learner, "loss", watched)
    learner.fit(demos)
    assert len(known) == len(rows["actions"])


def test_the_expert_is_still_imitated(env: HeadstartVecEnv, demos: Demos) -> None:
    policy = fresh_policy(env)
    bc = BCConfig(updates=60, batch_size=32, label_smoothing=0.0, hidden_past=0.0, mirror=False)
    fitted = Star(policy, StarConfig(bc=bc, rounds=2, updates=60)).fit(demos)
    assert (policy.probabilities(demos.obs).argmax(1) == demos.action).mean() > 0.9
    assert fitted.metrics["star/kept"] > 0.5


def test_the_seed_decides(env: HeadstartVecEnv, demos: Demos) -> None:
    policies = []
    for noise, seed in ((0, 5), (3, 5), (0, 6)):
        policy = fresh_policy(env)
        torch.manual_seed(noise)
        Star(policy, SMALL, seed=seed).fit(demos)
        policies.append(weights(policy))
    assert all(torch.equal(policies[0][name], policies[1][name]) for name in policies[0])
    assert any(not torch.equal(policies[0][name], policies[2][name]) for name in policies[0])


def test_demonstrations_of_another_history_are_refused(env: HeadstartVecEnv, cache: Path) -> None:
    with pytest.raises(DataError, match="same history"):
        Star(fresh_policy(env), SMALL).fit(collect_demos(ENV_ID, 1, history=1, cache=cache))
