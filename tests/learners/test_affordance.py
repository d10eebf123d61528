"""Affordances: the loss by hand, what they are sure of, and that sparing changes what is executed and nothing else."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import fresh_policy, weights

from headstart.envs import collect
from headstart.envs.collect import branch, collect_demos, practise, replay
from headstart.envs.errors import UsageError
from headstart.envs.simulator import uniform_actor
from headstart.envs.transitions import Branches, Demos
from headstart.envs.vector import HeadstartVecEnv, make_vec_env
from headstart.learners import BCConfig, JudgeConfig, Reflection, ReflectionConfig, affordance
from headstart.learners.affordance import Affordances

ENV_ID = "MiniGrid-DoorKey-5x5-v0"
SPARING = ReflectionConfig(
    bc=BCConfig(updates=3, batch_size=8),
    judge=JudgeConfig(members=1, updates=2),
    levels=3,
    states=180,
    round_updates=2,
)


@pytest.fixture(scope="module")
def demos(cache: Path) -> Demos:
    return collect_demos(ENV_ID, 8, history=2, cache=cache)


@pytest.fixture(scope="module")
def branches(demos: Demos) -> Branches:
    return branch(demos)


@pytest.fixture(scope="module")
def env(cache: Path) -> HeadstartVecEnv:
    return make_vec_env(ENV_ID, 2, history=2, n_levels=64, cache=cache)


def changes(branches: Branches) -> np.ndarray:
    return (branches.future[:, :, 0] != branches.frame[:, None]).any(2)


def test_loss_worked_by_hand(env: HeadstartVecEnv, branches: Branches, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every action has one chance in four; two of one state were tried, and one of them has changed something."""
    monkeypatch.setattr(affordance, "UPDATES", 1)
    learner = Affordances(fresh_policy(env))
    for member in learner.members:
        torch.nn.init.zeros_(member[-1].weight)  # type: ignore[index, arg-type]
        torch.nn.init.constant_(member[-1].bias, math.log(1 / 3))  # type: ignore[index, arg-type]
    one = branches.take(np.array([0]))
    assert changes(one)[0, [0, 6]].tolist() == [True, False]
    tried = np.zeros((1, 7), np.bool_)
    tried[0, 0] = tried[0, 6] = True  # turn left, and "done", which does nothing
    metrics = learner.fit(dataclasses.replace(one, tried=tried))
    assert metrics["reflect/affordance_loss"] == pytest.approx(-(math.log(1 / 4) + math.log(3 / 4)) / 2)


def test_they_are_sure_where_nothing_changes_and_nowhere_else(
    env: HeadstartVecEnv, demos: Demos, branches: Branches
) -> None:
    learner = Affordances(fresh_policy(env))
    untaught = learner.nothing(branches.frame)
    learner.fit(branches)
    levels = env.fresh(20, np.random.default_rng(0))
    own = branch(practise(levels, uniform_actor(7), steps=20, rng=np.random.default_rng(1))[0])
    sure = learner.nothing(own.frame)
    assert not untaught.any()
    assert sure.sum() > 0.7 * (~changes(own)).sum()
    assert (sure & changes(own)).sum() <= 0.01 * sure.sum()


def test_one_that_doubts_is_enough(env: HeadstartVecEnv, branches: Branches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affordance, "UPDATES", 100)
    learner = Affordances(fresh_policy(env))
    learner.fit(branches)
    assert learner.nothing(branches.frame)[:, 6].all()
    torch.nn.init.constant_(learner.members[1][-1].bias[6:], 9.0)  # type: ignore[index, arg-type]
    assert not learner.nothing(branches.frame)[:, 6].any()


class Knows:
    """Affordances that say this of every state."""

    def __init__(self, nothing: np.ndarray):
        self.what = nothing

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        return self.what


@pytest.mark.parametrize("walked", [True, False])
def test_branches_are_the_same_for_fewer_steps(env: HeadstartVecEnv, demos: Demos, walked: bool) -> None:
    """With what is known of a walk and by foresight, as if everything had been executed."""
    learner = Affordances(fresh_policy(env))
    states, walk = practise(replay(demos), uniform_actor(7), steps=3, rng=np.random.default_rng(0))
    full = branch(states)
    learner.nothing = Knows(~changes(full))  # type: ignore[method-assign]
    found = learner.branch(states, walk if walked else None)
    for part in ("action", "future", "revisit", "ended", "tried", "expert_action"):
        np.testing.assert_equal(getattr(found, part), getattr(full, part), err_msg=part)
    taken = walk.action[:, None] == np.arange(7)
    assert full.env_steps == full.tried.size
    assert found.env_steps == (changes(full) & ~taken if walked else changes(full)).sum()


def test_what_a_walk_has_shown_is_believed_before_foresight(env: HeadstartVecEnv, demos: Demos) -> None:
    learner = Affordances(fresh_policy(env))
    states, walk = practise(replay(demos), uniform_actor(7), steps=1, rng=np.random.default_rng(0))
    full = branch(states)
    learner.nothing = Knows(np.ones_like(full.tried))  # type: ignore[method-assign]
    found = learner.branch(states, walk)
    went_on = np.flatnonzero(walk.action >= 0)
    here = went_on, walk.action[went_on]
    assert found.env_steps == 0
    assert changes(full)[here].any()
    np.testing.assert_equal(found.future[here], full.future[here])
    np.testing.assert_equal(found.revisit[here], full.revisit[here])


def test_demonstrations_teach_what_need_not_be_executed(env: HeadstartVecEnv, demos: Demos, branches: Branches) -> None:
    """In the first two of eight all is executed that the expert has not done; in the others, what is not foreseen."""
    learner = Affordances(fresh_policy(env))
    taught: list[Branches] = []
    fit = learner.fit

    def watched(real: Branches) -> dict[str, float]:
        taught.append(real)
        return fit(real)

    learner.fit = watched  # type: ignore[method-assign]
    found = learner.branch_demos(demos)
    first, everything = taught
    quarter = int(demos.length[:2].sum())
    assert len(first) == quarter
    assert first.env_steps == 6 * quarter + 2  # the demonstrations do not show what their last actions lead to
    assert first.tried.all()
    assert len(everything) == len(demos)
    assert not everything.tried.all()
    changed = changes(branches)
    assert (~everything.tried & changed).sum() <= 0.01 * changed.sum()
    assert everything.env_steps == found.env_steps < 0.65 * branches.env_steps
    real = everything.tried
    np.testing.assert_equal(found.future[real], branches.future[real])
    np.testing.assert_equal(found.revisit[real], branches.revisit[real])
    np.testing.assert_equal(found.ended, branches.ended)
    assert found.revisit[~real].all()
    assert found.tried.all()
    np.testing.assert_equal(found.expert_action, demos.action)
    assert found.env_id == demos.env_id


def test_one_demonstration_is_enough(env: HeadstartVecEnv, demos: Demos) -> None:
    one = demos.take(np.array([3]))
    found = Affordances(fresh_policy(env)).branch_demos(one)
    np.testing.assert_equal(found.future, branch(one).future)
    assert found.env_steps == 6 * len(one) + 1


# ---- reflection with them ----
def test_a_sparing_fit_counts_what_it_executes(
    env: HeadstartVecEnv, demos: Demos, branches: Branches, monkeypatch: pytest.MonkeyPatch
) -> None:
    executed: list[int] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        found = branch(*arguments, **options)
        executed.append(int(found.tried.sum()))
        return found

    def watched(*arguments: Any, **options: Any) -> Any:
        states, walk = practise(*arguments, **options)
        executed.append(walk.env_steps)
        return states, walk

    monkeypatch.setattr(affordance, "branch", counted)
    monkeypatch.setattr(collect, "practise", watched)
    fitted = Reflection(fresh_policy(env), SPARING).fit(demos, practise=env)
    spared = sum(executed)
    assert fitted.env_steps == spared
    assert fitted.updates == SPARING.total_updates == 3 + 2 + 2 * 2
    wasteful = Reflection(fresh_policy(env), dataclasses.replace(SPARING, sparing=False)).fit(demos, branches, env)
    assert fitted.env_steps < 0.7 * (wasteful.env_steps + branches.env_steps)


@pytest.mark.parametrize("changed", [{"k": 3}, {"judge": JudgeConfig(horizon=2)}])
def test_it_knows_one_step_of_every_action(changed: dict) -> None:
    with pytest.raises(UsageError, match="sparing=True knows one step ahead"):
        dataclasses.replace(SPARING, **changed)


def test_it_makes_its_own_branches_or_learns_from_those_that_there_are(
    env: HeadstartVecEnv, demos: Demos, branches: Branches, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert SPARING.horizon == 0
    taught, fit = [], Affordances.fit
    monkeypatch.setattr(Affordances, "fit", lambda self, branches: (taught.append(branches), fit(self, branches))[1])
    judged = []
    for given in (None, branches):
        learner = Reflection(fresh_policy(env), SPARING)
        judges_fit = learner.judges.fit
        learner.judges.fit = lambda b, o, fit=judges_fit: (judged.append(b), fit(b, o))[1]  # type: ignore[method-assign]
        learner.fit(demos, given, env)
    first, all_of_its_own, given = taught
    assert len(first) < len(all_of_its_own) == len(demos)
    assert given.tried.all()
    np.testing.assert_equal(given.future, branches.future)
    np.testing.assert_equal(judged[1].future, branches.future)
    with pytest.raises(UsageError, match=r"needs fit\(demos, practise=env\)"):
        Reflection(fresh_policy(env), SPARING).fit(demos)


def test_demonstrations_that_cannot_be_branched_are_refused_before_anything_is_learned(
    env: HeadstartVecEnv, demos: Demos
) -> None:
    policy = fresh_policy(env)
    before = weights(policy)
    record = dataclasses.replace(demos, unbranchable="it is a record.")
    with pytest.raises(UsageError, match="cannot be branched: it is a record"):
        Reflection(policy, SPARING).fit(record, practise=env)
    assert all(torch.equal(weight, before[name]) for name, weight in weights(policy).items())
