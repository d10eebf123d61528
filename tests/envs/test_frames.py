"""Frames: whatever an environment shows becomes bytes that lose nothing, or is refused."""

from typing import Any

import gymnasium
import minigrid.envs  # noqa: F401  registers the ids
import numpy as np
import pytest
from gymnasium import spaces
from minigrid.envs.doorkey import DoorKeyEnv

from headstart.envs.episode import Episode
from headstart.envs.errors import DataError, EnvironmentFailed, UsageError
from headstart.envs.fork import CopiedStates
from headstart.envs.frames import FrameReader


class Shows(gymnasium.Env):
    """An environment that shows one thing."""

    action_space = spaces.Discrete(2)

    def __init__(self, space: spaces.Space, value: Any):
        self.observation_space, self.value = space, value

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        return self.value, {}


def read(space: spaces.Space, value: Any, mission_length: int | None = None):
    reader = FrameReader(Shows(space, value), mission_length)
    frame, mission = reader.read(Episode(lambda: Shows(space, value), 0))
    assert frame.dtype == mission.dtype == np.uint8
    assert frame.shape == (reader.width,)
    return frame, mission


def test_discrete_observations_are_little_endian_numbers():
    assert read(spaces.Discrete(500), 258)[0].tolist() == [2, 1]
    assert read(spaces.Discrete(256), np.int64(255))[0].tolist() == [255]
    assert read(spaces.Discrete(3, start=-1), 1)[0].tolist() == [2]


def test_box_observations_are_their_own_bytes():
    value = np.array([[1.5, -2], [0, 1e-30]], np.float32)
    frame, mission = read(spaces.Box(-9, 9, (2, 2), np.float32), value)
    np.testing.assert_array_equal(frame.view(np.float32).reshape(2, 2), value)
    assert mission.tolist() == [0]  # padding: there is none
    assert read(spaces.Box(0, 255, (3,), np.uint8), np.array([7, 0, 255], np.uint8))[0].tolist() == [
        7,
        0,
        255,
    ]


def test_pictures_are_bytes_with_their_channels_first():
    pixels = np.random.default_rng(0).integers(256, size=(32, 40, 3), dtype=np.uint8)
    frame, _ = read(spaces.Box(0, 255, (32, 40, 3), np.uint8), pixels)
    np.testing.assert_equal(frame.reshape(3, 32, 40)[1], pixels[:, :, 1])
    for shape in ((3, 32, 40), (96, 40)):
        frame, _ = read(spaces.Box(0, 255, shape, np.uint8), pixels.reshape(shape))
        np.testing.assert_equal(frame, pixels.reshape(-1))


def test_the_parts_of_an_observation_follow_one_another():
    space = spaces.Dict(
        {
            "pair": spaces.Tuple([spaces.Discrete(4), spaces.MultiBinary(2)]),
            "mission": spaces.Text(50),
        }
    )
    frame, mission = read(space, {"pair": (3, np.array([0, 1], np.int8)), "mission": "go to the ball"}, 5)
    assert frame.tolist() == [3, 0, 1]
    assert mission.shape == (5,)
    assert mission[-1] == 0 < mission[-2]


def test_observations_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match=r"Shows: its observation is a Text"):
        FrameReader(Shows(spaces.Text(5), "x"))
    with pytest.raises(EnvironmentFailed, match=r"float32 of shape \(3,\), not Box"):
        read(spaces.Box(0, 1, (2,), np.float32), np.zeros(3, np.float32))
    with pytest.raises(EnvironmentFailed, match="float64 of shape"):
        read(spaces.Box(0, 255, (2,), np.uint8), np.zeros(2))
    with pytest.raises(EnvironmentFailed, match="it is 4, outside"):
        read(spaces.Discrete(4), 4)
    mission = spaces.Dict({"mission": spaces.Text(50), "x": spaces.Discrete(2)})
    with pytest.raises(DataError, match="xyzzy"):
        read(mission, {"mission": "xyzzy", "x": 0}, 5)
    with pytest.raises(UsageError, match="Give mission_length"):
        read(mission, {"mission": "go", "x": 0})


@pytest.mark.parametrize(
    ("space", "value", "why"),
    [
        (spaces.Discrete(10), 5.1, "it is 5.1, outside"),
        (spaces.MultiDiscrete([3, 3]), np.array([1.0, 2.0]), r"it is \[1. 2.\], outside"),
        (spaces.Box(-9, 9, (1,), np.int8), np.array([300]), r"it is \[300\], which does not fit into int8"),
    ],
)
def test_numbers_are_not_rounded_or_wrapped(space: spaces.Space, value: Any, why: str):
    with pytest.raises(EnvironmentFailed, match=why):
        read(space, value)


PAIR = spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Tuple([spaces.Discrete(2), spaces.Discrete(2)])})
ASKS = spaces.Dict({"mission": spaces.Text(50), "x": spaces.Discrete(2)})


@pytest.mark.parametrize(
    ("space", "value", "why"),
    [
        (PAIR, {"a": 0}, "KeyError: 'b'"),
        (PAIR, np.zeros(2), "IndexError"),
        (PAIR, {"a": 0, "b": (0,)}, "IndexError"),
        (PAIR, {"a": 0, "b": None}, "TypeError"),
        (spaces.Discrete(2), None, "TypeError"),
        (spaces.Discrete(2), "left", "ValueError"),
        (spaces.Box(0, 1, (2,), np.float32), [[0], [0, 1]], "ValueError"),
        (ASKS, {"mission": 5, "x": 0}, "AttributeError"),
    ],
)
def test_observations_of_another_structure_are_named(space: spaces.Space, value: Any, why: str):
    with pytest.raises(EnvironmentFailed, match=rf"(?s)Shows: an observation failed .* step 0: it is not of .*{why}"):
        read(space, value, 5)


def test_spaces_in_which_nothing_is_seen_are_refused():
    for space in (spaces.Box(0, 1, (0,), np.float32), spaces.Dict({}), spaces.Dict({"mission": spaces.Text(9)})):
        with pytest.raises(UsageError, match=r"Shows: its observation .* holds no numbers"):
            FrameReader(Shows(space, None), mission_length=2)


def test_minigrid_cells_outside_the_packing_are_refused():
    class Strange(gymnasium.ObservationWrapper):
        def observation(self, observation):
            observation["image"][0, 0] = (3, 6, 0)  # there is no seventh colour
            return observation

    with pytest.raises(EnvironmentFailed, match="a cell has a type, color or state"):
        CopiedStates(lambda: Strange(gymnasium.make("MiniGrid-DoorKey-5x5-v0")), [0], "pickle")


def test_a_subclass_with_a_rule_of_its_own_is_read_like_minigrid():
    class Shorter(DoorKeyEnv):
        def step(self, action):
            obs, reward, terminated, _, info = super().step(action)
            return obs, reward, terminated, self.step_count >= 3, info

    states = CopiedStates(lambda: Shorter(size=5), [0], "deepcopy", mission_length=13)
    assert states.frame().shape == (1, 50)
    ends = [states.step(np.array([0]), np.array([0]))[1][0] for _ in range(3)]
    assert ends == [False, False, True]
