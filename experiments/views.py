"""Frames of MiniGrid as pictures: what an agent saw, what an action led to, and what a world model thought it would.

Legend: N frames, F = 50 bytes of a frame.
"""

import numpy as np
from minigrid.core.grid import Grid
from numpy.typing import NDArray

from headstart.envs.engine import COLOR, STATE, TYPE, VIEW

__all__ = ["beside", "drawn"]

TILE, GAP = 16, 6  # pixels of a cell, and between pictures


def drawn(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """One frame (F,) as pixels (112, 112, 3), the agent at the bottom looking up; what is out of sight is dark."""
    cells = frame[: VIEW * VIEW].reshape(VIEW, VIEW)
    grid, visible = Grid.decode(np.stack([TYPE[cells], COLOR[cells], STATE[cells]], axis=2).astype(np.uint8))
    at = (VIEW // 2, VIEW - 1)
    carried, visible[at] = grid.get(*at), True
    grid.set(*at, None)  # minigrid shows in the agent's own cell what it carries
    pixels = grid.render(TILE, at, 3, highlight_mask=visible)
    if carried is not None:
        x, y = at[0] * TILE, at[1] * TILE
        tile = Grid.render_tile(carried, tile_size=TILE // 2)
        pixels[y : y + TILE // 2, x : x + TILE // 2] = tile
    return pixels


def beside(*columns: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Columns of frames, each (N, F), as one picture: a row for each of the N, white between them."""
    rows = []
    for row in zip(*columns, strict=True):
        pictures = [np.pad(drawn(frame), ((GAP, GAP), (GAP, GAP), (0, 0)), constant_values=255) for frame in row]
        rows.append(np.concatenate(pictures, axis=1))
    return np.concatenate(rows, axis=0)
