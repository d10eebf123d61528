"""What is said of a curve, worked out by hand."""

import math
from typing import Any

import pytest

from headstart.experiments.curves import area_under, curve_facts, median_steps, race, steps_to


def curve(*success: float, alone: int = 0, spent: int = 0, kl: tuple[float, ...] = ()) -> list[dict[str, Any]]:
    """A point every 100 steps; after the first, ``alone`` of them while the critic learns alone."""
    return [
        {
            "env_steps": spent + 100 * i,
            "rl_steps": 100 * i,
            "success": value,
            "actor_has_moved": not 1 <= i <= alone,
            "kl": kl[i] if kl else 0.0,
        }
        for i, value in enumerate(success)
    ]


def test_a_curve_that_dips_and_comes_back() -> None:
    points = curve(0.5, 0.4, 0.3, 0.45, 0.5, 0.8, 0.9, spent=1000, kl=(0.0, 0.1, 0.3, 0.2, 0.2, 0.4, 0.6))
    assert curve_facts(points) == {
        "rl_steps": 600,
        "rl_start": 0.5,
        "rl_minimum": 0.3,
        "rl_end": 0.9,
        "rl_kl_at_minimum": 0.3,
        "rl_kl_end": 0.6,
        "rl_steps_to_regain": 400,
        "rl_steps_to_pass": 500,
        "rl_area": pytest.approx((0.45 + 0.35 + 0.375 + 0.475 + 0.65 + 0.85) / 6),
        "steps_to_50": 1000,
        "steps_to_80": 1500,
        "steps_to_95": None,
    }


def test_a_curve_that_only_climbs_was_never_lost() -> None:
    facts = curve_facts(curve(0.5, 0.6, 0.96))
    assert (facts["rl_minimum"], facts["rl_steps_to_regain"], facts["rl_steps_to_pass"]) == (0.6, 0, 100)
    assert facts["steps_to_95"] == 200
    level = curve_facts(curve(0.5, 0.5, 0.5))
    assert (level["rl_steps_to_regain"], level["rl_steps_to_pass"]) == (0, None)


def test_a_curve_that_falls_for_good() -> None:
    facts = curve_facts(curve(0.5, 0.4, 0.0))
    assert (facts["rl_minimum"], facts["rl_steps_to_regain"], facts["rl_steps_to_pass"]) == (0.0, None, None)


def test_it_is_back_after_its_lowest_point_and_not_before() -> None:
    facts = curve_facts(curve(0.5, 0.6, 0.1, 0.5))
    assert (facts["rl_steps_to_regain"], facts["rl_steps_to_pass"]) == (300, 100)


def test_points_while_the_critic_learns_alone_are_no_dip() -> None:
    facts = curve_facts(curve(0.5, 0.2, 0.2, 0.45, 0.6, alone=2))
    assert (facts["rl_minimum"], facts["rl_steps_to_regain"], facts["rl_steps_to_pass"]) == (0.45, 400, 400)


def test_an_actor_that_never_moved_has_no_minimum() -> None:
    facts = curve_facts(curve(0.5, 0.5, alone=1))
    wanted = ("rl_minimum", "rl_kl_at_minimum", "rl_steps_to_regain", "rl_steps_to_pass")
    assert [facts[name] for name in wanted] == [None] * 4


def test_steps_and_area_of_single_points() -> None:
    assert steps_to([], 0.5) is None
    assert steps_to(curve(0.5), 0.5) == 0
    assert area_under(curve(0.5)) == 0.5
    assert area_under(curve(0.0, 1.0)) == 0.5
    uneven = [{"rl_steps": 0, "success": 0.0}, {"rl_steps": 300, "success": 1.0}, {"rl_steps": 400, "success": 1.0}]
    assert area_under(uneven) == pytest.approx((150 + 100) / 400)


def test_median_steps_by_hand() -> None:
    """A seed that never comes to a level is the slowest of all."""
    seeds = {0: curve(0.8, 0.9, spent=50), 1: curve(0.5, 0.8, spent=70), 2: curve(0.1, 0.2, 0.3, spent=0)}
    assert median_steps(seeds, 0.8) == (100, 2)
    assert median_steps(seeds, 0.8, "env_steps") == (170, 2)
    assert median_steps(seeds, 0.9) == (math.inf, 1)
    assert median_steps(seeds, 0.1) == (0, 3)
    assert median_steps({0: seeds[0], 2: seeds[2]}, 0.8) == (math.inf, 1)  # half of them is not most


def test_a_race_worked_by_hand() -> None:
    """Seed 0: both reach 95 %. Seed 1: the second never gets beyond 60 %. Seed 2 has no rival."""
    ours = {0: curve(0.8, 0.96, spent=250), 1: curve(0.7, 0.99, spent=250), 2: curve(0.1)}
    theirs = {0: curve(0.5, 0.7, 0.94, 0.97, 0.99), 1: curve(0.5, 0.6, 0.55)}
    found = race({"reflect": ours, "bc": theirs}, "reflect", "bc")
    assert found is not None
    assert (found.seeds, found.levels) == ((0, 1), (0.95, 0.6))
    assert found.rewarded == ((100, 300), (0, 100))
    assert found.counted == ((350, 300), (250, 100))
    assert str(found) == (
        "reflect + PPO against bc + PPO, to 95 % on validation levels or else to the best that both reach (95, 60 %, "
        "seed by seed), medians: 50 against 200 steps with reward; 300 against 200 steps with everything counted "
        "(ratios 1.17, 2.50)"
    )


def test_a_race_needs_two() -> None:
    assert race({"reflect": {0: curve(0.5)}}, "reflect", "bc") is None
    assert race({"reflect": {0: curve(0.5)}, "bc": {1: curve(0.5)}}, "reflect", "bc") is None
