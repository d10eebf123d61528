"""The experts: programs that solve a MiniGrid or BabyAI level and so give the demonstrations.

    expert = expert_for("MiniGrid-DoorKey-8x8-v0")
    env.reset(seed=7)
    solution = expert.solve(env)            # acts in env, through env.step only
    solution.actions                        # replayed after reset(seed=7) they give the same episode

Three programs cover everything:

- the *bot* (`minigrid.utils.baby_ai_bot`) keeps a stack of sub-goals and plans over cells that it has seen.
  It reads BabyAI's instructions; a plain MiniGrid level gets the instruction that its mission means.
- the *memory planner* walks to where the cue can be seen, then to the end of the hallway that matches it;
- the *dynamic-obstacles planner* searches a path around the obstacles in view, again before every step.

No expert reads a reward to choose an action. The reward is read once, after the last step, to say whether the
demonstration succeeded. An expert may fail: the caller keeps only what succeeded and counts the rest.
"""

import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import gymnasium
import minigrid.envs  # noqa: F401  registers the ids
from gymnasium.envs.registration import EnvSpec
from minigrid.core.actions import Actions
from minigrid.core.constants import DIR_TO_VEC
from minigrid.core.world_object import WorldObj
from minigrid.envs.babyai.core.verifier import (
    BeforeInstr,
    GoToInstr,
    Instr,
    ObjDesc,
    OpenInstr,
    PickupInstr,
    PutNextInstr,
)
from minigrid.minigrid_env import MiniGridEnv
from minigrid.utils.baby_ai_bot import (
    BabyAIBot,
    DisappearedBoxError,
    ExploreSubgoal,
    GoNextToSubgoal,
    Subgoal,
)

from headstart.envs import variants  # noqa: F401  registers our own ids
from headstart.envs.errors import UsageError
from headstart.envs.registry import did_you_mean

Cell = tuple[int, int]
Guard = Callable[[], None]  # raises GaveUp when the time is over
Advise = Callable[[int | None], int]  # last action taken (None at the start) -> next action


class GaveUp(Exception):
    """The expert stopped by itself: no plan, or no time left."""


@dataclass(frozen=True)
class Solution:
    """What an expert did in one episode: `reason` says why it failed and is empty when it succeeded."""

    actions: tuple[int, ...]
    reason: str

    @property
    def success(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class Expert:
    """A named program. `start(level, guard)` begins an episode and returns what advises each action."""

    name: str
    start: Callable[[MiniGridEnv, Guard], Advise]

    def solve(self, env: gymnasium.Env, *, time_limit: float = 20.0) -> Solution:
        """Acts in `env`, which was just reset, until the episode ends, the expert gives up or time is over.

        `time_limit` is in seconds of wall clock and is checked inside the bot's searches, so it works in any
        thread. It is a last resort: a bot that plans without end is stopped earlier, by a count of its
        searches, so that the outcome does not depend on how busy the machine is.
        """
        deadline = time.monotonic() + time_limit

        def guard() -> None:
            if time.monotonic() > deadline:
                raise GaveUp(f"not solved within {time_limit:g} s")

        actions: list[int] = []
        level = cast(MiniGridEnv, env.unwrapped)
        try:
            advise = self.start(level, guard)
            action = None
            while True:
                guard()
                action = int(advise(action))
                _, reward, terminated, truncated, _ = env.step(action)
                actions.append(action)
                if terminated or truncated:
                    # Both can be true on the last step of a success: only the reward tells.
                    failure = "the episode ended without success" if terminated else "out of steps"
                    return Solution(tuple(actions), "" if float(reward) > 0 else failure)
                if action == Actions.done:
                    return Solution(tuple(actions), "the bot believes it has finished; the episode goes on")
        except (GaveUp, DisappearedBoxError) as error:
            return Solution(tuple(actions), str(error))


# ---- the bot ----------------------------------------

# A plan that needs more searches than this for one action is going round in circles (measured: at most 13).
MAX_SEARCHES_PER_ACTION = 100


class _Level:
    """A plain MiniGrid level as the bot wants to see it: with an instruction, and with rooms to ask for."""

    def __init__(self, env: MiniGridEnv, instruction: Instr | None):
        self._env = env
        self.unwrapped = self
        self.instrs = instruction  # None: step onto the goal
        if instruction is not None:
            instruction.reset_verifier(self)  # type: ignore[arg-type]

    def __getattr__(self, name: str):
        return getattr(self._env, name)

    def room_from_pos(self, x: int, y: int) -> None:
        """Rooms matter only to descriptions such as "on your left", which plain MiniGrid does not have."""


class _StepOntoGoal(Subgoal):
    """Find the green goal square, which BabyAI's instructions cannot name, and walk onto it."""

    def replan_before_action(self):
        grid = self.bot.mission.grid
        goal = next(cell for cell, thing in _things(self.bot.mission) if thing.type == "goal")
        if not self.bot.vis_mask[goal]:
            self.bot.stack.append(ExploreSubgoal(self.bot))
        elif grid.get(*self.fwd_pos) is grid.get(*goal):
            return self.actions.forward
        else:
            self.bot.stack.append(GoNextToSubgoal(self.bot, goal))
        return None


class _Bot(BabyAIBot):
    """BabyAI's bot, which also steps onto goals, keeps out of lava, and stops when it finds no plan."""

    def __init__(self, level: MiniGridEnv | _Level, guard: Guard):
        self.guard = guard
        self.searches_left = MAX_SEARCHES_PER_ACTION
        self.has_lava = any(thing.type == "lava" for _, thing in _things(level))
        super().__init__(level)

    def advise(self, last_action: int | None) -> int:
        self.searches_left = MAX_SEARCHES_PER_ACTION
        try:
            return int(cast(int, self.replan(last_action)))
        except (AssertionError, AttributeError, TypeError) as error:
            # How the bot says that it has no plan: its own assertions, or a missing position used as one.
            raise GaveUp(f"the bot has no plan ({type(error).__name__}: {error})") from error

    def _process_instr(self, instr: Instr | None):
        if instr is None:
            self.stack.append(_StepOntoGoal(self))
        else:
            super()._process_instr(instr)

    def _shortest_path(self, accept_fn, try_with_blockers=False):
        # A path through "blockers" picks them up on the way. Lava cannot be picked up, and no level with lava
        # has anything else in the way.
        return super()._shortest_path(accept_fn, try_with_blockers and not self.has_lava)

    def _breadth_first_search(self, initial_states, accept_fn, ignore_blockers):
        self.guard()
        self.searches_left -= 1
        if self.searches_left < 0:
            raise GaveUp("the bot changes its plan without end")
        return super()._breadth_first_search(initial_states, accept_fn, ignore_blockers)


def _things(env: MiniGridEnv | _Level) -> Iterator[tuple[Cell, WorldObj]]:
    """Every object of the grid with its cell (`cur_pos` is not filled in by `grid.set`)."""
    for index, thing in enumerate(env.grid.grid):
        if thing is not None:
            yield (index % env.grid.width, index // env.grid.width), thing


def _open(color: str) -> Instr:
    return OpenInstr(ObjDesc("door", color))


def _pick_up_target(env) -> Instr:
    return PickupInstr(ObjDesc(env.obj.type, env.obj.color))


def _put_near(env) -> Instr:
    moved, fixed = ObjDesc(env.move_type, env.moveColor), ObjDesc(env.target_type, env.target_color)
    return PutNextInstr(moved, fixed)


# By name of minigrid's class: what the mission means in BabyAI's language. None: step onto the goal.
TO_THE_GOAL = ("Crossing", "DistShift", "DoorKey", "Empty", "FourRooms", "LavaGap", "LockedRoom", "MultiRoom")
INSTRUCTIONS: Mapping[str, Callable[..., Instr | None]] = {
    "UnlockEnv": lambda env: _open(env.door.color),
    "RedBlueDoorEnv": lambda env: BeforeInstr(_open("red"), _open("blue")),
    "UnlockPickupEnv": _pick_up_target,
    "BlockedUnlockPickupEnv": _pick_up_target,
    "KeyCorridorEnv": _pick_up_target,
    "ObstructedMazeEnv": _pick_up_target,
    "FetchEnv": lambda env: PickupInstr(ObjDesc(env.targetType, env.targetColor)),
    "PutNearEnv": _put_near,
    "GoToDoorEnv": lambda env: GoToInstr(ObjDesc("door", env.target_color)),
    "GoToObjectEnv": lambda env: GoToInstr(ObjDesc(env.targetType, env.target_color)),
} | {f"{name}Env": lambda env: None for name in TO_THE_GOAL}


def _start_bot(env: MiniGridEnv, guard: Guard) -> Advise:
    kinds = _class_names(type(env))
    if "RoomGridLevel" in kinds:
        return _Bot(env, guard).advise
    for cell, thing in _things(env):
        if thing.type == "door":
            thing.cur_pos = cell  # where the bot looks for a door; `grid.set` does not fill it in
    instruction = next(INSTRUCTIONS[kind](env) for kind in kinds if kind in INSTRUCTIONS)
    return _Bot(_Level(env, instruction), guard).advise


# ---- planners of our own ----------------------------------------


def _in_view(env: MiniGridEnv, kinds: tuple[str, ...]) -> dict[Cell, str]:
    """Cell and kind of the objects that the agent's observation shows right now."""
    _, visible = env.gen_obs_grid()
    found = {}
    for cell, thing in _things(env):
        view = env.relative_coords(*cell)
        if thing.type in kinds and view is not None and visible[view]:
            found[cell] = thing.type
    return found


def _start_memory_planner(env: MiniGridEnv, guard: Guard) -> Advise:
    """Look at the cue, then at an end of the hallway, then go to the end that matches.

    It knows what is the same in every level: the cue lies at (1, middle - 1), the hallway runs east along the
    middle row, and the two objects at its end differ. What they are it knows only once they were in view. Where an
    agent has strayed from the middle row, it goes back there first: all else may be behind a wall.
    """
    middle = env.height // 2
    cue = (1, middle - 1)
    remembered: dict[Cell, str] = {}

    def towards(target: Cell) -> int:
        x, y = env.agent_pos
        return _action_towards(env, target if x == target[0] or y == middle else (x, middle))

    def advise(last_action: int | None) -> int:
        remembered.update(_in_view(env, ("key", "ball")))
        end = next((cell for cell in remembered if cell != cue), None)
        if cue not in remembered:
            return towards((1, middle))
        if end is None:
            return towards((env.agent_pos[0] + 1, middle))
        side = 1 if end[1] > middle else -1
        if remembered[end] != remembered[cue]:
            side = -side
        return towards((end[0], middle + side))

    return advise


def _action_towards(env: MiniGridEnv, target: Cell) -> int:
    """Along the row first, then along the column. Turns left when the way is behind."""
    dx, dy = target[0] - env.agent_pos[0], target[1] - env.agent_pos[1]
    wanted = (0 if dx > 0 else 2) if dx else (1 if dy > 0 else 3)
    turn = (wanted - env.agent_dir) % 4
    return (Actions.forward, Actions.right, Actions.left, Actions.left)[turn]


def _start_dynamic_obstacles_planner(env: MiniGridEnv, guard: Guard) -> Advise:
    """Take the shortest way around the obstacles in view, and search it again before every step.

    A collision is decided by the cell in front before the obstacles move, so never stepping into an occupied
    cell is safe for certain. Where obstacles close the way further on, they will have moved by then: only the
    one in front counts. Where that one closes the only way, turning left waits for it to leave.
    """

    def advise(last_action: int | None) -> int:
        obstacles = set(_in_view(env, ("ball",)))
        for blocked in (obstacles, obstacles & {tuple(env.front_pos)}):
            action = _first_action_to_goal(env, blocked)
            if action is not None:
                return action
        return Actions.left

    return advise


def _first_action_to_goal(env: MiniGridEnv, blocked: set[Cell]) -> int | None:
    """Breadth-first search over (x, y, direction) in the empty room whose goal is its last corner."""
    start = (int(env.agent_pos[0]), int(env.agent_pos[1]), int(env.agent_dir))
    goal = (env.width - 2, env.height - 2)
    first_action: dict[tuple[int, int, int], int | None] = {start: None}
    queue = deque([start])
    while queue:
        x, y, direction = state = queue.popleft()
        if (x, y) == goal:
            return first_action[state]
        dx, dy = (int(step) for step in DIR_TO_VEC[direction])
        for action, following in (
            (Actions.forward, (x + dx, y + dy, direction)),
            (Actions.right, (x, y, (direction + 1) % 4)),
            (Actions.left, (x, y, (direction - 1) % 4)),
        ):
            inside = 1 <= following[0] <= goal[0] and 1 <= following[1] <= goal[1]
            if inside and following[:2] not in blocked and following not in first_action:
                first_action[following] = action if first_action[state] is None else first_action[state]
                queue.append(following)
    return None


# ---- which expert for which id ----------------------------------------

BOT = Expert("BabyAI bot", _start_bot)
MEMORY_PLANNER = Expert("memory planner", _start_memory_planner)
DYNAMIC_OBSTACLES_PLANNER = Expert("dynamic-obstacles planner", _start_dynamic_obstacles_planner)

EXPERTS: dict[str, Expert] = {
    "MemoryEnv": MEMORY_PLANNER,
    "DynamicObstaclesEnv": DYNAMIC_OBSTACLES_PLANNER,
    "RoomGridLevel": BOT,  # all of BabyAI
} | dict.fromkeys(INSTRUCTIONS, BOT)

REFUSED = {
    r"BabyAI-KeyInBox-v\d": "the key is hidden in a box, and the bot never opens a box",
    r"MiniGrid-ObstructedMaze-(?![12]Dl-).*": "keys are hidden in boxes, and the bot never opens a box",
    r"BabyAI-PutNext.*Carrying-v\d": "the agent starts with an object in hand, which the bot does not notice",
    r"BabyAI-OpenDoorsOrderN[24]Debug-v\d": "minigrid fails every level of this id that asks for two doors",
}


def expert_for(env_id: str) -> Expert:
    """The expert of a registered id. Raises UsageError, with the reason, for an id that has none."""
    if not isinstance(env_id, str):
        raise UsageError(
            f"Experts are known by the id of an environment, and not by a {type(env_id).__name__}. For an environment "
            "of your own, give an expert of your own: demonstrate(make_env, expert, episodes)."
        )
    expert, reason = _lookup(env_id)
    if expert is not None:
        return expert
    advice = did_you_mean(env_id, known_experts()) or "`known_experts()` lists those that have one."
    raise UsageError(f"No expert for {env_id}: {reason}. {advice}")


def known_experts() -> dict[str, str]:
    """Every registered id that has an expert, with the expert's name."""
    experts = {env_id: _lookup(env_id)[0] for env_id in gymnasium.registry}
    return {env_id: expert.name for env_id, expert in sorted(experts.items()) if expert is not None}


def _lookup(env_id: str) -> tuple[Expert | None, str]:
    """An expert, or None and the reason."""
    spec = gymnasium.registry.get(env_id)
    if spec is None:
        return None, "no environment of this name is registered"
    for pattern, reason in REFUSED.items():
        if re.fullmatch(pattern, env_id):
            return None, reason
    for kind in _class_names(_env_class(spec)):
        if kind in EXPERTS:
            return EXPERTS[kind], ""
    return None, "none of the programs here solves this kind of environment"


def _env_class(spec: EnvSpec) -> type | None:
    """The class behind an id, or None. Loads no module: those of minigrid's classes are loaded already."""
    found = spec.entry_point
    if isinstance(found, str):
        module, _, name = found.partition(":")
        found = getattr(sys.modules.get(module), name, None)
    return found if isinstance(found, type) else None


def _class_names(kind: type | None) -> list[str]:
    """The class and its bases, so that a subclass of a minigrid class is recognised as well."""
    if kind is None or not issubclass(kind, MiniGridEnv):
        return []
    return [base.__name__ for base in kind.__mro__]
