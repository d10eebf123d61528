"""The rationale: margins and accuracies by hand, no leak of what it predicts, and the shuffled control."""

import inspect
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from headstart.envs.collect import branch, collect_demos
from headstart.envs.effects import EFFECTS, effects, explain
from headstart.envs.transitions import Branches
from headstart.envs.vector import make_vec_env
from headstart.learners import PPO
from headstart.models import HeadstartPolicy
from headstart.models.policy import as_tensors
from headstart.models.rationale import RationaleHead, margins, shuffled

ENV_ID = "MiniGrid-DoorKey-5x5-v0"


@pytest.fixture(scope="module")
def branches(cache: Path) -> Branches:
    return branch(collect_demos(ENV_ID, 3, history=1, cache=cache))


def fresh_policy(cache: Path) -> HeadstartPolicy:
    env = make_vec_env(ENV_ID, 2, history=1, n_levels=8, cache=cache)
    extractor = {"width": 32, "channels": 8}
    settings = {"n_steps": 8, "batch_size": 16, "policy_kwargs": {"features_extractor_kwargs": extractor}}
    return PPO(HeadstartPolicy, env, seed=0, **settings).policy


def head(n_actions: int = 7) -> RationaleHead:
    torch.manual_seed(0)
    return RationaleHead(32, n_actions, len(EFFECTS), hidden=64)


# ---- targets ----
def test_margins_worked_by_hand() -> None:
    label = np.array([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]], np.float32)
    found = margins(label)
    mean = (math.log(0.5) + 2 * math.log(0.25)) / 3
    np.testing.assert_allclose(found[0], [math.log(0.5) - mean, *[math.log(0.25) - mean] * 2], rtol=1e-6)
    np.testing.assert_allclose(found[1, 0] - found[1, 1], math.log(1e4), rtol=1e-6)  # and not infinite
    np.testing.assert_allclose(found.sum(1), 0, atol=1e-5)
    assert found.dtype == np.float32


def test_shuffled_rationales_are_those_of_other_states(branches: Branches) -> None:
    effect = effects(branches.frame, branches.future[:, :, 0])
    margin = np.arange(effect.size, dtype=np.float32).reshape(effect.shape)
    other_effect, other_margin = shuffled(effect, margin, np.random.default_rng(0))
    came_from = (other_margin[:, 0] // 7).astype(int)
    assert sorted(came_from) == list(range(len(effect)))
    assert (came_from != np.arange(len(effect))).mean() > 0.8
    np.testing.assert_equal(other_effect, effect[came_from])  # effects and margins stay together
    np.testing.assert_equal(other_margin, margin[came_from])


# ---- loss and accuracies ----
def test_loss_and_accuracies_worked_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two states of two actions; one effect in four is missed, and one of the two preferences."""
    made = RationaleHead(4, 2, 3)
    p = torch.tensor([[[0.6, 0.2, 0.2], [0.1, 0.8, 0.1]], [[0.5, 0.25, 0.25], [0.7, 0.2, 0.1]]])
    margin = torch.tensor([[0.5, -0.5], [-0.25, 0.25]])
    monkeypatch.setattr(made, "forward", lambda features: (p.log(), margin))
    effect, judged = torch.tensor([[0, 1], [0, 2]]), torch.tensor([[1.5, -1.5], [0.25, -0.25]])
    loss, metrics = made.loss(torch.zeros(2, 4), effect, judged)
    nats = -math.log(0.6) - math.log(0.8) - math.log(0.5) - math.log(0.1)
    huber = 2 * 0.5 + 2 * 0.5 * 0.5**2  # off by one nat twice, by half a nat twice
    assert float(loss) == pytest.approx((nats + huber) / 4)
    assert metrics == {
        "rationale/loss": pytest.approx(float(loss)),
        "rationale/effect_accuracy": pytest.approx(3 / 4),
        "rationale/change_accuracy": pytest.approx(1 / 2),
        "rationale/share_of_nothing": pytest.approx(1 / 2),
        "rationale/preferred_accuracy": pytest.approx(1 / 2),
        "rationale/margin_error": pytest.approx((1 + 1 + 0.5 + 0.5) / 4),
    }
    weighted, _ = made.loss(torch.zeros(2, 4), effect, judged, torch.tensor([2.0, 0.0]))
    assert float(weighted) == pytest.approx((-math.log(0.6) - math.log(0.8) + 1.0) * 2 / 4)


def test_effects_and_margins_are_learned_with_the_trunk(cache: Path, branches: Branches) -> None:
    """By heart; the loss reaches the trunk, not the actor; and what is read then is the truth, in English."""
    policy, made = fresh_policy(cache), head()
    effect = effects(branches.frame, branches.future[:, :, 0])
    label = np.where(effect == 0, 0.02, 1.0)
    judged = torch.as_tensor(margins(label / label.sum(1, keepdims=True)))
    obs, true = as_tensors(branches.obs, "cpu"), torch.as_tensor(effect)
    actor = {name: p.detach().clone() for name, p in policy.action_net.named_parameters()}
    optimizer = torch.optim.Adam([*policy.features_extractor.parameters(), *made.parameters()], lr=5e-3)
    _, first = made.loss(policy.features(obs), true, judged)
    for _ in range(150):
        loss, metrics = made.loss(policy.features(obs), true, judged)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(p.grad is None for p in policy.action_net.parameters())
    assert all(torch.equal(p, actor[name]) for name, p in policy.action_net.named_parameters())
    assert metrics["rationale/change_accuracy"] > 0.9 > first["rationale/change_accuracy"]
    assert metrics["rationale/preferred_accuracy"] > 0.9
    said, margin = made.predict(policy.features(obs))
    taking = int((effect == EFFECTS.index("picked up")).any(1).argmax())
    assert "pick up: takes the yellow key" in explain(
        branches.frame[taking], said[taking], np.where(np.arange(7) == 3, 9.0, margin[taking])
    )


# ---- no leak ----
def test_a_rationale_depends_on_the_present_observation_only(cache: Path, branches: Branches) -> None:
    """Not on futures, on labels, or on what else is in the batch: it can be had before acting."""
    policy, made = fresh_policy(cache), head()
    obs = as_tensors(branches.obs, "cpu")
    together = made(policy.features(obs))
    for i in (0, len(branches) - 1):
        alone = made(policy.features({name: value[i : i + 1] for name, value in obs.items()}))
        for one, all_of_them in zip(alone, together, strict=True):
            torch.testing.assert_close(one[0], all_of_them[i], rtol=1e-4, atol=1e-5)
    assert list(inspect.signature(made.forward).parameters) == ["features"]
