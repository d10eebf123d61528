"""What a curve of fine-tuning says: how deep it dips, when it is back, when it is there. Pure functions of its points.

A point is {"env_steps", "rl_steps", "success", "actor_has_moved", "kl"}: steps with and without what was spent before
RL, success on validation levels, whether anything but the critic had learned, and KL(pi || pi_warm_start) in nats on
the states that the policy itself came to. The first point is the warm start, so differences are as fine as the distance
between points, and no more certain than the number of levels allows: nothing is smoothed or interpolated.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

__all__ = ["FIXED", "LEVELS", "Race", "area_under", "curve_facts", "median_steps", "race", "steps_to"]

LEVELS = (50, 80, 95)
"""Success, in percent, that is waited for."""
FIXED = (80, 90, 95)
"""Success, in percent, to which all arms are compared, whatever others reach."""
GOAL = 0.95
"""Success at which a race is over; at the best that both reach, if that is less."""

Point = dict[str, Any]


def curve_facts(points: list[Point]) -> dict[str, Any]:
    """A row of numbers; None where something never happened, or was not measured: early curves have no KL.

    rl_start, rl_end: success of the first and of the last point.
    rl_minimum: the lowest after the actor had begun to move; rl_kl_at_minimum, rl_kl_end: the KL there and at the end.
    rl_steps_to_regain: steps of RL to the first point after the minimum that is at least as good as the start;
        0 if none was worse.
    rl_steps_to_pass: steps of RL to the first point that is better than the start.
    steps_to_50, _80, _95: environment steps, everything counted, to the first point with that success.
    rl_area: mean success over the steps of RL.
    """
    start, moved = points[0]["success"], [point for point in points[1:] if point["actor_has_moved"]]
    lowest = min(moved, key=lambda point: point["success"], default=None)
    after = [point for point in moved if lowest and point["rl_steps"] >= lowest["rl_steps"]]
    return {
        "rl_steps": points[-1]["rl_steps"],
        "rl_start": start,
        "rl_minimum": lowest and lowest["success"],
        "rl_end": points[-1]["success"],
        "rl_kl_at_minimum": lowest and lowest.get("kl"),
        "rl_kl_end": points[-1].get("kl"),
        "rl_steps_to_regain": 0 if lowest and lowest["success"] >= start else steps_to(after, start),
        "rl_steps_to_pass": next((point["rl_steps"] for point in moved if point["success"] > start), None),
        "rl_area": area_under(points),
        **{f"steps_to_{level}": steps_to(points, level / 100, "env_steps") for level in LEVELS},
    }


def steps_to(points: list[Point], success: float, steps: str = "rl_steps") -> int | None:
    """Steps at the first point with at least this success."""
    return next((point[steps] for point in points if point["success"] >= success), None)


def median_steps(seeds: Mapping[int, list[Point]], success: float, steps: str = "rl_steps") -> tuple[float, int]:
    """Steps to this success, median over seeds, of which those that never come to it are infinite; and how many do."""
    found = [steps_to(curve, success, steps) for curve in seeds.values()]
    there = [at for at in found if at is not None]
    return median([*there, *[math.inf] * (len(found) - len(there))]), len(there)


def area_under(points: list[Point]) -> float:
    """Mean success over the steps of RL, by the trapezoidal rule; of a single point, its own."""
    total = points[-1]["rl_steps"] - points[0]["rl_steps"]
    if not total:
        return points[0]["success"]
    area = sum((b["rl_steps"] - a["rl_steps"]) * (a["success"] + b["success"]) / 2 for a, b in pairwise(points))
    return area / total


@dataclass(frozen=True)
class Race:
    """Two arms on the same seeds, each to the goal or, where one of them stays below it, to the best that both reach.

    That best is the slower arm's own, which it meets late by construction: the race favours the faster one, and steps
    to fixed levels (`median_steps`) favour nobody.

    levels: success that was raced to on each seed, in `seeds`' order. rewarded, counted: steps of RL, and all
    environment steps with those before RL, of the first arm and of the second.
    """

    arms: tuple[str, str]
    seeds: tuple[int, ...]
    levels: tuple[float, ...]
    rewarded: tuple[tuple[int, int], ...]
    counted: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        first, second = self.arms
        levels = ", ".join(f"{100 * level:.0f}" for level in self.levels)
        ratios = ", ".join(f"{a / b:.2f}" if b else "-" for a, b in self.counted)

        def medians(steps: tuple[tuple[int, int], ...]) -> str:
            ours, theirs = (median(column) for column in zip(*steps, strict=True))
            return f"{ours:,.0f} against {theirs:,.0f}"

        return (
            f"{first} + PPO against {second} + PPO, to {100 * GOAL:.0f} % on validation levels or else to the best "
            f"that both reach ({levels} %, seed by seed), medians: {medians(self.rewarded)} steps with reward; "
            f"{medians(self.counted)} steps with everything counted (ratios {ratios})"
        )


def race(curves: Mapping[str, Mapping[int, list[Point]]], first: str, second: str) -> Race | None:
    """Of arms with curves (arm, then seed, to points); None where they share no seed."""
    ours, theirs = curves.get(first, {}), curves.get(second, {})
    seeds = tuple(sorted({*ours} & {*theirs}))
    if not seeds:
        return None
    pairs = [(ours[seed], theirs[seed]) for seed in seeds]
    levels = [min(GOAL, *(max(point["success"] for point in curve) for curve in pair)) for pair in pairs]

    def steps(counting: str) -> tuple[tuple[int, int], ...]:
        found = [
            [steps_to(curve, level, counting) for curve in pair] for level, pair in zip(levels, pairs, strict=True)
        ]
        return tuple((a, b) for a, b in found if a is not None and b is not None)  # both reach it

    return Race((first, second), seeds, tuple(levels), steps("rl_steps"), steps("env_steps"))
