"""What `reflect` owes to each of its parts: one setting changed at a time, on validation levels.

    python experiments/ablation.py key_corridor     -> results/key_corridor/ablation.csv
    python experiments/ablation.py key_corridor --only default "states=500 judge.members=1" --draws 3
    python experiments/ablation.py key_corridor --only default "levels=64 states=500" --rl 50000 --csv practice.csv

A variant is one or more settings of ReflectionConfig, those of its judges and of imitation with a dot. With ``--rl``
PPO goes on from every fit for so many steps, with the settings of the environment's script, and the facts of its curve
are in the row too.

Draws of demonstrations and levels are tune.py's: no study uses these draws, and test levels are not touched. A row is a
variant and a draw. Differences from the default are paired: same demonstrations, same levels. With few draws they are
hints of what matters, not proofs, and nothing is chosen by them here.
"""

import argparse
import ast
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from headstart.envs import bank, evaluate
from headstart.envs.errors import UsageError
from headstart.envs.processes import available_cores, end_with_parent
from headstart.envs.registry import ENVIRONMENTS
from headstart.experiments.experiment import Experiment, experiment_of
from headstart.experiments.runlog import write_rows
from headstart.experiments.tune import LEVELS, RESULTS, SEEDS
from headstart.experiments.tune_rl import curve, new, warm_start
from headstart.learners import ReflectionConfig

VARIANTS = (
    "default",
    "sparing=False",
    "sparing=False k=2",
    "sparing=False k=4",
    "sparing=False judge.horizon=3",
    "sparing=False judge.horizon=8",
    "judge.members=1",
    "judge.weight=1",
    "rounds=1",
    "states=500",
)
CURVE = ("rl_start", "rl_area", "rl_minimum", "rl_end", "steps_to_80", "steps_to_95")
"""Facts of a curve that are written, as curves.py says them: steps_to_* count those before RL too."""


def variant(default: Any, name: str) -> Any:
    """The default with the settings that ``name`` lists, such as "rounds=1 judge.weight=1"; "default" lists none.

    Raises UsageError for what is no setting, or no value for it.
    """
    config = default
    for setting in [] if name == "default" else name.split():
        path, _, text = setting.partition("=")
        config = _changed(config, path.split("."), text, setting)
    return config


def _changed(config: Any, path: list[str], text: str, setting: str) -> Any:
    known = {field.name: getattr(config, field.name) for field in fields(config)}
    if path[0] not in known:
        raise UsageError(f"{setting!r}: no setting {path[0]!r}. Choose from {', '.join(known)}.")
    before = known[path[0]]
    if is_dataclass(before) != (len(path) > 1):
        raise UsageError(f"{setting!r}: say NAME=VALUE, or judge.NAME=VALUE and bc.NAME=VALUE.")
    if len(path) > 1:
        return replace(config, **{path[0]: _changed(before, path[1:], text, setting)})
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        value = text
    if isinstance(before, float) and isinstance(value, int):
        value = float(value)
    if before is not None and type(value) is not type(before):
        raise UsageError(f"{setting!r}: {path[0]} is {before!r} by default, and {text!r} is nothing of this kind.")
    return replace(config, **{path[0]: value})


def measure(experiment: Experiment, config: ReflectionConfig, seed: int, rl: int = 0) -> dict[str, Any]:
    """Success on validation levels of one fit, the environment steps that it took, and the curve of ``rl`` steps."""
    arm = replace(experiment.arms["reflect"], learner=config)
    start = warm_start(experiment, arm, seed)
    model = new(experiment, experiment.rl, arm.memory, seed)
    model.policy.load_weights(start.weights)
    found: dict[str, Any] = {"env_steps": start.spent}
    for mode in ("sampled", "greedy"):
        success, _ = evaluate(
            bank(experiment.env_id, "validation", LEVELS),
            model.policy.actor(greedy=mode == "greedy"),
            history=experiment.history,
            horizon=experiment.horizon,
            rng=np.random.default_rng(seed),
            deterministic=mode == "greedy",
        )
        found[f"success_{mode}"] = round(float(success.mean()), 4)
    if rl:
        facts = curve(experiment, replace(experiment.rl, steps=rl), seed, start)
        found |= {name: facts[name] for name in CURVE}
    return found


def ablate(
    experiment: Experiment, pool: ProcessPoolExecutor, draws: Sequence[int], names: Sequence[str], rl: int = 0
) -> list[dict[str, Any]]:
    """Rows: variant, draw of demonstrations, steps before RL, success, the curve. Means are printed on the way."""
    default = experiment.arms["reflect"].learner
    configs = {name: variant(default, name) for name in names}
    jobs = {
        name: [pool.submit(measure, experiment, config, seed, rl) for seed in draws] for name, config in configs.items()
    }
    rows: list[dict[str, Any]] = []
    wide = max(map(len, names))
    for name, futures in tqdm(jobs.items(), unit="variant", disable=None):
        found = [future.result() for future in futures]
        rows += [
            {"variant": name, "demos": experiment.demos, "seed": seed, **one}
            for seed, one in zip(draws, found, strict=True)
        ]

        def mean(fact: str, found: list[dict[str, Any]] = found) -> float:
            return float(np.mean([one[fact] for one in found]))

        success = f"{100 * mean('success_sampled'):5.1f} sampled {100 * mean('success_greedy'):5.1f} greedy"
        line = f"{name:{wide}} {success} {mean('env_steps'):9,.0f} steps"
        if rl:
            there = ", ".join("never" if one["steps_to_95"] is None else f"{one['steps_to_95']:,}" for one in found)
            line += f", RL {100 * mean('rl_area'):5.1f} in the mean, 95 % after {there} steps with these"
        print(line, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="+", choices=ENVIRONMENTS, metavar="NAME", help="such as key_corridor")
    said = f"settings, such as those that are tried by default: {', '.join(VARIANTS)}"
    parser.add_argument("--only", nargs="+", default=VARIANTS, metavar="VARIANT", help=said)
    parser.add_argument("--rl", type=int, default=0, metavar="STEPS", help="go on with PPO from every fit")
    parser.add_argument("--csv", default="ablation.csv", metavar="FILE", help="in results/NAME (default: ablation.csv)")
    parser.add_argument("--draws", type=int, choices=range(1, len(SEEDS) + 1), default=2, help="of demonstrations")
    parser.add_argument("--processes", type=int, default=available_cores())
    options = parser.parse_args()
    try:
        for name in options.only:
            variant(ReflectionConfig(), name)
    except UsageError as error:
        parser.error(f"argument --only: {error}")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, context, initializer=end_with_parent) as pool:
        for name in options.name:
            experiment = experiment_of(name)
            for split, n in (("train", experiment.train_levels), ("validation", LEVELS)):
                bank(experiment.env_id, split, n)  # before processes ask for it at the same time
            print(f"{name}: what reflect owes to its parts", flush=True)
            rows = ablate(experiment, pool, SEEDS[: options.draws], options.only, options.rl)
            (RESULTS / name).mkdir(parents=True, exist_ok=True)
            write_rows(RESULTS / name / options.csv, rows, kind="tuning")


if __name__ == "__main__":
    main()
