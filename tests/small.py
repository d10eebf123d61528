"""What tests of learners share: a policy that is small enough to be trained in no time."""

from typing import Any

import torch
from torch import Tensor

from headstart.envs.vector import HeadstartVecEnv
from headstart.learners import PPO
from headstart.models import HeadstartPolicy


def fresh_model(env: HeadstartVecEnv, **settings: Any) -> PPO:
    extractor = {"width": 32, "channels": 8}
    small = {"n_steps": 8, "batch_size": 16, "policy_kwargs": {"features_extractor_kwargs": extractor}}
    return PPO(HeadstartPolicy, env, seed=0, **{**small, **settings})


def fresh_policy(env: HeadstartVecEnv) -> HeadstartPolicy:
    return fresh_model(env).policy


def weights(module: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter."""
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
