"""Tuning: what the search tries and keeps, what a job writes, and on which levels and demonstrations it looks."""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny import LEARNED, TINY, Here

from headstart.envs import collect, evaluation
from headstart.envs.banks import split_of
from headstart.envs.levels import level_hash
from headstart.envs.registry import ENVIRONMENTS
from headstart.experiments import tune
from headstart.experiments.arms import Arm
from headstart.experiments.experiment import Experiment
from headstart.experiments.runlog import read_rows
from headstart.learners import BCConfig

SEEDS = (1000, 1001)
SETTINGS = {"demos", "memory", *(field.name for field in dataclasses.fields(BCConfig))}
SCORED = {"success_sampled", "success_greedy"}

Score = Callable[[Experiment, Arm, int], tuple[float, float]]


@pytest.fixture(scope="module", autouse=True)
def levels_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADSTART_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A small tuning of an experiment that has a script, as far as the command knows."""
    for name, value in {"RESULTS": tmp_path, "SEEDS": SEEDS, "LEVELS": 6, "BUDGETS": (1, 2, 4, 8, 16)}.items():
        monkeypatch.setattr(tune, name, value)
    monkeypatch.setitem(sys.modules, "headstart.experiments.tiny", SimpleNamespace(EXPERIMENT=TINY))  # type: ignore[arg-type]
    monkeypatch.setitem(ENVIRONMENTS, "tiny", ENVIRONMENTS["door_key"])
    return tmp_path / "tiny"


def run(monkeypatch: pytest.MonkeyPatch, *words: str, score: Score | None = None) -> list[tuple[Experiment, Arm, int]]:
    """What the command has scored, in this process; without a ``score`` of its own, of fits of three updates."""
    scored: list[tuple[Experiment, Arm, int]] = []
    fit = tune.score

    def short(experiment: Experiment, arm: Arm, seed: int) -> tuple[float, float]:
        assert isinstance(arm.learner, BCConfig)
        return fit(experiment, dataclasses.replace(arm, learner=dataclasses.replace(arm.learner, updates=3)), seed)

    def watched(experiment: Experiment, arm: Arm, seed: int) -> tuple[float, float]:
        scored.append((experiment, arm, seed))
        return (score or short)(experiment, arm, seed)

    with monkeypatch.context() as patch:
        patch.setattr(tune, "ProcessPoolExecutor", Here)
        patch.setattr(tune, "score", watched)
        patch.setattr(sys, "argv", ["experiments/tune.py", *words])
        tune.main()
    return scored


def rows_of(path: Path) -> list[dict[str, str]]:
    return read_rows(path, kind="tuning")


def nobody_succeeds(experiment: Experiment, arm: Arm, seed: int) -> tuple[float, float]:
    return 0.0, 0.0


# ---- what is tried and kept ----
def test_the_search_goes_on_from_the_best(monkeypatch: pytest.MonkeyPatch, results: Path) -> None:
    """A learner that likes memory with a hidden past, quick learning and many updates, when it acts greedily."""

    def likes(experiment: Experiment, arm: Arm, seed: int) -> tuple[float, float]:
        c: Any = arm.learner
        better = 0.2 * (c.hidden_past > 0) + 0.2 * (c.learning_rate == 3e-3) + 0.2 * (c.updates == 4000)
        return 0.05, better + 0.01 * (seed - 1000)

    scored = run(monkeypatch, "settings", "tiny", score=likes)
    tried = [arm for _, arm, seed in scored if seed == 1000]
    assert [(e, arm) for e, arm, seed in scored if seed == 1001] == [(TINY, arm) for arm in tried]
    first, rates, rest = tried[:5], tried[5:7], tried[7:]
    assert [(arm.memory, arm.learner.mirror) for arm in first[:3]] == [(0, True), (0, False), (4, True)]
    assert [(arm.memory, arm.learner.hidden_past, arm.learner.hidden_actions) for arm in first[3:]] == [
        (4, 0.5, 0.0),
        (4, 0.0, 0.5),
    ]
    assert [arm.learner.learning_rate for arm in rates] == [3e-4, 3e-3]
    assert all((arm.memory, arm.learner.hidden_past) == (4, 0.5) for arm in rates + rest)
    assert all(arm.learner.learning_rate == 3e-3 for arm in rest)
    assert len({(arm.learner.updates, arm.learner.weight_decay) for arm in rest}) == len(rest) == 3
    assert len(set(map(str, tried))) == len(tried)  # nothing twice
    rows = rows_of(results / "tuning.csv")
    assert len(rows) == len(tried)
    best = max(rows, key=lambda row: float(row["success_greedy"]))
    assert (best["memory"], best["hidden_past"], best["updates"]) == ("4", "0.5", "4000")
    assert float(best["success_greedy"]) == pytest.approx(0.605)  # the mean over the draws
    assert {row["success_sampled"] for row in rows} == {"0.05"}


def test_what_is_no_better_is_not_taken(monkeypatch: pytest.MonkeyPatch, results: Path) -> None:
    """The first of equals is kept: the default, where nothing matters."""
    scored = run(monkeypatch, "settings", "tiny", score=lambda experiment, arm, seed: (0.5, 0.25))
    arms = [arm for _, arm, _ in scored]
    assert all(arm.memory == arms[0].memory for arm in arms[10:])
    assert all(arm.learner.learning_rate == 1e-3 for arm in arms[14:])


def test_budgets_around_the_registrys(monkeypatch: pytest.MonkeyPatch, results: Path, capsys: Any) -> None:
    """From half of it to twice as many; the learner is the script's."""
    experiment = dataclasses.replace(TINY, demos=3, random_success=0.2, expert_success=0.8)
    monkeypatch.setattr(sys.modules["headstart.experiments.tiny"], "EXPERIMENT", experiment)
    scored = run(monkeypatch, "budget", "tiny", score=lambda experiment, arm, seed: (0.15 * experiment.demos, 0.0))
    assert [(e.demos, seed) for e, _, seed in scored] == [(n, seed) for n in (2, 3, 4) for seed in SEEDS]
    assert all(arm == TINY.arms["bc"] for _, arm, _ in scored)
    assert all(e == dataclasses.replace(experiment, demos=e.demos) for e, _, _ in scored)
    rows = rows_of(results / "budget.csv")
    assert [(row["demos"], row["seed"], row["chosen"]) for row in rows] == [
        (str(e.demos), str(seed), str(int(e.demos == 3))) for e, _, seed in scored
    ]
    assert {(row["random_success"], row["expert_success"]) for row in rows} == {("0.2", "0.8")}
    told = [line for line in capsys.readouterr().out.splitlines() if "scaled" in line]
    assert [("inside" in line, line.split()[0]) for line in told] == [
        *((False, "2"), (True, "3"), (True, "4")),  # (0.15 n - 0.2) / 0.6
    ]


def test_histories_are_those_of_the_script_with_each_counter(monkeypatch: pytest.MonkeyPatch, results: Path) -> None:
    scored = run(monkeypatch, "history", "tiny", score=nobody_succeeds)
    tried = [
        (arm.memory, arm.learner.hidden_past, arm.learner.hidden_actions) for _, arm, seed in scored if seed == 1000
    ]
    assert tried == [(0, 0.0, 0.0), *((m, p, a) for m in (1, 4) for p, a in ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5)))]
    assert all(arm.learner.learning_rate == 2e-3 for _, arm, _ in scored)
    assert all(arm.learner.weight_decay == 0.1 for _, arm, _ in scored)
    assert len(rows_of(results / "history.csv")) == len(tried)


def test_demonstrations_can_be_asked_for(monkeypatch: pytest.MonkeyPatch, results: Path) -> None:
    scored = run(monkeypatch, "history", "tiny", "--demos", "7", score=nobody_succeeds)
    assert {experiment.demos for experiment, _, _ in scored} == {7}
    assert {row["demos"] for row in rows_of(results / "history.csv")} == {"7"}


# ---- one score ----
def test_a_score_is_of_validation_levels_and_of_demonstrations_that_no_study_uses(
    monkeypatch: pytest.MonkeyPatch, results: Path
) -> None:
    levels, fitted = [], []
    fit = tune.BC.fit

    def evaluated(chosen: Any, *arguments: Any, **options: Any) -> Any:
        levels.append(chosen)
        return evaluation.evaluate(chosen, *arguments, **options)

    monkeypatch.setattr(tune, "evaluate", evaluated)
    monkeypatch.setattr(tune.BC, "fit", lambda self, demos: (fitted.append((self, demos)), fit(self, demos))[1])
    arm = TINY.arms["bc"]
    one = tune.score(TINY, arm, 1000)
    assert [len(chosen) for chosen in levels] == [6, 6]
    assert {str(split) for chosen in levels for split in split_of(level_hash(chosen.rows))} == {"validation"}
    ((learner, demos),) = fitted
    assert (learner.config, learner.seed, learner.policy.features_extractor.memory) == (LEARNED, 1000, 1)
    wanted = collect.collect_demos(TINY.env_id, 2, seed=1000, history=4, horizon=20)
    np.testing.assert_equal(demos.obs, wanted.obs)
    assert tune.score(TINY, arm, 1000) == one  # and again the same
    assert all(0 <= success <= 1 for success in one)


# ---- whole jobs ----
@pytest.mark.slow
@pytest.mark.parametrize(("job", "file", "n"), [("settings", "tuning.csv", 10), ("history", "history.csv", 7)])
def test_a_job_from_end_to_end(monkeypatch: pytest.MonkeyPatch, results: Path, job: str, file: str, n: int) -> None:
    run(monkeypatch, job, "tiny")
    rows = rows_of(results / file)
    assert len(rows) == n
    for row in rows:
        assert row.keys() == SETTINGS | SCORED
        assert all(0 <= float(row[name]) <= 1 for name in SCORED)


@pytest.mark.slow
def test_a_job_in_processes(monkeypatch: pytest.MonkeyPatch, results: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["experiments/tune.py", "budget", "tiny", "--processes", "1"])
    tune.main()
    rows = rows_of(results / "budget.csv")
    assert [(row["demos"], row["seed"]) for row in rows] == [(str(n), str(s)) for n in (1, 2, 4) for s in SEEDS]
    assert all(0 <= float(row[name]) <= 1 for row in rows for name in SCORED)


def test_an_unknown_name_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, "settings", "dor_key")
    assert "'dor_key'" in capsys.readouterr().err
