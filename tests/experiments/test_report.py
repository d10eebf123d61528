"""The report: statistics worked by hand, finished runs only, the same runs the same bytes."""

import csv
import io
import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from headstart.envs import storage
from headstart.envs.errors import DataError, UsageError
from headstart.experiments import report
from headstart.experiments.report import comparison, markdown, study_rows, write_report

CONFIG = {
    "name": "door_key",
    "env_id": "MiniGrid-DoorKey-8x8-v0",
    "demos": 16,
    "horizon": 92,
    "history": 4,
    "validation_levels": 300,
    "test_levels": 1000,
}
RL_STEPS = 300_000


def summary(arm: str, seed: int, sampled: float, greedy: float = 0.3, **more: Any) -> dict[str, Any]:
    """A summary as the pipeline leaves it, of an arm without RL."""
    base = {"env": "door_key", "arm": arm, "seed": seed, "success_sampled": sampled, "success_greedy": greedy}
    base |= {"length_sampled": 40.0, "length_greedy": 60.0, "episodes": 1000, "updates": 1500, "expert_steps": 370}
    return base | {"env_steps": 0, "rl_steps": 0} | more


def after_rl(start: float, minimum: float, end: float, spent: int) -> dict[str, Any]:
    facts = {"rl_success_sampled": end, "rl_success_greedy": end, "rl_start": start, "rl_minimum": minimum}
    return facts | {"rl_end": end, "rl_steps": RL_STEPS, "env_steps": RL_STEPS + spent}


def save_run(root: Path, row: dict[str, Any], curve: list[float] | None = None, **config: Any) -> Path:
    """A finished run directory through the real storage; ``curve``: success at equally spaced steps of RL."""
    directory = root / row["arm"] / f"seed{row['seed']}"
    settings = CONFIG | {"arm": row["arm"], "seed": row["seed"]} | config
    storage.save_json(directory / "config.json", settings, kind="configuration", schema=1)
    if curve is not None:
        spent = row["env_steps"] - row["rl_steps"]
        at = [round(share * row["rl_steps"]) for share in np.linspace(0, 1, len(curve))]
        points = [
            {"env_steps": spent + step, "rl_steps": step, "success": success, "actor_has_moved": step > 0}
            for step, success in zip(at, curve, strict=True)
        ]
        storage.save_json(directory / "curve.json", points, kind="curve", schema=1)
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


# ---- statistics ----
def test_paired_t_interval_by_hand() -> None:
    # mean 0.15; squares of deviations sum to 0.025, so sd = sqrt(0.025 / 4), its error sqrt(0.00125); t(4) = 2.776445
    interval = report.paired_interval([0.10, 0.20, 0.15, 0.05, 0.25])
    assert interval == pytest.approx((0.15 - 2.776445 * math.sqrt(0.00125), 0.15 + 2.776445 * math.sqrt(0.00125)))
    assert report.paired_interval([0.10, 0.20, 0.15, 0.05]) is None


def test_bootstrap_interval_by_hand() -> None:
    # The mean of a resample is Binomial(5, 0.2) / 5: P(X = 0) = 0.33, P(X <= 2) = 0.942, P(X <= 3) = 0.993.
    assert report.bootstrap_interval([0, 0, 1, 0, 0]) == pytest.approx((0.0, 0.6))
    assert report.bootstrap_interval([0.4] * 10) == pytest.approx((0.4, 0.4))
    assert report.bootstrap_interval([0.1, 0.5, 0.3, 0.9, 0.7]) == report.bootstrap_interval([0.9, 0.7, 0.5, 0.3, 0.1])
    assert report.bootstrap_interval([0.1, 0.2, 0.3, 0.4]) is None


def test_the_better_mode_is_better_on_average() -> None:
    runs = [summary("bc", 0, sampled=0.5, greedy=0.6), summary("bc", 1, sampled=0.6, greedy=0.1)]
    assert report.better_mode(runs) == "sampled"
    assert report.better_mode(runs[:1]) == "greedy"
    assert report.better_mode([summary("bc", 0, sampled=0.5, greedy=0.5)]) == "sampled"


# bc is better sampled (0.54 to 0.50 on average), although not on seeds 0 and 2; bc_long and reflect are better greedy.
BC = {0: (0.50, 0.60), 1: (0.60, 0.40), 2: (0.40, 0.60), 3: (0.60, 0.50), 4: (0.60, 0.40)}
BC_LONG = {0: (0.20, 0.55), 1: (0.20, 0.50), 2: (0.20, 0.45), 3: (0.20, 0.50), 4: (0.20, 0.65)}
REFLECT = {0: (0.10, 0.65), 1: (0.10, 0.80), 2: (0.10, 0.60), 3: (0.10, 0.65), 4: (0.10, 0.90)}


def summaries_of(**arms: dict[int, tuple[float, float]]) -> list[dict[str, Any]]:
    return [summary(arm, seed, *both) for arm, seeds in arms.items() for seed, both in seeds.items()]


def test_comparison_by_hand() -> None:
    found = comparison(summaries_of(reflect=REFLECT, bc_long=BC_LONG, bc=BC))
    assert found is not None
    assert found.mode == {"reflect": "greedy", "bc": "sampled", "bc_long": "greedy"}
    # the better baseline of each seed: 0.55 (bc_long), 0.60 (bc), 0.45 (bc_long), 0.60 (bc), 0.65 (bc_long)
    assert found.difference == pytest.approx((0.10, 0.20, 0.15, 0.05, 0.25))
    assert found.mean == pytest.approx(0.15)
    assert found.interval == pytest.approx((0.051838, 0.248162), abs=1e-6)
    assert str(found) == (
        "reflect (greedy) minus the better of bc (sampled) and bc_long (greedy), seed by seed: +15.0 points, "
        "95 % paired t interval +5.2 to +24.8 (seeds 0-4)"
    )


def test_comparison_pairs_the_seeds_that_all_arms_have() -> None:
    reflect = {seed: both for seed, both in REFLECT.items() if seed != 1}
    found = comparison(summaries_of(reflect=reflect, bc_long=BC_LONG, bc=BC))
    assert found is not None
    assert found.seeds == (0, 2, 3, 4)
    assert found.interval is None
    assert "seeds 0, 2-4; an interval needs 5 seeds" in str(found)


def test_no_comparison_without_both_baselines() -> None:
    assert comparison(summaries_of(reflect=REFLECT, bc=BC)) is None
    assert comparison(summaries_of(bc=BC, bc_long=BC_LONG)) is None
    assert comparison(summaries_of(reflect={7: (0.1, 0.2)}, bc=BC, bc_long=BC_LONG)) is None


# ---- rows and table ----
def test_a_row_by_hand() -> None:
    runs = [
        summary("reflect", 0, 0.8, 0.5, **after_rl(0.80, 0.75, 0.95, spent=60_000)),
        summary("reflect", 1, 0.7, 0.6, **after_rl(0.70, 0.72, 0.99, spent=62_000)),
    ]
    (row,) = study_rows(runs)
    assert (row["arm"], row["seeds"], row["episodes"], row["better_mode"]) == ("reflect", 2, 1000, "sampled")
    assert row["success_sampled"] == pytest.approx(0.75)
    assert row["success_sampled_low"] is None
    assert (row["env_steps_before_rl"], row["rl_steps"]) == (61_000, RL_STEPS)
    assert row["rl_success_sampled"] == pytest.approx(0.97)
    assert row["dip"] == pytest.approx(0.05)


def test_an_arm_without_rl_has_no_numbers_of_rl() -> None:
    (row,) = study_rows([summary("iwm", 0, 0.7, env_steps=9_400)])
    assert (row["env_steps_before_rl"], row["rl_seeds"]) == (9_400, 0)
    assert row["rl_success_sampled"] is row["dip"] is row["rl_steps"] is None


def test_rows_are_in_the_order_of_the_table() -> None:
    arms = ["zebra", "reflect", "another", "iwm", "bc_long", "scratch", "bc"]
    rows = study_rows([summary(arm, 0, 0.5) for arm in arms])
    assert [row["arm"] for row in rows] == ["scratch", "bc", "bc_long", "iwm", "reflect", "another", "zebra"]


def test_rows_refuse_what_cannot_be_averaged() -> None:
    with pytest.raises(ValueError, match="two summaries of bc, seed 3"):
        study_rows([summary("bc", 3, 0.5), summary("bc", 3, 0.5)])
    with pytest.raises(ValueError, match=r"bc: its seeds were tested in \[100, 1000\] episodes"):
        study_rows([summary("bc", 0, 0.5), summary("bc", 1, 0.5, episodes=100)])


def test_intervals_are_printed_from_five_seeds_on() -> None:
    runs = [summary("bc", seed, value, 0.3) for seed, value in enumerate([0, 0, 1, 0, 0])]
    assert "| bc | 5 | 1,000 | 20.0 (0.0 to 60.0) | **30.0 (30.0 to 30.0)** |" in markdown(study_rows(runs))
    assert "| bc | 4 | 1,000 | 25.0 | **30.0** |" in markdown(study_rows(runs[:4]))


# ---- files ----
def test_the_report_of_finished_runs(directory: Path) -> None:
    found = write_report(directory)
    assert found.text == storage.load_text(found.table, kind="report", schema=1)
    table = [line.split(" | ")[0] for line in found.text.splitlines() if line.startswith("| ")]
    assert table == ["| arm", "| scratch", "| bc", "| bc_long", "| iwm", "| reflect"]
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
        assert picture.size == (1600, 920)
    assert storage.load_bytes(found.picture.with_suffix(".svg"), kind="picture", schema=1).startswith(b"<?xml")


def csv_rows(directory: Path, name: str) -> list[dict[str, str]]:
    text = storage.load_text(directory / "report" / f"{name}.csv", kind=name, schema=1)
    return list(csv.DictReader(io.StringIO(text)))


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for place in (tmp_path / "a" / "door_key", tmp_path / "b" / "door_key"):
        save_runs(place, seeds=2)
        write_report(place)
        report_directory = write_report(place).table.parent
        written.append({path.name: path.read_bytes() for path in report_directory.iterdir()})
    assert written[0] == written[1]
    names = {"manifest.json", "table.md", "results.csv", "curves.csv", "success.png", "success.svg"}
    assert set(written[0]) == names


def test_the_picture_does_not_depend_on_the_users_matplotlibrc(directory: Path) -> None:
    plain = write_report(directory).picture.read_bytes()
    with mpl.rc_context({"font.size": 30, "axes.grid": True, "savefig.bbox": "tight"}):
        assert write_report(directory).picture.read_bytes() == plain


def test_unfinished_runs_are_named_and_left_out(directory: Path) -> None:
    (directory / "reflect" / "seed2").mkdir()
    storage.save_json(directory / "iwm" / "seed10" / "config.json", CONFIG, kind="configuration", schema=1)
    storage.save_json(directory / "demos" / "seed2" / "demos.json", {}, kind="demos", schema=1)
    text = write_report(directory).text
    assert "Unfinished, left out: iwm/seed10, reflect/seed2." in text
    assert "seeds 0-1" in text
    assert "seed10" not in (directory / "report" / "results.csv").read_text()


def test_a_curve_that_its_summary_does_not_know_is_left_out(directory: Path) -> None:
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


@pytest.mark.parametrize("change", [{"demos": 8}, {"horizon": 64}, {"test_levels": 100}, {"env_id": "other"}])
def test_runs_of_different_settings_do_not_share_a_table(directory: Path, change: dict[str, Any]) -> None:
    place = save_run(directory, summary("bc_long", 2, 0.6), **change)
    (name,) = change
    with pytest.raises(DataError, match=rf"{place}: has {name} .*, but .*scratch/seed0 has"):
        write_report(directory)


def test_ppo_of_different_length_does_not_share_a_table(directory: Path) -> None:
    row = summary("bc", 2, 0.6, **after_rl(0.6, 0.6, 0.7, spent=0)) | {"rl_steps": 1000}
    save_run(directory, row, [0.6, 0.7])
    with pytest.raises(DataError, match="rl_steps 1000, but"):
        write_report(directory)


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="headstart run door_key"):
        write_report(tmp_path / "door_key")
    (tmp_path / "door_key" / "bc" / "seed0").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"no finished run \(unfinished: bc/seed0\)"):
        write_report(tmp_path / "door_key")


# ---- the picture ----
def test_curves_start_at_the_steps_spent_before_rl(directory: Path) -> None:
    (axes,) = report.draw(report.read_runs(directory)).axes
    starts = {line.get_xydata()[0][0] for line in axes.lines if len(line.get_xydata()) == 16}  # type: ignore[arg-type]
    assert starts == {0, 61_450}  # reflect: the mean of its two seeds
    assert len(axes.collections) == 3  # a band for each


def test_one_seed_has_no_band(tmp_path: Path) -> None:
    save_runs(tmp_path, seeds=1)
    (axes,) = report.draw(report.read_runs(tmp_path)).axes
    assert len(axes.collections) == 0


def test_a_picture_without_rl(tmp_path: Path) -> None:
    for arm, success in (("bc", 0.6), ("reflect", 0.8)):
        save_run(tmp_path, summary(arm, 0, success))
    figure = report.draw(report.read_runs(tmp_path))
    assert "PPO" not in " ".join(text.get_text() for text in figure.texts)
    assert [text.get_text() for text in figure.axes[0].texts] == ["bc, no RL  60%", "reflect, no RL  80%"]


def test_arms_differ_in_more_than_colour() -> None:
    looks = [*report.LOOKS.values(), *report.OTHER_LOOKS]
    for part in ("colour", "dash", "marker"):
        assert len({getattr(look, part) for look in looks}) == len(looks)


def test_all_words_fit_into_the_picture(tmp_path: Path) -> None:
    longest = {"env_id": "BabyAI-PutNextS7N4Carrying-v0", "demos": 1024}
    for arm in ("scratch", "bc", "reflect", "iwm+reflect"):
        row = summary(arm, 0, 1.0, **after_rl(1.0, 1.0, 1.0, spent=61_000))
        save_run(tmp_path, row, [1.0, 1.0], **longest)
    for arm in ("bc_long", "iwm", "self_label"):
        save_run(tmp_path, summary(arm, 0, 1.0), **longest)
    figure = report.draw(report.read_runs(tmp_path))
    renderer = FigureCanvasAgg(figure).get_renderer()
    words = [*figure.texts, *figure.axes[0].texts]
    boxes = [text.get_window_extent(renderer) for text in words]
    for text, box in zip(words, boxes, strict=True):
        assert figure.bbox.fully_containsx(box.x0), text.get_text()
        assert figure.bbox.fully_containsx(box.x1), text.get_text()
        assert figure.bbox.fully_containsy(box.y1), text.get_text()


def test_labels_are_spread_by_hand() -> None:
    assert report.spread([0.2, 0.8], gap=0.1, low=0, high=1) == pytest.approx([0.2, 0.8])
    assert report.spread([0.52, 0.5], gap=0.1, low=0, high=1) == pytest.approx([0.56, 0.46])
    assert report.spread([1.0, 1.0, 1.0], gap=0.1, low=0, high=1) == pytest.approx([0.8, 0.9, 1.0])
    assert report.spread([0.5] * 5, gap=0.5, low=0, high=1) == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert report.spread([], gap=0.1, low=0, high=1) == []
