"""Samples and environment steps a second on the CPU and on CUDA, and where the time goes there.

    python experiments/throughput.py            -> results/throughput.csv, and a table of operations

The rates of one call are comparable with each other, not with those of another day: machines are shared. Each job is
run once for nothing, then timed for a few seconds. `gpu_check.sh` runs this after the tests that need a CUDA device.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from headstart.envs import branch, collect_demos, make_vec_env
from headstart.envs.processes import available_cores
from headstart.envs.transitions import Demos
from headstart.experiments.runlog import write_rows
from headstart.learners import BC, PPO, BCConfig, JudgeConfig, Reflection, ReflectionConfig
from headstart.models.stack import Together

ENV_ID = "MiniGrid-DoorKey-8x8-v0"
SEEDS = 5  # in a stack
RESULTS = Path(__file__).resolve().parent / "results"


def rate(work: Callable[[int], object], seconds: float) -> float:
    """How often a second ``work`` does its unit; ``work(n)`` does it n times."""
    work(2)
    n = 4
    while True:
        start = time.perf_counter()
        work(n)
        taken = time.perf_counter() - start
        if taken >= seconds:
            return n / taken
        n = max(n + 1, int(1.2 * n * seconds / taken))


def model(device: str, n_envs: int = 8, **settings: Any) -> PPO:
    return PPO(env=make_vec_env(ENV_ID, n_envs, seed=0), seed=0, device=device, **settings)


def imitation(demos: Demos, device: str, batch: int) -> Callable[[int], object]:
    """Updates of behaviour cloning."""
    policy = model(device).policy
    return lambda n: BC(policy, BCConfig(updates=n, batch_size=batch)).fit(demos)


def stacked(demos: Demos, device: str, batch: int) -> Callable[[int], object]:
    """Updates of behaviour cloning, of SEEDS policies as one."""
    policies = [model(device).policy for _ in range(SEEDS)]

    def work(n: int) -> None:
        config = BCConfig(updates=n, batch_size=batch)
        for outcome in Together().fit([lambda policy=one: BC(policy, config).fit(demos) for one in policies]):
            if isinstance(outcome, BaseException):
                raise outcome

    return work


def judging(demos: Demos, device: str, batch: int) -> Callable[[int], object]:
    """Updates of one of reflection's judges."""
    policy, branches = model(device).policy, branch(demos)

    def work(n: int) -> object:
        config = ReflectionConfig(bc=BCConfig(batch_size=batch), judge=JudgeConfig(members=1, updates=n))
        return Reflection(policy, config).fit_judges(branches)

    return work


def rollouts(device: str, n_envs: int) -> Callable[[int], object]:
    """PPO, updates included: n rollouts of 64 steps in every environment."""
    ppo = model(device, n_envs, batch_size=min(8 * n_envs, 16_384))
    return lambda n: ppo.learn(64 * n_envs * n)


def measure(batches: list[int], envs: list[int], seconds: float) -> Iterator[dict[str, Any]]:
    """A row per job, device and size: how many samples or environment steps a second."""
    demos = collect_demos(ENV_ID, 8, seed=0)
    devices = [("cpu", threads) for threads in sorted({1, 2, available_cores()})]
    for device, threads in devices + [("cuda", 1)] * torch.cuda.is_available():
        torch.set_num_threads(threads)
        where = {"device": device, "threads": threads}
        for batch in batches:
            for job, seeds in ((imitation, 1), (stacked, SEEDS), (judging, 1)):
                per_second = seeds * batch * rate(job(demos, device, batch), seconds)
                yield {"job": job.__name__, **where, "size": batch, "per_second": round(per_second)}
        for n in envs:
            per_second = 64 * n * rate(rollouts(device, n), seconds)
            yield {"job": "ppo", **where, "size": n, "per_second": round(per_second)}


def operations(batch: int) -> str:
    """Where the time of imitation and of PPO goes on CUDA."""
    from torch.profiler import ProfilerActivity, profile

    demos, tables = collect_demos(ENV_ID, 8, seed=0), []
    for work, n in ((imitation(demos, "cuda", batch), 50), (rollouts("cuda", 512), 2)):
        work(2)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            work(n)
        tables.append(profiler.key_averages().table(sort_by="self_cuda_time_total", row_limit=12))
    return "\n".join(tables)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 512, 4096], help="states in an update")
    parser.add_argument("--envs", type=int, nargs="+", default=[64, 512], help="episodes in lockstep in PPO")
    parser.add_argument("--seconds", type=float, default=4.0, help="that each job is timed for, at least")
    parser.add_argument("--out", type=Path, default=RESULTS / "throughput.csv")
    options = parser.parse_args()
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    print(f"{os.cpu_count()} CPU cores, {available_cores()} available; CUDA device: {cuda}; torch {torch.__version__}")
    rows = []
    for row in measure(options.batches, options.envs, options.seconds):
        rows.append({**row, "cuda": cuda})
        print(
            f"{row['job']:9} {row['device']} x{row['threads']:<3} {row['size']:6} {row['per_second']:10,}/s", flush=True
        )
    write_rows(options.out, rows, kind="throughput")
    if torch.cuda.is_available():
        print(operations(batch=512))


if __name__ == "__main__":
    main()
