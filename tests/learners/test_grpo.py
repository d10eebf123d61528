"""Fine-tuning from forked states: what a group is, its losses by hand, and that it gets better at a tiny task."""

from pathlib import Path

import numpy as np
import pytest
import torch

from headstart.envs.banks import bank
from headstart.envs.collect import collect_demos
from headstart.envs.errors import Diverged, UsageError
from headstart.envs.evaluation import evaluate
from headstart.envs.simulator import Simulator
from headstart.envs.vector import HeadstartVecEnv, make_vec_env
from headstart.learners import BC, GRPO, PPO, BCConfig, GRPOConfig
from headstart.learners.grpo import Attempts, group_advantage
from headstart.models import HeadstartPolicy
from headstart.models.policy import as_tensors

ENV_ID = "MiniGrid-DoorKey-5x5-v0"
HISTORY, HORIZON = 1, 40


@pytest.fixture
def env(cache: Path) -> HeadstartVecEnv:
    return make_vec_env(ENV_ID, 8, seed=0, n_levels=256, history=HISTORY, horizon=HORIZON, cache=cache)


@pytest.fixture
def policy(env: HeadstartVecEnv, cache: Path) -> HeadstartPolicy:
    """With a little success: of some groups, some attempts end well."""
    extractor = {"memory": 0, "width": 32, "channels": 8}
    policy = PPO(env=env, seed=0, policy_kwargs={"features_extractor_kwargs": extractor}).policy
    BC(policy, BCConfig(updates=150, batch_size=32)).fit(
        collect_demos(ENV_ID, 2, history=HISTORY, horizon=HORIZON, cache=cache)
    )
    return policy


# ---- groups ----
def test_advantages_worked_by_hand() -> None:
    returns = np.array([[1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.5, 0.5], [0.0, 0.0, 2.0, 2.0]])
    root = np.sqrt(3)
    wanted = [[root, -1 / root, -1 / root, -1 / root], [0, 0, 0, 0], [-1, -1, 1, 1]]
    np.testing.assert_allclose(group_advantage(returns), wanted, atol=1e-12)


def test_equal_returns_are_equal_whatever_their_mean_is_rounded_to() -> None:
    returns = np.repeat(np.random.default_rng(0).random((50, 1)), 6, axis=1)
    assert (returns.std(axis=1) > 0).any()  # this does happen
    assert (group_advantage(returns) == 0).all()


def test_a_group_starts_in_one_and_the_same_state(policy: HeadstartPolicy, env: HeadstartVecEnv) -> None:
    """And what is kept of it are the steps of groups that differ, each with the advantage of its attempt."""
    grpo = GRPO(policy, env, GRPOConfig(states=12, group=4, walk=6))
    states, walked = grpo.states()
    assert len(states) == 12
    assert not states.done.any()
    assert len(np.unique(states.t)) > 1  # the policy has come to them
    assert walked >= states.t.sum()
    before = states.state_hash()
    attempts = grpo.attempt(states, walked)
    assert (states.state_hash() == before).all()
    assert attempts.returns.shape == (len(states), 4)
    differ = np.ptp(attempts.returns, axis=1) > 0
    assert 0 < differ.sum() < len(states)  # otherwise this shows nothing
    first = slice(4 * int(differ.sum()))
    start = states.observe()["frames"][differ]
    np.testing.assert_equal(attempts.obs["frames"][first], np.repeat(start, 4, axis=0))
    np.testing.assert_allclose(
        attempts.advantage[first], group_advantage(attempts.returns)[differ].reshape(-1), rtol=1e-6
    )
    p = policy.probabilities(attempts.obs)
    np.testing.assert_allclose(attempts.log_p, np.log(p[np.arange(len(p)), attempts.action]), rtol=1e-4, atol=1e-5)


def test_every_step_is_counted(policy: HeadstartPolicy, env: HeadstartVecEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    step, counted = Simulator.step, []

    def counting(simulator: Simulator, action: np.ndarray) -> int:
        counted.append(step(simulator, action))
        return counted[-1]

    monkeypatch.setattr(Simulator, "step", counting)
    grpo = GRPO(policy, env, GRPOConfig(states=4, group=2, epochs=1)).learn(1)
    assert grpo.num_timesteps == sum(counted) > 0


# ---- updates ----
def test_losses_worked_by_hand(policy: HeadstartPolicy, env: HeadstartVecEnv) -> None:
    grpo = GRPO(policy, env, GRPOConfig(clip_range=0.2, kl_coef=0.5, ent_coef=0.1))
    policy.weights()["action_net.bias"] += torch.linspace(-1, 1, 7)
    obs = as_tensors(env.reset(), "cpu")
    p = torch.softmax(policy.logits(obs).double(), 1).detach().numpy()
    q = torch.softmax(grpo.anchor.logits(obs).double(), 1).detach().numpy()
    action, advantage = np.arange(8) % 7, np.linspace(-1, 1, 8)
    then = p[np.arange(8), action] / np.array([0.5, 0.9, 1.0, 1.5] * 2)  # so that the ratio is this
    ratio = np.array([0.5, 0.9, 1.0, 1.5] * 2)
    gain = np.minimum(advantage * ratio, advantage * ratio.clip(0.8, 1.2)).mean()
    kl, entropy = (p * np.log(p / q)).sum(1).mean(), -(p * np.log(p)).sum(1).mean()
    tensors = [torch.as_tensor(x) for x in (action, np.log(then).astype(np.float32), advantage.astype(np.float32))]
    loss, metrics = grpo.loss(obs, *tensors)
    assert metrics["grpo/kl_to_init"] == pytest.approx(kl, rel=1e-4)
    assert kl > 0.1
    assert metrics["grpo/clip_fraction"] == 0.5
    assert loss.item() == pytest.approx(-gain + 0.5 * kl - 0.1 * entropy, rel=1e-4)


def test_in_an_update_the_anchor_encodes_each_view_once(
    policy: HeadstartPolicy, env: HeadstartVecEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    grpo, kept, encoded = GRPO(policy, env, GRPOConfig(group=4, epochs=3, batch_size=16)), [], []
    view, update = grpo.anchor.features_extractor.view, grpo.update
    encode = view.forward  # type: ignore[union-attr]
    monkeypatch.setattr(view, "forward", lambda frame: (encoded.extend(frame.tolist()), encode(frame))[1])
    monkeypatch.setattr(grpo, "update", lambda attempts: (kept.append(attempts), update(attempts))[1])
    for _ in range(2):  # and in the next one again: whoever goes on from there has no more
        kept.clear(), encoded.clear()
        grpo.learn(1)
        seen = np.unique(kept[0].obs["frames"][:, -1, :49], axis=0)  # without memory, and all of one mission
        assert len(encoded) == len(seen) > 16


def test_a_second_call_goes_on_for_as_many_steps_again(policy: HeadstartPolicy, env: HeadstartVecEnv) -> None:
    """As that of PPO does."""
    grpo = GRPO(policy, env, GRPOConfig(states=4, group=2, epochs=1)).learn(1)
    once = grpo.num_timesteps
    assert grpo.learn(1).num_timesteps > once > 1


def test_the_anchor_and_the_critic_are_left_alone(policy: HeadstartPolicy, env: HeadstartVecEnv) -> None:
    critic = [parameter.detach().clone() for parameter in policy.critic_parameters()]
    before = {name: value.clone() for name, value in policy.weights().items()}
    grpo = GRPO(policy, env, GRPOConfig(states=8, group=4)).learn(1)
    assert all(torch.equal(a, b) for a, b in zip(critic, policy.critic_parameters(), strict=True))
    assert all(torch.equal(value, before[name]) for name, value in grpo.anchor.weights().items())
    assert not torch.equal(policy.weights()["action_net.bias"], before["action_net.bias"])


def test_same_seed_same_weights(env: HeadstartVecEnv, policy: HeadstartPolicy) -> None:
    weights = {name: value.clone() for name, value in policy.weights().items()}
    results = []
    for seed in (0, 0, 1):
        policy.load_weights(weights)
        torch.manual_seed(len(results))
        env.reset()
        GRPO(policy, env, GRPOConfig(states=4, group=4), seed=seed).learn(500)
        results.append(policy.weights()["action_net.bias"].clone())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_attempts_that_are_all_alike_teach_nothing(policy: HeadstartPolicy, env: HeadstartVecEnv) -> None:
    before = {name: value.clone() for name, value in policy.weights().items()}
    grpo, said = GRPO(policy, env, GRPOConfig(states=4, group=2)), []
    grpo.log = lambda step, metrics: said.append(metrics)
    weights = {"action_net.weight": torch.zeros(7, 64), "action_net.bias": torch.tensor([50.0, 0, 0, 0, 0, 0, 0])}
    policy.load_weights(before | weights)  # it turns on the spot
    grpo.learn(1)
    assert said == [{"grpo/return": 0.0, "grpo/groups_that_differ": 0.0}]
    changed = [name for name, value in policy.weights().items() if not torch.equal(value, before[name])]
    assert sorted(changed) == ["action_net.bias", "action_net.weight"]  # by this test


def test_one_attempt_is_no_group(policy: HeadstartPolicy, env: HeadstartVecEnv) -> None:
    with pytest.raises(UsageError, match="group=1"):
        GRPO(policy, env, GRPOConfig(group=1))


@pytest.mark.parametrize("name", ["states", "epochs", "batch_size"])
def test_nothing_to_learn_from(policy: HeadstartPolicy, env: HeadstartVecEnv, name: str) -> None:
    with pytest.raises(UsageError, match=f"{name}=0"):
        GRPO(policy, env, GRPOConfig(**{name: 0}))


def test_a_loss_that_is_no_number_is_an_error(policy: HeadstartPolicy, env: HeadstartVecEnv) -> None:
    grpo, obs = GRPO(policy, env), env.reset()
    nothing = np.full(8, np.nan, np.float32)
    attempts = Attempts(obs, np.zeros(8, np.int64), nothing, nothing, np.zeros((1, 8)), 8)
    with pytest.raises(Diverged, match="GRPO: the loss is nan"):
        grpo.update(attempts)


# ---- a tiny task ----
def test_it_gets_better(policy: HeadstartPolicy, env: HeadstartVecEnv, cache: Path) -> None:
    unseen = bank(ENV_ID, "test", 200, cache=cache)

    def success() -> float:
        rng = np.random.default_rng(0)
        return float(evaluate(unseen, policy.actor(), history=HISTORY, horizon=HORIZON, rng=rng)[0].mean())

    before = success()
    GRPO(policy, env, GRPOConfig(states=8, learning_rate=1e-3)).learn(40_000)  # with 25,000, two seeds in ten did not
    assert before < 0.6
    assert success() > before + 0.2
