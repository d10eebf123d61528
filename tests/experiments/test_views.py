"""Views as pictures: minigrid's own drawing of what is in sight, and the rest dark."""

import gymnasium
import numpy as np
from minigrid.core.constants import COLORS

from headstart.envs.collect import branch, collect_demos
from headstart.experiments.views import GAP, TILE, beside, drawn


def test_a_view_is_drawn_as_minigrid_draws_it() -> None:
    """But for the agent's own cell and the light, as its picture of the same moment."""
    demos = collect_demos("MiniGrid-DoorKey-5x5-v0", 1, seed=0)
    env = gymnasium.make("MiniGrid-DoorKey-5x5-v0", render_mode="rgb_array", agent_pov=True, tile_size=TILE)
    env.reset(seed=int(demos.seed[0]))
    theirs, ours = env.render(), drawn(demos.obs["frames"][0, -1])
    assert ours.shape == theirs.shape == (7 * TILE, 7 * TILE, 3)
    wall = np.array([100, 100, 100])
    lit = lambda picture: np.abs(picture.astype(int) - wall).max(2) < 60  # noqa: E731 - highlighted walls are lighter
    assert (lit(ours) == lit(theirs)).mean() > 0.95


def test_what_is_carried_is_shown_beside_the_agent() -> None:
    demos = collect_demos("MiniGrid-DoorKey-5x5-v0", 1, seed=0)
    key = int(np.flatnonzero(demos.action == 3)[0])
    without, carrying = (drawn(demos.obs["frames"][at, -1]) for at in (key, key + 1))
    corner = (slice(6 * TILE, 6 * TILE + TILE // 2), slice(3 * TILE, 3 * TILE + TILE // 2))
    yellow = (carrying[corner] == COLORS["yellow"]).all(2)
    assert yellow.sum() > 3
    assert not (without[corner] == COLORS["yellow"]).all(2).any()


def test_rows_of_pictures() -> None:
    branches = branch(collect_demos("MiniGrid-DoorKey-5x5-v0", 1, seed=0))
    picture = beside(branches.frame[:4], branches.future[:4, 2, 0], branches.future[:4, 0, 0])
    side = 7 * TILE + 2 * GAP
    assert picture.shape == (4 * side, 3 * side, 3)
    np.testing.assert_equal(picture[GAP : side - GAP, GAP : side - GAP], drawn(branches.frame[0]))
    assert (picture[:GAP] == 255).all()
