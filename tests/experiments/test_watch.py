"""Watching: the episodes of the GIF are those of the engine, one picture a step, with the reason below."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headstart.envs import storage
from headstart.envs.banks import bank
from headstart.envs.effects import EFFECTS
from headstart.envs.errors import UsageError
from headstart.envs.levels import export_level
from headstart.experiments import door_key
from headstart.experiments.finetune import new_model, save_policy
from headstart.experiments.pipeline import Run
from headstart.experiments.watch import CAPTION, WIDTH, watch
from headstart.models.rationale import RationaleHead

SMALL = dataclasses.replace(
    door_key.EXPERIMENT, env_id="MiniGrid-DoorKey-5x5-v0", horizon=6, history=1, train_levels=16, test_levels=8
)
SMALL = dataclasses.replace(
    SMALL,
    arms={"bc": dataclasses.replace(SMALL.arms["bc"], memory=1)},
    rl=dataclasses.replace(SMALL.rl, n_envs=2, settings={"n_steps": 4, "batch_size": 8}),
)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run that has left an untrained policy and, as its rationale, a head that knows nothing."""
    found = Run(SMALL, "bc", 3, tmp_path)
    levels = bank(SMALL.env_id, "test", SMALL.test_levels)
    model = new_model(levels, SMALL.rl, memory=1, history=1, horizon=6, seed=3)
    save_policy(model, found.directory / "warm_start.safetensors")
    head = RationaleHead(model.policy.features_dim, 7, len(EFFECTS))
    storage.save_weights(found.directory / "rationale.safetensors", head.state_dict(), kind="rationale", schema=1)
    return found


def test_the_gif_has_every_step_of_every_episode(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "elsewhere" / "seen.gif"
    played = watch(run, path, episodes=3, greedy=False)
    levels = bank(SMALL.env_id, "test", SMALL.test_levels)
    assert len({one.level for one in played}) == 3
    for one in played:
        env = export_level(levels.rows[one.level], levels.env_id, int(levels.seed[one.level]))
        ends = [env.step(action)[2] for action in one.actions]
        assert not any(ends[:-1])
        assert ends[-1] == one.success  # in DoorKey only success terminates
        assert len(one.reasons) == len(one.actions) == 6 or one.success
        assert all(". " in reason for reason in one.reasons)  # the action, then the rationale
    with Image.open(path) as gif:
        assert gif.n_frames == sum(len(one.actions) + 1 for one in played)
        assert gif.size == (WIDTH, WIDTH + CAPTION)
        first = np.asarray(gif.convert("RGB"))
    assert (first[WIDTH:] < 100).any()  # something is written
    assert [p.name for p in path.parent.iterdir()] == ["seen.gif"]
    assert watch(run, path, episodes=3, greedy=False) == played


def test_without_a_rationale_the_probability_is_the_reason(run: Run, tmp_path: Path) -> None:
    storage.remove(run.directory / "rationale.safetensors")
    (one,) = watch(run, tmp_path / "seen.gif", episodes=1, greedy=True)
    assert all(", with probability 0." in reason for reason in one.reasons)


def test_what_cannot_be_watched_is_said(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--episodes 9: choose between 1 and 8"):
        watch(run, tmp_path / "seen.gif", episodes=9, greedy=True)
    with pytest.raises(UsageError, match=r"has no trained policy.*headstart run door_key --arms bc --seed 4"):
        watch(dataclasses.replace(run, seed=4), tmp_path / "seen.gif", episodes=1, greedy=True)
    assert not (tmp_path / "seen.gif").exists()
    few = dataclasses.replace(run, seed=4, experiment=dataclasses.replace(SMALL, name="door_key-4"))
    with pytest.raises(UsageError, match=rf"headstart run door_key --demos 4 --arms bc --seed 4 --out {tmp_path}`"):
        watch(few, tmp_path / "seen.gif", episodes=1, greedy=True)
    elsewhere = dataclasses.replace(run, out=tmp_path / "my runs")
    with pytest.raises(UsageError, match=rf"`headstart run door_key --arms bc --seed 3 --out '{tmp_path}/my runs'`"):
        watch(elsewhere, tmp_path / "seen.gif", episodes=1, greedy=True)
    for path in (tmp_path, tmp_path / "seen.mp4", Path()):
        with pytest.raises(UsageError, match=r"a GIF is written"):
            watch(run, path, episodes=1, greedy=True)
