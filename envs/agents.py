"""Who acts in an environment: a policy, what has one, or a function."""

import inspect
from typing import Any, Protocol

import numpy as np

from headstart.envs.errors import UsageError
from headstart.envs.simulator import Actor

__all__ = ["Agent", "acting", "generator", "policy_of"]


class HasActor(Protocol):
    """Such as a `HeadstartPolicy`."""

    def actor(self, *, greedy: bool = False) -> Actor: ...


class HasPolicy(Protocol):
    """Such as a model of Stable-Baselines3 with a `HeadstartPolicy`, or a learner."""

    @property
    def policy(self) -> Any: ...


Agent = Actor | HasActor | HasPolicy
"""Who acts: a policy, what has one, or how it acts."""


def policy_of(agent: Agent) -> Any:
    """The policy that an agent is, or has; None if it is a function."""
    policy = getattr(agent, "policy", agent)
    return policy if callable(getattr(type(policy), "actor", None)) else None


def acting(agent: Agent, *, greedy: bool = False) -> Actor:
    """How an agent acts. Raises UsageError for what cannot."""
    policy = policy_of(agent)
    if policy is not None:
        return policy.actor(greedy=greedy)
    of_a_policy = hasattr(agent, "predict") or (inspect.ismethod(agent) and agent.__name__ in ("actor", "predict"))
    if of_a_policy or not callable(agent):
        raise UsageError(
            f"{getattr(agent, '__qualname__', type(agent).__name__)} cannot act here. Give a HeadstartPolicy, a model "
            "that has one, or a function from observations and a generator to actions, such as policy.actor()."
        )
    return agent


def generator(rng: np.random.Generator | None) -> np.random.Generator:
    """The random numbers to act by, of seed 0 for None. Raises UsageError for anything else."""
    rng = np.random.default_rng(0) if rng is None else rng
    if not isinstance(rng, np.random.Generator):
        raise UsageError(f"rng={rng!r} is no generator of random numbers. Give np.random.default_rng(0), for example.")
    return rng
