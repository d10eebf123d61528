"""What finished runs say: they are read and checked here, and their numbers become means, intervals and comparisons.

Rules of evidence: intervals need five seeds, and across environments five environments; an arm is compared with the
better of `bc` and `bc_long` on the same seed (the same demonstrations), each arm in its better mode, sampled or greedy.
Cool, temperature 0.5, is shown and never chosen. `reflect`, named before the study, also has to beat its controls, in
which somebody else sits in the judge's place. `dagger` asks the expert and is no rival: it says how far there is to go.

A *summary* is the dictionary that a run leaves in summary.json; an *evaluation* is the rows of evaluation.json and
evaluation_after_rl.json. Success is a share of levels between 0 and 1.
"""

import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headstart.envs import storage
from headstart.envs.errors import DataError, UsageError
from headstart.experiments.intervals import (
    FEWEST_SEEDS,
    Estimate,
    Interval,
    estimate,
    interquartile_mean,
    mean_interval,
    mean_of_means,
    paired_interval,
    probability_of_improvement,
    share_of,
)

__all__ = [
    "BASELINES",
    "CONTROLS",
    "FEWEST_ENVIRONMENTS",
    "HEADLINE",
    "INSTRUCTIONS",
    "MEAN",
    "REFERENCE",
    "SAME",
    "SHOWN_MODES",
    "TEST",
    "TWINS",
    "Across",
    "Comparison",
    "Gap",
    "Row",
    "Runs",
    "Score",
    "Summary",
    "across",
    "better_mode",
    "comparison",
    "comparisons",
    "gap",
    "gap_across",
    "in_words",
    "interquartile",
    "place",
    "read_runs",
    "run_command",
    "scaled",
    "scores",
    "steps_of_rl",
    "study_rows",
]

SCHEMA = 1  # of the summaries, curves and configurations that are understood here
EVALUATION_SCHEMA = 2  # 1 had neither other levels nor other instructions
ORDER = (  # of rows: baselines first, arms that are not named here last
    *("scratch", "bc", "bc_long", "iwm", "inverse", "preference", "star"),
    *("noop", "random_judge", "self_label", "iwm_reflect", "reflect", "dagger"),
)
HEADLINE = "reflect"  # named before the study
BASELINES = ("bc", "bc_long")
CONTROLS = ("noop", "random_judge", "self_label")  # of the headline: all but the judge is the same
REFERENCE = "dagger"
TWINS = {  # until RL the same as those that they are raced against, and no methods of their own
    "bc_plain": "bc",
    "bc_auxiliary": "bc",
    "reflect_plain": "reflect",
    "reflect_rehearsal": "reflect",
}
MODES = ("sampled", "greedy")  # an arm is compared in the better of these
SHOWN_MODES = ("sampled", "cool", "greedy")
INSTRUCTIONS = ("given", "shuffled", "emptied", "swapped")
TEST, MEAN = "test", "mean"  # levels of the training distribution, and all the other levels together
FEWEST_ENVIRONMENTS = 5  # as many as seeds, and for the same reason
# Runs that differ in any of these cannot share a table.
SAME = ("env_id", "demos", "horizon", "validation_levels", "test_levels", "ood", "random_success", "expert_success")

Summary = dict[str, Any]
Row = dict[str, Any]


# ---- what is on the disk ----
@dataclass(frozen=True)
class Runs:
    """The finished runs of one environment, all of one configuration.

    summaries: in the table's order. evaluation: a row per arm, seed, after_rl (0 or 1), levels, instruction and mode.
    curves: arm, then seed, to the points of its learning curve. unfinished: as arm/seed.
    facts: the settings in `SAME`, the variants with their episodes, the instructions, and the steps of RL as
        they were asked for.
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
        raise UsageError(f"{directory}: there is no such directory. Run `{run_command(directory)}` first.")
    summaries, evaluation, curves, unfinished = [], [], {}, []
    facts: dict[str, Any] = {}
    source: dict[str, Path] = {}
    places = [p for p in directory.glob("*/seed*") if p.is_dir() and p.parent.name not in ("demos", "report")]
    for path in sorted(places, key=lambda p: (place(p.parent.name), len(p.name), p.name)):
        if not storage.exists(path / "summary.json"):
            unfinished.append(f"{path.parent.name}/{path.name}")
            continue
        summary = storage.load_json(path / "summary.json", kind="summary", schema=SCHEMA)
        if (path.parent.name, path.name) != (summary["arm"], f"seed{summary['seed']}"):
            raise DataError(
                f"{path}: holds the run of {summary['arm']}, seed {summary['seed']}. If it is a copy, move it out of "
                f"{directory}; otherwise give it back its name."
            )
        ran = _evaluation(path, summary)
        config = storage.load_json(path / "config.json", kind="configuration", schema=SCHEMA)
        ours = {name: config[name] for name in SAME}
        evaluation += ran
        ours["variants"] = {row["levels"]: row["episodes"] for row in ran if row["levels"] != TEST}
        ours["instructions"] = [name for name in INSTRUCTIONS if any(row["instruction"] == name for row in ran)]
        if summary["rl_steps"]:
            # as asked for: the last rollout is always ended, and rollouts differ in length
            ours["rl_steps"] = config["rl"]["steps"]
            points = storage.load_json(path / "curve.json", kind="curve", schema=SCHEMA)
            curves.setdefault(summary["arm"], {})[summary["seed"]] = points
        for name, value in ours.items():
            if facts.setdefault(name, value) != value:
                raise DataError(
                    f"{path}: has {name} {value}, but {source[name]} has {facts[name]}: they cannot share a table. "
                    "Move one of them away, or run it again with --fresh."
                )
            source.setdefault(name, path)
        summaries.append(summary)
    if not summaries:
        raise UsageError(
            f"{directory}: holds no finished run{_unfinished(unfinished)}. "
            f"Type `{run_command(directory, unfinished)}`; it goes on where it was stopped."
        )
    return Runs(summaries, evaluation, curves, facts, unfinished)


def run_command(directory: Path, unfinished: Sequence[str] = ()) -> str:
    """What makes a directory like runs/fetch, or runs/fetch-128, of fetch with 128 demonstrations; of all that it has
    begun, if that is said as arm/seed.
    """
    env, _, demos = directory.name.rpartition("-")
    command = ["headstart", "run", *([env, "--demos", demos] if env and demos.isdigit() else [directory.name])]
    if unfinished:
        arms, seeds = zip(*(name.split("/seed") for name in unfinished), strict=True)
        command += ["--arms", *dict.fromkeys(arms), "--seed", *dict.fromkeys(seeds)]
    return shlex.join([*command, *(["--out", str(directory.parent)] if directory.parent != Path("runs") else [])])


def _evaluation(path: Path, summary: Summary) -> list[Row]:
    """What one run was evaluated on, before and, if it has had RL, after it."""
    files = ("evaluation.json", *(("evaluation_after_rl.json",) if summary["rl_steps"] else ()))
    return [
        {"arm": summary["arm"], "seed": summary["seed"], "after_rl": after_rl, **row}
        for after_rl, name in enumerate(files)
        for row in storage.load_json(path / name, kind="evaluation", schema=EVALUATION_SCHEMA)["rows"]
    ]


def _unfinished(names: Sequence[str]) -> str:
    return f" (unfinished: {', '.join(names)})" if names else ""


# ---- what is made of it ----
@dataclass(frozen=True)
class Comparison:
    """An arm against the better of its baselines, seed by seed.

    measure: "success" on test levels, or "ood", the mean over the out-of-distribution variants.
    mode: the better mode of each arm, by its mean over seeds. ours, theirs: success of the arm and of the better
    baseline on each seed, in `seeds`' order.
    """

    measure: str
    arm: str
    baselines: tuple[str, ...]
    mode: dict[str, str]
    seeds: tuple[int, ...]
    ours: tuple[float, ...]
    theirs: tuple[float, ...]

    @property
    def difference(self) -> tuple[float, ...]:
        return tuple(ours - theirs for ours, theirs in zip(self.ours, self.theirs, strict=True))

    @property
    def mean(self) -> float:
        return float(np.mean(self.difference))

    @property
    def interval(self) -> Interval:
        """Paired t, 95 %; None under five seeds."""
        return paired_interval(self.difference)

    def __str__(self) -> str:
        names = " and ".join(f"{name} ({self.mode[name]})" for name in self.baselines)
        better = "the better of " if len(self.baselines) > 1 else ""
        seeds = in_words(self.seeds)
        where = " out of distribution" if self.measure == "ood" else ""
        text = (
            f"{self.arm} ({self.mode[self.arm]}) minus {better}{names}{where}, seed by seed: "
            f"{100 * self.mean:+.1f} points"
        )
        if self.interval is None:
            return f"{text} ({seeds}; an interval needs {FEWEST_SEEDS} seeds)"
        low, high = self.interval
        return f"{text}, 95 % paired t interval {100 * low:+.1f} to {100 * high:+.1f} ({seeds})"


@dataclass(frozen=True)
class Gap:
    """How far it is from the better baseline to `dagger`, which asks the expert, and how much of that reflect goes.

    closed, whole: reflect and dagger against the same baselines on the same seeds. share: ratio of their means, with
    the interval of a bootstrap that draws seeds with both of their numbers; None unless the interval of the whole gap
    is above zero: a share of what may be nothing is no number.
    """

    closed: Comparison
    whole: Comparison
    share: Estimate | None

    def __str__(self) -> str:
        where = " out of distribution" if self.whole.measure == "ood" else ""
        text = (
            f"{self.closed.arm} closes {100 * self.closed.mean:+.1f} of the {100 * self.whole.mean:+.1f} points from "
            f"the better of {' and '.join(self.whole.baselines)} to {self.whole.arm}{where}"
        )
        if self.share is not None:
            low, high = self.share.interval or (np.nan, np.nan)
            return f"{text}: {self.share.value:.0%}, 95 % bootstrap interval {low:.0%} to {high:.0%}"
        if self.whole.interval is None:
            return f"{text} ({in_words(self.whole.seeds)}; a share needs {FEWEST_SEEDS} seeds)"
        low, high = self.whole.interval
        return f"{text}; no share: the gap itself may be none (95 % paired t {100 * low:+.1f} to {100 * high:+.1f})"


@dataclass(frozen=True)
class Across:
    """A comparison of the same arms in several environments.

    mean: of the environments' mean differences. improvement: probability that the arm beats the baselines on a pair of
    seeds. Both with the interval of a bootstrap of environments and seeds; None under five environments or seeds.
    """

    environments: dict[str, Comparison]
    mean: Estimate
    improvement: Estimate

    @property
    def above(self) -> list[str]:
        """Environments whose own interval is above zero."""
        return [name for name, found in self.environments.items() if found.interval and found.interval[0] > 0]

    @property
    def below(self) -> list[str]:
        return [name for name, found in self.environments.items() if found.interval and found.interval[1] < 0]

    @property
    def neither(self) -> list[str]:
        """Environments whose interval includes zero."""
        sure = {*self.above, *self.below}
        return [name for name, found in self.environments.items() if found.interval and name not in sure]


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
        """95 % t interval of the mean over seeds; None under five."""
        return mean_interval(self.success)


# ---- one environment ----
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
    against: Iterable[Summary] | None = None,
) -> Comparison | None:
    """``arm`` against the better of the baselines on each seed that all of them have; None where there is none.

    measure: "success" on test levels, or "ood", the mean over the out-of-distribution variants; None where an arm was
    not measured on any. against: the runs that the baselines are taken from, if they are not the arm's.
    Choosing the better baseline anew on each seed is the strictest reading: it can only favour the baselines.
    """
    ours = _by_arm(summaries)
    theirs = ours if against is None else _by_arm(against)
    runs = {name: theirs.get(name, []) for name in baselines} | {arm: ours.get(arm, [])}
    if not all(some and all(f"{measure}_{mode}" in s for s in some for mode in MODES) for some in runs.values()):
        return None
    mode = {name: better_mode(some, measure) for name, some in runs.items()}
    success = {name: {s["seed"]: s[f"{measure}_{mode[name]}"] for s in some} for name, some in runs.items()}
    seeds = tuple(sorted(set.intersection(*(set(found) for found in success.values()))))
    if not seeds:
        return None
    best = tuple(max(success[name][seed] for name in baselines) for seed in seeds)
    return Comparison(measure, arm, baselines, mode, seeds, tuple(success[arm][seed] for seed in seeds), best)


def comparisons(summaries: Sequence[Summary], measure: str = "success") -> list[Comparison]:
    """Every arm that is a rival of the baselines against them, and the headline against each of its controls too."""
    arms = _by_arm(summaries)
    rivals = [arm for arm in arms if arm not in ("scratch", *BASELINES, *CONTROLS, REFERENCE, *TWINS)]
    pairs = [(arm, BASELINES) for arm in rivals] + [(HEADLINE, (control,)) for control in CONTROLS]
    found = (comparison(summaries, arm, baselines, measure=measure) for arm, baselines in pairs)
    return [difference for difference in found if difference is not None]


def gap(summaries: Iterable[Summary], measure: str = "success") -> Gap | None:
    """What the headline closes of the gap between baselines and reference; None where one of them is missing."""
    runs = [s for s in summaries if s["arm"] in (HEADLINE, REFERENCE, *BASELINES)]
    by_arm = _by_arm(runs)
    shared = set.intersection(*({s["seed"] for s in some} for some in by_arm.values())) if by_arm else set()
    runs = [s for s in runs if s["seed"] in shared]
    closed, whole = (comparison(runs, arm, measure=measure) for arm in (HEADLINE, REFERENCE))
    if closed is None or whole is None:
        return None
    return Gap(closed, whole, _share({"": closed}, {"": whole}, whole.interval))


def _share(closed: Mapping[str, Comparison], whole: Mapping[str, Comparison], interval: Interval) -> Estimate | None:
    """The share that is closed, given the interval of the whole; None if that includes zero."""
    if interval is None or interval[0] <= 0:
        return None
    pairs = [np.stack([closed[name].difference, whole[name].difference], axis=1) for name in whole]
    return estimate(pairs, share_of)


def study_rows(summaries: Iterable[Summary], scale: tuple[float, float]) -> list[Row]:
    """A row of plain numbers per arm, baselines first; None where an arm has no such number.

    scale: success of random play and of the expert, for the column ``scaled`` of an arm's better mode.
    ``_low`` and ``_high`` bound the mean over seeds (t, 95 %). ``dip``: the deepest fall of any seed's PPO
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
        for end in ("", "_low", "_high"):
            success = row[f"success_{mode}{end}"]
            row[f"scaled{end}"] = None if success is None else scaled(success, *scale)
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
    for after_rl, (_, arm) in sorted({(after_rl, place(arm)) for after_rl, arm, *_ in success}):
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


# ---- several environments ----
def across(environments: Mapping[str, Comparison]) -> Across | None:
    """A comparison over environments, each of which counts the same; None if there is none."""
    if not environments:
        return None
    pairs = [np.stack([found.ours, found.theirs], axis=1) for found in environments.values()]
    mean = estimate([found.difference for found in environments.values()], mean_of_means)
    return Across(
        dict(environments), _in_enough(mean, pairs), _in_enough(estimate(pairs, probability_of_improvement), pairs)
    )


def gap_across(gaps: Mapping[str, Gap]) -> tuple[Estimate, Estimate | None] | None:
    """The mean gap over environments, and the share of it that is closed; None if there is no environment.

    The share is a ratio of means over environments, so that one with hardly any gap does not decide.
    """
    if not gaps:
        return None
    closed = {name: found.closed for name, found in gaps.items()}
    whole = {name: found.whole for name, found in gaps.items()}
    differences = [found.difference for found in whole.values()]
    mean = _in_enough(estimate(differences, mean_of_means), differences)
    return mean, _share(closed, whole, mean.interval)


def steps_of_rl(directory: Path, without: Collection[Path]) -> dict[Path, int]:
    """Steps of RL that each finished run in runs/<name> was asked for, but for the runs ``without``."""
    found: dict[Path, int] = {}
    for path in sorted(directory.glob("*/seed*")):
        if path not in without and storage.exists(path / "curve.json") and storage.exists(path / "config.json"):
            found[path] = storage.load_json(path / "config.json", kind="configuration", schema=SCHEMA)["rl"]["steps"]
    return found


def interquartile(samples: Sequence[Sequence[float]]) -> Estimate:
    """Interquartile mean over all runs of an arm, given the success of each seed in each environment."""
    return _in_enough(estimate(samples, interquartile_mean), samples)


def _in_enough(found: Estimate, samples: Sequence[Any]) -> Estimate:
    """Without its interval where the environments are too few."""
    return found if len(samples) >= FEWEST_ENVIRONMENTS else Estimate(found.value, None)


# ---- parts ----
def _by_arm(summaries: Iterable[Summary]) -> dict[str, list[Summary]]:
    """Summaries of each arm in order of seed; arms in the order of the table, unknown ones last."""
    arms: dict[str, dict[int, Summary]] = {}
    for summary in summaries:
        seeds = arms.setdefault(summary["arm"], {})
        if summary["seed"] in seeds:
            raise ValueError(f"two summaries of {summary['arm']}, seed {summary['seed']}")
        seeds[summary["seed"]] = summary
    return {arm: [arms[arm][seed] for seed in sorted(arms[arm])] for arm in sorted(arms, key=place)}


def place(arm: str) -> tuple[int, str]:
    """Where an arm stands in a table: a key to sort by."""
    return (ORDER.index(arm) if arm in ORDER else len(ORDER), arm)


def _estimate(name: str, values: Sequence[float]) -> Row:
    low, high = mean_interval(values) or (None, None)
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
