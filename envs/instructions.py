"""Untrue instructions: does an agent read what it is told? For evaluation only.

    states = altered(GridStates.of(levels), "swapped", rng)     # then play them as ever

An agent that succeeds as often without the instruction's words, or with those of another level, does not use them:
its success is what the level gives away by itself. The levels, and what their verifiers want, stay as they are; a
mission is altered once, before its episode starts, and stays altered until the end.

Legend: N states, L mission tokens.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from headstart.envs.errors import UsageError
from headstart.envs.simulator import GridStates

__all__ = ["ALTERATIONS", "altered", "has_instructions"]

PADDING = 0  # the token of missions.PADDING

Alteration = Callable[[NDArray[np.uint8], np.random.Generator], NDArray[np.uint8]]
"""Missions (N, L) uint8 -> missions (N, L) uint8; the given ones stay as they are."""


def has_instructions(mission: NDArray[np.uint8]) -> bool:
    """Whether missions (N, L) tell something about the level: there is more than one distinct mission."""
    return len(mission) > 0 and bool((mission != mission[0]).any())


def shuffled(mission: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The same words in another order, each other order equally likely; padding stays at the end.

    A mission of one word, even if repeated, has no other order and stays. Which words there are still tells much:
    an agent that takes a mission as a bag of words is not disturbed by this, and by the others it is.
    """
    out = mission.copy()
    words = np.where(mission == PADDING, mission.max(axis=1, keepdims=True), mission)
    left = np.flatnonzero((words != words[:, :1]).any(axis=1))  # those that have another order
    while len(left):
        draw = np.where(mission[left] == PADDING, 2.0, rng.random(mission[left].shape))  # padding sorts last
        out[left] = np.take_along_axis(mission[left], draw.argsort(axis=1), axis=1)
        left = left[(out[left] == mission[left]).all(axis=1)]
    return out


def emptied(mission: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """No words at all."""
    return np.full_like(mission, PADDING)


def swapped(mission: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The mission of another of the N states, uniformly drawn from those whose mission differs.

    Every mission is a sentence that the environment says, so nothing about it is unusual but that it is untrue here.
    It may still be possible to follow: nothing keeps the objects that it names out of the level. Raises UsageError
    when all missions are equal.
    """
    if not has_instructions(mission):
        raise UsageError(
            f"There is nothing to swap: all {len(mission)} missions are equal. "
            "Take more levels, or leave the alteration 'swapped' out for this environment."
        )
    _, group, size = np.unique(mission, axis=0, return_inverse=True, return_counts=True)
    group = group.reshape(-1)
    by_group, first = group.argsort(kind="stable"), np.cumsum(size) - size
    other = rng.integers(len(mission) - size[group])  # counted without the own group
    other += np.where(other >= first[group], size[group], 0)
    return mission[by_group[other]]


ALTERATIONS: dict[str, Alteration] = {"shuffled": shuffled, "emptied": emptied, "swapped": swapped}


def altered(states: GridStates, name: str, rng: np.random.Generator) -> GridStates:
    """Copies of the states whose missions are altered by ALTERATIONS[name]: what to do stays, what is said changes."""
    if name not in ALTERATIONS:
        raise UsageError(f"There is no alteration {name!r} of instructions: choose one of {', '.join(ALTERATIONS)}.")
    return GridStates(states.rows.copy(), ALTERATIONS[name](states.mission(), rng))
