"""The pictures of a report: success against environment steps, and success on other levels than those of training.
And that of the study: what an arm gains in each environment.

They must read in black and white. An arm that LOOKS names has a dash and a marker of its own; of the others, up to 28
have a pair of them that no other arm has. And the name of an arm stands beside its line.
"""

import io
import math
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING

import numpy as np

from headstart.experiments.evidence import TEST, Comparison, Row, Runs, Score, Summary, across
from headstart.experiments.intervals import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["LOOKS", "OTHER_LOOKS", "Look", "draw", "draw_ood", "draw_study", "render", "spread"]


@dataclass(frozen=True)
class Look:
    """How an arm is drawn: colours of Okabe and Ito, and a dash and a marker that tell it apart in grey."""

    colour: str
    dash: str | tuple[int, tuple[float, ...]]
    marker: str | tuple[int, int, int]
    strong: bool = False
    """Whether it is the arm that the picture is about."""

    @property
    def width(self) -> float:
        return 2.6 if self.strong else 1.8


LOOKS = {
    "scratch": Look("#6e6e6e", (0, (1, 1.4)), "s"),
    "bc": Look("#0072b2", (0, (5, 2)), "o"),
    "bc_long": Look("#3a9bdc", (0, (5, 1.5, 1, 1.5)), "^"),
    "iwm": Look("#00815f", (0, (9, 2)), "v"),
    "inverse": Look("#5c9e1f", (0, (7, 2, 1, 2)), "<"),
    "preference": Look("#c4609a", (0, (2, 1)), ">"),
    "star": Look("#c79100", (0, (4, 2, 4, 2, 1, 2)), "p"),
    "noop": Look("#9a9a9a", (0, (1, 3)), "h"),
    "random_judge": Look("#7a5230", (0, (2, 3)), "8"),
    "self_label": Look("#5b5ea6", (0, (6, 1, 1, 1)), "d"),
    "iwm_reflect": Look("#9e3a00", (0, (10, 1)), "H"),
    "dagger": Look("#111111", (0, (12, 3, 1, 3)), "X"),
    "reflect": Look("#d55e00", "solid", "D", strong=True),
    "reflect_exhaustive": Look("#8f3d6b", (0, (3, 1)), "P"),
    "reflect_plain": Look("#b5674d", (0, (1.5, 1.5)), (4, 1, 0)),
    "bc_plain": Look("#5b84ad", (0, (1.5, 2.5)), (4, 1, 45)),
}
_DASHES = (
    (8, 1.5, 1, 1.5, 1, 1.5),
    (3, 1.5),
    (1, 1, 1, 3),
    (4, 1, 1, 1, 1, 1, 1, 1),
    (6, 3, 2, 3),
    (2, 1, 2, 3),
    (14, 2, 4, 2),
)
_MARKERS = {"x": "#a8447f", (8, 1, 0): "#5e7d2e", r"$\clubsuit$": "#2b7a8c", r"$\spadesuit$": "#7d5ba6"}
# seven dashes and four markers come together in 28 ways before a pair comes again
OTHER_LOOKS = tuple(
    Look(colour, (0, dash), marker)
    for dash, (marker, colour) in islice(zip(cycle(_DASHES), cycle(_MARKERS.items())), len(_DASHES) * len(_MARKERS))
)
LABEL = 0.062  # height of a label's line, as a share of the axes where few arms leave them at their usual height
STYLE = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8c8c8c",
    "axes.linewidth": 0.8,
    "axes.labelcolor": "#333333",
    "text.color": "#222222",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "svg.hashsalt": "headstart",  # otherwise its ids differ from run to run
}


def draw(runs: Runs) -> "Figure":
    """Success against environment steps: a curve per arm with PPO, a thin level for each arm without."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, PercentFormatter

    arms, looks = runs.arms, _looks(runs)
    stretch = max(1.0, LABEL * (len(arms) + 2))  # so that all labels have room, those of the bounds too
    scale = 1 / (0.325 + 0.675 * stretch)  # of what is not stretched
    figure = Figure(figsize=(8, 4.6 / scale), layout=None, facecolor="white")
    axes = figure.add_axes((0.07, 0.165 * scale, 0.67, 0.675 * stretch * scale))
    labels = [_draw_curve(axes, arm, looks[arm], seeds) for arm, seeds in runs.curves.items()]
    labels += [_draw_level(axes, arm, looks[arm], arms[arm]) for arm in arms if arm not in runs.curves]
    labels += [_draw_bound(axes, *bound) for bound in zip(("random play", "expert"), runs.scale, strict=True)]
    steps = [point["env_steps"] for seeds in runs.curves.values() for curve in seeds.values() for point in curve]
    steps += [s["env_steps"] for s in runs.summaries]
    axes.set_xlim(0, max(*steps, 1) * 1.005)
    axes.set_ylim(0, 1)
    axes.set_xlabel("environment steps, those before RL included")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1000:,.0f}k" if x else "0"))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol="%"))
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=5)
    for arm, seeds in runs.curves.items():
        if looks[arm].strong:
            _mark_spent(axes, looks[arm], seeds)
    _write_labels(axes, labels, LABEL / stretch)
    title, subtitle, caption = _words(runs)
    figure.text(0.012, 1 - 0.055 * scale, title, fontsize=13.5, fontweight="bold")
    figure.text(0.012, 1 - 0.112 * scale, subtitle, fontsize=10, color="#555555")
    figure.text(0.012, 0.022 * scale, caption, fontsize=8.8, color="#666666")
    return figure


@dataclass(frozen=True)
class Label:
    """Words to write at the end of a line, in axes' data coordinates."""

    text: str
    x: float
    y: float
    colour: str
    bold: bool


def _draw_curve(axes: "Axes", arm: str, look: Look, seeds: dict[int, list[Row]]) -> Label:
    """The mean over seeds, and a band from the lowest to the highest, over the steps of RL that all seeds have.

    Seeds whose points lie elsewhere, as GRPO's do, are interpolated between them.
    """
    columns = ("rl_steps", "env_steps", "success")
    curves = [np.array([[point[name] for point in curve] for name in columns]) for curve in seeds.values()]
    everywhere = np.unique(np.concatenate([at for at, _, _ in curves]))
    shared = everywhere[everywhere <= min(at[-1] for at, _, _ in curves)]
    steps = np.mean([np.interp(shared, at, taken) for at, taken, _ in curves], axis=0)  # (points,)
    success = np.array([np.interp(shared, at, success) for at, _, success in curves])  # (seeds, points)
    mean = success.mean(axis=0)
    strong = look.strong
    if len(curves) > 1:
        axes.fill_between(
            steps, success.min(axis=0), success.max(axis=0), color=look.colour, alpha=0.2 if strong else 0.12, lw=0
        )
    order = 4 if strong else 3
    axes.plot(steps, mean, color=look.colour, linestyle=look.dash, linewidth=look.width, zorder=order)
    axes.plot(
        steps[0],
        mean[0],
        marker=look.marker,
        markersize=9,
        color=look.colour,
        markeredgecolor="white",
        markeredgewidth=1.2,
        clip_on=False,
        zorder=order + 2,
    )
    name = "PPO from scratch" if arm == "scratch" else f"{arm} + PPO"
    return Label(f"{name}  {mean[-1]:.0%}", steps[-1], mean[-1], look.colour, strong)


def _draw_level(axes: "Axes", arm: str, look: Look, summaries: Sequence[Summary]) -> Label:
    """The success of an arm that stops before RL, from the steps that it has cost on."""
    steps = float(np.mean([s["env_steps"] for s in summaries]))
    success = float(np.mean([s["success_sampled"] for s in summaries]))
    axes.axhline(success, color=look.colour, linestyle=look.dash, linewidth=0.9, alpha=0.8, zorder=2)
    axes.plot(
        steps,
        success,
        marker=look.marker,
        markersize=7,
        color="white",
        markeredgecolor=look.colour,
        markeredgewidth=1.4,
        clip_on=False,
        zorder=5,
    )
    return Label(f"{arm}, no RL  {success:.0%}", math.inf, success, look.colour, False)


def _draw_bound(axes: "Axes", name: str, success: float) -> Label:
    """A thin line at the success of random play or of the expert, which bound what can be learned."""
    axes.axhline(success, color="#777777", linewidth=0.8, zorder=1.5)
    return Label(f"{name}  {success:.0%}", math.inf, success, "#555555", False)


def _mark_spent(axes: "Axes", look: Look, seeds: dict[int, list[Row]]) -> None:
    """A thin line from zero to the warm start, with the steps that were spent on it, where there is room for words.

    They are above or below the line, at its start, its end, behind that or midway, wherever they hide least.
    """
    steps = float(np.mean([curve[0]["env_steps"] for curve in seeds.values()]))
    success = float(np.mean([curve[0]["success"] for curve in seeds.values()]))
    if steps < 0.13 * axes.get_xlim()[1]:
        return
    width, height, gap = 0.14 * axes.get_xlim()[1], 0.075, 0.012  # of the words, in the units of the axes
    lows = [low for low in (success + gap, success - gap - height) if 0 <= low <= 1 - height]
    lefts = [gap * width, steps - 1.2 * width, steps + 0.25 * width, 0.5 * (steps - width)]
    places = [(left, low) for low in lows for left in lefts if left + width <= axes.get_xlim()[1]]
    left, low = min(places, key=lambda place: _hidden(axes, *place, width, height))
    axes.plot([0, steps], [success, success], color=look.colour, linewidth=0.8, alpha=0.7, zorder=2)
    axes.text(
        left,
        low,
        f"{steps / 1000:,.0f}k steps,\nno reward",
        fontsize=8.8,
        color=look.colour,
        linespacing=1.1,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
    )


def _hidden(axes: "Axes", left: float, low: float, width: float, height: float) -> int:
    """How much of lines and markers, which are wide, a box would hide, given its lower left corner."""
    hidden, across = 0, np.linspace(left, left + width, 50)
    for line in axes.lines:
        shown = line.get_transform().transform(line.get_xydata())  # a line across the axes is in units of its own
        x, y = axes.transData.inverted().transform(shown).T
        drawn = (across >= x[0]) & (across <= x[-1]) & (np.abs(np.interp(across, x, y) - low - height / 2) < height / 2)
        marked = (np.abs(x - left - width / 2) < 0.6 * width) & (np.abs(y - low - height / 2) < 0.8 * height)
        hidden += int(drawn.sum() + 10 * marked.sum())
    return hidden


def _write_labels(axes: "Axes", labels: Sequence[Label], gap: float) -> None:
    """Write each label beside the end of its line, in the right margin, with a thin leader where it had to move.

    gap: between the middles of two, as a share of the axes' height.
    """
    right = axes.get_xlim()[1]
    heights = spread([label.y for label in labels], gap=gap, low=0.0, high=1.0)
    for label, height in zip(labels, heights, strict=True):
        axes.annotate(
            label.text,
            xy=(min(label.x, right), label.y),
            xytext=(1.025, height),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            color=label.colour,
            fontsize=10.3,
            fontweight="bold" if label.bold else "normal",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "relpos": (0, 0.5),
                "color": "#b0b0b0",
                "linewidth": 0.8,
                "shrinkA": 1,
                "shrinkB": 2,
            },
        )


def spread(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move heights as little as needed to lie ``gap`` apart between ``low`` and ``high``, in the order they had."""
    order = np.argsort(heights, kind="stable")
    gap = min(gap, (high - low) / max(1, len(heights) - 1))
    offsets = gap * np.arange(len(heights))
    wanted = np.asarray(heights, dtype=float)[order] - offsets
    # What is left is to be made non-decreasing: the least-squares answer averages neighbours that are out of order.
    blocks: list[list[float]] = []
    for value in wanted:
        blocks.append([value])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    level = np.array([np.mean(block) for block in blocks for _ in block])
    level = np.clip(level, low, high - (offsets[-1] if len(offsets) else 0.0)) + offsets
    moved = np.empty(len(heights))
    moved[order] = level
    return moved.tolist()


def _words(runs: Runs) -> tuple[str, str, str]:
    """Title, subtitle and caption."""
    facts = runs.facts
    arms = runs.arms
    counts = sorted({len(seeds) for seeds in (runs.curves or arms).values()})
    drawn = f"{facts['demos']} demonstrations, {_count(counts)}; success of the sampled policy on"
    if not runs.curves:
        title, subtitle = f"{facts['env_id']}: warm starts", f"{drawn} {facts['test_levels']:,} unseen levels"
        return title, subtitle, "No arm has had RL. Marker: the environment steps that a warm start has cost."
    caption = "Filled marker: before any reward."
    if counts[-1] > 1:
        caption += " Band: lowest to highest seed."
    if len(arms) > len(runs.curves):
        caption += f" Thin line, open marker: no RL; success on {facts['test_levels']:,} test levels."
    title = f"{facts['env_id']}: PPO from a warm start"
    subtitle = f"{drawn} {facts['validation_levels']:,} unseen levels at every point"
    return title, subtitle, caption


def _count(seeds: Sequence[int]) -> str:
    """How many seeds there are, where arms have different numbers of them."""
    fewest, most = min(seeds), max(seeds)
    return f"{fewest} to {most} seeds" if fewest < most else f"{most} seed{'s' if most > 1 else ''}"


def _looks(runs: Runs) -> dict[str, Look]:
    """A look for every arm, known or not."""
    others = [arm for arm in runs.arms if arm not in LOOKS]
    return LOOKS | {arm: OTHER_LOOKS[i % len(OTHER_LOOKS)] for i, arm in enumerate(others)}


# ---- out of distribution ----
def draw_ood(runs: Runs, panels: Mapping[str, Sequence[Score]]) -> "Figure":
    """A panel per kind of levels, the training distribution first; a row per policy, its dot with its interval.

    In the other panels a grey ring shows where the policy was in the first: the line between them is what it loses.
    """
    from matplotlib.figure import Figure

    test, *others = panels.values()
    names = [score.policy for score in test]
    height = 1.88 + 0.3 * len(names)  # inches
    figure = Figure(figsize=(8, height), layout=None, facecolor="white")
    left = 0.03 + 0.0115 * max(map(len, names))
    grid = {"left": left, "right": 0.94, "bottom": 0.68 / height, "top": 1 - 1.2 / height, "wspace": 0.3}
    row_of_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False, gridspec_kw=grid)[0]
    heights = _row_heights(test)
    looks = _looks(runs)
    before = {score.policy: score.mean for score in test}
    for axes, (levels, panel) in zip(row_of_axes, panels.items(), strict=True):
        for score in panel:
            at = before[score.policy] if panel is not test else None
            _draw_score(axes, score, looks[score.arm], heights[score.policy], at)
        axes.set_title(
            textwrap.fill(_short(levels), 72 // len(panels)), fontsize=9.5, loc="left", pad=6, color="#222222"
        )
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.5, 1])
        axes.set_xticklabels(["0", "50%", "100%"])
        axes.grid(axis="x", color="#e4e4e4", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines["left"].set_visible(False)
        axes.tick_params(length=0, pad=5, labelsize=9)
        axes.tick_params(axis="y", pad=10)
    row_of_axes[0].set_yticks([heights[name] for name in names], names, fontsize=10)
    row_of_axes[0].set_ylim(min(heights.values()) - 0.6, max(heights.values()) + 0.6)
    for label, score in zip(row_of_axes[0].get_yticklabels(), test, strict=True):
        label.set_color(looks[score.arm].colour)
        label.set_fontweight("bold" if looks[score.arm].strong else "normal")
    most = max(len(score.seeds) for score in test)
    drawn = f"{runs.facts['demos']} demonstrations, {_count([len(score.seeds) for score in test])}; success of each"
    figure.text(
        0.012, 1 - 0.3 / height, f"{runs.facts['env_id']}: out of distribution", fontsize=13.5, fontweight="bold"
    )
    figure.text(0.012, 1 - 0.57 / height, f"{drawn} policy in its better mode", fontsize=10, color="#555555")
    caption = "Dot: mean over seeds. " if most > 1 else ""
    caption += "Line: 95 % interval. " if all(score.interval for score in test) else ""
    caption += "Small dots: single seeds. " if most > 1 else ""
    caption += "Grey ring: in distribution." if others else ""
    figure.text(0.012, 0.13 / height, caption, fontsize=8.8, color="#666666")
    return figure


def _row_heights(scores: Sequence[Score]) -> dict[str, float]:
    """Where each policy is drawn, from the top down, with a gap between those before and those after RL."""
    return {score.policy: -i - (0.4 if score.after_rl else 0.0) for i, score in enumerate(scores)}


def _draw_score(axes: "Axes", score: Score, look: Look, height: float, before: float | None) -> None:
    """A policy's dot; ``before`` is its success on the training distribution, if it is to be shown too."""
    if before is not None:
        axes.plot([before, score.mean], [height, height], color="#b0b0b0", linewidth=1.0, zorder=1.5, clip_on=False)
        ring = {"color": "white", "markeredgecolor": "#8c8c8c", "markeredgewidth": 1.2}
        axes.plot(before, height, marker="o", markersize=6, zorder=2, clip_on=False, **ring)
    if len(score.success) > 1:
        seeds = [height] * len(score.success)
        axes.plot(
            score.success, seeds, "o", color=look.colour, markersize=3, alpha=0.35, mew=0, zorder=2.5, clip_on=False
        )
    if score.interval is not None:
        axes.plot(score.interval, [height, height], color=look.colour, linewidth=2.0, zorder=3, clip_on=False)
    edge = {"markeredgecolor": "white", "markeredgewidth": 1.0}
    axes.plot(
        score.mean, height, marker=look.marker, markersize=7.5, color=look.colour, zorder=4, clip_on=False, **edge
    )
    axes.annotate(
        f"{score.mean:.0%}",
        xy=(1.03, height),
        xycoords=axes.get_yaxis_transform(),
        va="center_baseline",
        fontsize=8.8,
        color=look.colour,
        fontweight="bold" if look.strong else "normal",
        annotation_clip=False,
    )


def _short(levels: str) -> str:
    """An id without its library and version."""
    return "in distribution" if levels == TEST else "-".join(levels.split("-")[1:-1])


# ---- the study ----
def draw_study(panels: Mapping[str, Mapping[str, Comparison]], claimed: Collection[str]) -> "Figure":
    """A panel per kind of levels, a row per environment: what an arm gains, with its interval and every seed.

    panels: title, then environment, to the same comparison. claimed: the environments that the mean below is of.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    height = 2.05 + 0.36 * (len(names) + 1)  # inches
    figure = Figure(figsize=(9, height), layout=None, facecolor="white")
    left = 0.03 + 0.0108 * max(map(len, (*names, "mean")))
    grid = {"left": left, "right": 0.93, "bottom": 0.78 / height, "top": 1 - 1.0 / height, "wspace": 0.28}
    row_of_axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False, gridspec_kw=grid)[0]
    heights = {name: -float(row) for row, name in enumerate(names)}
    bottom = -len(names) - 0.35  # of the mean
    for axes, (title, panel) in zip(row_of_axes, panels.items(), strict=True):
        axes.axvline(0, color="#444444", linewidth=1.0, zorder=1)
        for name, found in panel.items():
            _draw_gain(axes, heights[name], found.mean, found.interval, found.difference)
        over = across({name: found for name, found in panel.items() if name in claimed})
        if over is not None:
            axes.axhline(bottom + 0.68, color="#c8c8c8", linewidth=0.8)
            _draw_gain(axes, bottom, over.mean.value, over.mean.interval, (), strong=True)
        axes.set_title(title, fontsize=10.5, loc="left", pad=6, color="#222222", fontweight="bold")
        axes.set_xlabel("points of success", fontsize=9.5)
        axes.grid(axis="x", color="#e4e4e4", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines["left"].set_visible(False)
        axes.tick_params(length=0, pad=5, labelsize=9)
        axes.tick_params(axis="y", pad=8)
    row_of_axes[0].set_yticks([*heights.values(), bottom], [*names, "mean"], fontsize=10)
    row_of_axes[0].get_yticklabels()[-1].set_fontweight("bold")
    row_of_axes[0].set_ylim(bottom - 0.6, 0.6)
    any_found = next(found for panel in panels.values() for found in panel.values())
    than = " and ".join(any_found.baselines)
    title = f"What {any_found.arm} gains over {'the better of ' if len(any_found.baselines) > 1 else ''}{than}"
    seeds = _count([len(found.seeds) for panel in panels.values() for found in panel.values()])
    subtitle = f"seed by seed, on the same demonstrations, before any reward; {seeds}"
    caption = (
        "Diamond: mean over seeds, filled where its 95 % interval (line) excludes zero. Small dots: single seeds. "
        "Mean: over the study's environments."
    )
    figure.text(0.012, 1 - 0.3 / height, title, fontsize=13.5, fontweight="bold")
    figure.text(0.012, 1 - 0.57 / height, subtitle, fontsize=10, color="#555555")
    figure.text(0.012, 0.1 / height, caption, fontsize=8.8, color="#666666")
    return figure


def _draw_gain(
    axes: "Axes", height: float, mean: float, interval: Interval, seeds: Sequence[float], *, strong: bool = False
) -> None:
    """A row: the seeds, the interval, the mean, and the mean in points at the right. All are shares of levels."""
    colour = "#222222" if strong else LOOKS["reflect"].colour
    above = height + 0.24  # a little above the line, so that they hide nothing
    axes.plot([100 * seed for seed in seeds], [above] * len(seeds), "o", color="#5a5a5a", markersize=3, mew=0, zorder=2)
    if interval is not None:
        ends = [100 * end for end in interval]
        axes.plot(ends, [height, height], color=colour, linewidth=2.6 if strong else 2.0, zorder=3)
        axes.plot(ends, [height, height], "|", color=colour, markersize=7, markeredgewidth=1.4, zorder=3)
    sure = interval is not None and not interval[0] <= 0 <= interval[1]
    look = {"color": colour if sure else "white", "markeredgecolor": colour, "markeredgewidth": 1.5}
    axes.plot(100 * mean, height, marker="D", markersize=8.5 if strong else 7, zorder=4, **look)
    axes.annotate(
        f"{100 * mean:+.1f}",
        xy=(1.02, height),
        xycoords=axes.get_yaxis_transform(),
        va="center_baseline",
        fontsize=9.2,
        color=colour,
        fontweight="bold" if strong or sure else "normal",
        annotation_clip=False,
    )


# ---- files ----
def render(draw: Callable[[], "Figure"], suffix: str) -> bytes:
    """What ``draw`` returns as .png or .svg, without dates, names of programs or the user's matplotlibrc."""
    from matplotlib import style

    content = io.BytesIO()
    with style.context(["default", STYLE]):
        metadata = {"Software": None} if suffix == ".png" else {"Date": None, "Creator": None}
        # tight: labels in the margin are as long as the names of arms
        draw().savefig(content, format=suffix[1:], dpi=200, metadata=metadata, bbox_inches="tight", pad_inches=0.15)
    return content.getvalue()
