"""All arms and seeds of an experiment in a pool of processes, with one bar for all of them."""

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import defaultdict
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from headstart.envs import storage
from headstart.envs.banks import bank
from headstart.envs.processes import available_cores, end_with_parent
from headstart.experiments.experiment import Experiment, seconds
from headstart.experiments.pipeline import Run, demonstrate, fit_together, is_fitted, run_arm

__all__ = ["levels", "run_all"]


def run_all(
    experiment: Experiment,
    seeds: tuple[int, ...],
    out: Path,
    *,
    device: str,
    processes: int,
    fresh: bool = False,
    together: bool = False,
    compiled: bool = False,
) -> list[dict[str, Any]]:
    """Run every arm and seed in a pool of processes; returns their summaries.

    Arms with one and the same learner share its fits. ``together`` fits all seeds as one before each goes on by itself,
    ``compiled`` by torch.compile. A run that fails does not stop the others; its error is raised when they have
    finished.
    """
    runs = [Run(experiment, name, seed, out, device) for seed in seeds for name in experiment.arms]
    if fresh:
        _empty([run.directory for run in runs] + [run.demos_path.parent for run in runs])
    # Once, before the processes start, what they all read: levels and demonstrations.
    levels(experiment)
    for seed in seeds:
        demo_run = Run(experiment, next(iter(experiment.arms)), seed, out)
        # who only reads them is in nobody's way
        written = storage.exists(demo_run.demos_path)
        with contextlib.nullcontext() if written else storage.lock(demo_run.demos_path.parent):
            demonstrate(demo_run)
    return _in_processes(runs, processes, _to_be_fitted(runs, together), compiled=compiled)


def _to_be_fitted(runs: list[Run], together: bool) -> list[list[Run]]:
    """Runs that have the same fit, or the same but for its seed, where any of them has it still before it."""
    groups: dict[Any, list[Run]] = defaultdict(list)
    for run in runs:
        arm = run.experiment.arms[run.arm]
        if arm.learner is not None:
            groups[arm.fit, None if together else run.seed].append(run)
    return [group for group in groups.values() if len(group) > 1 and not all(map(is_fitted, group))]


def levels(experiment: Experiment) -> None:
    """Have all levels that an experiment needs in the cache."""
    for split in ("train", "validation", "test"):
        bank(experiment.env_id, split, getattr(experiment, f"{split}_levels"))
    for variant in experiment.ood:
        bank(variant, "test", experiment.test_levels)


def _in_processes(
    runs: list[Run], processes: int, groups: list[list[Run]], *, compiled: bool = False
) -> list[dict[str, Any]]:
    """Those of a group are fitted together first; then each is run."""
    weight = {run.directory: sum(seconds(run.experiment, run.arm)) for run in runs}
    done = dict.fromkeys(weight, 0.0)
    # the longest first, so that none of the processes ends up alone with a long one
    groups = sorted(groups, key=lambda group: -weight[group[0].directory])
    later = {run.directory for group in groups for run in group}
    at_once = [run for run in sorted(runs, key=lambda run: -weight[run.directory]) if run.directory not in later]
    context = multiprocessing.get_context("spawn")
    # Workers inherit the mask: a Ctrl-C while they import torch is the parent's business too.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    manager = SyncManager(ctx=context)
    manager.start(end_with_parent)
    reports = manager.Queue()
    summaries: dict[Path, dict[str, Any]] = {}
    failures: list[BaseException] = []
    bar = tqdm(
        total=sum(weight.values()), bar_format="{percentage:3.0f}% |{bar}| {elapsed} of about {postfix}", disable=None
    )
    started = time.monotonic()
    cores = min(processes, available_cores())
    with ProcessPoolExecutor(min(processes, len(runs)), context, initializer=_worker, initargs=(reports,)) as pool:
        waiting: dict[Future[list[Any]], list[Run]] = {}
        waiting |= {pool.submit(_fit_in_worker, group, compiled): group for group in groups}
        waiting |= {pool.submit(_run_in_worker, run): [run] for run in at_once}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        try:
            while waiting:
                while not reports.empty():
                    directory, share = reports.get()
                    done[directory] = share
                for future in [future for future in waiting if future.done()]:
                    those, error = waiting.pop(future), future.exception()
                    for run, outcome in zip(those, [error] * len(those) if error else future.result(), strict=True):
                        if outcome is None:  # fitted
                            waiting[pool.submit(_run_in_worker, run)] = [run]
                        elif isinstance(outcome, BaseException):
                            done[run.directory] = 1.0
                            failures.append(outcome)
                            tqdm.write(f"{run.arm}, seed {run.seed}: failed: {outcome}")
                        else:
                            done[run.directory] = 1.0
                            summaries[run.directory] = outcome
                            tqdm.write(_line(outcome, time.monotonic() - started))
                bar.n = sum(weight[d] * share for d, share in done.items())
                share = bar.n / bar.total
                left = (time.monotonic() - started) * (1 / share - 1) if share > 0.02 else bar.total / cores
                bar.set_postfix_str(tqdm.format_interval(time.monotonic() - started + left), refresh=True)
                time.sleep(0.2)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
            raise
        finally:
            bar.close()
    if failures:
        raise failures[0]
    return [summaries[run.directory] for run in runs]


def _line(summary: dict[str, Any], elapsed: float) -> str:
    text = (
        f"[{tqdm.format_interval(elapsed)}] {summary['arm']}, seed {summary['seed']}: "
        f"success {summary['success_sampled']:.1%} sampled, {summary['success_greedy']:.1%} greedy"
    )
    if summary["rl_steps"]:
        text += f"; after {summary['rl_steps']:,} steps of RL {summary['rl_success_sampled']:.1%}"
    return text


def _worker(reports: Any) -> None:
    """In each process of the pool: one thread, no bars of its own, Ctrl-C is the parent's business."""
    global _reports
    end_with_parent()
    _reports = reports
    os.environ["TQDM_DISABLE"] = "1"
    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system, which who is terminated would leave behind
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run_in_worker(run: Run) -> list[dict[str, Any]]:
    return [run_arm(_reporting(run))]


def _fit_in_worker(runs: list[Run], compiled: bool) -> list[BaseException | None]:
    outcomes = fit_together([_reporting(run) for run in runs], compiled=compiled)
    for error in outcomes:
        if error is not None:  # where it was raised does not get through to the parent by itself
            error.add_note("".join(traceback.format_exception(error)))
    return outcomes


def _reporting(run: Run) -> Run:
    def progress(share: float) -> None:
        # an interrupted parent has taken the queue with it, and this process still has a checkpoint to write
        with contextlib.suppress(OSError, EOFError):
            _reports.put((run.directory, share))

    return dataclasses.replace(run, progress=progress)


def _empty(directories: list[Path]) -> None:
    """Delete what earlier runs have left: everything, or nothing where somebody is writing in one of them."""
    with contextlib.ExitStack() as locks:
        existing = [directory for directory in dict.fromkeys(directories) if directory.is_dir()]
        for directory in existing:
            locks.enter_context(storage.lock(directory))
        for directory in existing:
            for path in directory.iterdir():
                if path.is_file() and path.name != storage.LOCK:
                    path.unlink()
