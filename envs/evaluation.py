"""How good a policy is: every level of a bank played once.

success, length = evaluate(bank("MiniGrid-DoorKey-8x8-v0", "test", 1000), model)
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.envs import engine
from headstart.envs.agents import Agent, acting, generator, policy_of
from headstart.envs.banks import Levels
from headstart.envs.errors import UsageError, check_numbers
from headstart.envs.instructions import altered
from headstart.envs.simulator import GridStates, Simulator
from headstart.envs.tasks import TaskLevels
from headstart.envs.transitions import Demos

__all__ = ["evaluate"]


def evaluate(
    levels: Levels | TaskLevels,
    actor: Agent,
    *,
    history: int | None = None,
    horizon: int | None = None,
    rng: np.random.Generator | None = None,
    instruction: str = "given",
    deterministic: bool = False,
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Play every level once, all at the same time: success (N,) and length (N,) of each episode.

    ``actor`` is a policy, a model that has one, or a function: that needs to be told how much ``history`` it looks at.
    ``horizon`` is the step limit (default: the levels' own), ``rng`` a generator (default: of seed 0).
    ``instruction`` is "given", or one of instructions.ALTERATIONS: what the agent is told instead of the truth.
    ``deterministic`` says that the actor always does the same in the same situation. Then an episode that comes back
    to an earlier situation goes in circles to its end, and is not played on: most of the failures of a greedy policy.
    Whether a situation is the same is known of grids only; tasks are played to the end. Raises UsageError for what is
    no levels, for what cannot act or gives no integers, and for a policy that observes something else than these levels
    show.
    """
    _check_levels(levels)
    (limit,) = check_numbers(levels.env_id, horizon=levels.horizon if horizon is None else horizon)
    act, history, rng = acting(actor, greedy=deterministic), _history(levels, actor, history), generator(rng)
    grid = isinstance(levels, Levels)
    states = GridStates.of(levels) if grid else levels.take(np.arange(len(levels)))
    if instruction != "given":
        if not isinstance(states, GridStates):
            raise UsageError(f"{levels.env_id}: only the missions of MiniGrid and BabyAI can be altered.")
        states = altered(states, instruction, rng)
    simulator = Simulator(states, history=history, horizon=limit)
    success, length = np.zeros(len(levels), np.bool_), np.zeros(len(levels), np.int64)
    playing = np.arange(len(levels))
    deterministic = deterministic and grid
    been = [_situation(simulator)] if deterministic else []
    while len(playing):
        simulator.step(act(simulator.observe(), rng))
        over = np.flatnonzero(simulator.done)
        success[playing[over]], length[playing[over]] = simulator.success()[over], simulator.t[over]
        going_on = ~simulator.done
        if deterministic:
            now = _situation(simulator)
            circling = going_on & np.any([now == then for then in been], axis=0)
            assert isinstance(levels, Levels)
            length[playing[circling]] = np.minimum(limit, engine.max_steps(levels.rows[playing[circling]]))
            going_on &= ~circling
            been = [then[going_on] for then in [*been, now]]
        if not going_on.all():
            playing, simulator = playing[going_on], simulator.fork(np.flatnonzero(going_on))
    return success, length


def _check_levels(levels: Any) -> None:
    if isinstance(levels, Levels | TaskLevels):
        return
    right = 'bank(env_id, "test", 1000), or demos.task.levels("test", 1000)'
    if isinstance(levels, str) or (isinstance(levels, Demos) and levels.task is None):
        right = f'bank("{levels if isinstance(levels, str) else levels.env_id}", "test", 1000)'
    elif isinstance(levels, Demos):
        right = 'demos.task.levels("test", 1000)'
    raise UsageError(f"evaluate() plays levels, and not a {type(levels).__name__}. Give {right}.")


def _history(levels: Levels | TaskLevels, agent: Agent, given: int | None) -> int:
    """How many earlier frames an agent is shown. Raises UsageError if it is a policy that was made for others."""
    policy = policy_of(agent)
    if given is None and policy is None:
        raise UsageError("How many earlier frames this actor looks at cannot be known. Give history.")
    (history,) = check_numbers(
        levels.env_id, history=policy.observation_space["frames"].shape[0] - 1 if given is None else given
    )
    if policy is not None and levels.frame_space(history) != policy.observation_space["frames"]:
        raise UsageError(
            f"This policy looks at {policy.observation_space['frames']}, and would be shown "
            f"{levels.frame_space(history)}. Give levels of its environment, and its own history or none."
        )
    return history


def _situation(simulator: Simulator) -> NDArray[np.uint64]:
    """(N,) hash of everything that decides what a deterministic agent does from now on: not of the step count."""
    states = simulator.states
    assert isinstance(states, GridStates)
    rows = states.rows.copy()
    rows[:, engine.STEP_COUNT : engine.STEP_COUNT + 4] = 0
    obs = simulator.observe()
    return engine.state_hash(np.concatenate([rows, obs["frames"].reshape(len(rows), -1), obs["actions"]], axis=1))
