"""What tests of learners share: a policy that is small enough to be trained in no time."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from headstart.envs.vector import HeadstartVecEnv
from headstart.learners import PPO, BCConfig, IWMConfig, ReflectionConfig
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


def with_score(score: Tensor) -> Any:
    """A judge that gives these scores."""
    return lambda obs, future, signs: score[: len(future)]


def shortened(config: type, bc: BCConfig, reflect: ReflectionConfig) -> Any:
    """The configuration of any learner with as few updates in a stage as ``bc`` and ``reflect`` have."""
    if config in (BCConfig, ReflectionConfig):
        return {BCConfig: bc, ReflectionConfig: reflect}[config]
    iwm = IWMConfig(bc=bc, updates=bc.updates)
    parts = {"bc": bc, "reflect": reflect, "iwm": iwm, "updates": bc.updates, "batch_size": bc.batch_size}
    fields = {field.name for field in dataclasses.fields(config)}
    return config(**{name: value for name, value in parts.items() if name in fields})
