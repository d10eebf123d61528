"""Implicit world modelling: its loss and its accuracies by hand, what each stage touches, one batch by heart."""

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
from headstart.learners import BC, IWM, BCConfig, Fitted, IWMConfig, iwm
from headstart.models.encoders import CELL_PARTS, CELLS, cell_classes
from headstart.models.policy import as_tensors

ENV_ID = "MiniGrid-DoorKey-5x5-v0"
SMALL = IWMConfig(updates=4, batch_size=8, bc=BCConfig(updates=3, batch_size=8))


@pytest.fixture(scope="module")
def demos(cache: Path) -> Demos:
    return collect_demos(ENV_ID, 1, history=2, cache=cache)


@pytest.fixture(scope="module")
def branches(demos: Demos) -> Branches:
    return branch(demos, horizon=2)


@pytest.fixture(scope="module")
def env(cache: Path) -> HeadstartVecEnv:
    return make_vec_env(ENV_ID, 2, history=2, n_levels=8, cache=cache)


def certain(view: Tensor) -> tuple[Tensor, ...]:
    """Logits (B, C, classes) of each part that say: exactly these cells."""
    return tuple(
        20.0 * torch.nn.functional.one_hot(classes, n).float()
        for classes, n in zip(cell_classes(view), CELL_PARTS, strict=True)
    )


def world_model(env: HeadstartVecEnv, prediction: tuple[Tensor, ...], changed_weight: float) -> IWM:
    """A world model that predicts what it is told to."""
    learner = IWM(fresh_policy(env), IWMConfig(changed_weight=changed_weight))
    learner.head.forward = lambda features, action: prediction  # type: ignore[assignment]
    learner.policy = SimpleNamespace(features=lambda obs: None)  # type: ignore[assignment]
    return learner


def test_accuracies_worked_by_hand(env: HeadstartVecEnv) -> None:
    """Three views; four cells change, three in the first and one in the second; three of the four are foreseen."""
    before = torch.full((3, 50), 3 * 18, dtype=torch.uint8)
    after, predicted = before.clone(), before.clone()
    after[0, :3] = torch.tensor([5 * 18 + 3, 1 * 18, 4 * 18 + 2])
    predicted[0, :3] = torch.tensor([5 * 18 + 3, 1 * 18, 4 * 18 + 1])  # the last: right type, wrong state
    after[1, 7] = predicted[1, 7] = 8 * 18 + 3
    predicted[2, 5] = 9 * 18  # nothing changed here, but something is imagined
    after[:, 49] = torch.tensor([1, 2, 3])  # the direction is not a cell
    learner = world_model(env, certain(predicted[:, :CELLS]), changed_weight=10.0)
    loss, metrics = learner.loss({"frames": before[:, None]}, torch.tensor([0, 1, 2]), after)
    assert metrics["iwm/changed_cell_accuracy"] == pytest.approx(3 / 4)
    assert metrics["iwm/view_accuracy"] == pytest.approx(1 / 3)
    assert metrics["iwm/view_accuracy_of_copying"] == pytest.approx(1 / 3)
    # two wrong parts of 20 nats each: the state of a changed cell (weight 10), the type of an unchanged one
    right = [math.log1p((n - 1) * math.exp(-20)) for n in CELL_PARTS]
    cells = [10.0] * 4 + [1.0] * (3 * CELLS - 4)
    wanted = (20 * 10 + 20 * 1) / sum(cells) + sum(right)
    assert float(loss) == pytest.approx(wanted, rel=1e-4)


def test_a_copy_of_the_present_foresees_no_change(env: HeadstartVecEnv, branches: Branches) -> None:
    before, action, future = branches.transitions()
    obs, after = as_tensors(before, "cpu"), torch.as_tensor(future)
    present = obs["frames"][:, -1, :CELLS]
    _, metrics = world_model(env, certain(present), 10.0).loss(obs, torch.as_tensor(action), after)
    assert metrics["iwm/changed_cell_accuracy"] == 0
    assert metrics["iwm/view_accuracy"] == metrics["iwm/view_accuracy_of_copying"] > 0.3
    _, metrics = world_model(env, certain(after[:, :CELLS]), 10.0).loss(obs, torch.as_tensor(action), after)
    assert metrics["iwm/changed_cell_accuracy"] == metrics["iwm/view_accuracy"] == 1
    still = {"frames": obs["frames"][:1]}
    _, metrics = world_model(env, certain(present[:1]), 10.0).loss(
        still, torch.as_tensor(action[:1]), still["frames"][:, -1]
    )
    assert metrics["iwm/changed_cell_accuracy"] == 0  # and not the mean of nothing


def test_the_world_model_stage_trains_the_trunk_and_neither_actor_nor_critic(
    monkeypatch: pytest.MonkeyPatch, env: HeadstartVecEnv, demos: Demos, branches: Branches
) -> None:
    monkeypatch.setattr(iwm.BC, "fit", lambda self, demos: Fitted(updates=0))
    policy = fresh_policy(env)
    before, learner = weights(policy), IWM(policy, SMALL)
    head = [parameter.detach().clone() for parameter in learner.head.parameters()]
    learner.fit(demos, branches)
    trunk = {id(parameter) for parameter in policy.features_extractor.parameters()}
    for name, parameter in policy.named_parameters():
        changed = not torch.equal(parameter, before[name])
        assert changed == (id(parameter) in trunk), name
    assert all(not torch.equal(p, earlier) for p, earlier in zip(learner.head.parameters(), head, strict=True))


def test_imitation_follows_with_the_same_trunk(
    monkeypatch: pytest.MonkeyPatch, env: HeadstartVecEnv, demos: Demos, branches: Branches
) -> None:
    found: list[dict[str, Tensor]] = []
    fit = iwm.BC.fit
    monkeypatch.setattr(iwm.BC, "fit", lambda self, demos: (found.append(weights(self.policy)), fit(self, demos))[1])
    policy = fresh_policy(env)
    before = weights(policy)
    fitted = IWM(policy, SMALL).fit(demos, branches)
    critic = {id(parameter) for parameter in policy.critic_parameters()}
    after = weights(policy)
    assert (fitted.updates, fitted.env_steps, policy.warm_start) == (4 + 3, 0, "iwm")
    assert {"bc/loss", "iwm/loss"} <= fitted.metrics.keys()
    for name, parameter in policy.named_parameters():
        if id(parameter) in critic:
            assert torch.equal(after[name], before[name]), name
        else:
            assert not torch.equal(after[name], found[0][name]), name


def test_half_of_a_batch_changes_something(
    monkeypatch: pytest.MonkeyPatch, env: HeadstartVecEnv, demos: Demos, branches: Branches
) -> None:
    learner = IWM(fresh_policy(env), SMALL)
    shares, loss = [], learner.loss

    def watched(obs: dict[str, Tensor], action: Tensor, future: Tensor) -> Any:
        shares.append(float((obs["frames"][:, -1, :CELLS] != future[:, :CELLS]).any(1).float().mean()))
        return loss(obs, action, future)

    monkeypatch.setattr(learner, "loss", watched)
    learner.fit(demos, branches)
    assert shares == [0.5] * SMALL.updates


Key = tuple[bytes, bytes, int]


def known(branches: Branches) -> dict[Key, bytes]:
    """What follows each state and action of executed branches."""
    before, action, future = branches.transitions()
    steps = zip(before["frames"], before["actions"], action, future, strict=True)
    return {(frames.tobytes(), taken.tobytes(), int(a)): after.tobytes() for frames, taken, a, after in steps}


@pytest.mark.parametrize("mirror", [False, True])
def test_the_future_is_the_one_of_its_state_and_action(
    monkeypatch: pytest.MonkeyPatch, env: HeadstartVecEnv, demos: Demos, branches: Branches, mirror: bool
) -> None:
    """Of the branches, or of their mirror image as often."""
    executed, reflected = known(branches), known(mirror_branches(branches))
    config = dataclasses.replace(SMALL, updates=40, bc=dataclasses.replace(SMALL.bc, mirror=mirror))
    learner, seen = IWM(fresh_policy(env), config), []
    loss = learner.loss

    def watched(obs: dict[str, Tensor], action: Tensor, future: Tensor) -> Any:
        for f, m, a, after in zip(obs["frames"].numpy(), obs["actions"].numpy(), action, future.numpy(), strict=True):
            key = f.tobytes(), m.tobytes(), int(a)
            assert after.tobytes() in (executed.get(key), reflected.get(key) if mirror else None)
            seen.append(key in executed)
        return loss(obs, action, future)

    monkeypatch.setattr(learner, "loss", watched)
    learner.fit(demos, branches)
    assert len(seen) == config.updates * config.batch_size
    assert np.mean(seen) == pytest.approx(0.5, abs=0.15) if mirror else all(seen)


def test_a_batch_of_futures_is_learned_by_heart(env: HeadstartVecEnv, demos: Demos, branches: Branches) -> None:
    learner = IWM(fresh_policy(env), IWMConfig(changed_weight=3.0))
    before, action, future = branches.transitions()
    pick = np.random.default_rng(0).permutation(len(action))[:24]
    obs = as_tensors({name: value[pick] for name, value in before.items()}, "cpu")
    batch = obs, torch.as_tensor(action[pick]), torch.as_tensor(future[pick])
    optimizer = torch.optim.Adam([*learner.policy.features_extractor.parameters(), *learner.head.parameters()], lr=5e-3)
    _, first = learner.loss(*batch)
    for _ in range(120):
        loss, metrics = learner.loss(*batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert first["iwm/changed_cell_accuracy"] < 0.5
    assert metrics["iwm/changed_cell_accuracy"] > 0.99
    assert metrics["iwm/view_accuracy"] > 0.95 > first["iwm/view_accuracy_of_copying"]


def test_it_needs_branches(env: HeadstartVecEnv, demos: Demos) -> None:
    with pytest.raises(UsageError, match=r"envs\.branch\(demos\)"):
        IWM(fresh_policy(env), SMALL).fit(demos)


# ---- both together ----
def test_jointly_it_predicts_while_it_imitates(env: HeadstartVecEnv, demos: Demos, branches: Branches) -> None:
    """As many updates as imitation alone; and with a weight of nothing it is imitation alone, to the bit."""
    policies = {}
    for weight in (0.0, 1.0):
        policy = fresh_policy(env)
        learner = IWM(policy, dataclasses.replace(SMALL, mode="joint", joint_weight=weight))
        before = [p.detach().clone() for p in learner.head.parameters()]
        fitted = learner.fit(demos, branches)
        assert fitted.updates == SMALL.bc.updates
        assert {"bc/loss", "iwm/loss"} <= fitted.metrics.keys()
        moved = [not torch.equal(p, b) for p, b in zip(learner.head.parameters(), before, strict=True)]
        assert all(moved) if weight else True
        policies[weight] = weights(policy)
    alone = fresh_policy(env)
    BC(alone, SMALL.bc).fit(demos)
    assert all(torch.equal(policies[0.0][name], value) for name, value in weights(alone).items())
    assert not all(torch.equal(policies[1.0][name], value) for name, value in weights(alone).items())


def test_another_mode_is_refused() -> None:
    with pytest.raises(UsageError, match="mode='both'"):
        IWMConfig(mode="both")  # type: ignore[arg-type]


def test_foreseen_frames_are_the_likeliest_cells(env: HeadstartVecEnv, branches: Branches) -> None:
    obs, action, after = (x if isinstance(x, dict) else x[:9] for x in branches.transitions())
    obs = {name: x[:9] for name, x in obs.items()}
    learner = IWM(fresh_policy(env), SMALL)
    truth = torch.as_tensor(after[:, :CELLS])
    learner.head.forward = lambda features, action: certain(truth)  # type: ignore[assignment]
    foreseen = learner.foresee(obs, action)
    np.testing.assert_equal(foreseen[:, :CELLS], after[:, :CELLS])
    assert foreseen.shape == after.shape
    assert foreseen.dtype == np.uint8
