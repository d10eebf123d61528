"""The environments that have a script of their own, one row each. Light to import: the command line reads it."""

from dataclasses import dataclass

__all__ = ["ENVIRONMENTS", "Environment"]


@dataclass(frozen=True)
class Environment:
    """One row.

    name: what the command line calls it, and the name of its script in experiments/.
    id: its Gymnasium id. stands_for: what makes it hard.
    expert: the program that demonstrates. expert_length: its median number of steps.
    horizon: step limit of an episode here, a stated multiple of the expert's length.
    budget: demonstrations in an experiment. history: earlier frames in an observation.
    study: whether it is one of the eight of the study. ood: ids of its out-of-distribution variants.
    """

    name: str
    id: str
    stands_for: str
    expert: str
    expert_length: int
    horizon: int
    budget: int
    history: int
    study: bool
    ood: tuple[str, ...] = ()


ENVIRONMENTS = {
    row.name: row
    for row in (
        Environment(
            name="door_key",
            id="MiniGrid-DoorKey-8x8-v0",
            stands_for="the five-minute example: fetch a key, open a door, reach a goal",
            expert="bot",
            expert_length=23,
            horizon=92,  # four times the expert's length
            budget=16,
            history=4,
            study=False,
        ),
    )
}
