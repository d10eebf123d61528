"""The pipeline: same seed, same bytes; killed anywhere, it goes on to the same bytes; no reward is read before RL."""

import dataclasses
import inspect
import json
import multiprocessing
import shutil
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.managers import SyncManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO as StablePPO

from headstart.envs import collect, engine, evaluation, storage
from headstart.envs.banks import Levels, import_seeds, split_of
from headstart.envs.errors import Busy, DataError, UsageError
from headstart.envs.levels import level_hash
from headstart.envs.registry import ENVIRONMENTS
from headstart.envs.simulator import GridStates, Simulator
from headstart.envs.vector import HeadstartVecEnv
from headstart.experiments import finetune, pipeline, pool
from headstart.experiments.arms import Arm
from headstart.experiments.evidence import read_runs
from headstart.experiments.experiment import RL, Experiment
from headstart.experiments.pipeline import Run, demonstrate, fit_together, run_arm
from headstart.experiments.pool import run_all
from headstart.experiments.runlog import read_rows
from headstart.learners import PPO, BCConfig, GRPOConfig, IWMConfig, JudgeConfig, Reflection, ReflectionConfig

BC = BCConfig(updates=6, batch_size=8)
IWM = IWMConfig(updates=4, batch_size=8, horizon=2, bc=BC)
REFLECT = ReflectionConfig(
    bc=BC,
    judge=JudgeConfig(members=1, dropout=0.3, updates=52),
    rounds=1,
    levels=3,
    level_steps=6,
    states=21,
    round_updates=3,
)
TINY = Experiment(
    name="tiny",
    env_id="MiniGrid-DoorKey-5x5-v0",
    demos=2,
    horizon=40,
    history=2,
    ood={"MiniGrid-DoorKey-6x6-v0": 15},
    random_success=0.0,
    expert_success=1.0,
    arms={
        "scratch": Arm(None, memory=0, rl=True),
        "bc": Arm(BC, memory=0, rl=True),
        "iwm": Arm(IWM, memory=1, rl=False),
        "reflect": Arm(REFLECT, memory=2, rl=True),
    },
    rl=RL(
        steps=3 * 128,
        n_envs=8,
        eval_every=128,
        settings={"n_steps": 16, "batch_size": 64, "n_epochs": 2, "critic_updates": 1, "actor_warm_up": 2},
    ),
    train_levels=64,
    validation_levels=6,
    test_levels=12,
)
FETCH = dataclasses.replace(  # with instructions, and nothing out of distribution
    TINY,
    name="tiny_fetch",
    env_id="MiniGrid-Fetch-5x5-N2-v0",
    horizon=30,
    ood={},
    arms={"bc": Arm(dataclasses.replace(BC, hidden_past=0.5), memory=2, rl=False)},
)
VOLATILE = {
    "versions.json",
    "timing.json",
    "policy.zip",
}  # packages, commit, command line; time; and so are TensorBoard's events
REPORTED = {
    *("env", "arm", "seed", "episodes", "env_steps", "updates"),
    *(f"{what}_{mode}" for what in ("success", "length") for mode in ("sampled", "cool", "greedy")),
    *("ood_sampled", "ood_greedy"),
}
AFTER_RL = {
    *("rl_success_sampled", "rl_success_cool", "rl_success_greedy", "rl_ood_sampled", "rl_ood_greedy"),
    *("rl_start", "rl_minimum", "rl_end", "rl_area", "rl_kl_at_minimum", "rl_kl_end"),
    *("rl_steps_to_regain", "rl_steps_to_pass", "steps_to_50", "steps_to_80", "steps_to_95"),
}


@pytest.fixture(scope="module", autouse=True)
def levels_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADSTART_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def contents(directory: Path) -> dict[str, Any]:
    """Everything below a directory that must repeat itself: file bytes, and manifests without volatile entries."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        name = str(path.relative_to(directory))
        if path.name == storage.MANIFEST:
            found[name] = {k: v for k, v in json.loads(path.read_text())["artefacts"].items() if k not in VOLATILE}
        elif path.name not in VOLATILE and not path.name.startswith("events.out.tfevents."):
            found[name] = path.read_bytes()
    return found


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []


def run(out: Path, arm: str = "reflect", experiment: Experiment = TINY, seed: int = 0) -> dict[str, Any]:
    return run_arm(Run(experiment, arm, seed, out))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All arms, run to their end."""
    out = tmp_path_factory.mktemp("finished")
    for arm in TINY.arms:
        run(out, arm)
    return out


# ---- what a run leaves ----
def test_a_run_leaves_what_it_promises(finished: Path) -> None:
    for arm, settings in TINY.arms.items():
        directory = finished / "tiny" / arm / "seed0"
        names = {"config.json", "versions.json", "evaluation.json", "summary.json"}
        names |= (
            {"warm_start.safetensors", "warm_start.json", "metrics.csv", "timing.json"} if settings.learner else set()
        )
        after_rl = {"policy.safetensors", "policy.zip", "curve.json", "rl.csv", "evaluation_after_rl.json"}
        names |= after_rl if settings.rl else set()
        found = {p.name for p in directory.iterdir() if not p.name.startswith("events.out.tfevents.")}
        assert found == names | {storage.MANIFEST}
        assert all(storage.exists(directory / name) for name in names)
        assert list(directory.glob("events.out.tfevents.*"))
        summary = storage.load_json(directory / "summary.json", kind="summary", schema=1)
        counted = {"expert_steps", "expert_queries", "rl_steps"}
        assert summary.keys() == REPORTED | counted | (AFTER_RL if settings.rl else set())
        assert (summary["arm"], summary["seed"], summary["episodes"]) == (arm, 0, TINY.test_levels)


def test_steps_and_updates_add_up(finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Alternatives, own states and RL steps are all counted, and the curve starts at those spent before RL."""
    rows = {
        arm: storage.load_json(finished / "tiny" / arm / "seed0" / "summary.json", kind="summary", schema=1)
        for arm in TINY.arms
    }
    assert [rows[arm]["updates"] for arm in TINY.arms] == [0, 6, 4 + 6, 6 + 52 + 3]
    assert rows["scratch"]["env_steps"] == rows["bc"]["env_steps"] == 384  # demonstrations are the expert's
    assert rows["bc"]["expert_steps"] == rows["reflect"]["expert_steps"] > 0
    demos = collect.load_demos(Run(TINY, "bc", 0, finished).demos_path, history=TINY.history)
    branches = collect.branch(demos, horizon=2, rng=np.random.default_rng([0, 0xB2]))
    assert rows["iwm"]["env_steps"] == branches.env_steps
    fit = storage.load_json(finished / "tiny" / "reflect" / "seed0" / "warm_start.json", kind="fit", schema=1)
    assert rows["reflect"]["env_steps"] == fit["env_steps"] + 384
    assert 0 < fit["env_steps"] < collect.branch(demos).env_steps + 7 * REFLECT.states + 6 * REFLECT.levels
    for arm in ("scratch", "bc", "reflect"):
        curve = storage.load_json(finished / "tiny" / arm / "seed0" / "curve.json", kind="curve", schema=1)
        spent = rows[arm]["env_steps"] - 384
        assert [point["env_steps"] - spent for point in curve] == [0, 128, 256, 384]
        assert [point["rl_steps"] for point in curve] == [0, 128, 256, 384]
        logged = read_rows(finished / "tiny" / arm / "seed0" / "rl.csv", kind="metrics")
        success = [(int(r["step"]), float(r["value"])) for r in logged if r["tag"] == "eval/success_rate"]
        assert success == [(point["env_steps"], point["success"]) for point in curve]
        of_ppo = {int(r["step"]) - spent for r in logged if r["tag"].startswith(("train/", "rollout/"))}
        assert of_ppo <= {128, 256, 384}
        assert of_ppo
    moved = [
        p["actor_has_moved"]
        for p in storage.load_json(finished / "tiny" / "bc" / "seed0" / "curve.json", kind="curve", schema=1)
    ]
    assert moved == [True, False, True, True]  # the warm start itself; then the critic alone


def test_all_arms_of_a_seed_share_their_demonstrations(finished: Path) -> None:
    assert [path.name for path in (finished / "tiny" / "demos").iterdir()] == ["seed0"]
    digest = storage.digest(Run(TINY, "bc", 0, finished).demos_path)
    for arm in ("bc", "iwm", "reflect"):
        fit = storage.load_json(finished / "tiny" / arm / "seed0" / "warm_start.json", kind="fit", schema=1)
        assert fit["demos"] == digest


def test_no_level_is_in_two_roles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Demonstrations and practice, the points of a curve, and the test: each on levels of its own split."""
    roles: dict[str, set[int]] = {"trained": set(), "measured": set(), "tested": set()}

    def evaluated(levels: Levels, *arguments: Any, **options: Any) -> Any:
        assert len(levels) in (TINY.test_levels, TINY.validation_levels)
        role = "tested" if len(levels) == TINY.test_levels else "measured"
        roles[role] |= set(level_hash(levels.rows).tolist())
        return evaluation.evaluate(levels, *arguments, **options)

    def drawn(levels: Levels, *arguments: Any, **options: Any) -> HeadstartVecEnv:
        roles["trained"] |= set(level_hash(levels.rows).tolist())
        return HeadstartVecEnv(levels, *arguments, **options)

    for stage in (pipeline, finetune):
        monkeypatch.setattr(stage, "evaluate", evaluated)
    monkeypatch.setattr(finetune, "HeadstartVecEnv", drawn)
    run(tmp_path, "reflect")
    demos = collect.load_demos(Run(TINY, "reflect", 0, tmp_path).demos_path, history=TINY.history)
    roles["trained"] |= set(level_hash(import_seeds(TINY.env_id, demos.seed.tolist()).rows).tolist())
    for role, split in (("trained", "train"), ("measured", "validation"), ("tested", "test")):
        assert set(split_of(np.array(list(roles[role]), np.uint64))) == {split}
    assert not (
        roles["trained"] & roles["measured"] | roles["trained"] & roles["tested"] | roles["measured"] & roles["tested"]
    )


# ---- exams ----
def rows_of(path: Path) -> list[dict[str, Any]]:
    return storage.load_json(path, kind="evaluation", schema=2)["rows"]


IN_DISTRIBUTION = [("test", "given", mode) for mode in ("sampled", "cool", "greedy")]
ELSEWHERE = [("MiniGrid-DoorKey-6x6-v0", "given", mode) for mode in ("sampled", "greedy")]
UNTRUE = [("test", alteration, "sampled") for alteration in ("shuffled", "emptied", "swapped")]


def test_exams_in_distribution_elsewhere_and_with_untrue_instructions() -> None:
    known = pipeline.exams(TINY)
    assert [(exam.levels, exam.horizon) for exam in known] == [(TINY.env_id, 40)] * 3 + [
        ("MiniGrid-DoorKey-6x6-v0", 15)
    ] * 2
    assert [(exam.instruction, exam.mode) for exam in known] == [row[1:] for row in IN_DISTRIBUTION + ELSEWHERE]
    told = pipeline.exams(FETCH)  # whose missions differ from level to level
    assert {(exam.levels, exam.horizon) for exam in told} == {(FETCH.env_id, 30)}
    assert [(exam.instruction, exam.mode) for exam in told] == [row[1:] for row in IN_DISTRIBUTION + UNTRUE]
    both = pipeline.exams(dataclasses.replace(FETCH, ood={"MiniGrid-Fetch-6x6-N2-v0": 33}))
    assert len(both) == 3 + 2 + 3
    assert {exam.horizon for exam in both if exam.levels == "MiniGrid-Fetch-6x6-N2-v0"} == {33}


def test_every_exam_is_a_row(finished: Path, tmp_path: Path) -> None:
    summary = run(tmp_path, "bc", FETCH)
    told = rows_of(tmp_path / "tiny_fetch" / "bc" / "seed0" / "evaluation.json")
    assert [(row["levels"], row["instruction"], row["mode"]) for row in told] == IN_DISTRIBUTION + UNTRUE
    assert not [name for name in summary if name.startswith("ood")]  # there is nothing to be the mean of
    for arm, settings in TINY.arms.items():
        directory = finished / "tiny" / arm / "seed0"
        for name in ("evaluation.json", "evaluation_after_rl.json")[: 1 + settings.rl]:
            rows = rows_of(directory / name)
            assert [(row["levels"], row["instruction"], row["mode"]) for row in rows] == IN_DISTRIBUTION + ELSEWHERE
            for row in rows:
                assert row.keys() == {"levels", "instruction", "mode", "episodes", "success", "length"}
                assert row["episodes"] == TINY.test_levels
                assert 0 <= row["success"] <= 1
                assert 1 <= row["length"] <= (40 if row["levels"] == "test" else 15)


def taking(exams: list[tuple], marks: Callable[..., float]) -> tuple[Any, Callable[..., Any]]:
    """A model that tells how it is asked to act, and an evaluation that gives marks for it."""

    def evaluated(
        levels: Levels, actor: Any, *, history: int, horizon: int, rng: Any, instruction: str, deterministic: bool
    ) -> Any:
        assert deterministic == (dict(actor).get("greedy", False))
        exams.append((levels.env_id, len(levels), history, horizon, instruction, actor))
        success = marks(levels.env_id, instruction, actor)
        return np.full(len(levels), success), np.full(len(levels), 100 * success)

    return SimpleNamespace(policy=SimpleNamespace(actor=lambda **mode: tuple(mode.items()))), evaluated


def test_every_exam_is_taken_as_it_says_and_the_summary_is_of_the_right_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    marks = {(): 0.5, (("temperature", 0.5),): 0.6, (("greedy", True),): 0.7}
    ood = {"MiniGrid-Fetch-6x6-N2-v0": 33, "MiniGrid-Fetch-8x8-N3-v0": 44}
    minus = {FETCH.env_id: 0.0, "MiniGrid-Fetch-6x6-N2-v0": 0.1, "MiniGrid-Fetch-8x8-N3-v0": 0.3}
    taken: list[tuple] = []
    model, evaluated = taking(
        taken, lambda env_id, instruction, mode: marks[mode] - minus[env_id] if instruction == "given" else 0.01
    )
    monkeypatch.setattr(pipeline, "evaluate", evaluated)
    tested = Run(dataclasses.replace(FETCH, ood=ood), "bc", 0, tmp_path)
    scores = pipeline.evaluate_policy(tested, model, "evaluation.json")
    in_distribution = {"success_sampled": 0.5, "success_cool": 0.6, "success_greedy": 0.7}
    lengths = {"length_sampled": 50.0, "length_cool": 60.0, "length_greedy": 70.0}
    elsewhere = {"ood_sampled": 0.3, "ood_greedy": 0.5}
    assert scores == pytest.approx({"episodes": 12, **in_distribution, **lengths, **elsewhere})
    wanted = [(FETCH.env_id, 12, 2, 30, "given", mode) for mode in marks]
    wanted += [(env_id, 12, 2, limit, "given", mode) for env_id, limit in ood.items() for mode in list(marks)[::2]]
    wanted += [(FETCH.env_id, 12, 2, 30, alteration, ()) for alteration in ("shuffled", "emptied", "swapped")]
    assert taken == wanted
    monkeypatch.setattr(pipeline, "evaluate", never)
    assert pipeline.evaluate_policy(tested, model, "evaluation.json") == scores
    with pytest.raises(AssertionError, match="done before"):
        pipeline.evaluate_policy(tested, model, "evaluation_after_rl.json")


def test_an_experiment_says_what_the_registry_says() -> None:
    env, arms, rl = ENVIRONMENTS["fetch"], {"bc": TINY.arms["bc"]}, RL(steps=7)
    made = Experiment.of(env, arms, rl)
    assert (made.name, made.env_id, made.demos) == (env.name, env.id, env.budget)
    assert (made.horizon, made.history, made.arms, made.rl) == (env.horizon, env.history, arms, rl)
    assert list(made.ood.items()) == [(variant.id, variant.horizon) for variant in env.ood]
    assert (made.random_success, made.expert_success) == (env.random_success, env.expert_success)


# ---- same seed, same bytes ----
@pytest.mark.parametrize("arm", TINY.arms)
def test_same_seed_same_bytes(finished: Path, tmp_path: Path, arm: str) -> None:
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    torch.randn(7)
    run(tmp_path, arm)
    again, before = contents(tmp_path), contents(finished)
    assert_same(again, {name: before[name] for name in again})
    assert len(again) > 5


def test_another_seed_other_bytes(finished: Path, tmp_path: Path) -> None:
    run(tmp_path, "bc", seed=1)
    for name in ("demos/seed{}/demos.npz", "bc/seed{}/warm_start.safetensors", "bc/seed{}/policy.safetensors"):
        one, other = ((out / "tiny" / name.format(seed)).read_bytes() for out, seed in ((finished, 0), (tmp_path, 1)))
        assert one != other, name


def test_a_finished_run_is_not_repeated(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(finished)
    for owner, name in ((pipeline, "collect_demos"), (pipeline, "evaluate"), (finetune, "evaluate"), (PPO, "learn")):
        monkeypatch.setattr(owner, name, never)
    monkeypatch.setattr(pipeline, "LEARNERS", {})
    for arm in TINY.arms:
        summary = storage.load_json(finished / "tiny" / arm / "seed0" / "summary.json", kind="summary", schema=1)
        assert run(finished, arm) == summary
    assert_same(contents(finished), before)


def never(*arguments: Any, **options: Any) -> None:
    raise AssertionError("this had been done before")


class Killed(BaseException):
    """The process is gone: nothing after this line was executed."""


STEPS = [
    *("config.json", "versions.json", "demos.npz", "metrics.csv", "warm_start.safetensors", "warm_start.json"),
    *(
        "evaluation.json",
        "rl.csv",
        "curve.json",
        "policy.zip",
        "policy.safetensors",
        "evaluation_after_rl.json",
        "summary.json",
    ),
]


@pytest.mark.parametrize("name", STEPS)
def test_killed_anywhere_it_goes_on_to_the_same_bytes(
    finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    commit = storage._commit

    def killed(path: Path, *arguments: Any) -> None:
        if Path(path).name == name:
            raise Killed
        commit(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "_commit", killed)
        with pytest.raises(Killed):
            run(tmp_path)
    assert not (tmp_path / "tiny" / "reflect" / "seed0" / name).exists()
    run(tmp_path)
    again, before = contents(tmp_path), contents(finished)
    assert_same(again, {n: v for n, v in before.items() if n.startswith(("tiny/demos", "tiny/reflect"))})


def test_killed_while_it_learns_it_goes_on_to_the_same_bytes(
    finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    train = PPO.train

    def killed_later(model: PPO) -> None:
        if model.num_timesteps > 128:
            raise Killed
        train(model)

    with monkeypatch.context() as patch:
        patch.setattr(PPO, "train", killed_later)
        with pytest.raises(Killed):
            run(tmp_path)
    run(tmp_path)
    again, before = contents(tmp_path), contents(finished)
    assert_same(again, {n: v for n, v in before.items() if n.startswith(("tiny/demos", "tiny/reflect"))})


# ---- settings that change ----
def changed(**changes: Any) -> Experiment:
    return dataclasses.replace(TINY, **changes)


def with_arm(name: str, **changes: Any) -> Experiment:
    return changed(arms={**TINY.arms, name: dataclasses.replace(TINY.arms[name], **changes)})


@pytest.mark.parametrize(
    ("experiment", "told"),
    [
        (changed(horizon=41), "horizon: 40 -> 41"),
        (changed(test_levels=13), "test_levels: 12 -> 13"),
        (changed(ood={"MiniGrid-DoorKey-6x6-v0": 20}), "ood.MiniGrid-DoorKey-6x6-v0: 15 -> 20"),
        (changed(ood={}), "ood.MiniGrid-DoorKey-6x6-v0: 15 -> -"),
        (with_arm("bc", learner=dataclasses.replace(BC, mirror=False)), "mirror: True -> False"),
        (changed(env_id="MiniGrid-DoorKey-6x6-v0"), "env_id: MiniGrid-DoorKey-5x5-v0 -> MiniGrid-DoorKey-6x6-v0"),
        (changed(rl=dataclasses.replace(TINY.rl, steps=128)), "rl.steps: 384 -> 128"),
        (
            changed(rl=dataclasses.replace(TINY.rl, settings={**TINY.rl.settings, "n_epochs": 3})),
            "rl.settings.n_epochs: 2 -> 3",
        ),
        (
            changed(rl=dataclasses.replace(TINY.rl, settings={**TINY.rl.settings, "gamma": 0.9})),
            "rl.settings.gamma: 0.99 -> 0.9",
        ),
        (with_arm("bc", memory=1), "memory: 0 -> 1"),
        (with_arm("bc", learner=dataclasses.replace(BC, label_smoothing=0.25)), "label_smoothing: 0.1 -> 0.25"),
        (with_arm("bc", learner=IWM), "IWMConfig.changed_weight: - -> "),
    ],
)
def test_another_configuration_is_refused_and_the_difference_named(
    finished: Path, experiment: Experiment, told: str
) -> None:
    before = contents(finished)
    with pytest.raises(UsageError, match="another configuration") as refusal:
        run(finished, "bc", experiment)
    assert told in str(refusal.value)
    for words in (str(finished / "tiny" / "bc" / "seed0"), "--fresh", "--out"):
        assert words in str(refusal.value)
    assert str(refusal.value).count("->") == 1 or "IWM" in told
    assert_same(contents(finished), before)


def test_another_arms_settings_are_no_difference(finished: Path) -> None:
    before = contents(finished)
    run(finished, "bc", with_arm("reflect", memory=0))
    run(finished, "iwm", changed(rl=RL(steps=5)))  # it has no RL
    assert_same(contents(finished), before)


def test_an_arm_is_fine_tuned_with_its_own_settings(
    finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They are in its configuration, in no other's, and in the model; the warm start is the same."""
    models, tune = [], pipeline.fine_tune
    monkeypatch.setattr(pipeline, "fine_tune", lambda model, *a, **k: (models.append(model), tune(model, *a, **k))[1])
    plain = dataclasses.replace(TINY.arms["bc"], ppo={"plain": True})
    mixed = dataclasses.replace(TINY, arms={**TINY.arms, "bc_plain": plain})
    run(tmp_path, "bc_plain", mixed)
    run(tmp_path, "bc", mixed)
    assert [model.plain for model in models] == [True, False]
    assert (models[0].n_steps, models[0].warm_start_policy) == (16, None)
    ours, others, before = (
        contents(out / "tiny" / arm / "seed0")
        for out, arm in ((tmp_path, "bc_plain"), (tmp_path, "bc"), (finished, "bc"))
    )
    assert ours["warm_start.safetensors"] == others["warm_start.safetensors"]
    assert ours["policy.safetensors"] != others["policy.safetensors"]
    assert_same(others, before)


def test_the_labels_of_judges_are_rehearsed_after_a_kill_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They are written with the fit, and read by PPO; bc rehearses what the expert did."""
    tune, lessons = pipeline.fine_tune, []
    arms = {name: dataclasses.replace(TINY.arms[name], ppo={"rehearsal_coef": 0.1}) for name in ("bc", "reflect")}
    experiment = dataclasses.replace(TINY, arms=arms)

    def killed(*arguments: Any, **options: Any) -> None:
        raise Killed

    def listening(model: PPO, *arguments: Any, **options: Any) -> dict[str, Any]:
        facts = tune(model, *arguments, **options)
        lessons.append(model.lessons)
        return facts

    fit, fitted = Reflection.fit, []
    monkeypatch.setattr(Reflection, "fit", lambda learner, *a, **k: (fitted.append(learner), fit(learner, *a, **k))[1])
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "fine_tune", killed)
        with pytest.raises(Killed):
            run(tmp_path, "reflect", experiment)
    monkeypatch.setattr(pipeline, "fine_tune", listening)
    for arm in arms:
        run(tmp_path, arm, experiment)
    expert, own = lessons
    demos = pipeline.demonstrate(Run(experiment, "bc", 0, tmp_path))
    assert expert.target.sum(1) == pytest.approx(1.0)
    assert len(expert.target) <= len(demos)
    assert len(own.target) == REFLECT.states
    (learner,) = fitted
    for found, left in zip(own[1:], learner.lessons[1:], strict=True):
        np.testing.assert_equal(found, left)
    assert own.obs.keys() == demos.obs.keys()
    for name, value in own.obs.items():
        np.testing.assert_equal(value, learner.lessons.obs[name])
    assert not (tmp_path / "tiny" / "bc" / "seed0" / "lessons.npz").exists()


def test_lessons_that_were_not_kept_are_fitted_again(tmp_path: Path) -> None:
    """First without RL, and so without rehearsal, then with both: the fit is the same."""
    run(tmp_path, "reflect", with_arm("reflect", rl=False))
    directory = tmp_path / "tiny" / "reflect" / "seed0"
    before = (directory / "warm_start.safetensors").read_bytes()
    assert not storage.exists(directory / "lessons.npz")
    run(tmp_path, "reflect", with_arm("reflect", ppo={"rehearsal_coef": 0.1}))
    assert storage.exists(directory / "lessons.npz")
    assert (directory / "warm_start.safetensors").read_bytes() == before


def test_what_leaves_no_lessons_cannot_be_rehearsed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="iwm: leaves nothing to rehearse"):
        run(tmp_path, "iwm", with_arm("iwm", rl=True, ppo={"rehearsal_coef": 0.1}))


def test_settings_of_ppo_are_not_given_to_another_algorithm(tmp_path: Path) -> None:
    arm = dataclasses.replace(TINY.arms["bc"], ppo={"plain": True})
    other = dataclasses.replace(TINY, arms={"bc_plain": arm}, rl=RL(algorithm="grpo"))
    with pytest.raises(UsageError, match="bc_plain: has settings of PPO, but tiny fine-tunes by grpo"):
        run(tmp_path, "bc_plain", other)


def test_without_rl_first_and_with_rl_later(finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    summary = run(tmp_path, "reflect", with_arm("reflect", rl=False))
    assert summary["rl_steps"] == 0
    assert not (tmp_path / "tiny" / "reflect" / "seed0" / "policy.safetensors").exists()
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "LEARNERS", {})  # the fit is not repeated
        run(tmp_path, "reflect")
    again, before = contents(tmp_path), contents(finished)
    assert_same(again, {n: v for n, v in before.items() if n.startswith(("tiny/demos", "tiny/reflect"))})


def test_with_rl_first_and_without_rl_later(finished: Path, tmp_path: Path) -> None:
    run(tmp_path, "bc")
    before = contents(tmp_path)
    run(tmp_path, "bc", with_arm("bc", rl=False))  # what was done stays done
    assert_same(contents(tmp_path), before)
    other = dataclasses.replace(TINY.rl, steps=128)
    with pytest.raises(UsageError, match=r"rl\.steps: 384 -> 128"):
        run(tmp_path, "bc", changed(rl=other))
    run(tmp_path, "bc")
    assert_same(contents(tmp_path), before)


def test_other_demonstrations_are_refused(finished: Path, tmp_path: Path) -> None:
    run(tmp_path, "bc")
    path = Run(TINY, "bc", 0, tmp_path).demos_path
    demos = collect.collect_demos(TINY.env_id, 2, seed=7, history=2, horizon=40)
    collect.save_demos(path, demos)
    with pytest.raises(DataError, match=r"fitted to other demonstrations.*--fresh"):
        run(tmp_path, "bc")
    collect.save_demos(path, collect.collect_demos(TINY.env_id, 3, seed=0, history=2, horizon=40))
    with pytest.raises(DataError, match=r"holds 3 demonstrations.*wants 2 .*--fresh"):
        run(tmp_path, "bc")


def test_a_damaged_artefact_is_refused_by_name(tmp_path: Path) -> None:
    run(tmp_path, "iwm")
    weights = tmp_path / "tiny" / "iwm" / "seed0" / "warm_start.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(DataError, match=r"warm_start\.safetensors.*Delete it and run the same command again"):
        run(tmp_path, "iwm")
    weights.unlink()
    run(tmp_path, "iwm")  # as it says


def test_a_directory_has_one_writer(tmp_path: Path) -> None:
    with storage.lock(tmp_path / "tiny" / "bc" / "seed0"), pytest.raises(Busy, match="is writing here"):
        run(tmp_path, "bc")


# ---- no reward before RL ----
def test_reward_is_not_read_before_rl_and_success_in_evaluation_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Asked(Exception):
        pass

    def asked(*arguments: Any) -> None:
        raise Asked

    pipeline.demonstrate(Run(TINY, "bc", 0, tmp_path))  # the recorder may know that the expert has succeeded
    for owner in (engine, GridStates, Simulator):
        for name in ("reward", "succeeded", "success"):
            if hasattr(owner, name):
                monkeypatch.setattr(owner, name, asked)
    for arm in ("bc", "iwm", "reflect"):
        with pytest.raises(Asked):  # by the evaluation that follows the fit
            run(tmp_path, arm)
        directory = tmp_path / "tiny" / arm / "seed0"
        assert storage.exists(directory / "warm_start.safetensors")
        assert not (directory / "evaluation.json").exists()


def test_a_copy_of_a_run_is_named(finished: Path, tmp_path: Path) -> None:
    for copy in ("bc_old/seed0", "bc/seed0.bak"):
        shutil.copytree(finished / "tiny", tmp_path / "tiny")
        shutil.copytree(finished / "tiny" / "bc" / "seed0", tmp_path / "tiny" / copy)
        with pytest.raises(DataError, match=rf"{copy}: holds the run of bc, seed 0. If it is a copy, move it out"):
            read_runs(tmp_path / "tiny")
        shutil.rmtree(tmp_path / "tiny")


# ---- all arms ----
def test_an_arm_that_fails_does_not_stop_the_others(finished: Path, tmp_path: Path) -> None:
    """And what a process of the pool writes is what this process writes."""
    impossible = Arm(BC, memory=9, rl=False)  # it looks further back than its observations
    arms = {"impossible": impossible, "bc": TINY.arms["bc"]}
    with pytest.raises(UsageError, match="memory=9"):
        run_all(changed(arms=arms), (0,), tmp_path, device="cpu", processes=1)
    again, before = contents(tmp_path), contents(finished)
    assert "tiny/impossible/seed0/summary.json" not in again
    again = {name: value for name, value in again.items() if not name.startswith("tiny/impossible")}
    assert_same(again, {name: before[name] for name in again})
    assert "tiny/bc/seed0/summary.json" in again


@pytest.mark.slow
def test_processes_make_no_difference(finished: Path, tmp_path: Path) -> None:
    few = changed(arms={name: TINY.arms[name] for name in ("bc", "reflect")})
    summaries = run_all(few, (1, 0), tmp_path, device="cpu", processes=2)
    assert [(s["seed"], s["arm"]) for s in summaries] == [(1, "bc"), (1, "reflect"), (0, "bc"), (0, "reflect")]
    for s in summaries:
        path = tmp_path / "tiny" / s["arm"] / f"seed{s['seed']}" / "summary.json"
        assert storage.load_json(path, kind="summary", schema=1) == s
    again, before = contents(tmp_path), contents(finished)
    again = {name: value for name, value in again.items() if "seed1" not in name}
    assert_same(again, {name: before[name] for name in again})
    assert len(again) > 20


def test_arms_that_share_a_learner_share_its_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They end as they would have alone, byte for byte, and each has what its own stages want."""
    start, rehearsing = TINY.arms["reflect"], {"rehearsal_coef": 0.1}
    arms = {
        "bc": TINY.arms["bc"],
        "reflect": start,
        "plain": dataclasses.replace(start, ppo={"plain": True}),
        "rehearsal": dataclasses.replace(start, ppo=rehearsing),
        "short": dataclasses.replace(start, memory=1),  # another fit
    }
    some = changed(arms=arms)
    for name in arms:
        run(tmp_path / "alone", name, some)
    fit, fitted = Reflection.fit, []

    def watched(self: Reflection, *arguments: Any) -> Any:
        fitted.append(self)
        return fit(self, *arguments)

    monkeypatch.setattr(Reflection, "fit", watched)
    runs = [Run(some, name, 0, tmp_path / "shared") for name in arms]
    groups = pool._to_be_fitted(runs, together=False)
    assert [[one.arm for one in group] for group in groups] == [["reflect", "plain", "rehearsal"]]
    demonstrate(runs[0])
    assert fit_together(groups[0]) == [None] * 3
    for one in runs:
        assert pipeline.is_fitted(one) == (one in groups[0])
        run_arm(one)
    assert len(fitted) == 2
    assert_same(contents(tmp_path / "shared"), contents(tmp_path / "alone"))
    there = tmp_path / "shared" / "tiny"
    assert [storage.exists(there / name / "seed0" / "lessons.npz") for name in arms] == [False] * 3 + [True, False]
    for name in arms:
        assert len(list((there / name / "seed0").glob("events.out.tfevents.*.warm_start"))) == 1
    timing = storage.load_json(there / "plain" / "seed0" / "timing.json", kind="timing", schema=1)
    assert timing["of"] == "rehearsal"
    assert not pool._to_be_fitted(runs, together=False)


def test_a_fit_that_is_there_is_shared_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of an earlier command, which had fewer arms."""
    start = TINY.arms["reflect"]
    run(tmp_path, "reflect")
    some = changed(arms={"reflect": start, "plain": dataclasses.replace(start, ppo={"plain": True})})
    runs = [Run(some, name, 0, tmp_path) for name in some.arms]
    (group,) = pool._to_be_fitted(runs, together=False)
    monkeypatch.delattr(Reflection, "fit")
    assert fit_together(group) == [None, None]
    one, other = (storage.digest(one.directory / "warm_start.safetensors") for one in runs)
    assert one == other


def test_defaults_of_ppo_are_a_part_of_the_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A run that was begun with others does not go on with those of today."""
    ran = Run(TINY, "bc", 0, tmp_path)
    settings = ran.config["rl"]["settings"]
    assert settings["kl_coef"] == inspect.signature(PPO).parameters["kl_coef"].default
    assert settings | TINY.rl.settings == settings
    theirs = inspect.signature(StablePPO).parameters
    assert (settings["gamma"], settings["vf_coef"]) == (theirs["gamma"].default, theirs["vf_coef"].default)
    not_settings = {"policy", "env", "policy_kwargs", "rollout_buffer_kwargs", "rollout_buffer_class", "seed", "device"}
    silent = {"stats_window_size", "tensorboard_log", "verbose", "_init_setup_model"}
    assert theirs.keys() - settings.keys() == not_settings | silent | {"clip_range_vf", "use_sde", "sde_sample_freq"}
    pipeline._keep_config(ran)
    monkeypatch.setitem(PPO.__init__.__kwdefaults__, "kl_coef", 0.7)
    with pytest.raises(UsageError, match=r"rl\.settings\.kl_coef: 0\.1 -> 0\.7"):
        pipeline._keep_config(ran)
    grpo = Run(dataclasses.replace(TINY, rl=RL(algorithm="grpo", settings={"group": 4})), "bc", 0, tmp_path)
    assert grpo.config["rl"]["settings"] == dataclasses.asdict(GRPOConfig(group=4))


def test_versions_are_of_the_call_that_had_something_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that finds all finished leaves them alone; PPO after a run without it is something to do."""
    without = with_arm("bc", rl=False)
    told = []
    for command, experiment in (("first", without), ("second", without), ("third", TINY), ("fourth", TINY)):
        monkeypatch.setattr(sys, "argv", [command])
        run(tmp_path, "bc", experiment)
        path = tmp_path / "tiny" / "bc" / "seed0" / "versions.json"
        told.append(storage.load_json(path, kind="versions", schema=1)["command"])
    assert told == ["first", "first", "third", "third"]


def test_what_fails_in_a_shared_fit_fails_all_that_share_it(tmp_path: Path) -> None:
    impossible = Arm(BC, memory=9, rl=True)  # it looks further back than its observations
    arms = {"one": impossible, "two": dataclasses.replace(impossible, ppo={"plain": True}), "bc": TINY.arms["bc"]}
    with pytest.raises(UsageError, match="memory=9"):
        run_all(changed(arms=arms), (0,), tmp_path, device="cpu", processes=1)
    ended = [storage.exists(tmp_path / "tiny" / name / "seed0" / "summary.json") for name in arms]
    assert ended == [False, False, True]


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_seeds_that_are_fitted_as_one(tmp_path: Path, compiled: bool) -> None:
    """An interrupted run too: what it has left is kept. (Few updates: rounding grows.)"""
    short = dataclasses.replace(REFLECT, judge=JudgeConfig(members=1, dropout=0.0, updates=2), round_updates=2)
    learners = {"bc": BC, "iwm": IWM, "reflect": short}
    arms = {name: dataclasses.replace(TINY.arms[name], learner=one, rl=False) for name, one in learners.items()}
    few = changed(arms=arms)
    alone = run_all(few, (0, 1, 2), tmp_path / "alone", device="cpu", processes=2)
    out = tmp_path / "together"
    earlier = run_arm(Run(few, "iwm", 1, out))
    together = run_all(few, (0, 1, 2), out, device="cpu", processes=2, together=True, compiled=compiled)
    assert earlier in together
    for one, other in zip(alone, together, strict=True):
        facts = ("arm", "seed", "updates", "env_steps", "expert_steps", "success_greedy")
        assert [one[fact] for fact in facts] == [other[fact] for fact in facts]
        where = Path("tiny", one["arm"], f"seed{one['seed']}")
        assert {path.name for path in (tmp_path / "alone" / where).iterdir() if "events" not in path.name} == {
            path.name for path in (out / where).iterdir() if "events" not in path.name
        }
        weights, expected = (
            storage.load_weights(path / where / "warm_start.safetensors", kind="policy", schema=1)[0]
            for path in (out, tmp_path / "alone")
        )
        for name, value in weights.items():
            # on average: where a gradient is next to nothing, Adam makes a step of its rounding
            assert float((value - expected[name]).abs().mean()) < 1e-5, name
        timing = storage.load_json(out / where / "timing.json", kind="timing", schema=1)
        assert timing["beside"] == (0 if one["arm"] == "iwm" and one["seed"] == 1 else 1 if one["arm"] == "iwm" else 2)


def test_what_fails_among_seeds_that_are_fitted_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One seed's directory belongs to other settings: it is named, and the others are finished."""
    few = changed(arms={"bc": dataclasses.replace(TINY.arms["bc"], rl=False)})
    other = Run(changed(arms=few.arms, history=3), "bc", 1, tmp_path)
    pipeline._keep_config(other)
    with pytest.raises(UsageError, match="history: 3 -> 2") as failure:
        run_all(few, (0, 1, 2), tmp_path, device="cpu", processes=1, together=True)
    assert "_keep_config" in "".join(failure.value.__notes__)  # where in the worker
    assert "bc, seed 1: failed" in capsys.readouterr().out
    for seed in (0, 2):
        assert storage.exists(tmp_path / "tiny" / "bc" / f"seed{seed}" / "summary.json")


def test_demonstrations_that_are_there_are_read_while_somebody_else_holds_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As another command does that has begun at the same time. Those that are not there have one writer."""
    monkeypatch.setattr(pool, "_in_processes", lambda runs, *rest, **options: [])
    path = Run(TINY, "bc", 0, tmp_path).demos_path
    with storage.lock(path.parent), pytest.raises(Busy, match="is writing here"):
        run_all(TINY, (0,), tmp_path, device="cpu", processes=1)
    run_all(TINY, (0,), tmp_path, device="cpu", processes=1)
    assert storage.exists(path)
    with storage.lock(path.parent):
        run_all(TINY, (0,), tmp_path, device="cpu", processes=1)


def test_a_worker_whose_parent_has_been_interrupted_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It has a checkpoint to write, and nobody to report to."""
    manager = SyncManager(ctx=multiprocessing.get_context("spawn"))
    manager.start()
    monkeypatch.setattr(pool, "_reports", manager.Queue(), raising=False)
    watched = pool._reporting(Run(TINY, "bc", 0, tmp_path))
    watched.progress(0.1)
    assert pool._reports.get() == (watched.directory, 0.1)
    manager.shutdown()
    watched.progress(0.2)


def test_fresh_starts_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran: list[str] = []
    monkeypatch.setattr(pool, "_in_processes", lambda runs, *rest, **options: ran.extend(r.arm for r in runs))
    run(tmp_path, "bc")
    other = changed(horizon=30)
    with pytest.raises(DataError, match="--fresh"):
        run_all(other, (0,), tmp_path, device="cpu", processes=1)
    run_all(other, (0,), tmp_path, device="cpu", processes=1, fresh=True)
    assert ran == list(TINY.arms)
    assert {p.name for p in (tmp_path / "tiny" / "bc" / "seed0").iterdir()} <= {storage.MANIFEST}
    assert collect.load_demos(Run(TINY, "bc", 0, tmp_path).demos_path).horizon == 30
    assert run(tmp_path, "bc", other)["arm"] == "bc"


def test_fresh_deletes_all_or_nothing(tmp_path: Path) -> None:
    """Somebody is writing in one of two runs: the other, which is finished, stays."""
    few = changed(arms={name: TINY.arms[name] for name in ("bc", "iwm")})
    for arm in few.arms:
        storage.save_json(tmp_path / "tiny" / arm / "seed0" / "summary.json", {}, kind="summary", schema=1)
    code = f"from headstart.envs import storage\nwith storage.lock({str(tmp_path / 'tiny/iwm/seed0')!r}):"
    command = [sys.executable, "-c", code + " print(flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(Busy, match=f"process {other.pid}"):
            run_all(few, (0,), tmp_path, device="cpu", processes=1, fresh=True)
        other.stdin.write("\n")
    assert all(storage.exists(tmp_path / "tiny" / arm / "seed0" / "summary.json") for arm in few.arms)


@pytest.mark.parametrize("name", ["policy.zip", "rl.csv", "metrics.csv", "evaluation_after_rl.json"])
def test_a_finished_run_is_checked(finished: Path, tmp_path: Path, name: str) -> None:
    """What is damaged is named, and what is deleted is made again, byte for byte."""
    shutil.copytree(finished / "tiny", tmp_path / "tiny")
    path = tmp_path / "tiny" / "bc" / "seed0" / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DataError, match=rf"{name}: .* with the SHA-256"):
        run(tmp_path, "bc")
    path.unlink()
    run(tmp_path, "bc")
    assert storage.exists(path)
    assert_same(contents(tmp_path), contents(finished))


def test_progress_goes_from_nothing_to_all(tmp_path: Path) -> None:
    shares: list[float] = []
    progress: Callable[[float], None] = shares.append
    run_arm(Run(TINY, "reflect", 0, tmp_path, progress=progress))
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] == 1.0
    assert len(shares) > 4
