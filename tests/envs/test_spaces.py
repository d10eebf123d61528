"""Layouts give back the numbers that went into the bytes; choices cover a space, or a codebook stands for it."""

import pickle

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from headstart.envs import engine
from headstart.envs.errors import DataError, UsageError
from headstart.envs.spaces import GRID, MAX_ACTIONS, MAX_BYTES, Choices, FrameSpace, Layout, Part, is_picture

BOX = spaces.Box(-np.inf, np.inf, (2,), np.float32)


def frames(*values: list[float]) -> np.ndarray:
    return np.array(values, np.float32).view(np.uint8)


# ---- layouts ----
def test_the_parts_of_a_space_in_their_order() -> None:
    space = spaces.Dict(
        {
            "at": spaces.Box(-1, 1, (2, 2), np.float64),
            "hand": spaces.Tuple([spaces.Discrete(300, start=5), spaces.MultiBinary(3)]),
            "kind": spaces.MultiDiscrete([2, 3]),
            "mission": spaces.Text(10),
        }
    )
    layout = Layout.of(space)
    assert layout.parts == (
        Part("at", "float64", 4),
        Part("hand/0", "uint16", 1, (300,)),
        Part("hand/1", "int8", 3),
        Part("kind", "uint8", 2, (2, 3)),
    )
    assert layout.width == 32 + 2 + 3 + 2
    assert layout.n_features == 4 + 300 + 3 + 5


def test_features_are_the_numbers_that_went_in_and_choices_are_one_hot() -> None:
    layout = Layout(
        4 + 8 + 2 + 2,
        (
            Part("x", "float32", 1),
            Part("y", "float64", 1),
            Part("n", "uint16", 1, (300,)),
            Part("k", "uint8", 2, (2, 3)),
        ),
    )
    x, y, n, k = np.float32(1e-30), np.float64(-2.5), np.uint16(258), np.array([1, 2], np.uint8)
    frame = np.concatenate([np.atleast_1d(value).view(np.uint8) for value in (x, y, n, k)])
    (features,) = layout.features(frame[None])
    assert features.dtype == np.float32
    assert features[:2].tolist() == [x, y]
    assert np.flatnonzero(features[2:302]).tolist() == [258]
    assert features[302:].tolist() == [0, 1, 0, 0, 1]


def test_statistics_by_hand() -> None:
    """Two episodes; the step between them is none."""
    layout = Layout.of(BOX).fitted(frames([0, 5], [2, 5], [4, 5], [-2, 5]), np.array([0, 0, 0, 1]))
    assert layout.mean == (1.0, 5.0)
    assert layout.scale == pytest.approx((np.sqrt(5), 1.0))  # the second never varied
    assert layout.change == (2.0, 1.0)


def test_choices_are_not_standardised() -> None:
    layout = Layout.of(spaces.Discrete(3)).fitted(np.array([[0], [1], [1]], np.uint8), np.zeros(3, np.int64))
    assert (layout.mean, layout.scale, layout.change) == ((0.0,) * 3, (1.0,) * 3, (1.0,) * 3)


def test_what_has_changed_is_a_matter_of_the_usual_change() -> None:
    layout = Layout.of(BOX).fitted(frames([0, 0], [10, 1]), np.zeros(2, np.int64))
    before, after = frames([0, 0], [0, 0]), frames([0.9, 0.2], [1.1, 0.05])
    assert layout.changed(before, after).tolist() == [[False, True], [True, False]]


def test_of_a_grid_cells_have_changed_and_the_direction_is_no_cell() -> None:
    before = np.zeros((1, 50), np.uint8)
    after = before.copy()
    after[0, [3, 49]] = 1
    assert np.flatnonzero(GRID.changed(before, after)[0]).tolist() == [3]
    assert GRID.changed(before, after).shape == (1, 49)
    assert GRID.seen == 49


def test_observations_that_cannot_be_learned_from_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"Lake: its observation\['at'\] is Discrete\(5000\), and only 4096"):
        Layout.of(spaces.Dict({"at": spaces.Discrete(5000)}), "Lake")
    with pytest.raises(UsageError, match=r"Lake: its observation is a Graph, which no frame can hold"):
        Layout.of(spaces.Graph(BOX, None), "Lake")
    with pytest.raises(
        UsageError, match=r"Lake: its observation .* has 150528 bytes. .* resizes it to at most 130048 b"
    ):
        Layout.of(spaces.Box(0, 255, (224, 224, 3), np.uint8), "Lake")
    assert engine.frame_hash(np.zeros((1, MAX_BYTES + 1024), np.uint8)).shape == (1,)


@pytest.mark.parametrize(
    ("space", "picture"),
    [
        (spaces.Box(0, 255, (84, 84), np.uint8), True),
        (spaces.Box(0, 255, (84, 84, 3), np.uint8), True),
        (spaces.Box(0, 255, (4, 32, 32), np.uint8), True),
        (spaces.Box(0, 255, (31, 84, 3), np.uint8), False),
        (spaces.Box(0, 255, (7, 7, 3), np.uint8), False),
        (spaces.Box(0, 1, (84, 84, 3), np.float32), False),
        (spaces.Box(0, 255, (4096,), np.uint8), False),
        (spaces.Discrete(7), False),
    ],
)
def test_what_looks_like_pixels(space: spaces.Space, picture: bool) -> None:
    assert is_picture(space) == picture


def test_the_channels_of_a_picture_come_first() -> None:
    shapes = {(84, 84): (1, 84, 84), (84, 96, 3): (3, 84, 96), (4, 32, 40): (4, 32, 40), (32, 32, 32): (32, 32, 32)}
    for shape, first in shapes.items():
        (part,) = Layout.of(spaces.Box(0, 255, shape, np.uint8)).parts
        assert part == Part("", "uint8", int(np.prod(shape)), picture=first)


def test_a_layout_without_its_pictures() -> None:
    pixels = spaces.Box(0, 255, (32, 32), np.uint8)
    space = spaces.Dict({"a": BOX, "b": pixels, "c": spaces.Discrete(3)})
    rng = np.random.default_rng(0)
    seen = rng.integers(256, size=(9, 8 + 1024 + 1), dtype=np.uint8)
    seen[:, :8], seen[:, -1] = rng.normal(size=(9, 2)).astype(np.float32).view(np.uint8), rng.integers(3, size=9)
    layout = Layout.of(space).fitted(seen, np.zeros(9, np.int64))
    assert [part.name for part in layout.pictures] == ["b"]
    without = Layout.of(spaces.Dict({"a": BOX, "c": spaces.Discrete(3)}))
    assert layout.plain == without.fitted(np.delete(seen, np.s_[8:-1], axis=1), np.zeros(9, np.int64))
    assert Layout.of(pixels).plain.n_features == 0
    assert without.plain == without


def test_a_space_of_frames_keeps_its_layout() -> None:
    space = FrameSpace(Layout.of(BOX), 3)
    assert space.shape == (3, 8)
    assert pickle.loads(pickle.dumps(space)) == space  # noqa: S301
    assert space != FrameSpace(Layout.of(spaces.MultiBinary(8)), 3)
    assert FrameSpace(GRID, 2) == spaces.Box(0, 255, (2, 50), np.uint8)  # a space without a layout is a grid's


def test_a_policy_may_act_where_frames_and_choices_are_alike() -> None:
    """Other demonstrations have other statistics, and that is no other space; another codebook is."""
    layout = Layout.of(BOX)
    frames = np.arange(24, dtype=np.float32).view(np.uint8).reshape(-1, layout.width)
    measured = layout.fitted(frames, np.zeros(len(frames), np.int64))
    assert measured != layout
    force = spaces.Box(-1, 1, (1,), np.float32)
    mine, others = (Choices(force, np.float32(table)) for table in ([[0], [1]], [[0], [0.5]]))
    space = FrameSpace(layout, 2, env_id="Line", choices=mine)
    assert space == FrameSpace(measured, 2, env_id="Row", choices=mine)
    assert space != FrameSpace(layout, 2, env_id="Line", choices=others)
    assert repr(space) != repr(FrameSpace(layout, 2, env_id="Line", choices=others))
    assert repr(space).startswith("2 frames of Line, in which to choose from 2 of Box(-1.0, 1.0, (1,), float32) (code")


# ---- choices ----
@pytest.mark.parametrize(
    ("space", "n"),
    [
        (spaces.Discrete(3, start=-1), 3),
        (spaces.MultiDiscrete([3, 2]), 6),
        (spaces.MultiDiscrete([[2, 2], [1, 3]], start=[[5, 0], [0, 1]]), 12),
        (spaces.MultiBinary(3), 8),
    ],
    ids=str,
)
def test_every_action_of_a_finite_space_is_one_choice(space: gymnasium.Space, n: int) -> None:
    choices = Choices.of(space)
    actions = [choices.action(code) for code in range(n)]
    assert len(choices) == n
    assert all(space.contains(action) for action in actions)
    assert len({str(action) for action in actions}) == n
    assert choices.codes(np.array(actions)).tolist() == list(range(n))


def test_what_is_no_action_is_named_with_its_step() -> None:
    with pytest.raises(DataError, match=r"step 1: the action 3 is none of Discrete\(3\)"):
        Choices.of(spaces.Discrete(3)).codes(np.array([0, 3]))


def test_too_many_actions_and_strange_spaces_are_refused() -> None:
    with pytest.raises(UsageError, match=f"256 in all, and at most {MAX_ACTIONS}"):
        Choices.of(spaces.MultiBinary(8))
    with pytest.raises(UsageError, match="its actions are Text"):
        Choices.of(spaces.Text(3))
    with pytest.raises(UsageError, match="learned from demonstrations"):
        Choices.of(BOX)


def test_few_different_actions_are_their_own_codebook() -> None:
    space = spaces.Box(-2, 2, (1,), np.float32)
    choices = Choices.of(space, np.array([[2.0], [-2.0], [2.0], [0.5]], np.float32))
    assert choices.table.tolist() == [[-2.0], [0.5], [2.0]]
    assert choices.codes(np.array([[-1.0], [0.0], [1.9]])).tolist() == [0, 1, 2]


def test_many_actions_get_a_codebook_of_clusters() -> None:
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0], [1, 0.01], [0, 0.01]])  # the second dimension is as telling as the first
    taken = (centres[rng.integers(3, size=300)] + rng.normal(0, [0.02, 0.0002], (300, 2))).astype(np.float32)
    table = Choices.of(spaces.Box(-1, 1, (2,), np.float32), taken, codes=3).table
    assert table.dtype == np.float32
    np.testing.assert_allclose(table[np.lexsort(table.T[::-1])], [[0, 0], [0, 0.01], [1, 0.01]], atol=0.01)


def test_a_codebook_stays_inside_its_space() -> None:
    choices = Choices.of(spaces.Box(0, 1, (1,), np.float32), np.linspace(-3, 3, 50)[:, None], codes=5)
    assert all(choices.space.contains(choices.action(code)) for code in range(len(choices)))


def test_actions_beyond_the_bounds_are_one_code() -> None:
    taken = np.array([[0.5], [2.0], [3.0], [4.0], [-5.0], [-6.0]])
    assert Choices.of(spaces.Box(-1, 1, (1,), np.float32), taken, codes=3).table.tolist() == [[-1.0], [0.5], [1.0]]


def test_actions_that_give_no_codebook_are_refused() -> None:
    space = spaces.Box(-1, 1, (1,), np.float32)
    with pytest.raises(DataError, match="always take the same action"):
        Choices.of(space, np.zeros((4, 1)))
    with pytest.raises(DataError, match="the action of step 2 is not finite"):
        Choices.of(space, np.array([[0.0], [1.0], [np.nan]]))
    with pytest.raises(DataError, match=r"of shape \(2,\), not of Box"):
        Choices.of(space, np.zeros((4, 2)))
    with pytest.raises(UsageError, match="2 to 254 actions, not 1"):
        Choices.of(space, np.array([[0.0], [1.0]]), codes=1)
