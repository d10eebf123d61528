"""CUDA and the CPU agree to rounding, and models move between them. Runs where there is a CUDA device.

`experiments/gpu_check.sh` runs these tests, then measures.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from small import fresh_model, shortened, weights
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure

from headstart.envs.collect import branch, collect_demos
from headstart.envs.transitions import Branches, Demos
from headstart.envs.vector import HeadstartVecEnv, make_vec_env
from headstart.experiments import checkpoint
from headstart.learners import IWM, LEARNERS, PPO, BCConfig, JudgeConfig, Reflection, ReflectionConfig

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device")

ENV_ID = "Headstart-Fetch-8x8-N3-v0"  # with missions that differ
BC = BCConfig(updates=3, batch_size=8)
REFLECT = ReflectionConfig(
    bc=BC,
    judge=JudgeConfig(members=2, dropout=0.0, updates=3),  # dropout draws from the device's own random numbers
    levels=3,
    level_steps=5,
    states=18,
    round_updates=3,
)


@pytest.fixture(scope="module")
def demos(cache: Path) -> Demos:
    return collect_demos(ENV_ID, 4, history=6, cache=cache)


@pytest.fixture(scope="module")
def branches(demos: Demos) -> Branches:
    return branch(demos, horizon=3)


@pytest.fixture(scope="module")
def env(cache: Path) -> HeadstartVecEnv:
    return make_vec_env(ENV_ID, 4, history=6, n_levels=64, cache=cache)


@pytest.mark.parametrize("config", LEARNERS, ids=lambda config: config.__name__)
def test_learners_agree(config: type, env: HeadstartVecEnv, demos: Demos, branches: Branches) -> None:
    """After a few updates of every stage, on the same batches: the losses, and what the policy would do."""
    found, probabilities = [], []
    for device in ("cpu", DEVICE):
        env.seed(0)
        env.reset()
        policy = fresh_model(env, device=device).policy
        assert policy.device.type == device
        learner = LEARNERS[config](policy, shortened(config, BC, REFLECT), seed=0)  # type: ignore[arg-type]
        found.append(learner.fit(demos, branches, env).metrics)
        probabilities.append(policy.probabilities(demos.obs))
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        if "accuracy" not in name and "agreement" not in name:  # one argmax may tip over
            assert found[1][name] == pytest.approx(value, rel=1e-2, abs=1e-4), name
    np.testing.assert_allclose(*probabilities, atol=1e-2)


def test_labels_agree(env: HeadstartVecEnv, demos: Demos, branches: Branches) -> None:
    judged = []
    for device in ("cpu", DEVICE):
        learner = Reflection(fresh_model(env, device=device).policy, REFLECT)
        learner.fit_judges(branches, outcomes=branches.take(demos.last))
        judged.append(learner.judgement(branches))
    np.testing.assert_allclose(*judged, atol=1e-2)


class Interrupted(BaseCallback):
    """Saves a checkpoint before the third rollout, and ends there."""

    def __init__(self, directory: Path):
        super().__init__()
        self.directory = directory

    def _on_rollout_start(self) -> None:
        if self.num_timesteps == 64:
            assert isinstance(self.model, PPO)
            checkpoint.save(self.directory, self.model, {})
            raise KeyboardInterrupt

    def _on_step(self) -> bool:
        return True


def test_reinforcement_learning_goes_on_from_a_checkpoint(tmp_path: Path, env: HeadstartVecEnv) -> None:
    """With the world model's loss beside it: interrupted after two rollouts of four, it ends with the same weights."""

    def fresh() -> PPO:
        env.seed(0)
        model = fresh_model(env, device=DEVICE, auxiliary_coef=0.1)
        model.policy.warm_start = "bc"
        model.set_auxiliary(IWM(model.policy))
        model.set_logger(configure(None, []))
        model.set_random_seed(0)
        return model

    whole = fresh()
    whole.learn(128)
    with pytest.raises(KeyboardInterrupt):
        fresh().learn(128, callback=Interrupted(tmp_path))
    begun, second = checkpoint.load(tmp_path), fresh()
    assert begun is not None
    checkpoint.restore(second, begun)
    second.learn(64, reset_num_timesteps=False)
    assert second.num_timesteps == whole.num_timesteps == 128
    for name, value in weights(whole.policy).items():
        torch.testing.assert_close(weights(second.policy)[name], value, rtol=1e-3, atol=1e-5)


def test_a_model_moves_between_devices(tmp_path: Path, env: HeadstartVecEnv, demos: Demos) -> None:
    model = fresh_model(env, device=DEVICE)
    model.save(tmp_path / "model")
    there = PPO.load(tmp_path / "model", device="cpu").policy
    assert there.device.type == "cpu"
    np.testing.assert_allclose(there.probabilities(demos.obs), model.policy.probabilities(demos.obs), atol=1e-3)
