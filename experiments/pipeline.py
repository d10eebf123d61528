"""One experiment from nothing to a table: levels, demonstrations, branches, warm starts, evaluation, PPO, report.

Stages talk through files under ``runs/<name>/``. A stage is a function of its configuration, its inputs and the
seed; its artefact carries a key made of these, and the same command again skips every stage whose artefact is there.

    runs/door_key/demos/seed0/demos.npz
    runs/door_key/<arm>/seed0/   config.json        everything that was decided, before anything ran
                                 versions.json      packages, commit, command that have made it (volatile)
                                 timing.json        seconds that the fit has taken, and whose it was (volatile)
                                 warm_start.*       weights (safetensors) and what the fit has cost (JSON)
                                 metrics.csv        losses of the fit
                                 lessons.npz        own states and their labels, where PPO is to rehearse them
                                 evaluation.json    success on test levels, out of distribution, with untrue missions
                                 policy.*           weights after PPO, and a zip for PPO.load (with dates: volatile)
                                 curve.json, rl.csv the curve, and all that PPO says
                                 checkpoint*.npz    where PPO is, while it is under way
                                 summary.json       the row of the table
                                 events.out.*       TensorBoard (a view of the CSV files)
"""

import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headstart.envs import storage
from headstart.envs.banks import bank
from headstart.envs.collect import branch, collect_demos, load_demos, save_demos
from headstart.envs.errors import DataError, UsageError
from headstart.envs.evaluation import evaluate
from headstart.envs.transitions import Branches, Demos
from headstart.experiments.arms import LearnerConfig
from headstart.experiments.experiment import MODES, Experiment, exams, seconds
from headstart.experiments.finetune import RL, fine_tune, load_policy, new_model, save_policy
from headstart.experiments.runlog import RunLog, flat, write_rows
from headstart.experiments.views import beside
from headstart.learners import BC, IWM, LEARNERS, PPO, IWMReflect, Lessons, Reflection
from headstart.learners.bc import imitation_targets
from headstart.learners.learner import Fitted, Log, silent
from headstart.models.stack import Together

SCHEMA = 1
FITTED = ("warm_start.safetensors", "metrics.csv", "rationale.safetensors", "lessons.npz", "warm_start.json")
"""What a fit leaves for the stages after it."""


# ---- what the stages of one arm share ----
def _silent(share: float) -> None:
    """Nobody watches."""


@dataclass(frozen=True)
class Run:
    """One arm and seed of an experiment."""

    experiment: Experiment
    arm: str
    seed: int
    out: Path
    device: str = "cpu"
    progress: Callable[[float], None] = _silent
    """Told the share of this run's work that has been done, between 0 and 1."""

    @property
    def directory(self) -> Path:
        return self.out / self.experiment.name / self.arm / f"seed{self.seed}"

    @property
    def demos_path(self) -> Path:
        return self.out / self.experiment.name / "demos" / f"seed{self.seed}" / "demos.npz"

    @property
    def rl(self) -> RL:
        """Fine-tuning, with the arm's own settings."""
        return self.experiment.rl_of(self.arm)

    @property
    def config(self) -> dict[str, Any]:
        """What decides the result of this run: the other arms do not."""
        arm = self.experiment.arms[self.arm]
        experiment = dataclasses.asdict(dataclasses.replace(self.experiment, arms={self.arm: arm}))
        learner = experiment.pop("arms")[self.arm]["learner"]
        if arm.learner is not None:
            learner = {type(arm.learner).__name__: learner}
        del experiment["rl"]
        config = {**experiment, "arm": self.arm, "seed": self.seed, "learner": learner, "memory": arm.memory}
        return {**config, "rl": self.rl.decided} if arm.rl else config


def run_arm(run: Run) -> dict[str, Any]:
    """All stages of one arm and seed, from wherever an earlier run has left it; returns its summary."""
    torch.set_num_threads(1)
    directory, experiment = run.directory, run.experiment
    with storage.lock(directory):
        _keep_config(run)
        if storage.exists(directory / "summary.json"):
            storage.verify(directory)
        arm, model = experiment.arms[run.arm], _fresh(run)
        cost = {"updates": 0, "env_steps": 0, "expert_steps": 0, "expert_queries": 0}
        if arm.learner is not None:
            cost = warm_start(run, model)
        scores = evaluate_policy(run, model, "evaluation.json")
        _describe(run, scores, cost["env_steps"])
        summary = {"env": experiment.name, "arm": run.arm, "seed": run.seed, **scores, **cost, "rl_steps": 0}
        if arm.rl or storage.exists(directory / "policy.safetensors"):  # --no-rl does not undo what was done
            before, during = seconds(experiment, run.arm)
            curve = fine_tune(
                model,
                run.rl,
                directory,
                validation=bank(experiment.env_id, "validation", experiment.validation_levels),
                horizon=experiment.horizon,
                history=experiment.history,
                seed=run.seed,
                spent=cost["env_steps"],
                progress=lambda share: run.progress((before + during * share) / (before + during)),
                lessons=lambda: _lessons(run, model),
            )
            after = evaluate_policy(run, model, "evaluation_after_rl.json")
            summary |= {f"rl_{name}": after[name] for name in after if name.startswith(("success", "ood"))}
            summary |= {**curve, "env_steps": cost["env_steps"] + curve["rl_steps"]}
        storage.save_json(directory / "summary.json", summary, kind="summary", schema=SCHEMA)
    run.progress(1.0)
    return summary


def fit_together(runs: Sequence[Run], *, compiled: bool = False) -> list[BaseException | None]:
    """The warm starts of arms with one and the same learner, before `run_arm`, which finds them.

    Arms that differ in their PPO alone share a fit; those of several seeds are trained as one (models/stack.py).
    Returns what has kept each of the runs from being fitted, if anything has.
    """
    torch.set_num_threads(1)
    first: dict[int, Run] = {}  # of each seed
    for run in sorted(runs, key=lambda run: (_keeps_lessons(run), is_fitted(run)), reverse=True):
        first.setdefault(run.seed, run)
    beside = sum(not is_fitted(run) for run in first.values()) - 1

    def fit_one(run: Run) -> None:
        with storage.lock(run.directory):
            _keep_config(run)
            warm_start(run, _fresh(run), beside=beside)

    def outcome(run: Run) -> BaseException | None:
        try:
            if failed[run.seed] is None and not is_fitted(run):
                _take_over(run, first[run.seed])
        except Exception as error:
            return error
        return failed[run.seed]

    outcomes = Together(compiled=compiled).fit([partial(fit_one, run) for run in first.values()])
    failed = dict(zip(first, outcomes, strict=True))
    return [outcome(run) for run in runs]


def _take_over(run: Run, fitted: Run) -> None:
    """The fit of another arm, which has the same learner and the same demonstrations."""
    with storage.lock(run.directory):
        _keep_config(run)
        for name in FITTED:
            if storage.exists(fitted.directory / name) and (name != "lessons.npz" or _keeps_lessons(run)):
                storage.copy(fitted.directory / name, run.directory)
        events = "events.out.tfevents.*.warm_start"
        for old in run.directory.glob(events):  # of an earlier try
            old.unlink()
        for one in fitted.directory.glob(events):
            shutil.copy(one, run.directory)
        timing = storage.load_json(fitted.directory / "timing.json", kind="timing", schema=SCHEMA)
        storage.save_json(run.directory / "timing.json", {**timing, "of": fitted.arm}, kind="timing", schema=SCHEMA)


def _fresh(run: Run) -> PPO:
    """A policy that nobody has trained, and where it is going to be fine-tuned."""
    experiment = run.experiment
    return new_model(
        bank(experiment.env_id, "train", experiment.train_levels),
        run.rl,
        memory=experiment.arms[run.arm].memory,
        history=experiment.history,
        horizon=experiment.horizon,
        seed=run.seed,
        device=run.device,
    )


# ---- stages ----
def demonstrate(run: Run) -> Demos:
    """The demonstrations that all arms of a seed share."""
    experiment, path = run.experiment, run.demos_path
    if not storage.exists(path):
        demos = collect_demos(
            experiment.env_id,
            experiment.demos,
            seed=run.seed,
            history=experiment.history,
            horizon=experiment.horizon,
        )
        save_demos(path, demos)
    demos = load_demos(path, history=experiment.history)
    found = (demos.env_id, len(demos.length), demos.horizon)
    wanted = (experiment.env_id, experiment.demos, experiment.horizon)
    if found != wanted:
        raise DataError(
            f"{path}: holds {found[1]} demonstrations of {found[0]} with horizon {found[2]}, but this experiment wants "
            f"{wanted[1]} of {wanted[0]} with horizon {wanted[2]}. Start over with --fresh, or choose another --out."
        )
    return demos


def warm_start(run: Run, model: PPO, *, beside: int = 0) -> dict[str, int]:
    """Fit the policy without reward, or take the weights of an earlier fit; returns what it has cost.

    ``beside`` is how many other seeds are being fitted with it, in the time that is written down.
    """
    learner_config = run.experiment.arms[run.arm].learner
    assert learner_config is not None
    weights, cost_path = run.directory / "warm_start.safetensors", run.directory / "warm_start.json"
    demos = demonstrate(run)
    key = storage.digest(run.demos_path)
    if is_fitted(run):
        cost = storage.load_json(cost_path, kind="fit", schema=SCHEMA)
        if cost.pop("demos") != key:
            raise DataError(f"{weights}: was fitted to other demonstrations than {run.demos_path}. Use --fresh.")
        load_policy(model, weights)
        return cost
    started = time.monotonic()
    log = RunLog(run.directory, "warm_start")
    total = learner_config.total_updates

    def report(update: int, metrics: dict[str, float]) -> None:
        log(update, {name if name.startswith("reflect/") else f"pretrain/{name}": v for name, v in metrics.items()})
        run.progress(update / total * seconds(run.experiment, run.arm)[0] / sum(seconds(run.experiment, run.arm)))

    learner, branches, fitted = fit(learner_config, model, demos, seed=run.seed, log=report)
    cost = {
        "updates": fitted.updates,
        "env_steps": fitted.env_steps,
        "expert_steps": len(demos),
        "expert_queries": int(fitted.metrics.get("dagger/queries", 0)),
    }
    if isinstance(learner, IWM) and branches:
        log.show("iwm/before_after_predicted", _predictions(learner, branches), fitted.updates)
    if isinstance(learner, Reflection) and learner.config.rationale_weight:
        head = dict(learner.rationale.state_dict())
        storage.save_weights(run.directory / "rationale.safetensors", head, kind="rationale", schema=SCHEMA, meta={})
        some = np.linspace(0, len(demos) - 1, 12).astype(int)  # of the demonstrated states, from start to end
        log.say("reflect/rationale", learner.explain({name: x[some] for name, x in demos.obs.items()}), fitted.updates)
    lessons: Lessons | None = getattr(learner, "lessons", None)
    if lessons is not None and _keeps_lessons(run):
        obs, label, weight = lessons
        arrays = {**{f"obs_{name}": value for name, value in obs.items()}, "label": label, "weight": weight}
        storage.save_arrays(run.directory / "lessons.npz", arrays, kind="lessons", schema=SCHEMA)
    log.close()
    taken = {"warm_start": round(time.monotonic() - started, 1), "beside": beside}  # branches and practice included
    storage.save_json(run.directory / "timing.json", taken, kind="timing", schema=SCHEMA)
    write_rows(run.directory / "metrics.csv", log.rows, kind="metrics")
    save_policy(model, weights)
    storage.save_json(cost_path, {**cost, "demos": key}, kind="fit", schema=SCHEMA)
    return cost


def fit(
    config: LearnerConfig, model: PPO, demos: Demos, *, seed: int, log: Log = silent
) -> tuple[Any, Branches | None, Fitted]:
    """A model's policy by a learner: the learner, the branches that it has been given, and the cost of both."""
    rng, horizon = np.random.default_rng([seed, 0xB2]), config.horizon
    branches = branch(demos, horizon=horizon, rng=rng) if horizon else None
    learner = LEARNERS[type(config)](model.policy, config, seed=seed, log=log)  # type: ignore[arg-type]
    fitted = learner.fit(demos, branches, model.env)  # type: ignore[arg-type]
    steps = fitted.env_steps + (branches.env_steps if branches else 0)
    return learner, branches, dataclasses.replace(fitted, env_steps=steps)


def is_fitted(run: Run) -> bool:
    """Whether all is there that a fit leaves, by which the next command goes on without it."""
    names = ["warm_start.safetensors", "warm_start.json", "metrics.csv"] + ["lessons.npz"] * _keeps_lessons(run)
    return all(storage.exists(run.directory / name) for name in names)


def _keeps_lessons(run: Run) -> bool:
    """Whether PPO is to rehearse what the fit has learned from, rather than the demonstrations, which bc has."""
    learner = run.experiment.arms[run.arm].learner
    rehearses = run.experiment.arms[run.arm].rl and bool(run.rl.settings.get("rehearsal_coef"))
    return rehearses and learner is not None and issubclass(LEARNERS[type(learner)], Reflection | IWMReflect)


def _lessons(run: Run, model: PPO) -> Lessons:
    """What PPO is to rehearse: own states with the labels of the judges, or what the expert did."""
    path, learner = run.directory / "lessons.npz", run.experiment.arms[run.arm].learner
    if not _keeps_lessons(run):
        if learner is not None and LEARNERS[type(learner)] is not BC:
            raise UsageError(f"{run.arm}: leaves nothing to rehearse. Fine-tune bc or reflect with rehearsal_coef.")
        return imitation_targets(model.policy, demonstrate(run), mirror=False)
    arrays, _ = storage.load_arrays(path, kind="lessons", schema=SCHEMA)
    obs = {name.removeprefix("obs_"): value for name, value in arrays.items() if name.startswith("obs_")}
    return Lessons(obs, arrays["label"], arrays["weight"])


def _predictions(learner: IWM, branches: Branches) -> NDArray[np.uint8]:
    """Views before six actions, after them, and as the world model predicts them, side by side.

    Actions that change something, if there are any. After imitation, unless that has been joint: what the trunk still
    knows.
    """
    obs, action, after = branches.transitions()
    changing = np.flatnonzero((obs["frames"][:, -1] != after).any(1))
    changing = changing if len(changing) else np.arange(len(after))
    some = changing[np.linspace(0, len(changing) - 1, 6).astype(int)]
    obs = {name: x[some] for name, x in obs.items()}
    return beside(obs["frames"][:, -1], after[some], learner.foresee(obs, action[some]))


def evaluate_policy(run: Run, model: PPO, name: str) -> dict[str, Any]:
    """All exams; returns success and length on test levels, and mean success out of distribution."""
    path, experiment = run.directory / name, run.experiment
    if not storage.exists(path):
        rows = []
        for exam in exams(experiment):
            success, length = evaluate(
                bank(exam.levels, "test", experiment.test_levels),
                model.policy.actor(**MODES[exam.mode]),
                history=experiment.history,
                horizon=exam.horizon,
                rng=np.random.default_rng([run.seed, 0xE7A1]),
                instruction=exam.instruction,
                deterministic=exam.mode == "greedy",
            )
            levels = "test" if exam.levels == experiment.env_id else exam.levels
            where = {"levels": levels, "instruction": exam.instruction, "mode": exam.mode}
            found = {"episodes": len(success), "success": float(success.mean()), "length": float(length.mean())}
            rows.append(where | found)
        storage.save_json(path, {"rows": rows}, kind="evaluation", schema=2)
    rows = storage.load_json(path, kind="evaluation", schema=2)["rows"]
    given = [row for row in rows if row["instruction"] == "given"]
    test = {row["mode"]: row for row in given if row["levels"] == "test"}
    scores = {"episodes": test["sampled"]["episodes"]}
    scores |= {f"{what}_{mode}": row[what] for mode, row in test.items() for what in ("success", "length")}
    for mode in ("sampled", "greedy") if experiment.ood else ():
        abroad = [row["success"] for row in given if row["levels"] != "test" and row["mode"] == mode]
        scores[f"ood_{mode}"] = float(np.mean(abroad))
    return scores


def _describe(run: Run, scores: dict[str, Any], spent: int) -> None:
    """Configuration and test success of the warm start, for TensorBoard."""
    log = RunLog(run.directory, "evaluation")
    test = {f"test/{name}": value for name, value in scores.items() if name.startswith(("success", "ood"))}
    log(spent, test)
    log.describe(run.config, test)
    log.close()


# ---- the parts of a stage ----
def checked_config(run: Run) -> dict[str, Any]:
    """The configuration to be kept, which nothing is written of here.

    Raises UsageError, with what has changed, if the directory was begun with another one.
    """
    path, config = run.directory / "config.json", json.loads(json.dumps(run.config))
    if not storage.exists(path):
        return config
    before = storage.load_json(path, kind="configuration", schema=SCHEMA)
    if "rl" in before and "rl" not in config:
        config["rl"] = before["rl"]  # a run without RL leaves the results of one with it alone
    elif "rl" in config and "rl" not in before:
        before["rl"] = config["rl"]  # --no-rl first, RL now: it goes on from the warm start
    was, now = flat(before), flat(config)
    changed = sorted(name for name in was.keys() | now.keys() if was.get(name, "-") != now.get(name, "-"))
    if changed:
        lines = "\n".join(f"  {name}: {was.get(name, '-')} -> {now.get(name, '-')}" for name in changed)
        raise UsageError(
            f"{run.directory}: was begun with another configuration:\n{lines}\n"
            "Use the old settings to go on, --fresh to start over, or another --out."
        )
    return config


def _keep_config(run: Run) -> None:
    """Write the configuration, unless the directory was begun with another one."""
    config = checked_config(run)
    storage.save_json(run.directory / "config.json", config, kind="configuration", schema=SCHEMA)
    ends = ("summary.json", "policy.safetensors") if "rl" in config else ("summary.json",)
    if not all(storage.exists(run.directory / name) for name in ends):  # else they say what has made what is there
        storage.save_json(run.directory / "versions.json", _versions(run), kind="versions", schema=SCHEMA)


def _versions(run: Run) -> dict[str, Any]:
    packages = ("headstart", "torch", "numpy", "gymnasium", "minigrid", "stable-baselines3", "numba")
    # the checkout that this file is in, if it is one
    git = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip()  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        commit = "not a git checkout"
    return {
        "packages": {name: version(name) for name in packages},
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "device": run.device,
        "commit": commit,
        "command": " ".join(sys.argv),
    }
