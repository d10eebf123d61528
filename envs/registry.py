"""The environments that have a script of their own, one row each. Light to import: the command line reads it.

What was measured (lengths, successes, horizons) is in experiments/results/environments.csv, and is made again by
`python experiments/measure.py`; a test compares.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["ENVIRONMENTS", "FRAME_BYTES", "Environment", "Variant", "did_you_mean"]

FRAME_BYTES = 50  # of all environments here: engine.FRAME, which takes too long to import


@dataclass(frozen=True)
class Variant:
    """An out-of-distribution variant: nothing is trained on it, policies are only tried there.

    differs: how it differs from the environment that policies were trained in; sizes count the walls, as in its id.
    horizon: step limit, as of an environment.
    """

    id: str
    differs: str
    horizon: int


@dataclass(frozen=True)
class Environment:
    """One row.

    name: what the command line calls it, and the name of its script in experiments/.
    id: its Gymnasium id. stands_for: what makes it hard.
    study: whether it is one of the eight of the study.
    expert: the program that demonstrates. expert_length: its median number of steps. expert_success: share of
    levels that it solves within the horizon, before failures are dropped.
    random_success: share that uniformly random actions solve within the horizon.
    horizon: step limit of an episode: four times the expert's length, or minigrid's own limit if that is lower.
    history: earlier frames in an observation. budget: demonstrations in an experiment.
    mission_words: of the longest mission. n_actions: actions to choose from.
    ood: its out-of-distribution variants.
    """

    name: str
    id: str
    stands_for: str
    study: bool
    expert: str
    expert_length: float
    expert_success: float
    random_success: float
    horizon: int
    history: int
    budget: int
    mission_words: int
    n_actions: int
    ood: tuple[Variant, ...] = ()


ENVIRONMENTS = {
    row.name: row
    for row in (
        Environment(
            name="door_key",
            id="MiniGrid-DoorKey-8x8-v0",
            stands_for="the five-minute example: fetch a key, open a door, reach a goal",
            study=False,
            expert="bot",
            expert_length=22,
            expert_success=1.0,
            random_success=0.0005,
            horizon=92,  # fixed earlier, when 23 was measured in another sample
            history=4,
            budget=8,
            mission_words=13,
            n_actions=7,
        ),
        Environment(
            name="key_corridor",
            id="MiniGrid-KeyCorridorS3R3-v0",
            stands_for="search rooms for a key, use it, deliver what was locked away",
            study=True,
            expert="bot",
            expert_length=58,
            expert_success=1.0,
            random_success=0.0015,
            horizon=232,
            history=4,
            budget=8,
            mission_words=5,
            n_actions=7,
            ood=(
                Variant("MiniGrid-KeyCorridorS4R3-v0", "rooms of 4 x 4 cells instead of 3 x 3", 260),
                Variant("MiniGrid-KeyCorridorS5R3-v0", "rooms of 5 x 5 cells instead of 3 x 3", 328),
            ),
        ),
        Environment(
            name="fetch",
            id="Headstart-Fetch-8x8-N3-v0",
            stands_for="choose by attributes; whatever is picked up is final",
            study=True,
            expert="bot",
            expert_length=5,
            expert_success=1.0,
            random_success=0.0565,
            horizon=20,
            history=4,
            budget=256,
            mission_words=6,
            n_actions=7,
            ood=(
                Variant("Headstart-Fetch-12x12-N6-v0", "12 x 12 cells with 6 objects instead of 8 x 8 with 3", 32),
                Variant("Headstart-Fetch-8x8-N3-HeldOut-v0", "the target is a red ball or blue key: never shown", 20),
            ),
        ),
        Environment(
            name="blocked_unlock",
            id="MiniGrid-BlockedUnlockPickup-v0",
            stands_for="a fixed procedure with tools: clear the way, unlock, swap key for box",
            study=True,
            expert="bot",
            expert_length=34,
            expert_success=1.0,
            random_success=0.0,
            horizon=136,
            history=4,
            budget=16,
            mission_words=5,
            n_actions=7,
            ood=(Variant("Headstart-BlockedUnlockPickup-S8-v0", "rooms of 8 x 8 cells instead of 6 x 6", 172),),
        ),
        Environment(
            name="multi_room",
            id="MiniGrid-MultiRoom-N6-v0",
            stands_for="a long plan through six rooms, from few demonstrations",
            study=True,
            expert="bot",
            expert_length=59,
            expert_success=1.0,
            random_success=0.0,
            horizon=120,
            history=4,
            budget=8,
            mission_words=8,
            n_actions=7,
            ood=(Variant("Headstart-MultiRoom-N8-v0", "eight rooms instead of six", 160),),
        ),
        Environment(
            name="memory",
            id="MiniGrid-MemoryS13Random-v0",
            stands_for="gather evidence, keep it in mind, answer once; a wrong answer is final",
            study=True,
            expert="memory planner",
            expert_length=8,
            expert_success=1.0,
            random_success=0.0755,
            horizon=32,
            history=24,
            budget=128,
            mission_words=11,
            n_actions=7,
            ood=(Variant("MiniGrid-MemoryS17Random-v0", "a hallway of up to 17 cells instead of 13", 42),),
        ),
        Environment(
            name="synth",
            id="Headstart-SynthS5R2-v0",
            stands_for="four verbs with typed arguments, in instructions of one clause",
            study=True,
            expert="bot",
            expert_length=19,
            expert_success=0.915,
            random_success=0.131,
            horizon=76,
            history=4,
            budget=256,
            mission_words=9,
            n_actions=7,
            ood=(
                Variant("BabyAI-Synth-v0", "3 x 3 rooms of 8 x 8 instead of 3 x 2 of 5 x 5", 120),
                Variant("BabyAI-SynthLoc-v0", "as Synth, and objects are described by where they are", 88),
                Variant("Headstart-SynthS5R2-HeldOut-v0", '"pick up ... box" and "go to ... key": never shown', 64),
            ),
        ),
        Environment(
            name="dynamic_obstacles",
            id="Headstart-Dynamic-Obstacles-10x10-N16-v0",
            stands_for="others move too, harm is final, and futures are random",
            study=True,
            expert="planner",
            expert_length=45,
            expert_success=1.0,
            random_success=0.0,
            horizon=180,
            history=4,
            budget=8,
            mission_words=6,
            n_actions=3,
            ood=(
                Variant(
                    "Headstart-Dynamic-Obstacles-14x14-N36-v0",
                    "14 x 14 cells with 36 obstacles, not 10 x 10 with 16",
                    264,
                ),
            ),
        ),
        Environment(
            name="mini_boss",
            id="BabyAI-MiniBossLevel-v0",
            stands_for="open, mixed, long instructions, with doors to unlock on the way",
            study=True,
            expert="bot",
            expert_length=23,
            expert_success=0.98,
            random_success=0.088,
            horizon=92,
            history=4,
            budget=256,
            mission_words=72,
            n_actions=7,
            ood=(
                Variant(
                    "BabyAI-BossLevelNoUnlock-v0", "3 x 3 rooms of 8 x 8 instead of 2 x 2 of 5 x 5; none locked", 304
                ),
                Variant("BabyAI-BossLevel-v0", "3 x 3 rooms of 8 x 8 instead of 2 x 2 of 5 x 5", 252),
            ),
        ),
    )
}


def did_you_mean(env_id: str, ids: Iterable[str]) -> str:
    """Advice for an id that is none of ``ids``: the one that a name of ENVIRONMENTS stands for, or similar ones.

    "" if nothing is similar.
    """
    close = [ENVIRONMENTS[env_id].id] if env_id in ENVIRONMENTS else difflib.get_close_matches(env_id, ids, n=3)
    return f"Did you mean {', '.join(close)}?" if close else ""
