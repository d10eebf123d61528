"""The report of one environment: finished runs in, a table, CSV files and one picture out. No stage knows of it.

    runs/door_key/report/   table.md       a row per arm, the difference that counts, what is unfinished
                            results.csv    a row per arm and seed: its summary
                            curves.csv     a row per arm, seed and point of a learning curve
                            success.png    success against environment steps; success.svg is the same picture

Rules of evidence: intervals need five seeds; an arm is compared with the better of `bc` and `bc_long` on the same seed
(the same demonstrations), each arm in its better mode; the steps that were spent before RL are on the x axis.

A *summary* is the dictionary that a run leaves in summary.json; success is a share of levels between 0 and 1.
"""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.envs import storage
from headstart.envs.errors import DataError, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["BASELINES", "Comparison", "Report", "comparison", "draw", "markdown", "study_rows", "write_report"]

SCHEMA = 1  # of the summaries, curves and configurations that are understood here
ORDER = ("scratch", "bc", "bc_long", "iwm", "reflect")  # of rows: baselines first, other arms last by name
HEADLINE = "reflect"  # named before the study
BASELINES = ("bc", "bc_long")
MODES = ("sampled", "greedy")
FEWEST_SEEDS = 5  # with fewer, an interval says more about luck than about the arm
# Runs that differ in any of these cannot share a table.
SAME = ("env_id", "demos", "horizon", "validation_levels", "test_levels")

Summary = dict[str, Any]
Row = dict[str, Any]
Interval = tuple[float, float] | None


@dataclass(frozen=True)
class Report:
    """Where the table and the picture are, and the table as text."""

    table: Path
    picture: Path
    text: str


@dataclass(frozen=True)
class Comparison:
    """An arm against the better of its baselines, seed by seed.

    mode: the better mode of each arm, by its mean over seeds. difference: of each seed, in `seeds`' order.
    interval: paired t, 95 %; None under five seeds.
    """

    arm: str
    baselines: tuple[str, ...]
    mode: dict[str, str]
    seeds: tuple[int, ...]
    difference: tuple[float, ...]
    mean: float
    interval: Interval

    def __str__(self) -> str:
        baselines = " and ".join(f"{name} ({self.mode[name]})" for name in self.baselines)
        seeds = _seeds(self.seeds)
        text = (
            f"{self.arm} ({self.mode[self.arm]}) minus the better of {baselines}, seed by seed: "
            f"{100 * self.mean:+.1f} points"
        )
        if self.interval is None:
            return f"{text} ({seeds}; an interval needs {FEWEST_SEEDS} seeds)"
        low, high = self.interval
        return f"{text}, 95 % paired t interval {100 * low:+.1f} to {100 * high:+.1f} ({seeds})"


# ---- statistics ----
def bootstrap_interval(values: Sequence[float], resamples: int = 10_000) -> Interval:
    """95 % percentile bootstrap interval of the mean; None under five values. The same values, the same interval."""
    if len(values) < FEWEST_SEEDS:
        return None
    rng = np.random.default_rng(0)
    means = rng.choice(np.sort(values), (resamples, len(values))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def paired_interval(differences: Sequence[float]) -> Interval:
    """95 % t interval of the mean of paired differences; None under five pairs."""
    n = len(differences)
    if n < FEWEST_SEEDS:
        return None
    from scipy.stats import t  # slow to import

    margin = float(t.ppf(0.975, n - 1)) * float(np.std(differences, ddof=1)) / math.sqrt(n)
    mean = float(np.mean(differences))
    return mean - margin, mean + margin


def better_mode(summaries: Sequence[Summary]) -> str:
    """The mode in which an arm is better on average over its seeds; sampled when they tie."""
    return max(MODES, key=lambda mode: float(np.mean([s[f"success_{mode}"] for s in summaries])))


def comparison(
    summaries: Iterable[Summary], arm: str = HEADLINE, baselines: tuple[str, ...] = BASELINES
) -> Comparison | None:
    """``arm`` against the better of the baselines on each seed that all of them have; None where there is none.

    Choosing the better baseline anew on each seed is the strictest reading: it can only favour the baselines.
    """
    arms = _by_arm(summaries)
    names = (arm, *baselines)
    if not all(name in arms for name in names):
        return None
    mode = {name: better_mode(arms[name]) for name in names}
    success = {name: {s["seed"]: s[f"success_{mode[name]}"] for s in arms[name]} for name in names}
    seeds = tuple(sorted(set.intersection(*(set(success[name]) for name in names))))
    if not seeds:
        return None
    difference = tuple(success[arm][seed] - max(success[name][seed] for name in baselines) for seed in seeds)
    return Comparison(arm, baselines, mode, seeds, difference, float(np.mean(difference)), paired_interval(difference))


def study_rows(summaries: Iterable[Summary]) -> list[Row]:
    """A row of plain numbers per arm, baselines first; None where an arm has no such number.

    ``_low`` and ``_high`` bound the mean over seeds (bootstrap, 95 %). ``dip``: the deepest fall of any seed's PPO
    curve below its warm start, counted after its actor has begun to move.
    """
    rows = []
    for arm, runs in _by_arm(summaries).items():
        tuned = [s for s in runs if s["rl_steps"]]
        episodes = {s["episodes"] for s in runs}
        if len(episodes) > 1:
            raise ValueError(f"{arm}: its seeds were tested in {sorted(episodes)} episodes")
        row: Row = {"arm": arm, "seeds": len(runs), "episodes": episodes.pop()}
        for name in ("success_sampled", "success_greedy"):
            row |= _estimate(name, [s[name] for s in runs])
        row["better_mode"] = better_mode(runs)
        row["updates"] = _whole_mean([s["updates"] for s in runs])
        row["expert_steps"] = _whole_mean([s["expert_steps"] for s in runs])
        row["env_steps_before_rl"] = _whole_mean([s["env_steps"] - s["rl_steps"] for s in runs])
        row["rl_seeds"] = len(tuned)
        row["rl_steps"] = _whole_mean([s["rl_steps"] for s in tuned]) if tuned else None
        for name in ("rl_success_sampled", "rl_success_greedy"):
            row |= _estimate(name, [s[name] for s in tuned])
        moved = [s for s in tuned if s["rl_minimum"] is not None]  # None: the actor never began to move
        row["dip"] = max((max(0.0, s["rl_start"] - s["rl_minimum"]) for s in moved), default=None)
        rows.append(row)
    return rows


def _by_arm(summaries: Iterable[Summary]) -> dict[str, list[Summary]]:
    """Summaries of each arm in order of seed; arms in the order of the table, unknown ones last."""
    arms: dict[str, dict[int, Summary]] = {}
    for summary in summaries:
        seeds = arms.setdefault(summary["arm"], {})
        if summary["seed"] in seeds:
            raise ValueError(f"two summaries of {summary['arm']}, seed {summary['seed']}")
        seeds[summary["seed"]] = summary
    return {arm: [arms[arm][seed] for seed in sorted(arms[arm])] for arm in sorted(arms, key=_place)}


def _place(arm: str) -> tuple[int, str]:
    return (ORDER.index(arm) if arm in ORDER else len(ORDER), arm)


def _estimate(name: str, values: Sequence[float]) -> Row:
    low, high = bootstrap_interval(values) or (None, None)
    return {name: float(np.mean(values)) if values else None, f"{name}_low": low, f"{name}_high": high}


def _whole_mean(values: Sequence[int]) -> int:
    return round(float(np.mean(values)))


# ---- the table ----
def markdown(rows: Sequence[Row]) -> str:
    """The rows of `study_rows` as a Markdown table; success in per cent, an arm's better mode in bold."""
    head = (
        "arm",
        "seeds",
        "episodes",
        "sampled, %",
        "greedy, %",
        "updates",
        "expert steps",
        "env steps before RL",
        "after PPO, %",
        "deepest dip",
    )
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for row in rows:
        modes = {mode: _percent(row, f"success_{mode}") for mode in MODES}
        modes[row["better_mode"]] = f"**{modes[row['better_mode']]}**"
        after = _percent(row, "rl_success_sampled")
        cells = (
            row["arm"],
            f"{row['seeds']}",
            f"{row['episodes']:,}",
            *modes.values(),
            f"{row['updates']:,}",
            f"{row['expert_steps']:,}",
            f"{row['env_steps_before_rl']:,}",
            after if row["rl_seeds"] in (0, row["seeds"]) else f"{after} (seeds: {row['rl_seeds']})",
            "" if row["dip"] is None else f"{100 * row['dip']:.1f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _percent(row: Row, name: str) -> str:
    if row[name] is None:
        return ""
    if row[f"{name}_low"] is None:
        return f"{100 * row[name]:.1f}"
    return f"{100 * row[name]:.1f} ({100 * row[f'{name}_low']:.1f} to {100 * row[f'{name}_high']:.1f})"


def _seeds(numbers: Sequence[int]) -> str:
    """0, 1, 2, 5 as 'seeds 0-2, 5'."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    ranges = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
    return f"seed{'s' if len(numbers) > 1 else ''} {ranges}"


# ---- what is on the disk ----
@dataclass(frozen=True)
class Runs:
    """The finished runs of one environment, all of one configuration.

    summaries: in the table's order. curves: arm, then seed, to the points of its learning curve.
    facts: the settings in `SAME` and the steps of RL. unfinished: as arm/seed.
    """

    summaries: list[Summary]
    curves: dict[str, dict[int, list[Row]]]
    facts: dict[str, Any]
    unfinished: list[str]


def read_runs(directory: Path) -> Runs:
    """Read what is finished in runs/<name>. Raises DataError for damaged files and for runs that do not compare."""
    if not directory.is_dir():
        raise UsageError(f"{directory}: there is no such directory. Run `headstart run {directory.name}` first.")
    summaries, curves, unfinished = [], {}, []
    facts: dict[str, Any] = {}
    source: dict[str, Path] = {}
    places = [p for p in directory.glob("*/seed*") if p.is_dir() and p.parent.name not in ("demos", "report")]
    for place in sorted(places, key=lambda p: (_place(p.parent.name), len(p.name), p.name)):
        if not storage.exists(place / "summary.json"):
            unfinished.append(f"{place.parent.name}/{place.name}")
            continue
        summary = storage.load_json(place / "summary.json", kind="summary", schema=SCHEMA)
        config = storage.load_json(place / "config.json", kind="configuration", schema=SCHEMA)
        ours = {name: config[name] for name in SAME}
        if summary["rl_steps"]:
            ours["rl_steps"] = summary["rl_steps"]
            points = storage.load_json(place / "curve.json", kind="curve", schema=SCHEMA)
            curves.setdefault(summary["arm"], {})[summary["seed"]] = points
        for name, value in ours.items():
            if facts.setdefault(name, value) != value:
                raise DataError(
                    f"{place}: has {name} {value}, but {source[name]} has {facts[name]}: they cannot share a table. "
                    "Move one of them away, or run it again with --fresh."
                )
            source.setdefault(name, place)
        summaries.append(summary)
    if not summaries:
        raise UsageError(
            f"{directory}: holds no finished run{_unfinished(unfinished)}. "
            f"Type `headstart run {directory.name}`; it goes on where it was stopped."
        )
    return Runs(summaries, curves, facts, unfinished)


def _unfinished(names: Sequence[str]) -> str:
    return f" (unfinished: {', '.join(names)})" if names else ""


def write_report(directory: Path) -> Report:
    """Read the finished runs in runs/<name> and write its report/; the same runs give the same bytes."""
    directory = Path(directory)
    runs = read_runs(directory)
    rows = study_rows(runs.summaries)
    places = Report(directory / "report" / "table.md", directory / "report" / "success.png", "")
    with storage.lock(places.table.parent):
        text = _text(runs, rows)
        storage.save_text(places.table, text, kind="report", schema=SCHEMA)
        storage.save_text(places.table.with_name("results.csv"), _csv(runs.summaries), kind="results", schema=SCHEMA)
        points = [
            {"arm": arm, "seed": seed, **point}
            for arm, seeds in runs.curves.items()
            for seed, curve in sorted(seeds.items())
            for point in curve
        ]
        storage.save_text(places.table.with_name("curves.csv"), _csv(points), kind="curves", schema=SCHEMA)
        for path, content in ((places.picture.with_suffix(s), _render(runs, s)) for s in (".png", ".svg")):
            storage.save_bytes(path, content, kind="picture", schema=SCHEMA)
    return Report(places.table, places.picture, text)


def _text(runs: Runs, rows: Sequence[Row]) -> str:
    facts = runs.facts
    seeds = sorted({s["seed"] for s in runs.summaries})
    parts = [
        f"# {runs.summaries[0]['env']}: {facts['env_id']}",
        f"{facts['demos']} demonstrations, episodes of at most {facts['horizon']} steps, "
        f"{_seeds(seeds)}. Success is the share of test levels that are solved; no stage has seen them. "
        "Bold is the better mode of an arm.",
        markdown(rows),
    ]
    if any(row["seeds"] >= FEWEST_SEEDS for row in rows):
        parts.append("In brackets: 95 % bootstrap interval of the mean over seeds.")
    else:
        parts.append(f"No intervals: they need {FEWEST_SEEDS} seeds.")
    if "rl_steps" in facts:
        parts.append(
            f"PPO: {facts['rl_steps']:,} environment steps; sampled policy. Deepest dip: percentage points below the "
            "warm start on validation levels, in the worst seed, once the actor moves."
        )
    ours = [row["arm"] for row in rows if row["arm"] not in ("scratch", *BASELINES)]
    found = [found for arm in ours if (found := comparison(runs.summaries, arm))]
    if found:
        parts.append("\n".join(f"- {difference}" for difference in found))
    if runs.unfinished:
        parts.append(f"Unfinished, left out: {', '.join(runs.unfinished)}.")
    parts.append("Every number: results.csv and curves.csv beside this table.")
    return "\n\n".join(parts) + "\n"


def _csv(rows: Sequence[Row]) -> str:
    """Rows as CSV; the columns of all rows, blank where a row has none."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


# ---- the picture ----
@dataclass(frozen=True)
class Look:
    """How an arm is drawn: colours of Okabe and Ito, and a dash and a marker that tell it apart in grey."""

    colour: str
    dash: str | tuple[int, tuple[float, ...]]
    marker: str
    width: float = 1.8


LOOKS = {
    "scratch": Look("#6e6e6e", (0, (1, 1.4)), "s"),
    "bc": Look("#0072b2", (0, (5, 2)), "o"),
    "bc_long": Look("#3a9bdc", (0, (5, 1.5, 1, 1.5)), "^"),
    "iwm": Look("#00815f", (0, (9, 2)), "v"),
    "reflect": Look("#d55e00", "solid", "D", 2.6),
}
OTHER_LOOKS = (
    Look("#a8447f", (0, (8, 1.5, 1, 1.5, 1, 1.5)), "P"),
    Look("#8a6d00", (0, (3, 1.5)), "X"),
    Look("#333333", (0, (4, 1.5, 1, 1.5, 1, 1.5, 1, 1.5)), "p"),
)
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

    figure = Figure(figsize=(8, 4.6), layout=None, facecolor="white")
    axes = figure.add_axes((0.07, 0.165, 0.67, 0.675))
    arms = _by_arm(runs.summaries)
    others = [arm for arm in arms if arm not in LOOKS]
    looks = LOOKS | {arm: OTHER_LOOKS[i % len(OTHER_LOOKS)] for i, arm in enumerate(others)}
    labels = [_draw_curve(axes, arm, looks[arm], seeds) for arm, seeds in runs.curves.items()]
    labels += [_draw_level(axes, arm, looks[arm], arms[arm]) for arm in arms if arm not in runs.curves]
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
    if HEADLINE in runs.curves:
        _mark_spent(axes, runs.curves[HEADLINE])
    _write_labels(axes, labels)
    title, subtitle, caption = _words(runs)
    figure.text(0.012, 0.945, title, fontsize=13.5, fontweight="bold")
    figure.text(0.012, 0.888, subtitle, fontsize=10, color="#555555")
    figure.text(0.012, 0.022, caption, fontsize=8.8, color="#666666")
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
    """The mean over seeds, and a band from the lowest to the highest; points that not all seeds have are left out."""
    curves = [{point["rl_steps"]: point for point in curve} for curve in seeds.values()]
    shared = sorted(set.intersection(*(set(curve) for curve in curves)))
    steps = np.array([[curve[at]["env_steps"] for at in shared] for curve in curves]).mean(axis=0)  # (points,)
    success = np.array([[curve[at]["success"] for at in shared] for curve in curves])  # (seeds, points)
    mean = success.mean(axis=0)
    strong = arm == HEADLINE
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


def _mark_spent(axes: "Axes", seeds: dict[int, list[Row]]) -> None:
    """A thin line from zero to the warm start, with the steps that were spent on it, where there is room for words."""
    steps = float(np.mean([curve[0]["env_steps"] for curve in seeds.values()]))
    success = float(np.mean([curve[0]["success"] for curve in seeds.values()]))
    if steps < 0.13 * axes.get_xlim()[1]:
        return
    look = LOOKS[HEADLINE]
    axes.plot([0, steps], [success, success], color=look.colour, linewidth=0.8, alpha=0.7, zorder=2)
    axes.annotate(
        f"{steps / 1000:,.0f}k steps,\nno reward",
        xy=(0, success),
        xytext=(5, 3),
        textcoords="offset points",
        fontsize=8.8,
        color=look.colour,
        linespacing=1.1,
    )


def _write_labels(axes: "Axes", labels: Sequence[Label]) -> None:
    """Write each label beside the end of its line, in the right margin, with a thin leader where it had to move."""
    right = axes.get_xlim()[1]
    heights = spread([label.y for label in labels], gap=0.062, low=0.0, high=1.0)
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
    arms = _by_arm(runs.summaries)
    counts = sorted({len(seeds) for seeds in (runs.curves or arms).values()})
    seeds = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    seeds += " seeds" if counts[-1] > 1 else " seed"
    drawn = f"{facts['demos']} demonstrations, {seeds}; success of the sampled policy on"
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


def _render(runs: Runs, suffix: str) -> bytes:
    """The picture as a file, without dates, names of programs or the user's matplotlibrc."""
    from matplotlib import style

    content = io.BytesIO()
    with style.context(["default", STYLE]):
        metadata = {"Software": None} if suffix == ".png" else {"Date": None, "Creator": None}
        draw(runs).savefig(content, format=suffix[1:], dpi=200, metadata=metadata)
    return content.getvalue()
