"""Tune fine-tuning on validation levels, from the warm start of behaviour cloning or from another.

    python experiments/tune_rl.py key_corridor                         -> results/key_corridor/rl.csv
    python experiments/tune_rl.py key_corridor --arms reflect          -> the same, beside bc's rows
    python experiments/tune_rl.py key_corridor --cures --arms bc reflect
                                                                       -> results/key_corridor/cures.csv

A setting's score is its mean success over the steps of RL, the area under the curve, averaged over the draws of
demonstrations, which are tune.py's. The search goes through episodes in lockstep with the learning rate, the length of
a rollout, and passes with the size of a batch, each at the best of what came before. Without ``--arms`` the warm start
is bc's: what is chosen suits the baseline, and `reflect` takes it as it is unless a search of its own says otherwise.

With ``--cures`` it goes through what keeps PPO from forgetting and what decides how far it explores and looks ahead,
around the settings of the script, for every arm that is named: each arm goes on from its own best. All rows are
written, the worst ones too, and those of arms that are not named stay.
"""

import argparse
import multiprocessing
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from headstart.envs import bank
from headstart.envs.processes import available_cores, end_with_parent
from headstart.envs.registry import ENVIRONMENTS
from headstart.envs.transitions import Demos
from headstart.experiments.arms import Arm
from headstart.experiments.experiment import Experiment, experiment_of
from headstart.experiments.finetune import RL, fine_tune, new_model
from headstart.experiments.pipeline import fit
from headstart.experiments.runlog import read_rows, write_rows
from headstart.experiments.tune import RESULTS, SEEDS, demonstrations
from headstart.learners.bc import imitation_targets

DRAWS = SEEDS[:2]
SETTINGS = ("n_envs", "n_steps", "batch_size", "n_epochs", "learning_rate")
SETTINGS += ("kl_coef", "critic_updates", "actor_warm_up", "ent_coef", "gae_lambda")  # --cures
FACTS = ("rl_steps", "rl_start", "rl_area", "rl_minimum", "rl_end")  # of a curve, as curves.py says them
COLUMNS = {"arm", "demos", *SETTINGS, *FACTS}


@dataclass(frozen=True)
class Start:
    """A fitted policy: its weights, its memory, and the environment steps that it has cost."""

    learner: str
    weights: dict[str, Tensor]
    memory: int
    spent: int


def warm_start(experiment: Experiment, arm: Arm, seed: int) -> Start:
    """What an arm's learner makes of a draw of demonstrations; every setting starts from it."""
    torch.set_num_threads(1)
    model = new(experiment, experiment.rl, arm.memory, seed)
    assert arm.learner is not None
    _, _, fitted = fit(arm.learner, model, taught(experiment, seed), seed=seed)
    return Start(model.policy.warm_start or "", model.policy.weights(), arm.memory, fitted.env_steps)


def taught(experiment: Experiment, seed: int) -> Demos:
    """The demonstrations of a draw."""
    return demonstrations(experiment.env_id, experiment.demos, seed, experiment.history, experiment.horizon)


def new(experiment: Experiment, rl: RL, memory: int, seed: int) -> Any:
    """A policy that nobody has trained, in its training levels."""
    levels = bank(experiment.env_id, "train", experiment.train_levels)
    return new_model(levels, rl, memory=memory, history=experiment.history, horizon=experiment.horizon, seed=seed)


def curve(experiment: Experiment, rl: RL, seed: int, start: Start) -> dict[str, Any]:
    """The settings as PPO has them, and the facts of one curve, on validation levels."""
    torch.set_num_threads(1)
    model = new(experiment, rl, start.memory, seed)
    model.policy.load_weights(start.weights)
    model.policy.warm_start = start.learner
    with tempfile.TemporaryDirectory() as directory:
        facts = fine_tune(
            model,
            rl,
            Path(directory),
            validation=bank(experiment.env_id, "validation", experiment.validation_levels),
            horizon=experiment.horizon,
            history=experiment.history,
            seed=seed,
            spent=start.spent,
            progress=lambda share: None,
            lessons=lambda: imitation_targets(model.policy, taught(experiment, seed), mirror=False),
        )
    return {name: getattr(model, name) for name in SETTINGS} | facts


def search(
    experiment: Experiment, name: str, pool: ProcessPoolExecutor, *, cures: bool = False
) -> list[dict[str, Any]]:
    """Rows of an arm: settings, and the facts of their curves, means over the draws."""
    rows: list[dict[str, Any]] = []
    arm, best, reached = experiment.arms[name], experiment.rl_of(name), -1.0
    starts = list(pool.map(warm_start, [experiment] * len(DRAWS), [arm] * len(DRAWS), DRAWS))

    def step(candidates: Sequence[RL]) -> None:
        nonlocal best, reached
        jobs: list[list[Future]] = [
            [pool.submit(curve, experiment, rl, seed, start) for seed, start in zip(DRAWS, starts, strict=True)]
            for rl in candidates
        ]
        for rl, futures in zip(candidates, tqdm(jobs, unit="setting", disable=None), strict=True):
            found = [future.result() for future in futures]
            means = {fact: round(float(np.mean([one[fact] for one in found])), 4) for fact in FACTS}
            settings = {setting: found[0][setting] for setting in SETTINGS}
            rows.append({"arm": name, "demos": experiment.demos, **settings, **means})
            print(" ".join(f"{column}={value}" for column, value in rows[-1].items()), flush=True)
            if means["rl_area"] > reached:
                best, reached = rl, means["rl_area"]

    def around(n_envs: int | None = None, **settings: float) -> RL:
        return replace(best, n_envs=n_envs or best.n_envs, settings={**best.settings, **settings})

    if cures:
        step([around(kl_coef=coef) for coef in (1.0, 0.3, 0.1, 0.03, 0.0)])
        step([around(critic_updates=4, actor_warm_up=4)])
        step([around(ent_coef=0.003), around(gae_lambda=0.98)])
    else:
        step([around(n_envs, learning_rate=rate) for n_envs in (64, 16) for rate in (3e-4, 1e-3)])
        step([around(n_steps=128)])
        step([around(n_epochs=8), around(batch_size=256)])
    print(f"best for {name}: n_envs={best.n_envs} {best.settings}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="+", choices=ENVIRONMENTS, metavar="NAME", help="experiments, such as door_key")
    parser.add_argument("--cures", action="store_true", help="search what keeps PPO from forgetting -> cures.csv")
    parser.add_argument("--arms", nargs="+", default=["bc"], metavar="ARM", help="warm starts (default: bc)")
    parser.add_argument("--processes", type=int, default=available_cores())
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, context, initializer=end_with_parent) as pool:
        for name in options.name:
            experiment = experiment_of(name)
            for arm in options.arms:
                if arm not in experiment.arms or experiment.arms[arm].learner is None:
                    parser.error(f"argument --arms: {name} has no warm start {arm!r}")
            for split, n in (("train", experiment.train_levels), ("validation", experiment.validation_levels)):
                bank(experiment.env_id, split, n)  # before processes ask for it at the same time
            print(f"{name}: fine-tuning", flush=True)
            path = RESULTS / name / ("cures.csv" if options.cures else "rl.csv")
            before = read_rows(path, kind="tuning") if path.exists() else []
            if any({*row} != COLUMNS for row in before):
                parser.error(f"{path} has other columns than this search: move it away.")
            kept = [row for row in before if row["arm"] not in options.arms]
            rows = [row for arm in options.arms for row in search(experiment, arm, pool, cures=options.cures)]
            path.parent.mkdir(parents=True, exist_ok=True)
            write_rows(path, kept + rows, kind="tuning")


if __name__ == "__main__":
    main()
