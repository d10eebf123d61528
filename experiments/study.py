"""The study: finished runs of all environments in, one table of what came out against what was claimed beforehand.

    runs/study/   table.md    the claims, each with its verdict; success of every arm; differences; fewer demonstrations
                  study.csv   a row per environment, demonstrations, arm, seed, levels, instruction and mode
                  study.png   what reflect gains in each environment; study.svg is the same picture

The claims, and nothing but them, are about the eight environments of the registry that belong to the study; others are
shown beside them. What an environment, an arm or a seed lacks is named. What the numbers are: evidence.py.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from headstart.envs import storage
from headstart.envs.errors import DataError, UsageError
from headstart.envs.registry import ENVIRONMENTS
from headstart.experiments import pictures
from headstart.experiments.evidence import (
    BASELINES,
    CONTROLS,
    FEWEST_ENVIRONMENTS,
    HEADLINE,
    REFERENCE,
    SAME,
    TWINS,
    Across,
    Comparison,
    Gap,
    Row,
    Runs,
    Summary,
    across,
    better_mode,
    comparison,
    comparisons,
    gap,
    gap_across,
    in_words,
    interquartile,
    place,
    read_runs,
    run_command,
    scaled,
)
from headstart.experiments.intervals import FEWEST_SEEDS, Estimate, Interval, mean_interval
from headstart.experiments.report import as_csv, in_brackets, table

__all__ = ["Claim", "Study", "Written", "claims", "study", "study_directories", "write_study"]

SCHEMA = 1  # of what is written here
NAME = "study"  # of the directory, beside those of the environments
CLAIMED = tuple(name for name, env in ENVIRONMENTS.items() if env.study)  # what the claims are about
MEASURES = {"success": "in distribution", "ood": "out of distribution"}
# What was claimed before the study, in points of success.
SURE = 6  # environments, of eight, in which the interval of the difference is above zero; it is below zero in none
MEAN, GOAL = 8.0, 15.0
MEAN_OOD = 5.0
EVEN = 6  # environments, of eight, in which half of the demonstrations are enough to equal bc with all
SHARE_GOAL = 0.5  # of the gap to the reference

Pair = tuple[str, tuple[str, ...]]  # an arm and what it is compared with


# ---- what is on the disk ----
@dataclass(frozen=True)
class Study:
    """Finished runs of many environments.

    environments: with the demonstrations that their experiments say; those of the study first, in the registry's order.
    budgets: environment, then another number of demonstrations, to the runs with it.
    left_out: sentences about directories that have no finished run.
    """

    environments: dict[str, Runs]
    budgets: dict[str, dict[int, Runs]]
    left_out: list[str]


def study_directories(out: Path, names: Sequence[str] = ()) -> list[Path]:
    """Directories of runs below ``out``: of these environments, or of all, with every number of demonstrations."""
    if not out.is_dir():
        command = run_command(out / next(iter(names), "ENV"))
        raise UsageError(f"{out}: there is no such directory. Run `{command}` first, or name another with --out.")
    found = sorted({path.parent.parent for path in out.glob("*/*/seed*") if path.is_dir()})
    for name in names:
        if not any(name in (path.name, _budget(path.name)[0]) for path in found):
            raise UsageError(f"{out}: has no runs of {name}. Run `{run_command(out / name)}` first.")
    if not found:
        raise UsageError(f"{out}: there are no finished runs. Run `{run_command(out / 'ENV')}` first.")
    return [path for path in found if not names or {path.name, _budget(path.name)[0]} & {*names}]


def study(directories: Iterable[Path]) -> Study:
    """Read the finished runs in directories like runs/fetch and runs/fetch-128.

    Raises DataError for what cannot share a table, UsageError if nothing at all is finished.
    """
    order = [*CLAIMED, *ENVIRONMENTS]
    found = Study({}, {}, [])

    def by_environment(path: Path) -> tuple[int, str, int]:
        env, demos = _budget(path.name)
        return (order.index(env) if env in order else len(order), env, demos)

    ordered = sorted(directories, key=by_environment)
    for directory in ordered:
        env, demos = _budget(directory.name)
        try:
            runs = read_runs(directory)
        except UsageError as nothing:
            found.left_out.append(str(nothing))
            continue
        if demos:
            found.budgets.setdefault(env, {})[runs.facts["demos"]] = runs
        else:
            found.environments[env] = runs
    if found.budgets and not found.environments:
        env = next(iter(found.budgets))
        raise UsageError(
            f"Only runs of {env} with another number of demonstrations are finished: there is nothing to compare them "
            f"with. Type `{run_command(ordered[0].with_name(env))}` first."
        )
    if not found.environments:
        raise UsageError(" ".join(found.left_out) or "There are no finished runs. Type `headstart run ENV` first.")
    for env, budgets in found.budgets.items():
        for demos, runs in budgets.items():
            _check_same(env, demos, runs, found.environments.get(env))
    return found


def _budget(name: str) -> tuple[str, int]:
    """An environment and its number of demonstrations, 0 where that is the experiment's: fetch-128 to fetch, 128."""
    env, _, demos = name.rpartition("-")
    return (env, int(demos)) if env and demos.isdigit() else (name, 0)


def _check_same(env: str, demos: int, runs: Runs, full: Runs | None) -> None:
    """Raise DataError where runs with other demonstrations differ from the full ones in something else."""
    for name in SAME if full else ():
        if name != "demos" and runs.facts[name] != full.facts[name]:  # type: ignore[union-attr]
            raise DataError(
                f"{env}-{demos}: has {name} {runs.facts[name]}, but {env} has {full.facts[name]}: "  # type: ignore[union-attr]
                "they cannot be compared. Move one of them away, or run it again with --fresh."
            )


# ---- what was claimed ----
@dataclass(frozen=True)
class Claim:
    """What was to be shown, what came out, and whether that is enough; all in words."""

    text: str
    target: str
    found: str
    verdict: str

    def __str__(self) -> str:
        return f"**{self.verdict[0].upper()}{self.verdict[1:]}**: {self.text}: {self.found} ({self.target})."


def claims(found: Study) -> list[Claim]:
    """Every claim that was made before the study, as far as the runs decide it."""
    envs = {name: runs for name, runs in found.environments.items() if name in CLAIMED}
    made = []
    for baselines in (BASELINES, *((control,) for control in CONTROLS)):
        text = f"{HEADLINE} minus {_of(baselines)}"
        by_measure = {measure: across(_compared(envs, (HEADLINE, baselines), measure)) for measure in MEASURES}
        if not by_measure["success"] and baselines != BASELINES:
            made.append(Claim(text, "targets as above", "none", f"not decided: no runs of {_of(baselines)}"))
            continue
        made.append(_sure(text, by_measure["success"]))
        made.append(_at_least(text, by_measure["success"], MEAN))
        if baselines == BASELINES:
            made.append(_at_least(text, by_measure["success"], GOAL, "goal"))
        made.append(_at_least(f"{text}, out of distribution", by_measure["ood"], MEAN_OOD))
    made.append(_half_is_enough(envs, found.budgets))
    made.append(_closed({name: way for name, runs in envs.items() if (way := gap(runs.summaries))}))
    return made


def _sure(text: str, found: Across | None) -> Claim:
    """The interval is above zero in enough environments and below zero in none."""
    above, below = (found.above, found.below) if found else ([], [])
    undecided = _without_interval(found)
    target = f"target: above zero in at least {SURE} of {len(CLAIMED)}, below in none"
    told = f"interval above zero in {len(above)} of {len(CLAIMED)} environments, below in {len(below)}"
    told += f" ({', '.join(below)})" if below else ""
    short = SURE - len(above)
    missed = [f"{_count(short, 'environment')} too few above zero"] if short > len(undecided) else []
    missed += [f"below zero in {_count(len(below), 'environment')}"] if below else []
    if missed:
        return Claim(text, target, told, f"missed: {' and '.join(missed)}")
    return Claim(text, target, told, _open(undecided) or "reached")


def _at_least(text: str, found: Across | None, points: float, what: str = "target") -> Claim:
    """The mean over all environments is high enough."""
    target = f"{what}: at least {points:+.0f} points"
    told = (
        f"{_signed(found.mean)} points, mean of {_count(len(found.environments), 'environment')}" if found else "none"
    )
    short = points - 100 * found.mean.value if found else 0.0
    reached = "reached" if short <= 0 else f"missed by {short:.1f} points"
    return Claim(text, target, told, _open(_without_interval(found)) or reached)


def _half_is_enough(envs: Mapping[str, Runs], budgets: Mapping[str, Mapping[int, Runs]]) -> Claim:
    """With half of the demonstrations the headline is at least as good, on average, as bc with all of them."""
    halves = {name: budgets.get(name, {}).get(runs.facts["demos"] // 2) for name, runs in envs.items()}
    found = {
        name: difference
        for name, half in halves.items()
        if half and (difference := comparison(half.summaries, HEADLINE, ("bc",), against=envs[name].summaries))
    }
    enough = [name for name, difference in found.items() if difference.interval and difference.mean >= 0]
    below = across(found).below if found else []  # type: ignore[union-attr]
    undecided = [name for name in CLAIMED if name not in found or not found[name].interval]
    text = f"{HEADLINE} with half of the demonstrations at least equals bc with all of them"
    told = f"in {len(enough)} of {len(CLAIMED)} environments, interval below zero in {len(below)}"
    short = EVEN - len(enough)
    verdict = "reached" if short <= 0 else _open(undecided)
    if short > len(undecided):
        verdict = f"missed by {_count(short, 'environment')}"
    if not found:
        told, verdict = "none", "not decided: no runs with half of them"
    return Claim(text, f"target: at least {EVEN} of {len(CLAIMED)}", told, verdict)


def _closed(gaps: Mapping[str, Gap]) -> Claim:
    """The share of the gap to those who ask the expert that is closed without asking."""
    text = f"share of the gap from the better of {' and '.join(BASELINES)} to {REFERENCE} that {HEADLINE} closes"
    target = f"goal: {SHARE_GOAL:.0%}"
    found = gap_across(gaps)
    if found is None:
        return Claim(text, target, "none", f"not decided: no runs of {REFERENCE}")
    mean, share = found
    undecided = [name for name in CLAIMED if name not in gaps or not gaps[name].whole.interval]
    if share is None:
        why = _open(undecided) or "not decided: the gap itself may be none"
        return Claim(text, target, f"the gap is {_signed(mean)} points", why)
    told = f"{_share(share)} of {_signed(mean)} points, over {_count(len(gaps), 'environment')}"
    short = SHARE_GOAL - share.value
    reached = "reached" if short <= 0 else f"missed by {100 * short:.0f} points of the share"
    return Claim(text, target, told, _open(undecided) or reached)


def _without_interval(found: Across | None) -> list[str]:
    known = found.environments if found else {}
    return [name for name in CLAIMED if name not in known or not known[name].interval]


def _open(undecided: Sequence[str]) -> str:
    if not undecided:
        return ""
    few = len(undecided) <= 2  # the others are named under "What is missing"
    named = ", ".join(undecided) if few else f"{len(undecided)} of {_count(len(CLAIMED), 'environment')}"
    return f"not decided: no interval for {named}"


# ---- what is written ----
@dataclass(frozen=True)
class Written:
    """Where the table and the picture are, and the table as text; no picture where the headline has not been run."""

    table: Path
    picture: Path | None
    text: str


def write_study(out: Path, names: Sequence[str] = ()) -> Written:
    """Write the study of what is finished below ``out`` to out/study; the same runs give the same bytes."""
    found = study(study_directories(out, names))
    directory = out / NAME
    panels = {title: _compared(found.environments, (HEADLINE, BASELINES), m) for m, title in MEASURES.items()}
    panels = {title: environments for title, environments in panels.items() if environments}
    written = Written(directory / "table.md", directory / "study.png" if panels else None, _text(found))
    with storage.lock(directory):
        storage.save_text(written.table, written.text, kind="report", schema=SCHEMA)
        storage.save_text(directory / "study.csv", as_csv(_rows(found)), kind="study", schema=SCHEMA)
        for suffix in (".png", ".svg") if panels else ():
            content = pictures.render(partial(pictures.draw_study, panels, CLAIMED), suffix)
            storage.save_bytes(directory / f"study{suffix}", content, kind="picture", schema=SCHEMA)
    return written


def _rows(found: Study) -> list[Row]:
    """A row per environment, demonstrations, arm, seed, before or after RL, levels, instruction and mode."""
    rows = []
    for name, runs in found.environments.items():
        for each in (runs, *found.budgets.get(name, {}).values()):
            cost = {(s["arm"], s["seed"]): s for s in each.summaries}
            for row in each.evaluation:
                spent = cost[row["arm"], row["seed"]]
                steps = spent["env_steps"] - (0 if row["after_rl"] else spent["rl_steps"])
                budget = {"updates": spent["updates"], "expert_steps": spent["expert_steps"], "env_steps": steps}
                rows.append({"env": name, "demos": each.facts["demos"], **row, **budget})
    return rows


def _text(found: Study) -> str:
    envs = found.environments
    episodes = sorted({runs.facts["test_levels"] for runs in envs.values()})
    parts = [
        "# The study",
        f"{_count(len(envs), 'environment')}, {_seeds(envs)}, {' to '.join(f'{n:,}' for n in episodes)} test levels, "
        "each played once; no stage has seen them. Success before any reward, in per cent of levels; every arm in its "
        "better mode on average over its seeds, sampled at temperature 1 or greedy (marked g).",
        "## What was claimed, and what came out",
        "\n".join(f"- {claim}" for claim in claims(found)),
        _how_intervals_are_made(),
    ]
    for measure, title in MEASURES.items():
        known = {name: runs for name, runs in envs.items() if measure == "success" or runs.facts["variants"]}
        if not known:
            continue
        parts += [f"## Success {title}", _success_table(known, measure)]
        differences = _difference_table(known, measure)
        if differences:
            parts += [f"## Differences {title}, in points", differences]
    budgets = _budget_table(found)
    if budgets:
        parts += ["## Other numbers of demonstrations", budgets]
    missing = _missing(found)
    if missing:
        parts += ["## What is missing", "\n".join(f"- {sentence}" for sentence in missing)]
    parts.append("Every number: study.csv beside this table, and the report of each environment.")
    return "\n\n".join(parts) + "\n"


def _how_intervals_are_made() -> str:
    return (
        f"Intervals are of 95 % and need {FEWEST_SEEDS} seeds. In an environment: t over its seeds, for success within "
        "0 and 100 %, for differences paired. Over environments, which all count the same: bootstrap of environments, "
        f"then of the seeds of each; they need {FEWEST_ENVIRONMENTS} environments with {FEWEST_SEEDS} seeds. IQM: "
        "interquartile mean of all runs of an arm, scaled so that random play is 0 and the expert is 1; out of "
        "distribution it is not scaled. P: probability that the arm is better in a pair of seeds, ties counting half. "
        "Above, neither, below: environments by where their interval is. All over environments are those of the study "
        f"alone: {', '.join(CLAIMED)}."
    )


def _success_table(envs: Mapping[str, Runs], measure: str) -> str:
    """A row per arm, a column per environment, and the interquartile mean over those of the study."""
    arms = sorted({arm for runs in envs.values() for arm in runs.arms} - {*TWINS}, key=place)
    head = ("arm", *envs, "IQM, scaled" if measure == "success" else "IQM, %", "over")
    lines = []
    for arm in arms:
        cells, runs_of_arm = [], []
        for name, runs in envs.items():
            summaries = runs.arms.get(arm, [])
            success, mode = _success(summaries, measure)
            cells.append(_percent(success, mode) if success else "")
            if success and name in CLAIMED:
                on_scale = measure == "success"
                runs_of_arm.append([scaled(one, *runs.scale) if on_scale else 100 * one for one in success])
        middle = interquartile(runs_of_arm) if runs_of_arm else None
        form = "{:.2f}" if measure == "success" else "{:.1f}"
        iqm = in_brackets(middle.value, middle.interval, form) if middle else ""
        lines.append((arm, *cells, iqm, f"{len(runs_of_arm)}"))
    return table(head, lines)


def _difference_table(envs: Mapping[str, Runs], measure: str) -> str:
    """A row per comparison, the headline's first, and one for the gap to the reference; "" if there is none."""
    pairs: list[Pair] = []
    for runs in envs.values():
        pairs += [(each.arm, each.baselines) for each in comparisons(runs.summaries, measure)]
    pairs.sort(key=lambda pair: (pair[0] != HEADLINE, place(pair[0]), pair[1] != BASELINES, pair[1]))
    head = ("difference", *envs, "mean", "P", "above, neither, below")
    lines = []
    for pair in dict.fromkeys(pairs):
        found = _compared(envs, pair, measure)
        over = across({name: each for name, each in found.items() if name in CLAIMED})
        sides = f"{len(over.above)}, {len(over.neither)}, {len(over.below)}" if over else ""
        improvement = in_brackets(over.improvement.value, over.improvement.interval, "{:.2f}") if over else ""
        cells = [_points(found[name].mean, found[name].interval) if name in found else "" for name in envs]
        lines.append(
            (f"{pair[0]} minus {_of(pair[1])}", *cells, _signed(over.mean) if over else "", improvement, sides)
        )
    gaps = {name: way for name, runs in envs.items() if (way := gap(runs.summaries, measure))}
    if gaps:
        lines += _gap_lines(envs, gaps)
    return table(head, lines) if lines else ""


def _gap_lines(envs: Mapping[str, Runs], gaps: Mapping[str, Gap]) -> list[tuple[str, ...]]:
    """The gap to the reference, and the share of it that is closed."""
    mean, share = gap_across({name: way for name, way in gaps.items() if name in CLAIMED}) or (None, None)
    whole = [_points(gaps[name].whole.mean, gaps[name].whole.interval) if name in gaps else "" for name in envs]
    shares = [_share(gaps[name].share) if name in gaps else "" for name in envs]
    return [
        (f"the gap: {REFERENCE} minus {_of(BASELINES)}", *whole, _signed(mean) if mean else "", "", ""),
        (f"share of it that {HEADLINE} closes", *shares, _share(share) if mean else "", "", ""),
    ]


def _budget_table(found: Study) -> str:
    """A row per environment and other number of demonstrations, against the full number; "" if there is none."""
    head = (
        *("environment", "demonstrations", "of", f"{HEADLINE}, %", "bc, %", "bc with all, %"),
        *(f"{HEADLINE} minus {_of(some)} with all" for some in (("bc",), BASELINES)),
    )
    lines = []
    for name, runs in found.environments.items():
        for demos, few in sorted(found.budgets.get(name, {}).items()):
            arms = [few.arms.get(HEADLINE, []), few.arms.get("bc", []), runs.arms.get("bc", [])]
            success = [_success(summaries, "success") for summaries in arms]
            differences = [
                comparison(few.summaries, HEADLINE, some, against=runs.summaries) for some in (("bc",), BASELINES)
            ]
            cells = [_percent(*each) if each[0] else "" for each in success]
            cells += [_points(each.mean, each.interval) if each else "" for each in differences]
            lines.append((name, f"{demos}", f"{runs.facts['demos']}", *cells))
    return table(head, lines) if lines else ""


# ---- what is missing ----
def _missing(found: Study) -> list[str]:
    """A sentence for everything that a reader might take for granted."""
    envs = found.environments
    absent = [name for name in CLAIMED if name not in envs]
    told = [f"Of the study, but not in these tables: {', '.join(absent)}."] if absent else []
    told += found.left_out
    alone = [f"{name}-{demos}" for name, budgets in found.budgets.items() if name not in envs for demos in budgets]
    told += [f"Left out, because there are no runs with all demonstrations: {', '.join(alone)}."] if alone else []
    seeds = {name: _seeds({name: runs}) for name, runs in envs.items()}
    if len(set(seeds.values())) > 1:
        groups = {which: [name for name in envs if seeds[name] == which] for which in seeds.values()}
        where = "; ".join(f"{which} in {', '.join(some)}" for which, some in groups.items())
        told.append(f"Seeds differ: {where}.")
    everything = {
        **envs,
        **{f"{name}-{demos}": runs for name, budgets in found.budgets.items() for demos, runs in budgets.items()},
    }
    for name, runs in everything.items():
        all_seeds = {s["seed"] for s in runs.summaries}
        short = {arm: all_seeds - {s["seed"] for s in summaries} for arm, summaries in runs.arms.items()}
        told += [f"{name}: {arm} lacks {in_words(sorted(lacks))}." for arm, lacks in short.items() if lacks]
        if runs.unfinished:
            told.append(f"{name}: unfinished, left out: {', '.join(runs.unfinished)}.")
    arms = sorted({arm for runs in envs.values() for arm in runs.arms} - {*TWINS}, key=place)
    for arm in arms:
        lacks = [name for name, runs in envs.items() if arm not in runs.arms]
        told += [f"{arm} has not been run in {', '.join(lacks)}."] if lacks else []
    return told


# ---- in words and cells ----
def _compared(envs: Mapping[str, Runs], pair: Pair, measure: str) -> dict[str, Comparison]:
    found = {name: comparison(runs.summaries, *pair, measure=measure) for name, runs in envs.items()}
    return {name: difference for name, difference in found.items() if difference}


def _success(summaries: Sequence[Summary], measure: str) -> tuple[list[float], str]:
    """Success of each seed of one arm in its better mode, and the mode; [] where it was not measured."""
    if not summaries or any(f"{measure}_sampled" not in summary for summary in summaries):
        return [], ""
    mode = better_mode(summaries, measure)
    return [summary[f"{measure}_{mode}"] for summary in summaries], mode


def _percent(success: Sequence[float], mode: str) -> str:
    text = in_brackets(sum(success) / len(success), mean_interval(success), "{:.1f}", 100)
    return f"{text} g" if mode == "greedy" else text


def _points(mean: float, interval: Interval) -> str:
    return in_brackets(mean, interval, "{:+.1f}", 100)


def _signed(found: Estimate) -> str:
    return _points(found.value, found.interval)


def _share(found: Estimate | None) -> str:
    """A share in per cent, or that there is none: what may be nothing cannot be shared."""
    return in_brackets(found.value, found.interval, "{:.0%}") if found else "no sure gap"


def _of(baselines: Sequence[str]) -> str:
    return f"the better of {' and '.join(baselines)}" if len(baselines) > 1 else baselines[0]


def _seeds(envs: Mapping[str, Runs]) -> str:
    return in_words(sorted({s["seed"] for runs in envs.values() for s in runs.summaries}))


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
