"""The engine against Python minigrid: same observations, same endings, same rewards, same states."""

import contextlib
import copy
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from minigrid.core.constants import COLOR_NAMES, DIR_TO_VEC
from minigrid.core.world_object import Key
from minigrid.envs.babyai.core import verifier
from minigrid.envs.babyai.core.levelgen import LevelGen
from minigrid.envs.dynamicobstacles import DynamicObstaclesEnv

from headstart.envs import banks, engine, experts, levels
from headstart.envs.errors import DataError, UsageError
from headstart.envs.registry import ENVIRONMENTS

pytestmark = pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")

# Every registered id, our own too, but MiniGrid-WFC, whose pictures minigrid 3.2 forgets to install.
IDS = sorted(i for i in gymnasium.registry if i.startswith(("MiniGrid-", "BabyAI-", "Headstart-")) and "-WFC-" not in i)
OBSTACLE_IDS = [i for i in IDS if "Dynamic-Obstacles" in i]
STUDY_IDS = [row.id for row in ENVIRONMENTS.values() if row.study]
OUR_IDS = [env_id for env_id in gymnasium.registry if env_id.startswith("Headstart-")]
# One id for every rule and kind of instruction, for the tests that look at more than one step.
FAMILIES = [
    *dict.fromkeys([*STUDY_IDS, *OUR_IDS]),
    "MiniGrid-DoorKey-8x8-v0",
    "MiniGrid-LavaCrossingS9N3-v0",
    "MiniGrid-ObstructedMaze-2Dlhb-v1",
    "MiniGrid-Unlock-v0",
    "MiniGrid-RedBlueDoors-6x6-v0",
    "MiniGrid-GoToDoor-5x5-v0",
    "MiniGrid-GoToObject-6x6-N2-v0",
    "MiniGrid-PutNear-6x6-N2-v0",
    "MiniGrid-Playground-v0",
    "BabyAI-GoToLocal-v0",
    "BabyAI-OpenDoorsOrderN4Debug-v0",
    "BabyAI-PickupDistDebug-v0",
    "BabyAI-PutNextLocal-v0",
    "BabyAI-PutNextS5N2Carrying-v0",
    "BabyAI-KeyInBox-v0",
    "BabyAI-BossLevel-v0",
]


# ---- Python minigrid, next to a row -------------------------------------------------------------------


def start(env_id: str, seed: int) -> gymnasium.Env:
    env = gymnasium.make(env_id, disable_env_checker=True)
    reset(env, seed)
    return env


def reset(env: gymnasium.Env, seed: int) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):  # BabyAI prints when it rejects a level
        return env.reset(seed=seed)


def number_objects(env: gymnasium.Env) -> None:
    """Let the objects keep their numbers, so that a later import can be compared with a row byte by byte."""
    for number, thing in levels._number_objects(env, levels._rule_of(env)).items():
        setattr(thing, levels.NUMBER, number)


def unpack(frame: np.ndarray) -> np.ndarray:
    cell = frame[:49].reshape(7, 7)
    return np.stack([cell // 18, cell % 18 // 3, cell % 3], axis=-1)


def random_action(u: Any, rng: np.random.Generator) -> int:
    """Mostly turns and steps; in front of a thing, mostly something that changes it."""
    thing = u.grid.get(*u.front_pos)
    if thing is not None and thing.type not in ("wall", "lava", "goal") and rng.random() < 0.7:
        return int(rng.choice([2, 3, 5], p=[0.3, 0.4, 0.3]))
    return int(rng.choice(7, p=[0.17, 0.17, 0.4, 0.05, 0.15, 0.05, 0.01]))


def scatter(env: gymnasium.Env, rng: np.random.Generator) -> None:
    """Put the agent in front of a random thing, often with something in hand, sometimes late.

    Random play from the start hardly ever comes to the wrong door, with the wrong key, or next to the goal.
    """
    u: Any = env.unwrapped
    places = [(x, y) for x in range(u.grid.width) for y in range(u.grid.height)]
    free = [place for place in places if u.grid.get(*place) is None]
    things = [place for place in places if u.grid.get(*place) is not None and u.grid.get(*place).type != "wall"]
    ways = [(x, y, d) for x, y in free for d, (dx, dy) in enumerate(DIR_TO_VEC) if (x + dx, y + dy) in things]
    if ways:
        x, y, u.agent_dir = ways[rng.integers(len(ways))]
        u.agent_pos = (x, y)
    movable = [place for place in things if u.grid.get(*place).type in ("key", "ball", "box")]
    if hasattr(u, "obstacles"):
        pass  # its objects are obstacles, and none can be carried
    elif rng.random() < 0.3:
        u.carrying = Key(COLOR_NAMES[rng.integers(6)])
    elif rng.random() < 0.4 and movable:
        place = movable[rng.integers(len(movable))]
        u.carrying = u.grid.get(*place)
        u.grid.set(*place, None)
    if rng.random() < 0.1:
        u.step_count = u.max_steps - 3


class Pair:
    """One level, as a Python environment and as a row, stepped side by side."""

    def __init__(self, env: gymnasium.Env, whole_state: bool):
        self.env, self.whole_state = env, whole_state
        self.u: Any = env.unwrapped
        self.mission = self.u.mission
        number_objects(env)
        self.rows = levels.import_level(env)[None]
        self.slots = int(self.rows[0, engine.SLOTS])
        self.compare_observation(self.u.gen_obs())  # reset() of a Carrying id forgets to show the object

    def step(self, action: int) -> bool:
        """Whether the episode has ended."""
        obs, reward, terminated, truncated, _ = self.env.step(action)
        engine_terminated, engine_truncated = engine.step(self.rows, np.array([action]))
        assert engine_terminated.tolist() == [terminated]
        assert engine_truncated.tolist() == [truncated]
        assert engine.reward(self.rows).tolist() == [reward]
        assert engine.succeeded(self.rows).tolist() == [float(reward) > 0]
        self.compare_observation(obs)
        if self.whole_state and not terminated:
            assert np.array_equal(levels.import_level(self.env, self.slots), self.rows[0])
        return terminated or truncated

    def compare_observation(self, obs: dict[str, Any]) -> None:
        frame = engine.observe(self.rows)[0]
        assert np.array_equal(unpack(frame), obs["image"])
        assert frame[49] == obs["direction"]
        assert obs["mission"] == self.mission


def play_at_random(env: gymnasium.Env, rng: np.random.Generator, max_steps: int, whole_state: bool) -> int:
    """Play one episode side by side; returns its number of steps."""
    pair = Pair(env, whole_state)
    for step in range(max_steps):
        if pair.step(random_action(pair.u, rng)):
            return step + 1
    return max_steps


def play_expert(env_id: str, seed: int) -> tuple[int, bool]:
    """Play the expert's actions side by side; returns the number of steps and whether they succeed."""
    solution = experts.expert_for(env_id).solve(start(env_id, seed))
    pair = Pair(start(env_id, seed), whole_state=False)
    for action in solution.actions:
        pair.step(action)
    assert engine.succeeded(pair.rows).tolist() == [solution.success]
    return len(solution.actions), solution.success


# ---- parity ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", IDS)
def test_steps_as_minigrid_does(env_id: str) -> None:
    rng = np.random.default_rng(sum(env_id.encode()))
    env = start(env_id, 0)
    play_at_random(env, rng, max_steps=40, whole_state=True)
    for seed in range(1, 60 if env_id in FAMILIES else 4):
        reset(env, seed)
        scatter(env, rng)
        play_at_random(env, rng, max_steps=10, whole_state=True)


@pytest.mark.parametrize("env_id", sorted(experts.known_experts().keys() & {*FAMILIES}))
def test_solves_as_minigrid_does(env_id: str) -> None:
    assert any(play_expert(env_id, seed)[1] for seed in range(3))


@pytest.mark.slow
def test_a_hundred_thousand_steps() -> None:
    rng = np.random.default_rng(0)
    random_steps = expert_steps = successes = 0
    for env_id in IDS:
        env = start(env_id, 0)
        for seed in range(1000, 1012):
            reset(env, seed)
            random_steps += play_at_random(env, rng, max_steps=60, whole_state=False)
    for env_id in sorted(experts.known_experts().keys() & {*IDS}):
        for seed in range(2000, 2006):
            steps, success = play_expert(env_id, seed)
            expert_steps, successes = expert_steps + steps, successes + success
    assert random_steps > 80_000
    assert expert_steps > 20_000
    assert successes > 600


INSTRUCTIONS = (
    *(verifier.BeforeInstr, verifier.AfterInstr),
    *(verifier.AndInstr, verifier.GoToInstr, verifier.PickupInstr, verifier.OpenInstr, verifier.PutNextInstr),
)


def random_instruction(u: Any, rng: np.random.Generator, simplest: int = 0) -> verifier.Instr:
    """Any tree that the grammar allows, strict ones included: minigrid's own levels have few of those."""
    kind: Any = INSTRUCTIONS[rng.integers(simplest, len(INSTRUCTIONS))]
    strict = bool(rng.random() < 0.5)
    movable = ["box", "ball", "key"]
    if kind in (verifier.BeforeInstr, verifier.AfterInstr):
        return kind(random_instruction(u, rng, 2), random_instruction(u, rng, 2), strict)
    if kind is verifier.AndInstr:
        return kind(random_instruction(u, rng, 3), random_instruction(u, rng, 3))
    if kind is verifier.GoToInstr:
        return kind(u.rand_obj())
    if kind is verifier.OpenInstr:
        return kind(u.rand_obj(types=["door"]), strict)
    if kind is verifier.PickupInstr:
        return kind(u.rand_obj(types=movable), strict)
    return kind(u.rand_obj(types=movable), u.rand_obj(), strict)


def test_any_instruction_is_verified_as_minigrid_does() -> None:
    rng = np.random.default_rng(1)
    env = LevelGen(room_size=4, num_rows=1, num_cols=2, num_dists=3)  # so small that much happens by chance
    u: Any = env
    outcomes = {engine.RUNNING: 0, engine.SUCCESS: 0, engine.FAILURE: 0}
    for seed in range(200):
        reset(env, seed)
        u.instrs = random_instruction(u, rng)
        u.instrs.reset_verifier(u)
        pair = Pair(env, whole_state=True)
        for _ in range(60):
            if pair.step(random_action(u, rng)):
                break
        outcomes[int(pair.rows[0, engine.OUTCOME])] += 1
    assert min(outcomes.values()) >= 15, outcomes


# ---- branches -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", FAMILIES)
def test_branches_are_those_of_deepcopy(env_id: str) -> None:
    rng = np.random.default_rng(2)
    env = start(env_id, 3)
    row = levels.import_level(env)
    for _ in range(12):
        action = random_action(env.unwrapped, rng)
        if any(env.step(action)[2:4]):
            reset(env, 3)
            row = levels.import_level(env)
        else:
            engine.step(row[None], np.array([action]))
    before = row.copy()
    horizon = 4
    action = rng.integers(0, 7, (1, 7, horizon))
    action[0, :, 0] = np.arange(7)
    futures = engine.branch(row[None], action)
    for k in range(7):
        fork: Any = copy.deepcopy(env.unwrapped)
        obs, terminated, truncated = fork.gen_obs(), False, False
        for h in range(horizon):
            if not (terminated or truncated):
                obs, _, terminated, truncated, _ = fork.step(int(action[0, k, h]))
            assert np.array_equal(unpack(futures.frame[0, k, h]), obs["image"])
            assert futures.frame[0, k, h, 49] == obs["direction"]
            assert (futures.terminated[0, k, h], futures.truncated[0, k, h]) == (terminated, truncated)
    assert np.array_equal(row, before)


def test_branches_of_many_rows_are_those_of_each() -> None:
    rows = banks.import_seeds("BabyAI-SynthS5R2-v0", range(5)).rows
    action = np.random.default_rng(0).integers(0, 7, (5, 3, 2))
    together = engine.branch(rows, action)
    for n in range(5):
        alone = engine.branch(rows[n : n + 1], action[n : n + 1])
        assert all(np.array_equal(a[n], b[0]) for a, b in zip(together, alone, strict=True))
    one_step = engine.branch(rows, action[:, :, 0])
    assert np.array_equal(one_step.frame[:, :, 0], together.frame[:, :, 0])


# ---- dynamic obstacles ----------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", OBSTACLE_IDS)
def test_obstacles_move_as_numpy_moves_them(env_id: str) -> None:
    """The random state is part of the row that is compared after every step."""
    rng = np.random.default_rng(3)
    env = start(env_id, 0)
    half_words = 0
    for seed in range(15):
        reset(env, seed)
        if seed % 2:  # an obstacle draws x and y: only an odd number of draws before leaves half a word over
            env.unwrapped.np_random.integers(0, 3)
        pair = Pair(env, whole_state=True)
        for _ in range(60):
            action = int(rng.choice([0, 1, 2, 5], p=[0.35, 0.35, 0.2, 0.1]))
            if pair.step(action):
                break
            half_words += int(pair.rows[0, -engine.RNG + engine.HAS_HALF])
    assert half_words > 10


class Crowded(DynamicObstaclesEnv):
    """Hardly any cell is free."""

    def __init__(self):
        super().__init__(size=5)
        self.n_obstacles = 6


def test_obstacles_that_cannot_move_try_as_often_as_in_minigrid() -> None:
    env = Crowded()
    reset(env, 0)
    pair = Pair(env, whole_state=True)
    for _ in range(20):
        assert not pair.step(engine.LEFT)


def test_collisions_cost_a_reward() -> None:
    env = start("MiniGrid-Dynamic-Obstacles-5x5-v0", 0)
    pair = Pair(env, whole_state=False)
    while not pair.step(2):
        pass
    assert engine.reward(pair.rows).tolist() == [-1.0]
    assert engine.succeeded(pair.rows).tolist() == [False]


def test_the_actions_are_those_that_minigrid_counts() -> None:
    for env_id in [*STUDY_IDS, "MiniGrid-DoorKey-8x8-v0"]:
        assert engine.n_actions(banks.import_seeds(env_id, [0]).rows) == start(env_id, 0).action_space.n  # type: ignore[attr-defined]


def test_actions_above_the_last_turn_left() -> None:
    rows = banks.import_seeds("MiniGrid-Dynamic-Obstacles-8x8-v0", range(4)).rows
    futures = engine.branch(rows, np.tile([engine.LEFT, *range(engine.n_actions(rows), engine.N_ACTIONS)], (4, 1)))
    assert (futures.frame == futures.frame[:, :1]).all()


def test_integers_are_numpys() -> None:
    """Ranges of the environments are too small to ever meet Lemire's rejection: these are not."""
    row = banks.import_seeds("MiniGrid-Dynamic-Obstacles-8x8-v0", [5]).rows[0]
    generator = np.random.default_rng(11)
    stub: Any = type("Stub", (), {"np_random": generator})()
    levels._import_random_state(row, stub)
    rng = engine._random_state(row)
    for high in [3, 2**31 + 1, 1, 2**32 - 1, 7, 3 * 2**30] * 50:
        assert engine._random_integer(rng, 0, high) == generator.integers(0, high)


def test_noise_is_common_or_independent() -> None:
    rows = banks.import_seeds("MiniGrid-Dynamic-Obstacles-8x8-v0", range(4)).rows
    turns = np.zeros((4, 6, 3), np.int64)
    common = engine.branch(rows, turns)
    assert (common.frame == common.frame[:, :1]).all()
    independent = engine.branch(rows, turns, noise="independent", seed=1)
    hashes = engine.frame_hash(independent.frame[:, :, -1])
    assert min(len(set(row.tolist())) for row in hashes) > 1
    again = engine.branch(rows, turns, noise="independent", seed=1)
    other = engine.branch(rows, turns, noise="independent", seed=2)
    assert np.array_equal(independent.frame, again.frame)
    assert not np.array_equal(independent.frame, other.frame)
    with pytest.raises(UsageError, match="noise='none'"):
        engine.branch(rows, turns, noise="none")


def test_independent_obstacles_still_move_one_cell_at_a_time() -> None:
    rows = banks.import_seeds("MiniGrid-Dynamic-Obstacles-16x16-v0", range(50)).rows
    engine.reseed(rows, 7)
    for _ in range(20):
        before = levels._table(rows)[..., engine.X : engine.Y + 1].astype(int)
        engine.step(rows, np.zeros(50, np.int64))
        moved = levels._table(rows)[..., engine.X : engine.Y + 1].astype(int) - before
        assert np.abs(moved).max() == 1
        assert np.abs(moved.reshape(-1, 2).mean(0)).max() < 0.3
    assert (levels._cells(rows) == 6 * 18 + 2 * 3).sum(1).tolist() == [8] * 50  # blue balls, none lost


# ---- hashes ---------------------------------------------------------------------------------------------


def test_hash_is_the_same_in_numpy() -> None:
    rows = np.random.default_rng(0).integers(0, 256, (20, 97), np.uint8)
    total = (rows.astype(np.uint64) * engine.HASH_WEIGHTS[:97]).sum(1)  # uint64 wraps around, as it should
    with np.errstate(over="ignore"):
        for multiplier, shift in ((0xBF58476D1CE4E5B9, 30), (0x94D049BB133111EB, 27)):
            total = (total ^ total >> np.uint64(shift)) * np.uint64(multiplier)
    assert np.array_equal(engine.state_hash(rows), total ^ total >> np.uint64(31))


def test_every_byte_counts_in_a_hash() -> None:
    row = banks.import_seeds("BabyAI-SynthS5R2-v0", [0]).rows
    rows = np.repeat(row, row.shape[1] + 1, axis=0)
    for i in range(row.shape[1]):
        rows[i, i] ^= 1
    assert len(set(engine.state_hash(rows).tolist())) == len(rows)


def test_a_turn_around_looks_the_same_but_is_another_state() -> None:
    rows = banks.import_seeds("MiniGrid-DoorKey-8x8-v0", [0]).rows
    futures = engine.branch(rows, np.zeros((1, 1, 4), np.int64))
    seen, state = engine.frame_hash(engine.observe(rows)), engine.state_hash(rows)
    hashes = engine.frame_hash(futures.frame)
    assert hashes.shape == (1, 1, 4)
    assert (hashes[0, 0] == seen[0]).tolist() == [False, False, False, True]
    for _ in range(4):
        engine.step(rows, np.array([engine.LEFT]))
    assert engine.state_hash(rows) != state


# ---- what is asked for wrongly --------------------------------------------------------------------------


def test_wrong_calls_are_refused() -> None:
    rows = banks.import_seeds("MiniGrid-DoorKey-5x5-v0", range(2)).rows
    with pytest.raises(UsageError, match="shape"):
        engine.step(rows, np.zeros(3, np.int64))
    with pytest.raises(UsageError, match=r"0\.\.6, found 0\.\.7"):
        engine.step(rows, np.array([0, 7]))
    with pytest.raises(UsageError, match="contiguous uint8"):
        engine.observe(rows[:, ::2])
    with pytest.raises(UsageError, match=r"\(N, K\)"):
        engine.branch(rows, np.zeros((2, 1, 1, 1), np.int64))
    rows[:, engine.VERSION] += 1
    with pytest.raises(DataError, match="version 2"):
        engine.step(rows, np.zeros(2, np.int64))


@pytest.mark.slow
def test_compiling_is_announced_once(tmp_path) -> None:
    code = (
        "from headstart.envs import banks, engine\n"
        "rows = banks.import_seeds('MiniGrid-DoorKey-8x8-v0', [0]).rows\n"
        "engine.observe(rows); engine.step(rows, rows[:, 0] * 0)\n"
    )
    said = []
    for _ in range(2):
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert run.stdout == ""
        said.append(run.stderr.count("compiling"))
    assert said == [1, 0]


@pytest.mark.slow
def test_where_no_cache_can_be_written_it_compiles_and_says_so(tmp_path) -> None:
    """A copy of the package with a file where its __pycache__ would be; not even root can make a directory there."""
    source, file = Path(engine.__file__).parent, tmp_path / "file"
    copied = tmp_path / "headstart" / "envs"
    shutil.copytree(source, copied, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (file, copied / "__pycache__"):
        path.touch()
    code = (
        "import sys\n"
        "from headstart.envs import banks, engine\n"
        "rows = banks.import_seeds('MiniGrid-DoorKey-8x8-v0', [0]).rows\n"
        "print('imported', file=sys.stderr)\n"
        "engine.step(rows, rows[:, 0] * 0)\n"
        "print(engine.__file__, engine._step_rows.stats.cache_path, rows.tobytes().hex(), sep='\\n')\n"
    )
    nowhere = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR"), str(file / "cache"))
    environment = {**os.environ, **nowhere, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    rows = banks.import_seeds("MiniGrid-DoorKey-8x8-v0", [0]).rows
    engine.step(rows, np.array([engine.LEFT]))
    assert run.stdout.split() == [str(copied / "engine.py"), "None", rows.tobytes().hex()]
    assert run.stderr.count("headstart: compiling the engine, once") == 1
    assert run.stderr.index("imported") < run.stderr.index("compiling")
