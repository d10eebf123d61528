"""Reflection: the judge's loss and labels by hand, what each stage touches, what it costs, where it practises."""

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small import fresh_policy, weights, with_score
from torch import Tensor
from torch.nn import functional as F

from headstart.envs import collect, engine
from headstart.envs.collect import branch, collect_demos, practise, replay
from headstart.envs.effects import ACTIONS, effects
from headstart.envs.errors import DataError, UsageError
from headstart.envs.mirror import mirror_branches, mirror_obs
from headstart.envs.simulator import Simulator, uniform_actor
from headstart.envs.transitions import Branches, Demos
from headstart.envs.vector import HeadstartVecEnv, make_vec_env
from headstart.learners import BC, BCConfig, JudgeConfig, Reflection, ReflectionConfig
from headstart.learners.bc import imitation_targets
from headstart.learners.judges import Shown
from headstart.models.policy import as_tensors

ENV_ID = "MiniGrid-DoorKey-5x5-v0"
SMALL = ReflectionConfig(
    bc=BCConfig(updates=3, batch_size=8, learning_rate=1e-3),
    judge=JudgeConfig(members=2, dropout=0.1, updates=4),
    rounds=2,
    levels=3,
    level_steps=5,
    states=18,
    sparing=False,
    round_updates=2,
)
UPDATES = 3 + 2 * 4 + 2 * 2


@pytest.fixture(scope="module")
def demos(cache: Path) -> Demos:
    return collect_demos(ENV_ID, 2, history=2, cache=cache)


@pytest.fixture(scope="module")
def branches(demos: Demos) -> Branches:
    return branch(demos)


@pytest.fixture(scope="module")
def env(cache: Path) -> HeadstartVecEnv:
    return make_vec_env(ENV_ID, 2, history=2, n_levels=64, cache=cache)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def small(**changes: Any) -> ReflectionConfig:
    """SMALL with other settings for how it looks at demonstrations."""
    return dataclasses.replace(SMALL, bc=dataclasses.replace(SMALL.bc, **changes))


# ---- losses ----
def test_the_outcomes_are_the_last_states_of_the_demonstrations(
    monkeypatch: pytest.MonkeyPatch, env: HeadstartVecEnv, demos: Demos, branches: Branches
) -> None:
    learner, seen = Reflection(fresh_policy(env), SMALL), []
    monkeypatch.setattr(learner, "fit_judges", lambda branches, outcomes: (seen.append(outcomes), {})[1])
    learner.fit(demos, branches, env)
    last = np.cumsum(demos.length) - 1
    for name, value in seen[0].obs.items():
        np.testing.assert_equal(value, demos.obs[name][last])
    np.testing.assert_equal(seen[0].expert_action, demos.action[last])
    assert seen[0].ended[np.arange(len(last)), demos.action[last], 0].all()


def test_policy_loss_worked_by_hand(env: HeadstartVecEnv) -> None:
    """Two expert rows and two of one's own, in one batch; the expert's label is smoothed, one's own is not."""
    p = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.7, 0.1], [0.2, 0.7, 0.1], [0.6, 0.2, 0.2]])
    target, weight = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]), torch.tensor([0.5, 2.0])
    label = torch.tensor([[0.1, 0.9, 0.0], [0.0, 0.5, 0.5]])
    config = dataclasses.replace(small(label_smoothing=0.3), own_weight=2.0)
    learner = Reflection(fresh_policy(env), config)
    seen: list[dict[str, Tensor]] = []
    learner.policy = SimpleNamespace(  # type: ignore[assignment]
        features=lambda obs: (seen.append(obs), torch.arange(4))[1], logits_of=lambda rows: torch.log(p)[rows]
    )
    expert_obs, own_obs = {"frames": torch.zeros(2, 1)}, {"frames": torch.ones(2, 1)}
    loss, metrics = learner.policy_loss(expert_obs, target, weight, own_obs, label)
    assert seen[0]["frames"].flatten().tolist() == [0, 0, 1, 1]
    once = -(0.8 * math.log(0.5) + 0.1 * math.log(0.3) + 0.1 * math.log(0.2))
    often = -(0.45 * math.log(0.2) + 0.45 * math.log(0.7) + 0.1 * math.log(0.1))
    imitation = (0.5 * once + 2.0 * often) / 2
    judged = -(0.1 * math.log(0.2) + 0.9 * math.log(0.7) + 0.5 * math.log(0.2) + 0.5 * math.log(0.2)) / 2
    assert float(loss) == pytest.approx(imitation + 2 * judged)
    assert metrics == {
        "bc/loss": pytest.approx(imitation),
        "bc/accuracy": pytest.approx((0.5 * 1 + 2.0 * 0.5) / 2.5),
        "reflect/own_loss": pytest.approx(judged),
        "reflect/own_agreement": 0.5,
    }


NOBODY: Any = None  # the states behind the branches, which judges of futures do not need


def unlabelled(n: int, mission: np.ndarray) -> Branches:
    """n states of three actions, of which nothing is known but the mission."""
    return Branches(
        obs={"frames": np.zeros((n, 1, 50), np.uint8), "mission": mission},
        expert_action=np.full(n, -1),
        action=np.zeros((n, 3, 1), np.uint8),
        future=np.zeros((n, 3, 1, 50), np.uint8),
        revisit=np.zeros((n, 3), np.bool_),
        ended=np.zeros((n, 3, 1), np.bool_),
        env_steps=3 * n,
    )


def imitating(learner: Reflection, p: Any) -> Reflection:
    """The learner after its first stage, which would do this: (A,) or (N, A)."""
    learner.imitator = SimpleNamespace(  # type: ignore[assignment]
        probabilities=lambda obs: np.broadcast_to(p, (len(obs["frames"]), np.shape(p)[-1]))
    )
    return learner


def test_labels_worked_by_hand(env: HeadstartVecEnv) -> None:
    """Judges: (1/2, 1/4, 1/4) and (1/8, 1/8, 3/4), so 1/4, sqrt(1/32), sqrt(3/16); imitation: (1/2, 1/3, 1/6)."""
    scores = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]]))[:, None].expand(-1, 600, -1)
    many = unlabelled(600, np.zeros((600, 4), np.uint8))
    judged, imitated = np.sqrt([1 / 16, 1 / 32, 3 / 16]), np.array([1 / 2, 1 / 3, 1 / 6])
    for weight, temperature in ((1.0, 1.0), (0.5, 1.0), (0.0, 1.0), (0.5, 0.5)):
        judge = dataclasses.replace(SMALL.judge, weight=weight, temperature=temperature)
        learner = imitating(Reflection(fresh_policy(env), dataclasses.replace(SMALL, judge=judge)), imitated)
        learner.judges.members = [with_score(scores[0] + 7), with_score(scores[1])]  # scores are known up to a constant
        wanted = (judged**weight * imitated ** (1 - weight)) ** (1 / temperature)
        label = learner.label(many, NOBODY)
        np.testing.assert_allclose(label, np.broadcast_to(wanted / wanted.sum(), (600, 3)), rtol=1e-4)
        assert label.dtype == np.float32


def test_every_state_is_judged_by_its_own_mission(env: HeadstartVecEnv) -> None:
    """In every chunk: a judge that prefers the action which the mission names."""
    told = np.random.default_rng(0).integers(3, size=(600, 1), dtype=np.uint8)
    learner = imitating(Reflection(fresh_policy(env), SMALL), np.ones(3) / 3)
    learner.judges.members = [lambda obs, future, signs: 50.0 * F.one_hot(obs["mission"][:, 0].long(), 3)]  # type: ignore[list-item]
    np.testing.assert_allclose(learner.label(unlabelled(600, told), NOBODY), np.eye(3)[told[:, 0]], atol=1e-6)


def test_labels_do_not_depend_on_dropout_or_on_what_stands_beside_them(
    env: HeadstartVecEnv, demos: Demos, branches: Branches
) -> None:
    learner = imitating(Reflection(fresh_policy(env), SMALL), np.ones(7) / 7)
    learner.fit_judges(branches)
    start = replay(demos).fork(np.tile(np.arange(len(demos)), 12))
    own = branch(practise(start, uniform_actor(7), steps=2, rng=np.random.default_rng(0))[0])
    assert len(own) > 512  # more than one chunk
    label = learner.label(own, NOBODY)
    np.testing.assert_allclose(label.sum(1), 1, rtol=1e-5)
    np.testing.assert_equal(label, learner.label(own, NOBODY))
    few = branch(practise(start.fork(np.arange(5)), uniform_actor(7), steps=0, rng=np.random.default_rng())[0])
    np.testing.assert_allclose(learner.label(few, NOBODY), label[:5], rtol=1e-4, atol=1e-6)


def test_the_imitator_is_bc_and_stays_as_it_was(env: HeadstartVecEnv, demos: Demos, branches: Branches) -> None:
    learner = Reflection(fresh_policy(env), SMALL)
    learner.fit(demos, branches, env)
    alone = fresh_policy(env)
    BC(alone, SMALL.bc).fit(demos)
    assert equal(weights(learner.imitator), weights(alone))
    assert not equal(weights(learner.policy), weights(alone))


# ---- what each stage touches ----
def test_training_the_policy_touches_neither_the_judges_nor_the_critic(
    env: HeadstartVecEnv, demos: Demos, branches: Branches
) -> None:
    policy = fresh_policy(env)
    before, learner = weights(policy), Reflection(policy, SMALL)
    judges = [weights(judge) for judge in learner.judges.members]
    label = np.full((len(branches), 7), 1 / 7, np.float32)
    learner.fit_policy(demos, [branches], [label], updates=3)
    critic = {id(parameter) for parameter in policy.critic_parameters()}
    for name, parameter in policy.named_parameters():
        assert torch.equal(parameter, before[name]) == (id(parameter) in critic), name
    assert all(equal(weights(judge), earlier) for judge, earlier in zip(learner.judges.members, judges, strict=True))


def test_a_label_follows_judges_who_know_the_experts_futures(env: HeadstartVecEnv, branches: Branches) -> None:
    judge = JudgeConfig(members=1, dropout=0.0, updates=150)
    config = dataclasses.replace(small(batch_size=32, learning_rate=3e-3, label_smoothing=0.0), judge=judge)
    learner = imitating(Reflection(fresh_policy(env), config), np.ones(7) / 7)
    learner.fit_judges(branches)
    label = learner.label(branches, NOBODY)
    same = (branches.future[:, :, 0] == branches.future[np.arange(len(branches)), branches.expert_action, :1]).all(2)
    assert (label * same).sum(1).mean() > 0.5  # half of a label is imitation, which knows nothing here


def test_the_policy_takes_over_the_judgement(env: HeadstartVecEnv, demos: Demos, branches: Branches) -> None:
    """Where the label is one's own alone, the policy comes to it: the states and labels are not mixed up."""
    policy = fresh_policy(env)
    config = small(batch_size=48, learning_rate=3e-3, label_smoothing=0.0)
    label = np.eye(7, dtype=np.float32)[demos.action]  # the expert's states once more, judged as the expert would
    Reflection(policy, config).fit_policy(demos, [branches], [label], updates=120)
    assert (policy.probabilities(demos.obs).argmax(1) == demos.action).mean() > 0.95


def test_what_it_leaves_to_rehearse_are_its_own_states_and_labels(
    env: HeadstartVecEnv, demos: Demos, branches: Branches
) -> None:
    policy, label = fresh_policy(env), np.random.default_rng(0).dirichlet(np.ones(7), size=len(branches))
    learner = Reflection(policy, small(batch_size=4))
    assert learner.lessons is None
    learner.fit_policy(demos, [branches, branches], [label, label[::-1]], updates=1)
    assert learner.lessons is not None
    obs, target, weight = learner.lessons
    np.testing.assert_equal(target, np.concatenate([label, label[::-1]]))
    np.testing.assert_equal(weight, 1.0)
    for name, value in obs.items():
        np.testing.assert_equal(value, np.concatenate([branches.obs[name]] * 2))


# ---- in the mirror ----
LEFT_IS_RIGHT = [1, 0, 2, 3, 4, 5, 6]


def same_bytes(obs: dict[str, np.ndarray]) -> list[bytes]:
    """One name for each state."""
    return [f.tobytes() + a.tobytes() + m.tobytes() for f, a, m in zip(*obs.values(), strict=True)]


@pytest.mark.parametrize("mirror", [False, True])
def test_the_label_of_a_mirrored_state_is_the_mirrored_label(
    monkeypatch: pytest.MonkeyPatch, env: HeadstartVecEnv, demos: Demos, branches: Branches, mirror: bool
) -> None:
    label = np.random.default_rng(0).dirichlet(np.ones(7), size=len(branches)).astype(np.float32)
    plain = dict(zip(same_bytes(branches.obs), label, strict=True))
    reflected = dict(zip(same_bytes(mirror_obs(branches.obs)), label[:, LEFT_IS_RIGHT], strict=True))
    config = small(mirror=mirror, hidden_past=0.0)
    learner, seen = Reflection(fresh_policy(env), config), []
    loss, (rows, target, weight) = learner.policy_loss, imitation_targets(learner.policy, demos, mirror)
    experts = dict(zip(same_bytes(rows), zip(target, weight, strict=True), strict=True))

    def watched(expert_obs: Any, target: Tensor, weight: Tensor, own_obs: Any, label: Tensor, why: Any = None) -> Any:
        own = same_bytes({name: value.numpy() for name, value in own_obs.items()})
        for state, q in zip(own, label.numpy(), strict=True):
            wanted = [known[state] for known in (plain, reflected)[: 1 + mirror] if state in known]
            assert any((q == x).all() for x in wanted)
            seen.append(state in plain)
        shown = same_bytes({name: value.numpy() for name, value in expert_obs.items()})
        for state, q, w in zip(shown, target.numpy(), weight.numpy(), strict=True):
            np.testing.assert_equal((q, w), experts[state])
        return loss(expert_obs, target, weight, own_obs, label, why)

    monkeypatch.setattr(learner, "policy_loss", watched)
    learner.fit_policy(demos, [branches], [label], updates=20)
    assert np.mean(seen) == pytest.approx(0.5, abs=0.2) if mirror else all(seen)


def test_the_mirror_costs_no_step(env: HeadstartVecEnv, demos: Demos, branches: Branches) -> None:
    steps = []
    for mirror in (False, True):  # in episodes of one step, which no policy can end
        config = dataclasses.replace(small(mirror=mirror), rounds=1, level_steps=1, states=6)
        steps.append(Reflection(fresh_policy(env), config).fit(demos, branches, env).env_steps)
    assert steps[0] == steps[1] > 0


def test_pasts_are_hidden_of_expert_states_only_and_actions_of_all(
    monkeypatch: pytest.MonkeyPatch, env: HeadstartVecEnv, demos: Demos, branches: Branches
) -> None:
    learner, seen = Reflection(fresh_policy(env), small(hidden_past=0.5, hidden_actions=0.5)), []
    loss = learner.policy_loss

    def watched(expert_obs: Any, target: Tensor, weight: Tensor, own_obs: Any, label: Tensor, why: Any = None) -> Any:
        assert (expert_obs["actions"] >= 7).all()
        seen.append(own_obs)
        return loss(expert_obs, target, weight, own_obs, label, why)

    monkeypatch.setattr(learner, "policy_loss", watched)
    learner.fit_policy(demos, [branches], [np.full((len(branches), 7), 1 / 7, np.float32)], updates=5)
    action, frame = (torch.cat([own[name] for own in seen]) for name in ("actions", "frames"))
    started = (frame[:, :-1] > 0).any(2)
    assert torch.equal(action == 7, ~started)  # no past is hidden
    assert 0.3 < (action == 8)[started].float().mean() < 0.7


# ---- all of it ----
def test_what_a_fit_costs_is_counted(
    monkeypatch: pytest.MonkeyPatch, env: HeadstartVecEnv, demos: Demos, branches: Branches
) -> None:
    stepped, step = [], engine.step

    def counted(rows: np.ndarray, action: np.ndarray) -> Any:
        stepped.append(len(rows))
        return step(rows, action)

    monkeypatch.setattr(engine, "step", counted)
    logged: list[int] = []
    learner = Reflection(fresh_policy(env), SMALL, log=lambda update, metrics: logged.append(update))
    fitted = learner.fit(demos, branches, env)
    assert fitted.env_steps == sum(stepped) - len(demos)  # but for the replay of the demonstrations
    assert fitted.updates == UPDATES
    assert not logged  # every 50 updates of a stage
    assert learner.policy.warm_start == "reflect"
    assert {"reflect/judge_loss", "reflect/own_loss", "bc/loss"} <= fitted.metrics.keys()
    many = dataclasses.replace(SMALL, judge=dataclasses.replace(SMALL.judge, updates=60), rounds=1, round_updates=60)
    Reflection(fresh_policy(env), many, log=lambda update, metrics: logged.append(update)).fit(demos, branches, env)
    assert logged == [3 + 50, 3 + 60 + 50, 3 + 2 * 60 + 50]  # of a stage, after all before it


def test_it_practises_on_fresh_levels(
    monkeypatch: pytest.MonkeyPatch, env: HeadstartVecEnv, demos: Demos, branches: Branches
) -> None:
    practised: list[tuple[Simulator, int]] = []

    def watched(start: Simulator, actor: Any, *, steps: int, rng: np.random.Generator) -> Any:
        practised.append((start.fork(), steps))
        return practise(start, actor, steps=steps, rng=rng)

    monkeypatch.setattr(collect, "practise", watched)
    asked: list[int] = []
    fresh = SimpleNamespace(fresh=lambda n, rng: (asked.append(n), env.fresh(n, rng))[1])
    Reflection(fresh_policy(env), SMALL).fit(demos, branches, fresh)
    assert asked == [3, 3]
    assert [(len(start), start.t.max(), steps) for start, steps in practised] == [(3, 0, 5)] * 2
    assert set(practised[0][0].state_hash()) != set(practised[1][0].state_hash())


def test_it_learns_from_all_rounds_so_far(
    monkeypatch: pytest.MonkeyPatch, env: HeadstartVecEnv, demos: Demos, branches: Branches
) -> None:
    """Each state beside its own label; and nobody asks the expert about the states that it has not been in."""

    def asked(*arguments: Any) -> None:
        raise AssertionError("the expert was asked")

    monkeypatch.setattr(collect, "expert_for", asked)
    learner, calls = Reflection(fresh_policy(env), SMALL), []
    fit_policy = learner.fit_policy

    def watched(demos: Demos, own: list[Branches], labels: list[np.ndarray], updates: int) -> dict[str, float]:
        calls.append((list(own), list(labels), updates))
        return fit_policy(demos, own, labels, updates)

    monkeypatch.setattr(learner, "fit_policy", watched)
    learner.fit(demos, branches, env)
    assert [updates for _, _, updates in calls] == [2, 2]
    assert [len(own) for own, _, _ in calls] == [1, 2]
    own, labels, _ = calls[-1]
    assert all((practised.expert_action == -1).all() for practised in own)
    for states, label in zip(own, labels, strict=True):
        np.testing.assert_equal(label, learner.label(states, NOBODY))


def test_of_many_states_some_are_branched(env: HeadstartVecEnv, demos: Demos, branches: Branches) -> None:
    learner = Reflection(fresh_policy(env), dataclasses.replace(SMALL, states=4))
    calls, fit_policy = [], learner.fit_policy

    def watched(demos: Demos, own: list[Branches], labels: list[np.ndarray], updates: int) -> dict[str, float]:
        calls.append([len(part) for part in own])
        return fit_policy(demos, own, labels, updates)

    learner.fit_policy = watched  # type: ignore[method-assign]
    fitted = learner.fit(demos, branches, env)
    assert calls[-1] == [4, 4]
    walked = 3 * 5  # at most, in each round
    assert 2 * 4 * 7 < fitted.env_steps <= 2 * (4 * 7 + walked)


def test_where_episodes_are_short_it_plays_more_of_them(env: HeadstartVecEnv, demos: Demos, branches: Branches) -> None:
    """Not so many levels, but so many states; and all that was walked for them is counted."""
    asked: list[int] = []
    fresh = SimpleNamespace(fresh=lambda n, rng: (asked.append(n), env.fresh(n, rng))[1])
    config = dataclasses.replace(SMALL, rounds=1, level_steps=1, states=40)  # 6 states of 3 levels
    learner = Reflection(fresh_policy(env), config)
    fitted = learner.fit(demos, branches, fresh)
    assert asked == [3] * 7
    assert learner.lessons is not None
    assert len(learner.lessons.target) == 40
    assert fitted.env_steps == 3 * 7 + 40 * 7


def test_it_does_not_wait_for_states_that_never_come(env: HeadstartVecEnv, demos: Demos, branches: Branches) -> None:
    """From somebody's own place to practise, that has no level left, after the first round or from the beginning."""
    for levels_left in (3, 0):
        left = [levels_left]

        def fresh(n: int, rng: np.random.Generator, left: list[int] = left) -> Simulator:
            some = np.arange(min(n, left.pop() if left else 0))
            return env.fresh(n, rng).fork(some)

        learner, somewhere = Reflection(fresh_policy(env), SMALL), SimpleNamespace(fresh=fresh)
        if levels_left:
            learner.fit(demos, branches, somewhere)
            assert learner.lessons is not None
            assert len(learner.lessons.target) == SMALL.states
        else:
            with pytest.raises(DataError, match="practice came to no state"):
                learner.fit(demos, branches, somewhere)


# ---- options ----
def practised(learner: Reflection, demos: Demos, branches: Branches, env: HeadstartVecEnv) -> list[Branches]:
    """The own states that a fit has learned from."""
    calls: list[list[Branches]] = []
    fit_policy = learner.fit_policy

    def watched(demos: Demos, own: list[Branches], labels: list[np.ndarray], updates: int) -> dict[str, float]:
        assert [len(part) for part in own] == [len(label) for label in labels]
        calls.append(list(own))
        return fit_policy(demos, own, labels, updates)

    learner.fit_policy = watched  # type: ignore[method-assign]
    learner.fit(demos, branches, env)
    return calls[-1]


def test_where_luck_decides_every_action_is_tried_again(cache: Path) -> None:
    """With other luck each time, for judges and for labels; the same states, the expert's action with them."""
    obstacles = "MiniGrid-Dynamic-Obstacles-6x6-v0"
    demos = collect_demos(obstacles, 2, history=2, cache=cache)
    env = make_vec_env(obstacles, 2, history=2, n_levels=16, cache=cache)
    learner = Reflection(fresh_policy(env), dataclasses.replace(SMALL, draws=4))
    first = branch(demos)
    parts = list(learner.drawn(first, replay(demos)))
    assert parts[0] is first
    assert len(parts) == 4
    for part in parts[1:]:
        np.testing.assert_equal(part.obs, first.obs)
        np.testing.assert_equal(part.expert_action, demos.action)
    assert learner.env_steps == 3 * first.env_steps
    futures = np.stack([part.future for part in parts])
    assert (futures[0] != futures[1:]).any()
    assert (futures[1] != futures[2]).any()
    for judge in learner.judges.members:
        judge.eval()
    imitating(learner, np.ones(3) / 3)
    label = learner.label(first, replay(demos))
    again = learner.label(first, replay(demos))  # other luck once more
    assert (label != again).any()
    np.testing.assert_allclose(label.sum(1), 1, rtol=1e-5)


def test_where_luck_decides_the_same_actions_are_tried_again(cache: Path) -> None:
    """Of k actions, the expert's is always among them, and every draw says something of each."""
    obstacles = "MiniGrid-Dynamic-Obstacles-6x6-v0"
    demos = collect_demos(obstacles, 2, history=2, cache=cache)
    env = make_vec_env(obstacles, 2, history=2, n_levels=16, cache=cache)
    learner = Reflection(fresh_policy(env), dataclasses.replace(SMALL, draws=4, k=2))
    everything, some = branch(demos), branch(demos, k=2)
    for first in (everything, some):
        parts = list(learner.drawn(first, replay(demos)))
        assert len(parts) == 4
        for part in parts:
            np.testing.assert_array_equal(part.tried, first.tried)
    metrics = learner.fit(demos, everything, env).metrics
    assert np.isfinite(metrics["reflect/judge_loss"])


def test_where_nothing_is_random_every_action_is_tried_once(
    env: HeadstartVecEnv, demos: Demos, branches: Branches
) -> None:
    learner = Reflection(fresh_policy(env), dataclasses.replace(SMALL, draws=4))
    assert [*learner.drawn(branches, replay(demos))] == [branches]
    assert learner.env_steps == 0


@pytest.mark.parametrize("alternatives", ["uniform", "policy", "mixture"])
def test_with_k_some_actions_are_tried_and_judges_speak_of_those(
    env: HeadstartVecEnv, demos: Demos, alternatives: Any
) -> None:
    config = dataclasses.replace(SMALL, k=3, alternatives=alternatives)
    some = branch(demos, k=3, alternatives=alternatives, actor=uniform_actor(7))
    learner = Reflection(fresh_policy(env), config)
    own = practised(learner, demos, some, env)
    for part in own:
        assert 1 <= part.tried.sum(1).max() <= 3
        label = learner.label(part, NOBODY)
        assert learner.imitator is not None
        imitated = learner.imitator.probabilities(part.obs) ** (1 / SMALL.judge.temperature)
        imitated /= imitated.sum(1, keepdims=True)
        np.testing.assert_allclose(label[~part.tried], imitated[~part.tried], rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(label.sum(1), 1, rtol=1e-5)
    with pytest.raises(UsageError, match="without k"):
        Reflection(fresh_policy(env), dataclasses.replace(config, rationale_weight=1.0)).fit(demos, some, env)


def test_a_judge_may_look_further(env: HeadstartVecEnv, demos: Demos, branches: Branches) -> None:
    """Then branches are as long, in practice too; those of one step do not hold it."""
    config = dataclasses.replace(SMALL, judge=dataclasses.replace(SMALL.judge, horizon=3))
    far = branch(demos, horizon=3)
    learner = Reflection(fresh_policy(env), config)
    own = practised(learner, demos, far, env)
    assert {part.future.shape[2] for part in own} == {3}
    with pytest.raises(UsageError, match=r"branch\(demos, horizon=3\)"):
        Reflection(fresh_policy(env), config).fit(demos, branches, env)


def test_the_end_is_hidden_unless_it_is_asked_for(env: HeadstartVecEnv, branches: Branches) -> None:
    over = dataclasses.replace(branches, ended=~branches.ended)
    blind, seeing = (
        imitating(
            Reflection(
                fresh_policy(env), dataclasses.replace(SMALL, judge=dataclasses.replace(SMALL.judge, sees_end=sees))
            ),
            np.ones(7) / 7,
        )
        for sees in (False, True)
    )
    np.testing.assert_equal(blind.label(branches, NOBODY), blind.label(over, NOBODY))
    assert (seeing.label(branches, NOBODY) != seeing.label(over, NOBODY)).any()


def test_the_rationale_is_learned_of_own_states(env: HeadstartVecEnv, demos: Demos, branches: Branches) -> None:
    """What every action does and how it is judged can be said before acting; of other states' rationales it cannot."""
    accuracy = {}
    for shuffle in (False, True):
        config = small(batch_size=48, learning_rate=3e-3)
        config = dataclasses.replace(config, rationale_weight=1.0, shuffled_rationale=shuffle)
        learner = Reflection(fresh_policy(env), config)
        label = np.eye(7, dtype=np.float32)[demos.action]
        effect = learner.fit_policy(demos, [branches], [label], updates=150)["rationale/effect_accuracy"]
        _, margin = learner.rationale.predict(learner.policy.features(as_tensors(demos.obs, "cpu")))
        accuracy[shuffle] = effect, float((margin.argmax(1) == demos.action).mean())
    assert min(accuracy[False]) > 0.85
    assert accuracy[True][1] < 0.65


def test_it_says_why_before_it_acts(env: HeadstartVecEnv, demos: Demos, branches: Branches) -> None:
    """In English, from the present and what is remembered; no future is given."""
    config = dataclasses.replace(small(batch_size=48, learning_rate=3e-3, hidden_past=0.0), rationale_weight=1.0)
    learner = Reflection(fresh_policy(env), config)
    learner.fit_policy(demos, [branches], [np.eye(7, dtype=np.float32)[demos.action]], updates=200)
    said = learner.explain(demos.obs)
    assert np.mean([text.startswith(ACTIONS[a]) for text, a in zip(said, demos.action, strict=True)]) > 0.8
    assert all("; preferred over " in text for text in said)
    key = int(np.flatnonzero(demos.action == 3)[0])  # where the expert picks up the key
    assert said[key].startswith("pick up: takes the "), said[key]
    with pytest.raises(UsageError, match="rationale_weight"):
        Reflection(fresh_policy(env), SMALL).explain(demos.obs)


def test_the_rationale_in_the_mirror(env: HeadstartVecEnv, branches: Branches) -> None:
    learner = Reflection(fresh_policy(env), dataclasses.replace(SMALL, rationale_weight=1.0))
    label = np.random.default_rng(0).dirichlet(np.ones(7), size=len(branches)).astype(np.float32)
    effect, margin = (x.numpy() for x in learner._rationales([branches], [label]))
    n = len(branches)
    np.testing.assert_equal(effect[:n], effects(branches.frame, branches.future[:, :, 0]))
    there = mirror_branches(branches)
    np.testing.assert_equal(effect[n:], effects(there.frame, there.future[:, :, 0]))
    np.testing.assert_equal(margin[n:], margin[:n][:, LEFT_IS_RIGHT])


def test_it_is_fitted_once(env: HeadstartVecEnv, demos: Demos, branches: Branches) -> None:
    learner = Reflection(fresh_policy(env), SMALL)
    learner.fit(demos, branches, env)
    before = weights(learner.policy)
    with pytest.raises(UsageError, match="This Reflection has been fitted: make another one"):
        learner.fit(demos, branches, env)
    assert equal(weights(learner.policy), before)


def test_what_cannot_be_learned_from_is_refused_before_anything_is_learned(
    env: HeadstartVecEnv, demos: Demos, branches: Branches
) -> None:
    """Branches without the expert's own action, of which the present would be taken for its future."""
    tried = np.ones_like(branches.tried)
    tried[3, demos.action[3]] = False
    learner = Reflection(fresh_policy(env), SMALL)
    before = weights(learner.policy)
    with pytest.raises(DataError, match="the expert's own action was not tried"):
        learner.fit(demos, branch(demos, tried=tried), env)
    assert equal(weights(learner.policy), before)
    for k in (0, 2.5):
        with pytest.raises(UsageError, match=f"k={k}: choose how many"):
            dataclasses.replace(SMALL, k=k)
    with pytest.raises(UsageError, match="rounds=0"):
        dataclasses.replace(SMALL, rounds=0)


def test_judges_learn_from_every_draw_with_pasts_hidden(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    obstacles = "MiniGrid-Dynamic-Obstacles-6x6-v0"
    demos = collect_demos(obstacles, 2, history=2, cache=cache)
    env = make_vec_env(obstacles, 2, history=2, n_levels=16, cache=cache)
    config = dataclasses.replace(small(hidden_past=0.5, mirror=False), draws=4, rounds=1)
    config = dataclasses.replace(config, judge=dataclasses.replace(SMALL.judge, updates=60))
    learner, hidden, futures = Reflection(fresh_policy(env), config), [], set()
    loss = learner.judges.loss

    def watched(judge: Any, shown: Shown) -> Any:
        hidden.extend((shown.obs["actions"] >= 3).all(1).tolist())
        futures.update(future.numpy().tobytes() for future in shown.future)
        return loss(judge, shown)

    monkeypatch.setattr(learner.judges, "loss", watched)
    branches = branch(demos)
    learner.fit(demos, branches, env)
    first = {future.tobytes() for future in branches.future[:, :, 0]}
    assert len(futures) > 1.5 * len(first)
    unhidden = float((demos.obs["actions"] >= 3).all(1).mean())
    assert np.mean(hidden) == pytest.approx(unhidden + 0.5 * (1 - unhidden), abs=0.1)


def test_where_luck_and_k_meet_only_what_was_tried_counts(env: HeadstartVecEnv, demos: Demos) -> None:
    """Two draws of the same three actions: the score of each is the mean of its tries."""
    learner = imitating(Reflection(fresh_policy(env), SMALL), np.ones(7) / 7)
    some = branch(demos.take(np.array([0])))
    some = dataclasses.replace(some, tried=np.arange(7) < np.full((len(some), 1), 3))
    parts = [some, dataclasses.replace(some)]
    score = np.where(np.stack([some.tried, some.tried]), np.float32(-1.0), -np.inf)
    score[1][:, 1] = -3.0
    learner.drawn = lambda branches, states: iter(parts)  # type: ignore[method-assign]
    learner.judgement = lambda one: score[0] if one is parts[0] else score[1]  # type: ignore[method-assign]
    label = learner.label(some, NOBODY)
    weight, temperature = SMALL.judge.weight, SMALL.judge.temperature
    expected = np.exp(np.array([-1.0, -2.0, -1.0]) * weight / temperature)
    np.testing.assert_allclose(label[0, :3], 3 / 7 * expected / expected.sum(), rtol=1e-5)
    np.testing.assert_allclose(label[:, 3:], 1 / 7, rtol=1e-5)  # of the others, imitation thinks them all alike


def test_the_seed_decides(env: HeadstartVecEnv, demos: Demos, branches: Branches) -> None:
    outcomes = []
    for noise, seed in ((0, 1), (5, 1), (0, 2)):
        learner = Reflection(fresh_policy(env), SMALL, seed=seed)
        torch.manual_seed(noise)
        theirs = torch.get_rng_state()
        fitted = learner.fit(demos, branches, env)
        assert torch.equal(torch.get_rng_state(), theirs)  # the user's random numbers are their own
        outcomes.append((weights(learner.policy), fitted))
    assert equal(outcomes[0][0], outcomes[1][0])
    assert outcomes[0][1] == outcomes[1][1]
    assert not equal(outcomes[0][0], outcomes[2][0])


def test_it_needs_branches_and_a_place_to_practise(env: HeadstartVecEnv, demos: Demos, branches: Branches) -> None:
    learner = Reflection(fresh_policy(env), SMALL)
    for missing in ((), (branches,), (None, env)):
        with pytest.raises(UsageError, match=r"fit\(demos, branches, practise=env\)"):
            learner.fit(demos, *missing)
