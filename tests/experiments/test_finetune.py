"""Fine-tuning: killed at any moment, it goes on to the same bytes."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from headstart.envs import storage
from headstart.envs.banks import bank
from headstart.envs.collect import collect_demos
from headstart.envs.errors import UsageError
from headstart.envs.vector import HeadstartVecEnv
from headstart.experiments import checkpoint, finetune
from headstart.experiments.finetune import RL, Compared, fine_tune, new_model
from headstart.experiments.runlog import read_rows
from headstart.learners import BC, GRPO, PPO, BCConfig
from headstart.learners.bc import imitation_targets
from headstart.models.policy import draw

ENV_ID = "MiniGrid-DoorKey-5x5-v0"
ROLLOUT = 8 * 16
TINY = RL(
    steps=9 * ROLLOUT,
    n_envs=8,
    eval_every=2 * ROLLOUT,
    settings={
        "n_steps": 16,
        "batch_size": 64,
        "n_epochs": 2,
        "critic_updates": 2,
        "actor_warm_up": 2,
        "auxiliary_coef": 0.1,
        "rehearsal_coef": 0.1,
    },
)
FILES = ("policy.safetensors", "curve.json", "rl.csv")


@pytest.fixture(scope="module", autouse=True)
def levels_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADSTART_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(finetune, "CHECKPOINT_EVERY", 2)
        yield


class Killed(BaseException):
    """The process is gone: nothing after this line was executed."""


def tune(directory: Path, rl: RL = TINY) -> dict[str, Any]:
    """Everything that a process does, from a model that nobody has trained."""
    levels = bank(ENV_ID, "train", 64)
    model = new_model(levels, rl, memory=0, history=2, horizon=40, seed=0)
    demos = collect_demos(ENV_ID, 2, history=2, horizon=40)
    torch.manual_seed(0)
    BC(model.policy, BCConfig(updates=40, batch_size=16)).fit(demos)
    validation = bank(ENV_ID, "validation", 6)
    with storage.lock(directory):
        return fine_tune(
            model,
            rl,
            directory,
            validation=validation,
            horizon=40,
            history=2,
            seed=0,
            spent=1000,
            progress=lambda share: None,
            lessons=lambda: imitation_targets(model.policy, demos, mirror=False),
        )


def contents(directory: Path) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("finished")
    tune(directory)
    return directory


def killing(monkeypatch: pytest.MonkeyPatch, update: int) -> None:
    """PPO dies at this update of this process."""
    train, seen = PPO.train, []

    def killed(model: PPO) -> None:
        seen.append(model.num_timesteps)
        if len(seen) == update:
            raise Killed
        train(model)

    monkeypatch.setattr(PPO, "train", killed)


def disturb() -> None:
    """Another process has drawn other random numbers."""
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    random.seed(99)


# ---- going on ----
@pytest.mark.parametrize("updates", [(1,), (3,), (4,), (8,), (5, 4, 3)])
def test_killed_at_any_update_it_goes_on_to_the_same_bytes(
    finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, updates: tuple[int, ...]
) -> None:
    """While the critic learns alone, and later; once, and again and again."""
    for update in updates:
        with monkeypatch.context() as patch:
            killing(patch, update)
            with pytest.raises(Killed):
                tune(tmp_path)
        disturb()
    tune(tmp_path)
    assert contents(tmp_path) == contents(finished)


def test_it_goes_on_from_where_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And does not begin again."""
    trained: list[int] = []
    with monkeypatch.context() as patch:
        killing(patch, 8)
        with pytest.raises(Killed):
            tune(tmp_path)
    train = PPO.train

    def counted(model: PPO) -> None:
        trained.append(model.num_timesteps // ROLLOUT)
        train(model)

    monkeypatch.setattr(PPO, "train", counted)
    tune(tmp_path)
    assert trained == [7, 8, 9]  # a checkpoint is made after every second rollout


def test_a_finished_run_leaves_no_checkpoint(finished: Path) -> None:
    assert not [path for path in finished.iterdir() if path.name.startswith("checkpoint")]
    assert "checkpoint" not in (finished / storage.MANIFEST).read_text()


# ---- what is left ----
def test_the_exported_model_is_the_policy_and_can_go_on(finished: Path) -> None:
    weights, meta = storage.load_weights(finished / "policy.safetensors", kind="policy", schema=1)
    env = HeadstartVecEnv(bank(ENV_ID, "train", 64), 4, history=2, horizon=40)  # not as many episodes as it had
    model = PPO.load(finished / "policy.zip", env=env, auxiliary_coef=0.0, rehearsal_coef=0.0, batch_size=64)
    assert all(torch.equal(value, weights[name]) for name, value in model.policy.named_parameters())
    assert model.policy.warm_start == meta["warm_start"] == "bc"
    assert model.warm_start_policy is not None
    model.learn(4 * 16, reset_num_timesteps=False)
    assert model.num_timesteps == 9 * ROLLOUT + 4 * 16


def test_the_distance_from_the_start_is_in_the_curve(finished: Path) -> None:
    points = storage.load_json(finished / "curve.json", kind="curve", schema=1)
    assert [point["kl"] for point in points[:2]] == pytest.approx([0.0, 0.0], abs=1e-9)  # while the critic learns alone
    assert points[-1]["kl"] > 0
    logged = read_rows(finished / "rl.csv", kind="metrics")
    assert [float(row["value"]) for row in logged if row["tag"] == "eval/kl_to_start"] == [p["kl"] for p in points]
    assert {row["tag"]: float(row["value"]) for row in logged}["rl_curve/rl_end"] == points[-1]["success"]


def test_grpo_leaves_the_same_things(tmp_path: Path) -> None:
    rl = RL(steps=1500, n_envs=8, eval_every=500, settings={"states": 2, "group": 4, "walk": 4}, algorithm="grpo")
    facts = tune(tmp_path / "one", rl)
    points = storage.load_json(tmp_path / "one" / "curve.json", kind="curve", schema=1)
    assert points[0]["rl_steps"] == 0
    assert points[-1]["rl_steps"] == facts["rl_steps"] >= 1500
    assert len(points) > 2
    assert points[-1]["env_steps"] == 1000 + facts["rl_steps"]
    logged = read_rows(tmp_path / "one" / "rl.csv", kind="metrics")
    assert {"grpo/return", "grpo/groups_that_differ", "eval/success_rate"} <= {row["tag"] for row in logged}
    model = PPO.load(tmp_path / "one" / "policy.zip")
    assert model.num_timesteps == facts["rl_steps"]
    disturb()
    tune(tmp_path / "other", rl)
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


def test_grpo_killed_goes_on_to_the_same_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Everything that the next update depends on is in the checkpoint, and nothing before the kill is done again."""
    rl = RL(steps=2500, n_envs=8, eval_every=500, settings={"states": 2, "group": 4, "walk": 4}, algorithm="grpo")
    tune(tmp_path / "whole", rl)
    attempt, begun = GRPO.attempt, []

    def counted(grpo: GRPO, *arguments: Any) -> Any:
        begun.append(grpo.num_timesteps)
        if len(begun) == 5 and not resumed:
            raise Killed
        return attempt(grpo, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(GRPO, "attempt", counted)
        resumed = False
        with pytest.raises(Killed):
            tune(tmp_path / "killed", rl)
        before, resumed = begun.copy(), True
        disturb()
        tune(tmp_path / "killed", rl)
    assert begun[len(before)] in before[1:]  # not from the start
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert steps_of(tmp_path / "killed") == -1


def test_an_unknown_algorithm_is_refused() -> None:
    with pytest.raises(UsageError, match="'ppo' or 'grpo'"):
        RL(algorithm="dqn")


def test_distance_worked_by_hand() -> None:
    """Over the states of the first step and of the eleventh; it acts as the policy would."""

    def policy(*p: float) -> Any:
        return SimpleNamespace(
            probabilities=lambda obs: np.tile(p, (len(obs["frames"]), 1)),
            remembering=lambda memo: contextlib.nullcontext(),
        )

    actor = Compared(policy(0.5, 0.5), policy(0.25, 0.75))
    for n in (2, *[1] * 9, 1):
        action = actor({"frames": np.zeros(n)}, np.random.default_rng(n))
        np.testing.assert_equal(action, draw(np.tile([0.5, 0.5], (n, 1)), np.random.default_rng(n)))
    assert actor.states == 3
    assert actor.kl == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3))


def test_tensorboard_shows_one_curve_without_a_zigzag(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What was logged after the checkpoint is forgotten, and then logged again."""
    with monkeypatch.context() as patch:
        patch.setattr(finetune, "CHECKPOINT_EVERY", 3)
        killing(patch, 6)
        with pytest.raises(Killed):
            tune(tmp_path)
    tune(tmp_path)
    assert len(list(tmp_path.glob("events.out.tfevents.*.rl"))) == 1
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0})
    events.Reload()
    rows = read_rows(tmp_path / "rl.csv", kind="metrics")
    for tag in ("eval/success_rate", "train/loss", "rollout/ep_len_mean"):
        shown, said = events.Scalars(tag), [row for row in rows if row["tag"] == tag]
        assert [event.step for event in shown] == [int(row["step"]) for row in said], tag
        assert [event.value for event in shown] == pytest.approx([float(row["value"]) for row in said]), tag
        assert len(shown) > 3


@pytest.mark.parametrize("damaged", [1, 2])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture, damaged: int
) -> None:
    """If both are damaged, it begins again. Either way it ends as it would have."""
    with monkeypatch.context() as patch:
        killing(patch, 7)
        with pytest.raises(Killed):
            tune(tmp_path)
    steps = {path: storage.meta(path)["steps"] for path in tmp_path.glob("checkpoint*.npz")}
    assert sorted(steps.values()) == [4 * ROLLOUT, 6 * ROLLOUT]
    newest_first = sorted(steps, key=lambda path: -steps[path])
    for path in newest_first[:damaged]:
        path.write_bytes(path.read_bytes()[:-9] + b"?" * 9)
    tune(tmp_path)
    said = capsys.readouterr().err
    assert [str(path) in said for path in newest_first] == [True, damaged == 2]
    assert contents(tmp_path) == contents(finished)


@pytest.mark.parametrize("rollouts", [4, 5])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_waits_for_the_next_checkpoint(
    finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: signal.Signals, rollouts: int
) -> None:
    """And not for a point of the curve, which is due after four rollouts: by then nobody may be listening."""

    class Stopped(BaseException):
        pass

    def stop(*arguments: Any) -> None:
        raise Stopped

    before = signal.signal(number, stop)
    train = PPO.train

    def interrupted(model: PPO) -> None:
        if model.num_timesteps == rollouts * ROLLOUT:
            signal.raise_signal(number)
            patch.setattr(finetune, "evaluate", stop)
        train(model)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(PPO, "train", interrupted)
            with pytest.raises(Stopped):
                tune(tmp_path)
        assert signal.getsignal(number) is stop
    finally:
        signal.signal(number, before)
    assert max(storage.meta(path)["steps"] for path in tmp_path.glob("checkpoint*.npz")) == rollouts * ROLLOUT
    tune(tmp_path)
    assert contents(tmp_path) == contents(finished)


def test_a_second_interrupt_does_not_wait() -> None:
    with checkpoint.HeldBack() as signals:
        signal.raise_signal(signal.SIGINT)
        assert signals.asked == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signals.asked = None


def test_a_signal_that_came_too_late_is_not_lost() -> None:
    with pytest.raises(KeyboardInterrupt), checkpoint.HeldBack():
        signal.raise_signal(signal.SIGINT)


# ---- what is restored ----
def test_everything_is_restored(tmp_path: Path) -> None:
    """Into a model that was made from another seed, with other weights, episodes and random numbers."""
    models: list[PPO] = []
    for seed in (0, 1):
        model = new_model(bank(ENV_ID, "train", 64), RL(n_envs=8), memory=1, history=2, horizon=40, seed=seed)
        model.policy.warm_start = "bc"
        model.n_steps = model.rollout_buffer.buffer_size = 16
        models.append(model)
    one, other = models
    one.learn(3 * ROLLOUT)
    checkpoint.save(tmp_path, one, {"points": [1, None, 0.1]})
    found = checkpoint.load(tmp_path)
    other.set_logger(finetune.RunLog(tmp_path, "rl").logger())
    assert found is not None
    assert found[1]["kept"] == {"points": [1, None, 0.1]}
    disturb()
    checkpoint.restore(other, found)
    again, _ = checkpoint._arrays(other), checkpoint._facts(other)
    for name, array in again.items():
        np.testing.assert_array_equal(array, found[0][name], err_msg=name)
    assert again.keys() == found[0].keys()
    assert isinstance(other.env, HeadstartVecEnv)
    assert [getattr(other, name) for name in PPO.COUNTERS] == [getattr(one, name) for name in PPO.COUNTERS]


# ---- killed from outside ----
PROCESS = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
import torch
torch.set_num_threads(1)
import test_finetune as test
test.finetune.CHECKPOINT_EVERY = 2
test.tune(Path(sys.argv[1]), test.RL(**{**vars(test.TINY), "steps": 30 * test.ROLLOUT}))
"""


@pytest.mark.slow
def test_kill_9_and_the_same_command_again(tmp_path: Path) -> None:
    def process(directory: Path) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", PROCESS, str(directory), str(Path(__file__).parent)])

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert process(whole).wait(120) == 0
    for _ in range(3):
        running, seen = process(killed), steps_of(killed)
        while running.poll() is None and steps_of(killed) <= seen:
            time.sleep(0.02)
        os.kill(running.pid, signal.SIGKILL)
        assert running.wait(20) == -signal.SIGKILL
    assert process(killed).wait(120) == 0
    assert steps_of(killed) == -1  # nothing is left to go on from
    for name in FILES:
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name


def steps_of(directory: Path) -> int:
    return max((checkpoint._steps(directory / name) for name in checkpoint.FILES), default=-1)
