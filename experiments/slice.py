"""A slice of the study, on a machine that is lent for minutes.

    python experiments/slice.py --minutes 9 --archive slice.tar.gz --arms bc bc_long reflect --seeds 0 1 2 3 4

Runs what is not finished yet, of all environments of the study, without RL and with one process a core. When the time
is up, the numbers of all finished runs are packed into the archive: configuration, tests and summary, not the weights.
The same command beside the same archive goes on; a run that was cut off begins again. In the end

    tar xzf slice.tar.gz && headstart study

is what would have been said if all had been run at once.
"""

import argparse
import multiprocessing
import tarfile
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

from headstart.envs import storage
from headstart.envs.processes import available_cores, end_with_parent
from headstart.envs.registry import ENVIRONMENTS
from headstart.experiments.experiment import experiment_of, seconds
from headstart.experiments.pipeline import Run, demonstrate, run_arm
from headstart.experiments.pool import levels

STUDY = [name for name, environment in ENVIRONMENTS.items() if environment.study]
NUMBERS = ("config.json", "evaluation.json", "summary.json", "timing.json", "versions.json", storage.MANIFEST)
RUNS = Path("runs")


def planned(names: Iterable[str], arms: Iterable[str], seeds: Iterable[int], out: Path) -> list[Run]:
    """One seed of all environments after the other, so that a slice leaves few environments behind the others."""
    runs = []
    for name in names:
        experiment = experiment_of(name)
        chosen = {arm: replace(experiment.arms[arm], rl=False) for arm in arms}
        runs += [Run(replace(experiment, arms=chosen), arm, seed, out) for arm in chosen for seed in seeds]
    return sorted(runs, key=lambda run: (run.seed, -seconds(run.experiment, run.arm)[0]))


def finished(run: Run) -> bool:
    return storage.exists(run.directory / "summary.json")


def work(runs: list[Run], until: float, processes: int) -> None:
    """Run as many as there is time for; ``until`` is a reading of time.monotonic."""
    for experiment in {run.experiment.name: run.experiment for run in runs}.values():
        levels(experiment)
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=end_with_parent)
    prepared = {run.demos_path: run for run in reversed(runs)}  # of each, one: those who run them must not collide
    collected = {path: pool.submit(demonstrate, run) for path, run in reversed(prepared.items())}
    futures = []
    for run in runs:
        wait([collected[run.demos_path]], timeout=max(0.0, until - time.monotonic()))
        futures.append(pool.submit(run_arm, run))
    wait(futures, timeout=max(0.0, until - time.monotonic()))
    failed = [error for future in futures if future.done() and (error := future.exception())]
    pool.shutdown(wait=False, cancel_futures=True)
    for child in multiprocessing.active_children():
        child.terminate()
    if failed:
        raise failed[0]


def pack(archive: Path, out: Path) -> int:
    """The numbers of all finished runs below ``out``, as runs/...; returns how many runs these are."""
    found = [path.parent for path in sorted(out.glob("*/*/seed*/summary.json")) if storage.exists(path)]
    part = archive.with_suffix(".part")
    with tarfile.open(part, "w:gz") as packed:
        for directory in found:
            for path in (directory / name for name in NUMBERS):
                if path.exists():
                    packed.add(path, RUNS / path.relative_to(out))
    part.replace(archive)
    return len(found)


def unpack(archive: Path, out: Path) -> None:
    """What `pack` has packed, where it came from."""
    with tarfile.open(archive) as packed:
        for member in packed.getmembers():
            member.name = str(Path(member.name).relative_to(RUNS))
            packed.extract(member, out, filter="data")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="until it packs what is finished")
    parser.add_argument("--archive", type=Path, default=Path("slice.tar.gz"))
    parser.add_argument("--environments", nargs="+", choices=STUDY, default=STUDY)
    parser.add_argument("--arms", nargs="+", default=["bc", "bc_long", "reflect"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--processes", type=int, default=available_cores())
    parser.add_argument("--out", type=Path, default=RUNS)
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    if options.archive.exists():
        unpack(options.archive, options.out)
    runs = planned(options.environments, options.arms, options.seeds, options.out)
    left = [run for run in runs if not finished(run)]
    print(f"{len(left)} of {len(runs)} runs to go, in {options.processes} processes", flush=True)
    try:
        work(left, until, options.processes)
    finally:
        packed = pack(options.archive, options.out)
        left = [run for run in runs if not finished(run)]
        print(f"{options.archive}: {packed} finished runs; {len(left)} of {len(runs)} to go", flush=True)


if __name__ == "__main__":
    main()
