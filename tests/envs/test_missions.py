"""Missions: every registered id stays inside the vocabulary and inside its stated length."""

import contextlib
import io
import warnings

import gymnasium
import minigrid.envs  # noqa: F401  registers the ids
import numpy as np
import pytest

from headstart.envs.errors import DataError, UsageError
from headstart.envs.missions import VOCABULARY, decode, encode, mission_length, words

ALL_IDS = [env_id for env_id in gymnasium.registry if env_id.startswith(("MiniGrid-", "BabyAI-", "Headstart-"))]
NO_LEVELS = "MiniGrid-WFC"  # minigrid 3.2 is published without the pictures that these levels are made from


def missions_of(env_id: str, levels: int) -> list[str]:
    """Missions of the first seeds, without what minigrid prints about rejected levels and old ids."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = gymnasium.make(env_id, disable_env_checker=True)
        return [env.reset(seed=seed)[0]["mission"] for seed in range(levels)]


def check_id(env_id: str, levels: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        length = mission_length(env_id)
    for mission in missions_of(env_id, levels):
        assert decode(encode(mission, length)) == mission


def test_every_registered_id_stays_inside_vocabulary_and_length():
    assert len(ALL_IDS) > 150
    for env_id in ALL_IDS:
        check_id(env_id, levels=0 if env_id.startswith(NO_LEVELS) else 3)


@pytest.mark.slow
@pytest.mark.parametrize("env_id", [i for i in ALL_IDS if not i.startswith(NO_LEVELS)])
def test_many_levels_stay_inside_vocabulary_and_length(env_id):
    check_id(env_id, levels=100)


def test_no_word_is_listed_twice_and_ids_fit_a_byte():
    assert len(set(VOCABULARY)) == len(VOCABULARY) <= 256
    assert VOCABULARY[0] == ""


def test_encode_pads_with_zero_and_keeps_word_order():
    ids = encode("go to the red ball", 7)
    assert ids.dtype == np.uint8
    assert ids.shape == (7,)
    assert [VOCABULARY[i] for i in ids] == ["go", "to", "the", "red", "ball", "", ""]


def test_encode_knows_capitals_and_commas():
    text = "Get the red key from the blue room, unlock the red door and go to the goal"
    assert decode(encode(text, 20)) == text.lower()


def test_empty_mission_is_all_padding():
    assert encode("", 3).tolist() == [0, 0, 0]
    assert decode([0, 0, 0]) == ""


def test_unknown_words_are_named():
    with pytest.raises(DataError, match=r"grammar: juggle, orange\b"):
        encode("juggle the orange ball", 9)


def test_a_mission_that_does_not_fit_is_refused():
    with pytest.raises(DataError, match=r"5 words, and only 4 fit\. Give mission_length=5, or"):
        encode("go to the red ball", 4)


def test_ids_without_a_word_are_refused():
    with pytest.raises(DataError, match="No word has the id 255"):
        decode(np.array([1, 255], np.uint8))


@pytest.mark.parametrize(
    ("env_id", "length"),
    [
        ("MiniGrid-DoorKey-8x8-v0", 13),  # use the key to open the door and then get to the goal
        ("MiniGrid-Fetch-8x8-N3-v0", 6),  # you must fetch a grey key
        ("MiniGrid-Playground-v0", 0),
        ("MiniGrid-WFC-MazeSimple-v0", 8),  # traverse the maze to get to the goal
        ("BabyAI-GoToLocal-v0", 5),  # go to the red ball
        ("BabyAI-OpenDoorLoc-v0", 7),  # open the door in front of you
        ("BabyAI-PutNextLocal-v0", 9),  # put the red ball next to the blue box
        ("BabyAI-GoToSeq-v0", 24),  # (go to a red ball and go to a red ball), then (the same)
        ("BabyAI-SynthS5R2-v0", 9),  # no locations
        ("BabyAI-SynthLoc-v0", 17),  # put (a red ball in front of you) next to (the same)
        ("BabyAI-BossLevel-v0", 72),  # twice "and", one ", then"
    ],
)
def test_mission_length_counts_the_longest_sentence(env_id, length):
    assert mission_length(env_id) == length


def test_words_of_the_mazes_that_cannot_be_reset_are_known():
    assert encode("traverse the maze to get to the goal", 8).all()


def test_some_mission_reaches_the_stated_length():
    """The bound of the generated sentences is not merely safe: short ones are reached."""
    assert max(len(words(m)) for m in missions_of("BabyAI-SynthS5R2-v0", 60)) == 9


def test_environments_without_missions_are_refused():
    with pytest.raises(UsageError, match="CartPole-v1 has no missions"):
        mission_length("CartPole-v1")


def test_missions_of_any_text_have_no_known_length():
    space = gymnasium.spaces.Dict({"mission": gymnasium.spaces.Text(40)})

    class Told(gymnasium.Env):
        observation_space: gymnasium.Space = space

    gymnasium.register("HeadstartTest/Told-v0", Told)
    try:
        with pytest.raises(UsageError, match=r"Told-v0: how long its missions .* are Text.*Give mission_length"):
            mission_length("HeadstartTest/Told-v0")
    finally:
        del gymnasium.registry["HeadstartTest/Told-v0"]
