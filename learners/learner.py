"""What a learner is: something that fits a policy to demonstrations and futures, without reward."""

from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from math import inf
from numbers import Integral, Real
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from headstart.envs.errors import DataError, UsageError
from headstart.envs.simulator import Obs, Simulator
from headstart.envs.transitions import Branches, Demos
from headstart.models.policy import HeadstartPolicy
from headstart.models.training import Log, silent

__all__ = ["Fitted", "Learner", "Lessons", "Log", "Practice", "accept", "check_settings", "given", "silent"]

Config = TypeVar("Config")


@dataclass(frozen=True)
class Fitted:
    """What a fit has cost: gradient updates of all networks, and environment steps it took by itself."""

    updates: int
    env_steps: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


class Lessons(NamedTuple):
    """States, and what to do in each of them."""

    obs: Obs
    """(U, ...)"""
    target: NDArray[np.float32]
    """(U, A) probabilities of the actions."""
    weight: NDArray[np.float32]
    """(U,) with mean 1."""


class Practice(Protocol):
    """Where an agent may act on its own: any environment that can start fresh episodes and be forked."""

    def fresh(self, n: int, rng: np.random.Generator) -> Simulator:
        """``n`` episodes at the start of levels that ``rng`` draws."""
        ...


class Learner(Protocol):
    """Fits a policy in place. A learner is made as ``Learner(policy, config, seed=0, log=log)``, and fits once."""

    def fit(self, demos: Demos, branches: Branches | None = None, practise: Practice | None = None) -> Fitted:
        """``branches`` are of the demonstrated states, ``practise`` is where fresh levels are: who needs them says so.

        Raises UsageError where one is missing, DataError where they do not belong together, both before the first
        update, and Diverged at the update at which a loss is no number.
        """
        ...


def given(policy: HeadstartPolicy, config: Config | None, kind: type[Config]) -> tuple[HeadstartPolicy, Config]:
    """What a learner is made of, with its default settings for None. Raises UsageError for anything else."""
    if not isinstance(policy, HeadstartPolicy):
        has_one = isinstance(getattr(policy, "policy", None), HeadstartPolicy)
        hint = "Give model.policy." if has_one else "Make one: PPO(HeadstartPolicy, make_vec_env(...)).policy."
        raise UsageError(f"a HeadstartPolicy is fitted, and not a {type(policy).__name__}. {hint}")
    if config is not None and not isinstance(config, kind):
        raise UsageError(f"config={config!r}: settings of another kind. Give a {kind.__name__}, or None.")
    return policy, kind() if config is None else config


def check_settings(config: Any, **bounds: tuple[float, float]) -> None:
    """Of a dataclass: numbers are not negative and within their ``bounds``, least and most; where the default is whole,
    so are they; and parts are settings of their kind. Raises UsageError naming the first that cannot be.
    """
    for setting in fields(config):
        found, said = getattr(config, setting.name), f"{type(config).__name__}: {setting.name}"
        default = setting.default if setting.default is not MISSING else setting.default_factory()  # type: ignore[misc]
        if is_dataclass(default) and not isinstance(found, type(default)):
            raise UsageError(f"{said}={found!r}. Give a {type(default).__name__}.")
        if type(default) in (int, float):
            kind, words = (Integral, "whole number") if type(default) is int else (Real, "number")
            least, most = bounds.get(setting.name, (0, inf))
            if not isinstance(found, kind) or not least <= float(found) <= most:  # type: ignore[arg-type]
                wanted = f"from {least} to {most}" if most < inf else f"that is at least {least}"
                raise UsageError(f"{said}={found!r}. Choose a {words} {wanted}.")


def accept(
    policy: HeadstartPolicy, demos: Demos, branches: Branches | None = None, practise: Practice | None = None
) -> None:
    """Check, before the first update, that all of it is of one environment. Raises DataError naming what is not."""
    if not isinstance(demos, Demos) or not isinstance(branches, Branches | None):
        found = f"fit({type(demos).__name__}, {type(branches).__name__}, ...)"
        raise UsageError(f"{found}: give fit(demos, branches, practise), of which branches are branch(demos).")
    space: Any = policy.observation_space
    name, frames = demos.env_id, space["frames"]
    if demos.layout.parts != policy.layout.parts or demos.layout.grid != policy.layout.grid:
        raise DataError(
            f"demonstrations of {name} show {_shown(demos.layout)}, but the policy reads {_shown(policy.layout)}. "
            "Make its environment with make_vec_env(demos), or collect demonstrations of that environment."
        )
    env_id, choices = getattr(frames, "env_id", None), getattr(frames, "choices", None)
    if env_id not in (None, name):
        raise DataError(f"demonstrations are of {name}, but the policy is made for {env_id}. Use one environment.")
    for part, expected in space.spaces.items():
        found = demos.obs[part].shape[1:]
        if found != expected.shape:
            raise DataError(
                f"demonstrations of {name}: their {part} have shape {found}, but the policy reads {expected.shape}. "
                "Use the same environment and the same history for both."
            )
    wrong = np.flatnonzero((demos.action < 0) | (demos.action >= policy.n_actions))
    if len(wrong):
        i = int(wrong[0])
        raise DataError(
            f"{name}: {demos.where(i)}: action {demos.action[i]} was taken, but the policy has {policy.n_actions} "
            "actions. Collect demonstrations of the environment that it acts in."
        )
    if demos.task is not None and choices is not None and demos.task.choices != choices:
        raise DataError(
            f"{name}: the demonstrations choose from other actions ({demos.task.choices}) than the policy ({choices}). "
            "Make its environment with make_vec_env(demos)."
        )
    if branches is not None:
        _accept_branches(policy, demos, branches)
    if practise is not None:
        _accept_practice(demos, practise)


def _accept_branches(policy: HeadstartPolicy, demos: Demos, branches: Branches) -> None:
    name = demos.env_id
    if branches.env_id not in ("", name):
        raise DataError(f"demonstrations are of {name}, but the branches are of {branches.env_id}. Pass branch(demos).")
    if branches.action.shape[1] != policy.n_actions:
        raise DataError(
            f"{name}: branches try {branches.action.shape[1]} actions, but the policy has {policy.n_actions}. "
            "Branch the demonstrations again."
        )
    for part, shown in demos.obs.items():
        if branches.obs[part].shape[1:] != shown.shape[1:]:
            raise DataError(
                f"{name}: the branches show {part} of shape {branches.obs[part].shape[1:]}, but the demonstrations "
                f"{shown.shape[1:]}. Branch the demonstrations again."
            )


def _accept_practice(demos: Demos, practise: Practice) -> None:
    name = demos.env_id
    if not hasattr(practise, "fresh"):
        raise UsageError(
            f"{name}: practise={type(practise).__name__} cannot start fresh episodes and fork them. Give "
            "make_vec_env(demos), or make_vec_env of an id of MiniGrid or BabyAI."
        )
    levels, history = getattr(practise, "levels", None), getattr(practise, "history", None)
    if levels is not None and levels.env_id != name:
        raise DataError(f"demonstrations are of {name}, but practice would be in {levels.env_id}. Use one environment.")
    if history not in (None, demos.history):
        raise DataError(
            f"{name}: the demonstrations show {demos.history} earlier frames, but practice would show {history}. Use "
            "the same history for both."
        )
    task = getattr(levels, "task", None)
    if task is not None and demos.task is not None and task.choices != demos.task.choices:
        raise DataError(
            f"{name}: the demonstrations choose from other actions ({demos.task.choices}) than the environment to "
            f"practise in ({task.choices}). Make it with make_vec_env(demos)."
        )


def _shown(layout: Any) -> str:
    if layout.grid:
        return "MiniGrid's views"
    return ", ".join(f"{part.name or 'an observation'} ({part.count} {part.dtype})" for part in layout.parts)
