"""Levels: rows that lose nothing, hashes that know a level, refusals by name."""

import contextlib
import inspect
import io
from enum import IntEnum
from functools import partialmethod
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import RecordEpisodeStatistics
from minigrid.core.actions import Actions
from minigrid.core.grid import Grid
from minigrid.core.world_object import Ball, Door
from minigrid.envs.babyai.core import verifier
from minigrid.envs.babyai.goto import GoToLocal
from minigrid.envs.doorkey import DoorKeyEnv
from minigrid.envs.dynamicobstacles import DynamicObstaclesEnv
from minigrid.envs.empty import EmptyEnv
from minigrid.wrappers import ImgObsWrapper

from headstart.envs import engine, levels
from headstart.envs.banks import import_seeds
from headstart.envs.errors import DataError, UsageError

pytestmark = pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")

DOOR_KEY = "MiniGrid-DoorKey-6x6-v0"
SYNTH = "BabyAI-SynthS5R2-v0"
EXPORTED = [
    DOOR_KEY,
    SYNTH,
    "MiniGrid-KeyCorridorS3R3-v0",
    "MiniGrid-ObstructedMaze-2Dlhb-v1",
    "MiniGrid-MemoryS13Random-v0",
    "MiniGrid-MultiRoom-N4-S5-v1",
    "MiniGrid-Dynamic-Obstacles-8x8-v0",
    "MiniGrid-PutNear-6x6-N2-v0",
    "BabyAI-KeyInBox-v0",
    "BabyAI-BossLevel-v0",
    "BabyAI-PutNextS5N2Carrying-v0",
    "BabyAI-PickupDist-v0",
]


def make(env_id: str, seed: int = 0, **arguments: Any) -> gymnasium.Env:
    env = gymnasium.make(env_id, disable_env_checker=True, **arguments)
    with contextlib.redirect_stdout(io.StringIO()):
        env.reset(seed=seed)
    return env


# ---- import and export ----------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", EXPORTED)
def test_row_to_python_to_row_is_the_identity(env_id: str) -> None:
    rng = np.random.default_rng(0)
    made = import_seeds(env_id, range(4))
    rows = made.rows.copy()
    for _ in range(30):
        ended = np.logical_or(*engine.step(rows, rng.choice(7, 4, p=[0.15, 0.15, 0.3, 0.15, 0.1, 0.14, 0.01])))
        for n in range(4):
            env = levels.export_level(rows[n], env_id, int(made.seed[n]))
            again = levels.import_level(env, slots=int(rows[n, engine.SLOTS]))
            again[engine.OUTCOME] = rows[n, engine.OUTCOME]
            assert np.array_equal(again, rows[n])
        rows[ended] = made.rows[ended]


def test_an_exported_environment_goes_on_as_the_row_does() -> None:
    rng = np.random.default_rng(1)
    made = import_seeds("BabyAI-MiniBossLevel-v0", range(8))
    rows = made.rows.copy()
    for _ in range(15):
        engine.step(rows, rng.choice([0, 1, 2, 3, 4, 5], len(rows)))
    for n in np.flatnonzero(rows[:, engine.OUTCOME] == engine.RUNNING):
        row = rows[n : n + 1].copy()
        env = levels.export_level(row[0], made.env_id, int(made.seed[n]))
        for action in rng.choice([0, 1, 2, 3, 4, 5], 25):
            obs, reward, terminated, _, _ = env.step(int(action))
            assert engine.step(row, np.array([action]))[0].tolist() == [terminated]
            cell = engine.observe(row)[0, :49].reshape(7, 7)
            assert np.array_equal(cell // 18, obs["image"][..., 0])
            assert engine.reward(row).tolist() == [reward]
            if terminated:
                break
            assert np.array_equal(levels.import_level(env, int(row[0, engine.SLOTS])), row[0])


def test_import_only_reads() -> None:
    env = make("MiniGrid-Dynamic-Obstacles-8x8-v0")
    first, second = levels.import_level(env), levels.import_level(env)
    assert np.array_equal(first, second)
    assert not any(hasattr(thing, levels.NUMBER) for thing in env.unwrapped.grid.grid)  # type: ignore


def test_rows_of_an_id_have_one_length() -> None:
    for env_id in ("BabyAI-BossLevel-v0", "MiniGrid-KeyCorridorS3R3-v0", "MiniGrid-ObstructedMaze-2Q-v0"):
        import_seeds(env_id, range(30))  # raises otherwise


def test_a_row_of_another_level_is_not_exported() -> None:
    made = import_seeds(DOOR_KEY, range(2))
    assert not np.array_equal(made.rows[0], made.rows[1])
    with pytest.raises(DataError, match="seed 1"):
        levels.export_level(made.rows[0], DOOR_KEY, 1)
    with pytest.raises(DataError, match="seed 0"):
        levels.export_level(made.rows[0], SYNTH, 0)
    row = made.rows[0].copy()
    row[engine.VERSION] = 9
    with pytest.raises(DataError, match="version 9"):
        levels.export_level(row, DOOR_KEY, 0)


def test_an_ended_episode_is_exported_as_it_ended() -> None:
    row = import_seeds("MiniGrid-Empty-5x5-v0", [0]).rows
    for action in (2, 2, 1, 2, 2):
        terminated, _ = engine.step(row, np.array([action]))
    assert terminated.tolist() == [True]  # type: ignore
    env = levels.export_level(row[0], "MiniGrid-Empty-5x5-v0", 0)
    assert tuple(env.unwrapped.agent_pos) == (3, 3)  # type: ignore


# ---- refusals -------------------------------------------------------------------------------------------


class OwnStep(DoorKeyEnv):
    def step(self, action):
        return super().step(action)


class OwnLevels(DoorKeyEnv):
    def _gen_grid(self, width, height):
        super()._gen_grid(width, height)
        self.mission = "find the way out"


class Bouncy(Ball):
    def can_overlap(self):
        return True


def refused(env: gymnasium.Env, because: str) -> None:
    with pytest.raises(UsageError, match=because):
        levels.import_level(env)


def started(env: gymnasium.Env) -> gymnasium.Env:
    env.reset(seed=0)
    return env


def test_what_changes_the_rules_is_refused_by_name() -> None:
    refused(started(gymnasium.make("CartPole-v1")), "CartPole-v1: .*CartPoleEnv is not a MiniGrid")
    refused(started(OwnStep()), r"OwnStep: .*step\(\) of its own")
    refused(make(DOOR_KEY, agent_view_size=5), f"{DOOR_KEY}: .*view is 5 cells wide")
    refused(make(DOOR_KEY, max_episode_steps=10), "wrapper TimeLimit")
    refused(ImgObsWrapper(make(DOOR_KEY)), "wrapper ImgObsWrapper")


CALLED = ("_reward", "_rand_int", "place_obj", "front_pos", "dir_vec", "gen_obs", "gen_obs_grid", "get_view_exts")


@pytest.mark.parametrize(
    ("kind", "method"), [*((EmptyEnv, method) for method in CALLED), (GoToLocal, "update_objs_poss")]
)
def test_what_a_step_calls_is_not_to_be_overridden(kind: Any, method: str) -> None:
    """Even where the same is done: by a class, or for one environment alone."""
    inherited, refusal = inspect.getattr_static(kind, method), rf"overrides (MiniGridEnv|RoomGridLevel)\.{method}\. "
    own = property(inherited.fget) if isinstance(inherited, property) else partialmethod(inherited)
    refused(started(type("Own", (kind,), {method: own})()), f"Own {refusal}")
    if not isinstance(inherited, property):
        patched = started(kind())
        setattr(patched, method, getattr(patched, method))
        refused(patched, refusal)


def test_what_the_engine_counts_on_is_looked_at() -> None:
    env: Any = make(DOOR_KEY)
    env.unwrapped.actions = IntEnum("Actions", [action.name for action in Actions])
    refused(env, "actions of its own")
    for limit in (0, 2**31):
        env = make(DOOR_KEY)
        env.unwrapped.max_steps = limit
        refused(env, f"max_steps is {limit}")
    env = make(DOOR_KEY)
    env.unwrapped.max_steps = 2**31 - 1
    levels.import_level(env)
    env = make("MiniGrid-Dynamic-Obstacles-6x6-v0")
    env.unwrapped.action_space = gymnasium.spaces.Discrete(7)
    refused(env, "it has 7 actions")
    env = make(DOOR_KEY)
    env.unwrapped.grid = type("OwnGrid", (Grid,), {})(8, 8)
    refused(env, "not a minigrid Grid")
    refused(started(EmptyEnv(size=engine.NOWHERE)), "not a minigrid Grid")
    levels.import_level(started(EmptyEnv(size=engine.NOWHERE - 1)))


def test_a_patched_environment_is_refused() -> None:
    env: Any = make(DOOR_KEY)
    env.unwrapped.step = lambda action: None
    refused(env, r"step\(\) of its own")
    env = make(DOOR_KEY)
    env.unwrapped.grid.set(1, 1, Bouncy())
    refused(env, "its object Bouncy")
    env = make(DOOR_KEY)
    env.unwrapped.grid.set(1, 1, Door("red", is_open=True, is_locked=True))
    refused(env, "open and locked at once")
    env = make("MiniGrid-Dynamic-Obstacles-6x6-v0")
    env.unwrapped.grid.set(1, 1, Ball())
    refused(env, "not its obstacles")
    env = make("MiniGrid-Dynamic-Obstacles-6x6-v0")
    env.unwrapped.np_random = np.random.Generator(np.random.MT19937(0))
    refused(env, "PCG64")


def test_an_unknown_instruction_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hop(verifier.GoToInstr):
        pass

    env: Any = make("BabyAI-GoToLocal-v0")
    env.unwrapped.instrs = Hop(env.unwrapped.instrs.desc)
    refused(env, "its instruction Hop is unknown")
    env = make("BabyAI-GoToLocal-v0")
    env.unwrapped.instrs.desc = verifier.ObjDesc(None, "grey")
    env.unwrapped.instrs.reset_verifier(env.unwrapped)
    refused(env, "speaks of a wall")
    env = make("BabyAI-GoToLocal-v0")
    env.unwrapped.instrs.desc.__class__ = type("Somewhere", (verifier.ObjDesc,), {})
    refused(env, "its description Somewhere is unknown")
    monkeypatch.setattr(verifier, "use_done_actions", "1")
    refused(make("BabyAI-GoToLocal-v0"), "BABYAI_DONE_ACTIONS")


def test_levels_of_ones_own_are_welcome() -> None:
    own = levels.import_level(started(OwnLevels(size=6)))
    assert np.array_equal(own, levels.import_level(make(DOOR_KEY)))
    assert np.array_equal(own, levels.import_level(RecordEpisodeStatistics(make(DOOR_KEY))))
    row = levels.import_level(started(DynamicObstaclesEnv(size=16, n_obstacles=9)))
    assert (levels._table(row)[:, engine.CODE] == 6 * 18 + 2 * 3).sum() == 9


# ---- hashes ---------------------------------------------------------------------------------------------


def test_hash_is_of_the_level_and_not_of_the_moment() -> None:
    made = import_seeds("MiniGrid-Dynamic-Obstacles-8x8-v0", range(2)).rows
    later = made.copy()
    later[:, engine.STEP_COUNT] = 5
    engine.reseed(later, 3)
    table = levels._table(later)
    table[:] = table[:, ::-1].copy()  # the same obstacles, in another order
    assert np.array_equal(levels.level_hash(later), levels.level_hash(made))
    later[0, engine.DIRECTION] ^= 1
    assert (levels.level_hash(later) == levels.level_hash(made)).tolist() == [False, True]


def test_hash_knows_what_is_in_a_box_and_what_is_asked() -> None:
    row = import_seeds("MiniGrid-ObstructedMaze-1Dlh-v0", [0]).rows
    other = row.copy()
    box = np.flatnonzero(levels._table(row)[0, :, engine.CONTENTS])[0]
    levels._table(other)[0, box, engine.CONTENTS] = 0
    assert levels.level_hash(row) != levels.level_hash(other)
    row = import_seeds("BabyAI-GoToLocal-v0", [0]).rows
    other = row.copy()
    levels._tail(other)[:] = 0
    assert levels.level_hash(row) != levels.level_hash(other)


def test_hash_does_not_depend_on_empty_slots() -> None:
    env = make(SYNTH)
    narrow = levels.import_level(env)[None]
    wide = levels.import_level(env, slots=int(narrow[0, engine.SLOTS]) + 7)[None]
    assert wide.shape[1] == narrow.shape[1] + 7 * engine.SLOT
    assert levels.level_hash(wide) == levels.level_hash(narrow)
    with pytest.raises(UsageError, match=r"needs .* slots"):
        levels.import_level(env, slots=1)
