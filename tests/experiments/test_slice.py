"""A slice: what time is left for is run, finished numbers travel in one archive, and nothing is run twice."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from headstart.envs.errors import DataError
from headstart.envs.registry import ENVIRONMENTS
from headstart.experiments import slice as sliced
from headstart.experiments.arms import Arm
from headstart.experiments.evidence import read_runs
from headstart.experiments.experiment import RL, Experiment
from headstart.experiments.pipeline import Run
from headstart.learners import BCConfig

TINY = Experiment(
    name="tiny",
    env_id="MiniGrid-DoorKey-5x5-v0",
    demos=2,
    horizon=20,
    history=1,
    ood={},
    random_success=0.0,
    expert_success=1.0,
    arms={name: Arm(BCConfig(updates=n, batch_size=8), memory=0, rl=False) for name, n in (("bc", 2), ("bc_long", 4))},
    rl=RL(steps=128, n_envs=2),
    train_levels=48,
    validation_levels=8,
    test_levels=16,
)


def runs(out: Path, *seeds: int) -> list[Run]:
    return [Run(TINY, arm, seed, out) for seed in seeds for arm in TINY.arms]


def test_seed_after_seed_the_longest_first(tmp_path: Path) -> None:
    planned = sliced.planned(["fetch", "memory"], ["bc", "reflect"], [0, 1], tmp_path)
    assert [run.seed for run in planned] == [0] * 4 + [1] * 4
    assert [run.arm for run in planned] == ["reflect", "reflect", "bc", "bc"] * 2
    assert {run.experiment.name for run in planned[:2]} == {"fetch", "memory"}
    assert not any(run.experiment.arms[run.arm].rl for run in planned)
    assert set(sliced.STUDY) == {name for name, row in ENVIRONMENTS.items() if row.study}


def test_what_is_finished_travels_and_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sliced, "planned", lambda names, arms, seeds, out: runs(out, *seeds))
    monkeypatch.chdir(tmp_path)

    def main(out: str, *seeds: str) -> str:
        monkeypatch.setattr("sys.argv", ["slice.py", "--processes", "2", "--out", out, "--seeds", *seeds])
        sliced.main()
        return capsys.readouterr().out

    assert "slice.tar.gz: 2 finished runs; 0 of 2 to go" in main("here", "0")
    assert not (tmp_path / "there").exists()
    said = main("there", "0", "1")  # another machine, which has the archive and nothing else
    assert "2 of 4 runs to go" in said
    assert "slice.tar.gz: 4 finished runs; 0 of 4 to go" in said
    assert not list((tmp_path / "there" / "tiny" / "bc" / "seed0").glob("*.safetensors"))
    sliced.unpack(tmp_path / "slice.tar.gz", tmp_path / "runs")
    found = read_runs(tmp_path / "runs" / "tiny")
    assert [(row["arm"], row["seed"]) for row in found.summaries] == [
        (arm, seed) for arm in ("bc", "bc_long") for seed in (0, 1)
    ]
    assert found.summaries[0] == read_runs(tmp_path / "here" / "tiny").summaries[0]


def test_when_the_time_is_up_it_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    endless = replace(TINY, arms={"bc": Arm(BCConfig(updates=10**9), memory=0, rl=False)})
    started = time.monotonic()
    sliced.work([Run(endless, "bc", 0, tmp_path / "runs")], until=started + 1.0, processes=1)
    assert not sliced.finished(Run(endless, "bc", 0, tmp_path / "runs"))
    assert sliced.pack(tmp_path / "slice.tar.gz", tmp_path / "runs") == 0


def test_what_fails_is_said_after_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    broken = replace(TINY, horizon=1)  # nobody solves it within one step
    out = tmp_path / "runs"
    with pytest.raises(DataError, match="within 1 steps"):
        sliced.work([Run(broken, "bc", 0, out), *runs(out, 1)], until=time.monotonic() + 300, processes=1)
    assert all(sliced.finished(run) for run in runs(out, 1))
