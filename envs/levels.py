"""Levels of MiniGrid and BabyAI as rows of bytes, and banks of them.

    row = import_level(env)                                     # env.reset(seed=...) was called before
    env = export_level(row, "MiniGrid-DoorKey-8x8-v0", seed)    # a Python environment in the same state
    levels = bank("MiniGrid-DoorKey-8x8-v0", "train", 1000)     # import of minigrid's own levels, cached on disk

Levels are made by minigrid's own `reset(seed)` and by nothing else. A level belongs to the split "train", "validation"
or "test" by its own hash, so the splits are disjoint whatever the seeds; of two seeds that give the same level, both
are in the same split.

The engine knows the rules of the classes in minigrid, not of any environment: what it does not know exactly is refused
by name. A subclass may make other levels; one that changes what a step does, sees or pays is refused.

Rows are described in engine.py. Shapes: N levels, B bytes in a row.
"""

import contextlib
import io
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
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

from headstart.envs import engine
from headstart.envs.engine import Rows, state_hash
from headstart.envs.errors import DataError, UsageError

__all__ = ["Levels", "bank", "export_level", "import_level", "level_hash", "split_of", "state_hash"]

SPLITS = ("train", "validation", "test")

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


def _check_tail(env: gymnasium.Env) -> int:
    """Return the environment's rule, or raise UsageError with its name and why the engine cannot have it."""
    layer = env
    while isinstance(layer, gymnasium.Wrapper):
        if type(layer) not in TRANSPARENT_WRAPPERS:
            raise _refusal(env, f"its wrapper {type(layer).__name__} may change what a step does or shows")
        layer = layer.env
    if not isinstance(layer, MiniGridEnv):
        raise _refusal(env, f"{type(layer).__name__} is not a MiniGrid or BabyAI environment")
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
def _leaves(instruction: verifier.Instr) -> list[tuple[int, Any]]:
    """The single actions asked for, with their places in the row: clause 0 has places 0 and 1, clause 1 has 2 and 3."""
    ordered = cast(Any, instruction)
    clauses = [ordered.instr_a, ordered.instr_b] if type(instruction) in ORDERS else [ordered]
    leaves = []
    for side, clause in enumerate(clauses):
        parts = [clause.instr_a, clause.instr_b] if type(clause) is verifier.AndInstr else [clause]
        leaves += [(2 * side + i, part) for i, part in enumerate(parts)]
    return leaves


def _descriptions(leaf: Any) -> list[Any]:
    """What the leaf is about: for "put next", the objects to move and then those to put them next to."""
    return [leaf.desc_move, leaf.desc_fixed] if type(leaf) is verifier.PutNextInstr else [leaf.desc]


# ---- import ----
def import_level(env: gymnasium.Env, slots: int | None = None) -> NDArray[np.uint8]:
    """The state of a MiniGrid or BabyAI environment as one row (B,); `env` is only read.

    `slots` is the number of objects that the row has room for. By default, right after `reset`, it is what any level
    of this environment can need, so that all its rows have the same length.
    Raises UsageError for an environment that the engine does not know.
    """
    rule = _check_tail(env)
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
        return code + (
            engine.OPENED if thing.is_open else engine.LOCKED if thing.is_locked else engine.CLOSED
        )
    return code


def _reachable(u: Any) -> list[WorldObj]:
    """The doors, keys, balls and boxes that exist: in the grid row by row, carried, then what is inside boxes."""
    things = [thing for thing in u.grid.grid if type(thing) in INTERACTIVE]
    if u.carrying is not None:
        things.append(u.carrying)
    for thing in things:  # grows while it is read: a box may hold a box
        if thing.contains is not None:
            things.append(thing.contains)
    return things


def _number_objects(env: gymnasium.Env, rule: int) -> dict[int, WorldObj]:
    """number -> object. An object that an export has numbered keeps its number, the others get the free ones."""
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
    """How many objects more another level of the same environment may have: doors, and the key of a locked room."""
    if not isinstance(u, RoomGrid):
        return 0
    inner_walls = u.num_rows * (u.num_cols - 1) + u.num_cols * (u.num_rows - 1)
    doors = sum(type(thing) is Door for thing in u.grid.grid)
    spare_key = isinstance(u, LevelGen) and u.locked_room_prob > 0 and u.locked_room is None
    return inner_walls - doors + spare_key


def _import_instruction(row: NDArray[np.uint8], u: Any, number_of: dict[int, int]) -> None:
    order = ORDERS.get(type(u.instrs), engine.ONLY)
    row[engine.ORDER] = order
    if order != engine.ONLY:
        first_done = u.instrs.a_done if order == engine.BEFORE else u.instrs.b_done
        row[engine.FIRST_DONE] = first_done == "success"
        row[engine.ORDER_STRICT] = u.instrs.strict
        clauses = [u.instrs.instr_a, u.instrs.instr_b]
    else:
        clauses = [u.instrs]
    for side, clause in enumerate(clauses):
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
                if (
                    id(thing) in number_of
                ):  # "pick up a grey object" finds the walls too, which have no number
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
        row[engine.TARGET] = number_of[id(u.obj)]
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
    if state[
        "has_uint32"
    ]:  # otherwise numpy leaves in `uinteger` what it has used before: not part of the state
        _write_number(rng, engine.HALF, state["uinteger"])
        rng[engine.HAS_HALF] = 1


def _code(kind: str, color: str) -> int:
    return OBJECT_TO_IDX[kind] * engine.TYPE_STEP + COLOR_TO_IDX[color] * engine.COLOR_STEP


def _write_number(row: NDArray[np.uint8], at: int, number: int, size: int = 4) -> None:
    row[at : at + size] = np.frombuffer(int(number).to_bytes(size, "little"), np.uint8)


def _read_number(row: NDArray[np.uint8], at: int, size: int = 4) -> int:
    return int.from_bytes(row[at : at + size].tobytes(), "little")


# ---- parts of rows (..., B), as views -------------------------------------------------------------------------------
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
    """What comes after the objects: known positions (rule INSTRUCTION) or the random state (rule OBSTACLES)."""
    first = rows.reshape(-1, rows.shape[-1])[0]
    start = engine.HEADER + int(first[engine.WIDTH]) * int(first[engine.HEIGHT])
    return rows[..., start + engine.SLOT * int(first[engine.SLOTS]) :]


# ---- hashes and splits ----
def level_hash(rows: Rows) -> NDArray[np.uint64]:
    """A 64-bit hash (N,) of what makes each level: cells, objects, agent, rule and instruction of rows (N, B) at the
    start of an episode. Not of the step count, nor of the random state; and not of the order of equal obstacles."""
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
    """The split (N,) that levels belong to: one in four is "test", one in eight "validation", the others "train"."""
    return np.array(["test", "test", "validation", *["train"] * 5])[(hashes % np.uint64(8)).astype(np.int64)]


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
    """The levels that `reset(seed)` makes, one for each seed."""
    env = gymnasium.make(env_id, disable_env_checker=True)
    rows, missions, made = [], [], []
    for seed in seeds:
        with contextlib.redirect_stdout(io.StringIO()):  # BabyAI prints when it rejects a level
            env.reset(seed=seed)
        rows.append(import_level(env))
        missions.append(cast(Any, env.unwrapped).mission)
        made.append(seed)
    return Levels(env_id, np.stack(rows), np.array(missions), np.array(made, np.int64))


BLOCK = 256  # seeds imported at once


def bank(env_id: str, split: str, n: int, first_seed: int = 0) -> Levels:
    """The first `n` levels of a split, in the order of their seeds from `first_seed` on."""
    if split not in SPLITS:
        raise UsageError(f"There is no split {split!r}: choose one of {', '.join(SPLITS)}.")
    blocks, found, seed = [], 0, first_seed
    while found < n:
        block = import_seeds(env_id, range(seed, seed + BLOCK))
        block = block[split_of(level_hash(block.rows)) == split]
        blocks.append(block)
        found, seed = found + len(block), seed + BLOCK
        if found == 0 and seed - first_seed >= 1024:
            raise DataError(
                f"{env_id} has no level in the split {split!r}: none in {seed - first_seed} seeds. "
                "It makes too few different levels to be split; use an id with random levels."
            )
    return Levels(
        env_id,
        *(
            np.concatenate([getattr(block, name) for block in blocks])[:n]
            for name in ("rows", "mission", "seed")
        ),
    )
