"""Controls: each label by hand; and that nothing else differs from reflection: states, updates, schedule."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small import fresh_policy, weights

from headstart.envs import experts
from headstart.envs.advice import advice
from headstart.envs.banks import bank
from headstart.envs.collect import branch, collect_demos, practise, replay
from headstart.envs.errors import UsageError
from headstart.envs.evaluation import evaluate
from headstart.envs.simulator import GridStates, Simulator, uniform_actor
from headstart.envs.transitions import Branches, Demos
from headstart.envs.vector import HeadstartVecEnv, make_vec_env
from headstart.learners import (
    BCConfig,
    Dagger,
    DaggerConfig,
    JudgeConfig,
    Noop,
    NoopConfig,
    RandomJudge,
    RandomJudgeConfig,
    Reflection,
    ReflectionConfig,
    SelfLabel,
    SelfLabelConfig,
    controls,
)

ENV_ID = "MiniGrid-DoorKey-5x5-v0"
REFLECT = ReflectionConfig(
    bc=BCConfig(updates=3, batch_size=8, learning_rate=1e-3),
    judge=JudgeConfig(members=2, dropout=0.3, updates=4),
    rounds=2,
    levels=3,
    level_steps=5,
    states=12,
    round_updates=2,
)
CONTROLS = {
    SelfLabel: SelfLabelConfig(REFLECT),
    RandomJudge: RandomJudgeConfig(REFLECT),
    Noop: NoopConfig(REFLECT),
    Dagger: DaggerConfig(REFLECT),
}
each = pytest.mark.parametrize("kind", CONTROLS, ids=lambda kind: kind.name)


@pytest.fixture(scope="module")
def demos(cache: Path) -> Demos:
    return collect_demos(ENV_ID, 2, history=2, cache=cache)


@pytest.fixture(scope="module")
def branches(demos: Demos) -> Branches:
    return branch(demos)


@pytest.fixture(scope="module")
def own(demos: Demos) -> tuple[Branches, Simulator]:
    """States around the demonstrations."""
    states, _ = practise(replay(demos), uniform_actor(7), steps=2, rng=np.random.default_rng(0))
    return branch(states), states


@pytest.fixture(scope="module")
def env(cache: Path) -> HeadstartVecEnv:
    return make_vec_env(ENV_ID, 2, history=2, n_levels=64, cache=cache)


def make(kind: Any, env: HeadstartVecEnv, **settings: Any) -> Any:
    return kind(fresh_policy(env), CONTROLS.get(kind, REFLECT), **settings)


# ---- nothing else differs ----
def history_of(learner: Reflection, *data: Any) -> tuple[list[Any], Any]:
    """What the policy was fitted to, fit by fit, and what it has cost."""
    fits: list[Any] = []
    fit_policy = learner.fit_policy

    def watched(demos: Demos, own: list[Branches], labels: list[np.ndarray], updates: int) -> dict[str, float]:
        fits.append(([b.obs["frames"].copy() for b in own], [label.shape for label in labels], updates))
        return fit_policy(demos, own, labels, updates)

    learner.fit_policy = watched  # type: ignore[method-assign]
    return fits, learner.fit(*data)


@each
def test_states_updates_and_schedule_are_those_of_reflection(
    kind: Any, env: HeadstartVecEnv, demos: Demos, branches: Branches
) -> None:
    """In the first round the states are the same to the byte; after that each policy goes where it goes."""
    theirs, cost = history_of(make(Reflection, env), demos, branches, env)
    ours, own_cost = history_of(make(kind, env), demos, branches, env)
    assert [updates for _, _, updates in ours] == [updates for _, _, updates in theirs] == [2, 2]
    np.testing.assert_equal(ours[0], theirs[0])
    assert [len(states) for states, _, _ in ours] == [len(states) for states, _, _ in theirs] == [1, 2]
    assert own_cost.updates == cost.updates - 2 * 4 == CONTROLS[kind].total_updates
    once = dataclasses.replace(REFLECT, rounds=1)
    steps = [
        learner.fit(demos, branches, env).env_steps
        for learner in (Reflection(fresh_policy(env), once), kind(fresh_policy(env), type(CONTROLS[kind])(once)))
    ]
    assert steps[0] == steps[1] > 0


@each
def test_no_judge_is_trained(kind: Any, env: HeadstartVecEnv, demos: Demos, branches: Branches) -> None:
    learner = make(kind, env)
    before = [p.detach().clone() for judge in learner.judges.members for p in judge.parameters()]
    fitted = learner.fit(demos, branches, env)
    after = [p for judge in learner.judges.members for p in judge.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert learner.policy.warm_start == kind.name
    assert not any("judge" in name for name in fitted.metrics)


@each
def test_the_seed_decides(kind: Any, env: HeadstartVecEnv, demos: Demos, branches: Branches) -> None:
    found = []
    for noise, seed in ((0, 1), (5, 1), (0, 2)):
        learner = make(kind, env, seed=seed)
        torch.manual_seed(noise)
        learner.fit(demos, branches, env)
        found.append(torch.cat([p.detach().flatten() for p in learner.policy.parameters()]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@each
def test_it_needs_branches_and_a_place_to_practise(
    kind: Any, env: HeadstartVecEnv, demos: Demos, branches: Branches
) -> None:
    for missing in ((), (branches,)):
        with pytest.raises(UsageError, match=r"fit\(demos, practise=env\)"):
            make(kind, env).fit(demos, *missing)
    exhaustive = type(CONTROLS[kind])(dataclasses.replace(REFLECT, sparing=False))
    with pytest.raises(UsageError, match=r"fit\(demos, branches, practise=env\)"):
        kind(fresh_policy(env), exhaustive).fit(demos, None, env)


# ---- labels ----
def imitating(learner: Any, p: Any) -> Any:
    """The learner after imitation, which would do this, (N, A)."""
    learner.imitator = SimpleNamespace(probabilities=lambda obs: p)
    return learner


def test_self_labels_are_what_imitation_would_do(env: HeadstartVecEnv, own: tuple[Branches, Simulator]) -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(7), size=len(own[0]))
    label = imitating(make(SelfLabel, env), p).label(*own)
    np.testing.assert_allclose(label, p, rtol=1e-6)
    assert label.dtype == np.float32


def tried(future: list[list[int]], present: int = 0) -> Branches:
    """States that show ``present``, and what each action leads to, every view of one byte all over."""
    n, a = len(future), len(future[0])
    shown = np.array(future, np.uint8)[:, :, None, None] * np.ones(50, np.uint8)
    obs = {
        "frames": np.full((n, 3, 50), present, np.uint8),
        "actions": np.full((n, 2), 7, np.uint8),
        "mission": np.zeros((n, 3), np.uint8),
    }
    nothing = np.zeros((n, a), np.bool_)
    action = np.broadcast_to(np.arange(a, dtype=np.uint8)[:, None], (n, a, 1))
    return Branches(obs, np.full(n, -1), action, shown, nothing, nothing[:, :, None], n * a)


def test_noop_labels_worked_by_hand(env: HeadstartVecEnv) -> None:
    """Of three actions two change something; all do; none does."""
    p = np.array([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1]])
    label = imitating(make(Noop, env), p).label(tried([[0, 1, 2], [3, 3, 3], [0, 0, 0]]), None)
    np.testing.assert_allclose(label, [[0, 0.6, 0.4], p[1], p[2]], rtol=1e-6)
    assert label.dtype == np.float32


def test_noop_leaves_what_was_not_tried_to_imitation_as_reflection_does(env: HeadstartVecEnv) -> None:
    """The first and the third action were tried, of which one changes something; then none."""
    p = np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]])
    some = dataclasses.replace(tried([[0, 0, 2], [0, 0, 0]]), tried=np.array([[True, False, True]] * 2))
    label = imitating(make(Noop, env), p).label(some, None)
    np.testing.assert_allclose(label, [[0, 0.3, 0.7], p[1]], rtol=1e-6)


def test_noop_sees_as_much_luck_as_judges_do(cache: Path) -> None:
    """So it takes as many steps; and what changes half of the time counts half."""
    obstacles = "MiniGrid-Dynamic-Obstacles-6x6-v0"
    demos = collect_demos(obstacles, 2, history=2, cache=cache)
    env = make_vec_env(obstacles, 2, history=2, n_levels=16, cache=cache)
    once = dataclasses.replace(REFLECT, rounds=1, draws=3)
    learners = Reflection(fresh_policy(env), once), Noop(fresh_policy(env), NoopConfig(once))
    steps = [learner.fit(demos, branch(demos), env).env_steps for learner in learners]
    assert steps[0] == steps[1] > 0
    noop = imitating(learners[1], np.array([[0.5, 0.3, 0.2]]))
    noop.drawn = lambda branches, states: iter([tried([[0, 1, 0]]), tried([[0, 2, 3]])])
    np.testing.assert_allclose(noop.label(tried([[0, 1, 0]]), None), [[0, 0.75, 0.25]], rtol=1e-6)


def test_a_random_judge_judges_consequences_with_conviction(
    env: HeadstartVecEnv, branches: Branches, own: tuple[Branches, Simulator]
) -> None:
    """Equal futures are equal to it, buttons are nothing to it, and its scores spread as they should."""
    learner = RandomJudge(fresh_policy(env), RandomJudgeConfig(REFLECT, spread=3.0))
    learner.fit_judges(branches)
    score = learner.judgement(own[0])
    assert score.std() == pytest.approx(3.0, rel=1e-3)
    np.testing.assert_equal(score, learner.judgement(own[0]))  # no dropout
    future, signs = learner.judges.consequences(own[0])
    same = (future == future[:, 4:5]).all(2) & (signs == signs[:, 4:5]).all(2)
    assert same.sum() > 2 * len(same)
    np.testing.assert_allclose(np.where(same, score, score[:, 4:5]), np.repeat(score[:, 4:5], 7, 1), atol=1e-3)
    scale = learner.scale
    np.testing.assert_allclose(learner.judgement(own[0].take(np.arange(3))), score[:3], atol=1e-3)
    assert learner.scale == scale  # one judge for all states
    others = [make(RandomJudge, env, seed=seed).judgement(own[0]) for seed in range(1, 6)]
    assert any((one.argmax(1) != score.argmax(1)).mean() > 0.5 for one in others)  # each seed has another


def test_the_expert_is_asked_in_the_states_that_reflection_judges(
    monkeypatch: pytest.MonkeyPatch, env: HeadstartVecEnv, demos: Demos, branches: Branches
) -> None:
    """As often as there are such states. Labels are smoothed as in bc, and sharpened as in reflection."""
    asked: list[int] = []
    monkeypatch.setattr(controls, "advice", lambda states: (asked.append(len(states)), advice(states))[1])
    learner = make(Dagger, env)
    labels, label = [], learner.label
    learner.label = lambda b, states: (labels.append((b, states.fork(), label(b, states))), labels[-1][2])[1]
    fitted = learner.fit(demos, branches, env)
    assert [0, *(len(b) for b, _, _ in labels)] == asked  # first, whether there is anybody to be asked
    assert fitted.metrics["dagger/queries"] == learner.queries == sum(asked) == 2 * 12
    for _, states, given in labels:
        told = advice(states)
        assert (given.sum(1) > 0).tolist() == (told >= 0).tolist()
        sure, unsure = (0.9 + 0.1 / 7) ** 2, (0.1 / 7) ** 2  # smoothed, then at temperature one half
        wanted = (np.eye(7)[told[told >= 0]] * (sure - unsure) + unsure) / (sure + 6 * unsure)
        np.testing.assert_allclose(given[told >= 0], wanted, rtol=1e-4)


def test_states_without_an_answer_are_left_out_and_counted(
    monkeypatch: pytest.MonkeyPatch, env: HeadstartVecEnv, demos: Demos, branches: Branches
) -> None:
    silent = lambda states: np.where(np.arange(len(states)) % 2, advice(states), -1)  # noqa: E731
    monkeypatch.setattr(controls, "advice", silent)
    learner, fits = make(Dagger, env), []
    fit_policy = Reflection.fit_policy

    def watched(self: Any, demos: Demos, own: list[Branches], labels: list[np.ndarray], updates: int) -> Any:
        fits.append((own, labels))
        return fit_policy(self, demos, own, labels, updates)

    monkeypatch.setattr(Reflection, "fit_policy", watched)
    fitted = learner.fit(demos, branches, env)
    assert fitted.metrics["dagger/unanswered"] == learner.unanswered >= learner.queries / 2 - 4
    for own, labels in fits:
        assert all((label.sum(1) > 0.99).all() for label in labels)
        assert [len(b) for b in own] == [len(label) for label in labels]
    assert sum(map(len, fits[-1][0])) == learner.queries - learner.unanswered


def test_an_environment_without_an_expert_is_refused(
    monkeypatch: pytest.MonkeyPatch, env: HeadstartVecEnv, demos: Demos, branches: Branches
) -> None:
    monkeypatch.setattr(experts, "EXPERTS", {})
    policy = fresh_policy(env)
    before = weights(policy)
    with pytest.raises(UsageError, match="No expert for MiniGrid-DoorKey-5x5-v0"):
        Dagger(policy, DaggerConfig(REFLECT)).fit(demos, branches, env)
    assert all(torch.equal(weight, before[name]) for name, weight in weights(policy).items())  # nothing was learned yet


# ---- a tiny task ----
@pytest.mark.slow
def test_dagger_solves_more_of_a_tiny_task(cache: Path, demos: Demos, branches: Branches) -> None:
    """From two demonstrations and the expert's answers: more unseen levels than from two demonstrations and what
    imitation would do, on average over three seeds."""
    config = dataclasses.replace(
        REFLECT,
        bc=BCConfig(updates=150, batch_size=32, learning_rate=2e-3),
        levels=40,
        level_steps=40,
        states=400,
        round_updates=1000,
    )
    unseen = bank(ENV_ID, "test", 200, cache=cache)
    success = np.zeros((3, 2))
    for seed, which in np.ndindex(success.shape):
        env = make_vec_env(ENV_ID, 2, history=2, horizon=60, n_levels=256, cache=cache)
        policy, kind = fresh_policy(env), (SelfLabel, Dagger)[which]
        kind(policy, type(CONTROLS[kind])(config), seed=seed).fit(demos, branches, env)
        played = evaluate(unseen, policy.actor(), history=2, horizon=60, rng=np.random.default_rng(0))
        success[seed, which] = played[0].mean()
    without, answered = success.mean(0)
    assert answered > without + 0.1, success


def test_the_own_states_can_be_asked_about(own: tuple[Branches, Simulator]) -> None:
    """Those of the tests above are states of known levels."""
    assert isinstance(own[1].states, GridStates)
    assert (advice(own[1]) >= 0).mean() > 0.9
