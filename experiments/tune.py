"""Tune behaviour cloning on validation levels, so that it is a baseline worth beating.

    python experiments/tune.py door_key

Two passes: memory x label smoothing, then updates x weight decay at the best of the first. Every setting is fitted to
the same draws of demonstrations, which no study uses (their seeds start at 1000). The best is the one with the highest
mean success on validation levels in its better mode; test levels are not touched. All settings are written to
experiments/results/<name>/tuning.csv, the worst ones too.
"""

import argparse
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from headstart.envs import bank, branch, collect_demos, evaluate, make_vec_env
from headstart.experiments.pipeline import Arm, Experiment
from headstart.experiments.runlog import flat, write_rows
from headstart.learners import LEARNERS, PPO, BCConfig

RESULTS = Path(__file__).resolve().parent / "results"
SEEDS = (1000, 1001, 1002, 1003)


def score(experiment: Experiment, arm: Arm, seed: int) -> tuple[float, float]:
    """Success on validation levels, sampled and greedy, of one fit."""
    torch.set_num_threads(1)
    env = make_vec_env(
        experiment.env_id,
        n_levels=experiment.train_levels,
        history=experiment.history,
        horizon=experiment.horizon,
    )
    model = PPO(env=env, seed=seed, policy_kwargs={"features_extractor_kwargs": {"memory": arm.memory}})
    demos = collect_demos(
        experiment.env_id, experiment.demos, seed=seed, history=experiment.history, horizon=experiment.horizon
    )
    assert arm.learner is not None
    LEARNERS[type(arm.learner)](model.policy, arm.learner, seed=seed).fit(demos, branch(demos), env)  # type: ignore[arg-type]
    levels = bank(experiment.env_id, "validation", 500)
    sampled, greedy = (
        evaluate(
            levels,
            model.policy.actor(greedy=greedy),
            history=experiment.history,
            horizon=experiment.horizon,
            rng=np.random.default_rng(seed),
        )[0].mean()
        for greedy in (False, True)
    )
    return float(sampled), float(greedy)


def try_all(experiment: Experiment, arms: list[Arm], processes: int) -> list[dict[str, Any]]:
    """A row for each arm: its settings, and its mean success over the seeds."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context) as pool:
        jobs = [[pool.submit(score, experiment, arm, seed) for seed in SEEDS] for arm in arms]
        rows = []
        for arm, futures in zip(tqdm(arms, unit="setting", disable=None), jobs, strict=True):
            results = np.array([future.result() for future in futures])  # (seeds, 2)
            sampled, greedy = results.mean(0)
            settings = {"memory": arm.memory, **flat(vars(arm.learner))}
            rows.append(
                {**settings, "success_sampled": round(float(sampled), 4), "success_greedy": round(float(greedy), 4)}
            )
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="an experiment, such as door_key")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    experiment: Experiment = import_module(f"headstart.experiments.{options.name}").EXPERIMENT

    base = BCConfig()
    memories = sorted({0, 1, experiment.history})
    first = [
        Arm(replace(base, label_smoothing=smoothing), memory, rl=False)
        for memory, smoothing in product(memories, (0.0, 0.1, 0.2, 0.3))
    ]
    rows = try_all(experiment, first, options.processes)
    best = max(range(len(rows)), key=lambda i: max(rows[i]["success_sampled"], rows[i]["success_greedy"]))
    chosen = first[best]
    assert isinstance(chosen.learner, BCConfig)
    second = [
        Arm(replace(chosen.learner, updates=updates, weight_decay=decay), chosen.memory, rl=False)
        for updates, decay in product((500, 1500, 5000), (0.01, 0.1, 0.3))
        if (updates, decay) != (base.updates, base.weight_decay)
    ]
    rows += try_all(experiment, second, options.processes)
    (RESULTS / options.name).mkdir(parents=True, exist_ok=True)
    write_rows(RESULTS / options.name / "tuning.csv", rows, kind="tuning")


if __name__ == "__main__":
    main()
