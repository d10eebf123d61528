"""What an expert would do in states that an agent has reached by itself: the queries that DAgger pays for.

    action = advice(states)       # (N,) the expert's next action, -1 where it has none

An expert that is shown a state in the middle of an episode knows less than the agent: it has not seen what the agent
saw on the way. So every episode is played again from `reset(seed)`, the expert looks on from the first step, is told
what the agent did, and is asked where an answer is wanted. (BabyAI's bot is written for this: "it changes the plan
based on the actual action that the agent took".) States that lie on the way to others are answered in passing.

Legend: N states.
"""

from collections import defaultdict
from typing import cast

import gymnasium
import numpy as np
from minigrid.core.actions import Actions
from minigrid.minigrid_env import MiniGridEnv
from minigrid.utils.baby_ai_bot import DisappearedBoxError
from numpy.typing import NDArray

from headstart.envs import engine
from headstart.envs.errors import DataError, UsageError
from headstart.envs.experts import Expert, GaveUp, expert_for
from headstart.envs.levels import import_level, number_objects, reset_level
from headstart.envs.simulator import GridStates, Simulator

__all__ = ["advice"]


def advice(states: Simulator) -> NDArray[np.int64]:
    """The action (N,) that the expert of the environment would take next in each state, -1 where it gives none.

    It gives none where the episode has ended, where it finds no plan any more (an agent may have opened the box that
    was wanted), after that, and where it believes that all is done. Each answered state is compared byte by byte
    with the one that was played again. Raises UsageError for states whose levels are not known, or that no expert
    knows; DataError where the same actions lead elsewhere.
    """
    grid = states.states
    if not isinstance(grid, GridStates):
        raise UsageError(
            "Dagger asks an expert of MiniGrid or BabyAI, and there is none for "
            f"{grid.env_id or 'this environment'}, which runs in Python: use a learner that asks no expert."
        )
    if not grid.env_id or (grid.seed < 0).any():
        raise UsageError(
            "Only states whose levels are known can be shown to an expert: start from a bank of levels or from "
            "demonstrations, or use a learner that asks no expert."
        )
    expert = expert_for(grid.env_id)
    env = gymnasium.make(grid.env_id, disable_env_checker=True)
    action = np.full(len(states), -1, np.int64)
    wanted: dict[tuple[int, bytes], list[int]] = defaultdict(list)  # which states an episode's actions lead to
    for i, taken in enumerate(states.taken()):
        if not states.done[i]:
            wanted[int(grid.seed[i]), taken.tobytes()].append(i)
    for seed, taken in sorted(wanted, key=lambda episode: (episode[0], -len(episode[1]), episode[1])):
        if (seed, taken) in wanted:
            _follow(env, expert, grid, seed, taken, wanted, action)
    return action


def _follow(
    env: gymnasium.Env,
    expert: Expert,
    grid: GridStates,
    seed: int,
    taken: bytes,
    wanted: dict[tuple[int, bytes], list[int]],
    action: NDArray[np.int64],
) -> None:
    """Play one episode with the expert looking on, and note its answers in all states that are passed."""
    reset_level(env, seed)
    number_objects(env)
    try:
        advise = expert.start(cast(MiniGridEnv, env.unwrapped), _no_hurry)
        before = None
        for step in range(len(taken) + 1):
            told = advise(before)
            asked = wanted.pop((seed, taken[:step]), [])
            if asked:
                row = grid.rows[asked[0]]
                _prove(env, row, seed, step)
                # "done" is how some tasks end, and otherwise the bot's word for having nothing left to do
                if told != Actions.done or row[engine.RULE] == engine.DONE_NEXT_TO_TARGET:
                    action[asked] = told
            if step < len(taken):
                before = taken[step]
                env.step(before)
    except (GaveUp, DisappearedBoxError):
        for step in range(len(taken) + 1):  # nor has it an answer in what follows
            wanted.pop((seed, taken[:step]), None)


def _no_hurry() -> None:
    """Answers must not depend on how busy the machine is; a bot that plans without end stops by itself."""


def _prove(env: gymnasium.Env, row: NDArray[np.uint8], seed: int, step: int) -> None:
    again = import_level(env, slots=int(row[engine.SLOTS]))
    if not np.array_equal(again, row):
        raise DataError(
            f"{env.spec.id if env.spec else env}: the episode of seed {seed}, played again, is in another state after "
            f"{step} steps than when the agent played it. Its levels or rules have changed since."
        )
