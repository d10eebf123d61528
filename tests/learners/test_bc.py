"""Behaviour cloning: its loss by hand, what is one row to it, what it touches, that it can learn by heart."""

import dataclasses
import math
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from headstart.envs import engine
from headstart.envs.collect import branch, collect_demos
from headstart.envs.datasets import demonstrate
from headstart.envs.errors import DataError, Diverged, UsageError
from headstart.envs.mirror import mirror_obs
from headstart.envs.simulator import Obs
from headstart.envs.transitions import Demos
from headstart.envs.vector import HeadstartVecEnv, make_vec_env
from headstart.learners import BC, PPO, BCConfig
from headstart.learners.bc import imitation_targets, with_mirrored
from headstart.models import HeadstartPolicy
from headstart.models.policy import as_tensors

ENV_ID = "MiniGrid-DoorKey-5x5-v0"


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Demos:
    return collect_demos(ENV_ID, 1, history=2, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Demos:
    """So many that the same is seen again and again, with memory too."""
    return collect_demos(ENV_ID, 12, history=2, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> HeadstartVecEnv:
    return make_vec_env(ENV_ID, 2, history=2, n_levels=8, cache=tmp_path_factory.mktemp("cache"))


def fresh_policy(env: HeadstartVecEnv, seed: int = 0, memory: int = 2) -> HeadstartPolicy:
    extractor = {"width": 32, "channels": 8, "memory": memory}
    settings = {"n_steps": 8, "batch_size": 16, "policy_kwargs": {"features_extractor_kwargs": extractor}}
    return PPO(HeadstartPolicy, env, seed=seed, **settings).policy


def weights(policy: HeadstartPolicy) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in policy.state_dict().items()}


def known_by_hand(obs: Obs, memory: int) -> np.ndarray:
    """(N, ...) what a policy with this memory can see of an observation: no compass, nothing older than its memory."""
    first = obs["actions"].shape[1] - memory
    view, action = obs["frames"][:, first:, :49], obs["actions"][:, first:]
    return np.concatenate([part.reshape(len(action), -1) for part in (view, action, obs["mission"])], axis=1)


def looked_at_twice(demos: Demos) -> tuple[Obs, np.ndarray]:
    """All pairs, then all pairs in the mirror."""
    mirrored, action = mirror_obs(demos.obs), demos.action.copy()
    action[demos.action == engine.LEFT], action[demos.action == engine.RIGHT] = engine.RIGHT, engine.LEFT
    obs = {name: np.concatenate([value, mirrored[name]]) for name, value in demos.obs.items()}
    return obs, np.concatenate([demos.action, action])


# ---- loss ----
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_loss_worked_by_hand(env: HeadstartVecEnv, smoothing: float) -> None:
    """Of the share q of an action, (1 - e) q + e/A is its label; the second row counts three times the first."""
    p = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.3, 0.6]])
    policy = fresh_policy(env)
    policy.logits = lambda obs: torch.log(p)  # type: ignore[method-assign]
    target, weight = torch.tensor([[0.75, 0.25, 0.0], [0.0, 1.0, 0.0]]), torch.tensor([0.5, 1.5])
    loss, metrics = BC(policy, BCConfig(label_smoothing=smoothing)).loss({}, target, weight)
    wanted = 0.0
    for row, share, times in zip(p.tolist(), target.tolist(), weight.tolist(), strict=True):
        label = [smoothing / 3 + (1 - smoothing) * q for q in share]
        wanted -= times * sum(q * math.log(x) for q, x in zip(label, row, strict=True)) / 2
    assert float(loss) == pytest.approx(wanted)
    # three in four of the experts at the first row, none at the second
    assert metrics == {"bc/loss": pytest.approx(wanted), "bc/accuracy": pytest.approx(0.5 * 0.75 / 2)}


@pytest.mark.parametrize("memory", [0, 1, 2])
@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_rows_have_the_gradient_of_all_pairs(
    many: Demos, env: HeadstartVecEnv, memory: int, mirror: bool, smoothing: float
) -> None:
    """Plain cross-entropy over every pair (in the mirror too), and the same for a fraction of the work."""
    policy = fresh_policy(env, memory=memory).double()
    torch.nn.init.normal_(policy.action_net.weight)  # sure of something, so that there is much to correct
    rows, target, weight = imitation_targets(policy, many, mirror)
    learner = BC(policy, BCConfig(label_smoothing=smoothing))
    of_rows, metrics = learner.loss(as_tensors(rows, "cpu"), torch.as_tensor(target), torch.as_tensor(weight))
    obs, action = looked_at_twice(many) if mirror else (many.obs, many.action)
    logits = policy.logits(as_tensors(obs, "cpu"))
    of_pairs = F.cross_entropy(logits, torch.as_tensor(action), label_smoothing=smoothing)
    assert len(target) < 0.8 * len(action)
    torch.testing.assert_close(of_rows, of_pairs, rtol=1e-6, atol=0)
    assert metrics["bc/accuracy"] == pytest.approx(float((logits.argmax(1).numpy() == action).mean()))
    parameters = list(policy.actor_parameters())
    for one, other in zip(*(torch.autograd.grad(loss, parameters) for loss in (of_rows, of_pairs)), strict=True):
        assert other.abs().max() > 1e-6
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


# ---- distinct observations ----
@pytest.mark.parametrize("memory", [0, 1, 2])
@pytest.mark.parametrize("mirror", [False, True])
def test_each_row_is_what_the_policy_can_tell_apart(
    many: Demos, env: HeadstartVecEnv, memory: int, mirror: bool
) -> None:
    rows, target, weight = imitation_targets(fresh_policy(env, memory=memory), many, mirror)
    obs, action = looked_at_twice(many) if mirror else (many.obs, many.action)
    known, pairs = known_by_hand(rows, memory), known_by_hand(obs, memory)
    assert len(known) == len(np.unique(known, axis=0)) == len(np.unique(pairs, axis=0))
    assert (target.dtype, weight.dtype) == (np.float32, np.float32)
    assert weight.mean() == pytest.approx(1, rel=1e-6)
    for seen, share, times in zip(known, target, weight, strict=True):
        taken = action[(pairs == seen).all(1)]
        np.testing.assert_allclose(share, np.bincount(taken, minlength=7) / len(taken), rtol=1e-6)
        assert times == pytest.approx(len(taken) * len(known) / len(action), rel=1e-6)


def test_experts_who_disagree_share_a_row(many: Demos, env: HeadstartVecEnv) -> None:
    """Without memory some expert states look alike and were left in different ways."""
    _, target, _ = imitation_targets(fresh_policy(env, memory=0), many, mirror=False)
    assert ((target > 0).sum(1) > 1).any()
    np.testing.assert_allclose(target.sum(1), 1, rtol=1e-6)


@pytest.mark.parametrize("memory", [0, 1])
def test_what_the_policy_does_not_read_makes_no_row(many: Demos, env: HeadstartVecEnv, memory: int) -> None:
    """The compass, and frames and actions older than the memory."""
    rng, older = np.random.default_rng(0), many.history - memory
    obs = {name: value.copy() for name, value in many.obs.items()}
    obs["frames"][:, :, 49] = rng.integers(4, size=obs["frames"].shape[:2])
    obs["frames"][:, :older] = rng.integers(180, size=obs["frames"][:, :older].shape)
    obs["actions"][:, :older] = rng.integers(7, size=obs["actions"][:, :older].shape)
    policy = fresh_policy(env, memory=memory)
    (_, *before), (_, *after) = (
        imitation_targets(policy, demos, mirror=False) for demos in (many, dataclasses.replace(many, obs=obs))
    )
    np.testing.assert_equal(after, before)


# ---- fits ----
def test_one_demonstration_is_learned_by_heart(demos: Demos, env: HeadstartVecEnv) -> None:
    policy = fresh_policy(env)
    config = BCConfig(
        updates=150, batch_size=32, learning_rate=3e-3, label_smoothing=0.0, hidden_past=0.0, mirror=False
    )
    fitted = BC(policy, config).fit(demos)
    assert (policy.probabilities(demos.obs).argmax(1) == demos.action).all()
    assert fitted.metrics["bc/loss"] < 0.05
    assert (fitted.updates, fitted.env_steps, policy.warm_start) == (150, 0, "bc")


def test_its_mirror_image_is_learned_with_it(demos: Demos, env: HeadstartVecEnv) -> None:
    """A view that is its own mirror image has two right answers, and the policy knows both."""
    policy = fresh_policy(env)
    BC(policy, BCConfig(updates=200, batch_size=32, learning_rate=3e-3, label_smoothing=0.0)).fit(demos)
    rows, target, _ = imitation_targets(policy, demos, mirror=True)
    assert len(target) > 1.5 * len(demos)
    assert {0.5, 1.0} == set(target.max(1).tolist())
    np.testing.assert_allclose(policy.probabilities(rows), target, atol=0.1)


class Renumbered(gymnasium.ActionWrapper):
    """0 is forward, 1 turns left, 2 turns right."""

    def __init__(self) -> None:
        super().__init__(gymnasium.make("MiniGrid-Empty-5x5-v0"))
        self.action_space = gymnasium.spaces.Discrete(3)

    def action(self, action: Any) -> int:
        return (2, 0, 1)[action]


def test_minigrid_in_a_wrapper_has_no_mirror_image(demos: Demos, env: HeadstartVecEnv) -> None:
    """Its views are MiniGrid's, but nobody knows which action turns left."""
    actions = iter([0, 0, 2, 0, 0])
    wrapped = demonstrate(Renumbered, lambda _: next(actions), 1, horizon=20, mode="deepcopy")
    policy = fresh_policy(make_vec_env(wrapped, 2), memory=0)
    assert policy.layout.grid
    assert not policy.has_mirror
    assert fresh_policy(env).has_mirror
    both = [imitation_targets(policy, wrapped, mirror) for mirror in (True, False)]
    np.testing.assert_equal(both[0], both[1])
    branches = branch(wrapped)
    assert with_mirrored(policy, branches, mirror=True) == [branches]


@pytest.mark.parametrize("mirror", [False, True])
def test_a_batch_keeps_observations_labels_and_weights_together(
    monkeypatch: pytest.MonkeyPatch, many: Demos, env: HeadstartVecEnv, mirror: bool
) -> None:
    policy = fresh_policy(env)
    rows, target, weight = imitation_targets(policy, many, mirror)
    known = {row.tobytes(): (q, w) for row, q, w in zip(known_by_hand(rows, 2), target, weight, strict=True)}
    learner, seen = BC(policy, BCConfig(updates=30, mirror=mirror, hidden_past=0.0)), set()
    loss = learner.loss

    def watched(obs: dict[str, Tensor], target: Tensor, weight: Tensor) -> Any:
        shown = known_by_hand({name: value.numpy() for name, value in obs.items()}, 2)
        for row, q, w in zip(shown, target.numpy(), weight.numpy(), strict=True):
            np.testing.assert_equal((q, w), known[row.tobytes()])
            seen.add(row.tobytes())
        return loss(obs, target, weight)

    monkeypatch.setattr(learner, "loss", watched)
    learner.fit(many)
    assert seen == known.keys()


@pytest.mark.parametrize(("past", "actions"), [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5)])
def test_pasts_are_hidden_while_it_learns(
    monkeypatch: pytest.MonkeyPatch, many: Demos, env: HeadstartVecEnv, past: float, actions: float
) -> None:
    learner, taken = BC(fresh_policy(env), BCConfig(updates=5, hidden_past=past, hidden_actions=actions)), []
    loss = learner.loss
    monkeypatch.setattr(learner, "loss", lambda obs, *labels: (taken.append(obs["actions"]), loss(obs, *labels))[1])
    learner.fit(many)
    shown = torch.cat(taken)
    assert (shown >= 7).all()  # nothing that was taken is seen
    assert (shown == 7).all(1).any()
    assert (shown == 8).any() == (actions > 0)
    assert ((many.obs["actions"] < 7).any(1)).any()  # there was something to hide


def test_more_samples_than_there_are_cannot_be_hidden() -> None:
    with pytest.raises(UsageError, match=r"hidden_past=0.7 and hidden_actions=0.4 .* make 1 at most"):
        BCConfig(hidden_past=0.7, hidden_actions=0.4)
    assert BCConfig(hidden_past=0.7, hidden_actions=0.3).hidden_actions == 0.3  # all of them can


def test_trunk_and_actor_are_fitted_and_the_critic_is_not(demos: Demos, env: HeadstartVecEnv) -> None:
    policy = fresh_policy(env)
    before = weights(policy)
    BC(policy, BCConfig(updates=3, batch_size=8)).fit(demos)
    critic = {id(parameter) for parameter in policy.critic_parameters()}
    for name, parameter in policy.named_parameters():
        changed = not torch.equal(parameter, before[name])
        assert changed == (id(parameter) not in critic), name
    assert not policy.optimizer.state  # PPO starts with no momentum


def test_the_seed_decides_and_not_what_happened_before(demos: Demos, env: HeadstartVecEnv) -> None:
    policies = []
    for noise, seed in ((0, 5), (3, 5), (0, 6)):
        policy = fresh_policy(env)
        torch.manual_seed(noise)
        torch.randn(noise)
        BC(policy, BCConfig(updates=5, batch_size=8), seed=seed).fit(demos)
        policies.append(weights(policy))
    assert all(torch.equal(policies[0][name], policies[1][name]) for name in policies[0])
    assert any(not torch.equal(policies[0][name], policies[2][name]) for name in policies[0])


def test_updates_are_logged(demos: Demos, env: HeadstartVecEnv) -> None:
    logged: list[tuple[int, list[str]]] = []
    config = BCConfig(updates=120, batch_size=4)
    BC(fresh_policy(env), config, log=lambda update, metrics: logged.append((update, sorted(metrics)))).fit(demos)
    assert [update for update, _ in logged] == [50, 100]
    assert all(names == ["bc/accuracy", "bc/loss"] for _, names in logged)


def test_a_loss_that_is_no_number_is_an_error(demos: Demos, env: HeadstartVecEnv) -> None:
    policy = fresh_policy(env)
    torch.nn.init.constant_(policy.action_net.bias, math.nan)
    with pytest.raises(Diverged, match=r"bc: the loss is nan at update 0.*learning rate") as error:
        BC(policy, BCConfig(updates=3)).fit(demos)
    assert error.value.exit_code == 5


def test_logits_do_not_depend_on_the_batch(demos: Demos, env: HeadstartVecEnv) -> None:
    """What is learned in batches is what acts alone: nothing in the policy mixes the states of a batch."""
    policy = fresh_policy(env)
    BC(policy, BCConfig(updates=20, batch_size=16)).fit(demos)
    obs = as_tensors(demos.obs, "cpu")
    alone = torch.cat(
        [policy.logits({name: value[i : i + 1] for name, value in obs.items()}) for i in range(len(demos))]
    )
    torch.testing.assert_close(policy.logits(obs), alone, rtol=1e-4, atol=1e-5)


# ---- early stopping ----
def test_the_weights_that_predict_held_out_demonstrations_best_are_kept(env: HeadstartVecEnv, many: Demos) -> None:
    """By hand: the loss on the held-out quarter is the smallest of those measured, and it is the kept policy's."""
    logged: list[dict[str, float]] = []
    policy = fresh_policy(env)
    config = BCConfig(updates=300, batch_size=32, weight_decay=0.0, label_smoothing=0.0, held_out=0.25)
    learner = BC(policy, config, log=lambda update, metrics: logged.append(metrics))
    fitted = learner.fit(many)
    learnt, unseen = learner._split(many)
    assert (len(learnt.length), len(unseen.length)) == (9, 3)
    assert sorted([*learnt.seed, *unseen.seed]) == sorted(many.seed)
    p = policy.probabilities(unseen.obs)[np.arange(len(unseen)), unseen.action]
    losses = [metrics["bc/held_out_loss"] for metrics in logged]
    assert -np.log(p).mean() == pytest.approx(min(losses), rel=1e-4)
    assert fitted.metrics["bc/held_out_loss"] == min(losses)
    assert min(losses) < losses[-1]  # later it learned the rest by heart
    assert fitted.updates == 300


def test_held_out_demonstrations_are_not_learned_from(env: HeadstartVecEnv, many: Demos) -> None:
    learner = BC(fresh_policy(env), BCConfig(updates=2, batch_size=8, held_out=0.5))
    _, unseen = learner._split(many)
    action = many.action.copy()
    action[np.isin(many.seed[many.episode], unseen.seed)] = 6
    other = BC(fresh_policy(env), learner.config)
    learner.fit(many)
    other.fit(dataclasses.replace(many, action=action))
    for one, two in zip(weights(learner.policy).values(), weights(other.policy).values(), strict=True):
        assert torch.equal(one, two)


def test_holding_out_everything_is_refused(env: HeadstartVecEnv, demos: Demos) -> None:
    with pytest.raises(DataError, match=r"holds out 1 of 1 demonstrations"):
        BC(fresh_policy(env), BCConfig(updates=2, held_out=0.2)).fit(demos)
