"""How many demonstrations are neither hopeless nor enough: the curves from which each budget was chosen, in a picture.

    python experiments/budgets.py            experiments/results/<name>/budget.csv -> experiments/results/budgets.png,
                                             and prints the README's table of environments

budget.csv has a row per number of demonstrations and seed: demos, seed, success_sampled, success_greedy of tuned
behaviour cloning on validation levels; random_success and expert_success, between which success is scaled; and
chosen, 1 in the rows of the budget that the environment's script uses. A curve is drawn in the mode, sampled or
greedy, that is better at the chosen budget.
"""

import argparse
import csv
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from headstart.envs import storage
from headstart.envs.errors import DataError, UsageError
from headstart.envs.registry import ENVIRONMENTS
from headstart.experiments.evidence import Row, scaled
from headstart.experiments.pictures import render

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["BAND", "draw_budgets", "read_budgets"]

RESULTS = Path(__file__).resolve().parent / "results"
BAND = (0.3, 0.7)  # where tuned cloning should land: room to gain, and something to start from
MODES = ("sampled", "greedy")
COLUMNS = {
    "demos": int,
    "seed": int,
    "success_sampled": float,
    "success_greedy": float,
    "random_success": float,
    "expert_success": float,
    "chosen": int,
}


def read_budgets(directory: Path) -> list[Row]:
    """Rows of every <name>/budget.csv below ``directory``, with the name. Raises DataError for what cannot be drawn."""
    paths = sorted(directory.glob("*/budget.csv"))
    if not paths:
        raise UsageError(f"{directory}: holds no <name>/budget.csv. Give the directory that does.")
    return [row for path in paths for row in _read(path)]


def _read(path: Path) -> list[Row]:
    with open(path, newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    missing = [name for name in COLUMNS if not lines or name not in lines[0]]
    if missing:
        raise DataError(f"{path}: has no {', '.join(missing)}. Its columns must be {', '.join(COLUMNS)}.")
    rows = []
    for number, line in enumerate(lines, 2):
        try:
            rows.append({"name": path.parent.name} | {name: kind(line[name]) for name, kind in COLUMNS.items()})
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}, line {number}: {error}. Correct the line, or measure it again.") from error
    if len({(row["demos"], row["seed"]) for row in rows}) < len(rows):
        raise DataError(f"{path}: has two rows of the same demos and seed. Keep one of them.")
    chosen = {row["demos"] for row in rows if row["chosen"]}
    if len(chosen) != 1 or any(row["demos"] in chosen and not row["chosen"] for row in rows):
        raise DataError(f"{path}: marks {sorted(chosen)} as chosen. Mark all rows of one number of demonstrations.")
    bounds = {(row["random_success"], row["expert_success"]) for row in rows}
    if len(bounds) > 1:
        raise DataError(f"{path}: has {len(bounds)} pairs of random_success and expert_success. Keep one of them.")
    try:
        scaled(0.0, *bounds.pop())
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return rows


def draw_budgets(rows: Sequence[Row]) -> "Figure":
    """A panel per environment: scaled success of behaviour cloning against the number of its demonstrations."""
    from matplotlib.figure import Figure

    order = list(ENVIRONMENTS)
    names = sorted({row["name"] for row in rows}, key=lambda name: (order.index(name) if name in order else 99, name))
    columns = min(len(names), 4 if len(names) % 4 == 0 or len(names) > 9 else 3)
    lines = -(-len(names) // columns)
    width, height = max(6.2, 0.5 + 2.35 * columns), 1.75 + 2.05 * lines  # inches
    figure = Figure(figsize=(width, height), layout=None, facecolor="white")
    across = {"left": 0.5 / width, "right": 1 - 0.15 / width, "wspace": 0.1}
    upwards = {"bottom": 0.78 / height, "top": 1 - 1.08 / height, "hspace": 0.42}
    panels = figure.subplots(lines, columns, sharey=True, squeeze=False, gridspec_kw=across | upwards).ravel()
    for name, axes in zip(names, panels, strict=False):
        _draw_panel(axes, name, [row for row in rows if row["name"] == name])
    panels[0].set_ylim(min(0.0, *(axes.dataLim.y0 for axes in panels[: len(names)])), 1)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    figure.text(0.09 / width, 1 - 0.3 / height, "How many demonstrations?", fontsize=13.5, fontweight="bold")
    figure.text(
        0.09 / width,
        1 - 0.58 / height,
        "tuned behaviour cloning on validation levels; 0 is random play, 1 is the expert",
        fontsize=10,
        color="#555555",
    )
    figure.text(
        0.09 / width,
        0.1 / height,
        f"Diamond: the chosen budget. Grey: {BAND[0]} to {BAND[1]}. Line: mean over seeds. Small dots: single seeds.",
        fontsize=8.8,
        color="#666666",
    )
    figure.text(0.5, 0.36 / height, "demonstrations", ha="center", color="#333333")
    return figure


def _draw_panel(axes: "Axes", name: str, rows: Sequence[Row]) -> None:
    """One environment in the mode that is better at its chosen budget."""
    mode, curve = budget_curve(rows)
    (chosen,) = {row["demos"] for row in rows if row["chosen"]}
    demos, means = list(curve), [float(np.mean(success)) for success in curve.values()]
    axes.axhspan(*BAND, color="#ececec", zorder=0)
    points = [(at, success) for at, seeds in curve.items() for success in seeds]
    small = {"color": "#5a5a5a", "markersize": 3, "alpha": 0.45, "markeredgewidth": 0}
    axes.plot(*zip(*points, strict=True), "o", zorder=2, clip_on=False, **small)
    axes.plot(demos, means, color="#0072b2", linewidth=1.8, zorder=3, clip_on=False)
    look = {"color": "#d55e00", "markeredgecolor": "white", "markeredgewidth": 1.0}
    at = means[demos.index(chosen)]
    axes.plot(chosen, at, marker="D", markersize=8, zorder=4, clip_on=False, **look)
    axes.set_title(name, fontsize=10.5, loc="left", pad=5, color="#222222", fontweight="bold")
    words = f"{chosen}: {at:.2f}, {mode}"
    axes.text(0.98, 0.04, words, transform=axes.transAxes, ha="right", fontsize=9, color="#b84f00")
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(demos) / 1.25, max(demos) * 1.25 if len(demos) > 1 else 2 * demos[0])
    ticks = demos[:: 1 + len(demos) // 7]  # as many as there is room for
    axes.set_xticks(ticks, map(str, ticks))
    axes.set_xticks([], minor=True)
    axes.set_yticks([0, *BAND, 1], ["0", *map(str, BAND), "1"])
    axes.tick_params(length=0, pad=5, labelsize=8.5)


def budget_curve(rows: Sequence[Row]) -> tuple[str, dict[int, list[float]]]:
    """The mode that is better at the chosen budget, and in it: demonstrations -> scaled success of each seed."""
    chosen = [row for row in rows if row["chosen"]]
    mode = max(MODES, key=lambda mode: float(np.mean([row[f"success_{mode}"] for row in chosen])))
    curve: dict[int, list[float]] = {}
    for row in sorted(rows, key=lambda row: (row["demos"], row["seed"])):
        success = scaled(row[f"success_{mode}"], row["random_success"], row["expert_success"])
        curve.setdefault(row["demos"], []).append(success)
    return mode, curve


def table(rows: Sequence[Row]) -> str:
    """The environments of the study in Markdown, as the README shows them: success in per cent."""
    head = ("environment", "stands for", "demonstrations", "random", "`bc`, tuned", "expert", "`bc`, scaled")
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 2)]
    for env in ENVIRONMENTS.values():
        chosen = [row for row in rows if row["name"] == env.name and row["chosen"]]
        if not (env.study and chosen):
            continue
        mode, curve = budget_curve(chosen)
        ((demos, success),) = curve.items()
        plain = 100 * float(np.mean([row[f"success_{mode}"] for row in chosen]))
        cells = (
            f"`{env.name}`",
            env.stands_for,
            str(demos),
            f"{100 * env.random_success:.1f}",
            f"{plain:.1f} {mode}",
            f"{100 * env.expert_success:.1f}",
            f"{float(np.mean(success)):.2f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="?", type=Path, default=RESULTS, help="directory that has <name>/budget.csv")
    directory: Path = parser.parse_args().results
    rows = read_budgets(directory)
    print(table(rows))
    draw = partial(draw_budgets, rows)
    for suffix in (".png", ".svg"):
        path = directory / f"budgets{suffix}"
        storage.save_bytes(path, render(draw, suffix), kind="picture", schema=1)
        print(path)


if __name__ == "__main__":
    main()
