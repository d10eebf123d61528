"""Levels of MiniGrid and BabyAI as rows of bytes, and banks of them.

    row = import_level(env)                                     # after env.reset(seed=7)
    env = export_level(row, "MiniGrid-DoorKey-8x8-v0", seed=7)  # a Python environment in the same state
    levels = bank("MiniGrid-DoorKey-8x8-v0", "train", 1000)     # imported once, then cached on disk

Levels are made by minigrid's own `reset(seed)` and by nothing else. A level belongs to the split "train",
"validation" or "test" by its own hash. So the splits are disjoint whatever the seeds: when two seeds give the
same level, both are in the same split.

The engine knows the rules of minigrid's classes. What it does not know exactly is refused by name: a subclass
may make levels of its own, but not change what a step does, shows or pays.

Rows are described in engine.py. Shapes: N levels, B bytes in a row.
"""

import contextlib
import io
import itertools
import math
import multiprocessing
import os
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, RecordEpisodeStatistics
from minigrid.core.actions import Actions
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX
from minigrid.core.grid import Grid
from minigrid.core.roomgrid import RoomGrid
from minigrid.core.world_object import Ball, Box, Door, Floor, Goal, Key, Lava, Wall, WorldObj
from minigrid.envs.babyai.core import verifier
from minigrid.envs.babyai.core.levelgen import LevelGen
from minigrid.envs.babyai.core.roomgrid_level import RoomGridLevel
from minigrid.envs.blockedunlockpickup import BlockedUnlockPickupEnv
from minigrid.envs.dynamicobstacles import DynamicObstaclesEnv
from minigrid.envs.fetch import FetchEnv
from minigrid.envs.gotodoor import GoToDoorEnv
from minigrid.envs.gotoobject import GoToObjectEnv
from minigrid.envs.keycorridor import KeyCorridorEnv
from minigrid.envs.memory import MemoryEnv
from minigrid.envs.obstructedmaze import ObstructedMazeEnv
from minigrid.envs.putnear import PutNearEnv
from minigrid.envs.redbluedoors import RedBlueDoorEnv
from minigrid.envs.unlock import UnlockEnv
from minigrid.envs.unlockpickup import UnlockPickupEnv
from minigrid.minigrid_env import MiniGridEnv
from numpy.typing import NDArray
from tqdm import tqdm

from headstart.envs import engine, storage
from headstart.envs.engine import Rows, state_hash
from headstart.envs.errors import Busy, DataError, EnvironmentFailed, UsageError

__all__ = ["Levels", "bank", "export_level", "import_level", "level_hash", "split_of", "state_hash"]

SPLITS = {"test": 2, "validation": 1, "train": 5}  # of eight levels
BLOCK = 256  # seeds in one file of a bank
MAX_DRAWS = 300_000  # random numbers for one level; minigrid's largest levels take a few thousand
KIND = "headstart levels"

# ---- what the engine knows ----
RULES = {
    MiniGridEnv.step: engine.GOAL,
    RoomGridLevel.step: engine.INSTRUCTION,
    KeyCorridorEnv.step: engine.PICK_UP_TARGET,
    UnlockPickupEnv.step: engine.PICK_UP_TARGET,
    BlockedUnlockPickupEnv.step: engine.PICK_UP_TARGET,
    ObstructedMazeEnv.step: engine.PICK_UP_TARGET,
    UnlockEnv.step: engine.OPEN_TARGET,
    RedBlueDoorEnv.step: engine.RED_THEN_BLUE,
    MemoryEnv.step: engine.MEMORY,
    FetchEnv.step: engine.FETCH,
    GoToDoorEnv.step: engine.DONE_NEXT_TO_TARGET,
    GoToObjectEnv.step: engine.DONE_NEXT_TO_TARGET,
    PutNearEnv.step: engine.PUT_NEAR,
    DynamicObstaclesEnv.step: engine.OBSTACLES,
}
# What a step calls: a class that overrides one of these follows rules of its own.
UNCHANGED = {
    MiniGridEnv: (
        *("_reward", "_rand_int", "place_obj", "front_pos", "dir_vec"),
        *("gen_obs", "gen_obs_grid", "get_view_exts"),
    ),
    RoomGridLevel: ("update_objs_poss",),
}
OBJECT_CLASSES = {Wall, Floor, Door, Key, Ball, Box, Goal, Lava}
INTERACTIVE = {Door, Key, Ball, Box}
TRANSPARENT_WRAPPERS = {OrderEnforcing, PassiveEnvChecker, RecordEpisodeStatistics}
LEAF_KINDS = {
    verifier.GoToInstr: engine.GO_TO,
    verifier.PickupInstr: engine.PICK_UP,
    verifier.OpenInstr: engine.OPEN,
    verifier.PutNextInstr: engine.PUT_NEXT,
}
ORDERS = {verifier.BeforeInstr: engine.BEFORE, verifier.AfterInstr: engine.AFTER}
MASK64 = 2**64 - 1
NUMBER = "headstart_number"  # attribute of an exported object: its number in the row


def _rule_of(env: gymnasium.Env) -> int:
    """Return the environment's rule, or raise UsageError with its name and why the engine cannot have it."""
    if not isinstance(env.unwrapped, MiniGridEnv):
        raise _refusal(env, f"{type(env.unwrapped).__name__} is not a MiniGrid or BabyAI environment")
    layer = env
    while isinstance(layer, gymnasium.Wrapper):
        if type(layer) not in TRANSPARENT_WRAPPERS:
            raise _refusal(env, f"its wrapper {type(layer).__name__} may change what a step does or shows")
        layer = layer.env
    layer = env.unwrapped
    kind = type(layer)
    if kind.step not in RULES or "step" in vars(layer):
        raise _refusal(env, f"{kind.__name__} has a step() of its own, whose rule is unknown")
    for base, methods in UNCHANGED.items():
        for method in methods if isinstance(layer, base) else ():
            if getattr(kind, method) is not getattr(base, method) or method in vars(layer):
                raise _refusal(env, f"{kind.__name__} overrides {base.__name__}.{method}")
    if layer.agent_view_size != engine.VIEW:
        raise _refusal(env, f"its view is {layer.agent_view_size} cells wide, the engine's is {engine.VIEW}")
    if layer.actions is not Actions:
        raise _refusal(env, "it has actions of its own")
    if type(layer.grid) is not Grid or max(layer.grid.width, layer.grid.height) >= engine.NOWHERE:
        raise _refusal(env, f"its grid is not a minigrid Grid below {engine.NOWHERE} x {engine.NOWHERE}")
    if not 0 < layer.max_steps < 2**31:
        raise _refusal(env, f"max_steps is {layer.max_steps}")
    rule = RULES[kind.step]
    u = cast(Any, layer)
    if rule == engine.INSTRUCTION:
        _check_instruction(env, u.instrs)
    if rule == engine.OBSTACLES:
        if type(u.np_random.bit_generator) is not np.random.PCG64:
            raise _refusal(env, "its random numbers are not numpy's PCG64")
        if {id(thing) for thing in u.grid.grid if type(thing) in INTERACTIVE} != {id(o) for o in u.obstacles}:
            raise _refusal(env, "it has objects that are not its obstacles")
        if u.action_space.n != Actions.forward + 1:
            raise _refusal(env, f"it has {u.action_space.n} actions")
    return rule


def _check_instruction(env: gymnasium.Env, instruction: verifier.Instr) -> None:
    if verifier.use_done_actions:
        raise _refusal(env, "BABYAI_DONE_ACTIONS is set, the engine's instructions end without a done action")
    for _, leaf in _leaves(instruction):
        if type(leaf) not in LEAF_KINDS:
            raise _refusal(env, f"its instruction {type(leaf).__name__} is unknown")
        for description in _descriptions(leaf):
            if type(description) is not verifier.ObjDesc:
                raise _refusal(env, f"its description {type(description).__name__} is unknown")
        located = {verifier.GoToInstr: -1, verifier.PutNextInstr: -1}.get(type(leaf))
        if located is not None:
            for thing in _descriptions(leaf)[located].obj_set:
                if type(thing) not in INTERACTIVE:
                    raise _refusal(env, f"its instruction speaks of a {thing.type}")


def _refusal(env: gymnasium.Env, why: str) -> UsageError:
    name = env.spec.id if env.spec else type(env.unwrapped).__name__
    return UsageError(
        f"{name}: the compiled engine cannot run this environment: {why}. "
        "Use the Python environment and fork that (headstart.envs.fork)."
    )


# ---- BabyAI's instructions ----
def _clauses(instruction: Any) -> list[Any]:
    return [instruction.instr_a, instruction.instr_b] if type(instruction) in ORDERS else [instruction]


def _leaves(instruction: verifier.Instr) -> list[tuple[int, Any]]:
    """The single actions asked for, with their places in the row: 0, 1 in clause 0 and 2, 3 in clause 1."""
    leaves = []
    for side, clause in enumerate(_clauses(instruction)):
        parts = [clause.instr_a, clause.instr_b] if type(clause) is verifier.AndInstr else [clause]
        leaves += [(2 * side + i, part) for i, part in enumerate(parts)]
    return leaves


def _descriptions(leaf: Any) -> list[Any]:
    """What the leaf is about: for "put next", the objects to move and then those to put them next to."""
    return [leaf.desc_move, leaf.desc_fixed] if type(leaf) is verifier.PutNextInstr else [leaf.desc]


# ---- import ----
def import_level(env: gymnasium.Env, slots: int | None = None) -> NDArray[np.uint8]:
    """The state of a MiniGrid or BabyAI environment as one row (B,); `env` is only read.

    `slots` is the number of objects that the row has room for. By default, right after `reset`, it is what
    any level of this environment can need, so that all its rows have the same length.
    Raises UsageError for an environment that the engine does not know.
    """
    rule = _rule_of(env)
    u = cast(Any, env.unwrapped)
    width, height = u.grid.width, u.grid.height
    objects = _number_objects(env, rule)
    number_of = {id(thing): number for number, thing in objects.items()}
    needed = max(objects, default=0)
    slots = needed + _spare_slots(u) if slots is None else slots
    if not needed <= slots <= 255:
        raise UsageError(
            f"{type(u).__name__}: this level needs {needed} slots for its objects, not {slots} (limit 255)."
        )

    row = np.zeros(row_length(rule, width, height, slots), np.uint8)
    row[engine.VERSION] = engine.ROW_VERSION
    row[engine.RULE] = rule
    row[engine.WIDTH], row[engine.HEIGHT], row[engine.SLOTS] = width, height, slots
    row[engine.SEE_THROUGH] = u.see_through_walls
    row[engine.AGENT_X], row[engine.AGENT_Y] = u.agent_pos
    row[engine.DIRECTION] = u.agent_dir
    row[engine.CARRIED] = number_of.get(id(u.carrying), 0)
    _write_number(row, engine.STEP_COUNT, u.step_count)
    _write_number(row, engine.MAX_STEPS, u.max_steps)

    table, cells = _table(row), _cells(row)
    cells[:] = [_packed(thing) for thing in u.grid.grid]
    table[[number - 1 for number in objects], engine.X : engine.Y + 1] = engine.NOWHERE
    for number, thing in objects.items():
        table[number - 1, engine.CODE] = _packed(thing) // engine.COLOR_STEP * engine.COLOR_STEP
    for at, thing in enumerate(u.grid.grid):
        if id(thing) in number_of:
            table[number_of[id(thing)] - 1, engine.X : engine.Y + 1] = at % width, at // width
    for box in _reachable(u):
        if box.contains is not None:
            table[number_of[id(box)] - 1, engine.CONTENTS] = number_of[id(box.contains)]
    if rule == engine.INSTRUCTION:
        _import_instruction(row, u, number_of)
    elif rule == engine.OBSTACLES:
        _import_random_state(row, u)
    else:
        _import_target(row, rule, u, number_of)
    return row


def row_length(rule: int, width: int, height: int, slots: int) -> int:
    """Bytes of a row."""
    known = width * height if rule == engine.INSTRUCTION else 0
    random_state = engine.RNG if rule == engine.OBSTACLES else 0
    return engine.HEADER + width * height + engine.SLOT * slots + known + random_state


def _packed(thing: WorldObj | None) -> int:
    if thing is None:
        return engine.EMPTY
    code = OBJECT_TO_IDX[thing.type] * engine.TYPE_STEP + COLOR_TO_IDX[thing.color] * engine.COLOR_STEP
    if type(thing) is Door:
        return code + (engine.OPENED if thing.is_open else engine.LOCKED if thing.is_locked else engine.CLOSED)
    return code


def _reachable(u: Any) -> list[WorldObj]:
    """The doors, keys, balls and boxes that exist: in the grid row by row, carried, then inside boxes."""
    things = [thing for thing in u.grid.grid if type(thing) in INTERACTIVE]
    if u.carrying is not None:
        things.append(u.carrying)
    for thing in things:  # grows while it is read: a box may hold a box
        if thing.contains is not None:
            things.append(thing.contains)
    return things


def _number_objects(env: gymnasium.Env, rule: int) -> dict[int, WorldObj]:
    """number -> object. What an export has numbered keeps its number, the others get the free ones."""
    u = cast(Any, env.unwrapped)
    for kind in {type(thing) for thing in [*u.grid.grid, *_reachable(u)]}:
        if kind is not type(None) and kind not in OBJECT_CLASSES:
            raise _refusal(env, f"its object {kind.__name__} is not one of minigrid's")
    things = u.obstacles if rule == engine.OBSTACLES else _reachable(u)
    if rule == engine.INSTRUCTION:  # an opened box is gone, but the instruction still knows it
        for _, leaf in _leaves(u.instrs):
            spoken_of = [thing for description in _descriptions(leaf) for thing in description.obj_set]
            things = things + [thing for thing in spoken_of if type(thing) in INTERACTIVE]
    things = list({id(thing): thing for thing in things}.values())
    for thing in things:
        if type(thing) is Door and thing.is_open and thing.is_locked:
            raise _refusal(env, "a door is open and locked at once")
    numbered = {cast(int, getattr(thing, NUMBER)): thing for thing in things if hasattr(thing, NUMBER)}
    free = (number for number in itertools.count(1) if number not in numbered)
    return numbered | {next(free): thing for thing in things if not hasattr(thing, NUMBER)}


def _spare_slots(u: Any) -> int:
    """How many more objects another level of this environment may have: doors, the key of a locked room."""
    if not isinstance(u, RoomGrid):
        return 0
    inner_walls = u.num_rows * (u.num_cols - 1) + u.num_cols * (u.num_rows - 1)
    doors = sum(type(thing) is Door for thing in u.grid.grid)
    spare_key = isinstance(u, LevelGen) and u.locked_room_prob > 0 and u.locked_room is None
    covered = 0
    if isinstance(u, ObstructedMazeEnv):  # a ball in front of a door may have replaced a box with a key in it
        things = _reachable(u)
        locked = sum(isinstance(thing, Door) and thing.is_locked for thing in things)
        keys = sum(isinstance(thing, Key) for thing in things)
        covered = (locked - keys) * (2 if cast(Any, u).key_in_box else 1)
    return max(0, inner_walls - doors + spare_key + covered)  # in the middle of an episode it may be anything


def _import_instruction(row: NDArray[np.uint8], u: Any, number_of: dict[int, int]) -> None:
    order = ORDERS.get(type(u.instrs), engine.ONLY)
    row[engine.ORDER] = order
    if order != engine.ONLY:
        first_done = u.instrs.a_done if order == engine.BEFORE else u.instrs.b_done
        row[engine.FIRST_DONE] = first_done == "success"
        row[engine.ORDER_STRICT] = u.instrs.strict
    for side, clause in enumerate(_clauses(u.instrs)):
        if type(clause) is verifier.AndInstr:
            row[engine.LEAF_DONE + 2 * side] = clause.a_done == "success"
            row[engine.LEAF_DONE + 2 * side + 1] = clause.b_done == "success"
    table, cells, known = _table(row), _cells(row), _tail(row)
    for place, leaf in _leaves(u.instrs):
        row[engine.LEAF_KIND + place] = LEAF_KINDS[type(leaf)]
        row[engine.LEAF_STRICT + place] = getattr(leaf, "strict", False)
        row[engine.PRE_CARRYING + place] = number_of.get(id(getattr(leaf, "preCarrying", None)), 0)
        for i, description in enumerate(_descriptions(leaf)):
            bit = 1 << 2 * place + i
            for thing in description.obj_set:
                if id(thing) in number_of:  # "pick up a grey object" finds the walls too, which have no number
                    table[number_of[id(thing)] - 1, engine.MATCHES] |= bit
            for x, y in description.obj_poss:
                if cells[y * u.grid.width + x] != engine.WALL:
                    known[y * u.grid.width + x] |= bit


def _import_target(row: NDArray[np.uint8], rule: int, u: Any, number_of: dict[int, int]) -> None:
    table = _table(row)

    def position(thing: WorldObj) -> NDArray[np.uint8]:
        return table[number_of[id(thing)] - 1, engine.X : engine.Y + 1]

    target, other = slice(engine.TARGET_X, engine.TARGET_Y + 1), slice(engine.OTHER_X, engine.OTHER_Y + 1)
    if rule == engine.PICK_UP_TARGET:
        row[engine.TARGET] = number_of.get(id(u.obj), 0)  # 0: it was a box, and was opened
    elif rule == engine.OPEN_TARGET:
        row[target] = position(u.door)
    elif rule == engine.RED_THEN_BLUE:
        row[target], row[other] = position(u.red_door), position(u.blue_door)
    elif rule == engine.MEMORY:
        row[target], row[other] = u.success_pos, u.failure_pos
    elif rule == engine.FETCH:
        row[engine.TARGET_CODE] = _code(u.targetType, u.targetColor)
    elif rule == engine.DONE_NEXT_TO_TARGET:
        row[target] = u.target_pos
    elif rule == engine.PUT_NEAR:
        row[engine.TARGET_CODE] = _code(u.move_type, u.moveColor)
        row[target] = u.target_pos


def _import_random_state(row: NDArray[np.uint8], u: Any) -> None:
    state = u.np_random.bit_generator.state
    rng = _tail(row)
    for at, number in (
        (engine.STATE_HIGH, state["state"]["state"] >> 64),
        (engine.STATE_LOW, state["state"]["state"] & MASK64),
        (engine.INCREMENT_HIGH, state["state"]["inc"] >> 64),
        (engine.INCREMENT_LOW, state["state"]["inc"] & MASK64),
    ):
        _write_number(rng, at, number, 8)
    if state["has_uint32"]:  # otherwise `uinteger` is a used number that numpy left there: not state
        _write_number(rng, engine.HALF, state["uinteger"])
        rng[engine.HAS_HALF] = 1


def _code(kind: str, color: str) -> int:
    return OBJECT_TO_IDX[kind] * engine.TYPE_STEP + COLOR_TO_IDX[color] * engine.COLOR_STEP


def _write_number(row: NDArray[np.uint8], at: int, number: int, size: int = 4) -> None:
    row[at : at + size] = np.frombuffer(int(number).to_bytes(size, "little"), np.uint8)


def _read_number(row: NDArray[np.uint8], at: int, size: int = 4) -> int:
    return int.from_bytes(row[at : at + size].tobytes(), "little")


# ---- export ----
def export_level(row: NDArray[np.uint8], env_id: str, seed: int) -> gymnasium.Env:
    """A Python environment in the state of `row` (B,), a state of the level that `reset(seed)` makes.

    The level is made again, its objects are moved to where the row has them, and the result is imported and
    compared. An episode that has ended is exported as it looks at its end.
    """
    env = gymnasium.make(env_id, disable_env_checker=True)
    _reset(env, seed)
    rule = _rule_of(env)
    u = cast(Any, env.unwrapped)
    mismatch = DataError(f"The row is not a state of the level that {env_id} makes from seed {seed}.")
    if row[engine.VERSION] != engine.ROW_VERSION:
        raise DataError(f"A row of version {row[engine.VERSION]} cannot be exported: import the level again.")
    if (row[engine.RULE], row[engine.WIDTH], row[engine.HEIGHT]) != (rule, u.grid.width, u.grid.height):
        raise mismatch
    objects = _number_objects(env, rule)
    if max(objects, default=0) > row[engine.SLOTS] or row[engine.CARRIED] not in (0, *objects):
        raise mismatch
    for number, thing in objects.items():
        setattr(thing, NUMBER, number)
    _export_objects(row, u, objects)
    u.agent_pos = (int(row[engine.AGENT_X]), int(row[engine.AGENT_Y]))
    u.agent_dir = int(row[engine.DIRECTION])
    u.step_count = _read_number(row, engine.STEP_COUNT)
    u.max_steps = _read_number(row, engine.MAX_STEPS)
    if rule == engine.INSTRUCTION:
        _export_instruction(row, u, objects)
    elif rule == engine.OBSTACLES:
        _export_random_state(row, u)
    again = import_level(env, slots=int(row[engine.SLOTS]))
    again[engine.OUTCOME] = row[engine.OUTCOME]  # a Python environment does not know that its episode has ended
    if not np.array_equal(again, row):
        raise mismatch
    return env


def _export_objects(row: NDArray[np.uint8], u: Any, objects: dict[int, WorldObj]) -> None:
    cells = _cells(row)
    u.grid.grid = [None if type(thing) in INTERACTIVE else thing for thing in u.grid.grid]
    for number, thing in objects.items():
        _, x, y, *_ = _table(row)[number - 1].tolist()
        if max(x, y) == engine.NOWHERE or _table(row)[number - 1, engine.CODE] == 0:
            continue  # carried, inside a box, or gone
        u.grid.set(x, y, thing)
        thing.cur_pos = (x, y)
        if isinstance(thing, Door):
            state = cells[y * u.grid.width + x] % engine.COLOR_STEP
            thing.is_open, thing.is_locked = bool(state == engine.OPENED), bool(state == engine.LOCKED)
    carried = objects.get(int(row[engine.CARRIED]))
    if carried is not None:
        carried.cur_pos = (-1, -1)
    u.carrying = carried


def _export_instruction(row: NDArray[np.uint8], u: Any, objects: dict[int, WorldObj]) -> None:
    known = _tail(row).reshape(u.grid.height, u.grid.width)
    first_done = "success" if row[engine.FIRST_DONE] else False
    if type(u.instrs) is verifier.BeforeInstr:
        u.instrs.a_done = first_done
    elif type(u.instrs) is verifier.AfterInstr:
        u.instrs.b_done = first_done
    for side, clause in enumerate(_clauses(u.instrs)):
        if type(clause) is verifier.AndInstr:
            clause.a_done, clause.b_done = (
                "success" if row[engine.LEAF_DONE + 2 * side + i] else False for i in range(2)
            )
    for place, leaf in _leaves(u.instrs):
        leaf.preCarrying = objects.get(int(row[engine.PRE_CARRYING + place]))
        for i, description in enumerate(_descriptions(leaf)):
            x_y = np.argwhere(known.T >> 2 * place + i & 1)  # minigrid goes through the columns
            description.obj_poss = [(int(x), int(y)) for x, y in x_y]


def _export_random_state(row: NDArray[np.uint8], u: Any) -> None:
    rng = _tail(row)
    state, increment = (
        _read_number(rng, high, 8) << 64 | _read_number(rng, low, 8)
        for high, low in (
            (engine.STATE_HIGH, engine.STATE_LOW),
            (engine.INCREMENT_HIGH, engine.INCREMENT_LOW),
        )
    )
    u.np_random.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": state, "inc": increment},
        "has_uint32": int(rng[engine.HAS_HALF]),
        "uinteger": _read_number(rng, engine.HALF),
    }


# ---- parts of rows (..., B), as views ----
def _cells(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(..., height * width)"""
    first = rows.reshape(-1, rows.shape[-1])[0]
    area = int(first[engine.WIDTH]) * int(first[engine.HEIGHT])
    return rows[..., engine.HEADER : engine.HEADER + area]


def _table(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(..., slots, SLOT)"""
    first = rows.reshape(-1, rows.shape[-1])[0]
    start = engine.HEADER + int(first[engine.WIDTH]) * int(first[engine.HEIGHT])
    slots = int(first[engine.SLOTS])
    return rows[..., start : start + slots * engine.SLOT].reshape(*rows.shape[:-1], slots, engine.SLOT)


def _tail(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What comes after the objects: known positions (INSTRUCTION) or the random state (OBSTACLES)."""
    first = rows.reshape(-1, rows.shape[-1])[0]
    start = engine.HEADER + int(first[engine.WIDTH]) * int(first[engine.HEIGHT])
    return rows[..., start + engine.SLOT * int(first[engine.SLOTS]) :]


# ---- hashes and splits ----
def level_hash(rows: Rows) -> NDArray[np.uint64]:
    """A 64-bit hash (N,) of what makes a level, for rows (N, B) at the start of an episode.

    That is cells, objects, agent, rule and instruction; not the step count, nor the random state, nor which
    of several equal obstacles moves first.
    """
    header = rows[:, : engine.HEADER].copy()
    for at in (
        engine.VERSION,
        engine.SLOTS,
        engine.OUTCOME,
        *range(engine.STEP_COUNT, engine.STEP_COUNT + 4),
    ):
        header[:, at] = 0
    parts = [header, _cells(rows)]
    if rows[0, engine.RULE] == engine.INSTRUCTION:
        parts.append(_tail(rows))
    if rows[0, engine.RULE] != engine.OBSTACLES:  # last: how many empty slots follow changes no hash
        parts.append(_table(rows).reshape(len(rows), -1))
    return state_hash(np.concatenate(parts, axis=1))


def split_of(hashes: NDArray[np.uint64]) -> NDArray[np.str_]:
    """The split (N,) that levels belong to: of eight, two are "test", one "validation" and five "train"."""
    return np.repeat(list(SPLITS), list(SPLITS.values()))[(hashes % np.uint64(8)).astype(np.int64)]


# ---- banks ----
@dataclass(frozen=True)
class Levels:
    """Levels of one environment, ready to be played.

    env_id: what minigrid calls the environment.
    rows: (N, B) uint8, states at the start of an episode.
    mission: (N,) str, the instruction or goal in words.
    seed: (N,) int64, `reset(seed)` made the level.
    """

    env_id: str
    rows: Rows
    mission: NDArray[np.str_]
    seed: NDArray[np.int64]

    def __post_init__(self) -> None:
        if not len(self.rows) == len(self.mission) == len(self.seed):
            raise ValueError(f"{len(self.rows)} rows, {len(self.mission)} missions, {len(self.seed)} seeds")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> "Levels":
        """Some of the levels; `index` is a slice, a mask or an array of numbers."""
        return Levels(self.env_id, self.rows[index], self.mission[index], self.seed[index])


def import_seeds(env_id: str, seeds: Iterable[int]) -> Levels:
    """The levels that `reset(seed)` makes, one for each seed, without any cache."""
    return _import_seeds(env_id, seeds, skip_endless=False)


def _import_seeds(env_id: str, seeds: Iterable[int], skip_endless: bool) -> Levels:
    env = gymnasium.make(env_id, disable_env_checker=True)
    rows, mission, seed = [], [], []
    for n in seeds:
        try:
            _reset(env, n)
        except EndlessReset:
            if skip_endless:
                continue
            raise
        rows.append(import_level(env))
        mission.append(cast(Any, env.unwrapped).mission)
        seed.append(n)
    if not rows:
        raise UsageError(f"{env_id}: there is no level to import, not one of the seeds gives one.")
    length = max(map(len, rows))
    if any(len(row) != length for row in rows):
        raise UsageError(
            f"{env_id}: its levels need rows of different lengths, so they cannot be one bank. "
            "Give the environment the same size and number of objects at every reset."
        )
    return Levels(env_id, np.stack(rows), np.array(mission), np.array(seed, np.int64))


def bank(
    env_id: str,
    split: str,
    n: int,
    first_seed: int = 0,
    *,
    cache: str | Path | None = None,
    processes: int | None = None,
) -> Levels:
    """The first `n` levels of a split, in the order of their seeds from `first_seed` on.

    Seeds are imported in blocks of 256 by `processes` processes (default: one for each core) and kept in
    `cache` (default: $HEADSTART_CACHE, else ~/.cache/headstart), where all splits share them. Every call
    makes one of the levels again and compares: a bank that no longer fits its environment is refused.
    Seeds for which minigrid never finishes a level (BabyAI-SynthS5R2 has some) are left out.
    """
    if split not in SPLITS:
        raise UsageError(f"There is no split {split!r}: choose one of {', '.join(SPLITS)}.")
    if n < 1 or first_seed < 0:
        raise UsageError(f"A bank needs n >= 1 and first_seed >= 0, not n={n} and first_seed={first_seed}.")
    blocks = _Blocks(env_id, Path(cache) if cache is not None else default_cache(), processes)
    share = SPLITS[split] / 8
    parts: list[Levels] = []
    block, found = first_seed // BLOCK, 0
    while found < n:
        wanted = math.ceil((n - found) / (BLOCK * share))
        for levels in blocks.get(range(block, block + wanted)):
            chosen = (split_of(level_hash(levels.rows)) == split) & (levels.seed >= first_seed)
            parts.append(levels[chosen])
        block, found = block + wanted, sum(map(len, parts))
        if found == 0 and block * BLOCK - first_seed >= 4 * BLOCK:
            raise DataError(
                f"{env_id}: no level is in the split {split!r}, among {block * BLOCK - first_seed} seeds. "
                "It has too few different levels to be split: use an environment whose levels vary."
            )
    if len({part.rows.shape[1] for part in parts}) > 1:
        raise UsageError(f"{env_id}: its levels need rows of different lengths, so they cannot be one bank.")
    rows, mission, seed = (
        np.concatenate([getattr(part, name) for part in parts])[:n] for name in ("rows", "mission", "seed")
    )
    blocks.check(Levels(env_id, rows, mission, seed))
    return Levels(env_id, rows, mission, seed)


def default_cache() -> Path:
    """Where banks are kept: $HEADSTART_CACHE, else the user's cache directory."""
    chosen = os.environ.get("HEADSTART_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headstart"


class _Blocks:
    """The cached levels of one environment: block k has the seeds from k * BLOCK on, and is one file."""

    def __init__(self, env_id: str, cache: Path, processes: int | None) -> None:
        self.env_id = env_id
        self.processes = processes or len(os.sched_getaffinity(0))
        minigrid = version("minigrid")
        name = env_id.replace("/", "-").replace(":", "-")
        self.directory = cache / "levels" / f"{name} rows {engine.ROW_VERSION} minigrid {minigrid}"
        spec = gymnasium.spec(env_id)
        maker = cast(Any, spec.entry_point)
        maker = maker if isinstance(maker, str) else f"{maker.__module__}:{maker.__qualname__}"
        self.facts = {"env_id": env_id, "made_by": f"{maker} {spec.kwargs}", "minigrid": minigrid}

    def get(self, numbers: range) -> list[Levels]:
        missing = [number for number in numbers if not storage.exists(self._path(number))]
        if missing:
            with self._writer():
                self._build([number for number in missing if not storage.exists(self._path(number))])
        return [self._load(number) for number in numbers]

    def check(self, levels: Levels) -> None:
        """Make one level again: code that was changed under the same name and version shows here."""
        again = import_seeds(self.env_id, levels.seed[:1].tolist())
        if not np.array_equal(again.rows, levels.rows[:1]) or again.mission[0] != levels.mission[0]:
            raise DataError(
                f"{self.directory}: {self.env_id} makes another level of seed {levels.seed[0]} now than when "
                "this bank was made: its code has changed. Delete the directory, and the bank is made anew."
            )

    def _path(self, number: int) -> Path:
        return self.directory / f"{number:06d}.npz"

    def _build(self, numbers: list[int]) -> None:
        text, total = f"levels of {self.env_id}", len(numbers) * BLOCK
        with (
            tqdm(total=total, desc=text, unit="level", delay=2, disable=None) as bar,
            self._workers(len(numbers)) as imported,
        ):
            for number, levels in zip(numbers, imported(self._import, numbers), strict=True):
                self._save(number, levels)
                bar.update(BLOCK)

    @contextlib.contextmanager
    def _workers(self, n_blocks: int) -> Iterator[Callable[..., Iterable[Levels]]]:
        """A map() that spreads over processes, if there is enough to do for two."""
        workers = min(self.processes, n_blocks)
        if workers < 2:
            yield map
            return
        # fork: the children know what the caller has registered, and need no __main__ guard. They only import
        # levels, so no thread that the fork leaves behind (of torch, of TensorBoard) can hold what they need.
        with (
            warnings.catch_warnings(),
            ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool,
        ):
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
            yield pool.map

    def _import(self, number: int) -> Levels:
        return _import_seeds(self.env_id, range(number * BLOCK, (number + 1) * BLOCK), skip_endless=True)

    def _save(self, number: int, levels: Levels) -> None:
        """Rows and missions are compressed: grids are mostly walls, and one level's row is like the next."""
        text = "\n".join(levels.mission).encode()
        arrays = {
            "rows": np.frombuffer(zlib.compress(levels.rows.tobytes(), 1), np.uint8),
            "mission": np.frombuffer(zlib.compress(text), np.uint8),
            "seed": levels.seed,
        }
        facts = {**self.facts, "row_length": levels.rows.shape[1], "mission_length": len(text)}
        storage.save_arrays(self._path(number), arrays, kind=KIND, schema=engine.ROW_VERSION, meta=facts)

    def _load(self, number: int) -> Levels:
        path = self._path(number)
        arrays, facts = storage.load_arrays(path, kind=KIND, schema=engine.ROW_VERSION)
        for name, fact in self.facts.items():
            if facts.get(name) != fact:
                raise DataError(
                    f"{path}: has levels of {name} {facts.get(name)!r}, not {fact!r}. "
                    f"Delete {self.directory}, and the bank is made anew."
                )
        seed, row_length = arrays["seed"], facts["row_length"]
        rows = _decompress(arrays["rows"], len(seed) * row_length)
        mission = _decompress(arrays["mission"], facts["mission_length"]).decode().split("\n")
        rows = np.frombuffer(rows, np.uint8).reshape(len(seed), row_length)
        return Levels(self.env_id, rows, np.array(mission), seed)

    @contextlib.contextmanager
    def _writer(self) -> Iterator[None]:
        """Hold the directory's lock; another process that makes the same bank is waited for."""
        while True:
            with contextlib.ExitStack() as stack:
                try:
                    stack.enter_context(storage.lock(self.directory))
                except Busy:
                    time.sleep(0.1)
                    continue
                yield
                return


def _decompress(content: NDArray[np.uint8], size: int) -> bytes:
    """Never more than the size that the manifest states."""
    return zlib.decompressobj().decompress(content.tobytes(), size)


class EndlessReset(EnvironmentFailed):
    """Some seeds send minigrid's level generator round in circles, looking for a place where there is none."""


def _reset(env: gymnasium.Env, seed: int) -> None:
    """`env.reset(seed=seed)`, given up after MAX_DRAWS: unlike a time limit, that always hits the same seeds."""
    if not isinstance(env.unwrapped, MiniGridEnv):
        raise _refusal(env, f"{type(env.unwrapped).__name__} is not a MiniGrid or BabyAI environment")
    u = cast(Any, env.unwrapped)
    name = env.spec.id if env.spec else type(u).__name__
    draw, left = u._rand_int, itertools.repeat(None, MAX_DRAWS)

    def counted(low: int, high: int) -> int:
        for _ in left:
            return draw(low, high)
        raise EndlessReset(f"{name}: reset(seed={seed}) does not end: minigrid has no level for this seed.")

    u._rand_int = counted
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # BabyAI prints when it rejects a level
            env.reset(seed=seed)
    except EndlessReset:
        raise
    except Exception as error:
        raise EnvironmentFailed(f"{name}: reset(seed={seed}) raised {type(error).__name__}: {error}") from error
    finally:
        del u._rand_int
