"""Agents that are no policies, for tests of what steps an environment."""

from collections.abc import Callable

import numpy as np

from headstart.envs.simulator import Obs


def repeats(actions: list[int]) -> Callable[[Obs, np.random.Generator], np.ndarray]:
    """An actor that ignores what it sees: the same actions in every episode, one after the other."""
    left = iter(actions)
    return lambda obs, rng: np.full(len(obs["frames"]), next(left))


def decided(obs: Obs, rng: np.random.Generator) -> np.ndarray:
    """An actor whose choice depends on all that it remembers, and on nothing else."""
    return (obs["frames"].sum((1, 2), dtype=np.int64) + 3 * obs["actions"].sum(1, dtype=np.int64)) % 3
