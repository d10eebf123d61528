"""What finished runs say: they are read and checked here, and their numbers become means, intervals and comparisons.

Rules of evidence: intervals need five seeds; an arm is compared with the better of `bc` and `bc_long` on the same seed
(the same demonstrations), each arm in its better mode, sampled or greedy. Cool, temperature 0.5, is shown and never
chosen.

A *summary* is the dictionary that a run leaves in summary.json; an *evaluation* is the rows of evaluation.json and
evaluation_after_rl.json. Success is a share of levels between 0 and 1.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headstart.envs import storage
from headstart.envs.errors import DataError, UsageError

__all__ = [
    "BASELINES",
    "FEWEST_SEEDS",
    "INSTRUCTIONS",
    "MEAN",
    "SHOWN_MODES",
    "TEST",
    "Comparison",
    "Interval",
    "Row",
    "Runs",
    "Score",
    "Summary",
    "better_mode",
    "bootstrap_interval",
    "comparison",
    "in_words",
    "paired_interval",
    "read_runs",
    "scaled",
    "scores",
    "study_rows",
]

SCHEMA = 1  # of the summaries, curves and configurations that are understood here
EVALUATION_SCHEMA = 2  # 1 had neither other levels nor other instructions
ORDER = ("scratch", "bc", "bc_long", "iwm", "reflect")  # of rows: baselines first, other arms last by name
HEADLINE = "reflect"  # named before the study
BASELINES = ("bc", "bc_long")
MODES = ("sampled", "greedy")  # an arm is compared in the better of these
SHOWN_MODES = ("sampled", "cool", "greedy")
INSTRUCTIONS = ("given", "shuffled", "emptied", "swapped")
TEST, MEAN = "test", "mean"  # levels of the training distribution, and all the other levels together
FEWEST_SEEDS = 5  # with fewer, an interval says more about luck than about the arm
# Runs that differ in any of these cannot share a table.
SAME = ("env_id", "demos", "horizon", "validation_levels", "test_levels", "ood", "random_success", "expert_success")

Summary = dict[str, Any]
Row = dict[str, Any]
Interval = tuple[float, float] | None


# ---- what is on the disk ----
@dataclass(frozen=True)
class Runs:
    """The finished runs of one environment, all of one configuration.

    summaries: in the table's order. evaluation: a row per arm, seed, after_rl (0 or 1), levels, instruction and mode.
    curves: arm, then seed, to the points of its learning curve. unfinished: as arm/seed.
    facts: the settings in `SAME`, the variants with their episodes, the instructions, the steps of RL.
    """

    summaries: list[Summary]
    evaluation: list[Row]
    curves: dict[str, dict[int, list[Row]]]
    facts: dict[str, Any]
    unfinished: list[str]

    @property
    def arms(self) -> dict[str, list[Summary]]:
        """Summaries of each arm in order of seed; arms in the table's order."""
        return _by_arm(self.summaries)

    @property
    def scale(self) -> tuple[float, float]:
        """Success of random play and of the expert."""
        return self.facts["random_success"], self.facts["expert_success"]


def read_runs(directory: Path) -> Runs:
    """Read what is finished in runs/<name>. Raises DataError for damaged files and for runs that do not compare."""
    if not directory.is_dir():
        raise UsageError(f"{directory}: there is no such directory. Run `headstart run {directory.name}` first.")
    summaries, evaluation, curves, unfinished = [], [], {}, []
    facts: dict[str, Any] = {}
    source: dict[str, Path] = {}
    places = [p for p in directory.glob("*/seed*") if p.is_dir() and p.parent.name not in ("demos", "report")]
    for place in sorted(places, key=lambda p: (_place(p.parent.name), len(p.name), p.name)):
        if not storage.exists(place / "summary.json"):
            unfinished.append(f"{place.parent.name}/{place.name}")
            continue
        summary = storage.load_json(place / "summary.json", kind="summary", schema=SCHEMA)
        ran = _evaluation(place, summary)
        config = storage.load_json(place / "config.json", kind="configuration", schema=SCHEMA)
        ours = {name: config[name] for name in SAME}
        evaluation += ran
        ours["variants"] = {row["levels"]: row["episodes"] for row in ran if row["levels"] != TEST}
        ours["instructions"] = [name for name in INSTRUCTIONS if any(row["instruction"] == name for row in ran)]
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
    return Runs(summaries, evaluation, curves, facts, unfinished)


def _evaluation(place: Path, summary: Summary) -> list[Row]:
    """What one run was evaluated on, before and, if it has had RL, after it."""
    files = ("evaluation.json", *(("evaluation_after_rl.json",) if summary["rl_steps"] else ()))
    return [
        {"arm": summary["arm"], "seed": summary["seed"], "after_rl": after_rl, **row}
        for after_rl, name in enumerate(files)
        for row in storage.load_json(place / name, kind="evaluation", schema=EVALUATION_SCHEMA)["rows"]
    ]


def _unfinished(names: Sequence[str]) -> str:
    return f" (unfinished: {', '.join(names)})" if names else ""


# ---- what is made of it ----
@dataclass(frozen=True)
class Comparison:
    """An arm against the better of its baselines, seed by seed.

    measure: "success" on test levels, or "ood", the mean over the out-of-distribution variants.
    mode: the better mode of each arm, by its mean over seeds. difference: of each seed, in `seeds`' order.
    interval: paired t, 95 %; None under five seeds.
    """

    measure: str
    arm: str
    baselines: tuple[str, ...]
    mode: dict[str, str]
    seeds: tuple[int, ...]
    difference: tuple[float, ...]
    mean: float
    interval: Interval

    def __str__(self) -> str:
        baselines = " and ".join(f"{name} ({self.mode[name]})" for name in self.baselines)
        seeds = in_words(self.seeds)
        where = " out of distribution" if self.measure == "ood" else ""
        text = (
            f"{self.arm} ({self.mode[self.arm]}) minus the better of {baselines}{where}, seed by seed: "
            f"{100 * self.mean:+.1f} points"
        )
        if self.interval is None:
            return f"{text} ({seeds}; an interval needs {FEWEST_SEEDS} seeds)"
        low, high = self.interval
        return f"{text}, 95 % paired t interval {100 * low:+.1f} to {100 * high:+.1f} ({seeds})"


@dataclass(frozen=True)
class Score:
    """A policy on one kind of levels: success of each seed, in `seeds`' order.

    after_rl: whether PPO has gone on from the warm start. levels: `TEST`, the id of a variant, or `MEAN` of several.
    """

    arm: str
    after_rl: bool
    levels: str
    mode: str
    seeds: tuple[int, ...]
    success: tuple[float, ...]

    @property
    def policy(self) -> str:
        if not self.after_rl:
            return self.arm
        return "PPO from scratch" if self.arm == "scratch" else f"{self.arm} + PPO"

    @property
    def mean(self) -> float:
        return float(np.mean(self.success))

    @property
    def interval(self) -> Interval:
        """95 % bootstrap interval of the mean over seeds; None under five."""
        return bootstrap_interval(self.success)


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


def better_mode(summaries: Sequence[Summary], measure: str = "success") -> str:
    """The mode in which an arm is better on average over its seeds; sampled when they tie."""
    return max(MODES, key=lambda mode: float(np.mean([s[f"{measure}_{mode}"] for s in summaries])))


def scaled(success: float, random: float, expert: float) -> float:
    """Success on a scale where random play is 0 and the expert is 1."""
    if not random < expert:
        raise DataError(
            f"success of random play ({random}) is not below the expert's ({expert}): nothing can be scaled by them. "
            "Measure them again."
        )
    return (success - random) / (expert - random)


def comparison(
    summaries: Iterable[Summary],
    arm: str = HEADLINE,
    baselines: tuple[str, ...] = BASELINES,
    *,
    measure: str = "success",
) -> Comparison | None:
    """``arm`` against the better of the baselines on each seed that all of them have; None where there is none.

    measure: "success" on test levels, or "ood", the mean over the out-of-distribution variants.
    Choosing the better baseline anew on each seed is the strictest reading: it can only favour the baselines.
    """
    arms = _by_arm(summaries)
    names = (arm, *baselines)
    if not all(name in arms for name in names):
        return None
    mode = {name: better_mode(arms[name], measure) for name in names}
    success = {name: {s["seed"]: s[f"{measure}_{mode[name]}"] for s in arms[name]} for name in names}
    seeds = tuple(sorted(set.intersection(*(set(success[name]) for name in names))))
    if not seeds:
        return None
    difference = tuple(success[arm][seed] - max(success[name][seed] for name in baselines) for seed in seeds)
    mean, interval = float(np.mean(difference)), paired_interval(difference)
    return Comparison(measure, arm, baselines, mode, seeds, difference, mean, interval)


def study_rows(summaries: Iterable[Summary], scale: tuple[float, float]) -> list[Row]:
    """A row of plain numbers per arm, baselines first; None where an arm has no such number.

    scale: success of random play and of the expert, for the column ``scaled`` of an arm's better mode.
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
        for mode in SHOWN_MODES:
            row |= _estimate(f"success_{mode}", [s[f"success_{mode}"] for s in runs])
        row["better_mode"] = mode = better_mode(runs)
        row |= _estimate("scaled", [scaled(s[f"success_{mode}"], *scale) for s in runs])
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


def scores(
    evaluation: Sequence[Row], levels: Sequence[str], *, instruction: str = "given", modes: Sequence[str] = MODES
) -> list[Score]:
    """Every policy on ``levels`` and, if there are several, on `MEAN` of them; before RL first.

    A policy is shown in one of ``modes``: the one that is better on average over these levels and its seeds.
    """
    success = {
        (row["after_rl"], row["arm"], row["mode"], row["levels"], row["seed"]): row["success"]
        for row in evaluation
        if row["instruction"] == instruction
    }
    found = []
    for after_rl, (_, arm) in sorted({(after_rl, _place(arm)) for after_rl, arm, *_ in success}):
        seeds = tuple(sorted({seed for *policy, _, _, seed in success if policy == [after_rl, arm]}))
        by_mode = {
            mode: np.array([[success[after_rl, arm, mode, name, seed] for seed in seeds] for name in levels])
            for mode in modes
        }  # each (levels, seeds)
        mode = max(by_mode, key=lambda mode: float(by_mode[mode].mean()))
        rows = dict(zip(levels, by_mode[mode], strict=True))
        if len(levels) > 1:
            rows[MEAN] = by_mode[mode].mean(axis=0)
        found += [Score(arm, bool(after_rl), name, mode, seeds, tuple(row.tolist())) for name, row in rows.items()]
    return found


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


def in_words(numbers: Sequence[int]) -> str:
    """0, 1, 2, 5 as 'seeds 0-2, 5'."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    ranges = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
    return f"seed{'s' if len(numbers) > 1 else ''} {ranges}"
