"""Environments: levels, the branching engine, experts, and everything that steps them.

Names are loaded when they are first used, so that a command line that only prints does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headstart.envs.banks import Levels, bank
    from headstart.envs.collect import branch, collect_demos, load_demos, practise, replay, save_demos
    from headstart.envs.datasets import demonstrate, from_minari, to_minari
    from headstart.envs.evaluation import evaluate
    from headstart.envs.experts import expert_for, known_experts
    from headstart.envs.keyboard import play_in_terminal
    from headstart.envs.registry import ENVIRONMENTS, Environment
    from headstart.envs.simulator import Simulator
    from headstart.envs.tasks import Task
    from headstart.envs.transitions import Branches, Demos
    from headstart.envs.vector import HeadstartVecEnv, HeadstartVectorEnv, make_vec_env

_WHERE = {
    "collect": ("branch", "collect_demos", "load_demos", "practise", "replay", "save_demos"),
    "datasets": ("demonstrate", "from_minari", "to_minari"),
    "evaluation": ("evaluate",),
    "experts": ("expert_for", "known_experts"),
    "banks": ("Levels", "bank"),
    "keyboard": ("play_in_terminal",),
    "registry": ("ENVIRONMENTS", "Environment"),
    "simulator": ("Simulator",),
    "tasks": ("Task",),
    "transitions": ("Branches", "Demos"),
    "vector": ("HeadstartVecEnv", "HeadstartVectorEnv", "make_vec_env"),
}

__all__ = [
    "ENVIRONMENTS",
    "Branches",
    "Demos",
    "Environment",
    "HeadstartVecEnv",
    "HeadstartVectorEnv",
    "Levels",
    "Simulator",
    "Task",
    "bank",
    "branch",
    "collect_demos",
    "demonstrate",
    "evaluate",
    "expert_for",
    "from_minari",
    "known_experts",
    "load_demos",
    "make_vec_env",
    "play_in_terminal",
    "practise",
    "replay",
    "save_demos",
    "to_minari",
]


def __getattr__(name: str) -> Any:
    for module, names in _WHERE.items():
        if name in names:
            return getattr(import_module(f"headstart.envs.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
