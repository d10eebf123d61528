"""Advice: the expert's own actions where it has been itself, with its memory, and no answer where it has none."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from headstart.envs import engine
from headstart.envs.advice import advice
from headstart.envs.banks import import_seeds
from headstart.envs.collect import collect_demos, practise, replay
from headstart.envs.errors import DataError, UsageError
from headstart.envs.experts import expert_for
from headstart.envs.fork import CopiedStates
from headstart.envs.registry import ENVIRONMENTS
from headstart.envs.simulator import GridStates, Simulator, uniform_actor

STUDY_IDS = [row.id for row in ENVIRONMENTS.values() if row.study]


def start(env_id: str, seeds: range, horizon: int = 300) -> Simulator:
    return Simulator(GridStates.of(import_seeds(env_id, seeds)), history=1, horizon=horizon)


@pytest.mark.parametrize("env_id", STUDY_IDS)
def test_in_its_own_states_the_expert_does_what_it_did(env_id: str) -> None:
    """Along its own way from reset(seed): the answers are the actions of the solution."""
    states, expert = start(env_id, range(2)), expert_for(env_id)
    for seed in range(2):
        env = gymnasium.make(env_id, disable_env_checker=True)
        env.reset(seed=seed)
        solution = expert.solve(env)
        assert solution.success
        walk = states.fork(np.array([seed]))
        on_the_way = walk.fork(np.zeros(len(solution.actions), np.int64))
        for step, action in enumerate(solution.actions):
            on_the_way.put(np.array([step]), walk)
            walk.step(np.array([action]))
        mixed = np.random.default_rng(0).permutation(len(on_the_way))
        np.testing.assert_equal(advice(on_the_way.fork(mixed)), np.array(solution.actions)[mixed])
        assert advice(walk).tolist() == [-1]  # the episode is over


@pytest.mark.parametrize("env_id", ["MiniGrid-DoorKey-6x6-v0", "MiniGrid-MemoryS13Random-v0", "BabyAI-GoToLocal-v0"])
def test_who_strays_and_then_follows_the_advice_succeeds(env_id: str) -> None:
    """Random steps first; then every action is asked for. The answers lead to success from where the agent is."""
    states = start(env_id, range(4))
    rng = np.random.default_rng(0)
    for _ in range(6):
        states.step(rng.choice([engine.LEFT, engine.RIGHT, engine.FORWARD], size=4))
    while not states.done.all():
        action = advice(states)
        assert ((action >= 0) | states.done).all()
        states.step(np.maximum(action, 0))
        assert states.t.max() < 50
    assert states.success().all()


def test_the_expert_has_seen_what_the_agent_has_seen() -> None:
    """In Memory's hallway, where the cue is out of sight: who was shown it at the start need not go back."""
    states, env_id = start("MiniGrid-MemoryS13Random-v0", range(40)), "MiniGrid-MemoryS13Random-v0"
    forgetful, remembering = 0, 0
    while not states.done.all():
        told = advice(states)
        for i in np.flatnonzero(~states.done):
            env: Any = gymnasium.make(env_id, disable_env_checker=True)
            env.reset(seed=int(i))
            for action in states.taken()[i]:
                env.step(int(action))
            asked_anew = expert_for(env_id).start(env.unwrapped, lambda: None)(None)
            forgetful += asked_anew == engine.LEFT
            remembering += told[i] == engine.LEFT
        states.step(np.maximum(told, 0))
    assert states.success().all()
    assert forgetful > remembering  # it turns back to look


def test_it_has_no_answer_after_a_box_was_opened() -> None:
    """The bot takes the mission for lost from then on, and says nothing, before and after it does answer."""
    for seed in range(200):
        states = start("Headstart-SynthS5R2-v0", range(seed, seed + 1))
        actor, rng = uniform_actor(7), np.random.default_rng(seed)
        visited, _ = practise(states, actor, steps=60, rng=rng)
        told = advice(visited)
        opened = np.array(
            [
                engine.TOGGLE in taken and _boxes(visited, i) < _boxes(visited, 0)
                for i, taken in enumerate(visited.taken())
            ]
        )
        if opened.any():
            assert (told[opened] == -1).all()
            assert (told[: int(opened.argmax())] >= 0).any()
            return
    raise AssertionError("nobody opened a box")


def _boxes(states: Simulator, i: int) -> int:
    assert isinstance(states.states, GridStates)
    row = states.states.rows[i]
    cells = row[engine.HEADER : engine.HEADER + int(row[engine.WIDTH]) * int(row[engine.HEIGHT])]
    carried = engine._carried_code(row)
    return int((engine.TYPE[cells] == engine.BOX_TYPE).sum() + (engine.TYPE[carried] == engine.BOX_TYPE))


def test_demonstrated_states_are_known_by_their_levels(cache: Path) -> None:
    demos = collect_demos("MiniGrid-DoorKey-5x5-v0", 3, history=1, cache=cache)
    states = replay(demos)
    np.testing.assert_equal(advice(states), demos.action)
    assert isinstance(states.states, GridStates)
    np.testing.assert_equal(states.states.seed, demos.seed[demos.episode])


def test_states_of_unknown_levels_are_refused() -> None:
    known = start("MiniGrid-DoorKey-5x5-v0", range(2))
    assert isinstance(known.states, GridStates)
    unknown = Simulator(GridStates(known.states.rows, known.states.mission()), history=1, horizon=9)
    with pytest.raises(UsageError, match=r"levels are known.*start from a bank"):
        advice(unknown)
    env_id = "MiniGrid-DoorKey-5x5-v0"
    states = CopiedStates(lambda: gymnasium.make(env_id), [0], "deepcopy")
    with pytest.raises(UsageError, match=f"expert of MiniGrid or BabyAI, and there is none for {env_id}, which runs"):
        advice(Simulator(states, history=1, horizon=9))
    for env_id in ("BabyAI-KeyInBox-v0",):
        with pytest.raises(UsageError, match="No expert"):
            advice(start(env_id, range(1)))


def test_a_state_that_its_actions_do_not_lead_to_is_an_error() -> None:
    states = start("MiniGrid-DoorKey-5x5-v0", range(2))
    states.step(np.array([engine.LEFT, engine.LEFT]))
    assert isinstance(states.states, GridStates)
    states.states.seed[:] = states.states.seed[::-1].copy()
    with pytest.raises(DataError, match=r"DoorKey-5x5.*seed 0.*after 1 steps"):
        advice(states)
