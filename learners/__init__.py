"""Learners: one method a file. To add one, copy bc.py, change the equation, and register it here."""

from headstart.learners.bc import BC, BCConfig
from headstart.learners.inverse import Inverse, InverseConfig
from headstart.learners.iwm import IWM, IWMConfig
from headstart.learners.learner import Fitted, Learner, Practice
from headstart.learners.ppo import PPO
from headstart.learners.preference import Preference, PreferenceConfig
from headstart.learners.reflection import JudgeConfig, Reflection, ReflectionConfig

LEARNERS = {
    BCConfig: BC,
    IWMConfig: IWM,
    InverseConfig: Inverse,
    PreferenceConfig: Preference,
    ReflectionConfig: Reflection,
}
"""The learner that a configuration belongs to."""

__all__ = [
    "BC",
    "IWM",
    "LEARNERS",
    "PPO",
    "BCConfig",
    "Fitted",
    "IWMConfig",
    "Inverse",
    "InverseConfig",
    "JudgeConfig",
    "Learner",
    "Practice",
    "Preference",
    "PreferenceConfig",
    "Reflection",
    "ReflectionConfig",
]
