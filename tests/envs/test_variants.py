"""Our own environments: what is held out never appears before it is tried, and is always there when it is tried.

That they step, show and pay as their Python environments do is proven in test_engine.py, beside minigrid's own ids.
"""

import re
from collections import Counter
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from minigrid.core.constants import COLOR_NAMES, COLOR_TO_IDX, OBJECT_TO_IDX

from headstart.envs import engine, levels, missions, variants
from headstart.envs.banks import Levels, bank, import_seeds
from headstart.envs.collect import branch, collect_demos, practise
from headstart.envs.simulator import uniform_actor
from headstart.envs.transitions import Branches
from headstart.envs.vector import HeadstartVecEnv

FETCH, LARGE_FETCH, FETCH_HELD_OUT = (f"Headstart-Fetch-{name}-v0" for name in ("8x8-N3", "12x12-N6", "8x8-N3-HeldOut"))
SYNTH, SYNTH_HELD_OUT = "Headstart-SynthS5R2-v0", "Headstart-SynthS5R2-HeldOut-v0"
LARGE_ROOMS = "Headstart-BlockedUnlockPickup-S8-v0"

CODES = [
    OBJECT_TO_IDX[kind] * engine.TYPE_STEP + COLOR_TO_IDX[color] * engine.COLOR_STEP
    for color, kind in variants.HELD_OUT_OBJECTS
]
OBJECT = re.compile(r"\b(red ball|blue key)$")  # written out: as a reader of the mission sees it
CLAUSE = re.compile(r"\b(pick up (the|a) (\w+ )?box|go to (the|a) (\w+ )?key)\b")
HELD_OUT = {FETCH: OBJECT, SYNTH: CLAUSE}


def shown(frames: np.ndarray) -> bool:
    """Whether an object of a held-out pair is in one of the frames (..., 50)."""
    return bool(np.isin(frames[..., : engine.VIEW**2], CODES).any())


def in_grid(found: Levels) -> np.ndarray:
    """(N,) whether an object of a held-out pair is in the level."""
    return np.isin(levels._cells(found.rows), CODES).any(axis=1)


def told(env_id: str, mission: np.ndarray) -> set[str]:
    """The held-out combinations in the missions (..., L) of token ids."""
    texts = {missions.decode(tokens) for tokens in mission.reshape(-1, mission.shape[-1])}
    return {found[0] for text in texts if (found := HELD_OUT[env_id].search(text))}


# ---- before they are tried, held-out combinations do not exist ----
@pytest.mark.parametrize("n", [32, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("env_id", [FETCH, SYNTH])
def test_no_level_of_any_split_has_them(env_id: str, n: int, cache: Path) -> None:
    for split in ("train", "validation", "test"):
        found = bank(env_id, split, n, cache=cache)
        assert not [mission for mission in found.mission if HELD_OUT[env_id].search(mission)]
        if env_id == FETCH:
            assert not in_grid(found).any()


@pytest.mark.parametrize("env_id", [FETCH, pytest.param(SYNTH, marks=pytest.mark.slow)])
def test_nothing_that_an_agent_learns_from_has_them(env_id: str, cache: Path) -> None:
    """Demonstrations, the futures of all actions there, practice on fresh levels, and the futures of that."""
    demos = collect_demos(env_id, 20, seed=1, history=3, horizon=150, cache=cache)
    env = HeadstartVecEnv(bank(env_id, "train", 64, cache=cache), 8, history=3, horizon=150)
    rng = np.random.default_rng(0)
    agents, _ = practise(env.fresh(40, rng), uniform_actor(7), steps=30, rng=rng)
    for learned in (branch(demos, horizon=2), branch(agents)):
        assert isinstance(learned, Branches)
        assert not told(env_id, learned.obs["mission"])
        if env_id == FETCH:
            assert not shown(learned.obs["frames"])
            assert not shown(learned.future)
    assert not told(env_id, demos.obs["mission"])
    if env_id == FETCH:
        assert not shown(demos.obs["frames"])


def test_the_search_would_find_them() -> None:
    """The tests above can fail: on minigrid's own levels they would."""
    fetch, synth = import_seeds("MiniGrid-Fetch-8x8-N3-v0", range(40)), import_seeds("BabyAI-SynthS5R2-v0", range(40))
    assert in_grid(fetch).any()
    assert shown(engine.observe(fetch.rows))
    for env_id, found in ((FETCH, fetch), (SYNTH, synth)):
        length = missions.mission_length(found.env_id)
        assert len(told(env_id, np.stack([missions.encode(text, length) for text in found.mission])))


def test_every_part_of_a_held_out_pair_is_known_from_others() -> None:
    texts = " | ".join(import_seeds(FETCH, range(300)).mission)
    pairs = {(color, kind) for color in COLOR_NAMES for kind in ("key", "ball")}
    assert {pair for pair in pairs if " ".join(pair) in texts} == pairs - {*variants.HELD_OUT_OBJECTS}
    texts = " | ".join(import_seeds(SYNTH, range(300)).mission)
    for known in ("go to", "pick up"):
        assert {kind for kind in ("box", "ball", "key") if re.search(rf"{known} (the|a) (\w+ )?{kind}", texts)} > {
            "ball"
        }
    for known in ("go to (the|a) (\\w+ )?box", "pick up (the|a) (\\w+ )?key", "put (the|a) (\\w+ )?box", "open"):
        assert re.search(known, texts), known


# ---- when they are tried, they are there ----
def test_the_target_is_held_out() -> None:
    found = import_seeds(FETCH_HELD_OUT, range(100))
    counts = Counter(OBJECT.search(text)[0] for text in found.mission)  # type: ignore[index]
    assert counts.keys() == {"red ball", "blue key"}
    assert min(counts.values()) > 25
    assert in_grid(found).all()


def test_the_instruction_is_held_out() -> None:
    found = import_seeds(SYNTH_HELD_OUT, range(60))
    counts = Counter(CLAUSE.match(text)[1].split()[0] for text in found.mission)  # type: ignore[index]
    assert counts.keys() == {"pick", "go"}
    assert min(counts.values()) > 10


def test_held_out_pairs_can_be_chosen() -> None:
    env = variants.HeldOutFetch(held_out=(("green", "key"),), asked=True, size=6, numObjs=2)
    for seed in range(5):
        env.reset(seed=seed)
        assert (env.targetColor, env.targetType) == ("green", "key")


# ---- what else differs ----
def objects(found: Levels) -> list[int]:
    """The number of keys, balls and boxes in each level."""
    kind = engine.TYPE[levels._cells(found.rows)]
    return np.isin(kind, (engine.KEY_TYPE, engine.BALL_TYPE, engine.BOX_TYPE)).sum(1).tolist()


def test_fetch_is_larger() -> None:
    found = import_seeds(LARGE_FETCH, range(50))
    assert found.rows[:, [engine.WIDTH, engine.HEIGHT]].tolist() == [[12, 12]] * 50
    assert objects(found) == [6] * 50
    assert not in_grid(found).any()
    assert objects(import_seeds(FETCH, range(50))) == [3] * 50


def test_rooms_are_larger() -> None:
    found = import_seeds(LARGE_ROOMS, range(20))
    assert found.rows[:, [engine.WIDTH, engine.HEIGHT]].tolist() == [[15, 8]] * 20
    assert (found.rows[:, engine.RULE] == engine.PICK_UP_TARGET).all()
    assert engine.max_steps(found.rows).tolist() == [16 * 8**2] * 20
    assert objects(found) == [3] * 20  # key, ball in front of the door, box
    same = variants.LargeBlockedUnlockPickup(room_size=6)
    theirs = gymnasium.make("MiniGrid-BlockedUnlockPickup-v0").unwrapped
    for seed in range(5):
        same.reset(seed=seed), theirs.reset(seed=seed)
        assert np.array_equal(levels.import_level(same), levels.import_level(theirs))


@pytest.mark.parametrize(("size", "n_obstacles"), [(8, 4), (16, 8)])
def test_there_are_as_many_obstacles_as_asked_for(size: int, n_obstacles: int) -> None:
    """Where minigrid finds that there are too many, it silently takes fewer."""
    found = import_seeds(f"MiniGrid-Dynamic-Obstacles-{size}x{size}-v0", range(20))
    assert objects(found) == [n_obstacles] * 20


@pytest.mark.parametrize(("size", "n"), [(10, 16), (14, 36)])
def test_obstacles_are_as_many_as_asked_for(size: int, n: int) -> None:
    found = import_seeds(f"Headstart-Dynamic-Obstacles-{size}x{size}-N{n}-v0", range(20))
    assert objects(found) == [n] * 20


def test_eight_rooms() -> None:
    found = import_seeds("Headstart-MultiRoom-N8-v0", range(20))
    assert (engine.TYPE[levels._cells(found.rows)] == engine.DOOR_TYPE).sum(1).tolist() == [7] * 20
