"""Behaviour cloning: its loss by hand, what it touches, that it can learn a batch by heart."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from headstart.envs.collect import collect_demos
from headstart.envs.errors import Diverged
from headstart.envs.transitions import Demos
from headstart.envs.vector import HeadstartVecEnv, make_vec_env
from headstart.learners import BC, PPO, BCConfig
from headstart.models import HeadstartPolicy
from headstart.models.policy import as_tensors

ENV_ID = "MiniGrid-DoorKey-5x5-v0"


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Demos:
    return collect_demos(ENV_ID, 1, history=2, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> HeadstartVecEnv:
    return make_vec_env(ENV_ID, 2, history=2, n_levels=8, cache=tmp_path_factory.mktemp("cache"))


def fresh_policy(env: HeadstartVecEnv, seed: int = 0) -> HeadstartPolicy:
    extractor = {"width": 32, "channels": 8}
    settings = {"n_steps": 8, "batch_size": 16, "policy_kwargs": {"features_extractor_kwargs": extractor}}
    return PPO(HeadstartPolicy, env, seed=seed, **settings).policy


def weights(policy: HeadstartPolicy) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in policy.state_dict().items()}


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_loss_worked_by_hand(smoothing: float) -> None:
    """The expert's action has 1 - e + e/A of the label, each other action e/A."""
    p = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.3, 0.6]])
    policy: Any = SimpleNamespace(logits=lambda obs: torch.log(p))
    loss, metrics = BC(policy, BCConfig(label_smoothing=smoothing)).loss({}, torch.tensor([0, 1]))
    wanted = 0.0
    for row, action in zip(p.tolist(), (0, 1), strict=True):
        label = [smoothing / 3 + (1 - smoothing) * (a == action) for a in range(3)]
        wanted -= sum(q * math.log(x) for q, x in zip(label, row, strict=True)) / 2
    assert float(loss) == pytest.approx(wanted)
    assert metrics == {"bc/loss": pytest.approx(wanted), "bc/accuracy": 0.5}


def test_one_demonstration_is_learned_by_heart(demos: Demos, env: HeadstartVecEnv) -> None:
    policy = fresh_policy(env)
    config = BCConfig(updates=150, batch_size=32, learning_rate=3e-3, label_smoothing=0.0)
    fitted = BC(policy, config).fit(demos)
    action = policy.probabilities(demos.obs).argmax(1)
    assert (action == demos.action).all()
    assert fitted.metrics["bc/loss"] < 0.05
    assert (fitted.updates, fitted.env_steps, policy.warm_start) == (150, 0, "bc")


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
