"""Learners: one method a file. To add one, copy bc.py, change the equation, and register it here."""

from headstart.learners.bc import BC, BCConfig
from headstart.learners.controls import (
    Dagger,
    DaggerConfig,
    Noop,
    NoopConfig,
    RandomJudge,
    RandomJudgeConfig,
    SelfLabel,
    SelfLabelConfig,
)
from headstart.learners.grpo import GRPO, GRPOConfig
from headstart.learners.inverse import Inverse, InverseConfig
from headstart.learners.iwm import IWM, IWMConfig
from headstart.learners.iwm_reflect import IWMReflect, IWMReflectConfig
from headstart.learners.judges import JudgeConfig
from headstart.learners.learner import Fitted, Learner, Lessons, Practice
from headstart.learners.ppo import PPO
from headstart.learners.preference import Preference, PreferenceConfig
from headstart.learners.reflection import Reflection, ReflectionConfig
from headstart.learners.star import Star, StarConfig

LEARNERS = {
    BCConfig: BC,
    IWMConfig: IWM,
    InverseConfig: Inverse,
    PreferenceConfig: Preference,
    ReflectionConfig: Reflection,
    IWMReflectConfig: IWMReflect,
    SelfLabelConfig: SelfLabel,
    RandomJudgeConfig: RandomJudge,
    NoopConfig: Noop,
    DaggerConfig: Dagger,
    StarConfig: Star,
}
"""The learner that a configuration belongs to."""

__all__ = [
    "BC",
    "GRPO",
    "IWM",
    "LEARNERS",
    "PPO",
    "BCConfig",
    "Dagger",
    "DaggerConfig",
    "Fitted",
    "GRPOConfig",
    "IWMConfig",
    "IWMReflect",
    "IWMReflectConfig",
    "Inverse",
    "InverseConfig",
    "JudgeConfig",
    "Learner",
    "Lessons",
    "Noop",
    "NoopConfig",
    "Practice",
    "Preference",
    "PreferenceConfig",
    "RandomJudge",
    "RandomJudgeConfig",
    "Reflection",
    "ReflectionConfig",
    "SelfLabel",
    "SelfLabelConfig",
    "Star",
    "StarConfig",
]
