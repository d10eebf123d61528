"""Demonstrations, branches, practice: proven against Python minigrid, counted step by step."""

import copy
import json
import shutil
import weakref
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from actors import decided, repeats

from headstart.envs import banks, collect, engine, storage
from headstart.envs.banks import bank, import_seeds
from headstart.envs.collect import branch, collect_demos, load_demos, practise, replay, save_demos
from headstart.envs.datasets import demonstrate
from headstart.envs.errors import DataError, UsageError
from headstart.envs.levels import export_level, level_hash
from headstart.envs.mirror import mirror_branches
from headstart.envs.simulator import GridStates, Obs, Simulator, uniform_actor
from headstart.envs.transitions import Branches, Demos, Walk

DOOR_KEY = "MiniGrid-DoorKey-5x5-v0"
EMPTY = "MiniGrid-Empty-5x5-v0"
SOLUTION = [engine.FORWARD, engine.FORWARD, engine.RIGHT, engine.FORWARD, engine.FORWARD]  # of EMPTY


def python_frame(env: gymnasium.Env) -> np.ndarray:
    """What a Python environment shows now, as a frame (50,)."""
    obs: dict[str, Any] = env.unwrapped.gen_obs()  # type: ignore[attr-defined]
    cells = obs["image"].astype(np.int64) @ (engine.TYPE_STEP, engine.COLOR_STEP, 1)
    return np.append(cells.reshape(-1), obs["direction"]).astype(np.uint8)


@pytest.fixture(scope="module")
def demos(cache: Path) -> Demos:
    return collect_demos(DOOR_KEY, 3, seed=0, history=2, cache=cache)


# ---- demonstrations ----
def test_demonstrations_solve_their_levels_in_python_minigrid(demos: Demos) -> None:
    first = 0
    for seed, length in zip(demos.seed.tolist(), demos.length.tolist(), strict=True):
        env = gymnasium.make(DOOR_KEY)
        env.reset(seed=seed)
        frames, terminated = [], False
        for i in range(first, first + length):
            assert not terminated
            frames.append(python_frame(env))
            recent = [np.zeros(50, np.uint8)] * (demos.history + 1 - len(frames)) + frames[-demos.history - 1 :]
            np.testing.assert_equal(demos.obs["frames"][i], np.array(recent))
            _, _, terminated, _, _ = env.step(demos.action[i])
        assert terminated
        first += length
    assert first == len(demos)


def test_demonstrations_are_drawn_by_their_seed_from_their_split(cache: Path, demos: Demos) -> None:
    again = collect_demos(DOOR_KEY, 3, seed=0, history=2, cache=cache)
    np.testing.assert_equal(vars(again), vars(demos))
    others = collect_demos(DOOR_KEY, 3, seed=1, history=2, cache=cache)
    assert set(others.seed.tolist()) != set(demos.seed.tolist())
    for split in ("train", "validation", "test"):
        drawn = collect_demos(DOOR_KEY, 2, split=split, cache=cache)
        assert set(banks.split_of(level_hash(import_seeds(DOOR_KEY, drawn.seed.tolist()).rows))) == {split}


def test_splits_share_no_level(cache: Path) -> None:
    """Not one of the levels that are trained, validated or tested on is the same as another split's."""
    hashes = {split: set(level_hash(bank(DOOR_KEY, split, 300, cache=cache).rows).tolist()) for split in banks.SPLITS}
    assert all(hashes.values())
    assert sum(map(len, hashes.values())) == len(set().union(*hashes.values()))


def test_levels_that_the_expert_needs_too_long_for_are_replaced_and_counted(cache: Path) -> None:
    lengths = collect_demos(DOOR_KEY, 40, cache=cache).length
    horizon = int(np.median(lengths))
    demos = collect_demos(DOOR_KEY, 20, horizon=horizon, cache=cache)
    assert demos.horizon == horizon
    assert demos.length.max() <= horizon
    assert len(demos.length) == 20
    asked_of_all = collect_demos(DOOR_KEY, 20 + demos.dropped, cache=cache)
    assert demos.dropped == (asked_of_all.length > horizon).sum() > 0
    np.testing.assert_equal(demos.seed, asked_of_all.seed[asked_of_all.length <= horizon])


def test_the_step_limit_is_minigrids_own_for_every_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """BabyAI allows long instructions more steps: the first level's limit is not that of the others."""
    sequences = import_seeds("BabyAI-GoToSeqS5R2-v0", range(16))
    limits = engine.max_steps(sequences.rows)
    shortest_first = sequences[np.argsort(limits, kind="stable")]
    monkeypatch.setattr(collect, "bank", lambda *arguments, **options: shortest_first)
    assert limits.max() > limits.min()
    assert collect_demos("BabyAI-GoToSeqS5R2-v0", 4).horizon == limits.max()


@pytest.mark.parametrize(
    ("wanted", "error", "told"),
    [
        ({"episodes": 0}, UsageError, f"{DOOR_KEY}: episodes=0. Give at least 1"),
        ({"episodes": 1.5}, UsageError, f"{DOOR_KEY}: episodes=1.5. Give a whole number"),
        ({"episodes": 2, "seed": None}, UsageError, "seed=None. Give a whole number"),
        ({"episodes": 2, "env_id": dict}, UsageError, r"not by a type. .*demonstrate\(make_env, expert, episodes\)"),
        ({"episodes": 2, "horizon": 2}, DataError, "solved only 0 of 5 levels within 2 steps.*raise the horizon"),
        ({"episodes": 2, "env_id": "CartPole-v1"}, UsageError, "No expert for CartPole-v1"),
        ({"episodes": 2, "split": "exam"}, UsageError, "exam"),
        ({"episodes": 2, "history": -1}, UsageError, "history=-1. Give at least 0"),
        ({"episodes": 2, "horizon": 0}, UsageError, "horizon=0. Give at least 1"),
    ],
)
def test_demonstrations_that_cannot_be_had(
    monkeypatch: pytest.MonkeyPatch, cache: Path, wanted: dict[str, Any], error: type, told: str
) -> None:
    monkeypatch.setattr(collect, "bank", lambda env_id, split, n, **rest: bank(env_id, split, 5, **rest))
    with pytest.raises(error, match=told):
        collect_demos(**{"env_id": DOOR_KEY, **wanted}, cache=cache)


# ---- replay, save, load ----
def test_replay_is_in_the_experts_states(demos: Demos) -> None:
    states = replay(demos)
    np.testing.assert_equal(states.state_hash(), demos.state_hash)
    np.testing.assert_equal(states.observe(), demos.obs)
    assert not states.done.any()
    states.step(demos.action)  # the last action of each episode, and no other, ends it
    np.testing.assert_equal(np.flatnonzero(states.terminated), np.cumsum(demos.length) - 1)
    assert states.success().sum() == len(demos.length)


def test_replay_names_the_demonstration_and_the_step_that_differ(demos: Demos) -> None:
    state_hash = demos.state_hash.copy()
    state_hash[demos.length[0] + 4 :] += np.uint64(1)
    with pytest.raises(DataError, match=rf"demonstration 1 .*level seed {demos.seed[1]}\), step 4\b"):
        replay(Demos(**{**vars(demos), "state_hash": state_hash}))


def test_demonstrations_come_back_as_they_were(demos: Demos, tmp_path: Path) -> None:
    save_demos(tmp_path / "demos.npz", demos)
    np.testing.assert_equal(vars(load_demos(tmp_path / "demos.npz", history=demos.history)), vars(demos))
    longer = load_demos(tmp_path / "demos.npz", history=4)
    assert longer.history == 4
    np.testing.assert_equal(longer.obs["frames"][:, -3:], demos.obs["frames"])
    assert (tmp_path / "demos.npz").stat().st_size < 16 * len(demos) + 2000


def test_demonstrations_are_played_once_when_they_are_read(demos: Demos, tmp_path: Path, stepped: list[int]) -> None:
    save_demos(tmp_path / "demos.npz", demos)
    load_demos(tmp_path / "demos.npz")
    assert sum(stepped) == len(demos)


def saved(path: Path, demos: Demos, *, meta: dict[str, Any] | None = None, **arrays: np.ndarray) -> Path:
    """Demonstrations with other arrays or facts, but in good order otherwise: right checksums, right manifest."""
    save_demos(path, demos)
    kept, facts = storage.load_arrays(path, kind=collect.KIND, schema=collect.SCHEMA)
    storage.save_arrays(
        path, {**kept, **arrays}, kind=collect.KIND, schema=collect.SCHEMA, meta={**facts, **(meta or {})}
    )
    return path


def refused(path: Path, *told: str) -> None:
    with pytest.raises(DataError) as refusal:
        load_demos(path, history=2)
    assert refusal.value.exit_code == 3
    for words in (str(path), *told):
        assert words in str(refusal.value)


def test_a_flipped_action_is_refused(demos: Demos, tmp_path: Path) -> None:
    action = demos.action.astype(np.uint8)
    at = int(demos.length[0]) + 2  # the third step of the second demonstration
    action[at] = engine.LEFT if action[at] != engine.LEFT else engine.RIGHT
    refused(saved(tmp_path / "demos.npz", demos, action=action), "demonstration 1", "step 3", "collect it again")


def test_a_changed_hash_is_refused(demos: Demos, tmp_path: Path) -> None:
    state_hash = demos.state_hash.copy()
    state_hash[5] ^= np.uint64(1)
    refused(saved(tmp_path / "demos.npz", demos, state_hash=state_hash), "demonstration 0", "step 5")


def test_another_level_is_refused(demos: Demos, tmp_path: Path) -> None:
    hashes = level_hash(import_seeds(DOOR_KEY, range(50)).rows)
    of_demo = level_hash(import_seeds(DOOR_KEY, demos.seed[2:3].tolist()).rows)
    seed = demos.seed.copy()
    seed[2] = np.flatnonzero(hashes != of_demo)[0]
    refused(saved(tmp_path / "demos.npz", demos, seed=seed), f"level seed {seed[2]}")


def test_another_minigrid_is_refused(demos: Demos, tmp_path: Path) -> None:
    path = saved(tmp_path / "demos.npz", demos, meta={"minigrid": "2.9.9"})
    refused(path, "minigrid 2.9.9", banks.version("minigrid"), "minigrid==2.9.9")


def test_an_episode_that_ends_early_is_refused(demos: Demos, tmp_path: Path) -> None:
    path = saved(tmp_path / "demos.npz", demos, meta={"horizon": int(demos.length.max()) - 1})
    refused(path, "its episode is over", "raise the horizon")


def test_damaged_files_are_refused(demos: Demos, tmp_path: Path) -> None:
    path = saved(tmp_path / "demos.npz", demos)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    refused(path)
    shutil.copy(path, tmp_path / "alone.npz")
    refused(tmp_path / "alone.npz", "manifest.json")
    refused(tmp_path / "nothing.npz", "no such file")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert "minigrid" in manifest["artefacts"]["demos.npz"][0]["meta"]


# ---- branches ----
def test_branches_are_those_of_python_deep_copies(demos: Demos) -> None:
    """Each action at each expert state, and the agent's own actions after it, in copies of minigrid itself."""
    horizon = 3
    b = branch(demos, horizon=horizon, rng=np.random.default_rng(1))
    np.testing.assert_equal(b.action[:, :, 0], np.tile(np.arange(7, dtype=np.uint8), (len(demos), 1)))
    np.testing.assert_equal(b.obs, demos.obs)
    np.testing.assert_equal(b.expert_action, demos.action)
    assert len(np.unique(b.action[:, :, 1:])) == 7
    i = steps = 0
    for seed, length in zip(demos.seed.tolist(), demos.length.tolist(), strict=True):
        env = gymnasium.make(DOOR_KEY).unwrapped
        env.reset(seed=seed)
        shown = [python_frame(env)]
        for _ in range(length):
            for k in range(7):
                fork, over = copy.deepcopy(env), False
                for h in range(horizon):
                    if not over:
                        _, _, terminated, truncated, _ = fork.step(int(b.action[i, k, h]))
                        over, steps = terminated or truncated, steps + 1
                    np.testing.assert_equal(b.future[i, k, h], python_frame(fork))
                    assert b.ended[i, k, h] == over
                    if h == 0:
                        assert b.revisit[i, k] == any((python_frame(fork) == earlier).all() for earlier in shown)
            env.step(int(demos.action[i]))
            shown.append(python_frame(env))
            i += 1
    assert i == len(demos)
    assert b.env_steps == steps
    assert b.ended[:, :, -1].any()
    assert b.revisit.any()
    assert not b.revisit.all()


def test_own_states_are_branched_as_exported_levels_are() -> None:
    level = import_seeds(DOOR_KEY, [3])
    start = Simulator(GridStates.of(level), history=1, horizon=40).fork(np.zeros(8, np.int64))
    states, _ = practise(start, uniform_actor(7), steps=25, rng=np.random.default_rng(2))
    assert isinstance(states.states, GridStates)
    b = branch(states)
    assert (b.expert_action == -1).all()
    assert len(b) > 20
    for i, row in enumerate(states.states.rows):
        env = export_level(row, DOOR_KEY, 3)
        for k in range(7):
            fork = copy.deepcopy(env)
            fork.step(k)
            np.testing.assert_equal(b.future[i, k, 0], python_frame(fork))


def test_only_actions_that_exist_are_tried() -> None:
    """Dynamic-Obstacles has three, and a fourth would be a second left."""
    levels = import_seeds("MiniGrid-Dynamic-Obstacles-5x5-v0", range(3))
    found = branch(Simulator(GridStates.of(levels), history=2, horizon=9))
    assert found.action.tolist() == [[[0], [1], [2]]] * 3
    assert (found.obs["actions"] == 3).all()
    assert found.env_steps == 9


def test_a_branch_goes_on_with_the_agents_own_actions(demos: Demos) -> None:
    """The actor is asked at every step after the first, with what it would remember there."""
    b = branch(demos, horizon=4, actor=decided)
    states = replay(demos)
    for k in range(7):
        fork = states.fork()
        for h in range(4):
            action = np.full(len(states), k) if h == 0 else decided(fork.observe(), np.random.default_rng())
            over = fork.done
            fork.step(action)
            np.testing.assert_equal(b.action[~over, k, h], action[~over].astype(np.uint8))
            np.testing.assert_equal(b.future[:, k, h], fork.frame())
            np.testing.assert_equal(b.ended[:, k, h], fork.done)


def test_branching_is_decided_by_its_generator_and_leaves_the_states_alone(demos: Demos) -> None:
    states = replay(demos)
    before = states.state_hash(), states.observe(), states.t.copy()
    one, same, other = (branch(states, horizon=3, rng=np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_equal((states.state_hash(), states.observe(), states.t), before)
    np.testing.assert_equal(vars(one), vars(same))
    assert (one.action != other.action).any()


class Copied(gymnasium.Env):
    """Which of its copies are alive, and how many were at most."""

    action_space: gymnasium.Space = gymnasium.spaces.Discrete(3)
    observation_space: gymnasium.Space = gymnasium.spaces.Box(-99, 99, (1,), np.float32)
    alive: ClassVar[weakref.WeakSet] = weakref.WeakSet()
    most = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.at = np.float32(0)
        return np.array([self.at]), {}

    def step(self, action: Any) -> Any:
        self.at += np.float32(action + self.np_random.random())
        return np.array([self.at]), 0.0, bool(self.at > 15), False, {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        Copied.alive.add(self)
        Copied.most = max(Copied.most, len(Copied.alive))


@pytest.mark.parametrize("k", [None, 2])
def test_copies_of_python_environments_live_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch, k: int | None) -> None:
    demos = demonstrate(Copied, lambda obs: int(obs[0]) % 3, 3, horizon=10, mode="pickle")
    states, results = replay(demos), []
    for copies in (10**6, 7):
        Copied.alive.clear()
        Copied.most = 0
        monkeypatch.setattr(collect, "COPIES", copies)
        results.append(vars(branch(states, k=k, rng=np.random.default_rng(0))))
        assert Copied.most == min(copies, len(states) * (k or 3))
    np.testing.assert_equal(*results)


def test_transitions_are_what_a_simulator_would_remember(demos: Demos) -> None:
    b = branch(demos, horizon=3, rng=np.random.default_rng(3))
    n, a, horizon = b.action.shape
    forks = replay(demos).fork(np.repeat(np.arange(n), a))
    obs, actions, frames = [], [], []
    for h in range(horizon):
        live = ~forks.done
        action = b.action[:, :, h].reshape(-1)
        obs.append({name: value[live] for name, value in forks.observe().items()})
        forks.step(action)
        actions.append(action[live])
        frames.append(forks.frame()[live])
    before, action, after = b.transitions()
    np.testing.assert_equal(before, {name: np.concatenate([o[name] for o in obs]) for name in before})
    np.testing.assert_equal(action, np.concatenate(actions))
    np.testing.assert_equal(after, np.concatenate(frames))
    assert len(action) == b.env_steps


def test_every_step_of_a_branch_is_counted(demos: Demos, stepped: list[int]) -> None:
    states = replay(demos)
    stepped.clear()
    for horizon in (1, 5):
        b = branch(states, horizon=horizon)
        assert b.env_steps == sum(stepped)
        stepped.clear()
    assert b.env_steps < len(demos) * 7 * 5  # ended branches are not stepped
    b = branch(demos)
    assert sum(stepped) == b.env_steps + len(demos)  # and once more along the demonstrations


class Forgetful(GridStates):
    """A copy is not what was copied."""

    def take(self, index: np.ndarray) -> "Forgetful":
        rows = self.rows[index]
        rows[-1:] = self.rows[:1]
        return Forgetful(rows, self._mission[index])


class Shared(GridStates):
    """The last copy is the original itself: stepping it steps the original."""

    def take(self, index: np.ndarray) -> GridStates:
        states = GridStates(self.rows[index], self._mission[index])

        def step(at: np.ndarray, action: np.ndarray, exact: Any = None) -> Any:
            ended = GridStates.step(states, at, action)
            self.rows[index[-1]] = states.rows[-1]
            return ended

        states.step = step  # type: ignore[method-assign]
        return states


@pytest.mark.parametrize(("kind", "told"), [(Forgetful, "not in the state"), (Shared, "has changed the state")])
def test_a_fork_that_is_not_exact_is_refused(kind: type[GridStates], told: str) -> None:
    of_levels = GridStates.of(import_seeds(DOOR_KEY, range(4)))
    good = Simulator(GridStates(of_levels.rows.copy(), of_levels.mission()), history=1, horizon=9)
    assert isinstance(branch(good), Branches)
    bad = Simulator(kind(of_levels.rows.copy(), of_levels.mission()), history=1, horizon=9)
    with pytest.raises(DataError, match=f"{told}.*cannot be branched"):
        branch(bad)


# ---- practice ----
def test_practice_returns_the_states_it_was_in(stepped: list[int]) -> None:
    actions = [engine.LEFT, engine.RIGHT, engine.FORWARD, engine.FORWARD, engine.FORWARD, engine.RIGHT]
    start = Simulator(GridStates.of(import_seeds(EMPTY, [0, 1])), history=2, horizon=50)
    start.step(np.array([engine.RIGHT, engine.DONE]))
    before = start.state_hash(), start.observe()
    stepped.clear()
    states, walk = practise(start, repeats(actions), steps=6, rng=np.random.default_rng())
    np.testing.assert_equal((start.state_hash(), start.observe()), before)
    assert walk.env_steps == sum(stepped) == 12
    walker, wanted = start.fork(), [start]
    for action in actions:
        walker.step(np.full(2, action))
        wanted.append(walker.fork())
    np.testing.assert_equal(states.state_hash(), np.concatenate([w.state_hash() for w in wanted]))
    for name, value in states.observe().items():
        np.testing.assert_equal(value, np.concatenate([w.observe()[name] for w in wanted]))
    np.testing.assert_equal(states.revisit, np.concatenate([w.revisit for w in wanted]))


def test_the_actor_is_asked_with_what_it_remembers() -> None:
    asked: list[Obs] = []

    def watched(obs: Obs, rng: np.random.Generator) -> np.ndarray:
        asked.append(obs)
        return rng.integers(7, size=len(obs["frames"]))

    start = Simulator(GridStates.of(import_seeds(DOOR_KEY, range(5))), history=2, horizon=4)
    states, walk = practise(start, watched, steps=9, rng=np.random.default_rng(0))
    assert len(asked) == 4  # the horizon of the episodes is shorter than the practice
    assert walk.env_steps == 20
    np.testing.assert_equal(states.observe(), {name: np.concatenate([obs[name] for obs in asked]) for name in asked[0]})


def test_practice_leaves_ended_episodes_out(stepped: list[int]) -> None:
    start = Simulator(GridStates.of(import_seeds(EMPTY, [0, 1, 2])), history=1, horizon=50)
    for action in SOLUTION:  # the first is at the goal before practice begins
        start.step(np.array([action, engine.LEFT, engine.LEFT]))
    stepped.clear()
    states, walk = practise(start.fork(np.array([0, 1])), uniform_actor(1), steps=3, rng=np.random.default_rng())
    assert walk.env_steps == sum(stepped) == 3  # of the one that was still running
    assert states.t.tolist() == [5, 6, 7, 8]

    fresh = Simulator(GridStates.of(import_seeds(EMPTY, [0])), history=1, horizon=50)
    stepped.clear()
    states, walk = practise(fresh, repeats(SOLUTION * 2), steps=10, rng=np.random.default_rng())
    assert walk.env_steps == sum(stepped) == 5  # nobody acts after the goal
    assert states.t.tolist() == [0, 1, 2, 3, 4]  # the state at the goal is not one to act in
    assert not states.done.any()
    assert walk.ended.tolist() == [False] * 4 + [True]


def test_a_walk_is_what_branches_would_show() -> None:
    start = Simulator(GridStates.of(import_seeds(EMPTY, range(8))), history=2, horizon=12)
    states, walk = practise(start, uniform_actor(7), steps=30, rng=np.random.default_rng(0))
    went_on = np.flatnonzero(walk.action >= 0)
    assert len(went_on) == walk.env_steps == len(states)  # all episodes have ended
    few, short = practise(start, uniform_actor(7), steps=2, rng=np.random.default_rng(0))
    assert short.action[-8:].tolist() == [-1] * 8
    assert len(few) == 24
    some = went_on[::3]
    walked, tried = walk.take(some), branch(states.fork(some))
    here = np.arange(len(some)), walked.action
    np.testing.assert_equal(tried.future[*here, 0], walked.future)
    np.testing.assert_equal(tried.revisit[here], walked.revisit)
    np.testing.assert_equal(tried.ended[*here, 0], walked.ended)
    assert walked.ended.any()
    assert walked.revisit.any()


def test_joined_walks_are_those_of_joined_states() -> None:
    """Of parts that are not of one length, and from other levels."""
    starts = [Simulator(GridStates.of(import_seeds(EMPTY, seeds)), history=2, horizon=12) for seeds in ([0, 1], [2])]
    parts = [practise(start, uniform_actor(7), steps=20, rng=np.random.default_rng(0)) for start in starts]
    states, walk = collect.join([states for states, _ in parts]), Walk.join([walk for _, walk in parts])
    assert walk.env_steps == sum(part.env_steps for _, part in parts) == len(states) == len(walk.action)
    tried = branch(states)
    np.testing.assert_equal(tried.future[np.arange(len(states)), walk.action, 0], walk.future)
    np.testing.assert_equal(tried.ended[np.arange(len(states)), walk.action, 0], walk.ended)
    np.testing.assert_equal(tried.revisit[np.arange(len(states)), walk.action], walk.revisit)


def test_practice_that_ends_at_once_is_over() -> None:
    start = Simulator(GridStates.of(import_seeds(EMPTY, [0, 1])), history=1, horizon=1)
    states, walk = practise(start, uniform_actor(7), steps=5, rng=np.random.default_rng(0))
    assert (len(states), walk.env_steps) == (2, 2)
    start.step(np.zeros(2, np.int64))
    states, walk = practise(start, uniform_actor(7), steps=5, rng=np.random.default_rng(0))
    assert (len(states), len(walk.action), walk.env_steps) == (0, 0, 0)


def test_join_keeps_the_order() -> None:
    parts = [Simulator(GridStates.of(import_seeds(DOOR_KEY, [s, s + 1])), history=2, horizon=9) for s in range(3)]
    for t, part in enumerate(parts):
        for _ in range(t):
            part.step(np.array([engine.LEFT, engine.RIGHT]))
    nobody = parts[0].fork(np.zeros(0, np.int64))
    whole = collect.join([parts[0], nobody, parts[2], parts[1].fork(np.array([1]))])
    wanted = [parts[0], parts[2], parts[1].fork(np.array([1]))]
    np.testing.assert_equal(whole.state_hash(), np.concatenate([part.state_hash() for part in wanted]))
    assert whole.t.tolist() == [0, 0, 2, 2, 1]
    for name, value in whole.observe().items():
        np.testing.assert_equal(value, np.concatenate([part.observe()[name] for part in wanted]))
    assert len(collect.join([nobody, nobody])) == 0


# ---- some of the actions ----
@pytest.mark.parametrize("alternatives", ["uniform", "policy", "mixture"])
def test_k_actions_are_tried_the_experts_among_them(cache: Path, alternatives: Any) -> None:
    """What was tried is as in branches of all actions; what was not is the present, costs nothing, and is marked."""
    demos = collect_demos(DOOR_KEY, 2, history=2, cache=cache)
    everything = branch(demos)
    stays = lambda obs, rng: np.full(len(obs["frames"]), 6)  # noqa: E731
    some = branch(demos, k=3, alternatives=alternatives, actor=stays, rng=np.random.default_rng(1))
    n = len(demos)
    assert some.tried[np.arange(n), demos.action].all()
    assert some.tried.sum(1).max() <= 3
    if alternatives == "uniform":
        assert (some.tried.sum(1) == 3).all()
        assert len(np.unique(some.tried, axis=0)) > 5
    if alternatives == "policy":
        assert (some.tried.sum(1) == 1 + (demos.action != 6)).all()
    assert some.env_steps == some.tried.sum()
    for name in ("future", "revisit", "ended", "action"):
        np.testing.assert_equal(getattr(some, name)[some.tried], getattr(everything, name)[some.tried])
    np.testing.assert_equal(some.future[~some.tried][:, 0], np.repeat(some.frame[:, None], 7, 1)[~some.tried])
    before, action, after = some.transitions()
    assert len(action) == len(after) == len(before["frames"]) == some.tried.sum()
    np.testing.assert_equal(mirror_branches(some).tried, some.tried[:, [1, 0, 2, 3, 4, 5, 6]])
    assert branch(demos, k=7).tried.all()


@pytest.mark.parametrize("k", [0, 8, -1, 1.5])
def test_a_k_that_cannot_be_is_refused(cache: Path, k: Any) -> None:
    demos = collect_demos(DOOR_KEY, 1, history=2, cache=cache)
    with pytest.raises(UsageError, match=f"k={k}: there are 7 actions"):
        branch(demos, k=k)
    with pytest.raises(UsageError, match="alternatives='best'"):
        branch(demos, k=2, alternatives="best")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"alternatives": "best"}, "alternatives='best': choose 'uniform', 'policy' or 'mixture'"),
        ({"k": 2, "alternatives": "policy"}, r"alternatives='policy' are the agent's own. Give actor"),
        ({"k": 2, "alternatives": "mixture"}, r"alternatives='mixture' are the agent's own. Give actor"),
        ({"horizon": 0}, "branch: horizon=0. Give at least 1"),
        ({"horizon": 1.5}, "branch: horizon=1.5. Give a whole number"),
        ({"rng": 3, "k": 2}, r"rng=3 is no generator"),
        ({"rng": 0}, r"rng=0 is no generator"),
        ({"actor": 3}, "int cannot act here"),
    ],
)
def test_what_cannot_be_branched_is_refused(demos: Demos, wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        branch(demos, **wrong)


@pytest.mark.parametrize("wrong", [None, gymnasium.make(DOOR_KEY), DOOR_KEY])
def test_branches_start_from_states(wrong: Any) -> None:
    with pytest.raises(UsageError, match=f"not from a {type(wrong).__name__}. Collect them with collect_demos"):
        branch(wrong)


def test_without_k_every_action_is_tried_whatever_the_alternatives_are(demos: Demos) -> None:
    """As a learner's settings may say both."""
    assert branch(demos, alternatives="policy").tried.all()


def test_exactly_the_actions_asked_for_are_tried(demos: Demos) -> None:
    everything = branch(demos)
    wanted = np.random.default_rng(0).random((len(demos), 7)) < 0.4
    wanted[3] = False  # nothing at all
    some = branch(demos, tried=wanted)
    np.testing.assert_equal(some.tried, wanted)
    assert some.env_steps == wanted.sum()
    for name in ("future", "revisit", "ended", "action"):
        np.testing.assert_equal(getattr(some, name)[wanted], getattr(everything, name)[wanted])
    np.testing.assert_equal(some.future[~wanted][:, 0], np.repeat(some.frame[:, None], 7, 1)[~wanted])
    wanted[:] = True
    assert not some.tried.all()  # a copy
    with pytest.raises(UsageError, match=r"k=2 and tried=bool\(\d+, 7\): both say which .* Give one of them"):
        branch(demos, tried=wanted, k=2)
    wrong: Any
    for wrong in (wanted[1:], wanted[:, :6], wanted.astype(np.int64), wanted[0]):
        with pytest.raises(UsageError, match=rf"give booleans of shape \({len(demos)}, 7\)"):
            branch(demos, tried=wrong)


def test_branches_know_their_environment(demos: Demos) -> None:
    levels = GridStates.of(import_seeds(DOOR_KEY, range(2)))
    made = branch(demos)
    of_states = branch(Simulator(levels, history=1, horizon=9))
    unknown = branch(Simulator(GridStates(levels.rows, levels.mission()), history=1, horizon=9))
    assert (made.env_id, of_states.env_id, unknown.env_id) == (DOOR_KEY, DOOR_KEY, "")
    for kept in (made.take(np.arange(2)), Branches.join([made, made]), mirror_branches(made)):
        assert kept.env_id == DOOR_KEY
    copied = demonstrate(Copied, lambda obs: int(obs[0] < 1), 1, horizon=3, mode="deepcopy")
    assert branch(copied).env_id == branch(replay(copied)).env_id == copied.env_id == "Copied"
    assert repr(made).startswith(f"Branches({DOOR_KEY}: {len(demos)} states, 7 actions, 1 steps;")
    assert repr(unknown).startswith("Branches(2 states")


def test_swapped_arguments_are_named(demos: Demos, tmp_path: Path) -> None:
    wrong: Any = tmp_path / "demos.npz"
    with pytest.raises(UsageError, match=r"save_demos\(path, demos\) saves demonstrations, and not a \w*Path"):
        save_demos(demos, wrong)  # type: ignore[arg-type]
