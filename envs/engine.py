"""Compiled MiniGrid and BabyAI: the state of an environment is a row of bytes, these kernels act on rows.

    terminated, truncated = step(rows, action)      # in place
    frame = observe(rows)                           # what each agent sees now
    futures = branch(rows, action)                  # rows stay as they are

A fork is a copy of a row, so trying K actions for H steps from thousands of states is one call. Levels come
from minigrid's own `reset` (levels.py), and the kernels must agree with `minigrid` observation by observation
(tests/envs/test_engine.py): the code follows minigrid's own methods, whose names are given.

Shapes: N rows, B bytes in a row, K alternatives, H steps, 50 bytes in a frame.

A *packed cell* is one byte, type * 18 + color * 3 + state in minigrid's own numbers, and 0 when unseen.
A *frame* is the 49 packed cells of the agent's view (cell (i, j) of minigrid's `image` at i * 7 + j) and then
the agent's direction. The carried object is part of the view: minigrid draws it in the agent's own cell.

A *row* is
    HEADER bytes                the fields named below
    width * height bytes        packed cells, row by row
    slots * SLOT bytes          the objects (doors, keys, balls, boxes), numbered from 1; empty slots are zero
    width * height bytes        rule INSTRUCTION only: for each cell, which descriptions are known to fit
    RNG bytes                   rule OBSTACLES only: the state of numpy's PCG64
Its size is data in its header, so that one compiled version of every kernel serves all environments.

The kernels use one thread and release the GIL. To use many cores, run one process per core.
The layout is in this file and not in levels.py because numba's cache notices changes in this file only.
"""

import sys
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numba.core import event
from numpy.typing import NDArray

from headstart.envs.errors import DataError, UsageError

ROW_VERSION = 1
VIEW = 7
FRAME = VIEW * VIEW + 1
N_ACTIONS = 7  # of minigrid; `n_actions` says how many of them an environment has
NOWHERE = 255  # x and y of an object that is carried, inside a box, or gone

# ---- the header: byte offsets ----
VERSION = 0
RULE = 1
WIDTH = 2
HEIGHT = 3
SLOTS = 4
SEE_THROUGH = 5
OUTCOME = 6
AGENT_X = 7
AGENT_Y = 8
DIRECTION = 9
CARRIED = 10  # number of the carried object, 0 for none
STEP_COUNT = 12  # 4 bytes, little-endian, as all numbers below that take more than one byte
MAX_STEPS = 16  # 4 bytes
TARGET = 20  # number of the object that the rule is about
TARGET_CODE = 21  # its packed cell
TARGET_X, TARGET_Y = 22, 23
OTHER_X, OTHER_Y = 24, 25
ORDER = 26  # BabyAI's instruction: see _verify
ORDER_STRICT = 27
FIRST_DONE = 28
LEAF_KIND = 29  # 4 bytes, one per leaf
LEAF_STRICT = 33  # 4 bytes
LEAF_DONE = 37  # 4 bytes
PRE_CARRYING = 41  # 4 bytes: number of the object that was carried when the leaf was last verified
HEADER = 48

# ---- an object: byte offsets inside its slot ----
CODE = 0  # packed cell; of a door without its state, which is in the cell
X, Y = 1, 2
CONTENTS = 3  # number of the object inside a box
MATCHES = 4  # bit 2 * leaf: in the description of that leaf; bit 2 * leaf + 1: in its "next to" description
SLOT = 5

# ---- PCG64: byte offsets after the objects ----
STATE_HIGH, STATE_LOW, INCREMENT_HIGH, INCREMENT_LOW = 0, 8, 16, 24
HALF = 32  # the half of the last 64 random bits that has not been used yet
HAS_HALF = 36
RNG = 37

# ---- rules: which `step` the environment's class has (levels.py maps the methods to these) ----
GOAL = 0
INSTRUCTION = 1
PICK_UP_TARGET = 2
OPEN_TARGET = 3
RED_THEN_BLUE = 4
MEMORY = 5
FETCH = 6
DONE_NEXT_TO_TARGET = 7
PUT_NEAR = 8
OBSTACLES = 9

# ---- what an episode came to ----
RUNNING, SUCCESS, FAILURE, HARM = 0, 1, 2, 3  # HARM: dynamic obstacles, the only negative reward

# ---- BabyAI's instructions ----
ONLY, BEFORE, AFTER = 0, 1, 2
NO_LEAF, GO_TO, PICK_UP, OPEN, PUT_NEXT = 0, 1, 2, 3, 4

# ---- minigrid's numbers ----
LEFT, RIGHT, FORWARD, PICKUP, DROP, TOGGLE, DONE = range(N_ACTIONS)
COLOR_STEP, TYPE_STEP = 3, 18
EMPTY = 1 * TYPE_STEP
WALL = 2 * TYPE_STEP + 5 * COLOR_STEP  # grey
DOOR_TYPE, KEY_TYPE, BALL_TYPE, BOX_TYPE, GOAL_TYPE, LAVA_TYPE = 4, 5, 6, 7, 8, 9
OPENED, CLOSED, LOCKED = 0, 1, 2

DX = np.array([1, 0, -1, 0])
DY = np.array([0, 1, 0, -1])

_code = np.arange(256)
TYPE = _code // TYPE_STEP
COLOR = _code % TYPE_STEP // COLOR_STEP
STATE = _code % COLOR_STEP
CAN_OVERLAP = np.isin(TYPE, (1, 3, GOAL_TYPE, LAVA_TYPE)) | ((TYPE == DOOR_TYPE) & (STATE == OPENED))
CAN_PICK_UP = np.isin(TYPE, (KEY_TYPE, BALL_TYPE, BOX_TYPE))
OPAQUE = (TYPE == 2) | ((TYPE == DOOR_TYPE) & (STATE != OPENED))


def _sweep_table() -> NDArray[np.uint16]:
    """One row of the view in `Grid.process_vis`, for all 128 x 128 combinations of what is seen and opaque.

    Entry [seen, opaque]: the low byte is what is seen of the row in the end, the high byte what it shows of
    the row behind it. Bit i stands for column i.
    """
    seen = np.repeat(np.arange(128)[:, None], 128, axis=1)
    clear = ~np.arange(128)[None, :]
    behind = np.zeros_like(seen)
    for columns, side in ((range(VIEW - 1), 1), (range(VIEW - 1, 0, -1), -1)):
        for i in columns:
            through = (seen & clear) >> i & 1
            seen = seen | through << (i + side)
            behind = behind | through << i | through << (i + side)
    return (seen | behind << 8).astype(np.uint16)


SWEEP = _sweep_table()
HASH_WEIGHTS = np.random.PCG64(20260101).random_raw(1 << 17) | np.uint64(1)  # enough for a grid of 254 x 254


# ---- compiling: say so, once ----
class _Announce(event.Listener):
    """Says on stderr that the first call compiles. A kernel loaded from numba's cache sends no such event."""

    def __init__(self) -> None:
        self.said = False

    def on_start(self, event: Any) -> None:
        if not self.said and event.data["dispatcher"].py_func.__module__ == __name__:
            self.said = True
            print("headstart: compiling the engine, once", file=sys.stderr, flush=True)

    def on_end(self, event: Any) -> None:
        pass


event.register("numba:compile", _Announce())


def _kernel(function: Any) -> Any:
    """Compile at the first call; cache in __pycache__, the user's cache directory or $NUMBA_CACHE_DIR."""
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # none of them can be written to: every process compiles, and says so
        return njit(nogil=True)(function)


# ---- reading and writing a row ----
@njit(inline="always")
def _get(row, at):
    """The byte as a signed number: arithmetic on uint8 would silently become uint64 in numba."""
    return np.int64(row[at])


@njit(inline="always")
def _read(row, at, size):
    value = np.uint64(0)
    for i in range(size):
        value |= np.uint64(row[at + i]) << np.uint64(8 * i)
    return value


@njit(inline="always")
def _write(row, at, size, value):
    for i in range(size):
        row[at + i] = np.uint8(value >> np.uint64(8 * i) & np.uint64(255))


@njit
def _get32(row, at):
    return np.int64(_read(row, at, 4))


@njit
def _put32(row, at, value):
    _write(row, at, 4, np.uint64(value))


@njit
def _in_grid(row, x, y):
    return 0 <= x < _get(row, WIDTH) and 0 <= y < _get(row, HEIGHT)


@njit
def _cell(row, x, y):
    """Where the cell is in the row."""
    return HEADER + y * _get(row, WIDTH) + x


@njit
def _look(row, x, y):
    """What is at (x, y). Outside of the grid, where minigrid itself stops with an error, there is wall."""
    return _get(row, _cell(row, x, y)) if _in_grid(row, x, y) else WALL


@njit
def _slot(row, number):
    """Where the object is in the row."""
    return HEADER + _get(row, WIDTH) * _get(row, HEIGHT) + SLOT * (number - 1)


@njit
def _after_slots(row):
    """Where the known positions (INSTRUCTION) or the random state (OBSTACLES) begin."""
    return _slot(row, _get(row, SLOTS) + 1)


@njit
def _object_at(row, x, y):
    """Number of the object that lies at (x, y), 0 if there is none."""
    slot = _slot(row, 1)
    for number in range(1, _get(row, SLOTS) + 1):
        if row[slot + X] == x and row[slot + Y] == y and row[slot + CODE] != 0:
            return number
        slot += SLOT
    return 0


@njit
def _carried_code(row):
    """The packed cell of the carried object, EMPTY if there is none."""
    carried = _get(row, CARRIED)
    return _get(row, _slot(row, carried) + CODE) if carried != 0 else EMPTY


@njit
def _place(row, number, x, y):
    slot = _slot(row, number)
    row[_cell(row, x, y)] = row[slot + CODE]
    row[slot + X] = x
    row[slot + Y] = y


@njit
def _take_away(row, number):
    slot = _slot(row, number)
    row[_cell(row, _get(row, slot + X), _get(row, slot + Y))] = EMPTY
    row[slot + X] = NOWHERE
    row[slot + Y] = NOWHERE


# ---- random numbers: numpy's ----
# While it is used, the random state is an array of six numbers. Two 64-bit halves make one 128-bit number.
HIGH, LOW, ADD_HIGH, ADD_LOW, SPARE, HAS_SPARE = 0, 1, 2, 3, 4, 5


@njit
def _random_state(row):
    at = _after_slots(row)
    rng = np.empty(6, np.uint64)
    for i in range(4):
        rng[i] = _read(row, at + 8 * i, 8)
    rng[SPARE] = _read(row, at + HALF, 4)
    rng[HAS_SPARE] = row[at + HAS_HALF]
    return rng


@njit
def _keep_random_state(row, rng):
    at = _after_slots(row)
    for i in range(4):
        _write(row, at + 8 * i, 8, rng[i])
    _write(row, at + HALF, 4, rng[SPARE])
    row[at + HAS_HALF] = rng[HAS_SPARE]


@njit
def _multiply_high(a, b):
    """The high 64 bits of the product of two 64-bit numbers."""
    low32, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    a_low, a_high, b_low, b_high = a & low32, a >> shift, b & low32, b >> shift
    middle = a_high * b_low + (a_low * b_low >> shift)
    middle2 = a_low * b_high + (middle & low32)
    return a_high * b_high + (middle >> shift) + (middle2 >> shift)


@njit
def _pcg64(rng):
    """The next 64 random bits of numpy's PCG64 (`pcg64_next64`: 128-bit linear congruence, then XSL-RR)."""
    multiplier_high, multiplier_low = np.uint64(0x2360ED051FC65DA4), np.uint64(0x4385DF649FCCF645)
    high = _multiply_high(rng[LOW], multiplier_low) + rng[HIGH] * multiplier_low + rng[LOW] * multiplier_high
    low = rng[LOW] * multiplier_low + rng[ADD_LOW]
    high += rng[ADD_HIGH] + np.uint64(low < rng[ADD_LOW])  # the sum of the low halves may carry
    rng[HIGH], rng[LOW] = high, low
    folded, turn = high ^ low, high >> np.uint64(58)
    return folded >> turn | folded << (np.uint64(64) - turn & np.uint64(63))


@njit
def _pcg32(rng):
    """The next 32 random bits: numpy uses the low half first and keeps the high half (`pcg64_next32`)."""
    if rng[HAS_SPARE]:
        bits = rng[SPARE]
        rng[SPARE], rng[HAS_SPARE] = 0, 0  # a used number is not state
        return bits
    bits = _pcg64(rng)
    rng[SPARE], rng[HAS_SPARE] = bits >> np.uint64(32), 1
    return bits & np.uint64(0xFFFFFFFF)


@njit
def _random_integer(rng, low, high):
    """`Generator.integers(low, high)` for ranges below 2**32: Lemire's method, as numpy has it."""
    if high - low <= 1:
        return low  # numpy draws nothing either
    span, low32, shift = np.uint64(high - low), np.uint64(0xFFFFFFFF), np.uint64(32)
    product = _pcg32(rng) * span
    if product & low32 < span:
        threshold = (low32 - (span - np.uint64(1))) % span
        while product & low32 < threshold:
            product = _pcg32(rng) * span
    return low + np.int64(product >> shift)


@njit
def _reseed_row(row, seed):
    """An independent stream of random numbers: outputs of splitmix64 as state and increment."""
    rng = np.zeros(6, np.uint64)
    for i in range(4):
        seed += np.uint64(0x9E3779B97F4A7C15)
        rng[i] = _mix(seed)
    rng[ADD_LOW] |= np.uint64(1)  # the increment must be odd
    _keep_random_state(row, rng)


@njit
def _mix(bits):
    """The finaliser of splitmix64."""
    bits = (bits ^ bits >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ bits >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return bits ^ bits >> np.uint64(31)


# ---- step ----
@njit
def _move_obstacles(row):
    """The loop at the start of `DynamicObstaclesEnv.step`; its `place_obj` gives up after 101 tries."""
    rng = _random_state(row)
    for number in range(1, _get(row, SLOTS) + 1):
        slot = _slot(row, number)
        if row[slot + CODE] == 0:
            break
        old_x, old_y = _get(row, slot + X), _get(row, slot + Y)
        top_x, top_y = max(old_x - 1, 0), max(old_y - 1, 0)
        for _ in range(101):
            x = _random_integer(rng, top_x, min(top_x + 3, _get(row, WIDTH)))
            y = _random_integer(rng, top_y, min(top_y + 3, _get(row, HEIGHT)))
            on_agent = x == _get(row, AGENT_X) and y == _get(row, AGENT_Y)
            if row[_cell(row, x, y)] == EMPTY and not on_agent:
                _place(row, number, x, y)
                row[_cell(row, old_x, old_y)] = EMPTY
                break
    _keep_random_state(row, rng)


@njit
def _act(row, action, x, y, front):
    """`MiniGridEnv.step`: the agent's action on the cell `front` at (x, y) before it."""
    if action == LEFT:
        row[DIRECTION] = (_get(row, DIRECTION) + 3) % 4
    elif action == RIGHT:
        row[DIRECTION] = (_get(row, DIRECTION) + 1) % 4
    elif action == FORWARD:
        if CAN_OVERLAP[front]:
            row[AGENT_X] = x
            row[AGENT_Y] = y
        if TYPE[front] == GOAL_TYPE:
            row[OUTCOME] = SUCCESS
        elif TYPE[front] == LAVA_TYPE:
            row[OUTCOME] = FAILURE
    elif action == PICKUP:
        if CAN_PICK_UP[front] and row[CARRIED] == 0:
            row[CARRIED] = _object_at(row, x, y)
            _take_away(row, _get(row, CARRIED))
    elif action == DROP:
        if front == EMPTY and row[CARRIED] != 0:
            _place(row, _get(row, CARRIED), x, y)
            row[CARRIED] = 0
    elif action == TOGGLE:
        if TYPE[front] == DOOR_TYPE:
            _toggle_door(row, x, y, front)
        elif TYPE[front] == BOX_TYPE:
            _open_box(row, x, y)


@njit
def _toggle_door(row, x, y, door):
    """`Door.toggle`"""
    if STATE[door] == LOCKED:
        carried = _carried_code(row)
        if TYPE[carried] == KEY_TYPE and COLOR[carried] == COLOR[door]:
            row[_cell(row, x, y)] = door - LOCKED + OPENED
    elif STATE[door] == CLOSED:
        row[_cell(row, x, y)] = door - CLOSED + OPENED
    else:
        row[_cell(row, x, y)] = door - OPENED + CLOSED


@njit
def _open_box(row, x, y):
    """`Box.toggle`: what is inside takes the box's place, and the box is gone."""
    number = _object_at(row, x, y)
    slot = _slot(row, number)
    contents = _get(row, slot + CONTENTS)
    _take_away(row, number)
    row[slot + CONTENTS] = 0
    if row[TARGET] == number:  # the box that was wanted cannot be had any more
        row[TARGET] = 0
    if row[slot + MATCHES] == 0:  # nothing else refers to it
        row[slot : slot + SLOT] = 0
        for leaf in range(4):
            if row[PRE_CARRYING + leaf] == number:
                row[PRE_CARRYING + leaf] = 0
    if contents != 0:
        _place(row, contents, x, y)


@njit
def _next_to_target(row):
    across = abs(_get(row, AGENT_X) - _get(row, TARGET_X))
    along = abs(_get(row, AGENT_Y) - _get(row, TARGET_Y))
    return across + along == 1


@njit
def _is_open(row, x, y):
    return STATE[_look(row, x, y)] == OPENED


@njit
def _step_row(row, action):
    """One step of one environment; returns (terminated, truncated)."""
    rule = row[RULE]
    if rule == MEMORY and action == PICKUP:
        action = TOGGLE
    if rule == OBSTACLES and action > FORWARD:
        action = LEFT
    step_count = _get32(row, STEP_COUNT) + 1
    _put32(row, STEP_COUNT, step_count)

    direction = _get(row, DIRECTION)
    x, y = _get(row, AGENT_X) + DX[direction], _get(row, AGENT_Y) + DY[direction]
    front = _look(row, x, y)
    carried_before = _get(row, CARRIED)

    if rule == GOAL:
        _act(row, action, x, y, front)
    elif rule == INSTRUCTION:
        _act(row, action, x, y, front)
        if action == DROP:
            _remember_positions(row)
        status = _verify(row, action)
        if status != RUNNING:
            row[OUTCOME] = status
    elif rule == PICK_UP_TARGET:
        _act(row, action, x, y, front)
        if action == PICKUP and row[CARRIED] != 0 and row[CARRIED] == row[TARGET]:
            row[OUTCOME] = SUCCESS
    elif rule == OPEN_TARGET:
        _act(row, action, x, y, front)
        if action == TOGGLE and _is_open(row, _get(row, TARGET_X), _get(row, TARGET_Y)):
            row[OUTCOME] = SUCCESS
    elif rule == RED_THEN_BLUE:
        red_before = _is_open(row, _get(row, TARGET_X), _get(row, TARGET_Y))
        blue_before = _is_open(row, _get(row, OTHER_X), _get(row, OTHER_Y))
        _act(row, action, x, y, front)
        if _is_open(row, _get(row, OTHER_X), _get(row, OTHER_Y)):
            row[OUTCOME] = SUCCESS if red_before else FAILURE
        elif blue_before and _is_open(row, _get(row, TARGET_X), _get(row, TARGET_Y)):
            row[OUTCOME] = FAILURE
    elif rule == MEMORY:
        _act(row, action, x, y, front)
        if row[AGENT_X] == row[TARGET_X] and row[AGENT_Y] == row[TARGET_Y]:
            row[OUTCOME] = SUCCESS
        if row[AGENT_X] == row[OTHER_X] and row[AGENT_Y] == row[OTHER_Y]:
            row[OUTCOME] = FAILURE
    elif rule == FETCH:
        _act(row, action, x, y, front)
        if row[CARRIED] != 0:
            row[OUTCOME] = SUCCESS if _carried_code(row) == row[TARGET_CODE] else FAILURE
    elif rule == DONE_NEXT_TO_TARGET:
        _act(row, action, x, y, front)
        if action == TOGGLE:
            row[OUTCOME] = FAILURE
        if action == DONE:
            row[OUTCOME] = SUCCESS if _next_to_target(row) else FAILURE
    elif rule == PUT_NEAR:
        _act(row, action, x, y, front)
        if action == PICKUP and row[CARRIED] != 0 and _carried_code(row) != row[TARGET_CODE]:
            row[OUTCOME] = FAILURE
        if action == DROP and carried_before != 0:
            near = abs(x - _get(row, TARGET_X)) <= 1 and abs(y - _get(row, TARGET_Y)) <= 1
            row[OUTCOME] = SUCCESS if row[CARRIED] == 0 and near else FAILURE
    elif rule == OBSTACLES:
        blocked = front != EMPTY and TYPE[front] != GOAL_TYPE  # decided before the obstacles move
        _move_obstacles(row)
        _act(row, action, x, y, _look(row, x, y))
        if action == FORWARD and blocked:
            row[OUTCOME] = HARM
    return row[OUTCOME] != RUNNING, step_count >= _get32(row, MAX_STEPS)


# ---- BabyAI's instructions: minigrid/envs/babyai/core/verifier.py ----
@njit
def _remember_positions(row):
    """`RoomGridLevel.update_objs_poss`: the instruction looks for its objects only after a drop."""
    known = _after_slots(row)
    for i in range(_get(row, WIDTH) * _get(row, HEIGHT)):
        row[known + i] = 0
    slot = _slot(row, 1)
    for _ in range(_get(row, SLOTS)):
        if row[slot + MATCHES] != 0 and row[slot + X] != NOWHERE:
            row[known + _get(row, slot + Y) * _get(row, WIDTH) + _get(row, slot + X)] = row[slot + MATCHES]
        slot += SLOT


@njit
def _known_at(row, x, y, bit):
    """Whether the position (x, y) is among the `obj_poss` of the description that `bit` stands for."""
    if not _in_grid(row, x, y):
        return False
    return _get(row, _after_slots(row) + y * _get(row, WIDTH) + x) >> bit & 1 == 1


@njit
def _matches(row, number, bit):
    """Whether the object is in the `obj_set` of the description that `bit` stands for."""
    return number != 0 and _get(row, _slot(row, number) + MATCHES) >> bit & 1 == 1


@njit
def _verify(row, action):
    """`BeforeInstr.verify`, `AfterInstr.verify` (the second clause comes first), or only one clause."""
    if row[ORDER] == ONLY:
        return _verify_clause(row, 0, action)
    first = 0 if row[ORDER] == BEFORE else 1
    second = 1 - first
    if not row[FIRST_DONE]:
        status = _verify_clause(row, first, action)
        if status == FAILURE:
            return FAILURE
        if status != SUCCESS:
            if row[ORDER_STRICT] and _verify_clause(row, second, action) == SUCCESS:
                return FAILURE
            return RUNNING
        row[FIRST_DONE] = 1
    return _verify_clause(row, second, action)


@njit
def _verify_clause(row, clause, action):
    """`AndInstr.verify`, or the only leaf. As in minigrid, a failed leaf does not fail the conjunction."""
    one, two = 2 * clause, 2 * clause + 1
    if row[LEAF_KIND + two] == NO_LEAF:
        return _verify_leaf(row, one, action)
    for leaf in (one, two):
        if not row[LEAF_DONE + leaf] and _verify_leaf(row, leaf, action) == SUCCESS:
            row[LEAF_DONE + leaf] = 1
    return SUCCESS if row[LEAF_DONE + one] and row[LEAF_DONE + two] else RUNNING


@njit
def _verify_leaf(row, leaf, action):
    """`GoToInstr`, `PickupInstr`, `OpenInstr` and `PutNextInstr`, each with its `verify_action`."""
    kind, strict, match = row[LEAF_KIND + leaf], row[LEAF_STRICT + leaf], 2 * leaf
    carried, pre_carrying = _get(row, CARRIED), _get(row, PRE_CARRYING + leaf)
    direction = _get(row, DIRECTION)
    x, y = _get(row, AGENT_X) + DX[direction], _get(row, AGENT_Y) + DY[direction]

    if kind == GO_TO:
        if _known_at(row, x, y, match):
            return SUCCESS
    elif kind == PICK_UP:
        row[PRE_CARRYING + leaf] = carried
        if action == PICKUP:
            if pre_carrying == 0 and _matches(row, carried, match):
                return SUCCESS
            if strict and carried != 0:
                return FAILURE
    elif kind == OPEN:
        if action == TOGGLE and TYPE[_look(row, x, y)] == DOOR_TYPE:
            if _is_open(row, x, y) and _matches(row, _object_at(row, x, y), match):
                return SUCCESS
            if strict:
                return FAILURE
    elif kind == PUT_NEXT:
        row[PRE_CARRYING + leaf] = carried
        if strict and action == PICKUP and carried != 0:
            return FAILURE
        if action == DROP and carried != pre_carrying and _matches(row, pre_carrying, match):
            slot = _slot(row, pre_carrying)
            x, y = _get(row, slot + X), _get(row, slot + Y)
            for side in range(4):
                if _known_at(row, x + DX[side], y + DY[side], match + 1):
                    return SUCCESS
    return RUNNING


# ---- observe ----
@njit
def _observe_row(row, frame):
    """`MiniGridEnv.gen_obs`: cell (i, j) of the view is i to the right and j from its far end."""
    width, height = _get(row, WIDTH), _get(row, HEIGHT)
    direction = _get(row, DIRECTION)
    dx, dy = DX[direction], DY[direction]
    left_x = _get(row, AGENT_X) + dx * (VIEW - 1) + dy * (VIEW // 2)
    left_y = _get(row, AGENT_Y) + dy * (VIEW - 1) - dx * (VIEW // 2)
    seen = 1 << VIEW // 2
    for j in range(VIEW - 1, -1, -1):
        opaque = 0
        for i in range(VIEW):
            x, y = left_x - dx * j - dy * i, left_y - dy * j + dx * i
            cell = _get(row, HEADER + y * width + x) if 0 <= x < width and 0 <= y < height else WALL
            frame[i * VIEW + j] = cell
            opaque |= np.int64(OPAQUE[cell]) << i
        if not row[SEE_THROUGH]:
            swept = np.int64(SWEEP[seen, opaque])
            for i in range(VIEW):
                if not swept >> i & 1:
                    frame[i * VIEW + j] = 0
            seen = swept >> 8
    frame[VIEW // 2 * VIEW + VIEW - 1] = _carried_code(row)  # the agent's own cell
    frame[VIEW * VIEW] = direction


# ---- kernels over many rows ----
@_kernel
def _step_rows(rows, action, terminated, truncated):
    for n in range(rows.shape[0]):
        terminated[n], truncated[n] = _step_row(rows[n], action[n])


@_kernel
def _observe_rows(rows, frame):
    for n in range(rows.shape[0]):
        _observe_row(rows[n], frame[n])


@_kernel
def _branch_rows(rows, action, independent, seed, frame, terminated, truncated):
    n_rows, k, horizon = action.shape
    row = np.empty(rows.shape[1], np.uint8)
    for n in range(n_rows):
        for alternative in range(k):
            for i in range(len(row)):  # faster than a slice in numba
                row[i] = rows[n, i]
            if independent:
                _reseed_row(row, _mix(seed + np.uint64(n * k + alternative + 1)))
            ended = False
            for h in range(horizon):
                if ended:
                    terminated[n, alternative, h] = terminated[n, alternative, h - 1]
                    truncated[n, alternative, h] = truncated[n, alternative, h - 1]
                    frame[n, alternative, h] = frame[n, alternative, h - 1]
                else:
                    over, out_of_time = _step_row(row, action[n, alternative, h])
                    ended = over or out_of_time
                    terminated[n, alternative, h] = over
                    truncated[n, alternative, h] = out_of_time
                    _observe_row(row, frame[n, alternative, h])


@_kernel
def _reseed_rows(rows, seed):
    for n in range(rows.shape[0]):
        _reseed_row(rows[n], _mix(seed + np.uint64(n + 1)))


@_kernel
def _hash_rows(rows, weights, out):
    for n in range(rows.shape[0]):
        total = np.uint64(0)
        for i in range(rows.shape[1]):
            total += np.uint64(rows[n, i]) * weights[i]
        out[n] = _mix(total)


# ---- what the library calls ----
Rows = NDArray[np.uint8]


class Futures(NamedTuple):
    """What K alternatives of H steps lead to. After its end, a future stays as it was at its end."""

    frame: NDArray[np.uint8]  # (N, K, H, 50): what is seen after each step
    terminated: NDArray[np.bool_]  # (N, K, H)
    truncated: NDArray[np.bool_]  # (N, K, H)


def step(rows: Rows, action: NDArray[np.integer]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Step every environment, in place; returns (terminated, truncated), both (N,) and both can be true.

    rows (N, B) from levels.py, action (N,) in 0..6; those that the environment does not have (`n_actions`) turn
    left, as in minigrid. An environment whose episode has ended must not be stepped further: start again from a
    row of a bank. For success and reward see `succeeded` and `reward`.
    """
    _check_rows(rows)
    action = _checked_action(action, (len(rows),))
    terminated, truncated = np.empty(len(rows), np.bool_), np.empty(len(rows), np.bool_)
    _step_rows(rows, action, terminated, truncated)
    return terminated, truncated


def observe(rows: Rows) -> NDArray[np.uint8]:
    """The frames (N, 50) that the agents see now."""
    _check_rows(rows)
    frame = np.empty((len(rows), FRAME), np.uint8)
    _observe_rows(rows, frame)
    return frame


def branch(rows: Rows, action: NDArray[np.integer], *, noise: str = "common", seed: int = 0) -> Futures:
    """Futures of K alternatives from each row, which stays as it is; action (N, K, H), or (N, K): one step.

    With random dynamics (Dynamic-Obstacles), `noise="common"` lets all alternatives of a row see the same
    random numbers, those that the row itself would see; `"independent"` gives each its own, from `seed`.
    """
    _check_rows(rows)
    if noise not in ("common", "independent"):
        raise UsageError(f"noise={noise!r}: choose 'common' or 'independent'.")
    if action.ndim == 2:
        action = action[:, :, None]
    action = _checked_action(action, (len(rows), *action.shape[1:]))
    if action.ndim != 3:
        raise UsageError(f"branch() needs actions of shape (N, K) or (N, K, H), not {action.shape}.")
    independent = noise == "independent" and len(rows) > 0 and rows[0, RULE] == OBSTACLES
    terminated, truncated = np.empty(action.shape, np.bool_), np.empty(action.shape, np.bool_)
    frame = np.empty((*action.shape, FRAME), np.uint8)
    _branch_rows(rows, action, independent, np.uint64(seed), frame, terminated, truncated)
    return Futures(frame, terminated, truncated)


def reseed(rows: Rows, seed: int) -> None:
    """Give every row random numbers of its own, in place. Nothing happens to rows without random dynamics."""
    _check_rows(rows)
    if len(rows) and rows[0, RULE] == OBSTACLES:
        _reseed_rows(rows, np.uint64(seed))


def reward(rows: Rows) -> NDArray[np.float64]:
    """The environments' own reward of the last step, (N,); only evaluation and PPO ask for it.

    1 - 0.9 * steps / max_steps on success, -1 on a collision in Dynamic-Obstacles, otherwise 0.
    """
    outcome = rows[:, OUTCOME]
    success = 1 - 0.9 * (step_count(rows) / max_steps(rows))
    return np.where(outcome == SUCCESS, success, np.where(outcome == HARM, -1.0, 0.0))


def succeeded(rows: Rows) -> NDArray[np.bool_]:
    """Whether the episode has ended in success, (N,)."""
    return rows[:, OUTCOME] == SUCCESS


def n_actions(rows: Rows) -> int:
    """How many actions the environment has: 7, or 3 (left, right, forward) in Dynamic-Obstacles."""
    return FORWARD + 1 if (rows[:1, RULE] == OBSTACLES).any() else N_ACTIONS


def step_count(rows: Rows) -> NDArray[np.int64]:
    """Steps since the episode's start, (N,)."""
    return _numbers(rows, STEP_COUNT)


def max_steps(rows: Rows) -> NDArray[np.int64]:
    """Steps after which the episode is truncated, (N,)."""
    return _numbers(rows, MAX_STEPS)


def state_hash(rows: Rows) -> NDArray[np.uint64]:
    """A 64-bit hash of each whole row, (N,): equal hashes prove that the same state was forked."""
    return _hash(rows)


def frame_hash(frame: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """A 64-bit hash of what an agent observes, (...) for frames (..., 50).

    The states of two futures always differ, if only by step count or random state; that an action changed
    nothing, or that two futures look the same, shows in these hashes.
    """
    return _hash(frame.reshape(-1, frame.shape[-1])).reshape(frame.shape[:-1])


def _hash(rows: Rows) -> NDArray[np.uint64]:
    """mix(sum over i of byte[i] * weight[i], mod 2**64) of each row: zeros at its end change nothing."""
    if rows.shape[1] > len(HASH_WEIGHTS):
        raise DataError(f"A row of {rows.shape[1]} bytes is too long to be hashed (limit {len(HASH_WEIGHTS)}).")
    out = np.empty(len(rows), np.uint64)
    _hash_rows(np.ascontiguousarray(rows), HASH_WEIGHTS, out)
    return out


def _numbers(rows: Rows, at: int) -> NDArray[np.int64]:
    return np.ascontiguousarray(rows[:, at : at + 4]).view("<u4")[:, 0].astype(np.int64)


def _check_rows(rows: Rows) -> None:
    if rows.dtype != np.uint8 or rows.ndim != 2 or not rows.flags.c_contiguous:
        raise UsageError(f"Rows must be a contiguous uint8 array (N, B), not {rows.dtype} of shape {rows.shape}.")
    if len(rows) and rows[0, VERSION] != ROW_VERSION:
        raise DataError(
            f"Rows of version {rows[0, VERSION]} cannot be used, this engine has version {ROW_VERSION}: "
            "import the levels again (levels.import_level, banks.bank)."
        )


def _checked_action(action: NDArray[np.integer], shape: tuple[int, ...]) -> NDArray[np.int64]:
    action = np.ascontiguousarray(action, dtype=np.int64)
    if action.shape != shape:
        raise UsageError(f"Actions have shape {action.shape}, these rows need {shape}.")
    if action.size and (action.min() < 0 or action.max() >= N_ACTIONS):
        raise UsageError(f"Actions must be in 0..{N_ACTIONS - 1}, found {action.min()}..{action.max()}.")
    return action
