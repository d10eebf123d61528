"""What `reflect` owes to each of its parts: one setting changed at a time, on validation levels.

    python experiments/ablation.py key_corridor     -> results/key_corridor/ablation.csv
    python experiments/ablation.py key_corridor --only states=500 "states=500 where=disputed" --draws 3

Draws of demonstrations and levels are tune.py's: no study uses these draws, and test levels are not touched. A row is a
variant and a draw. Differences from the default are paired: same demonstrations, same levels. With few draws they are
hints of what matters, not proofs, and nothing is chosen by them here.
"""

import argparse
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from headstart.envs import bank, branch, evaluate, make_vec_env
from headstart.experiments.doctor import available_cores
from headstart.experiments.experiment import Experiment
from headstart.experiments.runlog import write_rows
from headstart.experiments.tune import LEVELS, RESULTS, SEEDS, demonstrations
from headstart.learners import PPO, Reflection, ReflectionConfig


def variants(default: ReflectionConfig) -> dict[str, ReflectionConfig]:
    """Each with the setting that it is named after, and otherwise the default; `states=500` is one of its own, since
    which states are chosen can matter only where few are.
    """
    few = replace(default, states=500)

    def judge(**settings: Any) -> ReflectionConfig:
        return replace(default, judge=replace(default.judge, **settings))

    return {
        "default": default,
        "k=2": replace(default, k=2),
        "k=4": replace(default, k=4),
        "judge.horizon=3": judge(horizon=3),
        "judge.horizon=8": judge(horizon=8),
        "judge.members=1": judge(members=1),
        "judge.weight=1": judge(weight=1.0),
        "walks=0": replace(default, walks=0),
        "rounds=0": replace(default, rounds=0),
        "rounds=1": replace(default, rounds=1),
        "states=500": few,
        "states=500 where=uncertain": replace(few, where="uncertain"),
        "states=500 where=disputed": replace(few, where="disputed"),
    }


def measure(experiment: Experiment, config: ReflectionConfig, seed: int) -> dict[str, Any]:
    """Success on validation levels of one fit, and the environment steps that it took."""
    torch.set_num_threads(1)
    history, horizon = experiment.history, experiment.horizon
    env = make_vec_env(experiment.env_id, n_levels=experiment.train_levels, history=history, horizon=horizon)
    memory = experiment.arms["reflect"].memory
    model = PPO(env=env, seed=seed, policy_kwargs={"features_extractor_kwargs": {"memory": memory}})
    demos = demonstrations(experiment.env_id, experiment.demos, seed, history, horizon)
    branches = branch(demos, horizon=config.horizon, rng=np.random.default_rng([seed, 0xB2]), k=config.k)
    fitted = Reflection(model.policy, config, seed=seed).fit(demos, branches, env)
    found: dict[str, Any] = {"env_steps": branches.env_steps + fitted.env_steps}
    for mode in ("sampled", "greedy"):
        success, _ = evaluate(
            bank(experiment.env_id, "validation", LEVELS),
            model.policy.actor(greedy=mode == "greedy"),
            history=history,
            horizon=horizon,
            rng=np.random.default_rng(seed),
            deterministic=mode == "greedy",
        )
        found[f"success_{mode}"] = round(float(success.mean()), 4)
    return found


def ablate(
    experiment: Experiment, pool: ProcessPoolExecutor, draws: Sequence[int], only: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Rows: variant, draw of demonstrations, steps before RL, success. Means are printed on the way."""
    default = experiment.arms["reflect"].learner
    assert isinstance(default, ReflectionConfig)
    jobs = {
        name: [pool.submit(measure, experiment, config, seed) for seed in draws]
        for name, config in variants(default).items()
        if name in only or not only
    }
    rows: list[dict[str, Any]] = []
    for name, futures in tqdm(jobs.items(), unit="variant", disable=None):
        found = [future.result() for future in futures]
        rows += [
            {"variant": name, "demos": experiment.demos, "seed": seed, **one}
            for seed, one in zip(draws, found, strict=True)
        ]
        mean = {fact: float(np.mean([one[fact] for one in found])) for fact in found[0]}
        success = f"{100 * mean['success_sampled']:5.1f} sampled {100 * mean['success_greedy']:5.1f} greedy"
        print(f"{name:28} {success} {mean['env_steps']:9,.0f} steps", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="+", help="experiments, such as key_corridor")
    names = tuple(variants(ReflectionConfig()))
    parser.add_argument(
        "--only", nargs="+", choices=names, default=(), metavar="VARIANT", help=f"of {', '.join(names)}"
    )
    parser.add_argument("--draws", type=int, choices=range(1, len(SEEDS) + 1), default=2, help="of demonstrations")
    parser.add_argument("--processes", type=int, default=available_cores())
    options = parser.parse_args()
    with ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as pool:
        for name in options.name:
            experiment: Experiment = import_module(f"headstart.experiments.{name}").EXPERIMENT
            for split, n in (("train", experiment.train_levels), ("validation", LEVELS)):
                bank(experiment.env_id, split, n)  # before processes ask for it at the same time
            print(f"{name}: what reflect owes to its parts", flush=True)
            rows = ablate(experiment, pool, SEEDS[: options.draws], options.only)
            (RESULTS / name).mkdir(parents=True, exist_ok=True)
            write_rows(RESULTS / name / "ablation.csv", rows, kind="tuning")


if __name__ == "__main__":
    main()
