"""What runs say: comparisons, rows and scores worked by hand."""

from typing import Any

import pytest

from headstart.envs.errors import DataError
from headstart.experiments import evidence
from headstart.experiments.evidence import TWINS, across, comparison, comparisons, gap, gap_across, scores, study_rows

RL_STEPS = 300_000
SCALE = (0.1, 0.9)  # success of random play and of the expert


def summary(arm: str, seed: int, sampled: float, greedy: float = 0.3, **more: Any) -> dict[str, Any]:
    """A summary as the pipeline leaves it, of an arm without RL."""
    base = {"env": "door_key", "arm": arm, "seed": seed, "success_sampled": sampled, "success_greedy": greedy}
    base |= {"success_cool": sampled, "episodes": 1000, "updates": 1500, "expert_steps": 370}
    return base | {"env_steps": 0, "rl_steps": 0} | more


def after_rl(start: float, minimum: float, end: float, spent: int) -> dict[str, Any]:
    facts = {"rl_success_sampled": end, "rl_success_greedy": end, "rl_start": start, "rl_minimum": minimum}
    return facts | {"rl_end": end, "rl_steps": RL_STEPS, "env_steps": RL_STEPS + spent}


# ---- an arm against its baselines ----
def test_the_better_mode_is_better_on_average() -> None:
    runs = [summary("bc", 0, sampled=0.5, greedy=0.6), summary("bc", 1, sampled=0.6, greedy=0.1)]
    assert evidence.better_mode(runs) == "sampled"
    assert evidence.better_mode(runs[:1]) == "greedy"
    assert evidence.better_mode([summary("bc", 0, sampled=0.5, greedy=0.5)]) == "sampled"


# bc is better sampled (0.54 to 0.50 on average), although not on seeds 0 and 2; bc_long and reflect are better greedy.
BC = {0: (0.50, 0.60), 1: (0.60, 0.40), 2: (0.40, 0.60), 3: (0.60, 0.50), 4: (0.60, 0.40)}
BC_LONG = {0: (0.20, 0.55), 1: (0.20, 0.50), 2: (0.20, 0.45), 3: (0.20, 0.50), 4: (0.20, 0.65)}
REFLECT = {0: (0.10, 0.65), 1: (0.10, 0.80), 2: (0.10, 0.60), 3: (0.10, 0.65), 4: (0.10, 0.90)}


def summaries_of(**arms: dict[int, tuple[float, float]]) -> list[dict[str, Any]]:
    return [summary(arm, seed, *both) for arm, seeds in arms.items() for seed, both in seeds.items()]


def test_comparison_by_hand() -> None:
    found = comparison(summaries_of(reflect=REFLECT, bc_long=BC_LONG, bc=BC))
    assert found is not None
    assert found.mode == {"reflect": "greedy", "bc": "sampled", "bc_long": "greedy"}
    # the better baseline of each seed: 0.55 (bc_long), 0.60 (bc), 0.45 (bc_long), 0.60 (bc), 0.65 (bc_long)
    assert found.difference == pytest.approx((0.10, 0.20, 0.15, 0.05, 0.25))
    assert found.mean == pytest.approx(0.15)
    assert found.interval == pytest.approx((0.051838, 0.248162), abs=1e-6)
    assert str(found) == (
        "reflect (greedy) minus the better of bc (sampled) and bc_long (greedy), seed by seed: +15.0 points, "
        "95 % paired t interval +5.2 to +24.8 (seeds 0-4)"
    )


def test_comparison_pairs_the_seeds_that_all_arms_have() -> None:
    reflect = {seed: both for seed, both in REFLECT.items() if seed != 1}
    found = comparison(summaries_of(reflect=reflect, bc_long=BC_LONG, bc=BC))
    assert found is not None
    assert found.seeds == (0, 2, 3, 4)
    assert found.interval is None
    assert "seeds 0, 2-4; an interval needs 5 seeds" in str(found)


def test_comparison_out_of_distribution_by_hand() -> None:
    """Test success says the opposite: reflect loses by 0.5 on every seed."""
    arms = {
        "reflect": ((0.1, 0.30), (0.1, 0.40)),  # better greedy
        "bc": ((0.25, 0.2), (0.10, 0.1)),  # better sampled
        "bc_long": ((0.15, 0.0), (0.15, 0.0)),
    }
    runs = [
        summary(arm, seed, sampled=0.4 if arm == "reflect" else 0.9, ood_sampled=sampled, ood_greedy=greedy)
        for arm, seeds in arms.items()
        for seed, (sampled, greedy) in enumerate(seeds)
    ]
    found = comparison(runs, measure="ood")
    assert found is not None
    assert found.difference == pytest.approx((0.30 - 0.25, 0.40 - 0.15))
    assert str(found) == (
        "reflect (greedy) minus the better of bc (sampled) and bc_long (sampled) out of distribution, seed by seed: "
        "+15.0 points (seeds 0-1; an interval needs 5 seeds)"
    )
    assert comparison(runs).difference == pytest.approx((-0.5, -0.5))  # type: ignore[union-attr]


def test_no_comparison_without_both_baselines() -> None:
    assert comparison(summaries_of(reflect=REFLECT, bc=BC)) is None
    assert comparison(summaries_of(bc=BC, bc_long=BC_LONG)) is None
    assert comparison(summaries_of(reflect={7: (0.1, 0.2)}, bc=BC, bc_long=BC_LONG)) is None


def test_no_comparison_on_what_was_not_measured() -> None:
    """An environment without variants has no success out of distribution."""
    assert comparison(summaries_of(reflect=REFLECT, bc=BC, bc_long=BC_LONG), measure="ood") is None


def test_baselines_of_other_runs() -> None:
    """As with fewer demonstrations: their bc is 0.5 on both seeds, that of the arm's own runs does not count."""
    few = summaries_of(reflect={0: (0.6, 0.1), 1: (0.3, 0.1), 2: (0.9, 0.1)}, bc=dict.fromkeys(range(3), (0.9, 0.9)))
    full = summaries_of(bc={0: (0.5, 0.1), 1: (0.5, 0.1)}, reflect={0: (0.0, 0.0), 1: (0.0, 0.0)})
    found = comparison(few, baselines=("bc",), against=full)
    assert found is not None
    assert found.difference == pytest.approx((0.1, -0.2))
    assert str(found).startswith("reflect (sampled) minus bc (sampled), seed by seed: -5.0 points")


def one_mode(**arms: list[float]) -> list[dict[str, Any]]:
    """Success of each seed, sampled; greedy none."""
    return summaries_of(**{arm: {seed: (one, 0.0) for seed, one in enumerate(all_)} for arm, all_ in arms.items()})


def test_who_is_compared_with_whom() -> None:
    """Rivals with both baselines, the headline with its controls too; the reference is no rival."""
    arms = ["scratch", "bc", "bc_long", "iwm", "star", "noop", "self_label", "reflect", "dagger", "mine"]
    arms += TWINS  # until RL they are what they are twins of
    found = comparisons(one_mode(**{arm: [0.5] for arm in arms}))
    assert [(each.arm, each.baselines) for each in found] == [
        ("iwm", ("bc", "bc_long")),
        ("star", ("bc", "bc_long")),
        ("reflect", ("bc", "bc_long")),
        ("mine", ("bc", "bc_long")),
        ("reflect", ("noop",)),
        ("reflect", ("self_label",)),
    ]
    assert comparisons(one_mode(bc=[0.5], bc_long=[0.5])) == []


# ---- the gap to those who ask the expert ----
# the better baseline: 0.4, 0.5, 0.4, 0.5, 0.4; reflect is 0.1, 0.2, 0.0, 0.1, 0.1 above it, dagger 0.2 to 0.4
GAP = {"bc": [0.4, 0.5, 0.3, 0.5, 0.4], "bc_long": [0.3, 0.2, 0.4, 0.5, 0.4]}
CLOSED, DAGGER = [0.5, 0.7, 0.4, 0.6, 0.5], [0.6, 0.9, 0.6, 0.7, 0.8]


def test_the_gap_by_hand() -> None:
    found = gap(one_mode(**GAP, reflect=CLOSED, dagger=DAGGER))
    assert found is not None
    assert found.closed.difference == pytest.approx((0.1, 0.2, 0.0, 0.1, 0.1))
    assert found.whole.difference == pytest.approx((0.2, 0.4, 0.2, 0.2, 0.4))
    assert found.share is not None
    assert found.share.value == pytest.approx(0.5 / 1.4)
    assert found.share.interval is not None
    assert 0 < found.share.interval[0] < 0.5 / 1.4 < found.share.interval[1] < 0.55
    assert str(found).startswith(
        "reflect closes +10.0 of the +28.0 points from the better of bc and bc_long to dagger: 36%, 95 % bootstrap"
    )


def test_no_share_of_a_gap_that_may_be_none() -> None:
    level = [0.6, 0.3, 0.6, 0.4, 0.5]  # 0.2, -0.2, 0.2, -0.1, 0.1 above the baselines
    found = gap(one_mode(**GAP, reflect=CLOSED, dagger=level))
    assert found is not None
    assert found.share is None
    assert "no share: the gap itself may be none" in str(found)
    few = gap(one_mode(**{arm: seeds[:4] for arm, seeds in GAP.items()}, reflect=CLOSED, dagger=DAGGER))
    assert few is not None
    assert few.share is None
    assert str(few).endswith("(seeds 0-3; a share needs 5 seeds)")


def test_the_gap_is_that_of_the_seeds_that_all_have() -> None:
    runs = one_mode(**GAP, reflect=CLOSED, dagger=DAGGER[:3])
    found = gap(runs)
    assert found is not None
    assert found.closed.seeds == found.whole.seeds == (0, 1, 2)
    assert gap(one_mode(**GAP, reflect=CLOSED)) is None


# ---- several environments ----
def against(*difference: float) -> evidence.Comparison:
    """An arm that has these differences to a baseline of 0.5."""
    seeds, mode = tuple(range(len(difference))), {"reflect": "sampled", "bc": "sampled"}
    ours = tuple(0.5 + more for more in difference)
    return evidence.Comparison("success", "reflect", ("bc",), mode, seeds, ours, (0.5,) * len(seeds))


ENVIRONMENTS = {
    "a": against(0.1, 0.2, 0.1, 0.2, 0.15),  # above zero
    "b": against(0.3, 0.3, 0.4, 0.2, 0.3),  # above zero
    "c": against(-0.3, 0.3, 0.0, 0.1, -0.1),  # neither
    "d": against(-0.1, -0.2, -0.1, -0.2, -0.15),  # below zero
    "e": against(0.1, 0.1, 0.1, 0.0, 0.2),  # above zero
}


def test_across_environments_by_hand() -> None:
    found = across(ENVIRONMENTS)
    assert found is not None
    assert (found.above, found.below, found.neither) == (["a", "b", "e"], ["d"], ["c"])
    assert found.mean.value == pytest.approx((0.15 + 0.3 + 0.0 - 0.15 + 0.1) / 5)
    assert found.mean.interval is not None
    assert -0.15 < found.mean.interval[0] < 0.08 < found.mean.interval[1] < 0.3
    # all pairs are won in a and b, none in d; in c 2 of 5 and a tie, in e 4 of 5 and a tie
    assert found.improvement.value == pytest.approx((1 + 1 + 0.5 + 0 + 0.9) / 5)
    assert across({}) is None


def test_four_environments_or_four_seeds_have_no_interval() -> None:
    few = {name: found for name, found in ENVIRONMENTS.items() if name != "c"}
    short = ENVIRONMENTS | {"c": against(0.1, 0.1, 0.1, 0.2)}
    for environments in (few, short):
        found = across(environments)
        assert found is not None
        assert found.mean.interval is found.improvement.interval is None
    assert across(short).neither == []  # type: ignore[union-attr]
    assert across(short).above == ["a", "b", "e"]  # type: ignore[union-attr]


def test_the_interquartile_mean_needs_environments_too() -> None:
    # ten runs, two cut at each end: the middle six are 0.2 and five times 0.5
    five = [[0.0, 0.1], [0.2, 0.5], [0.5, 0.5], [0.5, 0.5], [1.0, 0.9]]
    assert evidence.interquartile(five).value == pytest.approx(2.7 / 6)
    assert evidence.interquartile([[0.5] * 5] * 4).interval is None
    assert evidence.interquartile([[0.5] * 5] * 5).interval == (0.5, 0.5)


def test_the_gap_across_environments_is_a_ratio_of_means() -> None:
    wide = gap(one_mode(**GAP, reflect=CLOSED, dagger=DAGGER))  # 0.1 of 0.28
    narrow = gap(one_mode(bc=[0.5] * 5, bc_long=[0.4] * 5, reflect=[0.6] * 5, dagger=[0.52] * 5))  # 0.1 of 0.02
    assert wide is not None
    assert narrow is not None
    mean, share = gap_across({"a": wide, "b": wide, "c": wide, "d": wide, "e": narrow}) or (None, None)
    assert mean is not None
    assert share is not None
    assert mean.value == pytest.approx((4 * 0.28 + 0.02) / 5)
    assert share.value == pytest.approx(0.5 / (4 * 0.28 + 0.02))
    assert gap_across({"a": wide}) == (evidence.Estimate(pytest.approx(0.28), None), None)  # type: ignore[arg-type]
    assert gap_across({}) is None


# ---- rows ----
def test_a_row_by_hand() -> None:
    runs = [
        summary("reflect", 0, 0.8, 0.5, **after_rl(0.80, 0.75, 0.95, spent=60_000)),
        summary("reflect", 1, 0.7, 0.6, **after_rl(0.70, 0.72, 0.99, spent=62_000)),
    ]
    (row,) = study_rows(runs, SCALE)
    assert (row["arm"], row["seeds"], row["episodes"], row["better_mode"]) == ("reflect", 2, 1000, "sampled")
    assert row["success_sampled"] == pytest.approx(0.75)
    assert row["success_sampled_low"] is None
    assert row["scaled"] == pytest.approx((0.75 - 0.1) / 0.8)
    assert (row["env_steps_before_rl"], row["rl_steps"]) == (61_000, RL_STEPS)
    assert row["rl_success_sampled"] == pytest.approx(0.97)
    assert row["dip"] == pytest.approx(0.05)


def test_an_arm_without_rl_has_no_numbers_of_rl() -> None:
    (row,) = study_rows([summary("iwm", 0, 0.7, env_steps=9_400)], SCALE)
    assert (row["env_steps_before_rl"], row["rl_seeds"]) == (9_400, 0)
    assert row["rl_success_sampled"] is row["dip"] is row["rl_steps"] is None


def test_rows_are_in_the_order_of_the_table() -> None:
    arms = ["zebra", "dagger", "reflect", "another", "noop", "iwm", "bc_long", "scratch", "bc"]
    rows = study_rows([summary(arm, 0, 0.5) for arm in arms], SCALE)
    order = ["scratch", "bc", "bc_long", "iwm", "noop", "reflect", "dagger", "another", "zebra"]
    assert [row["arm"] for row in rows] == order


def test_rows_refuse_what_cannot_be_averaged() -> None:
    with pytest.raises(ValueError, match="two summaries of bc, seed 3"):
        study_rows([summary("bc", 3, 0.5), summary("bc", 3, 0.5)], SCALE)
    with pytest.raises(ValueError, match=r"bc: its seeds were tested in \[100, 1000\] episodes"):
        study_rows([summary("bc", 0, 0.5), summary("bc", 1, 0.5, episodes=100)], SCALE)


def test_scaled_by_hand() -> None:
    assert evidence.scaled(0.6, random=0.2, expert=1.0) == pytest.approx(0.5)
    assert evidence.scaled(0.1, random=0.2, expert=0.7) == pytest.approx(-0.2)
    with pytest.raises(DataError, match=r"random play \(0.9\) is not below the expert's \(0.9\)"):
        evidence.scaled(0.5, random=0.9, expert=0.9)


def test_the_scale_is_that_of_the_better_mode_and_so_are_its_bounds() -> None:
    """Greedy success is 0 or 1: the bounds of its mean, 0 and 0.2 + 2.776445 * 0.2, are scaled like the mean."""
    (row,) = study_rows([summary("bc", seed, 0.05, value) for seed, value in enumerate([0, 0, 1, 0, 0])], (0.1, 0.6))
    assert (row["better_mode"], row["scaled"]) == ("greedy", pytest.approx(0.2))
    assert (row["scaled_low"], row["scaled_high"]) == pytest.approx((-0.2, 1.310578))


# ---- scores ----
def rows_of(arm: str, levels: str, mode: str, *success: float, after_rl: int = 0, instruction: str = "given") -> list:
    """A row for each seed."""
    which = {"arm": arm, "after_rl": after_rl, "levels": levels, "instruction": instruction, "mode": mode}
    return [{**which, "seed": seed, "success": value} for seed, value in enumerate(success)]


EVALUATION = [
    *rows_of("reflect", "A", "sampled", 0.6, 0.4, after_rl=1),
    *rows_of("reflect", "A", "greedy", 0.1, 0.1, after_rl=1),
    *rows_of("reflect", "B", "sampled", 0.2, 0.2, after_rl=1),
    *rows_of("reflect", "B", "greedy", 0.1, 0.1, after_rl=1),
    *rows_of("reflect", "A", "sampled", 0.9, 0.9),  # better on A alone, worse on both
    *rows_of("reflect", "A", "greedy", 0.5, 0.7),
    *rows_of("reflect", "B", "sampled", 0.0, 0.0),
    *rows_of("reflect", "B", "greedy", 0.5, 0.4),
    *rows_of("bc", "A", "sampled", 0.3, 0.5),
    *rows_of("bc", "A", "greedy", 0.2, 0.2),
    *rows_of("bc", "B", "sampled", 0.1, 0.2),
    *rows_of("bc", "B", "greedy", 0.2, 0.2),
    *rows_of("bc", "A", "cool", 1.0, 1.0),
    *rows_of("bc", "A", "sampled", 1.0, 1.0, instruction="emptied"),
]


def test_scores_by_hand() -> None:
    found = {(score.policy, score.levels): (score.mode, *score.success) for score in scores(EVALUATION, ["A", "B"])}
    assert list(found) == [
        (policy, levels) for policy in ("bc", "reflect", "reflect + PPO") for levels in ("A", "B", "mean")
    ]
    assert found["bc", "A"] == ("sampled", 0.3, 0.5)  # sampled: (0.4 + 0.15) / 2, greedy: 0.2
    assert found["bc", "mean"] == ("sampled", pytest.approx(0.2), pytest.approx(0.35))
    assert found["reflect", "A"] == ("greedy", 0.5, 0.7)  # sampled: 0.45, greedy: 0.525
    assert found["reflect", "mean"] == ("greedy", pytest.approx(0.5), pytest.approx(0.55))
    assert found["reflect + PPO", "B"] == ("sampled", 0.2, 0.2)


def test_one_kind_of_levels_has_no_mean_of_several() -> None:
    found = scores(EVALUATION, ["A"])
    assert [(score.policy, score.levels, score.mode) for score in found] == [
        ("bc", "A", "sampled"),
        ("reflect", "A", "sampled"),
        ("reflect + PPO", "A", "sampled"),
    ]
    assert found[0].mean == pytest.approx(0.4)
    assert found[0].interval is None  # two seeds


def test_scores_of_another_instruction() -> None:
    (score,) = scores(EVALUATION, ["A"], instruction="emptied", modes=("sampled",))
    assert (score.policy, score.success) == ("bc", (1.0, 1.0))


def test_ppo_from_scratch_has_a_name() -> None:
    evaluation = rows_of("scratch", "A", "sampled", 0.3) + rows_of("scratch", "A", "sampled", 0.4, after_rl=1)
    assert [score.policy for score in scores(evaluation, ["A"], modes=("sampled",))] == ["scratch", "PPO from scratch"]


def test_seeds_in_words() -> None:
    assert evidence.in_words([3]) == "seed 3"
    assert evidence.in_words([5, 0, 1, 2]) == "seeds 0-2, 5"
