"""Experts: they succeed, their actions replay, they use only what they may, and they stop when lost."""

import contextlib
import io
import threading
import time
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from minigrid.core.actions import Actions
from minigrid.core.world_object import Ball, Key
from minigrid.envs.blockedunlockpickup import BlockedUnlockPickupEnv

from headstart.envs import experts
from headstart.envs.errors import UsageError
from headstart.envs.experts import expert_for, known_experts
from headstart.envs.registry import ENVIRONMENTS

STUDY_IDS = [row.id for row in ENVIRONMENTS.values() if row.study]
OUR_IDS = [env_id for env_id in gymnasium.registry if env_id.startswith("Headstart-")]
FAMILIES = [
    *dict.fromkeys([*STUDY_IDS, *OUR_IDS]),
    "MiniGrid-DistShift1-v0",
    "MiniGrid-DoorKey-8x8-v0",
    "MiniGrid-Dynamic-Obstacles-Random-6x6-v0",
    "MiniGrid-Empty-Random-6x6-v0",
    "MiniGrid-FourRooms-v0",
    "MiniGrid-GoToDoor-8x8-v0",
    "MiniGrid-GoToObject-8x8-N2-v0",
    "MiniGrid-LavaCrossingS9N3-v0",
    "MiniGrid-LavaGapS7-v0",
    "MiniGrid-LockedRoom-v0",
    "MiniGrid-MemoryS7-v0",
    "MiniGrid-ObstructedMaze-1Dl-v0",
    "MiniGrid-ObstructedMaze-2Dl-v0",
    "MiniGrid-PutNear-8x8-N3-v0",
    "MiniGrid-RedBlueDoors-8x8-v0",
    "MiniGrid-SimpleCrossingS9N3-v0",
    "MiniGrid-Unlock-v0",
    "MiniGrid-UnlockPickup-v0",
    "BabyAI-ActionObjDoor-v0",
    "BabyAI-GoToSeqS5R2-v0",
    "BabyAI-OpenDoorsOrderN4-v0",
    "BabyAI-PickupLoc-v0",
    "BabyAI-PutNextLocal-v0",
    "BabyAI-UnlockPickupDist-v0",
]


def make(env_id: str) -> Any:
    return gymnasium.make(env_id, disable_env_checker=True)


def reset(env: Any, seed: int) -> dict:
    with contextlib.redirect_stdout(io.StringIO()):  # minigrid prints each level that it rejects
        return env.reset(seed=seed)[0]


def assert_replays(env_id: str, seed: int, actions: tuple[int, ...], after: Any) -> None:
    """The actions alone lead through a fresh environment to the same success and the same last state."""
    env = make(env_id)
    reset(env, seed)
    reward = terminated = 0
    for index, action in enumerate(actions):
        _, reward, terminated, truncated, _ = env.step(action)
        assert (terminated or truncated) == (index == len(actions) - 1)
    assert terminated
    assert reward > 0
    np.testing.assert_array_equal(env.unwrapped.grid.encode(), after.unwrapped.grid.encode())
    assert tuple(env.unwrapped.agent_pos) == tuple(after.unwrapped.agent_pos)
    assert env.unwrapped.agent_dir == after.unwrapped.agent_dir


@pytest.mark.parametrize("env_id", FAMILIES)
def test_demonstrations_succeed_and_replay(env_id):
    env, expert = make(env_id), expert_for(env_id)
    for seed in range(4):
        reset(env, seed)
        attributes = set(vars(env.unwrapped))
        solution = expert.solve(env)
        assert solution.success, (seed, solution.reason)
        assert set(vars(env.unwrapped)) == attributes  # no instruction is left behind in the environment
        assert_replays(env_id, seed, solution.actions, env)


@pytest.mark.slow
@pytest.mark.parametrize("env_id", STUDY_IDS)
def test_experts_of_the_study_succeed_on_98_of_100_levels(env_id):
    env, expert, failures = make(env_id), expert_for(env_id), []
    for seed in range(200):
        reset(env, seed)
        solution = expert.solve(env)
        if solution.success:
            assert_replays(env_id, seed, solution.actions, env)
        else:
            failures.append((seed, solution.reason))
    assert len(failures) <= 4, failures


@pytest.mark.slow
def test_every_known_expert_solves_some_level():
    for env_id, expert in known_experts().items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old versions
            env = make(env_id)
        successes = 0
        for seed in range(5):
            reset(env, seed)
            successes += expert_for(env_id).solve(env).success
        assert successes >= 3, (env_id, expert)


def test_the_same_level_is_solved_the_same_way_twice():
    env, expert = make("BabyAI-MiniBossLevel-v0"), expert_for("BabyAI-MiniBossLevel-v0")
    reset(env, 3)
    first = expert.solve(env)
    reset(env, 3)
    assert expert.solve(env) == first


# ---- the planners use only what they may use ----------------------------------------


def test_memory_planner_acts_on_what_it_has_observed():
    """Where two levels have looked the same so far, the planner does the same: it knows nothing else."""
    action_after: dict[bytes, int] = {}
    repeated = 0
    env, expert = make("MiniGrid-MemoryS13Random-v0"), expert_for("MiniGrid-MemoryS13Random-v0")
    for seed in range(100):
        history, over, action = b"", False, None
        observation = reset(env, seed)
        advise = expert.start(env.unwrapped, lambda: None)
        while not over:
            history += observation["image"].tobytes() + bytes([observation["direction"]])
            action = advise(action)
            repeated += history in action_after
            assert action_after.setdefault(history, action) == action
            observation, _, terminated, truncated, _ = env.step(action)
            over = terminated or truncated
    assert repeated > 100  # else the claim was hardly tried


def test_memory_planner_follows_the_cue_and_looks_first():
    """Another cue in the same level: the same steps until it is seen, then the other end."""
    env, expert = make("MiniGrid-MemoryS13-v0"), expert_for("MiniGrid-MemoryS13-v0")
    hidden_at_first = 0
    for seed in range(20):
        reset(env, seed)
        first = expert.solve(env)
        reset(env, seed)
        level = env.unwrapped
        cue = (1, level.height // 2 - 1)
        level.grid.set(*cue, Ball("green") if level.grid.get(*cue).type == "key" else Key("green"))
        level.success_pos, level.failure_pos = level.failure_pos, level.success_pos
        hidden = not level.in_view(*cue)
        other = expert.solve(env)
        assert first.success
        assert other.success
        assert len(first.actions) == len(other.actions)
        assert first.actions[-2:] != other.actions[-2:]
        assert first.actions[:-2] == other.actions[:-2]
        hidden_at_first += hidden
    assert hidden_at_first > 5


@pytest.mark.parametrize("env_id", ["MiniGrid-Dynamic-Obstacles-6x6-v0", "MiniGrid-Dynamic-Obstacles-8x8-v0"])
def test_dynamic_obstacles_planner_never_steps_into_an_occupied_cell(env_id):
    env, expert = make(env_id), expert_for(env_id)
    occupied = 0
    for seed in range(30):
        reset(env, seed)
        advise, over, reward = expert.start(env.unwrapped, lambda: None), False, 0
        while not over:
            action = advise(None)
            level = env.unwrapped
            front = level.grid.get(*level.front_pos)
            if front is not None and front.type != "goal":
                occupied += 1
                assert action != Actions.forward
            _, reward, terminated, truncated, _ = env.step(action)
            over = terminated or truncated
        assert reward > 0
    assert occupied > 20


def test_dynamic_obstacles_planner_ignores_what_is_out_of_view():
    """Balls in every empty cell that the agent does not see change nothing."""
    env = make("MiniGrid-Dynamic-Obstacles-16x16-v0")
    for seed in range(10):
        reset(env, seed)
        level = env.unwrapped
        advise = expert_for("MiniGrid-Dynamic-Obstacles-16x16-v0").start(level, lambda: None)
        before = advise(None)
        for x in range(1, 15):
            for y in range(1, 15):
                if level.grid.get(x, y) is None and not level.in_view(x, y):
                    level.grid.set(x, y, Ball())
        assert advise(None) == before


def test_dynamic_obstacles_planner_waits_when_shut_in():
    env = make("MiniGrid-Dynamic-Obstacles-8x8-v0")
    reset(env, 0)
    level = env.unwrapped
    for cell in ((2, 1), (1, 2)):
        level.grid.set(*cell, Ball())
    advise = expert_for("MiniGrid-Dynamic-Obstacles-8x8-v0").start(level, lambda: None)
    assert level.front_pos.tolist() == [2, 1]
    assert advise(None) in (Actions.left, Actions.right)


# ---- experts that are lost stop -----------------------------------------------------

ENDLESS = ("BabyAI-UnlockToUnlock-v0", 4)  # minigrid's bot never returns on this level


def solve_in_a_thread(env: Any, env_id: str, time_limit: float) -> tuple[experts.Solution, float]:
    answers = []
    thread = threading.Thread(
        target=lambda: answers.append(expert_for(env_id).solve(env, time_limit=time_limit)), daemon=True
    )
    start = time.monotonic()
    thread.start()
    thread.join(timeout=30)
    assert answers, "the expert still runs"
    return answers[0], time.monotonic() - start


def test_endless_planning_is_stopped_by_counting():
    env_id, seed = ENDLESS
    env = make(env_id)
    reset(env, seed)
    solution, _ = solve_in_a_thread(env, env_id, time_limit=60)
    assert not solution.success
    assert solution.reason == "the bot changes its plan without end"


def test_endless_planning_is_stopped_by_the_clock_in_any_thread(monkeypatch):
    monkeypatch.setattr(experts, "MAX_SEARCHES_PER_ACTION", 10**9)
    env_id, seed = ENDLESS
    env = make(env_id)
    reset(env, seed)
    solution, seconds = solve_in_a_thread(env, env_id, time_limit=0.3)
    assert solution.reason == "not solved within 0.3 s"
    assert 0.3 <= seconds < 5


def test_a_level_without_a_way_is_reported():
    """A DoorKey level whose key is taken away: the bot says that it has no plan, and does not raise."""
    env = make("MiniGrid-DoorKey-5x5-v0")
    reset(env, 0)
    grid = env.unwrapped.grid
    index = next(i for i, thing in enumerate(grid.grid) if thing is not None and thing.type == "key")
    grid.grid[index] = None
    solution = expert_for("MiniGrid-DoorKey-5x5-v0").solve(env)
    assert not solution.success
    assert solution.reason.startswith("the bot has no plan")


def test_a_lost_episode_is_a_failure():
    """Levels of this id end without success when the wrong object is picked up, and here it is in the way."""
    env = make("BabyAI-PickupDistDebug-v0")
    reset(env, 36)
    solution = expert_for("BabyAI-PickupDistDebug-v0").solve(env)
    assert not solution.success
    assert solution.reason == "the episode ended without success"


def test_the_bot_looks_for_the_gap_instead_of_crossing_lava():
    """Here the goal is in view, beyond lava, before any way to it is."""
    env = make("MiniGrid-LavaCrossingS11N5-v0")
    reset(env, 1063)
    assert expert_for("MiniGrid-LavaCrossingS11N5-v0").solve(env).success


def test_running_out_of_steps_is_a_failure():
    env = make("MiniGrid-DoorKey-8x8-v0")
    env.unwrapped.max_steps = 5
    reset(env, 0)
    solution = expert_for("MiniGrid-DoorKey-8x8-v0").solve(env)
    assert solution.reason == "out of steps"
    assert len(solution.actions) == 5


# ---- which expert for which id ------------------------------------------------------


def test_known_experts_cover_the_study_and_name_the_program():
    known = known_experts()
    assert set(FAMILIES) <= set(known)
    assert known["MiniGrid-MemoryS13Random-v0"] == "memory planner"
    assert known["MiniGrid-Dynamic-Obstacles-8x8-v0"] == "dynamic-obstacles planner"
    assert known["BabyAI-BossLevel-v0"] == "BabyAI bot"
    assert sum(env_id.startswith("BabyAI-") for env_id in known) == 90
    assert "CartPole-v1" not in known


@pytest.mark.parametrize(
    ("env_id", "reason"),
    [
        ("BabyAI-KeyInBox-v0", "hidden in a box"),
        ("BabyAI-PutNextS5N2Carrying-v0", "starts with an object in hand"),
        ("BabyAI-OpenDoorsOrderN2Debug-v0", "asks for two doors"),
        ("MiniGrid-ObstructedMaze-1Dlh-v0", "hidden in boxes"),
        ("MiniGrid-ObstructedMaze-Full-v1", "hidden in boxes"),
        ("MiniGrid-Playground-v0", "none of the programs here"),
        ("CartPole-v1", "none of the programs here"),
        ("MiniGrid-DoorKey-7x7-v0", "no environment of this name"),
    ],
)
def test_ids_without_an_expert_are_refused_with_the_reason(env_id, reason):
    with pytest.raises(UsageError, match=f"No expert for {env_id}: .*{reason}"):
        expert_for(env_id)


def test_refusal_suggests_close_names():
    with pytest.raises(UsageError, match=r"Did you mean .*MiniGrid-DoorKey-8x8-v0"):
        expert_for("MiniGrid-DorKey-8x8-v0")
    with pytest.raises(UsageError, match=r"Did you mean MiniGrid-KeyCorridorS3R3-v0\?"):
        expert_for("key_corridor")


class WiderBlockedUnlockPickup(BlockedUnlockPickupEnv):
    """A variant as the study registers them: known by the minigrid class that it comes from."""


def test_a_registered_subclass_has_the_expert_of_its_class():
    gymnasium.register("Test-WiderBlockedUnlockPickup-v0", entry_point=WiderBlockedUnlockPickup)
    try:
        env = make("Test-WiderBlockedUnlockPickup-v0")
        reset(env, 0)
        assert expert_for("Test-WiderBlockedUnlockPickup-v0").solve(env).success
    finally:
        del gymnasium.registry["Test-WiderBlockedUnlockPickup-v0"]
