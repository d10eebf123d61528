"""Where networks are trained. `auto` takes what is fastest, and finds out by trying.

For one network of the size that these environments need, a core may be faster than a GPU, and a GPU for many at a time.
Which it is depends on both, on the environment and on how many runs there are. So each way is tried for some seconds in
as many processes as the experiment would have:

    on the CPU                  every run in a process of its own
    on CUDA                     the same; the processes share the device
    on CUDA, seeds as one       all seeds of an arm are fitted as one (models/stack.py), then each is a process again

Where CUDA has not been found nothing is tried: it is the CPU.
"""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from threading import BrokenBarrierError
from typing import Any

import torch

from headstart.envs import storage
from headstart.envs.banks import bank
from headstart.envs.collect import collect_demos
from headstart.envs.errors import UsageError
from headstart.envs.processes import end_with_parent
from headstart.experiments.experiment import Experiment
from headstart.experiments.finetune import new_model
from headstart.experiments.pipeline import SCHEMA, Run
from headstart.learners import BC, BCConfig
from headstart.models.stack import Together

__all__ = ["Choice", "Way", "check", "choose"]

SECONDS = 4.0  # that each part of a trial takes at least
UPDATES = 25  # in a unit of work


@dataclass(frozen=True)
class Way:
    """One way to train an experiment's runs."""

    device: str
    together: bool
    """Whether all seeds of an arm are fitted as one."""

    def __str__(self) -> str:
        return {"cpu": "the CPU", "cuda": "CUDA"}[self.device] + ", all seeds of an arm as one" * self.together


CPU, CUDA, STACKED = Way("cpu", False), Way("cuda", False), Way("cuda", True)


@dataclass(frozen=True)
class Choice:
    way: Way
    why: str
    """In words, to be printed after the device."""


def check(wanted: str) -> None:
    """Raises UsageError if CUDA is wanted and there is none."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch finds no CUDA device. Use --device cpu; see `headstart doctor`.")


def choose(wanted: str, runs: Sequence[Run], processes: int, *, fresh: bool = False) -> Choice:
    """The way for ``wanted``, one of "cpu", "cuda", "auto". On CUDA with several seeds, they are fitted as one unless
    trying shows that to be slower.

    Runs that have been begun go on where they were, unless they are going to be repeated (``fresh``): PPO's
    checkpoints are of one device.
    """
    found = torch.cuda.is_available()
    several = STACKED if len({run.seed for run in runs}) > 1 else CUDA
    if wanted != "auto":
        return Choice(CPU, "") if wanted == "cpu" else Choice(several, f" ({torch.cuda.get_device_name()})")
    if not found:
        return Choice(CPU, ", because PyTorch finds no CUDA device")
    name = f" ({torch.cuda.get_device_name()})"
    begun = set() if fresh else _begun(runs)
    if len(begun) == 1:
        device = begun.pop()
        return Choice(several if device == "cuda" else CPU, f"{name * (device == 'cuda')}, where these runs were begun")
    expected: dict[Way, float] = {}
    told: list[str] = []
    for way in [CPU, CUDA] + [STACKED] * (several == STACKED):
        try:
            expected[way] = estimate(way, runs, processes)
            told.append(f"about {expected[way] / 60:.1f} minutes of training on {way}")
        except RuntimeError as error:  # torch's, such as no memory left on the device
            if way == CPU:
                raise
            told.append(f"{way} failed: {str(error).splitlines()[0]}")
    best = min(expected, key=lambda way: expected[way])
    return Choice(best, f"{name * (best.device == 'cuda')}, the fastest by a trial: {'; '.join(told)}")


def _begun(runs: Sequence[Run]) -> set[str]:
    """The devices on which earlier commands have trained some of these runs."""
    paths = [run.directory / "versions.json" for run in runs]
    return {storage.load_json(path, kind="versions", schema=SCHEMA)["device"] for path in paths if storage.exists(path)}


# ---- trying ----
@dataclass(frozen=True)
class Pace:
    """Of all processes together, a second."""

    updates: float
    """Of imitation, which stands for all stages."""
    rl_steps: float


def estimate(way: Way, runs: Sequence[Run], processes: int) -> float:
    """Seconds that training would take, by a trial."""
    experiment = runs[0].experiment
    arms = [(experiment.arms[run.arm], run.seed) for run in runs]
    fits = {(arm.fit, seed): arm.learner.total_updates for arm, seed in arms if arm.learner}  # arms share them
    updates, steps = sum(fits.values()), sum(experiment.rl.steps for arm, _ in arms if arm.rl)
    seeds = len({run.seed for run in runs})
    found = pace(experiment, way, seeds, min(processes, len(runs)), SECONDS)
    return updates / found.updates + steps / found.rl_steps


def pace(experiment: Experiment, way: Way, seeds: int, processes: int, seconds: float) -> Pace:
    """In ``processes`` at the same time; fits of all seeds as one in no more than there are arms."""
    bank(experiment.env_id, "train", experiment.train_levels)  # before processes ask for it at the same time
    stacked = min(processes, len(experiment.arms))
    updates = _at_once(stacked if way.together else processes, partial(_fits, experiment, way, seeds, seconds))
    return Pace(updates, _at_once(processes, partial(_rollouts, experiment, way, seconds)))


def _at_once(processes: int, work: Callable[[], float]) -> float:
    """The sum of what ``work`` returns in each of the processes, which begin at the same time."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    with ProcessPoolExecutor(processes, context, initializer=_worker, initargs=(barrier,)) as pool:
        futures = [pool.submit(_call, work) for _ in range(processes)]
    errors = [error for error in (future.exception() for future in futures) if error is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, BrokenBarrierError)):  # who has broken it first
        raise error
    return sum(future.result() for future in futures)


def _worker(barrier: Any) -> None:
    global _barrier
    end_with_parent()
    _barrier = barrier
    torch.set_num_threads(1)


def _call(work: Callable[[], float]) -> float:
    try:
        return work()
    except BaseException:
        _barrier.abort()  # nobody is to wait for this process
        raise


def _fits(experiment: Experiment, way: Way, seeds: int, seconds: float) -> float:
    """Updates of imitation a second."""
    demos = collect_demos(
        experiment.env_id, min(8, experiment.demos), history=experiment.history, horizon=experiment.horizon
    )
    policies = [_model(experiment, way).policy for _ in range(seeds if way.together else 1)]
    learners = [BC(policy, BCConfig(updates=UPDATES)) for policy in policies]

    def work() -> None:
        for outcome in Together().fit([partial(learner.fit, demos) for learner in learners]):
            if isinstance(outcome, BaseException):
                raise outcome

    return UPDATES * len(learners) * _rate(work, seconds)


def _rollouts(experiment: Experiment, way: Way, seconds: float) -> float:
    """Steps of PPO a second, updates included."""
    model = _model(experiment, way)
    steps = model.n_steps * model.n_envs
    return steps * _rate(lambda: model.learn(steps), seconds)


def _model(experiment: Experiment, way: Way) -> Any:
    levels = bank(experiment.env_id, "train", experiment.train_levels)
    memory = max(arm.memory for arm in experiment.arms.values())
    return new_model(
        levels,
        experiment.rl,
        memory=memory,
        history=experiment.history,
        horizon=experiment.horizon,
        seed=0,
        device=way.device,
    )


def _rate(work: Callable[[], object], seconds: float) -> float:
    """How often a second ``work`` is done, after once for nothing, and after all processes have come to this point."""
    work()
    _barrier.wait(timeout=300)
    started, n = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        work()
        n += 1
    return n / (time.perf_counter() - started)
