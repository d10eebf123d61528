"""MiniGrid in a mirror: the same world with north and south exchanged, as new data that costs no step.

    obs, action = mirror_obs(demos.obs), mirror_action(demos.action)

Nothing in MiniGrid prefers a side: in the mirror image of a level, the mirror images of the actions (left is right)
lead to the mirror images of the frames. That is exact for every environment of the engine whose steps are not
random, occlusion included (tests/envs/test_mirror.py steps levels beside their mirror images). Dynamic-Obstacles is
mirrored in distribution: an obstacle moves to any of the nine cells around it, and no side is preferred.

The view turns with the agent, so a world flipped north to south and one flipped east to west give the same mirrored
cells and differ in the direction only. North to south is right here, for two reasons. Levels keep their own kind:
KeyCorridor's locked rooms stay in the east, Memory's hallway still leads there. And east, direction 0, stays 0, so
that the all-zero frames from before an episode's start are their own mirror image.

What a learner gets is true, but not always something that the environment would ever show: DoorKey's goal is always
in the south-east corner, and in its mirror image it is in the north-east.

Legend: N states, A actions, H steps of a future, T = history + 1 frames, L mission tokens.
"""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from headstart.envs.engine import FRAME, LEFT, RIGHT, VIEW
from headstart.envs.errors import UsageError
from headstart.envs.missions import IDS, VOCABULARY
from headstart.envs.simulator import Obs
from headstart.envs.transitions import Branches

__all__ = ["mirror_action", "mirror_branches", "mirror_frame", "mirror_obs", "with_mirror_image"]

# Cell (i, j) of the view is at i * VIEW + j, and i counts from the agent's left to its right.
PLACES = np.append(np.arange(VIEW * VIEW).reshape(VIEW, VIEW)[::-1].reshape(-1), FRAME - 1)
DIRECTIONS = np.array([0, 3, 2, 1], np.uint8)  # east, south, west, north
WORDS = np.arange(len(VOCABULARY), dtype=np.uint8)
WORDS[[IDS["left"], IDS["right"]]] = IDS["right"], IDS["left"]

Whole = TypeVar("Whole", bound=np.integer)


def mirror_frame(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Frames (..., 50) with the view's left and right exchanged, and north and south in the direction."""
    if frame.shape[-1] != FRAME:
        raise UsageError(
            f"Only MiniGrid's frames of {FRAME} bytes have a mirror image, not frames of shape {frame.shape}. "
            "Learn from this environment without mirrored data."
        )
    mirrored = np.take(frame, PLACES, axis=-1)
    mirrored[..., -1] = DIRECTIONS[mirrored[..., -1]]
    return mirrored


def mirror_action(action: NDArray[Whole]) -> NDArray[Whole]:
    """Actions (...) with left and right turns exchanged.

    Everything else stays: other actions, -1 for no expert, and A for the time before an episode.
    """
    turns = (action == LEFT) | (action == RIGHT)
    return np.where(turns, LEFT + RIGHT - action, action).astype(action.dtype)


def mirror_obs(obs: Obs) -> Obs:
    """Observations (N, ...): frames, actions, and the words "left" and "right" of the missions."""
    return {
        "frames": mirror_frame(obs["frames"]),
        "actions": mirror_action(obs["actions"]),
        "mission": WORDS[obs["mission"]],
    }


def with_mirror_image(obs: Obs) -> Obs:
    """Observations (2 N, ...): those given (N, ...), then their mirror image."""
    mirrored = mirror_obs(obs)
    return {name: np.concatenate([value, mirrored[name]]) for name, value in obs.items()}


def mirror_branches(branches: Branches) -> Branches:
    """The N states and all their futures; branch k of the result begins with action k, as it must.

    Its `env_steps` are 0: the steps were counted where they were taken, and looking in a mirror takes none. The
    cost of learning from both is the sum of both, and whoever learns from the mirror image alone adds the original's.
    """
    seen_in = mirror_action(np.arange(branches.action.shape[1]))  # which branch is the mirror image of branch k
    return Branches(
        obs=mirror_obs(branches.obs),
        expert_action=mirror_action(branches.expert_action),
        action=mirror_action(branches.action[:, seen_in]),
        future=mirror_frame(branches.future[:, seen_in]),
        revisit=branches.revisit[:, seen_in],
        ended=branches.ended[:, seen_in],
        tried=branches.tried[:, seen_in],
        env_steps=0,
        env_id=branches.env_id,
    )
