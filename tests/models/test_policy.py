"""The policy: features of shared views, memory of a chosen length, what is actor and what is critic."""

import copy
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from headstart.envs.errors import Diverged, UsageError
from headstart.models import encoders, policy
from headstart.models.history import hide_past
from headstart.models.policy import FrameHistoryExtractor, HeadstartPolicy
from headstart.models.training import Descent

A, HISTORY, L, WORDS = 7, 3, 5, 20


def space(history: int = HISTORY) -> spaces.Dict:
    return spaces.Dict(
        {
            "frames": spaces.Box(0, 255, (history + 1, 50), np.uint8),
            "actions": spaces.Box(0, A, (history,), np.uint8),
            "mission": spaces.Box(0, WORDS - 1, (L,), np.uint8),
        }
    )


def observations(n: int = 24, distinct: int = 5, history: int = HISTORY, seed: int = 0) -> dict[str, np.ndarray]:
    """Few different views in many places; the first four states are the first four of an episode."""
    rng = np.random.default_rng(seed)
    views = rng.integers(11 * 18, size=(distinct, 50), dtype=np.uint8)
    frames = views[rng.integers(distinct, size=(n, history + 1))]
    actions = rng.integers(A, size=(n, history), dtype=np.uint8)
    for t in range(min(history, n)):
        frames[t, : history - t], actions[t, : history - t] = 0, A
    mission = rng.integers(1, WORDS, size=(3, L), dtype=np.uint8)
    mission[:, 3:] = 0  # padding
    return {"frames": frames, "actions": actions, "mission": mission[rng.integers(3, size=n)]}


def tensors(obs: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.as_tensor(value) for name, value in obs.items()}


def extractor(memory: int | None = None, seed: int = 0) -> FrameHistoryExtractor:
    torch.manual_seed(seed)
    return FrameHistoryExtractor(space(), A, memory, width=8, channels=4).double()


def gradient(made: FrameHistoryExtractor, obs: dict[str, Tensor], weight: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad((made(obs).sin() * weight).sum(), list(made.parameters()), allow_unused=True)


def test_frames_that_a_wrapper_has_stacked_are_refused() -> None:
    stacked = spaces.Dict({**space().spaces, "frames": spaces.Box(0, 255, (HISTORY + 1, 200), np.uint8)})
    with pytest.raises(UsageError, match=r"reads 4 frames of 50 bytes .* are \(4, 200\). Use make_vec_env"):
        HeadstartPolicy(stacked, spaces.Discrete(A), lambda _: 1e-3)


# ---- features ----
@pytest.mark.parametrize("memory", [0, 1, HISTORY])
def test_shared_views_have_the_gradient_of_each_state_by_itself(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made, obs = extractor(memory), tensors(observations())
    weight = torch.randn(24, 8, dtype=torch.float64)
    features, together = made(obs), gradient(made, obs, weight)
    for module in (encoders, policy):
        monkeypatch.setattr(module, "distinct_rows", lambda rows: (rows, torch.arange(len(rows))))
    states = [{name: value[i : i + 1] for name, value in obs.items()} for i in range(24)]
    torch.testing.assert_close(features, torch.cat([made(state) for state in states]))
    alone = [gradient(made, state, weight[i : i + 1]) for i, state in enumerate(states)]
    for one, others in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(one, torch.stack(others).sum(0))
    assert all(one.abs().max() > 1e-6 for one in together)


def test_each_distinct_pair_of_view_and_mission_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made, obs, seen = extractor(), observations(n=60), []
    encode = made.view.forward
    monkeypatch.setattr(made.view, "forward", lambda frame: (seen.append(len(frame)), encode(frame))[1])
    made(tensors(obs))
    mission = np.repeat(obs["mission"][:, None], HISTORY + 1, axis=1)
    pairs = np.concatenate([obs["frames"][:, :, :49], mission], axis=2).reshape(-1, 49 + L)
    assert seen == [len(np.unique(pairs, axis=0))]


def test_without_memory_the_past_is_not_there() -> None:
    made, obs = extractor(memory=0), observations()
    other = {name: value.copy() for name, value in obs.items()}
    other["frames"][:, :-1] = 17
    other["actions"][:] = 3
    assert torch.equal(made(tensors(obs)), made(tensors(other)))
    other["frames"][:, -1] = 17
    assert (made(tensors(obs)) != made(tensors(other))).any(1).all()


@pytest.mark.parametrize("memory", [1, 2])
def test_memory_is_as_long_as_it_says(memory: int) -> None:
    made, obs = extractor(memory), observations()
    obs["actions"][:] %= A  # all of it within the episode
    for age in range(HISTORY, 0, -1):
        other = {name: value.copy() for name, value in obs.items()}
        other["frames"][:, HISTORY - age] = 17
        other["actions"][:, HISTORY - age] = (obs["actions"][:, HISTORY - age] + 1) % A
        same = torch.isclose(made(tensors(obs)), made(tensors(other)), rtol=1e-9, atol=1e-12).all(1)
        assert same.all() if age > memory else not same.any(), age


def test_frames_from_before_the_episode_are_masked() -> None:
    made, obs = extractor(), observations()
    other = {name: value.copy() for name, value in obs.items()}
    before = obs["actions"] == A
    assert before.any()
    other["frames"][:, :-1][before] = 17
    torch.testing.assert_close(made(tensors(other)), made(tensors(obs)))


def test_the_mission_matters() -> None:
    obs = observations()
    other = {**obs, "mission": np.where(obs["mission"] > 0, obs["mission"] % (WORDS - 1) + 1, 0).astype(np.uint8)}
    assert (extractor()(tensors(obs)) != extractor()(tensors(other))).any(1).all()


def test_padding_of_a_mission_is_not_read() -> None:
    made, obs = extractor(), tensors(observations())
    longer = {**obs, "mission": torch.nn.functional.pad(obs["mission"], (0, 20))}
    torch.testing.assert_close(made(longer), made(obs))


def test_an_agent_that_is_told_nothing_is_told_nothing() -> None:
    """An empty mission leaves scale and shift to the biases alone."""
    made, obs = extractor(), tensors(observations())
    untold = made({**obs, "mission": torch.zeros_like(obs["mission"])})
    torch.nn.init.zeros_(made.film.weight)
    torch.testing.assert_close(made(obs), untold)


@pytest.mark.parametrize("memory", [1, HISTORY])
def test_a_hidden_past_is_the_start_of_an_episode(memory: int) -> None:
    made, obs = extractor(memory), tensors(observations())
    hidden = hide_past(obs, A, 1.0, 0.0, torch.Generator().manual_seed(0))
    first = {**obs, "frames": obs["frames"].clone(), "actions": torch.full_like(obs["actions"], A)}
    first["frames"][:, :-1] = 0
    torch.testing.assert_close(made(hidden), made(first))
    told = made(hide_past(obs, A, 0.0, 1.0, torch.Generator().manual_seed(0)))
    started = (obs["actions"][:, HISTORY - memory :] != A).any(1)
    assert (told != made(obs)).any(1)[started].all()
    torch.testing.assert_close(told[~started], made(first)[~started])


@pytest.mark.parametrize("memory", [0, 1, HISTORY])
def test_what_is_read_decides_the_features(memory: int) -> None:
    """States that agree in what is read are one, whatever else there is in them."""
    made, obs = extractor(memory), observations()
    view, action, mission = made.read(tensors(obs))
    assert view.shape == (24, memory + 1, 49)
    assert action.shape == (24, memory)
    assert torch.equal(mission, torch.as_tensor(obs["mission"]))
    other = {name: value.copy() for name, value in obs.items()}
    other["frames"][:, :, 49] = 3  # the compass
    other["frames"][:, : HISTORY - memory], other["actions"][:, : HISTORY - memory] = 17, 2
    assert all(map(torch.equal, made.read(tensors(other)), (view, action, mission)))
    assert torch.equal(made(tensors(other)), made(tensors(obs)))


def test_beyond_the_recent_frames_what_was_seen_counts_and_when_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "RECENT", 1)
    made, obs = extractor(), observations()
    obs["actions"][:] %= A
    assert (made.recent, made.memory) == (1, HISTORY)
    features = made(tensors(obs))
    older = {name: value.copy() for name, value in obs.items()}
    older["frames"][:, [0, 1]] = obs["frames"][:, [1, 0]]  # in another order
    older["actions"][:, :2] = (obs["actions"][:, :2] + 1) % A
    torch.testing.assert_close(made(tensors(older)), features)
    older["frames"][:, 0] = 17
    assert (made(tensors(older)) != features).any(1).sum() > 12  # something else was seen
    last = {**obs, "actions": obs["actions"].copy()}
    last["actions"][:, -1] = (obs["actions"][:, -1] + 1) % A
    assert (made(tensors(last)) != features).any(1).all()


@pytest.mark.parametrize("memory", [-1, HISTORY + 1])
def test_a_memory_that_observations_do_not_hold_is_refused(memory: int) -> None:
    with pytest.raises(UsageError, match=f"memory={memory}.*{HISTORY} earlier frames"):
        FrameHistoryExtractor(space(), A, memory)


# ---- the policy ----
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_an_environment_that_is_not_read_is_refused(env_id: str) -> None:
    env = gymnasium.make(env_id)
    with pytest.raises(UsageError, match=r"cannot act in an environment with observations Box.*make_vec_env\(demos\)"):
        HeadstartPolicy(env.observation_space, env.action_space, lambda _: 1e-3)  # type: ignore[arg-type]


def made_policy(memory: int | None = None, seed: int = 0, **settings: Any) -> HeadstartPolicy:
    torch.manual_seed(seed)
    kwargs = {"memory": memory, "width": 8, "channels": 4}
    return HeadstartPolicy(space(), spaces.Discrete(A), lambda _: 1e-3, features_extractor_kwargs=kwargs, **settings)


def test_logits_are_those_of_stable_baselines() -> None:
    made, obs = made_policy(), tensors(observations())
    distribution = made.get_distribution(obs).distribution
    torch.testing.assert_close(torch.log_softmax(made.logits(obs), 1), distribution.logits)  # type: ignore[union-attr]
    action = torch.randint(A, (24,))
    value, log_p, entropy = made.evaluate_actions(obs, action)
    torch.testing.assert_close(log_p, torch.log_softmax(made.logits(obs), 1)[torch.arange(24), action])
    features = made.features(obs)
    torch.testing.assert_close(value, made.value_net(made.mlp_extractor.forward_critic(features)))
    assert entropy is not None


def test_actor_and_critic_are_all_there_is_and_share_nothing() -> None:
    made = made_policy()
    actor, critic = ([id(p) for p in parameters] for parameters in (made.actor_parameters(), made.critic_parameters()))
    assert len(set(actor)) == len(actor)
    assert not set(actor) & set(critic)
    assert set(actor) | set(critic) == {id(p) for p in made.parameters()}


def test_logits_reach_the_actor_alone() -> None:
    made, obs = made_policy(), tensors(observations())
    made.logits(obs).square().sum().backward()
    assert all(p.grad is None for p in made.critic_parameters())
    assert all(p.grad is not None for p in made.actor_parameters())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_probabilities_have_a_temperature(temperature: float) -> None:
    made, obs = made_policy(), observations()
    p = made.probabilities(obs, temperature=temperature)
    wanted = torch.softmax(made.logits(tensors(obs)).double() / temperature, 1).detach().numpy()
    np.testing.assert_allclose(p, wanted, rtol=1e-6)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-12)
    np.testing.assert_allclose(made.probabilities(obs, temperature=temperature, chunk=5), p, rtol=1e-5)


def test_the_greedy_actor_takes_the_likeliest_action() -> None:
    made, obs = made_policy(), observations()
    action = made.actor(greedy=True)(obs, np.random.default_rng())
    np.testing.assert_equal(action, made.probabilities(obs).argmax(1))


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan")])
def test_a_temperature_that_cannot_be_is_refused(temperature: float) -> None:
    with pytest.raises(UsageError, match=rf"temperature={temperature}\. .* greedy=True"):
        made_policy().actor(temperature=temperature)


def test_weights_that_are_no_numbers_draw_no_action() -> None:
    """Not even in one state of many."""
    made, obs = made_policy(), observations()
    p = made.probabilities(obs)
    p[5, 2] = np.nan
    with pytest.raises(Diverged, match="probabilities of actions are no numbers"):
        policy.draw(p, np.random.default_rng())
    torch.nn.init.constant_(made.action_net.bias, float("nan"))
    with pytest.raises(Diverged, match="weights of the policy are not"):
        made.actor()(obs, np.random.default_rng())


# ---- what is remembered from step to step ----
@pytest.mark.parametrize("memory", [0, 1, 2, HISTORY])
def test_a_memo_changes_nothing_but_the_work(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "RECENT", 2)  # so that the longest memory also recalls
    made, memo, encoded = extractor(memory), encoders.Memo(), []
    encode = made.view.forward
    monkeypatch.setattr(made.view, "forward", lambda frame: (encoded.append(len(frame)), encode(frame))[1])
    obs = tensors(observations(n=60))
    wanted, pairs = made(obs), encoded.pop()
    made.memo = memo
    with torch.no_grad():
        for i in range(0, 60, 20):
            some = {name: value[i : i + 20] for name, value in obs.items()}
            torch.testing.assert_close(made(some), wanted[i : i + 20])
    assert sum(encoded) == pairs
    torch.testing.assert_close(made(obs), wanted)
    assert encoded[-1] == pairs  # with a gradient, everything is computed again


def train(made: HeadstartPolicy, obs: dict[str, np.ndarray], optimizer: torch.optim.Optimizer) -> None:
    for _ in range(20):
        optimizer.zero_grad()
        torch.log_softmax(made.logits(tensors(obs)), 1)[:, 0].mean().neg().backward()
        optimizer.step()


ADAMW: dict[str, Any] = {"learning_rate": 0.1, "weight_decay": 0.0, "updates": 99}
CHANGES: dict[str, Callable[[HeadstartPolicy, dict[str, np.ndarray]], Any]] = {
    "learners'": lambda made, obs: train(made, obs, Descent("a test", made.parameters(), **ADAMW).optimizer),
    "SGD": lambda made, obs: train(made, obs, torch.optim.SGD(made.parameters(), lr=0.1)),
    "weights of another": lambda made, obs: made.load_weights(made_policy(seed=7).weights()),
    "vector": lambda made, obs: made.load_from_vector(1.0 - made.parameters_to_vector()),
    "double": lambda made, obs: made.double(),
}


@pytest.mark.parametrize("how", CHANGES)
def test_an_actor_forgets_when_weights_change(how: str) -> None:
    made, obs, memo = made_policy(), observations(), encoders.Memo()
    with made.remembering(memo):
        before = made.probabilities(obs)
    CHANGES[how](made, obs)
    with made.remembering(memo):
        after = made.probabilities(obs)
    np.testing.assert_allclose(after, made.probabilities(obs), rtol=1e-5)
    assert how == "double" or np.abs(after - before).max() > 1e-3


def test_a_copy_that_is_made_meanwhile_remembers_nothing() -> None:
    """Such as that of a callback that keeps the best policy so far."""
    made, obs = made_policy(), observations()
    with made.remembering(encoders.Memo()):
        made.probabilities(obs)
        copied = copy.deepcopy(made)
    assert copied.features_extractor.memo is None
    copied.load_weights(made_policy(seed=7).weights())
    np.testing.assert_allclose(copied.probabilities(obs), made_policy(seed=7).probabilities(obs), rtol=1e-6)


def test_a_memo_is_of_one_policy() -> None:
    one, other, memo = made_policy(), made_policy(), encoders.Memo()
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(5))
    for made in (one, other, one):
        with made.remembering(memo):
            found = made.probabilities(observations())
        np.testing.assert_allclose(found, made.probabilities(observations()), rtol=1e-5)
    inner = encoders.Memo()
    with one.remembering(memo):
        with one.remembering(inner):  # a curve is measured in the middle of a rollout
            pass
        assert one.features_extractor.memo is memo
    assert one.features_extractor.memo is None


def test_the_sampling_actor_takes_actions_as_often_as_they_are_likely() -> None:
    made = made_policy()
    torch.nn.init.normal_(made.action_net.weight, std=2.0)
    one = {name: value[5:6] for name, value in observations().items()}
    obs = {name: np.repeat(value, 20_000, axis=0) for name, value in one.items()}
    for temperature in (1.0, 0.5):
        act = made.actor(temperature=temperature)
        action = act(obs, np.random.default_rng(0))
        p = made.probabilities(one, temperature=temperature)[0]
        assert p.max() - p.min() > 0.05
        np.testing.assert_allclose(np.bincount(action, minlength=A) / 20_000, p, atol=0.015)
        np.testing.assert_equal(action, act(obs, np.random.default_rng(0)))


def test_rounding_never_leads_to_no_action(monkeypatch: pytest.MonkeyPatch) -> None:
    class AlmostOne:
        def random(self, shape: tuple[int, int]) -> np.ndarray:
            return np.full(shape, 1 - 2**-53)

    made = made_policy()
    below_one = np.full((2, A), (1 - 1e-12) / A)
    monkeypatch.setattr(made, "probabilities", lambda obs, temperature: below_one)
    assert made.actor()(observations(2), AlmostOne()).tolist() == [A - 1, A - 1]  # type: ignore[arg-type]


def test_stable_baselines_can_act_with_it() -> None:
    made, obs = made_policy(), observations()
    action, _ = made.predict(obs, deterministic=True)  # type: ignore[arg-type]
    np.testing.assert_equal(action, made.probabilities(obs).argmax(1))
    alone, _ = made.predict({name: value[3] for name, value in obs.items()}, deterministic=True)
    for raw in (obs["frames"][3], {"image": obs["frames"][3]}):
        with pytest.raises(UsageError, match="reads what an environment of make_vec_env shows"):
            made.predict(raw)  # type: ignore[arg-type]
    assert int(alone) == action[3]


def test_a_users_settings_stay_as_they_are() -> None:
    """One dictionary may serve policies of several environments."""
    settings: dict[str, Any] = {"features_extractor_kwargs": {"width": 16}}
    for n in (3, 7):
        made = HeadstartPolicy(space(), spaces.Discrete(n), lambda _: 1e-3, **settings)
        assert made.features_extractor.n_actions == n
    assert settings == {"features_extractor_kwargs": {"width": 16}}
