"""What is known about an environment before anything is learned: how long, how well, how likely by chance.

    python experiments/measure.py                       # all environments and variants, about five minutes
    python experiments/measure.py memory multi_room     # the others keep the rows that they have

Written to results/environments.csv, from where the figures in envs/registry.py are taken. Everything is measured on
validation levels, and all of it but the speed is the same on every machine:

    expert_length       median number of steps of the expert's successes, without any limit but minigrid's own
    horizon             4 x expert_length, or minigrid's own limit where that is lower
    expert_success      share of 200 levels that the expert solves within the horizon: nothing is filtered out
    expert_unlimited    the same within minigrid's own limit: what is missing there the expert cannot solve at all
    random_success      share of 2,000 levels that uniformly random actions solve within the horizon
    demos_per_second    of processor time, with the making of the level
    train_distinct      different levels among the 8,192 of a training bank; empty for variants, not trained on
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.envs import engine, missions
from headstart.envs.banks import Levels, bank
from headstart.envs.errors import DataError
from headstart.envs.evaluation import evaluate
from headstart.envs.experts import expert_for
from headstart.envs.levels import export_level, level_hash
from headstart.envs.registry import ENVIRONMENTS, Environment
from headstart.envs.simulator import uniform_actor
from headstart.experiments.runlog import read_rows, write_rows

__all__ = ["measure", "measure_id"]

RESULTS = Path(__file__).parent / "results" / "environments.csv"
KIND = "environments"
EXPERT_LEVELS, RANDOM_LEVELS, TRAIN_LEVELS = 200, 2000, 8192
HORIZON = 4  # times the expert's median length


def demonstrate(levels: Levels) -> tuple[NDArray[np.int64], NDArray[np.bool_], float]:
    """Let the expert play every level: number of steps (N,), success (N,), demonstrations per second."""
    expert = expert_for(levels.env_id)
    start = time.process_time()
    solutions = [
        expert.solve(export_level(row, levels.env_id, int(seed)))
        for row, seed in zip(levels.rows, levels.seed, strict=True)
    ]
    seconds = time.process_time() - start
    success = np.array([solution.success for solution in solutions])
    return np.array([len(solution.actions) for solution in solutions]), success, success.sum() / seconds


def measure_id(name: str, env_id: str, *, train: bool, cache: Path | None = None) -> dict[str, Any]:
    """One row of the file."""
    levels = bank(env_id, "validation", RANDOM_LEVELS, cache=cache)
    length, success, per_second = demonstrate(levels[:EXPERT_LEVELS])
    if not success.any():
        raise DataError(f"{env_id}: the expert solves none of {len(success)} levels, so there is nothing to measure.")
    median, limit = float(np.median(length[success])), int(engine.max_steps(levels.rows).max())
    horizon, n_actions = min(int(HORIZON * median), limit), engine.n_actions(levels.rows)
    by_chance, _ = evaluate(levels, uniform_actor(n_actions), history=0, horizon=horizon, rng=np.random.default_rng(0))
    return {
        "name": name,
        "id": env_id,
        "expert": expert_for(env_id).name,
        "expert_length": f"{median:g}",
        "horizon": horizon,
        "expert_success": f"{(success & (length <= horizon)).mean():.3f}",
        "expert_unlimited": f"{success.mean():.3f}",
        "random_success": f"{by_chance.mean():.4f}",
        "max_steps": limit,
        "mission_words": missions.mission_length(env_id),
        "n_actions": n_actions,
        "demos_per_second": f"{per_second:.3g}",
        "validation_distinct": _distinct(levels),
        "train_distinct": _distinct(bank(env_id, "train", TRAIN_LEVELS, cache=cache)) if train else "",
    }


def _distinct(levels: Levels) -> int:
    return len(np.unique(level_hash(levels.rows)))


def measure(environment: Environment, *, cache: Path | None = None) -> list[dict[str, Any]]:
    """The environment's row, and one for each of its variants."""
    ids = [environment.id, *(variant.id for variant in environment.ood)]
    return [measure_id(environment.name, env_id, train=env_id == environment.id, cache=cache) for env_id in ids]


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as aligned text, with a warning about environments of few levels."""
    lines = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    for row in rows:
        distinct = int(row["train_distinct"] or TRAIN_LEVELS)
        if distinct < TRAIN_LEVELS / 2:
            text.append(
                f"{row['name']}: {row['id']} has few levels. Of {TRAIN_LEVELS:,} in a training bank only {distinct:,} "
                f"differ, of {RANDOM_LEVELS:,} for validation {int(row['validation_distinct']):,}."
            )
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*ENVIRONMENTS, []], metavar="NAME", help="default: all of them")
    names = parser.parse_args().names or list(ENVIRONMENTS)
    old = read_rows(RESULTS, kind=KIND) if RESULTS.exists() else []
    rows = {name: [row for row in old if row["name"] == name] for name in ENVIRONMENTS}
    for name in names:
        rows[name] = measure(ENVIRONMENTS[name])
        print(table(rows[name]), flush=True)
    write_rows(RESULTS, [row for name in ENVIRONMENTS for row in rows[name]], kind=KIND)
    print(f"Written to {RESULTS}.")


if __name__ == "__main__":
    main()
