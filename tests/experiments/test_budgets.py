"""The picture of demonstration budgets: what is read is checked, what is drawn was worked by hand."""

import csv
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from headstart.envs import storage
from headstart.envs.errors import DataError, UsageError
from headstart.envs.registry import ENVIRONMENTS
from headstart.experiments import budgets
from headstart.experiments.budgets import budget_curve, draw_budgets, read_budgets


def rows_of(name: str, success: dict[int, list[tuple[float, float]]], chosen: int) -> list[dict[str, Any]]:
    """demonstrations -> success of each seed, sampled and greedy, between 0.2 (random) and 0.7 (expert)."""
    return [
        {"name": name, "demos": demos, "seed": seed, "success_sampled": sampled, "success_greedy": greedy}
        | {"random_success": 0.2, "expert_success": 0.7, "chosen": int(demos == chosen)}
        for demos, seeds in success.items()
        for seed, (sampled, greedy) in enumerate(seeds)
    ]


def save(directory: Path, rows: list[dict[str, Any]]) -> Path:
    path = directory / rows[0]["name"] / "budget.csv"
    path.parent.mkdir(parents=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0])[1:], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


# sampled is better at 8 and 32 demonstrations; greedy at 16, which is chosen
FETCH = rows_of("fetch", {16: [(0.3, 0.4), (0.3, 0.5)], 32: [(0.7, 0.6), (0.7, 0.7)], 8: [(0.3, 0.2), (0.3, 0.1)]}, 16)


def test_a_curve_by_hand() -> None:
    mode, curve = budget_curve(FETCH)
    assert mode == "greedy"
    assert list(curve) == [8, 16, 32]
    assert curve[8] == pytest.approx([0.0, -0.2])
    assert curve[16] == pytest.approx([0.4, 0.6])
    assert curve[32] == pytest.approx([0.8, 1.0])


def test_the_picture_by_hand() -> None:
    figure = draw_budgets(FETCH)
    (axes,) = figure.axes
    seeds, mean, chosen = (line.get_xydata() for line in axes.lines)
    assert seeds == pytest.approx(np.array([[8, 0], [8, -0.2], [16, 0.4], [16, 0.6], [32, 0.8], [32, 1]]))
    assert mean == pytest.approx(np.array([[8, -0.1], [16, 0.5], [32, 0.9]]))
    assert chosen == pytest.approx(np.array([[16, 0.5]]))
    assert [text.get_text() for text in axes.texts] == ["16: 0.50, greedy"]
    assert axes.get_ylim() == pytest.approx((-0.2, 1))  # nothing lies outside
    (band,) = axes.patches
    assert (band.get_extents().y0, band.get_extents().y1) == pytest.approx(
        (axes.transData.transform((1, 0.3))[1], axes.transData.transform((1, 0.7))[1])
    )


def test_the_table_by_hand() -> None:
    """Only the study's environments, each at its chosen budget in its better mode."""
    fetch = ENVIRONMENTS["fetch"]
    assert budgets.table(FETCH + rows_of("zebra", {8: [(0.5, 0.1)]}, 8)).splitlines()[2:] == [
        f"| `fetch` | {fetch.stands_for} | 16 | {100 * fetch.random_success:.1f} | 45.0 greedy "
        f"| {100 * fetch.expert_success:.1f} | 0.50 |"
    ]


def test_panels_are_in_the_order_of_the_registry() -> None:
    known = list(ENVIRONMENTS)
    rows = [row for name in ("zebra", *reversed(known)) for row in rows_of(name, {8: [(0.5, 0.1)]}, 8)]
    shown = [axes.get_title(loc="left") for axes in draw_budgets(rows).axes if axes.axison]
    assert shown == [*known, "zebra"]


@pytest.mark.parametrize("panels", [1, 2, 5, 8, 9])
def test_all_words_fit_into_the_picture(panels: int) -> None:
    success = {2**i: [(0.5, 0.1)] for i in range(3, 14)}
    names = ["dynamic_obstacles", *(f"environment_{i}" for i in range(1, panels))]
    figure = draw_budgets([row for name in names for row in rows_of(name, success, 8192)])
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    shown = [axes for axes in figure.axes if axes.axison]
    assert len(shown) == panels
    ticks = [[label.get_window_extent(renderer) for label in axes.get_xticklabels()] for axes in shown]
    for row in ticks:
        assert all(left.x1 < right.x0 for left, right in pairwise(row))
    words = [text.get_window_extent(renderer) for text in (*figure.texts, *(t for axes in shown for t in axes.texts))]
    for box in (*words, *(box for row in ticks for box in row)):
        assert figure.bbox.fully_containsx(box.x0)
        assert figure.bbox.fully_containsx(box.x1)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, FETCH)
    save(tmp_path, rows_of("memory", {8: [(0.5, 0.1)]}, 8))
    monkeypatch.setattr(sys, "argv", ["budgets.py", str(tmp_path)])
    budgets.main()
    told = capsys.readouterr().out
    assert told.startswith(budgets.table(FETCH + rows_of("memory", {8: [(0.5, 0.1)]}, 8)))
    assert told.split()[-2:] == [str(tmp_path / "budgets.png"), str(tmp_path / "budgets.svg")]
    with Image.open(tmp_path / "budgets.png") as picture:
        assert picture.width == pytest.approx(1240, rel=0.1)
    assert storage.load_bytes(tmp_path / "budgets.svg", kind="picture", schema=1).startswith(b"<?xml")


# ---- what cannot be drawn ----
def test_rows_as_saved(tmp_path: Path) -> None:
    save(tmp_path, FETCH)
    assert read_budgets(tmp_path) == FETCH


def test_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{tmp_path}: holds no <name>/budget.csv"):
        read_budgets(tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": "none"}, r"line 2: .*'none'"),
        ({"success_greedy": ""}, r"line 2: "),
        ({"chosen": 0}, r"marks \[16\] as chosen\. Mark all rows"),  # its other seed is
        ({"expert_success": 0.9}, "has 2 pairs of random_success and expert_success"),
        ({"demos": 8, "chosen": 0}, "two rows of the same demos and seed"),
    ],
)
def test_a_damaged_row(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    path = save(tmp_path, [FETCH[0] | change, *FETCH[1:]])
    with pytest.raises(DataError, match=f"{path}.*{told}"):
        read_budgets(tmp_path)


def test_a_damaged_file(tmp_path: Path) -> None:
    path = save(tmp_path, FETCH)
    whole = path.read_text()
    path.write_text(whole.replace("expert_success", "expert"))
    with pytest.raises(DataError, match=rf"{path}: has no expert_success\. Its columns must be demos, seed, "):
        read_budgets(tmp_path)
    path.write_text("")
    with pytest.raises(DataError, match=f"{path}: has no demos, seed, "):
        read_budgets(tmp_path)
    path.write_text(whole.replace("0.7,", "0.2,"))
    with pytest.raises(DataError, match=rf"{path}: success of random play \(0.2\) is not below the expert's \(0.2\)"):
        read_budgets(tmp_path)
