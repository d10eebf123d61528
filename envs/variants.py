"""Environments of our own: minigrid's classes with other levels, for what a policy was never shown.

    Headstart-Fetch-8x8-N3-v0               no red ball and no blue key, neither in the grid nor in the mission
    Headstart-Fetch-8x8-N3-HeldOut-v0       the target is a red ball or a blue key
    Headstart-Fetch-12x12-N6-v0             as the first, in a larger room with twice as many objects
    Headstart-SynthS5R2-v0                  no instruction says "pick up ... box" or "go to ... key"
    Headstart-SynthS5R2-HeldOut-v0          every instruction says one of the two
    Headstart-BlockedUnlockPickup-S8-v0     rooms of 8 x 8 instead of 6 x 6
    Headstart-Dynamic-Obstacles-10x10-N16-v0, Headstart-Dynamic-Obstacles-14x14-N36-v0
                                            a quarter of the cells are obstacles; minigrid's own has a tenth
    Headstart-MultiRoom-N8-v0               eight rooms; minigrid's own longest has six

What a step does, shows and pays is minigrid's, so the engine and the experts know these environments by their bases.

The held-out pairs share neither part with each other. So every part stays well known from other pairs: red from red
keys, balls from balls of five colours; boxes are gone to and put next to things, keys are picked up. Only the
combination is new.

Importing this module registers the ids.
"""

import gymnasium
from minigrid.core.constants import COLOR_NAMES
from minigrid.core.mission import MissionSpace
from minigrid.core.roomgrid import RoomGrid
from minigrid.envs.babyai.core import verifier
from minigrid.envs.babyai.core.roomgrid_level import RejectSampling
from minigrid.envs.babyai.synth import Synth
from minigrid.envs.blockedunlockpickup import BlockedUnlockPickupEnv
from minigrid.envs.dynamicobstacles import DynamicObstaclesEnv
from minigrid.envs.fetch import FetchEnv
from minigrid.envs.multiroom import MultiRoomEnv

__all__ = [
    "HELD_OUT_CLAUSES",
    "HELD_OUT_OBJECTS",
    "CrowdedObstacles",
    "HeldOutFetch",
    "HeldOutSynth",
    "LargeBlockedUnlockPickup",
]

Pairs = tuple[tuple[str, str], ...]

HELD_OUT_OBJECTS: Pairs = (("red", "ball"), ("blue", "key"))  # of the 12 objects of Fetch
HELD_OUT_CLAUSES: Pairs = (("pick up", "box"), ("go to", "key"))  # verb and type of object

VERBS = {
    verifier.GoToInstr: "go to",
    verifier.PickupInstr: "pick up",
    verifier.OpenInstr: "open",
    verifier.PutNextInstr: "put",
}
MAX_INSTRUCTIONS = 100  # for one level; one of seven is a held-out one


class HeldOutFetch(FetchEnv):
    """Fetch without objects of the pairs (colour, type) in ``held_out``; or, if ``asked``, with one as its target."""

    def __init__(self, held_out: Pairs = HELD_OUT_OBJECTS, asked: bool = False, **kwargs):
        self.held_out, self.asked = held_out, asked
        super().__init__(**kwargs)

    def _gen_grid(self, width: int, height: int) -> None:
        fits = False
        while not fits:  # whole levels are drawn again, so that those left are as likely as before
            super()._gen_grid(width, height)
            if self.asked:
                fits = (self.targetColor, self.targetType) in self.held_out
            else:
                fits = not any(thing and (thing.color, thing.type) in self.held_out for thing in self.grid.grid)


class HeldOutSynth(Synth):
    """Synth without instructions of the pairs (verb, type of object) in ``held_out``; or, if ``asked``, only those.

    To put a box next to something it still has to be picked up: what is held out is the instruction, not the action.
    """

    def __init__(self, held_out: Pairs = HELD_OUT_CLAUSES, asked: bool = False, **kwargs):
        self.held_out, self.asked = held_out, asked
        super().__init__(**kwargs)

    def gen_mission(self) -> None:
        super().gen_mission()
        for _ in range(MAX_INSTRUCTIONS):  # drawn again without the level, which takes much longer
            if self.asked == any(clause in self.held_out for clause in _clauses(self.instrs)):
                return
            self.instrs = self.rand_instr(self.action_kinds, self.instr_kinds)
        raise RejectSampling("this level has no such instruction")


def _clauses(instruction: verifier.Instr) -> Pairs:
    """(verb, type of object) of everything that is asked for."""
    if isinstance(instruction, verifier.SeqInstr):
        return _clauses(instruction.instr_a) + _clauses(instruction.instr_b)
    if isinstance(instruction, verifier.PutNextInstr):
        return (("put", instruction.desc_move.type), ("next to", instruction.desc_fixed.type))
    return ((VERBS[type(instruction)], instruction.desc.type),)  # type: ignore[attr-defined, index]


class LargeBlockedUnlockPickup(BlockedUnlockPickupEnv):
    """BlockedUnlockPickup with rooms of any size; minigrid's own takes no such argument."""

    def __init__(self, room_size: int = 8, max_steps: int | None = None, **kwargs):
        self.room_size = room_size
        RoomGrid.__init__(
            self,
            mission_space=MissionSpace(self._gen_mission, ordered_placeholders=[COLOR_NAMES, ["box", "key"]]),
            num_rows=1,
            num_cols=2,
            room_size=room_size,
            max_steps=max_steps or 16 * room_size**2,
            **kwargs,
        )


class CrowdedObstacles(DynamicObstaclesEnv):
    """DynamicObstacles with as many obstacles as are asked for; minigrid's own silently takes fewer."""

    def __init__(self, n_obstacles: int, **kwargs):
        super().__init__(n_obstacles=1, **kwargs)
        self.n_obstacles = n_obstacles


def _register(env_id: str, kind: type, **kwargs) -> None:
    gymnasium.register(env_id, entry_point=f"{kind.__module__}:{kind.__name__}", kwargs=kwargs)


_register("Headstart-Fetch-8x8-N3-v0", HeldOutFetch, size=8, numObjs=3)
_register("Headstart-Fetch-8x8-N3-HeldOut-v0", HeldOutFetch, size=8, numObjs=3, asked=True)
_register("Headstart-Fetch-12x12-N6-v0", HeldOutFetch, size=12, numObjs=6)
_register("Headstart-SynthS5R2-v0", HeldOutSynth, room_size=5, num_rows=2)
_register("Headstart-SynthS5R2-HeldOut-v0", HeldOutSynth, room_size=5, num_rows=2, asked=True)
_register("Headstart-BlockedUnlockPickup-S8-v0", LargeBlockedUnlockPickup, room_size=8)
_register("Headstart-Dynamic-Obstacles-10x10-N16-v0", CrowdedObstacles, size=10, n_obstacles=16)
_register("Headstart-Dynamic-Obstacles-14x14-N36-v0", CrowdedObstacles, size=14, n_obstacles=36)
_register("Headstart-MultiRoom-N8-v0", MultiRoomEnv, minNumRooms=8, maxNumRooms=8)
