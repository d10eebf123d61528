"""Tune fine-tuning on validation levels, for the warm start of behaviour cloning.

    python experiments/tune_rl.py key_corridor     -> results/key_corridor/rl.csv

A setting's score is its mean success over the steps of RL, the area under the curve, averaged over the draws of
demonstrations, which are tune.py's. The search goes through learning rate, episodes in lockstep with the length of a
rollout, and passes with the size of a batch, each at the best of what came before. The warm start is bc's: what is
chosen suits the baseline, and `reflect` takes it as it is. All rows are written, the worst ones too.
"""

import argparse
import multiprocessing
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from headstart.envs import bank
from headstart.envs.transitions import Demos
from headstart.experiments.doctor import available_cores
from headstart.experiments.experiment import Experiment
from headstart.experiments.finetune import RL, fine_tune, new_model
from headstart.experiments.runlog import write_rows
from headstart.experiments.tune import RESULTS, SEEDS, demonstrations
from headstart.learners import BC, BCConfig
from headstart.learners.bc import imitation_targets

DRAWS = SEEDS[:2]
SETTINGS = ("n_envs", "n_steps", "batch_size", "n_epochs", "learning_rate")
FACTS = ("rl_steps", "rl_start", "rl_area", "rl_minimum", "rl_end")  # of a curve, as curves.py says them


def warm_start(experiment: Experiment, seed: int) -> dict[str, Tensor]:
    """The weights of bc, from which every setting starts."""
    torch.set_num_threads(1)
    model = new(experiment, experiment.rl, seed)
    learner = experiment.arms["bc"].learner
    assert isinstance(learner, BCConfig)
    BC(model.policy, learner, seed=seed).fit(taught(experiment, seed))
    return model.policy.weights()


def taught(experiment: Experiment, seed: int) -> Demos:
    """The demonstrations of a draw."""
    return demonstrations(experiment.env_id, experiment.demos, seed, experiment.history, experiment.horizon)


def new(experiment: Experiment, rl: RL, seed: int) -> Any:
    """A policy that nobody has trained, in its training levels, with the memory of bc."""
    levels = bank(experiment.env_id, "train", experiment.train_levels)
    memory = experiment.arms["bc"].memory
    return new_model(levels, rl, memory=memory, history=experiment.history, horizon=experiment.horizon, seed=seed)


def curve(experiment: Experiment, rl: RL, seed: int, weights: dict[str, Tensor]) -> dict[str, Any]:
    """The facts of one curve, on validation levels, with the settings as PPO has them."""
    torch.set_num_threads(1)
    model = new(experiment, rl, seed)
    model.policy.load_weights(weights)
    model.policy.warm_start = "bc"
    with tempfile.TemporaryDirectory() as directory:
        facts = fine_tune(
            model,
            rl,
            Path(directory),
            validation=bank(experiment.env_id, "validation", experiment.validation_levels),
            horizon=experiment.horizon,
            history=experiment.history,
            seed=seed,
            spent=0,
            progress=lambda share: None,
            lessons=lambda: imitation_targets(model.policy, taught(experiment, seed), mirror=False),
        )
    return {name: getattr(model, name) for name in SETTINGS} | {name: facts[name] for name in FACTS}


def search(experiment: Experiment, pool: ProcessPoolExecutor) -> list[dict[str, Any]]:
    """Rows: settings, and the facts of their curves, means over the draws."""
    rows: list[dict[str, Any]] = []
    best, reached = experiment.rl, -1.0
    starts = list(pool.map(warm_start, [experiment] * len(DRAWS), DRAWS))

    def step(candidates: Sequence[RL]) -> None:
        nonlocal best, reached
        jobs: list[list[Future]] = [
            [pool.submit(curve, experiment, rl, seed, start) for seed, start in zip(DRAWS, starts, strict=True)]
            for rl in candidates
        ]
        for rl, futures in zip(candidates, tqdm(jobs, unit="setting", disable=None), strict=True):
            found = [future.result() for future in futures]
            means = {name: round(float(np.mean([one[name] for one in found])), 4) for name in FACTS}
            rows.append({"demos": experiment.demos, **found[0], **means})
            print(" ".join(f"{name}={value}" for name, value in rows[-1].items()), flush=True)
            if means["rl_area"] > reached:
                best, reached = rl, means["rl_area"]

    def around(n_envs: int | None = None, **settings: float) -> RL:
        return replace(best, n_envs=n_envs or best.n_envs, settings={**best.settings, **settings})

    step([around(learning_rate=rate) for rate in (1e-4, 3e-4, 1e-3)])
    step([around(n_steps=32), around(16), around(16, n_steps=128)])
    step([around(n_epochs=8), around(batch_size=256)])
    print(f"best: n_envs={best.n_envs} {best.settings}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="+", help="experiments, such as door_key")
    parser.add_argument("--processes", type=int, default=available_cores())
    options = parser.parse_args()
    with ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as pool:
        for name in options.name:
            experiment: Experiment = import_module(f"headstart.experiments.{name}").EXPERIMENT
            for split, n in (("train", experiment.train_levels), ("validation", experiment.validation_levels)):
                bank(experiment.env_id, split, n)  # before processes ask for it at the same time
            print(f"{name}: fine-tuning", flush=True)
            rows = search(experiment, pool)
            (RESULTS / name).mkdir(parents=True, exist_ok=True)
            write_rows(RESULTS / name / "rl.csv", rows, kind="tuning")


if __name__ == "__main__":
    main()
