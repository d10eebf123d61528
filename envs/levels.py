"""Levels of MiniGrid and BabyAI as rows of bytes.

    row = import_level(env)                                     # after env.reset(seed=7)
    env = export_level(row, "MiniGrid-DoorKey-8x8-v0", seed=7)  # a Python environment in the same state

Levels are made by minigrid's own `reset(seed)` and by nothing else.

The engine knows the rules of minigrid's classes. What it does not know exactly is refused by name: a subclass
may make levels of its own, but not change what a step does, shows or pays.

Rows are described in engine.py. Shapes: N levels, B bytes in a row.
"""

import contextlib
import io
import itertools
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

from headstart.envs import engine, variants  # noqa: F401  variants: registers our own ids
from headstart.envs.engine import Rows, state_hash
from headstart.envs.errors import DataError, EnvironmentFailed, UsageError

__all__ = ["EndlessReset", "export_level", "import_level", "level_hash", "number_objects", "reset_level"]

MAX_DRAWS = 300_000  # random numbers for one level; minigrid's largest levels take a few thousand

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
        "Use demonstrate(make_env, expert, ...) and make_vec_env(demos): they fork it in Python."
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


# ---- reset ----
class EndlessReset(EnvironmentFailed):
    """Some seeds send minigrid's level generator round in circles, looking for a place where there is none."""


def reset_level(env: gymnasium.Env, seed: int) -> None:
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


def number_objects(env: gymnasium.Env) -> None:
    """Number the objects right after `reset`, so that rows imported later in the episode number them in the same way.

    Without this they are numbered from wherever they lie at the time.
    """
    for number, thing in _number_objects(env, _rule_of(env)).items():
        setattr(thing, NUMBER, number)


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
    reset_level(env, seed)
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


# ---- the hash of a level ----
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
