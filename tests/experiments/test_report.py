"""The report: finished runs only, what its tables say, the same runs the same bytes."""

import csv
import io
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from headstart.envs import storage
from headstart.envs.errors import DataError, UsageError
from headstart.experiments import pictures
from headstart.experiments.evidence import Score, study_rows
from headstart.experiments.report import crossed, markdown, write_report

VARIANTS = {"MiniGrid-DoorKey-16x16-v0": 256, "Headstart-DoorKey-8x8-Dark-v0": 92}  # id -> step limit
CONFIG = {
    "name": "door_key",
    "env_id": "MiniGrid-DoorKey-8x8-v0",
    "demos": 16,
    "horizon": 92,
    "history": 4,
    "validation_levels": 300,
    "test_levels": 1000,
    "ood": VARIANTS,
    "random_success": 0.0,
    "expert_success": 0.8,
    "rl": {"steps": 300_000},
}
RL_STEPS = 300_032  # to the end of a rollout


def summary(arm: str, seed: int, sampled: float, greedy: float = 0.3, **more: Any) -> dict[str, Any]:
    """A summary as the pipeline leaves it, of an arm without RL; half as good out of distribution."""
    base = {"env": "door_key", "arm": arm, "seed": seed, "success_sampled": sampled, "success_greedy": greedy}
    base |= {"success_cool": 0.5, "ood_sampled": sampled / 2, "ood_greedy": greedy / 2}
    base |= {"length_sampled": 40.0, "length_greedy": 60.0, "episodes": 1000, "updates": 1500, "expert_steps": 370}
    return base | {"env_steps": 0, "rl_steps": 0} | more


def after_rl(start: float, minimum: float, end: float, spent: int) -> dict[str, Any]:
    facts = {"rl_success_sampled": end, "rl_success_greedy": end, "rl_start": start, "rl_minimum": minimum}
    return facts | {"rl_end": end, "rl_steps": RL_STEPS, "env_steps": RL_STEPS + spent}


def evaluation(sampled: float, greedy: float, variants: tuple[str, ...] = tuple(VARIANTS)) -> dict[str, Any]:
    """All rows of a run. Variants are 0.1 above and below half of test success; only "emptied" does no harm."""
    success = {("test", "given", "sampled"): sampled, ("test", "given", "cool"): 0.5}
    success |= {("test", "given", "greedy"): greedy}
    for levels, more in zip(variants, (0.1, -0.1), strict=False):
        success |= {(levels, "given", "sampled"): sampled / 2 + more, (levels, "given", "greedy"): greedy / 2 + more}
    for instruction, share in (("shuffled", 0.5), ("emptied", 1.0), ("swapped", 0.25)):
        success |= {("test", instruction, "sampled"): sampled * share}
    rows = [
        {"levels": levels, "instruction": instruction, "mode": mode, "episodes": 1000, "success": share, "length": 40.0}
        for (levels, instruction, mode), share in success.items()
    ]
    return {"rows": rows}


def save_evaluation(directory: Path, rows: dict[str, Any], name: str = "evaluation.json") -> None:
    storage.save_json(directory / name, rows, kind="evaluation", schema=2)


def save_run(root: Path, row: dict[str, Any], curve: list[float] | None = None, **config: Any) -> Path:
    """A finished run directory through the real storage; ``curve``: success at equally spaced steps of RL."""
    directory = root / row["arm"] / f"seed{row['seed']}"
    settings = CONFIG | {"arm": row["arm"], "seed": row["seed"]} | config
    storage.save_json(directory / "config.json", settings, kind="configuration", schema=1)
    save_evaluation(directory, evaluation(row["success_sampled"], row["success_greedy"]))
    if curve is not None:
        spent = row["env_steps"] - row["rl_steps"]
        at = [round(share * row["rl_steps"]) for share in np.linspace(0, 1, len(curve))]
        points = [
            {"env_steps": spent + step, "rl_steps": step, "success": success, "actor_has_moved": step > 0}
            for step, success in zip(at, curve, strict=True)
        ]
        storage.save_json(directory / "curve.json", points, kind="curve", schema=1)
        save_evaluation(directory, evaluation(curve[-1], curve[-1]), "evaluation_after_rl.json")
    storage.save_json(directory / "summary.json", row, kind="summary", schema=1)
    return directory


def save_runs(root: Path, seeds: int) -> None:
    """Five arms that look like DoorKey's."""
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        grid = np.linspace(0, 1, 16)
        shift = rng.normal(0, 0.03)
        for arm, start, end, speed, spent in (
            ("scratch", 0.02, 0.12, 0.8, 0),
            ("bc", 0.66, 0.93, 3.0, 0),
            ("reflect", 0.85, 0.985, 5.0, 61_000 + 900 * seed),
        ):
            curve = start + shift + (end - start - shift) * (1 - np.exp(-speed * grid)) + rng.normal(0, 0.012, 16)
            points = [round(float(np.clip(s, 0, 1)), 4) for s in curve]
            rl = after_rl(points[0], min(points[1:]), points[-1], spent)
            save_run(root, summary(arm, seed, round(start + shift, 4), 0.4 + shift, **rl), points)
        save_run(root, summary("bc_long", seed, round(0.69 + shift, 4), 0.36, updates=3200))
        save_run(root, summary("iwm", seed, round(0.71 - shift, 4), 0.41, updates=2300, env_steps=9_400))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    save_runs(tmp_path / "door_key", seeds=2)
    return tmp_path / "door_key"


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time of a report."""
    monkeypatch.setattr(pictures, "render", lambda draw, suffix: b"")


# ---- tables ----
def test_intervals_are_printed_from_five_seeds_on() -> None:
    runs = [summary("bc", seed, value, 0.3) for seed, value in enumerate([0, 0, 1, 0, 0])]
    five, four = (markdown(study_rows(some, (0.0, 0.6))) for some in (runs, runs[:4]))
    assert "| bc | 5 | 1,000 | 20.0 (0.0 to 75.5) | 50.0 (50.0 to 50.0) | **30.0 (30.0 to 30.0)** | 0.50" in five
    assert "| bc | 4 | 1,000 | 25.0 | 50.0 | **30.0** | 0.50 |" in four  # cool is the best, and is not chosen


def test_how_many_seeds_had_rl_is_said_where_not_all_had_it() -> None:
    tuned = [summary("bc", seed, 0.5, **after_rl(0.5, 0.4, end, 0)) for seed, end in enumerate((0.8, 0.9))]
    some, all_of_them = (
        markdown(study_rows(runs, (0.0, 0.6))).splitlines()[-1] for runs in ([*tuned, summary("bc", 2, 0.5)], tuned)
    )
    assert "| bc | 3 |" in some
    assert "| 85.0 (seeds: 2) |" in some
    assert "| 85.0 |" in all_of_them
    assert "seeds: " not in markdown(study_rows([summary("bc", 0, 0.5)], (0.0, 0.6)))


def test_a_crossed_table_by_hand() -> None:
    columns = {
        name: [
            Score("bc", after_rl=False, levels=name, mode="greedy", seeds=(0, 1), success=(share, share + 0.1)),
            Score("bc", after_rl=True, levels=name, mode="sampled", seeds=(1,), success=(share,)),
        ]
        for name, share in (("A", 0.5), ("B", 0.2))
    }
    assert crossed(columns, with_mode=True).splitlines() == [
        "| policy | seeds | mode | A, % | B, % |",
        "|---|---:|---:|---:|---:|",
        "| bc | 2 | greedy | 55.0 | 25.0 |",
        "| bc + PPO | 1 | sampled | 50.0 | 20.0 |",
    ]


def tables(text: str) -> dict[str, list[list[str]]]:
    """The cells of each table, by the heading above it."""
    sections = {part.partition("\n")[0]: part for part in text.split("## ")}
    return {
        heading: [line[2:-2].split(" | ") for line in part.splitlines() if line.startswith("| ")]
        for heading, part in sections.items()
    }


def test_out_of_distribution_by_hand(tmp_path: Path, undrawn: None) -> None:
    for seed, better in enumerate((0.2, 0.3)):
        for arm in ("bc", "bc_long"):
            save_run(tmp_path, summary(arm, seed, 0.3, 0.4))
        row = summary("reflect", seed, 0.4 + better, 0.4, **after_rl(0.5, 0.5, 0.9, spent=0))
        save_run(tmp_path, row, [0.5, 0.9])
    text = write_report(tmp_path).text
    head, *rows = tables(text)["Out of distribution"]
    assert head == ["policy", "seeds", "mode", *(f"{name}, %" for name in (*VARIANTS, "mean"))]
    assert rows == [
        ["bc", "2", "greedy", "30.0", "10.0", "20.0"],  # 0.4 / 2 + 0.1, 0.4 / 2 - 0.1
        ["bc_long", "2", "greedy", "30.0", "10.0", "20.0"],
        ["reflect", "2", "sampled", "42.5", "22.5", "32.5"],  # the mean over seeds of 0.3 and 0.35, and 0.1 each way
        ["reflect + PPO", "2", "sampled", "55.0", "35.0", "45.0"],
    ]
    # seed by seed: 0.3 and 0.35, minus 0.2
    assert (
        "- reflect (sampled) minus the better of bc (greedy) and bc_long (greedy) out of distribution, seed by seed: "
        "+12.5 points (seeds 0-1; an interval needs 5 seeds)"
    ) in text


def test_controls_and_the_gap_have_their_lines(tmp_path: Path, undrawn: None) -> None:
    for arm, sampled in (("bc", 0.4), ("bc_long", 0.35), ("noop", 0.45), ("reflect", 0.5), ("dagger", 0.6)):
        for seed in range(5):
            save_run(tmp_path, summary(arm, seed, sampled))
    lines = write_report(tmp_path).text.splitlines()
    told = [line.partition(":")[0] for line in lines if line.startswith("- ")]
    assert told == [
        "- reflect (sampled) minus the better of bc (sampled) and bc_long (sampled), seed by seed",
        "- reflect (sampled) minus noop (sampled), seed by seed",
        "- reflect closes +10.0 of the +20.0 points from the better of bc and bc_long to dagger",
        "- reflect (sampled) minus the better of bc (sampled) and bc_long (sampled) out of distribution, seed by seed",
        "- reflect (sampled) minus noop (sampled) out of distribution, seed by seed",
        "- reflect closes +5.0 of the +10.0 points from the better of bc and bc_long to dagger out of distribution",
    ]
    assert any(line.endswith("to dagger: 50%, 95 % bootstrap interval 50% to 50%") for line in lines)


def test_instruction_use_by_hand(tmp_path: Path, undrawn: None) -> None:
    for seed, sampled in enumerate((0.8, 0.4)):
        save_run(tmp_path, summary("bc", seed, sampled, greedy=0.9))
    assert tables(write_report(tmp_path).text)["Is the instruction used?"] == [
        ["policy", "seeds", "given, %", "shuffled, %", "emptied, %", "swapped, %"],
        ["bc", "2", "60.0", "30.0", "60.0", "15.0"],
    ]


def test_what_an_environment_does_not_have_is_left_out(tmp_path: Path, undrawn: None) -> None:
    """Neither variants nor instructions."""
    place = save_run(tmp_path, summary("bc", 0, 0.5), ood={})
    rows = [row for row in evaluation(0.5, 0.3, variants=())["rows"] if row["instruction"] == "given"]
    save_evaluation(place, {"rows": rows})
    found = write_report(tmp_path)
    assert "##" not in found.text
    assert not found.picture.with_name("ood.png").exists()


# ---- files ----
def test_the_report_of_finished_runs(directory: Path) -> None:
    found = write_report(directory)
    assert found.text == storage.load_text(found.table, kind="report", schema=1)
    (main, *_) = tables(found.text).values()
    assert [line[0] for line in main] == ["arm", "scratch", "bc", "bc_long", "iwm", "reflect"]
    assert "random play (0.0 %) is 0 and the expert (80.0 % of levels) is 1" in found.text
    assert "reflect (sampled) minus the better of bc (sampled) and bc_long (sampled)" in found.text
    assert "Unfinished" not in found.text
    rows = csv_rows(directory, "results")
    assert len(rows) == 10
    first = storage.load_json(directory / "reflect" / "seed1" / "summary.json", kind="summary", schema=1)
    (row,) = [row for row in rows if (row["arm"], row["seed"]) == ("reflect", "1")]
    assert {name: str(value) for name, value in first.items()} == row
    points = [p for p in csv_rows(directory, "curves") if (p["arm"], p["seed"]) == ("reflect", "1")]
    assert (len(points), points[0]["env_steps"], points[0]["rl_steps"]) == (16, "61900", "0")
    with Image.open(found.picture) as picture:
        assert picture.width == pytest.approx(1600, rel=0.1)
    with Image.open(found.picture.with_name("ood.png")) as picture:
        assert picture.width == pytest.approx(1600, rel=0.1)
    assert storage.load_bytes(found.picture.with_suffix(".svg"), kind="picture", schema=1).startswith(b"<?xml")


def test_every_row_of_an_evaluation_is_in_the_csv(directory: Path, undrawn: None) -> None:
    write_report(directory)
    rows = csv_rows(directory, "evaluation", kind="evaluations")
    assert ",".join(rows[0]) == "arm,seed,after_rl,levels,instruction,mode,episodes,success,length"
    assert len(rows) == 2 * (5 + 3) * 10  # two seeds; five arms, three of them after RL too; ten rows in each file
    for after, name in enumerate(("evaluation.json", "evaluation_after_rl.json")):
        saved = storage.load_json(directory / "reflect" / "seed1" / name, kind="evaluation", schema=2)["rows"]
        which = {"arm": "reflect", "seed": "1", "after_rl": str(after)}
        found = [row for row in rows if which.items() <= row.items()]
        assert found == [which | {key: str(value) for key, value in row.items()} for row in saved]


def csv_rows(directory: Path, name: str, kind: str = "") -> list[dict[str, str]]:
    text = storage.load_text(directory / "report" / f"{name}.csv", kind=kind or name, schema=1)
    return list(csv.DictReader(io.StringIO(text)))


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for place in (tmp_path / "a" / "door_key", tmp_path / "b" / "door_key"):
        save_runs(place, seeds=2)
        report_directory = write_report(place).table.parent
        written.append({path.name: path.read_bytes() for path in report_directory.iterdir()})
    assert written[0] == written[1]
    pictures = {"success.png", "success.svg", "ood.png", "ood.svg"}
    assert set(written[0]) == {"manifest.json", "table.md", "results.csv", "evaluation.csv", "curves.csv", *pictures}


def test_the_picture_does_not_depend_on_the_users_matplotlibrc(directory: Path) -> None:
    plain = write_report(directory).picture.read_bytes()
    with mpl.rc_context({"font.size": 30, "axes.grid": True, "savefig.bbox": "tight"}):
        assert write_report(directory).picture.read_bytes() == plain


def test_unfinished_runs_are_named_and_left_out(directory: Path, undrawn: None) -> None:
    (directory / "reflect" / "seed2").mkdir()
    storage.save_json(directory / "iwm" / "seed10" / "config.json", CONFIG, kind="configuration", schema=1)
    storage.save_json(directory / "demos" / "seed2" / "demos.json", {}, kind="demos", schema=1)
    text = write_report(directory).text
    assert "Unfinished, left out: iwm/seed10, reflect/seed2." in text
    assert "seeds 0-1" in text
    assert "seed10" not in (directory / "report" / "results.csv").read_text()


def test_a_curve_that_its_summary_does_not_know_is_left_out(directory: Path, undrawn: None) -> None:
    """PPO was begun after a run without it had finished."""
    row = summary("iwm", 0, 0.7, rl_steps=RL_STEPS)
    save_run(directory, row, [0.7, 0.9])
    save_run(directory, row | {"rl_steps": 0})
    write_report(directory)
    assert "iwm" not in {point["arm"] for point in csv_rows(directory, "curves")}


def test_a_damaged_summary_is_an_error_that_names_it(directory: Path) -> None:
    path = directory / "bc" / "seed0" / "summary.json"
    path.write_text(path.read_text().replace("0.", "0.9", 1))
    with pytest.raises(DataError, match=str(path)):
        write_report(directory)
    assert not (directory / "report").exists()


@pytest.mark.parametrize(
    "change",
    [{"demos": 8}, {"horizon": 64}, {"test_levels": 100}, {"env_id": "other"}, {"expert_success": 0.9}, {"ood": {}}],
)
def test_runs_of_different_settings_do_not_share_a_table(directory: Path, change: dict[str, Any]) -> None:
    place = save_run(directory, summary("bc_long", 2, 0.6), **change)
    (name,) = change
    with pytest.raises(DataError, match=rf"{place}: has {name} .*, but .*scratch/seed0 has"):
        write_report(directory)


def test_ppo_of_different_length_does_not_share_a_table(directory: Path) -> None:
    row = summary("bc", 2, 0.6, **after_rl(0.6, 0.6, 0.7, spent=0))
    save_run(directory, row, [0.6, 0.7], rl={"steps": 1000})
    with pytest.raises(DataError, match="rl_steps 1000, but"):
        write_report(directory)


def test_ppo_that_was_asked_for_as_many_steps_shares_a_table(directory: Path, undrawn: None) -> None:
    """Arms with rollouts of their own, and GRPO, end a little later or earlier."""
    row = summary("bc", 2, 0.6, **after_rl(0.6, 0.6, 0.7, spent=0)) | {"rl_steps": RL_STEPS + 500}
    save_run(directory, row, [0.6, 0.7])
    text = write_report(directory).text
    assert "PPO: 300,000 environment steps and the rest of a rollout" in text
    assert "| bc | 3 |" in text


def test_steps_to_fixed_levels_by_hand(tmp_path: Path, undrawn: None) -> None:
    """Before the race, in which they are to whatever both reach; of scratch too."""
    curves = {"scratch": [(0.1, 0.2, 0.2)] * 3, "bc": [(0.5, 0.9, 0.96), (0.5, 0.7, 0.8), (0.5, 0.6, 0.7)]}
    curves["reflect"] = [(0.8, 0.92, 0.97)] * 3
    for arm, seeds in curves.items():
        for seed, points in enumerate(seeds):
            row = summary(arm, seed, 0.5, **after_rl(points[0], points[1], points[2], 7000 * (arm == "reflect")))
            save_run(tmp_path, row | {"rl_steps": 2000, "env_steps": row["env_steps"] - RL_STEPS + 2000}, [*points])
    text = write_report(tmp_path).text
    lines = text[text.index("Steps with reward to the first point") :].splitlines()
    assert lines[2:7] == [
        "| policy | 80 % | 90 % | 95 % |",
        "|---|---:|---:|---:|",
        "| PPO from scratch | -, 0 of 3 | -, 0 of 3 | -, 0 of 3 |",
        "| bc + PPO | 2,000 (2,000), 2 of 3 | -, 1 of 3 | -, 1 of 3 |",
        "| reflect + PPO | 0 (7,000), 3 of 3 | 1,000 (8,000), 3 of 3 | 2,000 (9,000), 3 of 3 |",
    ]
    assert text.index("Steps with reward to") < text.index("- reflect + PPO against bc + PPO")


def test_runs_of_different_evaluations_do_not_share_a_table(directory: Path) -> None:
    place = save_run(directory, summary("bc_long", 2, 0.6))
    save_evaluation(place, evaluation(0.6, 0.3, variants=("MiniGrid-DoorKey-16x16-v0",)))
    with pytest.raises(DataError, match=rf"{place}: has variants .*, but .*scratch/seed0 has"):
        write_report(directory)


def test_an_evaluation_of_an_older_version_is_refused(directory: Path) -> None:
    """It has neither other levels nor other instructions."""
    path = directory / "bc" / "seed1" / "evaluation.json"
    storage.save_json(path, {"episodes": 1000, "success_sampled": 0.6}, kind="evaluation", schema=1)
    with pytest.raises(DataError, match=f"{path}: has version 1 of 'evaluation'; this headstart reads version 2"):
        write_report(directory)
    assert not (directory / "report").exists()


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"Run `headstart run door_key --out {tmp_path}` first"):
        write_report(tmp_path / "door_key")
    with pytest.raises(UsageError, match=f"headstart run door_key --demos 4 --out {tmp_path}` first"):
        write_report(tmp_path / "door_key-4")
    (tmp_path / "door_key" / "bc" / "seed0").mkdir(parents=True)
    with pytest.raises(
        UsageError, match=r"no finished run \(unfinished: bc/seed0\).* door_key --arms bc --seed 0 --out"
    ):
        write_report(tmp_path / "door_key")


def test_who_races_whom(tmp_path: Path) -> None:
    """Everything against bc, but what differs in PPO only against its twin."""
    for arm, end in (("bc", 0.5), ("reflect", 0.9), ("reflect_plain", 0.8), ("bc_plain", 0.4), ("scratch", 0.1)):
        row = summary(arm, 0, 0.5, **after_rl(0.5, 0.4, end, 0))
        save_run(tmp_path, row, [0.5, 0.4, end])
    text = write_report(tmp_path).text
    raced = [line.split(",")[0] for line in text.splitlines() if " + PPO against " in line]
    assert raced == [
        "- reflect + PPO against bc + PPO",
        "- bc_plain + PPO against bc + PPO",
        "- reflect_plain + PPO against reflect + PPO",
    ]
    assert "plain" not in "".join(line for line in text.splitlines() if " minus " in line)
