"""The worked example in CONTRIBUTING.md: one file and one registration, and a learner is an arm like all others."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from small import fresh_policy

from headstart.envs.vector import make_vec_env
from headstart.experiments.arms import Arm
from headstart.experiments.experiment import Experiment
from headstart.experiments.finetune import RL
from headstart.experiments.pipeline import Run, run_arm
from headstart.experiments.runlog import read_rows
from headstart.learners import LEARNERS

ROOT = Path(__file__).resolve().parents[1]
CONTRIBUTING = ROOT / "CONTRIBUTING.md"


def blocks() -> tuple[str, str]:
    """The blocks of Python under "Add a learner": the learner, and the lines that register it."""
    section = CONTRIBUTING.read_text().split("## Add a learner")[1].split("\n## ")[0]
    found = re.findall(r"^ *```python\n(.*?)^ *```", section, re.DOTALL | re.MULTILINE)
    assert len(found) == 2, f"{CONTRIBUTING} shows something else."
    return found[0], textwrap.dedent(found[1])


@pytest.fixture
def example(tmp_path: Path) -> Iterator[ModuleType]:
    """The learner as a file of its own, registered."""
    path = tmp_path / "large_margin.py"
    path.write_text(blocks()[0])
    spec = importlib.util.spec_from_file_location("large_margin", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    before = dict(LEARNERS)
    spec.loader.exec_module(module)
    LEARNERS[module.LargeMarginConfig] = module.LargeMargin
    yield module
    LEARNERS.clear()
    LEARNERS.update(before)


def test_its_loss_worked_by_hand(example: ModuleType, cache: Path) -> None:
    """The expert's action is ahead by more than the margin; by less; behind."""
    logits = torch.tensor([[3.0, 1.0, 0.0], [1.0, 1.5, 0.0], [0.0, 2.0, 0.0]])
    policy = fresh_policy(make_vec_env("MiniGrid-DoorKey-5x5-v0", 2, n_levels=4, cache=cache))
    policy.logits = lambda obs: logits  # type: ignore[method-assign]
    learner = example.LargeMargin(policy, example.LargeMarginConfig(margin=1.0))
    loss, metrics = learner.loss({}, torch.tensor([0, 1, 2]))
    assert float(loss) == pytest.approx((0 + 0.5 + 3) / 3)
    assert metrics == {"large_margin/loss": pytest.approx(float(loss))}


def test_it_can_be_put_in_the_tree(tmp_path: Path) -> None:
    """In a copy of it, word by word: saved as it is, and a line to the imports, another to LEARNERS."""
    learner, registration = blocks()
    imported, registered = registration.splitlines()
    package = tmp_path / "headstart"
    package.mkdir()
    for name in ("envs", "models"):
        (package / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "learners", package / "learners")
    (package / "learners" / "large_margin.py").write_text(learner)
    init = package / "learners" / "__init__.py"
    text = init.read_text().replace("\nLEARNERS = {\n", f"\n{imported}\n\nLEARNERS = {{\n{registered}\n")
    init.write_text(text)
    code = """
import headstart.learners as learners
print(learners.__file__, learners.LEARNERS[learners.LargeMarginConfig] is learners.LargeMargin)
"""
    command, environment = [sys.executable, "-c", code], {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == f"{init} True\n", done.stderr


def test_it_is_an_arm_like_all_others(example: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Fitted to the demonstrations, tested on unseen levels, skipped when it is there already."""
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    config = example.LargeMarginConfig(updates=60, batch_size=16)
    experiment = Experiment(
        name="tiny",
        env_id="MiniGrid-DoorKey-5x5-v0",
        demos=2,
        horizon=40,
        history=2,
        ood={},
        random_success=0.0,
        expert_success=1.0,
        arms={"large_margin": Arm(config, memory=2, rl=False)},
        rl=RL(steps=0),
        train_levels=32,
        validation_levels=4,
        test_levels=8,
    )
    run = Run(experiment, "large_margin", seed=0, out=tmp_path / "runs")
    summary = run_arm(run)
    assert summary["updates"] == config.total_updates == 60
    assert summary["episodes"] == 8
    assert summary["expert_steps"] > 10
    assert 0 <= summary["success_sampled"] <= 1
    (row,) = read_rows(run.directory / "metrics.csv", kind="metrics")
    assert (int(row["step"]), row["tag"]) == (50, "pretrain/large_margin/loss")
    assert 0 <= float(row["value"]) < 1  # it has learned: at first it is the margin, and logits are equal
    monkeypatch.setattr(example.LargeMargin, "fit", None)
    assert run_arm(run) == summary
