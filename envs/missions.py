"""Missions as token ids: the words of MiniGrid's and BabyAI's grammar, and no others.

    encode("go to the red ball", length=9)      # uint8 (9,): five words, then padding (0)

The vocabulary is closed, and written down here, because BabyAI's mission spaces cannot be asked for it: they
accept any string and sample only "go". It was read off the templates in minigrid's sources; a test resets
every registered id against it.
"""

import re
from collections.abc import Iterable

import gymnasium
import minigrid.envs  # noqa: F401  registers the ids
import numpy as np
from minigrid.core.mission import MissionSpace

from headstart.envs import variants  # noqa: F401  registers our own ids
from headstart.envs.errors import DataError, UsageError

PADDING = ""

# A word's id is its place in this list, and trained policies keep ids: append new words at the end.
VOCABULARY: tuple[str, ...] = (
    PADDING,
    *("red", "green", "blue", "purple", "yellow", "grey"),
    *("key", "ball", "box", "door", "object", "goal", "lava", "room"),
    *("the", "a"),
    # BabyAI's verbs: "go to", "pick up", "open", "put ... next to"
    *("go", "to", "pick", "up", "open", "put", "next"),
    # where an object is: "in front of you", "behind you", "on your left", "on your right"
    *("in", "front", "of", "you", "behind", "on", "your", "left", "right"),
    # between two instructions: "and", ", then", "after you"
    *("and", ",", "then", "after"),
    # Fetch ("you must fetch a", "go get a"), PutNear, DoorKey, LockedRoom
    *("get", "fetch", "must", "near", "use", "from", "unlock"),
    # Crossing, LavaGap, Empty, FourRooms, MultiRoom, the mazes of WFC
    *("avoid", "find", "opening", "square", "reach", "traverse", "rooms", "maze"),
    # Memory: "go to the matching object at the end of the hallway"
    *("matching", "at", "end", "hallway"),
)
IDS = {word: token for token, word in enumerate(VOCABULARY)}


def words(mission: str) -> list[str]:
    """The words of a mission in lower case; every punctuation mark is a word of its own."""
    return re.findall(r"\w+|[^\w\s]", mission.lower())


def encode(mission: str, length: int) -> np.ndarray:
    """Token ids, uint8 (length,), padded at the end with 0. Refuses unknown words and longer missions."""
    tokens = words(mission)
    unknown = [word for word in tokens if word not in IDS]
    if unknown:
        raise DataError(
            f"The mission {mission!r} has words outside MiniGrid's grammar: {', '.join(unknown)}. Use a wrapper that "
            "says it in the words of headstart.envs.missions.VOCABULARY, or shows it as a Box or Discrete instead."
        )
    if len(tokens) > length:
        raise DataError(
            f"The mission {mission!r} has {len(tokens)} words, and only {length} fit. "
            f"Give mission_length={len(tokens)}, or the words in the longest mission there is."
        )
    ids = np.zeros(length, np.uint8)
    ids[: len(tokens)] = [IDS[word] for word in tokens]
    return ids


def decode(ids: Iterable[int]) -> str:
    """The mission that `encode` was given (in lower case). Refuses ids that no word has."""
    numbers = [int(token) for token in ids]
    unknown = [token for token in numbers if not 0 <= token < len(VOCABULARY)]
    if unknown:
        raise DataError(f"No word has the id {unknown[0]}: the vocabulary ends at {len(VOCABULARY) - 1}.")
    return " ".join(VOCABULARY[token] for token in numbers if token).replace(" ,", ",")


# The longest missions of BabyAI's levels that do not come from its sentence generator; by minigrid's class.
_LONGEST_SENTENCE = {
    "PutNext": "put the red ball next to the blue box",
    "PutNextLocal": "put the red ball next to the blue box",
    "MoveTwoAcross": "put the red ball next to the blue box, then put the red ball next to the blue box",
    "OpenTwoDoors": "open the red door, then open the blue door",
    "OpenDoorsOrder": "open the red door after you open the blue door",
    "OpenDoor": "open the door in front of you",  # by its colour or by its place, not both
}
_LONGEST_CLAUSE = "pick up the red ball"  # all the other levels have one clause about one object


def mission_length(env_id: str) -> int:
    """The number of words in the longest mission that the levels of an id can have.

    Plain MiniGrid: from the mission space. BabyAI's generated sentences: from the kinds of clauses that the
    level draws from. BabyAI's other levels: the longest sentence of their class.
    """
    env = gymnasium.make(env_id, disable_env_checker=True).unwrapped
    space = getattr(env, "observation_space", None)
    if not isinstance(space, gymnasium.spaces.Dict) or "mission" not in space.spaces:
        raise UsageError(f"{env_id} has no missions: its observations have no entry `mission`.")
    names = [kind.__name__ for kind in type(env).__mro__]
    if "LevelGen" in names:
        return len(words(_longest_generated(env)))
    if "RoomGridLevel" in names:
        sentences = [_LONGEST_SENTENCE[name] for name in names if name in _LONGEST_SENTENCE]
        return len(words((sentences or [_LONGEST_CLAUSE])[0]))
    mission = space.spaces["mission"]
    if not isinstance(mission, MissionSpace):
        raise UsageError(
            f"{env_id}: how long its missions can be is unknown, as they are {mission}. Give mission_length, the words "
            "in its longest mission."
        )
    longest = [max(choices, key=lambda text: len(words(text))) for choices in mission.ordered_placeholders or ()]
    return len(words(mission.mission_func(*longest)))


def _longest_generated(level) -> str:
    """The longest sentence of BabyAI's sentence generator (`LevelGen`) with this level's settings."""
    thing = "a red ball in front of you" if level.locations else "a red ball"
    clauses = {
        "goto": f"go to {thing}",
        "pickup": f"pick up {thing}",
        "open": f"open {thing}",
        "putnext": f"put {thing} next to {thing}",
    }
    clause = max((clauses[kind] for kind in level.action_kinds), key=lambda text: len(words(text)))
    both = f"{clause} and {clause}"
    if "seq" in level.instr_kinds:
        return f"{both}, then {both}"  # both halves of a sequence may be double, whatever `instr_kinds` says
    return both if "and" in level.instr_kinds else clause
