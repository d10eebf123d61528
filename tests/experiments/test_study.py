"""The study: what it reads, what it claims, what it names as missing; made of runs that nobody has run."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from headstart.envs import storage
from headstart.envs.collect import collect_demos
from headstart.envs.errors import DataError, UsageError
from headstart.experiments import pictures
from headstart.experiments.study import CLAIMED, Claim, claims, study, study_directories, write_study

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


def save_study(out: Path, envs: dict[str, float], seeds: int = 5, arms: dict[str, float] = ARMS) -> None:
    """Environments, each with what reflect gains over bc in it; seeds differ by a hundredth."""
    for row, (env, gain) in enumerate(envs.items()):
        for arm, better in arms.items():
            for seed in range(seeds):
                more = gain if arm == "reflect" else better
                noise = 0.01 * ((seed + len(arm) + row) % 3)
                save_run(out, env, arm, seed, round(0.4 + 0.01 * seed + more + noise, 4))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "render", lambda draw, suffix: b"")


def claims_of(out: Path) -> list[Claim]:
    return claims(study(study_directories(out)))


def verdicts(out: Path) -> list[str]:
    return [claim.verdict for claim in claims_of(out)]


# ---- the claims ----
def test_everything_is_reached(tmp_path: Path) -> None:
    save_study(tmp_path, dict.fromkeys(CLAIMED, 0.2))
    for env in CLAIMED:
        for seed in range(5):
            save_run(tmp_path, env, "reflect", seed, 0.55, demos=4, other_budget=True)
    assert set(verdicts(tmp_path)) == {"reached"}
    first, mean, goal, ood, *_, half, closed = claims_of(tmp_path)
    assert first.text == "reflect minus the better of bc and bc_long"
    assert first.found == "interval above zero in 8 of 8 environments, below in 0"
    assert mean.found.startswith("+20.")
    assert (mean.target, goal.target, ood.target) == (
        *("at least +8 points", "goal at least +15 points"),
        "at least +5 points",
    )
    assert half.found == "in 8 of 8 environments (the interval is below zero in 0)"
    assert closed.found.startswith("50%")


def test_what_is_missed_is_missed_by_how_much(tmp_path: Path) -> None:
    """Five environments gain 0.1, two nothing, one loses: the mean is 0.05 above bc."""
    gains = [0.1, 0.1, 0.1, 0.1, 0.1, 0.0, 0.0, -0.1]
    save_study(tmp_path, dict(zip(CLAIMED, gains, strict=True)), arms={"bc": 0.0, "bc_long": -0.1, "reflect": 0.0})
    first, mean, goal, ood, *_ = claims_of(tmp_path)
    assert first.verdict == "missed: 1 environment too few above zero and below zero in 1 environment"
    assert first.found == f"interval above zero in 5 of 8 environments, below in 1 ({CLAIMED[7]})"
    by_hand = 100 * np.mean([gains[row] + noise(row) for row in range(8)])
    assert mean.verdict == f"missed by {8 - by_hand:.1f} points"
    assert goal.verdict == f"missed by {15 - by_hand:.1f} points"
    assert ood.verdict == f"missed by {5 - by_hand / 2:.1f} points"


def noise(row: int) -> float:
    """Of reflect over bc in `save_study`: names of seven and of two letters, five seeds."""
    return float(np.mean([0.01 * ((seed + 7 + row) % 3 - (seed + 2 + row) % 3) for seed in range(5)]))


def test_what_is_not_there_decides_nothing(tmp_path: Path) -> None:
    save_study(tmp_path, dict.fromkeys(CLAIMED[:6], 0.2), arms={"bc": 0.0, "bc_long": 0.0, "reflect": 0.0})
    first, mean, *_ = claims_of(tmp_path)
    assert first.verdict == mean.verdict == f"not decided: no interval for {CLAIMED[6]}, {CLAIMED[7]}"
    by_text = {claim.text: claim.verdict for claim in claims_of(tmp_path)}
    assert by_text["reflect minus noop"].startswith("not decided")
    assert "no runs of dagger" in claims_of(tmp_path)[-1].verdict


def test_what_can_no_longer_be_reached_is_missed_before_all_has_run(tmp_path: Path) -> None:
    save_study(tmp_path, dict.fromkeys(CLAIMED[:6], 0.2) | dict.fromkeys(CLAIMED[3:6], 0.0))
    assert claims_of(tmp_path)[0].verdict == "missed: 3 environments too few above zero"


def test_four_seeds_decide_nothing(tmp_path: Path) -> None:
    save_study(tmp_path, dict.fromkeys(CLAIMED, 0.2), seeds=4)
    assert set(verdicts(tmp_path)) == {f"not decided: no interval for {', '.join(CLAIMED)}"}


def test_the_claims_are_about_the_environments_of_the_study_alone(tmp_path: Path, undrawn: None) -> None:
    save_study(tmp_path, {**dict.fromkeys(CLAIMED, 0.2), "door_key": -0.3, "mine": -0.3})
    assert claims_of(tmp_path)[0].verdict == "reached"
    row = next(line for line in lines_of(tmp_path) if line[0] == "reflect minus noop")
    assert row[1].startswith("-3")  # door_key: shown, and not counted
    assert row[-1] == "8, 0, 0"


def test_half_of_the_demonstrations_by_hand(tmp_path: Path, undrawn: None) -> None:
    save_study(tmp_path, {CLAIMED[0]: 0.2})
    for seed in range(5):
        full = storage.load_json(
            tmp_path / CLAIMED[0] / "bc" / f"seed{seed}" / "summary.json", kind="summary", schema=1
        )
        save_run(tmp_path, CLAIMED[0], "reflect", seed, full["success_sampled"] + 0.05, demos=4, other_budget=True)
        save_run(tmp_path, CLAIMED[0], "reflect", seed, 0.3, demos=2, other_budget=True)
    half = claims_of(tmp_path)[-2]
    assert half.found == "in 1 of 8 environments (the interval is below zero in 0)"
    assert half.verdict == f"not decided: no interval for {', '.join(CLAIMED[1:])}"
    quarter, half_row = [line for line in lines_of(tmp_path) if line[0] == CLAIMED[0]]
    assert half_row[1:3] == ["4", "8"]
    assert half_row[6] == "+5.0 (+5.0 to +5.0)"
    assert quarter[1:4] == ["2", "8", "30.0 (30.0 to 30.0)"]
    assert quarter[6].startswith("-1")


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
    save_study(tmp_path, {"fetch": 0.2, "synth": 0.2}, seeds=3)
    save_run(tmp_path, "fetch", "bc", 3, 0.5)
    save_run(tmp_path, "fetch", "iwm", 0, 0.5)
    (tmp_path / "memory" / "bc" / "seed0").mkdir(parents=True)
    (tmp_path / "fetch" / "reflect" / "seed7").mkdir(parents=True)
    save_run(tmp_path, "multi_room", "reflect", 0, 0.5, demos=4, other_budget=True)
    text = write_study(tmp_path).text
    missing = text.partition("## What is missing")[2]
    absent = [env for env in CLAIMED if env not in ("fetch", "synth")]
    for told in (
        f"- No finished runs of {', '.join(absent)}.",
        f"- {tmp_path}/memory: holds no finished run (unfinished: bc/seed0).",
        "- Left out, because there are no runs with all demonstrations: multi_room-4.",
        "- Seeds differ: seeds 0-3 in fetch; seeds 0-2 in synth.",
        "- fetch: reflect lacks seed 3.",
        "- fetch: unfinished, left out: reflect/seed7.",
        "- iwm has not been run in synth.",
    ):
        assert told in missing


def test_nothing_is_missing_where_nothing_is(tmp_path: Path, undrawn: None) -> None:
    save_study(tmp_path, dict.fromkeys(CLAIMED, 0.2), seeds=1)
    assert "missing" not in write_study(tmp_path).text


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
    assert not (tmp_path / "study").exists()


def test_other_demonstrations_and_nothing_else(tmp_path: Path) -> None:
    save_run(tmp_path, "fetch", "bc", 0, 0.5)
    save_run(tmp_path, "fetch", "reflect", 0, 0.5, demos=4, other_budget=True, horizon=20)
    with pytest.raises(DataError, match="fetch-4: has horizon 20, but fetch has 50"):
        write_study(tmp_path)


# ---- files ----
def test_only_what_was_asked_for(tmp_path: Path, undrawn: None) -> None:
    save_study(tmp_path, {"fetch": 0.2, "synth": 0.2}, seeds=1)
    save_run(tmp_path, "fetch", "reflect", 0, 0.5, demos=4, other_budget=True)
    assert [path.name for path in study_directories(tmp_path, ["fetch"])] == ["fetch", "fetch-4"]
    assert write_study(tmp_path, ["fetch"]).text.startswith("# The study\n\n1 environment, seed 0, 1,000 test levels")


def test_every_row_is_in_the_csv(tmp_path: Path, undrawn: None) -> None:
    save_study(tmp_path, {"fetch": 0.2}, seeds=2)
    save_run(tmp_path, "fetch", "reflect", 0, 0.5, demos=4, other_budget=True)
    write_study(tmp_path)
    text = storage.load_text(tmp_path / "study" / "study.csv", kind="study", schema=1)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == (7 * 2 + 1) * 5  # arms and seeds; three modes on test levels, two on the variant
    assert {"env": "fetch", "demos": "4", "arm": "reflect", "mode": "cool", "success": "0.5"}.items() <= rows[
        -4
    ].items()
    assert {"updates": "1500", "expert_steps": "370", "env_steps": "5000"}.items() <= rows[0].items()


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for out in (tmp_path / "a", tmp_path / "b"):
        save_study(out, {**dict.fromkeys(CLAIMED, 0.2), "door_key": 0.1}, seeds=5)
        found = write_study(out)
        assert found.picture is not None
        with Image.open(found.picture) as picture:
            assert picture.width == 1800
        written.append({path.name: path.read_bytes() for path in (out / "study").iterdir()})
    assert written[0] == written[1]
    assert set(written[0]) == {"manifest.json", "table.md", "study.csv", "study.png", "study.svg"}


def test_without_the_headline_there_is_no_picture(tmp_path: Path) -> None:
    save_run(tmp_path, "fetch", "bc", 0, 0.5)
    assert write_study(tmp_path).picture is None
    assert not (tmp_path / "study" / "study.png").exists()
