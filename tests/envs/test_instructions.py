"""Untrue instructions: each alteration does what its name says, and nothing else in an episode changes."""

import itertools
from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from headstart.envs import engine, missions
from headstart.envs.banks import Levels, import_seeds
from headstart.envs.errors import UsageError
from headstart.envs.instructions import ALTERATIONS, altered, has_instructions
from headstart.envs.simulator import GridStates, Simulator

FETCH = "MiniGrid-Fetch-8x8-N3-v0"
MISSIONS = np.array([[4, 5, 6, 0], [4, 5, 6, 0], [7, 8, 0, 0], [9, 9, 9, 0], [3, 0, 0, 0]], np.uint8)


@pytest.fixture(scope="module")
def fetch() -> Levels:
    return import_seeds(FETCH, range(60))


def texts(mission: NDArray[np.uint8]) -> list[tuple[int, ...]]:
    return [tuple(row) for row in mission.tolist()]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# ---- each alteration ----
def test_shuffled_missions_have_the_same_words_in_every_other_order() -> None:
    drawn = ALTERATIONS["shuffled"](np.repeat(MISSIONS[:1], 6000, axis=0), rng())
    counts = Counter(texts(drawn))
    orders = {(*order, 0) for order in itertools.permutations((4, 5, 6))} - {(4, 5, 6, 0)}
    assert set(counts) == orders
    assert all(1000 < n < 1400 for n in counts.values())  # 1200 of each of the five


def test_a_mission_of_one_word_cannot_be_shuffled_and_of_two_is_turned_round() -> None:
    for _ in range(5):
        assert texts(ALTERATIONS["shuffled"](MISSIONS, rng()))[2:] == [(8, 7, 0, 0), (9, 9, 9, 0), (3, 0, 0, 0)]


def test_emptied_missions_are_padding() -> None:
    empty = ALTERATIONS["emptied"](MISSIONS, rng())
    assert (empty.shape, empty.dtype, empty.any()) == (MISSIONS.shape, np.uint8, False)
    assert missions.decode(empty[0]) == ""


def test_swapped_missions_are_another_states_each_other_state_equally_often() -> None:
    generator = rng()
    counts = [Counter() for _ in MISSIONS]
    for _ in range(6000):
        for count, text in zip(counts, texts(ALTERATIONS["swapped"](MISSIONS, generator)), strict=True):
            count[text] += 1
    own = texts(MISSIONS)
    for i, count in enumerate(counts):
        others = [text for text in own if text != own[i]]
        assert set(count) == set(others)  # never its own, also not from the state with the same mission
        for text in count:
            assert count[text] == pytest.approx(6000 * others.count(text) / len(others), abs=250)


def test_there_is_nothing_to_swap_among_equal_missions() -> None:
    with pytest.raises(UsageError, match="nothing to swap: all 2 missions are equal"):
        ALTERATIONS["swapped"](MISSIONS[:2], rng())


@pytest.mark.parametrize("name", ALTERATIONS)
def test_the_given_missions_stay_and_the_generator_decides(name: str, fetch: Levels) -> None:
    mission = GridStates.of(fetch).mission()
    kept = mission.copy()
    one, two = ALTERATIONS[name](mission, rng()), ALTERATIONS[name](mission, rng())
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(mission, kept)
    assert (one.shape, one.dtype) == (mission.shape, np.uint8)
    assert (one != mission).any(axis=1).all()


def test_missions_of_real_levels(fetch: Levels) -> None:
    mission = GridStates.of(fetch).mission()
    said = {str(text) for text in fetch.mission}
    for before, after in zip(mission, ALTERATIONS["swapped"](mission, rng()), strict=True):
        assert missions.decode(after) in said - {missions.decode(before)}
    for before, after in zip(mission, ALTERATIONS["shuffled"](mission, rng()), strict=True):
        assert sorted(after) == sorted(before)
        assert missions.decode(after).split() != missions.decode(before).split()
        n_words = np.count_nonzero(before)
        assert after[:n_words].all()
        assert not after[n_words:].any()


def test_an_environment_with_one_mission_has_no_instructions(fetch: Levels) -> None:
    assert has_instructions(GridStates.of(fetch).mission())
    assert not has_instructions(GridStates.of(import_seeds("MiniGrid-DoorKey-5x5-v0", range(5))).mission())
    assert not has_instructions(MISSIONS[:0])


# ---- altered states ----
@pytest.mark.parametrize("name", ALTERATIONS)
def test_the_same_actions_have_the_same_success_whatever_was_said(name: str, fetch: Levels) -> None:
    states = GridStates.of(fetch)
    told = altered(states, name, rng())
    true, untrue = (Simulator(s, history=2, horizon=80) for s in (states, told))
    generator = rng()
    for _ in range(80):
        action = generator.choice(4, size=len(fetch), p=[0.2, 0.2, 0.4, 0.2])
        true.step(action)
        untrue.step(action)
        np.testing.assert_array_equal(untrue.states.success(), true.states.success())
        np.testing.assert_array_equal(untrue.observe()["frames"], true.observe()["frames"])
        np.testing.assert_array_equal(untrue.observe()["mission"], told.mission())  # to the end of the episode
    assert 5 < true.success().sum() < len(fetch) - 5  # both ends have been compared
    assert (told.mission() != GridStates.of(fetch).mission()).any(axis=1).all()


def test_altered_states_are_copies(fetch: Levels) -> None:
    states = GridStates.of(fetch)
    kept = states.take(np.arange(len(fetch)))
    told = altered(states, "emptied", rng())
    told.step(np.arange(len(fetch)), np.full(len(fetch), engine.LEFT))
    np.testing.assert_array_equal(states.rows, kept.rows)
    np.testing.assert_array_equal(states.mission(), kept.mission())


def test_an_unknown_alteration_is_refused(fetch: Levels) -> None:
    with pytest.raises(UsageError, match=r"'given'.*shuffled, emptied, swapped"):
        altered(GridStates.of(fetch), "given", rng())
