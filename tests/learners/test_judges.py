"""Judges: both losses by hand, what they learn, what they are shown, and of what they speak."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import fresh_policy, weights, with_score
from torch import Tensor

from headstart.envs.collect import branch, collect_demos
from headstart.envs.mirror import mirror_branches
from headstart.envs.transitions import Branches, Demos
from headstart.envs.vector import HeadstartVecEnv, make_vec_env
from headstart.learners import BCConfig, JudgeConfig
from headstart.learners.judges import Judges, Shown
from headstart.models import policy
from headstart.models.policy import as_tensors

ENV_ID = "MiniGrid-DoorKey-5x5-v0"


@pytest.fixture(scope="module")
def demos(cache: Path) -> Demos:
    return collect_demos(ENV_ID, 2, history=2, cache=cache)


@pytest.fixture(scope="module")
def branches(demos: Demos) -> Branches:
    return branch(demos)


@pytest.fixture(scope="module")
def env(cache: Path) -> HeadstartVecEnv:
    return make_vec_env(ENV_ID, 2, history=2, n_levels=64, cache=cache)


def new(env: HeadstartVecEnv, bc: dict[str, Any] | None = None, **settings: Any) -> Judges:
    """Two small judges with these settings, who look at demonstrations with those of ``bc``."""
    look = BCConfig(**{"updates": 3, "batch_size": 8, "learning_rate": 1e-3, **(bc or {})})
    return Judges(fresh_policy(env), JudgeConfig(**{"members": 2, "dropout": 0.1, "updates": 4, **settings}), look)


# ---- the two losses ----
def test_loss_worked_by_hand(env: HeadstartVecEnv) -> None:
    """Two states of three futures; in the first, action 2 leads where the expert's action 0 leads."""
    future = torch.zeros(2, 3, 50, dtype=torch.uint8)
    future[0, 1], future[1, 0], future[1, 1] = 7, 8, 9
    score = torch.log(torch.tensor([[1.0, 5.0, 2.0], [3.0, 4.0, 1.0]]))  # eighths
    signs, tried = torch.zeros(2, 3, 1, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool)
    judges = new(env, {"label_smoothing": 0.3})
    loss, metrics = judges.loss(with_score(score), Shown({}, future, signs, torch.tensor([0, 1]), tried))
    right = (-math.log(3 / 8) - math.log(4 / 8)) / 2
    even = (
        -(math.log(1 / 8) + math.log(5 / 8) + math.log(2 / 8) + math.log(3 / 8) + math.log(4 / 8) + math.log(1 / 8)) / 6
    )
    assert float(loss) == pytest.approx(0.7 * right + 0.3 * even)
    assert metrics == {"reflect/judge_loss": pytest.approx(float(loss)), "reflect/judge_accuracy": 0.5}


def test_loss_of_some_actions_worked_by_hand(env: HeadstartVecEnv) -> None:
    """Of four futures the third is not real: neither a choice nor, though it looks like the expert's, a right one."""
    future = torch.zeros(1, 4, 50, dtype=torch.uint8)
    future[0, 1], future[0, 3] = 7, 8
    score = torch.log(torch.tensor([[1.0, 5.0, 90.0, 2.0]]))
    signs, tried = torch.zeros(1, 4, 1, dtype=torch.bool), torch.tensor([[True, True, False, True]])
    judges = new(env, {"label_smoothing": 0.3})
    loss, metrics = judges.loss(with_score(score), Shown({}, future, signs, torch.tensor([0]), tried))
    even = -(math.log(1 / 8) + math.log(5 / 8) + math.log(2 / 8)) / 3
    assert float(loss) == pytest.approx(-0.7 * math.log(1 / 8) + 0.3 * even)
    assert metrics["reflect/judge_accuracy"] == 0.0


def test_context_loss_worked_by_hand(env: HeadstartVecEnv) -> None:
    """Four outcomes, each in its own context and the next one's; the contexts of the last two are the same."""
    scores = torch.log(torch.tensor([[1.0, 3.0, 9.0], [8.0, 2.0, 5.0], [9.0, 9.0, 6.0], [4.0, 8.0, 6.0]]))

    def judge(obs: dict[str, Tensor], future: Tensor, signs: Tensor) -> Tensor:
        assert (obs["frames"][:, -1, 0] == future[:, 0, 0]).all()  # each future stays with its own present
        assert torch.equal(signs[:, 0, 0], future[:, 0, 0] == 1)
        return scores[future[:, 0, 0].long(), obs["mission"][:, 0].long()].unsqueeze(1)

    frame = torch.arange(4, dtype=torch.uint8)[:, None].expand(4, 50)
    mission = torch.tensor([0, 1, 2, 2], dtype=torch.uint8)[:, None].expand(4, 13)
    past = {"frames": frame[:, None].expand(4, 3, 50), "actions": torch.zeros(4, 2, dtype=torch.uint8)}
    future = torch.full((4, 3, 50), 9, dtype=torch.uint8)  # those of other actions than the expert's are not looked at
    action = torch.tensor([0, 2, 1, 0])
    future[torch.arange(4), action] = frame
    tried = torch.ones(4, 3, dtype=torch.bool)
    obs, signs = {**past, "mission": mission}, future[:, :, :1] == 1
    loss, metrics = new(env).context_loss(judge, Shown(obs, future, signs, action, tried))  # type: ignore[arg-type]
    assert float(loss) == pytest.approx(-(math.log(1 / 4) + math.log(2 / 7) + math.log(6 / 10)) / 4)
    assert metrics == {
        "reflect/context_loss": pytest.approx(float(loss)),
        "reflect/context_accuracy": pytest.approx(1 / 3),
    }


def test_contexts_that_networks_cannot_tell_apart_are_not_counted(
    env: HeadstartVecEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three outcomes whose older frames differ; the first two are masked, and so the first context is the second."""
    monkeypatch.setattr(policy, "RECENT", 1)
    scores = torch.log(torch.tensor([[1.0, 0.0, 9.0], [3.0, 0.0, 1.0], [5.0, 0.0, 2.0]]))

    def judge(obs: dict[str, Tensor], future: Tensor, signs: Tensor) -> Tensor:
        older = obs["frames"][:, 0, 0].long() * (obs["actions"][:, 0] != 7)
        return scores[future[:, 0, 0].long(), older].unsqueeze(1)

    frame = torch.arange(3, dtype=torch.uint8)[:, None].expand(3, 50)
    taken = torch.tensor([[7, 0], [7, 0], [4, 0]], dtype=torch.uint8)
    obs = {"frames": frame[:, None].expand(3, 3, 50), "actions": taken, "mission": torch.zeros(3, 13).byte()}
    future, signs = frame[:, None], torch.zeros(3, 1, 1, dtype=torch.bool)
    shown = Shown(obs, future, signs, torch.zeros(3, dtype=torch.long), torch.ones(3, 1, dtype=torch.bool))
    _, metrics = new(env).context_loss(judge, shown)  # type: ignore[arg-type]
    assert metrics["reflect/context_accuracy"] == 1 / 2  # of the second and the third


# ---- what they learn ----
def test_they_learn_the_experts_futures_by_heart(env: HeadstartVecEnv, branches: Branches) -> None:
    look = {"batch_size": 32, "learning_rate": 3e-3, "label_smoothing": 0.0}
    judges = new(env, look, members=1, dropout=0.0, updates=150)
    parts = *judges.consequences(branches), branches.expert_action, branches.tried
    whole = Shown(as_tensors(branches.obs, "cpu"), *(torch.as_tensor(part) for part in parts))

    def found() -> dict[str, Tensor]:
        with torch.no_grad():
            return judges.loss(judges.members[0], whole)[1]

    before = found()
    judges.fit(branches)
    after = found()
    assert after["reflect/judge_accuracy"] > 0.9 > before["reflect/judge_accuracy"]
    assert after["reflect/judge_loss"] < 0.3 < before["reflect/judge_loss"]


def test_they_learn_whose_outcome_it_is(env: HeadstartVecEnv, branches: Branches) -> None:
    """Each state's mission names the expert's action; without the second contrast nothing has to be made of that."""
    mission = np.repeat(1 + branches.expert_action[:, None], 13, axis=1).astype(np.uint8)
    told, accuracy = dataclasses.replace(branches, obs={**branches.obs, "mission": mission}), {}
    look = {"batch_size": 32, "learning_rate": 3e-3, "hidden_past": 0.0}
    for weight in (0.0, 1.0):
        judges = new(env, look, members=1, dropout=0.0, updates=150, context_weight=weight)
        judges.fit(told, outcomes=told)
        everything = torch.randperm(2 * len(told), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            shown = judges.batch(judges.shown(told), everything, torch.Generator())
            accuracy[weight] = judges.context_loss(judges.members[0], shown)[1]["reflect/context_accuracy"]
    assert accuracy[1.0] > 0.95 > 0.9 > accuracy[0.0], accuracy


def test_where_all_contexts_are_the_same_there_is_nothing_to_find(env: HeadstartVecEnv, branches: Branches) -> None:
    assert (branches.obs["mission"] == branches.obs["mission"][:1]).all()
    learned = []
    for weight in (0.0, 0.3):
        judges = new(env, context_weight=weight)
        assert "reflect/context_loss" not in judges.fit(branches, outcomes=branches)
        learned.append(weights(judges.members[0]))
    assert all(torch.equal(value, learned[1][name]) for name, value in learned[0].items())


def test_the_policy_is_only_read_and_opinions_differ(env: HeadstartVecEnv, branches: Branches) -> None:
    judges = new(env)
    policy, members = weights(judges.policy), [weights(judge) for judge in judges.members]
    judges.fit(branches)
    assert all(torch.equal(value, policy[name]) for name, value in weights(judges.policy).items())
    assert judges.policy.warm_start is None
    for judge, earlier in zip(judges.members, members, strict=True):
        assert not any(torch.equal(value, earlier[name]) for name, value in weights(judge).items())
    one, other = map(weights, judges.members)
    assert not all(torch.equal(one[name], other[name]) for name in one)


# ---- what they are shown ----
@pytest.mark.parametrize("mirror", [True, False])
def test_they_see_the_mirror_image_as_often(
    monkeypatch: pytest.MonkeyPatch, env: HeadstartVecEnv, branches: Branches, mirror: bool
) -> None:
    def cases(b: Branches) -> set[tuple[bytes, ...]]:
        parts = *b.obs.values(), *judges.consequences(b), b.expert_action, b.tried
        return {tuple(x.tobytes() for x in case) for case in zip(*parts, strict=True)}

    judges, seen = new(env, {"mirror": mirror, "hidden_past": 0.0}, updates=20), []
    plain, reflected = cases(branches), cases(mirror_branches(branches))
    loss = judges.loss

    def watched(judge: Any, shown: Shown) -> Any:
        arrays = [part.numpy() for part in (*shown.obs.values(), *shown[1:])]
        found = [tuple(x.tobytes() for x in case) for case in zip(*arrays, strict=True)]
        assert set(found) <= (plain | reflected if mirror else plain)
        seen.extend(case in plain for case in found)
        return loss(judge, shown)

    monkeypatch.setattr(judges, "loss", watched)
    judges.fit(branches)
    assert np.mean(seen) == pytest.approx(0.5, abs=0.2) if mirror else all(seen)


def test_they_may_look_further(env: HeadstartVecEnv, demos: Demos) -> None:
    """At the future after three steps."""
    far = branch(demos, horizon=3)
    future, signs = new(env, horizon=3).consequences(far)
    np.testing.assert_equal(future, far.future[:, :, 2])
    np.testing.assert_equal(signs[..., 0], far.revisit)
    turned = far.future[:, :, 2, -1].astype(int) - far.frame[:, None, -1]
    np.testing.assert_equal(signs[..., 1:], np.stack([turned % 4 == 3, turned % 4 == 1], axis=2))


# ---- what they say ----
def test_the_preference_is_among_what_was_tried(env: HeadstartVecEnv, demos: Demos) -> None:
    judges, some = new(env), branch(demos, k=3, rng=np.random.default_rng(0))
    preference = judges.preference(some)
    np.testing.assert_array_equal(np.isfinite(preference), some.tried)
    judges.members = judges.members[:1]
    np.testing.assert_allclose(np.exp(judges.preference(some)).sum(1), 1, atol=1e-5)  # of one alone, a distribution
