"""Levels: rows that lose nothing, splits that do not overlap, banks that are checked, refusals by name."""

import contextlib
import io
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import RecordEpisodeStatistics
from minigrid.core.world_object import Ball, Door
from minigrid.envs.babyai.core import verifier
from minigrid.envs.doorkey import DoorKeyEnv
from minigrid.envs.dynamicobstacles import DynamicObstaclesEnv
from minigrid.envs.empty import EmptyEnv
from minigrid.wrappers import ImgObsWrapper

from headstart.envs import engine, levels, storage
from headstart.envs.errors import Busy, DataError, EnvironmentFailed, UsageError

pytestmark = pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")

DOOR_KEY = "MiniGrid-DoorKey-6x6-v0"
SYNTH = "BabyAI-SynthS5R2-v0"
EXPORTED = [
    DOOR_KEY,
    SYNTH,
    "MiniGrid-KeyCorridorS3R3-v0",
    "MiniGrid-ObstructedMaze-2Dlhb-v1",
    "MiniGrid-MemoryS13Random-v0",
    "MiniGrid-MultiRoom-N4-S5-v1",
    "MiniGrid-Dynamic-Obstacles-8x8-v0",
    "MiniGrid-PutNear-6x6-N2-v0",
    "BabyAI-KeyInBox-v0",
    "BabyAI-BossLevel-v0",
    "BabyAI-PutNextS5N2Carrying-v0",
    "BabyAI-PickupDist-v0",
]


def make(env_id: str, seed: int = 0, **arguments: Any) -> gymnasium.Env:
    env = gymnasium.make(env_id, disable_env_checker=True, **arguments)
    with contextlib.redirect_stdout(io.StringIO()):
        env.reset(seed=seed)
    return env


# ---- import and export ----------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", EXPORTED)
def test_row_to_python_to_row_is_the_identity(env_id: str) -> None:
    rng = np.random.default_rng(0)
    made = levels.import_seeds(env_id, range(4))
    rows = made.rows.copy()
    for _ in range(30):
        ended = np.logical_or(*engine.step(rows, rng.choice(7, 4, p=[0.15, 0.15, 0.3, 0.15, 0.1, 0.14, 0.01])))
        for n in range(4):
            env = levels.export_level(rows[n], env_id, int(made.seed[n]))
            again = levels.import_level(env, slots=int(rows[n, engine.SLOTS]))
            again[engine.OUTCOME] = rows[n, engine.OUTCOME]
            assert np.array_equal(again, rows[n])
        rows[ended] = made.rows[ended]


def test_an_exported_environment_goes_on_as_the_row_does() -> None:
    rng = np.random.default_rng(1)
    made = levels.import_seeds("BabyAI-MiniBossLevel-v0", range(8))
    rows = made.rows.copy()
    for _ in range(15):
        engine.step(rows, rng.choice([0, 1, 2, 3, 4, 5], len(rows)))
    for n in np.flatnonzero(rows[:, engine.OUTCOME] == engine.RUNNING):
        row = rows[n : n + 1].copy()
        env = levels.export_level(row[0], made.env_id, int(made.seed[n]))
        for action in rng.choice([0, 1, 2, 3, 4, 5], 25):
            obs, reward, terminated, _, _ = env.step(int(action))
            assert engine.step(row, np.array([action]))[0].tolist() == [terminated]
            cell = engine.observe(row)[0, :49].reshape(7, 7)
            assert np.array_equal(cell // 18, obs["image"][..., 0])
            assert engine.reward(row).tolist() == [reward]
            if terminated:
                break
            assert np.array_equal(levels.import_level(env, int(row[0, engine.SLOTS])), row[0])


def test_import_only_reads() -> None:
    env = make("MiniGrid-Dynamic-Obstacles-8x8-v0")
    first, second = levels.import_level(env), levels.import_level(env)
    assert np.array_equal(first, second)
    assert not any(hasattr(thing, levels.NUMBER) for thing in env.unwrapped.grid.grid)  # type: ignore


def test_rows_of_an_id_have_one_length() -> None:
    for env_id in ("BabyAI-BossLevel-v0", "MiniGrid-KeyCorridorS3R3-v0", "MiniGrid-ObstructedMaze-2Q-v0"):
        levels.import_seeds(env_id, range(30))  # raises otherwise


def test_a_row_of_another_level_is_not_exported() -> None:
    made = levels.import_seeds(DOOR_KEY, range(2))
    assert not np.array_equal(made.rows[0], made.rows[1])
    with pytest.raises(DataError, match="seed 1"):
        levels.export_level(made.rows[0], DOOR_KEY, 1)
    with pytest.raises(DataError, match="seed 0"):
        levels.export_level(made.rows[0], SYNTH, 0)
    row = made.rows[0].copy()
    row[engine.VERSION] = 9
    with pytest.raises(DataError, match="version 9"):
        levels.export_level(row, DOOR_KEY, 0)


def test_an_ended_episode_is_exported_as_it_ended() -> None:
    row = levels.import_seeds("MiniGrid-Empty-5x5-v0", [0]).rows
    for action in (2, 2, 1, 2, 2):
        terminated, _ = engine.step(row, np.array([action]))
    assert terminated.tolist() == [True]  # type: ignore
    env = levels.export_level(row[0], "MiniGrid-Empty-5x5-v0", 0)
    assert tuple(env.unwrapped.agent_pos) == (3, 3)  # type: ignore


# ---- refusals -------------------------------------------------------------------------------------------


class OwnStep(DoorKeyEnv):
    def step(self, action):
        return super().step(action)


class OwnReward(DoorKeyEnv):
    def _reward(self):
        return 1.0


class OwnView(EmptyEnv):
    def gen_obs_grid(self, agent_view_size=None):
        return super().gen_obs_grid(agent_view_size)


class OwnLevels(DoorKeyEnv):
    def _gen_grid(self, width, height):
        super()._gen_grid(width, height)
        self.mission = "find the way out"


class Bouncy(Ball):
    def can_overlap(self):
        return True


def refused(env: gymnasium.Env, because: str) -> None:
    with pytest.raises(UsageError, match=because):
        levels.import_level(env)


def started(env: gymnasium.Env) -> gymnasium.Env:
    env.reset(seed=0)
    return env


def test_what_changes_the_rules_is_refused_by_name() -> None:
    refused(started(gymnasium.make("CartPole-v1")), "CartPole-v1: .*CartPoleEnv is not a MiniGrid")
    refused(started(OwnStep()), r"OwnStep: .*step\(\) of its own")
    refused(started(OwnReward()), "OwnReward overrides MiniGridEnv._reward")
    refused(started(OwnView()), "OwnView overrides MiniGridEnv.gen_obs_grid")
    refused(make(DOOR_KEY, agent_view_size=5), f"{DOOR_KEY}: .*view is 5 cells wide")
    refused(make(DOOR_KEY, max_episode_steps=10), "wrapper TimeLimit")
    refused(ImgObsWrapper(make(DOOR_KEY)), "wrapper ImgObsWrapper")


def test_a_patched_environment_is_refused() -> None:
    env: Any = make(DOOR_KEY)
    env.unwrapped.step = lambda action: None
    refused(env, r"step\(\) of its own")
    env = make(DOOR_KEY)
    env.unwrapped.grid.set(1, 1, Bouncy())
    refused(env, "its object Bouncy")
    env = make(DOOR_KEY)
    env.unwrapped.grid.set(1, 1, Door("red", is_open=True, is_locked=True))
    refused(env, "open and locked at once")
    env = make("MiniGrid-Dynamic-Obstacles-6x6-v0")
    env.unwrapped.grid.set(1, 1, Ball())
    refused(env, "not its obstacles")
    env = make("MiniGrid-Dynamic-Obstacles-6x6-v0")
    env.unwrapped.np_random = np.random.Generator(np.random.MT19937(0))
    refused(env, "PCG64")


def test_an_unknown_instruction_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hop(verifier.GoToInstr):
        pass

    env: Any = make("BabyAI-GoToLocal-v0")
    env.unwrapped.instrs = Hop(env.unwrapped.instrs.desc)
    refused(env, "its instruction Hop is unknown")
    env = make("BabyAI-GoToLocal-v0")
    env.unwrapped.instrs.desc = verifier.ObjDesc(None, "grey")
    env.unwrapped.instrs.reset_verifier(env.unwrapped)
    refused(env, "speaks of a wall")
    monkeypatch.setattr(verifier, "use_done_actions", "1")
    refused(make("BabyAI-GoToLocal-v0"), "BABYAI_DONE_ACTIONS")


def test_levels_of_ones_own_are_welcome() -> None:
    own = levels.import_level(started(OwnLevels(size=6)))
    assert np.array_equal(own, levels.import_level(make(DOOR_KEY)))
    assert np.array_equal(own, levels.import_level(RecordEpisodeStatistics(make(DOOR_KEY))))
    row = levels.import_level(started(DynamicObstaclesEnv(size=16, n_obstacles=9)))
    assert (levels._table(row)[:, engine.CODE] == 6 * 18 + 2 * 3).sum() == 9


# ---- splits ---------------------------------------------------------------------------------------------


def test_splits_share_no_level(tmp_path: Path) -> None:
    hashes = {
        split: set(levels.level_hash(levels.bank(DOOR_KEY, split, 400, cache=tmp_path).rows).tolist())
        for split in levels.SPLITS
    }
    assert min(map(len, hashes.values())) > 100
    assert not hashes["train"] & hashes["validation"]
    assert not hashes["train"] & hashes["test"]
    assert not hashes["validation"] & hashes["test"]


def test_a_split_is_the_levels_own() -> None:
    made = levels.import_seeds("MiniGrid-Empty-Random-5x5-v0", range(300))  # few levels, many seeds
    hashes = levels.level_hash(made.rows)
    looks = [row.tobytes() for row in made.rows]
    assert len(set(looks)) == len(set(hashes.tolist())) < 50
    splits = levels.split_of(np.arange(16, dtype=np.uint64))
    assert splits.tolist() == ["test", "test", "validation", "train", "train", "train", "train", "train"] * 2


def test_hash_is_of_the_level_and_not_of_the_moment() -> None:
    made = levels.import_seeds("MiniGrid-Dynamic-Obstacles-8x8-v0", range(2)).rows
    later = made.copy()
    later[:, engine.STEP_COUNT] = 5
    engine.reseed(later, 3)
    table = levels._table(later)
    table[:] = table[:, ::-1].copy()  # the same obstacles, in another order
    assert np.array_equal(levels.level_hash(later), levels.level_hash(made))
    later[0, engine.DIRECTION] ^= 1
    assert (levels.level_hash(later) == levels.level_hash(made)).tolist() == [False, True]


def test_hash_knows_what_is_in_a_box_and_what_is_asked() -> None:
    row = levels.import_seeds("MiniGrid-ObstructedMaze-1Dlh-v0", [0]).rows
    other = row.copy()
    box = np.flatnonzero(levels._table(row)[0, :, engine.CONTENTS])[0]
    levels._table(other)[0, box, engine.CONTENTS] = 0
    assert levels.level_hash(row) != levels.level_hash(other)
    row = levels.import_seeds("BabyAI-GoToLocal-v0", [0]).rows
    other = row.copy()
    levels._tail(other)[:] = 0
    assert levels.level_hash(row) != levels.level_hash(other)


def test_hash_does_not_depend_on_empty_slots() -> None:
    env = make(SYNTH)
    narrow = levels.import_level(env)[None]
    wide = levels.import_level(env, slots=int(narrow[0, engine.SLOTS]) + 7)[None]
    assert wide.shape[1] == narrow.shape[1] + 7 * engine.SLOT
    assert levels.level_hash(wide) == levels.level_hash(narrow)
    with pytest.raises(UsageError, match=r"needs .* slots"):
        levels.import_level(env, slots=1)


# ---- banks ----------------------------------------------------------------------------------------------


def test_bank_is_what_the_seeds_give(tmp_path: Path) -> None:
    bank = levels.bank(SYNTH, "train", 60, first_seed=100, cache=tmp_path)
    assert len(bank) == 60
    assert bank.seed[0] >= 100
    assert (np.diff(bank.seed) > 0).all()
    again = levels.import_seeds(SYNTH, range(100, int(bank.seed[-1]) + 1))
    train = levels.split_of(levels.level_hash(again.rows)) == "train"
    assert np.array_equal(again.seed[train], bank.seed)
    assert np.array_equal(again.rows[train], bank.rows)
    assert again.mission[train].tolist() == bank.mission.tolist()


def test_bank_is_imported_once_and_alike_by_any_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = levels.bank(DOOR_KEY, "train", 400, cache=tmp_path / "two", processes=2)
    one = levels.bank(DOOR_KEY, "train", 400, cache=tmp_path / "one", processes=1)
    assert np.array_equal(one.rows, two.rows)
    files = [sorted(path.read_bytes() for path in (tmp_path / k).rglob("*.npz")) for k in ("one", "two")]
    assert len(files[0]) == 3
    assert files[0] == files[1]
    monkeypatch.setattr(levels._Blocks, "_build", None)  # a second import would call it
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "two"))
    assert np.array_equal(levels.bank(DOOR_KEY, "train", 400).rows, one.rows)
    levels.bank(DOOR_KEY, "test", 100)


def test_parts_of_levels() -> None:
    made = levels.import_seeds(SYNTH, range(6))
    part = made[np.array([4, 1])]
    assert part.seed.tolist() == [4, 1]
    assert np.array_equal(part.rows, made.rows[[4, 1]])
    assert part.mission.tolist() == [made.mission[4], made.mission[1]]
    with pytest.raises(ValueError, match="6 rows, 6 missions, 5 seeds"):
        levels.Levels(SYNTH, made.rows, made.mission, made.seed[:5])


def test_wrong_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no split 'dev': choose one of"):
        levels.bank(DOOR_KEY, "dev", 1, cache=tmp_path)
    with pytest.raises(UsageError, match="n=0"):
        levels.bank(DOOR_KEY, "train", 0, cache=tmp_path)
    with pytest.raises(UsageError, match=r"CartPole-v1: .*not a MiniGrid"):
        levels.bank("CartPole-v1", "train", 1, cache=tmp_path)
    only = str(levels.split_of(levels.level_hash(levels.import_seeds("MiniGrid-Empty-8x8-v0", [0]).rows))[0])
    for split in {*levels.SPLITS} - {only}:
        with pytest.raises(DataError, match=f"Empty-8x8-v0: no level is in the split '{split}'"):
            levels.bank("MiniGrid-Empty-8x8-v0", split, 1, cache=tmp_path)


def only_file(cache: Path) -> Path:
    return next(cache.rglob("000000.npz"))


def test_a_corrupt_bank_is_refused(tmp_path: Path) -> None:
    levels.bank(DOOR_KEY, "train", 5, cache=tmp_path)
    path = only_file(tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"000000\.npz"):
        levels.bank(DOOR_KEY, "train", 5, cache=tmp_path)


def test_a_bank_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory is named after the versions; here one is renamed, as nobody should."""
    levels.bank(DOOR_KEY, "train", 5, cache=tmp_path)
    path = only_file(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(levels, "version", lambda name: "9.9")
        renamed = levels._Blocks(DOOR_KEY, tmp_path, 1).directory
        assert "9.9" in renamed.name
        path.parent.rename(renamed)
        with pytest.raises(DataError, match=r"minigrid '.*', not '9\.9'. Delete"):
            levels.bank(DOOR_KEY, "train", 5, cache=tmp_path)
        renamed.rename(path.parent)
    monkeypatch.setattr(engine, "ROW_VERSION", engine.ROW_VERSION + 1)
    path.parent.rename(levels._Blocks(DOOR_KEY, tmp_path, 1).directory)
    with pytest.raises(DataError, match="version 1"):
        levels.bank(DOOR_KEY, "train", 5, cache=tmp_path)


class Changing(EmptyEnv):
    """Makes other levels under the same name, as after an edit of its code."""

    edited = False

    def _gen_grid(self, width, height):
        super()._gen_grid(width, height)
        self.place_agent()
        if self.edited:
            self.grid.set(1, 1, None)
            self.agent_dir = (self.agent_dir + 1) % 4


class Breaking(EmptyEnv):
    def _gen_grid(self, width, height):
        super()._gen_grid(width, height)
        if self.np_random.random() < 0.2:
            raise RuntimeError("no room for the goal")


@pytest.fixture
def registered():
    gymnasium.register("HeadstartTest/Changing-v0", Changing)
    gymnasium.register("HeadstartTest/Breaking-v0", Breaking)
    yield
    del gymnasium.registry["HeadstartTest/Changing-v0"], gymnasium.registry["HeadstartTest/Breaking-v0"]


@pytest.mark.usefixtures("registered")
def test_a_bank_of_changed_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    levels.bank("HeadstartTest/Changing-v0", "train", 400, cache=tmp_path, processes=2)
    levels.bank("HeadstartTest/Changing-v0", "train", 400, cache=tmp_path)
    monkeypatch.setattr(Changing, "edited", True)
    with pytest.raises(DataError, match=r"its code has changed\. Delete"):
        levels.bank("HeadstartTest/Changing-v0", "train", 400, cache=tmp_path)


@pytest.mark.usefixtures("registered")
def test_a_failing_reset_is_named(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailed, match=r"Breaking-v0: reset\(seed=\d+\) raised RuntimeError: no room"):
        levels.bank("HeadstartTest/Breaking-v0", "train", 5, cache=tmp_path, processes=1)
    assert not list(tmp_path.rglob("*.npz"))


def test_seeds_without_end_are_left_out(tmp_path: Path) -> None:
    """With seed 2678 minigrid 3.2 looks for a free cell outside of the locked room for ever."""
    with pytest.raises(EnvironmentFailed, match=r"reset\(seed=2678\) does not end"):
        levels.import_seeds(SYNTH, [2678])
    seeds = {
        split: levels.bank(SYNTH, split, n, first_seed=2600, cache=tmp_path).seed.tolist()
        for split, n in {"train": 80, "validation": 20, "test": 40}.items()
    }
    assert all(seed[-1] > 2690 for seed in seeds.values())
    found = {seed for split in seeds.values() for seed in split}
    assert {*range(2600, 2690)} - found == {2678}


def test_two_processes_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = iter([Busy("taken"), Busy("taken"), None])
    waited = []
    lock = storage.lock

    def busy_at_first(directory):
        turn = next(turns)
        if turn is not None:
            raise turn
        return lock(directory)

    monkeypatch.setattr(storage, "lock", busy_at_first)
    monkeypatch.setattr(levels.time, "sleep", waited.append)
    assert len(levels.bank(DOOR_KEY, "train", 5, cache=tmp_path)) == 5
    assert len(waited) == 2


@pytest.mark.slow
def test_twenty_thousand_levels_are_small(tmp_path: Path) -> None:
    """The largest rows of the study."""
    levels.bank("MiniGrid-MultiRoom-N4-S5-v1", "train", 20_000, cache=tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 30e6
