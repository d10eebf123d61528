"""Tune behaviour cloning on validation levels, choose its budget of demonstrations, and look at what memory does to it.

    python experiments/tune.py settings key_corridor     -> results/key_corridor/tuning.csv
    python experiments/tune.py budget key_corridor       -> results/key_corridor/budget.csv
    python experiments/tune.py history key_corridor      -> results/key_corridor/history.csv

The draws of demonstrations are of seeds that no study uses (from 1000 on), the levels are of the validation split, and
test levels are not touched. All rows are written, the worst ones too. A setting's score is its mean success over the
draws, in its better mode.

``settings`` goes through memory and augmentation, learning rate, then updates x weight decay, each at the best of what
came before; the winner is what the environment's script should say. ``budget`` and ``history`` take bc as the script
says it.
"""

import argparse
import functools
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from headstart.envs import bank, collect_demos, evaluate, make_vec_env
from headstart.envs.processes import available_cores, end_with_parent
from headstart.envs.registry import ENVIRONMENTS
from headstart.envs.transitions import Demos
from headstart.experiments.arms import Arm
from headstart.experiments.budgets import BAND
from headstart.experiments.evidence import scaled
from headstart.experiments.experiment import Experiment, experiment_of
from headstart.experiments.runlog import flat, write_rows
from headstart.learners import BC, PPO, BCConfig

RESULTS = Path(__file__).resolve().parent / "results"
SEEDS = (1000, 1001, 1002)  # of the demonstrations; the search for settings uses the first two
LEVELS = 500  # of the validation split
BUDGETS = (4, 8, 16, 32, 64, 128, 256, 512, 1024)


@functools.lru_cache(maxsize=16)
def demonstrations(env_id: str, episodes: int, seed: int, history: int, horizon: int) -> Demos:
    """Collected once a process: settings are compared on the same ones."""
    return collect_demos(env_id, episodes, seed=seed, history=history, horizon=horizon)


def score(experiment: Experiment, arm: Arm, seed: int) -> tuple[float, float]:
    """Success on validation levels, sampled and greedy, of one fit."""
    torch.set_num_threads(1)
    history, horizon = experiment.history, experiment.horizon
    env = make_vec_env(experiment.env_id, n_levels=experiment.train_levels, history=history, horizon=horizon)
    memory = {"features_extractor_kwargs": {"memory": arm.memory}}
    model = PPO(env=env, seed=seed, policy_kwargs=memory)
    demos = demonstrations(experiment.env_id, experiment.demos, seed, history, horizon)
    assert isinstance(arm.learner, BCConfig)
    BC(model.policy, arm.learner, seed=seed).fit(demos)
    levels = bank(experiment.env_id, "validation", LEVELS)
    sampled, greedy = (
        evaluate(
            levels,
            model.policy.actor(greedy=greedy),
            history=history,
            horizon=horizon,
            rng=np.random.default_rng(seed),
            deterministic=greedy,
        )[0].mean()
        for greedy in (False, True)
    )
    return float(sampled), float(greedy)


class Trials:
    """Fits of one experiment's arms in a pool of processes, all seeds of each.

    ``rows`` is what was found: settings and mean success; ``by_seed`` the success behind each row, (seeds, 2).
    """

    def __init__(self, experiment: Experiment, pool: ProcessPoolExecutor, seeds: Sequence[int], updates: int):
        self.experiment, self.pool, self.seeds, self.updates = experiment, pool, seeds, updates
        self.rows: list[dict[str, Any]] = []
        self.by_seed: list[NDArray] = []
        for split, n in (("train", experiment.train_levels), ("validation", LEVELS)):
            bank(experiment.env_id, split, n)  # before processes ask for it at the same time

    def __call__(self, arms: Sequence[Arm], experiments: Sequence[Experiment] = ()) -> list[float]:
        """The score of each arm (with the experiment at its place, if they are given); their rows are kept."""
        which = experiments or [self.experiment] * len(arms)
        jobs = [
            [self.pool.submit(score, e, arm, seed) for seed in self.seeds] for e, arm in zip(which, arms, strict=True)
        ]
        scores = []
        for e, arm, futures in zip(which, tqdm(arms, unit="setting", disable=None), jobs, strict=True):
            results = np.array([future.result() for future in futures])  # (seeds, 2)
            sampled, greedy = results.mean(0).round(4).tolist()
            settings = {"demos": e.demos, "memory": arm.memory, **flat(vars(arm.learner))}
            self.rows.append({**settings, "success_sampled": sampled, "success_greedy": greedy})
            self.by_seed.append(results)
            shown = " ".join(f"{name}={value}" for name, value in settings.items())
            print(f"{shown}: {sampled:.3f} sampled, {greedy:.3f} greedy", flush=True)
            scores.append(max(sampled, greedy))
        return scores


# ---- what is written ----
def settings(trials: Trials) -> tuple[str, list[dict[str, Any]]]:
    """The search. Rows: a setting, its success."""
    history = trials.experiment.history
    base = BCConfig(updates=trials.updates, learning_rate=1e-3, weight_decay=0.01, hidden_past=0.0)
    best = Arm(base, memory=0, rl=False)

    def step(candidates: list[Arm], best_score: float) -> tuple[Arm, float]:
        found = trials(candidates)
        top = int(np.argmax(found))
        return (candidates[top], found[top]) if found[top] > best_score else (best, best_score)

    first = [Arm(base, 0, rl=False), Arm(replace(base, mirror=False), 0, rl=False), Arm(base, history, rl=False)]
    first += [Arm(replace(base, **{hidden: 0.5}), history, rl=False) for hidden in ("hidden_past", "hidden_actions")]
    best, reached = step(first, 0.0)

    def around(**changes: Any) -> Arm:
        assert isinstance(best.learner, BCConfig)
        return replace(best, learner=replace(best.learner, **changes))

    best, reached = step([around(learning_rate=rate) for rate in (3e-4, 3e-3)], reached)
    pairs = [(1500, 0.1), (1500, 0.3), (4000, 0.1)]
    best, reached = step([around(updates=n, weight_decay=decay) for n, decay in pairs], reached)
    print(f"best: memory={best.memory} {best.learner}")
    return "tuning.csv", trials.rows


def budget(trials: Trials) -> tuple[str, list[dict[str, Any]]]:
    """bc at several numbers of demonstrations. Rows: demonstrations, seed, success; those of the script are chosen."""
    experiment = trials.experiment
    sizes = sorted({n for n in BUDGETS if experiment.demos / 2 <= n <= 2 * experiment.demos} | {experiment.demos})
    arms = [experiment.arms["bc"]] * len(sizes)
    found = trials(arms, [replace(experiment, demos=n) for n in sizes])
    for n, success in zip(sizes, found, strict=True):
        at = scaled(success, experiment.random_success, experiment.expert_success)
        inside = "inside" if BAND[0] <= at <= BAND[1] else "outside"
        print(f"{n:5} demonstrations: scaled {at:.2f}, {inside} {BAND[0]} to {BAND[1]}")
    rows = [
        {
            "demos": row["demos"],
            "seed": seed,
            "success_sampled": round(float(sampled), 4),
            "success_greedy": round(float(greedy), 4),
            "random_success": experiment.random_success,
            "expert_success": experiment.expert_success,
            "chosen": int(row["demos"] == experiment.demos),
        }
        for row, by_seed in zip(trials.rows, trials.by_seed, strict=True)
        for seed, (sampled, greedy) in zip(SEEDS, by_seed, strict=True)
    ]
    return "budget.csv", rows


def history(trials: Trials) -> tuple[str, list[dict[str, Any]]]:
    """bc with memories of several lengths, plain and with each counter to copying. Rows: as ``settings``."""
    learner = trials.experiment.arms["bc"].learner
    assert isinstance(learner, BCConfig)
    counters = ({}, {"hidden_past": 0.5}, {"hidden_actions": 0.5})
    plain = replace(learner, hidden_past=0.0, hidden_actions=0.0)
    arms = [
        Arm(replace(plain, **counter), memory, rl=False)
        for memory in sorted({0, 1, 4, trials.experiment.history})
        for counter in (counters if memory else counters[:1])
    ]
    trials(arms)
    return "history.csv", trials.rows


JOBS = {"settings": (settings, 2), "budget": (budget, 3), "history": (history, 2)}  # and the number of draws


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("name", nargs="+", choices=ENVIRONMENTS, metavar="NAME", help="experiments, such as door_key")
    parser.add_argument("--demos", type=int, help="demonstrations, in place of what the registry says")
    parser.add_argument("--updates", type=int, default=BCConfig.updates, help="that the search begins with")
    parser.add_argument("--processes", type=int, default=available_cores())
    options = parser.parse_args()
    job, draws = JOBS[options.job]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, context, initializer=end_with_parent) as pool:
        for name in options.name:
            experiment = experiment_of(name)
            if options.demos:
                experiment = replace(experiment, demos=options.demos)
            print(f"{name}: {options.job}", flush=True)
            file, rows = job(Trials(experiment, pool, SEEDS[:draws], options.updates))
            (RESULTS / name).mkdir(parents=True, exist_ok=True)
            write_rows(RESULTS / name / file, rows, kind="tuning")


if __name__ == "__main__":
    main()
