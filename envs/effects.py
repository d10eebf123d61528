"""What an action has done, read from the frames before and after it, and said in English.

    effect = effects(branches.frame, branches.future[:, :, 0])      # (N, A) numbers of EFFECTS
    explain(frame, effect, margin)                                  # "pick up: takes the yellow key; preferred over"

Only what the agent sees is used, no state and no reward. An action that leaves the frame as it was has done nothing
here, even if a fellow agent, out of view, would disagree.

That an episode has ended is a class of its own, and how it ended is never said: that would be the reward. Where only
success ends an episode, even that is the reward, so the end is hidden unless ``ended`` is given.

Legend: N states, A actions, F bytes of a frame (50 in MiniGrid).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from minigrid.core.constants import IDX_TO_COLOR, IDX_TO_OBJECT
from numpy.typing import NDArray

from headstart.envs.engine import (
    BOX_TYPE,
    CAN_OVERLAP,
    CAN_PICK_UP,
    COLOR,
    DOOR_TYPE,
    EMPTY,
    FRAME,
    GOAL_TYPE,
    LAVA_TYPE,
    OPENED,
    STATE,
    TYPE,
    VIEW,
    WALL,
)
from headstart.envs.errors import UsageError
from headstart.envs.spaces import GRID, Choices, Layout

__all__ = ["ACTIONS", "EFFECTS", "effects", "explain"]

EFFECTS = ("nothing", "moved", "turned", "picked up", "dropped", "opened", "closed", "ended", "unknown")
NOTHING, MOVED, TURNED, PICKED_UP, DROPPED, OPENED_IT, CLOSED_IT, ENDED, UNKNOWN = range(len(EFFECTS))
ACTIONS = ("turn left", "turn right", "forward", "pick up", "drop", "toggle", "done")

COMPASS = FRAME - 1
HAND = VIEW // 2 * VIEW + VIEW - 1  # the agent's own cell, where minigrid draws what it carries
FRONT = HAND - 1
FIXED = np.isin(TYPE, (int(TYPE[WALL]), DOOR_TYPE, GOAL_TYPE, LAVA_TYPE))


def effects(
    before: NDArray[np.uint8],
    after: NDArray[np.uint8],
    ended: NDArray[np.bool_] | None = None,
    layout: Layout = GRID,
) -> NDArray[np.uint8]:
    """The class (N, A), a place in EFFECTS, of what leads from frames (N, F) to frames (N, A, F) in one step.

    ``ended`` (N, A) marks steps after which the episode was over; without it they are read like any other. "opened"
    and "closed" are said of doors and boxes in front of the agent; "unknown" is a change that none of the others
    explains, such as somebody else's move. Frames of another ``layout`` than MiniGrid's have changed or not: whatever
    moves a number by more than a tenth of its usual change is "unknown". Raises UsageError for frames of another width.
    """
    if before.shape[-1] != layout.width or after.shape[-1] != layout.width:
        raise UsageError(
            f"Frames of shapes {before.shape} and {after.shape} are not those of an environment whose frames have "
            f"{layout.width} bytes. Give its layout: effects(before, after, layout=demos.layout)."
        )
    if not layout.grid:
        old, new = np.repeat(before, after.shape[1], axis=0), after.reshape(-1, layout.width)
        changed = layout.changed(old, new).any(1).reshape(after.shape[:2])
        return _first([(ended, ENDED), (~changed, NOTHING)])
    before = np.broadcast_to(before[:, None], after.shape)
    same = (before == after).all(2)
    hand, held = before[..., HAND], after[..., HAND]
    front, faced = before[..., FRONT], after[..., FRONT]
    door = (TYPE[front] == DOOR_TYPE) & (TYPE[faced] == DOOR_TYPE)
    was_open, is_open = STATE[front] == OPENED, STATE[faced] == OPENED
    return _first(
        [
            (ended, ENDED),
            (same, NOTHING),
            ((hand == EMPTY) & (held != EMPTY), PICKED_UP),
            ((hand != EMPTY) & (held == EMPTY), DROPPED),
            (before[..., COMPASS] != after[..., COMPASS], TURNED),
            (door & ~was_open & is_open, OPENED_IT),
            (door & was_open & ~is_open, CLOSED_IT),
            ((TYPE[front] == BOX_TYPE) & (TYPE[faced] != BOX_TYPE), OPENED_IT),
            (CAN_OVERLAP[front] & _fits_a_step(before, after), MOVED),
        ]
    )


def _first(cases: list[tuple[Any, int]]) -> NDArray[np.uint8]:
    """The first class whose condition holds, UNKNOWN if none does; a condition may be withheld."""
    cases = [case for case in cases if case[0] is not None]
    return np.select([condition for condition, _ in cases], [effect for _, effect in cases], UNKNOWN).astype(np.uint8)


def _fits_a_step(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(N, A) whether a step forward explains the view at least as well as standing still.

    A step brings every cell of the view one row closer. Compared is what was seen both times and does not move.
    """
    old, new = (frame[..., :COMPASS].reshape(*frame.shape[:-1], VIEW, VIEW) for frame in (before, after))
    return _misfits(old[..., :-1], new[..., 1:]) <= _misfits(old, new)


def _misfits(old: NDArray[np.uint8], new: NDArray[np.uint8]) -> NDArray[np.int64]:
    return ((old != new) & (old > 0) & (new > 0) & (FIXED[old] | FIXED[new])).sum((-1, -2))


# ---- in English ----
PLAIN = {
    NOTHING: "changes nothing",
    MOVED: "moves on",
    TURNED: "looks another way",
    ENDED: "ends the episode",
    UNKNOWN: "changes something else",
}
TRANSITIVE = {  # the verb, where its object is seen, and what can be one: a wrong prediction names nothing
    PICKED_UP: ("takes", FRONT, CAN_PICK_UP),
    DROPPED: ("puts down", HAND, CAN_PICK_UP),
    OPENED_IT: ("opens", FRONT, np.isin(TYPE, (DOOR_TYPE, BOX_TYPE))),
    CLOSED_IT: ("closes", FRONT, TYPE == DOOR_TYPE),
}


def explain(
    frame: NDArray[np.uint8],
    effect: NDArray[np.integer],
    margin: NDArray[np.floating],
    actions: Sequence[str] | None = None,
    layout: Layout = GRID,
    choices: Choices | None = None,
) -> str:
    """Why an agent prefers what it prefers, from what it sees now (F,), expects (A,) and how much it likes that (A,).

    "pick up: takes the yellow key; preferred over forward, which changes nothing, by 2.3". The other action is the
    best of those that are expected to do something else; margins are in nats. Outside grids (``layout``) they change
    something or nothing. In environments that run in Python, whose ``choices`` are given, an action can be anything,
    even in a grid: there, and outside grids, actions without names have numbers.
    """
    if not layout.grid:
        effect = np.where(np.isin(effect, list(PLAIN)), effect, UNKNOWN)
    minigrids = layout.grid and choices is None
    actions = actions or (ACTIONS if minigrids else [f"action {a}" for a in range(len(margin))])
    best = int(np.argmax(margin))
    said = [_say(frame, int(kind)) for kind in effect]
    others = [a for a in np.argsort(-margin, kind="stable").tolist() if said[a] != said[best]]
    text = f"{actions[best]}: {said[best]}"
    if others:
        other = others[0]
        text += f"; preferred over {actions[other]}, which {said[other]}, by {margin[best] - margin[other]:.1f}"
    return text


def _say(frame: NDArray[np.uint8], effect: int) -> str:
    """What an effect is in the situation of a frame (F,)."""
    if effect in PLAIN:
        return PLAIN[effect]
    verb, at, nameable = TRANSITIVE[effect]
    cell = int(frame[at])
    return f"{verb} the {_name(cell)}" if nameable[cell] else f"{verb} something"


def _name(cell: int) -> str:
    return f"{IDX_TO_COLOR[int(COLOR[cell])]} {IDX_TO_OBJECT[int(TYPE[cell])]}"
