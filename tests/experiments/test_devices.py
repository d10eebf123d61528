"""The device that is fastest is taken, and it is said why; trials are real work."""

import dataclasses
import importlib
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny import TINY

from headstart.envs.errors import UsageError
from headstart.experiments import devices, pipeline
from headstart.experiments.arms import Arm
from headstart.experiments.devices import CPU, CUDA, STACKED, Pace, Way, choose
from headstart.experiments.experiment import RL
from headstart.experiments.pipeline import Run

EXPERIMENT = dataclasses.replace(
    TINY,
    arms={"scratch": Arm(None, memory=1, rl=True), **TINY.arms},
    rl=RL(steps=100, n_envs=2, settings={"n_steps": 4, "batch_size": 8}),
)


def runs(out: Path, seeds: int = 2) -> list[Run]:
    return [Run(EXPERIMENT, arm, seed, out) for arm in EXPERIMENT.arms for seed in range(seeds)]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that is said to be there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA X1")


@pytest.fixture
def no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(devices, "estimate")


def test_without_cuda_nothing_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_trial: None) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose("auto", runs(tmp_path), 2).way == CPU
    assert "no CUDA device" in choose("auto", runs(tmp_path), 2).why
    assert choose("cpu", runs(tmp_path), 2).way == CPU
    with pytest.raises(UsageError, match="--device cuda"):
        devices.check("cuda")


def test_what_is_wanted_is_not_tried(tmp_path: Path, cuda: None, no_trial: None) -> None:
    assert choose("cpu", runs(tmp_path), 2).way == CPU
    assert choose("cuda", runs(tmp_path), 2).way == STACKED
    assert choose("cuda", runs(tmp_path, seeds=1), 2).way == CUDA


@pytest.mark.parametrize(
    ("paces", "best"),
    [
        # 2 runs with a fit of 3 updates, 4 with 100 steps of PPO
        ({CPU: Pace(6, 40), CUDA: Pace(3, 20), STACKED: Pace(6, 20)}, CPU),
        ({CPU: Pace(6, 40), CUDA: Pace(0.1, 50), STACKED: Pace(3, 50)}, STACKED),
        ({CPU: Pace(6, 40), CUDA: Pace(6, 50), STACKED: Pace(0.1, 50)}, CUDA),
    ],
)
def test_the_fastest_is_taken(
    paces: dict[Way, Pace], best: Way, tmp_path: Path, cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "pace", lambda experiment, way, *rest: paces[way])
    choice = choose("auto", runs(tmp_path), 2)
    assert choice.way == best
    assert f"about {(6 / paces[best].updates + 400 / paces[best].rl_steps) / 60:.1f} minutes" in choice.why
    assert all(str(way) in choice.why for way in paces)
    assert ("NVIDIA X1" in choice.why) == (best != CPU)


def test_a_fit_that_arms_share_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = dataclasses.replace(TINY.arms["bc"], ppo={"plain": True})
    more = dataclasses.replace(EXPERIMENT, arms={"bc": TINY.arms["bc"], "bc_plain": plain})
    monkeypatch.setattr(devices, "pace", lambda *arguments: Pace(1, float("inf")))
    assert devices.estimate(CPU, [Run(more, arm, seed, tmp_path) for arm in more.arms for seed in (0, 1)], 2) == 6


def test_a_device_that_fails_is_not_taken(tmp_path: Path, cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def pace(experiment: object, way: Way, *rest: object) -> Pace:
        if way == CPU:
            return Pace(1, 1)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand so on")

    monkeypatch.setattr(devices, "pace", pace)
    choice = choose("auto", runs(tmp_path), 2)
    assert choice.way == CPU
    assert "CUDA failed: CUDA out of memory. Tried to allocate 2 GiB;" in choice.why


def test_runs_go_on_where_they_were_begun(tmp_path: Path, cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "pace", lambda experiment, way, *rest: Pace(1, 1) if way == CPU else Pace(2, 2))
    pipeline._keep_config(dataclasses.replace(runs(tmp_path)[0], device="cpu"))
    choice = choose("auto", runs(tmp_path), 2)
    assert (choice.way, choice.why) == (CPU, ", where these runs were begun")
    assert choose("auto", runs(tmp_path), 2, fresh=True).way == CUDA


@pytest.mark.parametrize("way", [CPU, Way("cpu", together=True)])
def test_a_trial_is_real_work(way: Way, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(cache))
    found = devices.pace(EXPERIMENT, way, seeds=2, processes=2, seconds=0.01)
    assert found.updates > 0
    assert found.rl_steps > 0


FAILS = """
import time
from pathlib import Path

from headstart.envs.errors import UsageError
from headstart.experiments import devices

def work(directory: Path) -> float:
    try:
        (directory / "here").touch(exist_ok=False)
    except FileExistsError:
        raise UsageError("too much") from None
    started = time.monotonic()
    try:
        devices._barrier.wait(timeout=100)
    finally:
        (directory / "waited").write_text(str(time.monotonic() - started))
    return 1.0
"""


def test_nobody_waits_for_a_process_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two, the first to come waits for the other, which fails: that is what is said."""
    (tmp_path / "fails_for_one.py").write_text(FAILS)  # a module, where processes that are spawned find it
    monkeypatch.syspath_prepend(tmp_path)
    work = importlib.import_module("fails_for_one").work
    with pytest.raises(UsageError, match="too much"):
        devices._at_once(2, partial(work, tmp_path))
    assert float((tmp_path / "waited").read_text()) < 50
