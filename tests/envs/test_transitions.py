"""Demonstrations and branches: what they refuse, what they do not have, and the steps that a branch is made of."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headstart.envs.collect import collect_demos, replay
from headstart.envs.errors import DataError
from headstart.envs.transitions import Branches, Demos

A, T, F, L = 7, 3, 50, 4  # actions, frames in an observation, bytes of a frame, mission tokens


def observations(n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(n)
    return {
        "frames": rng.integers(100, size=(n, T, F), dtype=np.uint8),
        "actions": rng.integers(A, size=(n, T - 1), dtype=np.uint8),
        "mission": rng.integers(9, size=(n, L), dtype=np.uint8),
    }


def demos(**changes: Any) -> Demos:
    fields = {
        "env_id": "MiniGrid-DoorKey-5x5-v0",
        "horizon": 20,
        "seed": np.array([5, 9]),
        "length": np.array([2, 3]),
        "action": np.arange(5),
        "state_hash": np.arange(5, dtype=np.uint64),
        "obs": observations(5),
    }
    return Demos(**{**fields, **changes})


def branches(n: int = 2, horizon: int = 3, **changes: Any) -> Branches:
    rng = np.random.default_rng(0)
    fields = {
        "obs": observations(n),
        "expert_action": rng.integers(A, size=n),
        "action": rng.integers(A, size=(n, A, horizon), dtype=np.uint8),
        "future": rng.integers(100, size=(n, A, horizon, F), dtype=np.uint8),
        "revisit": np.zeros((n, A), np.bool_),
        "ended": np.zeros((n, A, horizon), np.bool_),
        "env_steps": n * A * horizon,
    }
    return Branches(**{**fields, **changes})


# ---- what they are ----
@pytest.mark.parametrize("kind", [Demos, Branches])
def test_there_is_no_reward_in_them(kind: type) -> None:
    fields = {field.name for field in dataclasses.fields(kind)}
    assert not [name for name in fields if "reward" in name or "success" in name or "return" in name]
    assert "terminated" not in fields  # where only success ends an episode, that would be the reward


@pytest.mark.parametrize("made", [demos, branches])
def test_they_cannot_be_changed(made: Any) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        made().obs = {}


def test_demonstrations_know_their_episodes() -> None:
    d = demos()
    assert len(d) == 5
    assert d.history == T - 1
    assert d.episode.tolist() == [0, 0, 1, 1, 1]
    assert d.dropped == 0


def test_the_present_of_a_branch_is_the_newest_frame() -> None:
    b = branches()
    assert len(b) == 2
    np.testing.assert_equal(b.frame, b.obs["frames"][:, T - 1])


# ---- what they refuse ----
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"length": np.array([], np.int64), "seed": np.array([], np.int64)}, "empty"),
        ({"length": np.array([5, 0])}, "empty"),
        ({"seed": np.array([5])}, "Demos.seed"),
        ({"action": np.arange(4)}, "Demos.action"),
        ({"state_hash": np.arange(6, dtype=np.uint64)}, "Demos.state_hash"),
        ({"obs": observations(4)}, "frames"),
    ],
)
def test_demonstrations_that_do_not_fit_together_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(DataError, match=named):
        demos(**changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"expert_action": np.zeros(3, np.int64)}, "expert_action"),
        ({"future": np.zeros((2, A, 2, F), np.uint8)}, "future"),
        ({"future": np.zeros((2, A, 3, F - 1), np.uint8)}, "future"),
        ({"revisit": np.zeros((2, A, 3), np.bool_)}, "revisit"),
        ({"ended": np.zeros((2, A), np.bool_)}, "ended"),
        ({"expert_action": np.array([0, A])}, f"action {A}"),
    ],
)
def test_branches_that_do_not_fit_together_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(DataError, match=named):
        branches(**changes)


# ---- transitions ----
def test_transitions_worked_by_hand() -> None:
    """One state, two actions, three steps; the first branch ends after its second step."""
    frame = {name: np.full(F, number, np.uint8) for number, name in enumerate("zabcdefgh")}
    obs = {
        "frames": np.stack([frame["z"], frame["a"], frame["b"]])[None],
        "actions": np.array([[7, 5]], np.uint8),
        "mission": np.array([[3, 1]], np.uint8),
    }
    future = np.stack([np.stack([frame[f] for f in futures]) for futures in ("cdd", "efg")])[None]
    b = Branches(
        obs=obs,
        expert_action=np.array([-1]),
        action=np.array([[[0, 4, 2], [1, 3, 6]]], np.uint8),
        future=future,
        revisit=np.zeros((1, 2), np.bool_),
        ended=np.array([[[False, True, True], [False, False, False]]]),
        env_steps=5,
    )
    before, action, after = b.transitions()
    seen = [
        ["".join("zabcdefgh"[f[0]] for f in frames), tuple(acts)]
        for frames, acts in zip(before["frames"], before["actions"].tolist(), strict=True)
    ]
    assert seen == [
        ["zab", (7, 5)],
        ["zab", (7, 5)],
        ["abc", (5, 0)],
        ["abe", (5, 1)],
        ["bef", (1, 3)],
    ]
    assert action.tolist() == [0, 1, 4, 3, 6]
    assert action.dtype == np.int64
    assert "".join("zabcdefgh"[f[0]] for f in after) == "cedfg"
    assert before["mission"].tolist() == [[3, 1]] * 5


def test_transitions_of_one_step_are_all_branches() -> None:
    b = branches(n=3, horizon=1, ended=np.ones((3, A, 1), np.bool_))
    before, action, after = b.transitions()
    np.testing.assert_equal(before, {name: np.repeat(value, A, axis=0) for name, value in b.obs.items()})
    np.testing.assert_equal(action, b.action.reshape(-1))
    np.testing.assert_equal(after, b.future.reshape(-1, F))


def test_transitions_leave_the_branches_alone() -> None:
    b = branches()
    kept = {name: np.copy(value) for name, value in b.obs.items()}
    before, action, after = b.transitions()
    for array in (*before.values(), action, after):
        array[:] = 0
    np.testing.assert_equal(b.obs, kept)
    assert b.future.any()


def test_some_of_the_demonstrations(tmp_path: Path) -> None:
    demos = collect_demos("MiniGrid-DoorKey-5x5-v0", 3, history=2, cache=tmp_path)
    part = demos.take(np.array([2, 0]))
    assert part.length.tolist() == demos.length[[2, 0]].tolist()
    assert part.seed.tolist() == demos.seed[[2, 0]].tolist()
    rows = np.concatenate([np.flatnonzero(demos.episode == e) for e in (2, 0)])
    np.testing.assert_equal(part.action, demos.action[rows])
    np.testing.assert_equal(part.obs["frames"], demos.obs["frames"][rows])
    np.testing.assert_equal(part.state_hash, demos.state_hash[rows])
    replay(part)
    with pytest.raises(DataError, match="empty"):
        demos.take(np.array([], np.int64))


def test_branches_are_joined_and_taken() -> None:
    one, two = branches(), dataclasses.replace(branches(), env_steps=5)
    whole = Branches.join([one, two])
    assert len(whole) == 2 * len(one)
    assert whole.env_steps == one.env_steps + 5
    for part, at in ((one, np.arange(len(one))), (two, np.arange(len(one), len(whole)))):
        taken = whole.take(at)
        for name in ("expert_action", "action", "future", "revisit", "ended"):
            np.testing.assert_equal(getattr(taken, name), getattr(part, name))
        np.testing.assert_equal(taken.obs, part.obs)
