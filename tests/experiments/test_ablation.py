"""The ablation: what is changed, what is measured and where, and what is written."""

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny

from headstart.envs.banks import split_of
from headstart.envs.levels import level_hash
from headstart.envs.registry import ENVIRONMENTS
from headstart.experiments import ablation, tune
from headstart.experiments.arms import Arm
from headstart.experiments.experiment import RL, Experiment
from headstart.experiments.runlog import flat, read_rows
from headstart.learners import JudgeConfig, Reflection, ReflectionConfig

SMALL = ReflectionConfig(
    bc=tiny.LEARNED, judge=JudgeConfig(members=2, updates=2), levels=2, level_steps=3, states=4, round_updates=2
)
TINY = dataclasses.replace(tiny.TINY, arms={"reflect": Arm(SMALL, memory=1, rl=False)})


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ablation, "RESULTS", tmp_path)
    monkeypatch.setattr(ablation, "LEVELS", 6)
    monkeypatch.setattr(ablation, "ProcessPoolExecutor", tiny.Here)
    monkeypatch.setattr(sys, "argv", ["experiments/ablation.py", "tiny"])
    monkeypatch.setitem(sys.modules, "headstart.experiments.tiny", SimpleNamespace(EXPERIMENT=TINY))  # type: ignore[arg-type]
    monkeypatch.setitem(ENVIRONMENTS, "tiny", ENVIRONMENTS["door_key"])
    return tmp_path / "tiny" / "ablation.csv"


def test_a_variant_differs_in_what_it_is_named_after() -> None:
    default = ReflectionConfig()
    assert ablation.variant(default, "default") == default
    usual = flat(dataclasses.asdict(default))
    for name in ablation.VARIANTS[1:]:
        config = ablation.variant(default, name)
        changed = {key: value for key, value in flat(dataclasses.asdict(config)).items() if value != usual[key]}
        said = dict(part.split("=") for part in name.split())
        assert {key: str(value).removesuffix(".0") for key, value in changed.items()} == said


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mood=3", "no setting 'mood'. Choose from bc, judge"),
        ("judge.mood=3", "no setting 'mood'. Choose from members"),
        ("judge=3", "say NAME=VALUE, or judge.NAME=VALUE"),
        ("rounds.few=3", "say NAME=VALUE, or judge.NAME=VALUE"),
        ("rounds=few", "rounds is 2 by default, and 'few' is nothing of this kind"),
        ("rounds", "rounds is 2 by default, and '' is nothing of this kind"),
    ],
)
def test_what_is_no_variant(
    monkeypatch: pytest.MonkeyPatch, results: Path, capsys: pytest.CaptureFixture[str], name: str, reason: str
) -> None:
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--only", name])
    with pytest.raises(SystemExit, match="2"):
        ablation.main()
    assert reason in capsys.readouterr().err
    assert not results.exists()


def test_every_variant_on_every_draw(
    monkeypatch: pytest.MonkeyPatch, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[ReflectionConfig, int]] = []

    def fake(experiment: Experiment, config: ReflectionConfig, seed: int, rl: int) -> dict[str, Any]:
        assert rl == 0
        asked.append((config, seed))
        return {"env_steps": 10 * len(asked), "success_sampled": seed / 10_000, "success_greedy": 0.5}

    monkeypatch.setattr(ablation, "measure", fake)
    ablation.main()
    names = ablation.VARIANTS
    assert asked == [(ablation.variant(SMALL, name), seed) for name in names for seed in tune.SEEDS[:2]]
    rows = read_rows(results, kind="tuning")
    assert [(row["variant"], row["seed"]) for row in rows] == [(name, s) for name in names for s in ("1000", "1001")]
    assert [row["env_steps"] for row in rows[:3]] == ["10", "20", "30"]
    said = capsys.readouterr().out.splitlines()[1:]
    assert len(said) == len(names)
    assert len({line.index(" sampled") for line in said}) == 1, "columns are below each other"
    assert said[0].split() == ["default", "10.0", "sampled", "50.0", "greedy", "15", "steps"]


def test_some_variants_on_more_draws_with_rl(
    monkeypatch: pytest.MonkeyPatch, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"env_steps": 1, "success_sampled": 0.5, "success_greedy": 0.5, "rl_area": 0.6}

    def fake(experiment: Experiment, config: ReflectionConfig, seed: int, rl: int) -> dict[str, Any]:
        assert rl == 500
        return found | {"steps_to_95": None if seed == 1001 else 4_000}

    monkeypatch.setattr(ablation, "measure", fake)
    options = [
        "--only",
        "sparing=False k=2",
        "states=500 judge.members=1",
        "--draws",
        "3",
        "--rl",
        "500",
        "--csv",
        "few.csv",
    ]
    monkeypatch.setattr(sys, "argv", [*sys.argv, *options])
    ablation.main()
    rows = read_rows(results.with_name("few.csv"), kind="tuning")
    assert [row["variant"] for row in rows] == ["sparing=False k=2"] * 3 + ["states=500 judge.members=1"] * 3
    assert [row["seed"] for row in rows[:3]] == ["1000", "1001", "1002"]
    assert [row["steps_to_95"] for row in rows[:3]] == ["4000", "", "4000"]
    assert "RL  60.0 in the mean, 95 % after 4,000, never, 4,000 steps with these" in capsys.readouterr().out


def test_a_fit_is_measured_on_validation_levels(monkeypatch: pytest.MonkeyPatch, results: Path) -> None:
    looked_at: list[str] = []
    fitted: list[Reflection] = []
    evaluate, fit = ablation.evaluate, Reflection.fit

    def watched(levels: Any, *arguments: Any, **settings: Any) -> Any:
        looked_at.extend(map(str, split_of(level_hash(levels.rows))))
        return evaluate(levels, *arguments, **settings)

    def kept(self: Reflection, *arguments: Any) -> Any:
        fitted.append(self)
        return fit(self, *arguments)

    monkeypatch.setattr(ablation, "evaluate", watched)
    monkeypatch.setattr(Reflection, "fit", kept)
    config = ablation.variant(SMALL, "sparing=False judge.horizon=3")
    found = ablation.measure(TINY, config, 1000)
    assert looked_at == ["validation"] * 12
    assert fitted[0].config == config
    assert found.keys() == {"env_steps", "success_sampled", "success_greedy"}
    shorter = ablation.measure(TINY, dataclasses.replace(SMALL, sparing=False), 1000)
    assert 0 < shorter["env_steps"] < found["env_steps"]  # the branches at the demonstrations are counted too


def test_a_curve_goes_on_from_the_fit(results: Path) -> None:
    settings = {"learning_rate": 3e-4, "n_steps": 8, "batch_size": 32}
    experiment = dataclasses.replace(
        TINY, rl=RL(steps=10**9, n_envs=8, eval_every=64, settings=settings), validation_levels=6
    )
    without, found = (ablation.measure(experiment, SMALL, 1000, rl) for rl in (0, 128))
    assert found.keys() == {*without, *ablation.CURVE}
    assert {name: found[name] for name in without} == without
    assert 0.0 <= found["rl_area"] <= 1.0
