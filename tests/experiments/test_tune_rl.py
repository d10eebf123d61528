"""Tuning of fine-tuning: what the search tries, keeps and writes, and from which warm start."""

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from headstart.envs.banks import split_of
from headstart.envs.collect import branch
from headstart.envs.levels import level_hash
from headstart.envs.registry import ENVIRONMENTS
from headstart.experiments import tune_rl
from headstart.experiments.arms import Arm
from headstart.experiments.experiment import RL, Experiment
from headstart.experiments.runlog import read_rows, write_rows
from headstart.learners import IWMConfig, ReflectionConfig

TINY = dataclasses.replace(
    tiny.TINY,
    rl=RL(steps=256, n_envs=8, eval_every=128, settings={"learning_rate": 3e-4, "n_steps": 8, "batch_size": 32}),
    validation_levels=6,
)


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(tune_rl, "RESULTS", tmp_path)
    monkeypatch.setattr(tune_rl, "ProcessPoolExecutor", tiny.Here)
    monkeypatch.setattr(sys, "argv", ["experiments/tune_rl.py", "tiny"])
    monkeypatch.setitem(sys.modules, "headstart.experiments.tiny", SimpleNamespace(EXPERIMENT=TINY))  # type: ignore[arg-type]
    monkeypatch.setitem(ENVIRONMENTS, "tiny", ENVIRONMENTS["door_key"])
    return tmp_path / "tiny" / "rl.csv"


def test_the_search_goes_on_from_the_best(monkeypatch: pytest.MonkeyPatch, results: Path) -> None:
    """A policy that likes to learn fast, from many short rollouts of few episodes."""
    asked: list[tuple[RL, int, Any]] = []

    def likes(experiment: Experiment, rl: RL, seed: int, start: Any) -> dict[str, Any]:
        asked.append((rl, seed, start))
        score = 0.2 * (rl.settings["learning_rate"] == 1e-3) + 0.2 * (rl.n_envs == 16) + 0.01 * (seed - 1000)
        facts = dict.fromkeys(tune_rl.FACTS, 0.0) | {"rl_area": score}
        return dict.fromkeys(tune_rl.SETTINGS, 1) | facts

    monkeypatch.setattr(tune_rl, "warm_start", lambda experiment, arm, seed: (arm, seed))
    monkeypatch.setattr(tune_rl, "curve", likes)
    tune_rl.main()
    assert all(start == (TINY.arms["bc"], seed) for _, seed, start in asked)
    tried = [rl for rl, seed, _ in asked if seed == 1000]
    assert [rl for rl, seed, _ in asked if seed == 1001] == tried
    grid, rest = tried[:4], tried[4:]
    assert [(rl.n_envs, rl.settings["learning_rate"]) for rl in grid] == [
        (64, 3e-4),
        (64, 1e-3),
        (16, 3e-4),
        (16, 1e-3),
    ]
    assert all((rl.n_envs, rl.settings["learning_rate"]) == (16, 1e-3) for rl in rest)
    assert [rl.settings["n_steps"] for rl in rest] == [128, 8, 8]  # the first of equals
    assert len(set(map(str, tried))) == len(tried)
    rows = read_rows(results, kind="tuning")
    assert len(rows) == len(tried)
    assert max(float(row["rl_area"]) for row in rows) == pytest.approx(0.405)  # the mean over the draws


def test_cures_are_searched_for_each_arm(monkeypatch: pytest.MonkeyPatch, results: Path) -> None:
    """One that likes to be held and one that does not: both go on from their own best."""
    reflect = Arm(ReflectionConfig(), memory=1, rl=True)
    experiment = dataclasses.replace(TINY, arms={**TINY.arms, "reflect": reflect})
    monkeypatch.setitem(sys.modules, "headstart.experiments.tiny", SimpleNamespace(EXPERIMENT=experiment))  # type: ignore[arg-type]
    monkeypatch.setitem(ENVIRONMENTS, "tiny", ENVIRONMENTS["door_key"])
    tried: dict[str, list[dict[str, Any]]] = {"bc": [], "reflect": []}

    def likes(experiment: Experiment, rl: RL, seed: int, arm: str) -> dict[str, Any]:
        if seed == 1000:
            tried[arm].append(rl.settings)
        sign = 1 if arm == "bc" else -1
        score = 0.5 + sign * (rl.settings["kl_coef"] + rl.settings.get("critic_updates", 0))
        facts = dict.fromkeys(tune_rl.FACTS, 0.0) | {"rl_area": score}
        return dict.fromkeys(tune_rl.SETTINGS, 1) | facts

    monkeypatch.setattr(tune_rl, "warm_start", lambda experiment, arm, seed: "reflect" if arm is reflect else "bc")
    monkeypatch.setattr(tune_rl, "curve", likes)
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--cures", "--arms", "bc", "reflect"])
    tune_rl.main()
    for arm, coef, critic in (("bc", 1.0, 4), ("reflect", 0.0, None)):
        assert [settings["kl_coef"] for settings in tried[arm]] == [1.0, 0.3, 0.1, 0.03, 0.0, coef, coef, coef]
        assert [settings.get("critic_updates") for settings in tried[arm]] == [None] * 5 + [4, critic, critic]
        assert [settings.get("ent_coef") for settings in tried[arm]] == [None] * 6 + [0.003, None]
        assert [settings.get("gae_lambda") for settings in tried[arm]] == [None] * 7 + [0.98]
    rows = read_rows(results.with_name("cures.csv"), kind="tuning")
    assert [row["arm"] for row in rows] == ["bc"] * 8 + ["reflect"] * 8
    assert not results.exists()


def test_an_arm_begins_with_its_own_settings_and_leaves_the_rows_of_others(
    monkeypatch: pytest.MonkeyPatch, results: Path
) -> None:
    reflect = Arm(ReflectionConfig(), memory=1, rl=True, ppo={"ent_coef": 0.003})
    experiment = dataclasses.replace(TINY, arms={**TINY.arms, "reflect": reflect})
    monkeypatch.setitem(sys.modules, "headstart.experiments.tiny", SimpleNamespace(EXPERIMENT=experiment))  # type: ignore[arg-type]
    monkeypatch.setitem(ENVIRONMENTS, "tiny", ENVIRONMENTS["door_key"])

    def says(experiment: Experiment, rl: RL, seed: int, start: Any) -> dict[str, Any]:
        return dict.fromkeys((*tune_rl.SETTINGS, *tune_rl.FACTS), 0.0) | {"ent_coef": rl.settings.get("ent_coef", 0.01)}

    monkeypatch.setattr(tune_rl, "warm_start", lambda experiment, arm, seed: None)
    monkeypatch.setattr(tune_rl, "curve", says)
    tune_rl.main()
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--arms", "reflect"])
    for _ in range(2):  # a second time they are replaced
        tune_rl.main()
        found = [(row["arm"], float(row["ent_coef"])) for row in read_rows(results, kind="tuning")]
        assert found == [("bc", 0.01)] * 7 + [("reflect", 0.003)] * 7


def test_rows_of_another_kind_are_refused_before_the_search(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results.parent.mkdir()
    write_rows(results, [{"demos": 2, "rl_area": 0.5}], kind="tuning")
    with pytest.raises(SystemExit, match="2"):
        tune_rl.main()
    assert f"{results} has other columns" in capsys.readouterr().err


def test_an_arm_without_a_warm_start(
    monkeypatch: pytest.MonkeyPatch, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--arms", "scratch"])
    with pytest.raises(SystemExit, match="2"):
        tune_rl.main()
    assert "argument --arms: tiny has no warm start 'scratch'" in capsys.readouterr().err


def test_a_curve_starts_from_the_weights_that_are_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is PPO with its cures, on validation levels; the row says the settings that PPO had."""
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path))
    start, started = tune_rl.warm_start(TINY, TINY.arms["bc"], 1000), []
    fine_tune = tune_rl.fine_tune

    def watched(model: Any, *arguments: Any, **options: Any) -> Any:
        started.append((model.policy.warm_start, {k: v.clone() for k, v in model.policy.weights().items()}))
        assert {str(split) for split in split_of(level_hash(options["validation"].rows))} == {"validation"}
        return fine_tune(model, *arguments, **options)

    monkeypatch.setattr(tune_rl, "fine_tune", watched)
    row = tune_rl.curve(TINY, dataclasses.replace(TINY.rl, n_envs=4), 1000, start)
    ((name, first),) = started
    assert name == "bc"
    assert (start.memory, start.spent) == (1, 0)
    assert all(torch.equal(value, start.weights[key]) for key, value in first.items())
    assert (row["n_envs"], row["n_steps"], row["batch_size"], row["learning_rate"]) == (4, 8, 32, 3e-4)
    assert row["rl_steps"] >= 256
    assert 0.0 <= row["rl_area"] <= 1.0


def test_a_warm_start_has_cost_the_steps_of_its_branches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path))
    config = IWMConfig(bc=tiny.LEARNED, updates=2)
    start = tune_rl.warm_start(TINY, Arm(config, memory=0, rl=True), 1000)
    assert (start.learner, start.memory) == ("iwm", 0)
    branches = branch(tune_rl.taught(TINY, 1000), horizon=config.horizon, rng=np.random.default_rng([1000, 0xB2]))
    assert start.spent == branches.env_steps > 0
