"""Measuring: the numbers are those of naive loops over Python environments, and the file keeps what it has."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from headstart.envs.banks import bank
from headstart.envs.registry import ENVIRONMENTS
from headstart.experiments import measure
from headstart.experiments.runlog import read_rows

EMPTY = "MiniGrid-Empty-Random-6x6-v0"
FETCH = "MiniGrid-Fetch-5x5-N2-v0"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, n in (("EXPERT_LEVELS", 12), ("RANDOM_LEVELS", 60), ("TRAIN_LEVELS", 100)):
        monkeypatch.setattr(measure, name, n)


def by_chance(env_id: str, seeds: list[int], horizon: int, rng: np.random.Generator) -> float:
    """Share of levels that random actions solve in the Python environment."""
    env, solved = gymnasium.make(env_id), 0
    for seed in seeds:
        env.reset(seed=seed)
        for _ in range(horizon):
            _, reward, terminated, truncated, _ = env.step(rng.integers(7))
            if terminated or truncated:
                solved += float(reward) > 0
                break
    return solved / len(seeds)


def test_figures_are_those_of_python_episodes(small: None, tmp_path: Path) -> None:
    row = measure.measure_id("fetch", FETCH, train=True, cache=tmp_path)
    levels = bank(FETCH, "validation", 60, cache=tmp_path)
    lengths, success, _ = measure.demonstrate(levels[:12])
    assert success.all()
    assert float(row["expert_length"]) == sorted(lengths)[5:7] @ np.array([0.5, 0.5])
    assert row["horizon"] == int(4 * float(row["expert_length"]))
    assert float(row["expert_success"]) == np.mean(lengths <= row["horizon"])
    rng, seeds = np.random.default_rng(1), levels.seed.tolist()
    expected = by_chance(FETCH, seeds * 4, row["horizon"], rng)
    assert abs(float(row["random_success"]) - expected) < 3.5 * np.sqrt(0.25 / 60)
    assert 0.05 < expected < 0.95
    assert (row["n_actions"], row["max_steps"]) == (7, 125)


def test_what_takes_longer_than_the_horizon_is_no_success(small: None, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(measure, "HORIZON", 0.5)
    row = measure.measure_id("empty", EMPTY, train=False, cache=tmp_path)
    assert float(row["expert_success"]) < 0.5
    assert float(row["expert_unlimited"]) == 1


def test_few_levels_are_told(small: None, tmp_path: Path) -> None:
    row = measure.measure_id("empty", EMPTY, train=True, cache=tmp_path)
    assert (
        row["train_distinct"] <= 60
    )  # 15 cells for the agent, 4 directions; of those the train split has five eighths
    assert f"has few levels. Of 100 in a training bank only {row['train_distinct']} differ" in measure.table([row])
    assert "few" not in measure.table([{**row, "train_distinct": 90}])
    assert "few" not in measure.table([{**row, "train_distinct": ""}])  # a variant


def test_names_measured_again_leave_the_others_as_they_are(tmp_path: Path, monkeypatch, capsys) -> None:
    def measured(environment: Any) -> list[dict[str, Any]]:
        return [{"name": environment.name, "id": environment.id, "train_distinct": "", "count": next(counter)}]

    counter = iter(range(100))
    monkeypatch.setattr(measure, "RESULTS", tmp_path / "environments.csv")
    monkeypatch.setattr(measure, "measure", measured)
    for arguments in ([], ["memory", "fetch"]):
        monkeypatch.setattr("sys.argv", ["measure.py", *arguments])
        measure.main()
    rows = read_rows(measure.RESULTS, kind=measure.KIND)
    assert [row["name"] for row in rows] == list(ENVIRONMENTS)
    n = len(ENVIRONMENTS)
    expected = {name: i for i, name in enumerate(ENVIRONMENTS)} | {"memory": n, "fetch": n + 1}
    assert {row["name"]: int(row["count"]) for row in rows} == expected


@pytest.mark.slow
def test_measured_again_fetch_is_as_the_table_says(tmp_path: Path) -> None:
    row, known = (
        measure.measure_id("fetch", ENVIRONMENTS["fetch"].id, train=False, cache=tmp_path),
        ENVIRONMENTS["fetch"],
    )
    assert float(row["expert_length"]) == pytest.approx(known.expert_length, abs=1)
    assert float(row["expert_success"]) == pytest.approx(known.expert_success, abs=0.02)
    error = np.sqrt(known.random_success * (1 - known.random_success) / measure.RANDOM_LEVELS)
    assert float(row["random_success"]) == pytest.approx(known.random_success, abs=3 * error)
