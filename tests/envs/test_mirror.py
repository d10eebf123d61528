"""The mirror is true: levels and their mirror images, stepped side by side, show each other's mirror images."""

from typing import Any, cast

import gymnasium
import numpy as np
import pytest
from minigrid.envs.babyai.core.verifier import ObjDesc
from numpy.typing import NDArray

from headstart.envs import engine, levels, missions
from headstart.envs.banks import import_seeds
from headstart.envs.collect import branch
from headstart.envs.errors import UsageError
from headstart.envs.experts import expert_for
from headstart.envs.mirror import mirror_action, mirror_branches, mirror_frame, mirror_obs
from headstart.envs.simulator import Actor, GridStates, Obs, Simulator
from headstart.envs.transitions import Branches

pytestmark = pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")

IDS = [
    "MiniGrid-DoorKey-8x8-v0",
    "MiniGrid-KeyCorridorS3R3-v0",
    "MiniGrid-MultiRoom-N4-S5-v1",
    "MiniGrid-Fetch-8x8-N3-v0",
    "MiniGrid-MemoryS13Random-v0",
    "MiniGrid-BlockedUnlockPickup-v0",
    "BabyAI-GoToLocal-v0",
    "BabyAI-SynthS5R2-v0",
    "BabyAI-MiniBossLevel-v0",
]
RULES = [  # and an id for every other rule
    "MiniGrid-LavaCrossingS9N3-v0",
    "MiniGrid-Unlock-v0",
    "MiniGrid-RedBlueDoors-6x6-v0",
    "MiniGrid-GoToDoor-5x5-v0",
    "MiniGrid-PutNear-6x6-N2-v0",
    "BabyAI-PutNextLocal-v0",
]
OBSTACLES = "MiniGrid-Dynamic-Obstacles-8x8-v0"


def mirror_rows(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Whole levels (N, B) flipped north to south."""
    rows, height, width = rows.copy(), int(rows[0, engine.HEIGHT]), int(rows[0, engine.WIDTH])
    flip_plane(levels._cells(rows), height, width)
    if rows[0, engine.RULE] == engine.INSTRUCTION:
        flip_plane(levels._tail(rows), height, width)
    code, y = (levels._table(rows)[..., at] for at in (engine.CODE, engine.Y))
    y[:] = np.where((code != 0) & (y != engine.NOWHERE), height - 1 - y, y)
    for at in (engine.AGENT_Y, engine.TARGET_Y, engine.OTHER_Y):
        rows[:, at] = height - 1 - rows[:, at]
    rows[:, engine.DIRECTION] = -rows[:, engine.DIRECTION] % 4
    return rows


def flip_plane(plane: NDArray[np.uint8], height: int, width: int) -> None:
    plane[:] = plane.reshape(-1, height, width)[:, ::-1].reshape(plane.shape)


def assert_mirrored(rows: NDArray[np.uint8], image: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(mirror_frame(engine.observe(rows)), engine.observe(image))
    np.testing.assert_array_equal(mirror_rows(rows), image)  # what is not seen, too


# ---- it is true ----
@pytest.mark.parametrize("env_id", [*IDS, *RULES])
def test_a_mirrored_level_shows_mirrored_frames_at_every_random_step(env_id: str) -> None:
    start = import_seeds(env_id, range(40)).rows
    rows, image = start.copy(), mirror_rows(start)
    assert_mirrored(rows, image)
    rng, turned = np.random.default_rng(0), 0
    for _ in range(500):  # 20,000 steps
        action = rng.choice(7, size=len(rows), p=[0.15, 0.15, 0.4, 0.1, 0.05, 0.1, 0.05])
        terminated, truncated = engine.step(rows, action)
        ended = engine.step(image, mirror_action(action))
        np.testing.assert_array_equal(ended, (terminated, truncated))
        assert_mirrored(rows, image)
        turned += int((engine.observe(rows) != engine.observe(image)).any(axis=1).sum())
        over = terminated | truncated
        rows[over], image[over] = start[over], mirror_rows(start)[over]
    assert turned > 10_000  # hardly any frame is its own mirror image, so the comparison could fail


@pytest.mark.parametrize("env_id", IDS)
def test_an_experts_mirrored_actions_solve_the_mirrored_level(env_id: str) -> None:
    solved = 0
    for seed in range(6):
        level = import_seeds(env_id, [seed])
        solution = expert_for(env_id).solve(levels.export_level(level.rows[0], env_id, seed))
        rows, image = level.rows.copy(), mirror_rows(level.rows)
        for action in solution.actions:
            engine.step(rows, np.array([action]))
            engine.step(image, mirror_action(np.array([action])))
            assert_mirrored(rows, image)
        assert engine.succeeded(image)[0] == solution.success
        solved += solution.success
    assert solved >= 3


def test_what_is_hidden_is_hidden_from_both_sides_alike() -> None:
    """`Grid.process_vis` goes from left to right first, and still favours no side: all 128 x 128 rows of a view."""
    mirrored = np.array([int(f"{bits:07b}"[::-1], 2) for bits in range(128)])
    seen, behind = engine.SWEEP & 255, engine.SWEEP >> 8
    np.testing.assert_array_equal(mirrored[seen], seen[mirrored][:, mirrored])
    np.testing.assert_array_equal(mirrored[behind], behind[mirrored][:, mirrored])


def test_random_walks_are_mirrored_in_distribution() -> None:
    rows = import_seeds(OBSTACLES, [1]).rows
    engine.step(rows, np.array([engine.RIGHT]))  # the agent looks into the room's middle
    n = 20_000
    balls = []
    for seed, world in enumerate((rows, mirror_rows(rows))):
        many = np.repeat(world, n, axis=0)
        engine.reseed(many, seed)
        engine.step(many, np.full(n, engine.FORWARD if seed == 0 else mirror_action(np.array(engine.FORWARD))))
        frame = engine.observe(many)
        balls.append((engine.TYPE[mirror_frame(frame) if seed == 0 else frame] == engine.BALL_TYPE).mean(axis=0))
    assert (balls[0] > 0.05).sum() > 5
    np.testing.assert_allclose(balls[0], balls[1], atol=5 * (0.5 / n) ** 0.5)


def test_left_and_right_of_a_mission_change_places_in_the_mirror() -> None:
    """What "the ball on your left" means in a level is what "the ball on your right" means in its mirror image."""
    env = gymnasium.make("BabyAI-SynthLoc-v0", disable_env_checker=True)
    u, compared = cast(Any, env.unwrapped), 0
    for seed in range(150):
        levels.reset_level(env, seed)
        described = [d for _, leaf in levels._leaves(u.instrs) for d in levels._descriptions(leaf) if d.loc]
        found = [{(x, u.height - 1 - y) for x, y in description.obj_poss} for description in described]
        cells = np.empty(len(u.grid.grid), object)
        cells[:] = u.grid.grid
        u.grid.grid = cells.reshape(u.height, u.width)[::-1].reshape(-1).tolist()
        u.agent_pos, u.agent_dir = (u.agent_pos[0], u.height - 1 - u.agent_pos[1]), -u.agent_dir % 4
        for description, positions in zip(described, found, strict=True):
            words = mirror_obs(one(f"go to the ball {spoken(description.loc)}"))["mission"][0]
            place = next(p for p in ("left", "right", "front", "behind") if p in missions.decode(words))
            there = ObjDesc(description.type, description.color, place).find_matching_objs(u)[1]
            assert set(there) == positions
            compared += description.loc in ("left", "right")
    assert compared >= 10


def spoken(place: str) -> str:
    return {"front": "in front of you", "behind": "behind you"}.get(place, f"on your {place}")


def one(mission: str) -> Obs:
    frames, actions = np.zeros((1, 1, engine.FRAME), np.uint8), np.zeros((1, 0), np.uint8)
    return {"frames": frames, "actions": actions, "mission": missions.encode(mission, 20)[None]}


# ---- observations and branches ----
def decided(obs: Obs, rng: np.random.Generator) -> NDArray[np.int64]:
    """An actor whose choice depends on all that it remembers, on the order of the cells too."""
    seen = obs["frames"].astype(np.int64) @ np.arange(1, engine.FRAME + 1)
    return (seen.sum(1) + obs["actions"].astype(np.int64) @ np.arange(1, obs["actions"].shape[1] + 1)) % 7


def in_the_mirror(actor: Actor) -> Actor:
    return lambda obs, rng: mirror_action(actor(mirror_obs(obs), rng))


@pytest.mark.parametrize("env_id", ["MiniGrid-DoorKey-8x8-v0", "BabyAI-MiniBossLevel-v0", "MiniGrid-Fetch-8x8-N3-v0"])
def test_mirrored_branches_are_the_branches_of_the_mirrored_level(env_id: str) -> None:
    start, rng = import_seeds(env_id, range(30)), np.random.default_rng(0)
    states = GridStates.of(start)
    original = Simulator(states, history=4, horizon=12)
    told = mirror_obs(original.observe())["mission"]
    image = Simulator(GridStates(mirror_rows(start.rows), told), history=4, horizon=12)
    for steps in (0, 2, 8):  # at the start, where there is no past; then with some; then at the end
        for _ in range(steps):
            original.step(decided(original.observe(), rng))
            image.step(in_the_mirror(decided)(image.observe(), rng))
        seen, expected = (
            branch(original, horizon=3, actor=decided),
            branch(image, horizon=3, actor=in_the_mirror(decided)),
        )
        mirrored = mirror_branches(seen)
        for name in ("obs", "expert_action", "action", "future", "revisit", "ended"):
            np.testing.assert_equal(getattr(mirrored, name), getattr(expected, name), err_msg=name)
        assert (mirrored.action[:, :, 0] == np.arange(7)).all()
        assert mirrored.env_steps == 0  # the original has counted them
        assert seen.env_steps == expected.env_steps > 0
    assert len(np.unique(seen.ended)) == len(np.unique(seen.revisit)) == 2


def test_a_mirror_in_a_mirror_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    obs: Obs = {
        "frames": np.append(rng.integers(256, size=(5, 4, 49)), rng.integers(4, size=(5, 4, 1)), 2).astype(np.uint8),
        "actions": rng.integers(8, size=(5, 3), dtype=np.uint8),
        "mission": rng.integers(len(missions.VOCABULARY), size=(5, 9), dtype=np.uint8),
    }
    whole = Branches(
        obs=obs,
        expert_action=rng.integers(-1, 7, size=5),
        action=rng.integers(7, size=(5, 7, 2), dtype=np.uint8),
        future=np.repeat(obs["frames"][:, None, :2], 7, axis=1),
        revisit=rng.random((5, 7)) < 0.5,
        ended=rng.random((5, 7, 2)) < 0.5,
        env_steps=0,
        env_id="somewhere",
    )
    np.testing.assert_equal(vars(mirror_branches(mirror_branches(whole))), vars(whole))
    for once, before in zip(vars(mirror_branches(whole)).values(), vars(whole).values(), strict=True):
        assert isinstance(once, dict | int | str) or once.dtype == before.dtype
    assert {name: value.dtype for name, value in mirror_obs(obs).items()} == dict.fromkeys(obs, np.dtype(np.uint8))


def test_worked_by_hand() -> None:
    frame = np.arange(50, dtype=np.uint8)
    frame[-1] = 3  # north
    mirrored = mirror_frame(frame)
    assert mirrored[:7].tolist() == list(range(42, 49))  # the leftmost column is what was the rightmost
    assert mirrored[21:28].tolist() == list(range(21, 28))  # straight ahead nothing moves
    assert mirrored[-1] == 1  # south
    assert mirror_action(np.arange(-1, 8)).tolist() == [-1, 1, 0, 2, 3, 4, 5, 6, 7]  # none, 7 actions, before
    words = mirror_obs(one("go to the red ball on your left, then pick up the box on your right"))["mission"][0]
    assert missions.decode(words) == "go to the red ball on your right, then pick up the box on your left"


def test_frames_from_before_the_episode_stay_zero() -> None:
    assert not mirror_frame(np.zeros((2, 3, 50), np.uint8)).any()


def test_frames_of_other_environments_have_no_mirror_image() -> None:
    with pytest.raises(UsageError, match="50 bytes"):
        mirror_frame(np.zeros((2, 12), np.uint8))
