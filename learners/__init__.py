"""Learners: one method a file. To add one, copy bc.py, change the equation, and register it here."""

from headstart.learners.bc import BC, BCConfig
from headstart.learners.iwm import IWM, IWMConfig
from headstart.learners.learner import Fitted, Learner, Practice
from headstart.learners.ppo import PPO
from headstart.learners.reflection import JudgeConfig, Reflection, ReflectionConfig

LEARNERS = {BCConfig: BC, IWMConfig: IWM, ReflectionConfig: Reflection}
"""The learner that a configuration belongs to."""

__all__ = [
    "BC",
    "IWM",
    "LEARNERS",
    "PPO",
    "BCConfig",
    "Fitted",
    "IWMConfig",
    "JudgeConfig",
    "Learner",
    "Practice",
    "Reflection",
    "ReflectionConfig",
]
