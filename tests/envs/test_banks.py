"""Banks: splits that do not overlap, levels imported once, files that are checked."""

import os
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from minigrid.envs.empty import EmptyEnv

from headstart.envs import banks, engine, storage
from headstart.envs.errors import Busy, DataError, EnvironmentFailed, UsageError
from headstart.envs.levels import level_hash

pytestmark = pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")

DOOR_KEY = "MiniGrid-DoorKey-6x6-v0"
SYNTH = "BabyAI-SynthS5R2-v0"


# ---- splits and parts ---------------------------------------------------------------------------------------------


def test_splits_share_no_level(tmp_path: Path) -> None:
    hashes = {
        split: set(level_hash(banks.bank(DOOR_KEY, split, 400, cache=tmp_path).rows).tolist()) for split in banks.SPLITS
    }
    assert min(map(len, hashes.values())) > 100
    assert not hashes["train"] & hashes["validation"]
    assert not hashes["train"] & hashes["test"]
    assert not hashes["validation"] & hashes["test"]


def test_a_split_is_the_levels_own() -> None:
    made = banks.import_seeds("MiniGrid-Empty-Random-5x5-v0", range(300))  # few levels, many seeds
    hashes = level_hash(made.rows)
    looks = [row.tobytes() for row in made.rows]
    assert len(set(looks)) == len(set(hashes.tolist())) < 50
    splits = banks.split_of(np.arange(16, dtype=np.uint64))
    assert splits.tolist() == ["test", "test", "validation", "train", "train", "train", "train", "train"] * 2


# ---- banks ----------------------------------------------------------------------------------------------


def test_bank_is_what_the_seeds_give(tmp_path: Path) -> None:
    bank = banks.bank(SYNTH, "train", 60, first_seed=100, cache=tmp_path)
    assert len(bank) == 60
    assert bank.seed[0] >= 100
    assert (np.diff(bank.seed) > 0).all()
    again = banks.import_seeds(SYNTH, range(100, int(bank.seed[-1]) + 1))
    train = banks.split_of(level_hash(again.rows)) == "train"
    assert np.array_equal(again.seed[train], bank.seed)
    assert np.array_equal(again.rows[train], bank.rows)
    assert again.mission[train].tolist() == bank.mission.tolist()


def test_bank_is_imported_once_and_alike_by_any_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = banks.bank(DOOR_KEY, "train", 400, cache=tmp_path / "two", processes=2)
    one = banks.bank(DOOR_KEY, "train", 400, cache=tmp_path / "one", processes=1)
    assert np.array_equal(one.rows, two.rows)
    files = [sorted(path.read_bytes() for path in (tmp_path / k).rglob("*.npz")) for k in ("one", "two")]
    assert len(files[0]) == 3
    assert files[0] == files[1]
    monkeypatch.setattr(banks._Blocks, "_build", None)  # a second import would call it
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "two"))
    assert np.array_equal(banks.bank(DOOR_KEY, "train", 400).rows, one.rows)
    banks.bank(DOOR_KEY, "test", 100)


def test_parts_of_levels() -> None:
    made = banks.import_seeds(SYNTH, range(6))
    part = made[np.array([4, 1])]
    assert part.seed.tolist() == [4, 1]
    assert np.array_equal(part.rows, made.rows[[4, 1]])
    assert part.mission.tolist() == [made.mission[4], made.mission[1]]
    with pytest.raises(ValueError, match="6 rows, 6 missions, 5 seeds"):
        banks.Levels(SYNTH, made.rows, made.mission, made.seed[:5])


def test_wrong_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no split 'dev': choose one of"):
        banks.bank(DOOR_KEY, "dev", 1, cache=tmp_path)
    with pytest.raises(UsageError, match="n=0"):
        banks.bank(DOOR_KEY, "train", 0, cache=tmp_path)
    with pytest.raises(UsageError, match=r"door_key: no environment .* Did you mean MiniGrid-DoorKey-8x8-v0\?"):
        banks.bank("door_key", "train", 1, cache=tmp_path)
    with pytest.raises(UsageError, match=r"Mine-v0: no environment of this name is registered\. Register it"):
        banks.bank("Mine-v0", "train", 1, cache=tmp_path)
    with pytest.raises(UsageError, match=r"CartPole-v1: .*not a MiniGrid"):
        banks.bank("CartPole-v1", "train", 1, cache=tmp_path)
    only = str(banks.split_of(level_hash(banks.import_seeds("MiniGrid-Empty-8x8-v0", [0]).rows))[0])
    for split in {*banks.SPLITS} - {only}:
        with pytest.raises(DataError, match=f"Empty-8x8-v0: no level is in the split '{split}'"):
            banks.bank("MiniGrid-Empty-8x8-v0", split, 1, cache=tmp_path)


def only_file(cache: Path) -> Path:
    return next(cache.rglob("000000.npz"))


def test_a_corrupt_bank_is_refused(tmp_path: Path) -> None:
    banks.bank(DOOR_KEY, "train", 5, cache=tmp_path)
    path = only_file(tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"000000\.npz"):
        banks.bank(DOOR_KEY, "train", 5, cache=tmp_path)


def test_a_bank_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory is named after the versions; here one is renamed, as nobody should."""
    banks.bank(DOOR_KEY, "train", 5, cache=tmp_path)
    path = only_file(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(banks, "version", lambda name: "9.9")
        renamed = banks._Blocks(DOOR_KEY, tmp_path, 1).directory
        assert "9.9" in renamed.name
        path.parent.rename(renamed)
        with pytest.raises(DataError, match=r"minigrid '.*', not '9\.9'. Delete"):
            banks.bank(DOOR_KEY, "train", 5, cache=tmp_path)
        renamed.rename(path.parent)
    monkeypatch.setattr(engine, "ROW_VERSION", engine.ROW_VERSION + 1)
    path.parent.rename(banks._Blocks(DOOR_KEY, tmp_path, 1).directory)
    with pytest.raises(DataError, match="version 1"):
        banks.bank(DOOR_KEY, "train", 5, cache=tmp_path)


def test_banks_are_built_where_a_process_cannot_ask_for_its_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert len(banks.bank(DOOR_KEY, "train", 5, cache=tmp_path)) == 5


def test_a_cache_that_cannot_be_written_is_named_with_what_chooses_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.delenv("HEADSTART_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"file/headstart/levels/.* cannot be written: .* set HEADSTART_CACHE to a"):
        banks.bank(DOOR_KEY, "train", 5)


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
    banks.bank("HeadstartTest/Changing-v0", "train", 400, cache=tmp_path, processes=2)
    banks.bank("HeadstartTest/Changing-v0", "train", 400, cache=tmp_path)
    monkeypatch.setattr(Changing, "edited", True)
    with pytest.raises(DataError, match=r"its code has changed\. Delete"):
        banks.bank("HeadstartTest/Changing-v0", "train", 400, cache=tmp_path)


@pytest.mark.usefixtures("registered")
def test_a_failing_reset_is_named(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailed, match=r"Breaking-v0: reset\(seed=\d+\) raised RuntimeError: no room"):
        banks.bank("HeadstartTest/Breaking-v0", "train", 5, cache=tmp_path, processes=1)
    assert not list(tmp_path.rglob("*.npz"))


def test_seeds_without_end_are_left_out(tmp_path: Path) -> None:
    """With seed 2678 minigrid 3.2 looks for a free cell outside of the locked room for ever."""
    with pytest.raises(EnvironmentFailed, match=r"reset\(seed=2678\) does not end"):
        banks.import_seeds(SYNTH, [2678])
    seeds = {
        split: banks.bank(SYNTH, split, n, first_seed=2600, cache=tmp_path).seed.tolist()
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
    monkeypatch.setattr(banks.time, "sleep", waited.append)
    assert len(banks.bank(DOOR_KEY, "train", 5, cache=tmp_path)) == 5
    assert len(waited) == 2


@pytest.mark.slow
def test_twenty_thousand_levels_are_small(tmp_path: Path) -> None:
    """The largest rows of the study."""
    banks.bank("MiniGrid-MultiRoom-N4-S5-v1", "train", 20_000, cache=tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 30e6
