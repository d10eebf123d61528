"""The pictures of a report: what is drawn where, legible without colour, and no word outside."""

from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from headstart.envs.registry import ENVIRONMENTS
from headstart.experiments import door_key, pictures
from headstart.experiments.evidence import TEST, Comparison, Runs, scores

RL_STEPS = 300_000
VARIANTS = ("BabyAI-Synth-v0", "BabyAI-SynthLoc-v0", "Headstart-BlockedUnlockPickup-S8-v0")


def runs_of(
    arms: dict[str, tuple[float, float | None]],
    seeds: int = 2,
    spent: int = 0,
    **facts: Any,
) -> Runs:
    """Arms as name -> success of the warm start, and after PPO or None; each seed is 0.01 better than the last.

    reflect has spent ``spent`` steps before RL, and 1,000 more with each seed. A variant costs 0.1.
    """
    known = {"env_id": "MiniGrid-DoorKey-8x8-v0", "demos": 16, "validation_levels": 300, "test_levels": 1000}
    known |= {"random_success": 0.05, "expert_success": 0.98, "variants": dict.fromkeys(VARIANTS, 1000)}
    summaries, evaluation, curves = [], [], {}
    for arm, (start, end) in arms.items():
        for seed in range(seeds):
            steps = spent + 1000 * seed if arm == "reflect" else 0
            rl_steps = 0 if end is None else RL_STEPS
            success = start + 0.01 * seed
            summaries.append(
                {"arm": arm, "seed": seed, "env_steps": steps + rl_steps, "rl_steps": rl_steps}
                | {"success_sampled": success, "success_greedy": 0.0}
            )
            if end is not None:
                at = np.linspace(0, RL_STEPS, 16).astype(int).tolist()
                points = [
                    {"env_steps": steps + step, "rl_steps": step, "success": success + (end - start) * step / RL_STEPS}
                    for step in at
                ]
                curves.setdefault(arm, {})[seed] = points
            for after_rl, share in enumerate((success,) if end is None else (success, end)):
                for i, levels in enumerate((TEST, *(known | facts)["variants"])):
                    which = {"arm": arm, "seed": seed, "after_rl": after_rl, "levels": levels, "instruction": "given"}
                    evaluation += [
                        which | {"mode": mode, "success": share - 0.1 * i if mode == "sampled" else 0.0}
                        for mode in ("sampled", "greedy")
                    ]
    return Runs(summaries, evaluation, curves, known | facts, [])


ARMS = {"scratch": (0.02, 0.1), "bc": (0.6, 0.9), "bc_long": (0.65, None), "reflect": (0.8, 0.95)}


def draw_ood(runs: Runs) -> Figure:
    panels = {levels: scores(runs.evaluation, [levels]) for levels in (TEST, *runs.facts["variants"])}
    return pictures.draw_ood(runs, panels)


# ---- success against steps ----
def test_curves_start_at_the_steps_spent_before_rl() -> None:
    (axes,) = pictures.draw(runs_of(ARMS, spent=61_000)).axes
    starts = {line.get_xydata()[0][0] for line in axes.lines if len(line.get_xydata()) == 16}  # type: ignore[arg-type]
    assert starts == {0, 61_500}  # reflect: the mean of its two seeds
    assert len(axes.collections) == 3  # a band for each


@pytest.mark.parametrize("bc", [(0.85, 0.9), (0.8, 0.6), (0.7, 0.9)])
def test_the_steps_before_rl_are_said_where_no_curve_is(bc: tuple[float, float]) -> None:
    """A curve above the line of reflect, below it, or across it."""
    (axes,) = pictures.draw(runs_of({"bc": bc, "reflect": (0.8, 0.95)}, seeds=1, spent=100_000)).axes
    (words,) = (text for text in axes.texts if "no reward" in text.get_text())
    left, low = words.get_position()
    assert 0 <= low <= 0.925
    curves = (np.asarray(line.get_xydata()) for line in axes.lines)
    x, y = next(curve for curve in curves if len(curve) == 16 and curve[0, 0] == 0).T
    under = np.interp(np.linspace(left, left + 0.14 * axes.get_xlim()[1]), x, y)
    assert not ((low < under) & (under < low + 0.075)).any()


def test_seeds_whose_points_lie_elsewhere_are_interpolated_over_what_all_have() -> None:
    """As GRPO's. One seed ends at 300, the other at 400; both climb by 0.1 in 100 steps, the second from 0.2."""

    def seed(start: float, *at: int) -> list[dict[str, Any]]:
        return [{"rl_steps": step, "env_steps": 1000 + step, "success": start + step / 1000} for step in at]

    runs = runs_of({"bc": (0.6, 0.9)})
    runs.curves["bc"] = {0: seed(0.0, 0, 100, 300), 1: seed(0.2, 0, 150, 400)}
    (axes,) = pictures.draw(runs).axes
    curve = next(line for line in axes.lines if len(line.get_xydata()) == 4)  # type: ignore[arg-type]
    assert curve.get_xdata() == pytest.approx([1000, 1100, 1150, 1300])
    assert curve.get_ydata() == pytest.approx([0.1, 0.2, 0.25, 0.4])
    (band,) = axes.collections
    assert band.get_paths()[0].get_extents().bounds == pytest.approx((1000, 0.0, 300, 0.5))


def test_one_seed_has_no_band() -> None:
    (axes,) = pictures.draw(runs_of(ARMS, seeds=1)).axes
    assert len(axes.collections) == 0


def test_random_play_and_the_expert_bound_the_picture() -> None:
    (axes,) = pictures.draw(runs_of(ARMS)).axes
    assert {"random play  5%", "expert  98%"} <= {text.get_text() for text in axes.texts}
    levels = {tuple(np.unique(line.get_ydata())) for line in axes.lines}
    assert {(0.05,), (0.98,)} <= levels


def test_a_picture_without_rl() -> None:
    figure = pictures.draw(runs_of({"bc": (0.6, None), "reflect": (0.8, None)}, seeds=1))
    assert "PPO" not in " ".join(text.get_text() for text in figure.texts)
    words = [text.get_text() for text in figure.axes[0].texts]
    assert words == ["bc, no RL  60%", "reflect, no RL  80%", "random play  5%", "expert  98%"]


def test_arms_differ_in_more_than_colour() -> None:
    known, others = list(pictures.LOOKS.values()), list(pictures.OTHER_LOOKS)
    for part in ("colour", "dash", "marker"):
        assert len({getattr(look, part) for look in known}) == len(known)
        assert not {getattr(look, part) for look in known} & {getattr(look, part) for look in others}
    assert len({(look.dash, look.marker) for look in others}) == len(others) == 28  # as the docstring says


def test_all_arms_of_an_experiment_can_be_told_apart() -> None:
    """And what comes after them begins again, rather than to fail."""
    runs = runs_of(dict.fromkeys(door_key.EXPERIMENT.arms, (0.5, None)), seeds=1)
    looks = pictures._looks(runs)
    assert len({(looks[arm].dash, looks[arm].marker) for arm in runs.arms}) == len(runs.arms)
    more = pictures._looks(runs_of({f"mine{i:02}": (0.5, None) for i in range(29)}, seeds=1))
    assert more["mine28"] == more["mine00"] != more["mine27"]


def test_labels_of_many_arms_do_not_overlap() -> None:
    figure = pictures.draw(runs_of(dict.fromkeys(door_key.EXPERIMENT.arms, (0.5, None)), seeds=1))
    (axes,) = figure.axes
    points = 72 * axes.get_position().height * figure.get_figheight()
    at = sorted(points * label.xyann[1] for label in axes.texts if isinstance(label, Annotation))
    assert len(at) == len(door_key.EXPERIMENT.arms) + 2
    assert min(np.diff(at)) == pytest.approx(13.86, abs=0.01)  # as where there are few; letters have 10.3 points


# ---- out of distribution ----
def test_dots_lie_at_the_mean_and_rings_at_the_success_in_distribution() -> None:
    figure = draw_ood(runs_of({"bc": (0.5, None), "reflect": (0.7, 0.9)}))
    test, first, *_ = figure.axes
    assert [label.get_text() for label in test.get_yticklabels()] == ["bc", "reflect", "reflect + PPO"]
    assert [text.get_text() for text in first.texts] == ["40%", "60%", "80%"]  # a variant costs 0.1
    rings = [line.get_xydata().tolist() for line in first.lines if line.get_color() == "white"]  # type: ignore[union-attr]
    heights = test.get_yticks().tolist()
    assert heights == sorted(heights, reverse=True)
    expected = zip((0.505, 0.705, 0.9), heights, strict=True)  # each seed is 0.01 better than the last
    assert rings == [[[pytest.approx(at), pytest.approx(height)]] for at, height in expected]
    assert not [line for line in test.lines if line.get_color() == "white"]


@pytest.mark.parametrize("seeds", [4, 5])
def test_an_interval_is_drawn_from_five_seeds_on(seeds: int) -> None:
    figure = draw_ood(runs_of({"bc": (0.5, None)}, seeds=seeds, variants={VARIANTS[0]: 1000}))
    lines = [line.get_xydata() for line in figure.axes[0].lines]
    assert [len(points) for points in lines] == ([seeds, 2, 1] if seeds == 5 else [seeds, 1])  # type: ignore[arg-type]
    assert ("interval" in figure.texts[-1].get_text()) == (seeds == 5)


# ---- the study ----
def gains_of(environments: dict[str, tuple[float, ...]]) -> dict[str, Comparison]:
    """Environments with the gain of every seed over a baseline of 0.5."""
    mode = {"reflect": "sampled", "bc": "sampled", "bc_long": "sampled"}
    return {
        name: Comparison(
            *("success", "reflect", ("bc", "bc_long"), mode, tuple(range(len(gains)))),
            ours=tuple(0.5 + gain for gain in gains),
            theirs=(0.5,) * len(gains),
        )
        for name, gains in environments.items()
    }


SURE, UNSURE, FEW = (0.1, 0.12, 0.08, 0.1, 0.1), (0.3, -0.3, 0.1, -0.1, 0.1), (0.2, 0.3)


def test_gains_and_their_mean_by_hand() -> None:
    panels = {"in distribution": gains_of({"fetch": SURE, "synth": UNSURE, "memory": FEW, "door_key": (0.4,) * 5})}
    (axes,) = pictures.draw_study(panels, claimed=["fetch", "synth", "memory"]).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["fetch", "synth", "memory", "door_key", "mean"]
    diamonds = [line for line in axes.lines if line.get_marker() == "D"]
    at = [float(line.get_xdata()[0]) for line in diamonds]  # type: ignore[index]
    assert at == pytest.approx([10, 2, 25, 40, (10 + 2 + 25) / 3])
    # filled where it is sure; neither memory, of two seeds, nor the mean, of three environments, has an interval
    assert [line.get_color() != "white" for line in diamonds] == [True, False, False, True, False]
    assert len([line for line in axes.lines if line.get_marker() == "|"]) == 3
    assert [text.get_text() for text in axes.texts] == ["+10.0", "+2.0", "+25.0", "+40.0", "+12.3"]


def test_seeds_are_dots() -> None:
    (axes,) = pictures.draw_study({"in distribution": gains_of({"fetch": SURE})}, claimed=[]).axes
    (dots,) = [line for line in axes.lines if line.get_marker() == "o"]
    assert dots.get_xdata() == pytest.approx([100 * gain for gain in SURE])
    assert not [text for text in axes.texts if text.get_fontweight() == "bold"][1:]  # no mean of no environment


def draw_study(runs: Runs) -> Figure:
    """All environments, some with variants; whatever ``runs`` are."""
    gains = dict.fromkeys(ENVIRONMENTS, (-1.0, 1.0, 1.0, 1.0, 1.0))
    panels = {"in distribution": gains_of(gains), "out of distribution": gains_of({"fetch": SURE, "synth": UNSURE})}
    return pictures.draw_study(panels, claimed=list(gains))


# ---- all ----
LONGEST = {"env_id": "BabyAI-PutNextS7N4Carrying-v0", "demos": 1024, "random_success": 0.0, "expert_success": 1.0}
MANY: dict[str, tuple[float, float | None]] = {}
MANY |= dict.fromkeys(("scratch", "bc", "reflect", "iwm+reflect"), (1.0, 1.0))
MANY |= dict.fromkeys(("bc_long", "iwm", "self_label"), (1.0, None))


@pytest.mark.parametrize("draw", [pictures.draw, draw_ood, draw_study])
def test_all_words_fit_into_the_picture(draw: Any) -> None:
    figure: Figure = draw(runs_of(MANY, seeds=1, spent=61_000, **LONGEST))
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)  # tick labels have their places only then
    words = [*figure.texts, *(text for axes in figure.axes for text in (*axes.texts, axes.title, axes._left_title))]  # type: ignore[attr-defined]
    words += [label for label in figure.axes[0].get_yticklabels() if label.get_visible()]
    boxes = [text.get_window_extent(renderer) for text in words]
    assert len(words) > 10
    for text, box in zip(words, boxes, strict=True):
        assert figure.bbox.fully_containsx(box.x0), text.get_text()
        assert figure.bbox.fully_containsx(box.x1), text.get_text()
        assert figure.bbox.fully_containsy(box.y1), text.get_text()


def test_labels_are_spread_by_hand() -> None:
    assert pictures.spread([0.2, 0.8], gap=0.1, low=0, high=1) == pytest.approx([0.2, 0.8])
    assert pictures.spread([0.52, 0.5], gap=0.1, low=0, high=1) == pytest.approx([0.56, 0.46])
    assert pictures.spread([1.0, 1.0, 1.0], gap=0.1, low=0, high=1) == pytest.approx([0.8, 0.9, 1.0])
    assert pictures.spread([0.5] * 5, gap=0.5, low=0, high=1) == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert pictures.spread([], gap=0.1, low=0, high=1) == []
