"""The report of one environment: finished runs in, tables, CSV files and pictures out. No stage knows of it.

    runs/door_key/report/   table.md        a row per arm, the difference that counts, steps to fixed levels of success,
                                            other levels, other instructions
                            results.csv     a row per arm and seed: its summary
                            evaluation.csv  a row per arm, seed, before or after RL, levels, instruction and mode
                            curves.csv      a row per arm, seed and point of a learning curve
                            success.png     success against environment steps; success.svg is the same picture
                            ood.png         success in and out of distribution, where the environment has variants

What the numbers are: evidence.py. How they are drawn: pictures.py.
"""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

from headstart.envs import storage
from headstart.experiments import pictures
from headstart.experiments.curves import FIXED, Point, median_steps, race
from headstart.experiments.evidence import (
    BASELINES,
    MEAN,
    SHOWN_MODES,
    TEST,
    TWINS,
    Row,
    Runs,
    Score,
    comparisons,
    gap,
    in_words,
    read_runs,
    scores,
    study_rows,
)
from headstart.experiments.intervals import FEWEST_SEEDS, Interval

__all__ = ["Report", "as_csv", "crossed", "in_brackets", "markdown", "table", "write_report"]

SCHEMA = 1  # of what is written here
EVALUATION_COLUMNS = ("arm", "seed", "after_rl", "levels", "instruction", "mode", "episodes", "success", "length")


@dataclass(frozen=True)
class Report:
    """Where the tables and the main picture are, and the tables as text."""

    table: Path
    picture: Path
    text: str


def write_report(directory: Path) -> Report:
    """Read the finished runs in runs/<name> and write its report/; the same runs give the same bytes."""
    directory = Path(directory)
    runs = read_runs(directory)
    rows = study_rows(runs.summaries, runs.scale)
    panels = {name: scores(runs.evaluation, [name]) for name in (TEST, *runs.facts["variants"])}
    places = Report(directory / "report" / "table.md", directory / "report" / "success.png", "")
    with storage.lock(places.table.parent):
        text = _text(runs, rows)
        storage.save_text(places.table, text, kind="report", schema=SCHEMA)
        storage.save_text(places.table.with_name("results.csv"), as_csv(runs.summaries), kind="results", schema=SCHEMA)
        evaluated = as_csv([{name: row[name] for name in EVALUATION_COLUMNS} for row in runs.evaluation])
        storage.save_text(places.table.with_name("evaluation.csv"), evaluated, kind="evaluations", schema=SCHEMA)
        points = [
            {"arm": arm, "seed": seed, **point}
            for arm, seeds in runs.curves.items()
            for seed, curve in sorted(seeds.items())
            for point in curve
        ]
        storage.save_text(places.table.with_name("curves.csv"), as_csv(points), kind="curves", schema=SCHEMA)
        drawn = {"success": partial(pictures.draw, runs)}
        if runs.facts["variants"]:
            drawn["ood"] = partial(pictures.draw_ood, runs, panels)
        for name, suffix in product(drawn, (".png", ".svg")):
            content = pictures.render(drawn[name], suffix)
            storage.save_bytes(places.table.with_name(name + suffix), content, kind="picture", schema=SCHEMA)
    return Report(places.table, places.picture, text)


def _text(runs: Runs, rows: Sequence[Row]) -> str:
    facts = runs.facts
    random, expert = runs.scale
    seeds = sorted({s["seed"] for s in runs.summaries})
    parts = [
        f"# {runs.summaries[0]['env']}: {facts['env_id']}",
        f"{facts['demos']} demonstrations, episodes of at most {facts['horizon']} steps, "
        f"{in_words(seeds)}. Success is the share of test levels that are solved; no stage has seen them. "
        "Sampled: temperature 1; cool: temperature 0.5. Bold is the better mode of an arm, sampled or greedy.",
        markdown(rows),
        f"Scaled: success in the better mode on a scale where random play ({100 * random:.1f} %) is 0 and the expert "
        f"({100 * expert:.1f} % of levels) is 1.",
    ]
    if any(row["seeds"] >= FEWEST_SEEDS for row in rows):
        parts.append("In brackets: 95 % t interval of the mean over seeds, within 0 and 100 %.")
    else:
        parts.append(f"No intervals: they need {FEWEST_SEEDS} seeds.")
    if "rl_steps" in facts:
        parts.append(
            f"PPO: {facts['rl_steps']:,} environment steps and the rest of a rollout; sampled policy. Deepest dip: "
            "percentage points below the warm start on validation levels, in the worst seed, once the actor moves."
        )
    parts += _comparisons(runs, "success")
    parts += _steps(runs) + _races(runs)
    if facts["variants"]:
        parts += _out_of_distribution(runs)
    if len(facts["instructions"]) > 1:
        parts += _instruction_use(runs)
    if runs.unfinished:
        parts.append(f"Unfinished, left out: {', '.join(runs.unfinished)}.")
    parts.append("Every number: results.csv, evaluation.csv and curves.csv beside this table.")
    return "\n\n".join(parts) + "\n"


def _comparisons(runs: Runs, measure: str) -> list[str]:
    """A list with a line for every difference that counts, and one for the gap to the reference; [] if none."""
    found = [*comparisons(runs.summaries, measure), gap(runs.summaries, measure)]
    lines = [f"- {line}" for line in found if line is not None]
    return ["\n".join(lines)] if lines else []


def _steps(runs: Runs) -> list[str]:
    """Steps to fixed levels of success, a row per arm with a curve; [] if there is none."""
    if not runs.curves:
        return []
    lines = [
        ("PPO from scratch" if arm == "scratch" else f"{arm} + PPO", *(_steps_to(seeds, level) for level in FIXED))
        for arm, seeds in runs.curves.items()
    ]
    return [
        "## How soon PPO gets there",
        "Steps with reward to the first point with so much success on validation levels, in brackets with those before "
        "RL, medians over seeds; and the seeds that come to it. -: at least half of them never do.",
        table(("policy", *(f"{level} %" for level in FIXED)), lines),
    ]


def _steps_to(seeds: Mapping[int, list[Point]], level: int) -> str:
    steps, there = median_steps(seeds, level / 100)
    counted, _ = median_steps(seeds, level / 100, "env_steps")
    found = "-" if math.isinf(steps) else f"{steps:,.0f} ({counted:,.0f})"
    return f"{found}, {there} of {len(seeds)}"


def _races(runs: Runs) -> list[str]:
    """A list with a line for every arm whose PPO raced bc's, or that of its twin; [] if none."""
    rivals = {arm: TWINS.get(arm, BASELINES[0]) for arm in runs.curves if arm not in ("scratch", *BASELINES)}
    lines = [f"- {found}" for arm, other in rivals.items() if (found := race(runs.curves, arm, other))]
    return ["\n".join(lines)] if lines else []


def _out_of_distribution(runs: Runs) -> list[str]:
    variants = runs.facts["variants"]
    found = scores(runs.evaluation, [*variants])
    columns = {name: [score for score in found if score.levels == name] for name in (*variants, MEAN)}
    return [
        "## Out of distribution",
        "The same policies on levels of other distributions than that of their demonstrations: "
        f"{', '.join(f'{episodes:,} of {name}' for name, episodes in variants.items())}. "
        "Mode: the better of sampled and greedy over all of these levels.",
        crossed({name: column for name, column in columns.items() if column}, with_mode=True),
        *_comparisons(runs, "ood"),
    ]


def _instruction_use(runs: Runs) -> list[str]:
    columns = {
        name: scores(runs.evaluation, [TEST], instruction=name, modes=("sampled",))
        for name in runs.facts["instructions"]
    }
    return [
        "## Is the instruction used?",
        "Sampled success on the test levels with the instruction as it is given, with its words shuffled, without "
        "words, and swapped for that of another level. A policy that uses its instruction loses by the last two; by "
        "the first only if it uses the order of the words.",
        crossed(columns),
    ]


def as_csv(rows: Sequence[Row]) -> str:
    """Rows as CSV; the columns of all rows, blank where a row has none."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


# ---- the table ----
def markdown(rows: Sequence[Row]) -> str:
    """The rows of `study_rows` as a Markdown table; success in per cent, an arm's better mode in bold."""
    head = (
        "arm",
        "seeds",
        "episodes",
        *(f"{mode}, %" for mode in SHOWN_MODES),
        "scaled",
        "updates",
        "expert steps",
        "env steps before RL",
        "after PPO, %",
        "deepest dip",
    )
    lines = []
    for row in rows:
        modes = {mode: _percent(row, f"success_{mode}") for mode in SHOWN_MODES}
        modes[row["better_mode"]] = f"**{modes[row['better_mode']]}**"
        after = _percent(row, "rl_success_sampled")
        cells = (
            row["arm"],
            f"{row['seeds']}",
            f"{row['episodes']:,}",
            *modes.values(),
            in_brackets(row["scaled"], _bounds(row, "scaled"), "{:.2f}"),
            f"{row['updates']:,}",
            f"{row['expert_steps']:,}",
            f"{row['env_steps_before_rl']:,}",
            after if row["rl_seeds"] in (0, row["seeds"]) else f"{after} (seeds: {row['rl_seeds']})",
            "" if row["dip"] is None else f"{100 * row['dip']:.1f}",
        )
        lines.append(cells)
    return table(head, lines)


def crossed(columns: Mapping[str, Sequence[Score]], *, with_mode: bool = False) -> str:
    """A Markdown table with a row per policy and a column per kind of levels or instruction; success in per cent."""
    cells = {(score.policy, name): score for name, column in columns.items() for score in column}
    policies = {policy: score for (policy, _), score in cells.items()}
    head = ("policy", "seeds", *(("mode",) if with_mode else ()), *(f"{name}, %" for name in columns))
    lines = []
    for policy, any_score in policies.items():
        shown = [cells[policy, name] for name in columns]
        numbers = [in_brackets(score.mean, score.interval, "{:.1f}", 100) for score in shown]
        lines.append((policy, f"{len(any_score.seeds)}", *((any_score.mode,) if with_mode else ()), *numbers))
    return table(head, lines)


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Markdown; all but the first column are numbers."""
    rule = "|---" + "|---:" * (len(head) - 1) + "|"
    first, *others = ("| " + " | ".join(cells) + " |" for cells in (head, *lines))
    return "\n".join([first, rule, *others])


def _percent(row: Row, name: str) -> str:
    if row[name] is None:
        return ""
    return in_brackets(row[name], _bounds(row, name), "{:.1f}", 100)


def _bounds(row: Row, name: str) -> Interval:
    return None if row[f"{name}_low"] is None else (row[f"{name}_low"], row[f"{name}_high"])


def in_brackets(value: float, interval: Interval, form: str, unit: int = 1) -> str:
    """The value, and its interval in brackets if it has one."""
    text, *ends = (form.format(unit * number) for number in (value, *(interval or ())))
    return f"{text} ({' to '.join(ends)})" if ends else text
