"""The study: what it reads, what it claims, what it names as missing; made of runs that nobody has run."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from headstart.envs import storage
from headstart.envs.collect import collect_demos
from headstart.envs.errors import DataError, UsageError
from headstart.experiments import pictures
from headstart.experiments.evidence import Runs
from headstart.experiments.study import CLAIMED, Study, claims, study_directories, write_study

ARMS = {"bc": 0.0, "bc_long": -0.02, "noop": 0.01, "random_judge": 0.0, "self_label": -0.01, "reflect": 0.2}
ARMS |= {"dagger": 0.4}  # each is that much better than bc


def save_run(out: Path, env: str, arm: str, seed: int, sampled: float, *, demos: int = 8, **config: Any) -> Path:
    """A finished run through the real storage; greedy is worse; half as good out of distribution."""
    full = not config.pop("other_budget", False)
    directory = out / (env if full else f"{env}-{demos}") / arm / f"seed{seed}"
    variants = {} if env == "door_key" else {f"{env}-large": 100}
    settings = {"env_id": env, "demos": demos, "horizon": 50, "validation_levels": 300, "test_levels": 1000}
    settings |= {"ood": variants, "random_success": 0.0, "expert_success": 1.0} | config
    storage.save_json(directory / "config.json", settings, kind="configuration", schema=1)
    shares = {("test", "sampled"): sampled, ("test", "cool"): sampled, ("test", "greedy"): sampled - 0.1}
    shares |= {(name, mode): sampled / 2 for name in variants for mode in ("sampled", "greedy")}
    rows = [
        {"levels": levels, "instruction": "given", "mode": mode, "episodes": 1000, "success": share, "length": 9.0}
        for (levels, mode), share in shares.items()
    ]
    storage.save_json(directory / "evaluation.json", {"rows": rows}, kind="evaluation", schema=2)
    summary = {"env": env, "arm": arm, "seed": seed, "episodes": 1000, "updates": 1500, "expert_steps": 370}
    summary |= {f"success_{mode}": shares["test", mode] for mode in ("sampled", "cool", "greedy")}
    summary |= {f"ood_{mode}": sampled / 2 for mode in ("sampled", "greedy") if variants}
    summary |= {"env_steps": 5000, "rl_steps": 0}
    storage.save_json(directory / "summary.json", summary, kind="summary", schema=1)
    return directory


def save_study(out: Path, envs: Sequence[str], seeds: int = 1) -> None:
    """A few arms, of which reflect is the best."""
    for env in envs:
        for arm, success in (("bc", 0.4), ("bc_long", 0.38), ("reflect", 0.6)):
            for seed in range(seeds):
                save_run(out, env, arm, seed, success + 0.01 * seed)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "render", lambda draw, suffix: b"")


# ---- without files, which take most of the time ----
def runs_of(arms: dict[str, list[float]], demos: int = 8) -> Runs:
    """Arms with the success of each seed, sampled; greedy is worse; half as good out of distribution."""
    summaries = [
        {"arm": arm, "seed": seed, "success_sampled": one, "success_greedy": one - 0.1}
        | {"ood_sampled": one / 2, "ood_greedy": one / 2 - 0.1}
        for arm, success in arms.items()
        for seed, one in enumerate(success)
    ]
    return Runs(summaries, [], {}, {"demos": demos}, [])


def study_of(
    gains: dict[str, float], seeds: int = 5, arms: dict[str, float] = ARMS, half: float | None = None
) -> Study:
    """Environments, each with what reflect gains over bc in it; all seeds agree but for a little noise of each arm.

    half: what reflect with half of the demonstrations gains over bc with all.
    """
    found = Study({}, {}, [])
    for row, (env, gain) in enumerate(gains.items()):
        better = arms | {"reflect": gain}
        success = {arm: [0.4 + more + noise(arm, seed, row) for seed in range(seeds)] for arm, more in better.items()}
        found.environments[env] = runs_of(success)
        if half is not None:
            found.budgets[env] = {4: runs_of({"reflect": [one + half for one in success["bc"]]}, demos=4)}
    return found


def noise(arm: str, seed: int, row: int) -> float:
    return 0.01 * ((seed + len(arm) + row) % 3)


def verdicts(found: Study) -> list[str]:
    return [claim.verdict for claim in claims(found)]


# ---- the claims ----
def test_everything_is_reached() -> None:
    found = claims(study_of(dict.fromkeys(CLAIMED, 0.2), half=0.05))
    assert {claim.verdict for claim in found} == {"reached"}
    first, mean, goal, ood, *_, half, closed = found
    assert first.text == "reflect minus the better of bc and bc_long"
    assert first.found == "interval above zero in 8 of 8 environments, below in 0"
    assert mean.found.startswith("+20.")
    assert (mean.target, goal.target) == ("target: at least +8 points", "goal: at least +15 points")
    assert ood.target == "target: at least +5 points"
    assert half.found == "in 8 of 8 environments, interval below zero in 0"
    assert closed.found.startswith("50%")
    assert str(first) == (
        "**Reached**: reflect minus the better of bc and bc_long: interval above zero in 8 of 8 environments, below in "
        "0 (target: above zero in at least 6 of 8, below in none)."
    )


def test_what_is_missed_is_missed_by_how_much() -> None:
    """Five environments gain 0.1, two nothing, one loses."""
    gains = [0.13, 0.1, 0.1, 0.1, 0.1, 0.0, 0.0, -0.1]
    found = study_of(dict(zip(CLAIMED, gains, strict=True)), arms={"bc": 0.0, "bc_long": -0.1})
    first, mean, goal, ood, *_ = claims(found)
    assert first.verdict == "missed: 1 environment too few above zero and below zero in 1 environment"
    assert first.found == f"interval above zero in 5 of 8 environments, below in 1 ({CLAIMED[7]})"
    luck = [noise("reflect", seed, row) - noise("bc", seed, row) for row in range(8) for seed in range(5)]
    by_hand = 100 * (np.mean(gains) + np.mean(luck))  # bc_long is never the better one
    assert mean.verdict == f"missed by {8 - by_hand:.1f} points"
    assert goal.verdict == f"missed by {15 - by_hand:.1f} points"
    assert ood.verdict == f"missed by {5 - by_hand / 2:.1f} points"


def test_one_environment_below_zero_is_enough_to_miss() -> None:
    gains = dict.fromkeys(CLAIMED, 0.2) | {CLAIMED[0]: -0.2}
    assert verdicts(study_of(gains))[0] == "missed: below zero in 1 environment"


def test_what_is_not_there_decides_nothing() -> None:
    found = claims(study_of(dict.fromkeys(CLAIMED[:6], 0.2), arms={"bc": 0.0, "bc_long": 0.0}))
    assert found[0].verdict == found[1].verdict == f"not decided: no interval for {CLAIMED[6]}, {CLAIMED[7]}"
    controls = [claim.verdict for claim in found if "reflect minus noop" in claim.text]
    assert controls == ["not decided: no runs of noop"], "said once, not of each target"
    assert found[-1].verdict == "not decided: no runs of dagger"


def test_what_can_no_longer_be_reached_is_missed_before_all_has_run() -> None:
    gains = dict.fromkeys(CLAIMED[:3], 0.2) | dict.fromkeys(CLAIMED[3:6], 0.0)
    assert verdicts(study_of(gains))[0] == "missed: 3 environments too few above zero"


def test_four_seeds_decide_nothing() -> None:
    found = study_of(dict.fromkeys(CLAIMED, 0.2), seeds=4, half=0.05)
    assert set(verdicts(found)) == {"not decided: no interval for 8 of 8 environments"}


def test_the_claims_are_about_the_environments_of_the_study_alone() -> None:
    with_others = study_of({**dict.fromkeys(CLAIMED, 0.2), "door_key": -0.3, "mine": -0.3}, half=0.05)
    assert claims(with_others) == claims(study_of(dict.fromkeys(CLAIMED, 0.2), half=0.05))


@pytest.mark.parametrize(
    ("more", "found", "verdict"),
    [
        (0.0, "in 8 of 8 environments, interval below zero in 0", "reached"),
        (-0.1, "in 0 of 8 environments, interval below zero in 8", "missed by 6 environments"),
    ],
)
def test_half_of_the_demonstrations(more: float, found: str, verdict: str) -> None:
    """As good as bc with all on every seed; or worse by a tenth."""
    half = claims(study_of(dict.fromkeys(CLAIMED, 0.2), half=more))[-2]
    assert (half.found, half.verdict) == (found, verdict)


def test_a_quarter_is_not_half() -> None:
    found = study_of({CLAIMED[0]: 0.2}, half=0.05)
    found.budgets[CLAIMED[0]] = {2: found.budgets[CLAIMED[0]][4]}
    half = claims(found)[-2]
    assert (half.found, half.verdict) == ("none", "not decided: no runs with half of them")


def test_half_of_the_demonstrations_are_half_of_the_same() -> None:
    """So that seed k with half is paired with seed k with all."""
    half, full = (collect_demos("MiniGrid-DoorKey-8x8-v0", n, seed=3, horizon=92) for n in (2, 4))
    assert np.array_equal(half.seed, full.seed[:2])
    assert np.array_equal(half.action, full.action[: len(half)])


# ---- the tables ----
def lines_of(out: Path) -> list[list[str]]:
    return [line[2:-2].split(" | ") for line in write_study(out).text.splitlines() if line.startswith("| ")]


def test_tables_by_hand(tmp_path: Path, undrawn: None) -> None:
    for env, bc, reflect in (("key_corridor", 0.3, 0.5), ("fetch", 0.6, 0.5)):
        for seed, more in enumerate((0.0, 0.1)):
            save_run(tmp_path, env, "bc", seed, bc, random_success=0.2)
            save_run(tmp_path, env, "bc_long", seed, 0.2, random_success=0.2)
            save_run(tmp_path, env, "reflect", seed, reflect + more, random_success=0.2)
    lines = lines_of(tmp_path)
    assert lines[:4] == [
        ["arm", "key_corridor", "fetch", "IQM, scaled", "over"],
        ["bc", "30.0", "60.0", "0.31", "2"],  # scaled by 0.2 and 1: 0.125, 0.125, 0.5, 0.5; the middle two
        ["bc_long", "20.0", "20.0", "0.00", "2"],
        ["reflect", "55.0", "55.0", "0.44", "2"],  # 0.375, 0.375, 0.5, 0.5
    ]
    assert lines[4:6] == [
        ["difference", "key_corridor", "fetch", "mean", "P", "above, neither, below"],
        # P: all four pairs of the first; of the second none, but 0.6 ties with 0.6 twice: (1 + 0.25) / 2
        ["reflect minus the better of bc and bc_long", "+25.0", "-5.0", "+10.0", "0.62", "0, 0, 0"],
    ]


def test_what_is_not_of_the_study_is_shown_and_not_counted(tmp_path: Path, undrawn: None) -> None:
    for env, reflect in (("door_key", 0.2), ("fetch", 0.6)):
        for arm, success in (("bc", 0.5), ("bc_long", 0.5), ("reflect", reflect)):
            save_run(tmp_path, env, arm, 0, success)
    lines = lines_of(tmp_path)
    assert lines[0] == ["arm", "fetch", "door_key", "IQM, scaled", "over"]
    assert lines[3] == ["reflect", "60.0", "20.0", "0.60", "1"]
    assert lines[5][1:] == ["+10.0", "-30.0", "+10.0", "1.00", "0, 0, 0"]


def test_other_numbers_of_demonstrations_by_hand(tmp_path: Path, undrawn: None) -> None:
    for seed, more in enumerate((0.0, 0.1)):
        save_run(tmp_path, "fetch", "bc", seed, 0.3)
        save_run(tmp_path, "fetch", "bc_long", seed, 0.4)
        save_run(tmp_path, "fetch", "reflect", seed, 0.4 + more, demos=4, other_budget=True)
        save_run(tmp_path, "fetch", "bc", seed, 0.1, demos=2, other_budget=True)
    assert [line for line in lines_of(tmp_path) if line[0] == "fetch"] == [
        ["fetch", "2", "8", "", "10.0", "30.0", "", ""],
        ["fetch", "4", "8", "45.0", "", "30.0", "+15.0", "+5.0"],
    ]


def test_greedy_is_marked(tmp_path: Path, undrawn: None) -> None:
    path = save_run(tmp_path, "fetch", "bc", 0, 0.5)
    summary = storage.load_json(path / "summary.json", kind="summary", schema=1)
    storage.save_json(path / "summary.json", summary | {"success_greedy": 0.7}, kind="summary", schema=1)
    assert ["bc", "70.0 g", "0.70", "1"] in lines_of(tmp_path)


def test_a_gap_that_may_be_none_has_no_share(tmp_path: Path, undrawn: None) -> None:
    for seed in range(5):
        for arm in ("bc", "bc_long", "reflect"):
            save_run(tmp_path, "fetch", arm, seed, 0.5)
        save_run(tmp_path, "fetch", "dagger", seed, 0.4 + 0.05 * seed)
    text = write_study(tmp_path).text
    assert "| share of it that reflect closes | no sure gap |" in text


# ---- what is missing ----
def test_what_is_missing_is_named(tmp_path: Path, undrawn: None) -> None:
    save_study(tmp_path, ["fetch", "synth"], seeds=3)
    save_run(tmp_path, "fetch", "bc", 3, 0.5)
    save_run(tmp_path, "fetch", "iwm", 0, 0.5)
    (tmp_path / "memory" / "bc" / "seed0").mkdir(parents=True)
    (tmp_path / "fetch" / "reflect" / "seed7").mkdir(parents=True)
    save_run(tmp_path, "multi_room", "reflect", 0, 0.5, demos=4, other_budget=True)
    text = write_study(tmp_path).text
    missing = text.partition("## What is missing")[2]
    absent = [env for env in CLAIMED if env not in ("fetch", "synth")]
    for told in (
        f"- Of the study, but not in these tables: {', '.join(absent)}.",
        f"- {tmp_path}/memory: holds no finished run (unfinished: bc/seed0).",
        "- Left out, because there are no runs with all demonstrations: multi_room-4.",
        "- Seeds differ: seeds 0-3 in fetch; seeds 0-2 in synth.",
        "- fetch: reflect lacks seed 3.",
        "- fetch: unfinished, left out: reflect/seed7.",
        "- iwm has not been run in synth.",
    ):
        assert told in missing


def test_nothing_is_missing_where_nothing_is(tmp_path: Path, undrawn: None) -> None:
    """Arms that differ in PPO only are nowhere missed, and in no table of what was reached before."""
    save_study(tmp_path, CLAIMED)
    save_run(tmp_path, "fetch", "bc_plain", 0, 0.5)
    text = write_study(tmp_path).text
    assert "missing" not in text
    assert "bc_plain" not in text


def test_nothing_to_study(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such directory"):
        write_study(tmp_path / "runs")
    with pytest.raises(UsageError, match="no finished runs"):
        write_study(tmp_path)
    (tmp_path / "fetch" / "bc" / "seed0").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"holds no finished run \(unfinished: bc/seed0\)"):
        write_study(tmp_path)
    with pytest.raises(UsageError, match="has no runs of memory"):
        write_study(tmp_path, ["memory"])
    save_run(tmp_path, "multi_room", "reflect", 0, 0.5, demos=4, other_budget=True)
    with pytest.raises(UsageError, match=r"nothing to compare them with\. Type `headstart run multi_room --out "):
        write_study(tmp_path)
    assert not (tmp_path / "study").exists()


def test_what_is_to_be_typed_says_where(tmp_path: Path) -> None:
    """As it can be typed, with the directory and whatever quotes that needs."""
    out = tmp_path / "my runs"
    end = f"--out '{out}'`"
    for names, command in (([], "headstart run ENV"), (["fetch"], "headstart run fetch")):
        with pytest.raises(UsageError, match=f"no such directory. Run `{command} {end} first"):
            write_study(out, names)
    out.mkdir()
    with pytest.raises(UsageError, match=f"no finished runs. Run `headstart run ENV {end} first"):
        write_study(out)
    with pytest.raises(UsageError, match=f"no runs of memory. Run `headstart run memory {end} first"):
        write_study(out, ["memory"])
    with pytest.raises(UsageError, match=f"no runs of fetch-4. Run `headstart run fetch --demos 4 {end} first"):
        write_study(out, ["fetch-4"])
    save_run(out, "fetch", "reflect", 0, 0.5, demos=4, other_budget=True)
    with pytest.raises(UsageError, match=f"Type `headstart run fetch {end} first"):
        write_study(out)


def test_other_demonstrations_and_nothing_else(tmp_path: Path) -> None:
    save_run(tmp_path, "fetch", "bc", 0, 0.5)
    save_run(tmp_path, "fetch", "reflect", 0, 0.5, demos=4, other_budget=True, horizon=20)
    with pytest.raises(DataError, match="fetch-4: has horizon 20, but fetch has 50"):
        write_study(tmp_path)


# ---- files ----
def test_only_what_was_asked_for(tmp_path: Path, undrawn: None) -> None:
    save_study(tmp_path, ["fetch", "synth"])
    save_run(tmp_path, "fetch", "reflect", 0, 0.5, demos=4, other_budget=True)
    assert [path.name for path in study_directories(tmp_path, ["fetch"])] == ["fetch", "fetch-4"]
    assert write_study(tmp_path, ["fetch"]).text.startswith("# The study\n\n1 environment, seed 0, 1,000 test levels")


def test_every_row_is_in_the_csv(tmp_path: Path, undrawn: None) -> None:
    save_study(tmp_path, ["fetch"], seeds=2)
    save_run(tmp_path, "fetch", "reflect", 0, 0.5, demos=4, other_budget=True)
    write_study(tmp_path)
    text = storage.load_text(tmp_path / "study" / "study.csv", kind="study", schema=1)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == (3 * 2 + 1) * 5  # arms and seeds; three modes on test levels, two on the variant
    assert {"env": "fetch", "demos": "4", "arm": "reflect", "mode": "cool", "success": "0.5"}.items() <= rows[
        -4
    ].items()
    assert {"updates": "1500", "expert_steps": "370", "env_steps": "5000"}.items() <= rows[0].items()


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for out in (tmp_path / "a", tmp_path / "b"):
        save_study(out, ["fetch", "door_key"])
        found = write_study(out)
        assert found.picture is not None
        with Image.open(found.picture) as picture:
            assert picture.width == pytest.approx(1800, rel=0.1)
        written.append({path.name: path.read_bytes() for path in (out / "study").iterdir()})
    assert written[0] == written[1]
    assert set(written[0]) == {"manifest.json", "table.md", "study.csv", "study.png", "study.svg"}


def test_without_the_headline_there_is_no_picture(tmp_path: Path) -> None:
    save_run(tmp_path, "fetch", "bc", 0, 0.5)
    assert write_study(tmp_path).picture is None
    assert not (tmp_path / "study" / "study.png").exists()
