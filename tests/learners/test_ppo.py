"""PPO that does not forget: what it starts from, what waits, what anchors it, its losses by hand, save and load."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import weights
from stable_baselines3 import PPO as StablePPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.ppo import MultiInputPolicy
from torch import Tensor

from headstart.envs.collect import collect_demos
from headstart.envs.errors import Diverged, UsageError
from headstart.envs.transitions import Demos
from headstart.envs.vector import Advance, HeadstartVecEnv, make_vec_env
from headstart.learners import BC, IWM, PPO, BCConfig
from headstart.learners.bc import imitation_targets
from headstart.models import HeadstartPolicy
from headstart.models.policy import as_tensors

ENV_ID = "MiniGrid-DoorKey-5x5-v0"
ROLLOUT = 8 * 16  # environment steps


@pytest.fixture(scope="module")
def demos(cache: Path) -> Demos:
    return collect_demos(ENV_ID, 2, history=2, cache=cache)


@pytest.fixture
def made(cache: Path, demos: Demos) -> Callable[..., PPO]:
    def make(*, warm: bool = True, **settings: Any) -> PPO:
        env = make_vec_env(ENV_ID, 8, seed=0, history=2, horizon=40, n_levels=64, cache=cache)
        extractor = {"width": 16, "channels": 4}
        defaults = {"n_steps": 16, "batch_size": 64, "n_epochs": 2, "learning_rate": 1e-3, "seed": 0}
        defaults |= {"critic_updates": 2, "critic_variance": 2.0, "actor_warm_up": 4}
        kwargs = {"policy_kwargs": {"features_extractor_kwargs": extractor}}
        model = PPO(HeadstartPolicy, env, **{**defaults, **kwargs, **settings})
        if warm:
            BC(model.policy, BCConfig(updates=80, batch_size=16, learning_rate=3e-3)).fit(demos)
        return model

    return make


class Watch(BaseCallback):
    """Calls back before each rollout (and so between updates), and after each."""

    def __init__(self, before: Callable[[], None] = lambda: None, after: Callable[[], None] = lambda: None):
        super().__init__()
        self._on_rollout_start, self._on_rollout_end = before, after  # type: ignore[method-assign]

    def _on_step(self) -> bool:
        return True


def same(policy: HeadstartPolicy, before: dict[str, Tensor], *, critic: bool) -> set[bool]:
    """Whether the weights of the critic, or of trunk and actor, are bit for bit what they were."""
    critics = {id(parameter) for parameter in policy.critic_parameters()}
    chosen = [(name, p) for name, p in policy.named_parameters() if (id(p) in critics) == critic]
    return {torch.equal(p, before[name]) for name, p in chosen}


# ---- where it starts ----
def test_ppo_starts_from_the_logits_of_the_fitted_policy(made: Callable[..., PPO], demos: Demos) -> None:
    """Bit for bit: before its first update, and as long as the critic learns alone."""
    model = made()
    obs = as_tensors(demos.obs, "cpu")
    fitted = model.policy.logits(obs).detach()
    seen: list[Tensor] = []
    model.learn(4 * ROLLOUT, callback=Watch(lambda: seen.append(model.policy.logits(obs).detach())))
    assert [torch.equal(logits, fitted) for logits in seen] == [True, True, True, False]
    assert not torch.equal(made(warm=False).policy.logits(obs), fitted)  # it does come from the fit


def test_while_the_critic_learns_alone_trunk_and_actor_stay_bit_identical(made: Callable[..., PPO]) -> None:
    model = made(critic_updates=3)
    before = weights(model.policy)
    model.learn(3 * ROLLOUT, callback=Watch(after=lambda: model.rollout_buffer.returns.fill(0.5)))
    assert same(model.policy, before, critic=False) == {True}
    assert same(model.policy, before, critic=True) == {False}
    assert model.actor_started_at is None
    model.learn(ROLLOUT, reset_num_timesteps=False)
    assert model.actor_started_at == 4 * ROLLOUT
    assert True not in same(model.policy, before, critic=False)


def test_the_actor_starts_as_soon_as_the_critic_explains_enough(made: Callable[..., PPO]) -> None:
    model = made(critic_updates=100, critic_variance=-1e9)
    before = weights(model.policy)
    model.learn(ROLLOUT, callback=Watch(after=lambda: model.rollout_buffer.returns[:1].fill(1.0)))
    assert model.actor_started_at == ROLLOUT
    assert False in same(model.policy, before, critic=False)


def test_the_critics_values_begin_at_zero(made: Callable[..., PPO]) -> None:
    for warm in (True, False):
        model, values = made(warm=warm), []
        model.learn(ROLLOUT, callback=Watch(after=lambda m=model, v=values: v.append(m.rollout_buffer.values.copy())))
        assert (values[0] == 0).all() == warm


def test_the_critics_optimizer_goes_on_from_rollout_to_rollout(made: Callable[..., PPO]) -> None:
    model, batches = made(critic_updates=3), 2 * ROLLOUT // 64  # two epochs
    model.learn(5 * ROLLOUT)
    trunk, actor, critic = ([model.policy.optimizer.state[p] for p in g["params"]] for g in groups(model))
    assert {int(state["step"]) for state in critic} == {5 * batches}
    assert {int(state["step"]) for state in [*trunk, *actor]} == {2 * batches}  # from the actor's start on


def groups(model: PPO) -> list[dict[str, Any]]:
    """The optimizer's: trunk, actor, critic."""
    return model.policy.optimizer.param_groups


def test_the_critic_does_learn(made: Callable[..., PPO]) -> None:
    """From returns that are all one, it learns to expect one."""
    model, errors = made(critic_updates=100), []

    def replace() -> None:
        model.rollout_buffer.returns[:] = 1
        errors.append(float(((model.rollout_buffer.values - 1) ** 2).mean()))

    model.learn(10 * ROLLOUT, callback=Watch(after=replace))
    assert errors[-1] < errors[0] / 5


def test_without_a_warm_start_nothing_waits_and_nothing_anchors(made: Callable[..., PPO]) -> None:
    model = made(warm=False)
    before = weights(model.policy)
    model.learn(ROLLOUT)
    assert model.warm_start_policy is None
    assert model.actor_started_at == ROLLOUT
    assert False in same(model.policy, before, critic=False)
    assert model.policy.optimizer.param_groups[0]["lr"] == 1e-3
    recorded = model.logger.name_to_value
    assert "rl/kl_to_init" not in recorded
    assert recorded["rl/kl_coef"] == 0


def test_without_a_warm_start_it_is_stable_baselines_ppo(made: Callable[..., PPO]) -> None:
    """The same updates as those of the class it comes from, from the same seed."""
    settings = {"ent_coef": 0.02, "n_epochs": 4, "learning_rate": 5e-3, "clip_range": 0.02}  # much is clipped
    settings |= {"target_kl": None}
    ours, theirs = made(warm=False, **settings), made(warm=False, **settings)
    theirs.train = lambda: StablePPO.train(theirs)  # type: ignore[method-assign]
    for model in (ours, theirs):
        model.set_random_seed(0)
        model.learn(3 * ROLLOUT)
    for name, value in weights(ours.policy).items():
        torch.testing.assert_close(value, weights(theirs.policy)[name], rtol=1e-3, atol=1e-5)


# ---- what holds it ----
def test_the_anchor_is_a_frozen_copy(made: Callable[..., PPO]) -> None:
    model = made(critic_updates=0)
    before = weights(model.policy)
    model.learn(3 * ROLLOUT)
    anchor = model.warm_start_policy
    assert anchor is not None
    assert False in same(model.policy, before, critic=False)
    assert same(anchor, before, critic=False) == {True}
    assert not any(parameter.requires_grad for parameter in anchor.parameters())
    optimised = {id(parameter) for group in model.policy.optimizer.param_groups for parameter in group["params"]}
    assert not optimised & {id(parameter) for parameter in anchor.parameters()}
    model.learn(ROLLOUT, reset_num_timesteps=False)
    assert model.warm_start_policy is anchor  # to go on is not to start again


def test_the_anchor_holds(made: Callable[..., PPO]) -> None:
    moved = []
    for kl_coef in (1e-6, 30.0):
        model = made(critic_updates=0, actor_warm_up=0, kl_coef=kl_coef, kl_decay=1e9, ent_coef=0.3)
        model.learn(8 * ROLLOUT)
        moved.append(float(model.logger.name_to_value["rl/kl_to_init"]))
    assert moved[1] < moved[0] / 5


def test_the_actors_learning_rate_grows(made: Callable[..., PPO]) -> None:
    model, rates = made(critic_updates=1, actor_warm_up=4), []
    model.learn(7 * ROLLOUT, callback=Watch(lambda: rates.append(model.policy.optimizer.param_groups[0]["lr"])))
    assert rates[2:] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3])  # before the third rollout, and on


@pytest.mark.parametrize("alone", [0, 3])
def test_the_anchor_is_let_go_from_the_actors_start_on(made: Callable[..., PPO], alone: int) -> None:
    """From kl_coef, which is all there while the critic learns alone, to nothing after a share of training."""
    model, weight = made(critic_updates=alone, kl_coef=0.8, kl_decay=0.5), []
    model.learn(8 * ROLLOUT, callback=Watch(lambda: weight.append(model.logger.name_to_value.get("rl/kl_coef"))))
    weight.append(model.logger.name_to_value["rl/kl_coef"])
    falling = [0.8, 0.6, 0.4, 0.2, 0.0, 0.0, 0.0, 0.0]
    assert weight[1:] == pytest.approx([*[0.8] * alone, *falling][:8])


@pytest.mark.parametrize("reset", [True, False])
def test_what_has_been_let_go_stays_let_go(made: Callable[..., PPO], reset: bool) -> None:
    """In another call of `learn`, however long that is and whatever it does to the number of steps."""
    model, weight = made(critic_updates=0, kl_coef=0.8, kl_decay=2.0), []
    watch = Watch(after=lambda: weight.append(model.kl_coef * model._left(model.kl_decay)))
    model.learn(2 * ROLLOUT, callback=watch)
    model.learn(4 * ROLLOUT, callback=watch, reset_num_timesteps=reset)
    assert weight == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0, 0.0])


@pytest.mark.parametrize("reset", [True, False])
def test_what_learned_before_it_was_fitted_has_all_cures_from_then_on(
    made: Callable[..., PPO], demos: Demos, reset: bool
) -> None:
    model, said = made(warm=False, critic_updates=1, kl_coef=0.8, kl_decay=1.0), []
    train = model.train

    def watched() -> None:
        train()
        said.append([model.logger.name_to_value[f"rl/{name}"] for name in ("critic_only", "kl_coef")])

    model.train = watched  # type: ignore[method-assign]
    model.learn(3 * ROLLOUT)
    BC(model.policy, BCConfig(updates=2)).fit(demos)
    model.learn(3 * ROLLOUT, reset_num_timesteps=reset)
    assert said == [[0, 0.0]] * 3 + [[1, 0.8], [0, 0.8], [0, pytest.approx(0.8 * 2 / 3)]]


@pytest.mark.parametrize("saved", [False, True])
def test_what_is_fitted_once_more_is_held_to_the_last_fit(
    made: Callable[..., PPO], demos: Demos, tmp_path: Path, saved: bool
) -> None:
    """A quick try, then the real thing: no anchor, critic, moment or faded weight of the first is left."""
    model = made(critic_updates=1, kl_coef=0.8, kl_decay=0.5)
    model.learn(3 * ROLLOUT)
    first = model.warm_start_policy
    assert model.logger.name_to_value["rl/kl_coef"] < 0.8
    BC(model.policy, BCConfig(updates=20)).fit(demos)
    fitted = weights(model.policy)
    if saved:
        model.save(tmp_path / "model.zip")
        model = PPO.load(tmp_path / "model.zip", env=model.env)
    said: list[tuple[float, float]] = []
    rl = lambda name: model.logger.name_to_value[f"rl/{name}"]  # noqa: E731
    train = model.train
    model.train = lambda: (train(), said.append((rl("critic_only"), rl("kl_coef"))))  # type: ignore[method-assign]
    model._setup_learn(ROLLOUT, None)
    assert not model.policy.optimizer.state
    assert not any(parameter.any() for parameter in model.policy.value_net.parameters())
    model.learn(2 * ROLLOUT)
    assert said == [(1, 0.8), (0, 0.8)]
    assert model.warm_start_policy is not None
    assert model.warm_start_policy is not first
    assert same(model.warm_start_policy, fitted, critic=False) == {True}
    anchor = model.warm_start_policy
    model.learn(ROLLOUT, reset_num_timesteps=False)
    assert model.warm_start_policy is anchor  # nothing was fitted in between


def test_an_anchor_of_no_duration_holds_nothing(made: Callable[..., PPO]) -> None:
    model = made(critic_updates=0, kl_decay=0, rehearsal_decay=0)
    model.learn(ROLLOUT)
    assert model.logger.name_to_value["rl/kl_coef"] == 0


def test_alone_the_critic_learns_three_times_as_fast(made: Callable[..., PPO]) -> None:
    model, rates = made(critic_updates=1), []
    model.learn(3 * ROLLOUT, callback=Watch(lambda: rates.append(model.policy.optimizer.param_groups[2]["lr"])))
    assert rates[1:] == pytest.approx([3e-3, 1e-3])


def test_an_update_ends_when_it_has_led_too_far(made: Callable[..., PPO]) -> None:
    """With steps that are far too long; without the limit it goes on and on."""
    batches = {}
    for target_kl in (0.01, None):
        model = made(critic_updates=0, actor_warm_up=0, learning_rate=0.03, kl_coef=0.0, target_kl=target_kl)
        model.learn(ROLLOUT)
        batches[target_kl] = int(model.policy.optimizer.state[next(iter(groups(model)[0]["params"]))]["step"])
    assert batches[0.01] < batches[None] == 2 * ROLLOUT // 64


# ---- its losses ----
def test_losses_worked_by_hand(made: Callable[..., PPO]) -> None:
    """One update of one batch, from the rollout that it is made of: what is logged is what it is."""
    model = made(critic_updates=0, n_epochs=1, batch_size=ROLLOUT, kl_coef=0.5, kl_decay=1e9, ent_coef=0.1, vf_coef=0.7)
    model.learn(ROLLOUT)
    wanted: dict[str, float] = {}

    def leave_the_anchor() -> None:
        with torch.no_grad():
            model.policy.action_net.bias[:] = torch.linspace(-3, 3, 7)

    def work_out() -> None:
        buffer = copy.deepcopy(model.rollout_buffer)
        batch = next(buffer.get(ROLLOUT))
        assert model.warm_start_policy is not None
        with torch.no_grad():
            p = torch.softmax(model.policy.logits(batch.observations).double(), 1).numpy()  # type: ignore[arg-type]
            q = torch.softmax(model.warm_start_policy.logits(batch.observations).double(), 1).numpy()  # type: ignore[arg-type]
            value = model.policy.predict_values(batch.observations).flatten().numpy()  # type: ignore[arg-type]
        wanted["rl/kl_to_init"] = float((p * np.log(p / q)).sum(1).mean())
        wanted["train/entropy_loss"] = float((p * np.log(p)).sum(1).mean())
        wanted["train/value_loss"] = float(((batch.returns.numpy() - value) ** 2).mean())
        wanted["train/policy_gradient_loss"] = 0.0  # a ratio of one, and advantages with mean zero
        wanted["train/clip_fraction"] = 0.0
        wanted["train/loss"] = (
            0.7 * wanted["train/value_loss"] + 0.1 * wanted["train/entropy_loss"] + 0.5 * wanted["rl/kl_to_init"]
        )

    model.learn(ROLLOUT, callback=Watch(leave_the_anchor, work_out), reset_num_timesteps=False)
    found = {name: model.logger.name_to_value[name] for name in wanted}
    assert wanted["rl/kl_to_init"] > 0.1
    assert found == pytest.approx(wanted, rel=2e-3, abs=2e-5)


def test_advantages_that_are_all_nothing_are_not_blown_up(made: Callable[..., PPO]) -> None:
    """Scaled to one, rounding noise would move the actor as far as real advantages do."""
    moved = []
    for size in (1e-6, 1.0):
        model = made(n_epochs=1, ent_coef=0.0, vf_coef=0.0, kl_coef=0.0, critic_updates=0, actor_warm_up=0)
        before = weights(model.policy)

        def replace(model: PPO = model, size: float = size) -> None:
            model.rollout_buffer.rewards[0] = 1.0  # so that there is something to scale
            noise = np.random.default_rng(0).normal(size=model.rollout_buffer.advantages.shape)
            model.rollout_buffer.advantages = (size * noise).astype(np.float32)

        model.learn(ROLLOUT, callback=Watch(after=replace))
        after = weights(model.policy)
        moved.append(max(float((after[n] - before[n]).abs().max()) for n in before if "value_net" not in n))
    assert moved[0] < 0.1 * moved[1]


@pytest.mark.parametrize(("rewarded", "scaled"), [("never", False), ("as a guess", False), ("once", True)])
def test_while_nothing_is_rewarded_advantages_are_not_scaled(
    made: Callable[..., PPO], rewarded: str, scaled: bool
) -> None:
    """They are the critic's noise. Where time ran out, what the buffer has as reward is the critic's guess."""
    model = made(n_epochs=1, batch_size=ROLLOUT, critic_updates=0)

    def replace() -> None:
        model.rollout_buffer.rewards[:] = 0
        if rewarded != "never":
            model.rollout_buffer.rewards[3, 5] = 0.4
        if rewarded == "as a guess":
            model._rollout.truncated[3][5] = True
        noise = np.random.default_rng(0).normal(0.3, 0.1, size=model.rollout_buffer.advantages.shape)
        model.rollout_buffer.advantages = noise.astype(np.float32)

    model.learn(ROLLOUT, callback=Watch(after=replace))
    wanted = 0.0 if scaled else -float(model.rollout_buffer.advantages.mean())  # of scaled ones, the mean is nothing
    assert model.logger.name_to_value["train/policy_gradient_loss"] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_a_loss_that_is_no_number_is_an_error(made: Callable[..., PPO]) -> None:
    model = made(warm=False)
    torch.nn.init.constant_(model.policy.value_net.bias, float("inf"))
    with pytest.raises(Diverged, match=rf"PPO: the loss is .* at {ROLLOUT} steps.*learning rate"):
        model.learn(ROLLOUT)


# ---- options ----
def test_plain_is_stable_baselines_ppo_from_a_warm_start(made: Callable[..., PPO]) -> None:
    plain = made(plain=True, trunk_factor=0.1, auxiliary_coef=1.0, rehearsal_coef=1.0, learning_rate=5e-3)
    theirs = made(plain=True, learning_rate=5e-3, target_kl=None)
    theirs.train = lambda: StablePPO.train(theirs)  # type: ignore[method-assign]
    for model in (plain, theirs):
        model.set_random_seed(0)
        model.learn(3 * ROLLOUT)
        assert model.warm_start_policy is None
    for name, value in weights(plain.policy).items():
        torch.testing.assert_close(value, weights(theirs.policy)[name], rtol=1e-3, atol=1e-5)


def test_a_slow_trunk_moves_less(made: Callable[..., PPO]) -> None:
    moved = {}
    for factor in (1.0, 0.01):
        model = made(trunk_factor=factor, critic_updates=0, actor_warm_up=0)
        before = weights(model.policy)
        model.learn(ROLLOUT)
        assert [group["lr"] for group in groups(model)] == pytest.approx([factor * 1e-3, 1e-3, 1e-3])
        after = weights(model.policy)
        for part in ("features_extractor", "action_net"):
            moved[part, factor] = max(float((after[n] - before[n]).abs().max()) for n in before if n.startswith(part))
    assert moved["features_extractor", 0.01] < 0.05 * moved["features_extractor", 1.0]
    assert moved["action_net", 0.01] > 0.5 * moved["action_net", 1.0]


def test_what_followed_is_what_the_environment_showed_next(made: Callable[..., PPO]) -> None:
    """Where an episode ended, its own last frame, and not the first of the next one."""
    model = made(warm=False, auxiliary_coef=0.1)
    model.set_auxiliary(IWM(model.policy))
    env, shown, ended = model.env, [], 0
    assert isinstance(env, HeadstartVecEnv)
    advance = env.advance

    def advanced(action: np.ndarray) -> Advance:
        nonlocal ended
        after = env.simulator.fork()
        after.step(action)
        shown.append(after.frame())
        ended += int(after.done.sum())
        return advance(action)

    env.advance = advanced  # type: ignore[method-assign]
    seen: list[Any] = []

    def look() -> None:
        seen[:] = model._seen()

    model.learn(4 * ROLLOUT, callback=Watch(after=look))  # 64 steps of each episode, which end after 40
    obs, action, future = seen
    assert ended > 0
    np.testing.assert_equal(future.numpy().reshape(16, 8, -1), np.stack(shown[-16:]))
    assert future.dtype == obs["frames"].dtype == torch.uint8
    assert len(action) == ROLLOUT


def test_an_auxiliary_loss_goes_on_but_leaves_trunk_and_actor_alone_while_they_wait(made: Callable[..., PPO]) -> None:
    model = made(critic_updates=30, auxiliary_coef=1.0)
    iwm = IWM(model.policy)
    model.set_auxiliary(iwm)
    head = [parameter.detach().clone() for parameter in iwm.head.parameters()]
    before, losses = weights(model.policy), []
    model.learn(30 * ROLLOUT, callback=Watch(lambda: losses.append(model.logger.name_to_value.get("iwm/loss"))))
    assert same(model.policy, before, critic=False) == {True}
    assert not any(torch.equal(a, b) for a, b in zip(head, iwm.head.parameters(), strict=True))
    assert losses[-1] < 0.7 * losses[1]
    model.critic_updates = 0
    model.learn(ROLLOUT, reset_num_timesteps=False)
    assert True not in same(model.policy, before, critic=False)


def test_rehearsal_keeps_what_the_expert_did(made: Callable[..., PPO], demos: Demos) -> None:
    """Whatever PPO wants; and its weight falls to nothing."""
    agreed, settings = [], {"critic_updates": 0, "kl_coef": 0.0, "ent_coef": 1.0, "actor_warm_up": 0}
    for coef in (0.0, 20.0):
        model = made(rehearsal_coef=coef, rehearsal_decay=1e9, **settings)
        model.lessons = imitation_targets(model.policy, demos, mirror=False)
        model.learn(8 * ROLLOUT)
        p = model.policy.probabilities(demos.obs)
        agreed.append(float(p[np.arange(len(demos)), demos.action].mean()))
    assert agreed[1] > agreed[0] + 0.2
    model = made(rehearsal_coef=1.0, rehearsal_decay=0.25, **settings)
    model.lessons, heard = imitation_targets(model.policy, demos, mirror=False), []
    model.learn(8 * ROLLOUT, callback=Watch(lambda: heard.append("rl/rehearsal_loss" in model.logger.name_to_value)))
    assert heard == [False, True, True, *[False] * 5]


def test_a_setting_that_would_have_no_effect_is_refused(made: Callable[..., PPO]) -> None:
    with pytest.raises(UsageError, match="clip_range_vf"):
        made(clip_range_vf=0.2)


def test_a_batch_of_a_few_rehearses_and_predicts_too(made: Callable[..., PPO], demos: Demos) -> None:
    model = made(batch_size=2, n_epochs=1, critic_updates=0, rehearsal_coef=1.0, auxiliary_coef=1.0)
    model.lessons = imitation_targets(model.policy, demos, mirror=False)
    model.set_auxiliary(IWM(model.policy))
    model.learn(ROLLOUT)
    assert np.isfinite(model.logger.name_to_value["rl/rehearsal_loss"])


@pytest.mark.parametrize("setting", ["kl_coef", "kl_decay", "critic_updates", "trunk_factor", "rehearsal_decay"])
def test_a_setting_that_cannot_be_is_refused(made: Callable[..., PPO], setting: str) -> None:
    with pytest.raises(UsageError, match=f"PPO: {setting}=-1. Choose 0 or more"):
        made(**{setting: -1})


def test_another_policy_is_refused(made: Callable[..., PPO]) -> None:
    env = made(warm=False).env
    for policy in ("MultiInputPolicy", MultiInputPolicy, env):
        with pytest.raises(UsageError, match="the policy is HeadstartPolicy, or a class made of it"):
            PPO(policy, env)  # type: ignore[arg-type]
    assert isinstance(PPO("HeadstartPolicy", env).policy, HeadstartPolicy)


def test_observations_are_not_to_be_normalised(made: Callable[..., PPO], tmp_path: Path) -> None:
    model = made(warm=False)
    assert model.env is not None
    model.save(tmp_path / "model.zip")
    normalised = VecNormalize(model.env, norm_obs_keys=["frames"])
    uses = [lambda: PPO(HeadstartPolicy, normalised), lambda: model.set_env(normalised)]
    uses.append(lambda: PPO.load(tmp_path / "model.zip", env=normalised))
    for use in uses:
        with pytest.raises(UsageError, match=r"VecNormalize\(env, norm_obs=False\)"):
            use()
    with pytest.raises(UsageError, match=r"predict\(\) reads bytes, but frames are not"):
        model.predict(normalised.reset())  # type: ignore[arg-type]
    PPO(HeadstartPolicy, VecNormalize(model.env, norm_obs=False), n_steps=8, batch_size=64).learn(8)


@pytest.mark.parametrize("setting", ["auxiliary_coef", "rehearsal_coef"])
def test_an_option_without_what_it_needs_is_refused(made: Callable[..., PPO], setting: str) -> None:
    with pytest.raises(UsageError, match=setting):
        made(**{setting: 0.1}).learn(ROLLOUT)


# ---- save and load ----
def test_a_saved_model_is_loaded_as_it_was(made: Callable[..., PPO], demos: Demos, tmp_path: Path) -> None:
    model = made(critic_updates=1, kl_coef=0.4, actor_warm_up=3)
    model.learn(3 * ROLLOUT)
    model.save(tmp_path / "model.zip")
    loaded = PPO.load(tmp_path / "model.zip")
    assert isinstance(loaded.policy, HeadstartPolicy)
    obs = as_tensors(demos.obs, "cpu")
    assert torch.equal(loaded.policy.logits(obs), model.policy.logits(obs))
    for name in ("critic_updates", "actor_warm_up", "kl_coef", "kl_decay", "actor_started_at", "num_timesteps"):
        assert getattr(loaded, name) == getattr(model, name), name
    action, _ = loaded.predict(demos.obs, deterministic=True)  # type: ignore[arg-type]
    np.testing.assert_equal(action, model.policy.probabilities(demos.obs).argmax(1))


def test_a_loaded_model_can_go_on(made: Callable[..., PPO], tmp_path: Path) -> None:
    model = made(critic_updates=1)
    model.learn(2 * ROLLOUT)
    model.save(tmp_path / "model.zip")
    loaded = PPO.load(tmp_path / "model.zip", env=model.env)
    before = weights(loaded.policy)
    loaded.learn(ROLLOUT, reset_num_timesteps=False)
    assert loaded.num_timesteps == 3 * ROLLOUT
    assert False in same(loaded.policy, before, critic=False)


@pytest.mark.parametrize("rollouts", [0, 1, 3])
def test_a_loaded_model_goes_on_as_the_saved_one_would_have(
    made: Callable[..., PPO], tmp_path: Path, rollouts: int
) -> None:
    """Before it learned, while the critic learned alone, and later: anchor, weights and moments are all there."""
    model, other = made(ent_coef=0.1), made(warm=False)
    if rollouts:
        model.learn(rollouts * ROLLOUT)
    model.save(tmp_path / "model.zip")
    loaded = PPO.load(tmp_path / "model.zip", env=other.env)
    assert loaded.policy.warm_start == "bc"
    for each in (model, loaded):
        each.set_random_seed(5)
        each._last_obs = None  # both in new episodes
        each.learn(3 * ROLLOUT, reset_num_timesteps=False)
    assert same(loaded.policy, weights(model.policy), critic=False) == {True}
    assert same(loaded.policy, weights(model.policy), critic=True) == {True}
    assert loaded.warm_start_policy is not None
    assert model.warm_start_policy is not None
    assert same(loaded.warm_start_policy, weights(model.warm_start_policy), critic=False) == {True}
    assert loaded.logger.name_to_value["rl/kl_to_init"] == model.logger.name_to_value["rl/kl_to_init"]
