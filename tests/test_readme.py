"""The README's snippet runs as printed, with smaller numbers, and its tables are what the published rows say."""

import csv
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headstart.envs.registry import ENVIRONMENTS
from headstart.experiments.curves import median_steps, race
from headstart.experiments.evidence import BASELINES, across, better_mode, comparison
from headstart.experiments.intervals import mean_interval
from headstart.learners import BCConfig, JudgeConfig, ReflectionConfig

README = Path(__file__).resolve().parents[1] / "README.md"
SMALL = ReflectionConfig(
    bc=BCConfig(updates=5),
    judge=JudgeConfig(updates=5),
    rounds=1,
    levels=4,
    level_steps=8,
    states=36,
    round_updates=5,
)
CUT_DOWN = {
    r'"MiniGrid-DoorKey-8x8-v0"': "ENV_ID",
    r"n_envs=\d+": "n_envs=8, n_levels=64",
    r"episodes=\d+": "episodes=2",
    r"Reflection\(model\.policy\)": "Reflection(model.policy, SMALL)",
    r"model\.learn\([\d_]+\)": "model.learn(512)",
}


def snippet() -> str:
    """The first block of Python in the README."""
    block = re.search(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    assert block, f"{README} has no ```python block: it should show the library in about ten lines."
    return block[1]


def cut_down(code: str, sizes: dict[str, str]) -> str:
    for printed, smaller in sizes.items():
        code, found = re.subn(printed, smaller, code)
        assert found, f"the snippet of {README} has nothing like {printed!r}: adapt CUT_DOWN in {__file__} to it."
    return code


def execute(code: str, monkeypatch: pytest.MonkeyPatch, cache: Path, **names: Any) -> dict[str, Any]:
    monkeypatch.setenv("HEADSTART_CACHE", str(cache))
    monkeypatch.chdir(cache)
    exec(compile(code, f"{README} (snippet)", "exec"), names)  # noqa: S102 - our own README
    assert not list(cache.glob("*.zip")), "the snippet leaves files behind"
    return names


def test_it_is_about_ten_lines() -> None:
    assert 5 <= len([line for line in snippet().splitlines() if line.strip()]) <= 14


@pytest.mark.parametrize("env_id", ["MiniGrid-DoorKey-5x5-v0", "BabyAI-GoToObjS6-v1"])
def test_the_snippet_runs(env_id: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With any environment that has an expert."""
    names = execute(cut_down(snippet(), CUT_DOWN), monkeypatch, tmp_path, ENV_ID=env_id, SMALL=SMALL)
    model, demos = names["model"], names["demos"]
    assert model.policy.warm_start == "reflect"
    assert model.num_timesteps >= 512
    assert len(demos.length) == 2


@pytest.mark.slow
def test_the_snippet_runs_as_printed_but_for_ppo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fewer_steps = {r"model\.learn\([\d_]+\)": "model.learn(8_192)"}
    names = execute(cut_down(snippet(), fewer_steps), monkeypatch, tmp_path)
    assert names["model"].policy.warm_start == "reflect"


# ---- what it claims, and experiments/README.md beside it ----
RESULTS = README.parent / "experiments" / "results"
CLAIMS = README.read_text() + (RESULTS.parent / "README.md").read_text()


def cells_below(head: str) -> list[list[str]]:
    """The cells of the table that begins like this, a list a row."""
    table = CLAIMS.split(head)[1].split("\n\n")[0]
    return [[cell.strip("* ") for cell in line.strip("| ").split("|")] for line in table.splitlines()[2:]]


def study_rows() -> list[list[str]]:
    return cells_below("| environment | seeds | `bc` | `bc_long` | `reflect` |")


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a results.csv; None where an arm has no such number."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return [{k: v if k in ("arm", "env") else float(v) if v else None for k, v in row.items()} for row in rows]


def runs_of(name: str, part: str = "") -> list[dict[str, Any]]:
    return rows_of(RESULTS / name / part / "results.csv")


def studied(name: str) -> list[dict[str, Any]]:
    """The rows of an environment that the study compares."""
    return [run for run in rows_of(RESULTS / "study" / "results.csv") if run["env"] == name]


@pytest.mark.parametrize("row", study_rows(), ids=lambda row: row[0].strip("`"))
def test_the_study_is_what_its_rows_say(row: list[str]) -> None:
    runs = studied(row[0].strip("`"))
    cells = [f"{len({run['seed'] for run in runs})}"]
    for arm in (*BASELINES, "reflect"):
        some = [run for run in runs if run["arm"] == arm]
        cells.append(f"{100 * np.mean([run[f'success_{better_mode(some)}'] for run in some]):.1f}")
    for measure in ("success", "ood"):
        found = comparison(runs, measure=measure)
        assert found is not None
        assert found.interval is not None
        low, high = found.interval
        cells.append(f"{100 * found.mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})")
    assert row[1:] == cells


def test_the_mean_of_the_study_is_what_its_rows_say() -> None:
    said = []
    for measure in ("success", "ood"):
        found = {row[0].strip("`"): comparison(studied(row[0].strip("`")), measure=measure) for row in study_rows()}
        over = across({name: one for name, one in found.items() if one is not None})
        assert over is not None
        assert over.mean.interval is not None
        assert len(over.environments) == len(study_rows())
        low, high = over.mean.interval
        said.append(f"{100 * over.mean.value:+.1f}")
        said.append(f"({100 * low:+.1f} to {100 * high:+.1f})")
    assert "Over all eight {} points {}, out of distribution {} {}**".format(*said) in README.read_text()


@pytest.mark.parametrize("name", [row[0].strip("`") for row in study_rows()])
def test_the_first_five_seeds_of_the_study_are_those_of_other_tables(name: str) -> None:
    """The same numbers, wherever they are published."""
    elsewhere = [run for run in runs_of(name) if run["arm"] in BASELINES]
    elsewhere += [run for run in runs_of(name, "ppo") if run["arm"] == "reflect"]
    found = {(run["arm"], run["seed"]): run for run in studied(name)}
    for run in elsewhere:
        here = found[run["arm"], run["seed"]]
        shared = [column for column in here if column in run and not column.startswith(("rl_", "env_steps"))]
        assert [here[column] for column in shared] == [run[column] for column in shared]
        assert {"success_sampled", "success_greedy", "updates"} <= {*shared}


def after_ppo(name: str, arm: str, column: str) -> str:
    """A cell: mean and interval of a column of published rows."""
    success = [run[column] for run in runs_of(name, "ppo") if run["arm"] == arm and run.get(column) is not None]
    if not success:
        return "-"
    low, high = mean_interval(success) or (0.0, 0.0)
    return f"{100 * np.mean(success):.1f} ({100 * low:.1f} to {100 * high:.1f})"


@pytest.mark.parametrize("row", cells_below("| environment | `bc` | `bc` + PPO |"), ids=lambda row: row[0])
def test_ppo_is_what_its_rows_say(row: list[str]) -> None:
    before, after, elsewhere = "success_sampled", "rl_success_sampled", "rl_ood_sampled"
    columns = [("bc", before), ("bc", after), ("reflect", before), ("reflect", after)]
    columns += [("bc", elsewhere), ("reflect", elsewhere)]
    assert row[1:] == [after_ppo(row[0].strip("`"), *column) for column in columns]


@pytest.mark.parametrize("row", cells_below("| environment | steps before PPO: `reflect_e"), ids=lambda row: row[0])
def test_sparing_practice_is_what_its_rows_say(row: list[str]) -> None:
    name, arms = row[0].strip("`"), ("reflect_exhaustive", "reflect")
    steps = [[run["env_steps"] - run["rl_steps"] for run in runs_of(name, "ppo") if run["arm"] == arm] for arm in arms]
    assert [len(of_arm) for of_arm in steps] == [5, 5]
    columns = [(arm, column) for column in ("success_sampled", "rl_success_sampled") for arm in arms]
    assert row[1:] == [thousands(np.mean(of_arm)) for of_arm in steps] + [after_ppo(name, *one) for one in columns]


@pytest.mark.parametrize("row", cells_below("| environment | `bc` + plain PPO |"), ids=lambda row: row[0])
def test_plain_ppo_is_what_its_rows_say(row: list[str]) -> None:
    arms = ("bc_plain", "reflect_plain")
    assert row[1:] == [after_ppo(row[0].strip("`"), arm, "rl_success_sampled") for arm in arms]


def curves_of(name: str, part: str = "ppo") -> dict[str, dict[int, list[dict[str, Any]]]]:
    curves: dict[str, dict[int, list[dict[str, Any]]]] = {}
    with (RESULTS / name / part / "curves.csv").open() as file:
        for point in csv.DictReader(file):
            numbers = {name: float(point[name]) for name in ("rl_steps", "env_steps", "success")}
            curves.setdefault(point["arm"], {}).setdefault(int(point["seed"]), []).append(numbers)
    return curves


def thousands(steps: float) -> str:
    return "-" if math.isinf(steps) else f"{steps / 1000:.0f}k" if steps else "0"


def levels_reached() -> list[list[str]]:
    """Environment, level and cells: of experiments/README.md all levels, of README.md 90 % of two arms."""
    there = cells_below("| environment | success | `bc` | `reflect` |")
    return there + [[name, "90 %", *cells] for name, *cells in cells_below("| environment | `bc` | `reflect` |")]


@pytest.mark.parametrize("row", levels_reached(), ids=lambda row: row[0] + row[1])
def test_steps_to_fixed_levels_are_what_the_curves_say(row: list[str]) -> None:
    curves, level, cells = curves_of(row[0].strip("`")), int(row[1].removesuffix(" %")) / 100, []
    for arm in ("bc", "reflect", "reflect_exhaustive")[: len(row) - 2]:
        steps, there = median_steps(curves[arm], level)
        counted, _ = median_steps(curves[arm], level, "env_steps")
        before_rl = f" ({thousands(counted)})" if counted > steps else ""
        cells.append(f"{thousands(steps)}{before_rl}, {there} of {len(curves[arm])}")
    assert [cell.replace("*", "") for cell in row[2:]] == cells


@pytest.mark.parametrize("row", cells_below("| environment | arm | raced to |"), ids=lambda row: row[0] + row[1])
def test_the_race_is_what_the_curves_say(row: list[str]) -> None:
    name, arm = (cell.strip("`") for cell in row[:2])
    run = race(curves_of(name), arm, "bc")
    assert run is not None
    low, high = (f"{100 * level:.0f}" for level in (min(run.levels), max(run.levels)))
    cells = [f"{low} to {high} %" if low != high else f"{low} %"]
    for steps in (run.rewarded, run.counted):
        ours, bc = (float(np.median(column)) for column in zip(*steps, strict=True))
        cells.append(f"{thousands(ours)} of {thousands(bc)}")
    cells += [", ".join(f"{ours / bc:.2f}" for ours, bc in steps) for steps in (run.rewarded, run.counted)]
    assert row[2:] == cells


def test_twice_the_steps_are_what_their_rows_say() -> None:
    arms = ("bc", "reflect")
    runs, curves = runs_of("key_corridor", "long"), curves_of("key_corridor", "long")
    ends = [100 * np.mean([run["rl_success_sampled"] for run in runs if run["arm"] == arm]) for arm in arms]
    said = "`bc` + PPO has {:.1f} and `reflect` + PPO {:.1f}; ".format(*ends)
    there = [
        [thousands(median_steps(curves[arm], level, "env_steps")[0]) for arm in arms] for level in (0.8, 0.9, 0.95)
    ]
    said += "to 80 % it is {} and {} steps with everything counted, to 90 % {} and {}, to 95 % {} and {}".format(
        *(steps for level in there for steps in level)
    )
    assert said in " ".join(README.read_text().split())


@pytest.mark.parametrize("row", cells_below("| in the judge's place |"), ids=lambda row: row[0].split("`")[1])
def test_controls_are_what_all_rows_say(row: list[str]) -> None:
    control, cells = row[0].split("`")[1], []
    for measure in ("success", "ood"):
        names = [cells[0].strip("`") for cells in study_rows()]
        found = {name: comparison(runs_of(name), "reflect", (control,), measure=measure) for name in names}
        differences = across({name: one for name, one in found.items() if one is not None})
        assert differences is not None
        assert differences.mean.interval is not None
        low, high = differences.mean.interval
        cells.append(f"{100 * differences.mean.value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})")
        if measure == "success":
            assert len(differences.environments) == len(names)
            cells.append(f"{len(differences.above)} and {len(differences.below)}")
    assert row[1:] == cells


@pytest.mark.parametrize("arm", ["iwm", "inverse", "star", "preference"])
def test_the_other_methods_are_what_their_rows_say(arm: str) -> None:
    rows = rows_of(RESULTS / "study" / "others.csv")
    found = {}
    for name in (cells[0].strip("`") for cells in study_rows()):
        one = comparison(runs_of(name) + [row for row in rows if row["env"] == name], arm, ("bc", "bc_long"))
        assert one is not None
        found[name] = one
    over = across(found)
    assert over is not None
    assert over.mean.interval is not None
    low, high = over.mean.interval
    said = f"`{arm}` {100 * over.mean.value:+.1f}", f"({100 * low:+.1f} to {100 * high:+.1f})"
    text = " ".join(CLAIMS.split()).replace(" points", "")
    assert " ".join(said) in text
    assert not over.above


def test_every_environment_of_the_study_with_results_is_in_its_table() -> None:
    published = {path.parent.name for path in RESULTS.glob("*/results.csv")} - {"study"}
    assert {row[0].strip("`") for row in study_rows()} == {name for name in published if ENVIRONMENTS[name].study}
