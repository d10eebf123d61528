"""Everything that steps an environment before reward exists: demonstrations, branches, practice.

    demos = collect_demos("MiniGrid-DoorKey-8x8-v0", episodes=8, seed=0)
    branches = branch(demos)                                   # every action at every demonstrated state
    own = branch(practise(replay(demos), actor, steps=4))      # and at states the agent reaches by itself

Legend: E episodes, N states, A actions, H steps of a future.
"""

import dataclasses
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from tqdm import tqdm

from headstart.envs import storage
from headstart.envs.agents import Agent, acting, generator
from headstart.envs.banks import bank, import_seeds
from headstart.envs.episode import MakeEnv, Success
from headstart.envs.errors import DataError, UsageError, check_numbers
from headstart.envs.experts import expert_for
from headstart.envs.levels import export_level
from headstart.envs.simulator import Actor, GridStates, Obs, Simulator, States, uniform_actor
from headstart.envs.spaces import Choices
from headstart.envs.tasks import Task
from headstart.envs.transitions import Branches, Demos, Walk

__all__ = ["branch", "collect_demos", "load_demos", "play", "practise", "replay", "save_demos"]

Alternatives = Literal["uniform", "policy", "mixture"]
"""How the actions to be tried are drawn, where not all are."""

COPIES = 256  # of a Python environment that are alive at a time: one may hold megabytes

KIND, SCHEMA = "headstart demonstrations", 1


def join(parts: list[Simulator]) -> Simulator:
    """One simulator with the episodes of all ``parts``, in order; a single part as it is."""
    if len(parts) == 1:
        return parts[0]
    largest = max(parts, key=len)
    if not len(largest):
        return largest
    whole, at = largest.fork(np.zeros(sum(map(len, parts)), np.int64)), 0
    for part in parts:
        whole.put(np.arange(at, at + len(part)), part)
        at += len(part)
    return whole


# ---- demonstrations ----
def collect_demos(
    env_id: str,
    episodes: int,
    *,
    seed: int = 0,
    history: int = 4,
    horizon: int | None = None,
    split: str = "train",
    cache: str | Path | None = None,
) -> Demos:
    """``episodes`` successful episodes of the built-in expert, on levels drawn from the split by ``seed``.

    Levels that the expert fails are replaced by others and counted in ``Demos.dropped``. ``horizon`` (default:
    minigrid's own limit) is the step limit that demonstrations must keep to. Raises UsageError when no expert
    is known for the environment, DataError when it fails too many levels.
    """
    expert = expert_for(env_id)
    episodes, seed, history, horizon = check_numbers(
        env_id, episodes=episodes, seed=seed, history=history, horizon=horizon
    )
    candidates = bank(env_id, split, max(1024, 4 * episodes), cache=cache)
    order = np.random.default_rng([seed, 0xDE]).permutation(len(candidates))
    seeds: list[int] = []
    actions: list[tuple[int, ...]] = []
    dropped = 0
    progress = tqdm(total=episodes, desc="demonstrations", unit="episode", delay=2, disable=None)
    for i in order:
        level_seed = int(candidates.seed[i])
        env = export_level(candidates.rows[i], env_id, level_seed)
        solution = expert.solve(env)
        if solution.success and len(solution.actions) <= (horizon or len(solution.actions)):
            seeds.append(level_seed)
            actions.append(solution.actions)
            progress.update()
        else:
            dropped += 1
        if len(seeds) == episodes:
            break
    progress.close()
    if len(seeds) < episodes:
        raise DataError(
            f"{env_id}: the expert {expert.name!r} solved only {len(seeds)} of {len(order)} levels within "
            f"{horizon} steps, and {episodes} demonstrations were asked for. Ask for fewer, or raise the horizon."
        )
    limit = horizon or candidates.horizon
    return play(env_id, np.array(seeds), [np.array(a, np.int64) for a in actions], history, limit, dropped)


def play(
    env: str | Task,
    seeds: NDArray[np.int64],
    actions: list[NDArray[np.int64]],
    history: int,
    horizon: int,
    dropped: int = 0,
    exact: NDArray | None = None,
) -> Demos:
    """Play the actions of each episode, record what is observed on the way, and call it demonstrations.

    ``env`` is an id of the engine or a task; ``exact`` (N, ...) are a task's own actions, where ``actions`` are only
    the choices nearest to them. Raises DataError if an episode is over before its actions are.
    """
    if any(len(taken) == 0 for taken in actions) or not actions:
        name = env if isinstance(env, str) else env.name
        raise DataError(f"{name}: the demonstrations are empty, or one of them is. Collect at least one step of each.")
    task = None if isinstance(env, str) else env
    name, start = (env, _start(env, None, seeds)) if isinstance(env, str) else (env.name, env.states(seeds))
    _, obs, state_hash = _play(name, start, seeds, actions, exact, history, horizon)
    length = np.array([len(a) for a in actions])
    if task is not None:
        task = task.fitted(obs["frames"][:, -1], np.repeat(np.arange(len(length)), length))
    return Demos(name, horizon, seeds, length, np.concatenate(actions), state_hash, obs, dropped, task, exact)


def _start(env_id: str, task: Task | None, seeds: NDArray[np.int64]) -> States:
    """The start of the episodes of these seeds."""
    return GridStates.of(import_seeds(env_id, seeds.tolist())) if task is None else task.states(seeds)


def _play(
    name: str,
    start: States,
    seeds: NDArray[np.int64],
    actions: list[NDArray[np.int64]],
    exact: Sequence[Any] | NDArray | None,
    history: int,
    horizon: int,
) -> tuple[Simulator, Obs, NDArray[np.uint64]]:
    """Every state of the episodes before its action: simulator (N), observations and state hashes."""
    simulator = Simulator(start, history=history, horizon=horizon)
    length = np.array([len(a) for a in actions])
    first = np.concatenate([[0], np.cumsum(length)[:-1]])
    visited = simulator.fork(np.repeat(np.arange(len(length)), length))
    padded = np.zeros((len(length), length.max()), np.int64)
    for episode, taken in enumerate(actions):
        padded[episode, : len(taken)] = taken
    for t in range(length.max()):
        playing = np.flatnonzero(length > t)
        if simulator.done[playing].any():
            early = int(playing[simulator.done[playing]][0])
            raise DataError(
                f"{name}: demonstration {early} (level seed {seeds[early]}) has {length[early]} "
                f"actions, but its episode is over after {t}. Collect it again, or raise the horizon ({horizon})."
            )
        visited.put(first[playing] + t, simulator.fork(playing))
        moving = simulator.fork(playing)
        moving.step(padded[playing, t], None if exact is None else [exact[i] for i in first[playing] + t])
        simulator.put(playing, moving)
    return visited, visited.observe(), visited.state_hash()


def replay(demos: Demos) -> Simulator:
    """The N states of the demonstrations, ready to be forked, each proven equal to the expert's by its hash.

    Raises DataError naming the first demonstration and step whose state differs, and UsageError if the demonstrations
    are a record that cannot be played again.
    """
    if demos.unbranchable:
        raise UsageError(f"{demos.env_id}: these demonstrations cannot be branched: {demos.unbranchable}")
    actions = np.split(demos.action, np.cumsum(demos.length)[:-1])
    start = _start(demos.env_id, demos.task, demos.seed)
    states, _, found = _play(demos.env_id, start, demos.seed, actions, demos.exact, demos.history, demos.horizon)
    _prove(demos, found, demos.state_hash)
    return states


def _prove(demos: Demos, found: NDArray[np.uint64], recorded: NDArray[np.uint64]) -> None:
    """Raise DataError naming the first state (N,) that was found to be another than recorded."""
    wrong = np.flatnonzero(found != recorded)
    if len(wrong):
        episode = int(demos.episode[wrong[0]])
        step = int(wrong[0] - demos.length[:episode].sum())
        why = "It was recorded with another version of minigrid or was changed since. Delete it and collect it again."
        if demos.task is not None:
            why = (
                "Either the environment does not repeat itself, which `headstart check` finds out, or it or the record "
                "was changed since: then delete the record and collect it again."
            )
        raise DataError(
            f"demonstration {episode} of {demos.env_id} (level seed {demos.seed[episode]}), step {step}: replaying "
            f"its actions leads to another state than the expert's. {why}"
        )


def save_demos(path: str | Path, demos: Demos) -> None:
    """Level seeds, actions and state hashes: about ten bytes a step, and enough to play every episode again.

    Of a task also its choices, and the actions that they stand for; not the environment, which `load_demos` is given.
    """
    if not isinstance(demos, Demos):
        raise UsageError(f"save_demos(path, demos) saves demonstrations, and not a {type(demos).__name__}.")
    if demos.unbranchable:
        raise UsageError(f"{demos.env_id}: these demonstrations cannot be played again: {demos.unbranchable}")
    arrays: dict[str, NDArray] = {
        "seed": demos.seed,
        "length": demos.length,
        "action": demos.action.astype(np.uint8),
        "state_hash": demos.state_hash,
    }
    meta = {
        "env_id": demos.env_id,
        "horizon": demos.horizon,
        "dropped": demos.dropped,
        "history": demos.history,
        "minigrid": version("minigrid"),
    }
    if demos.task is not None:
        meta |= {"mode": demos.task.mode, "mission_length": demos.task.reader.mission_length}
        arrays["choices"] = demos.task.choices.table
        if demos.exact is not None:
            arrays["exact"] = demos.exact
    storage.save_arrays(path, arrays, kind=KIND, schema=SCHEMA, meta=meta)


def load_demos(
    path: str | Path, *, history: int | None = None, make_env: MakeEnv | None = None, success: Success | None = None
) -> Demos:
    """Read, play and check demonstrations. Raises DataError, naming the file, unless every state is as recorded.

    ``history`` (default: as they were saved) earlier frames are shown. ``make_env`` and ``success`` are those of
    `datasets.demonstrate`, for demonstrations that were made there.
    """
    arrays, meta = storage.load_arrays(path, kind=KIND, schema=SCHEMA)
    shown: int = meta.get("history", 4) if history is None else history
    actions = np.split(arrays["action"].astype(np.int64), np.cumsum(arrays["length"])[:-1])
    env: str | Task = meta["env_id"]
    if "mode" in meta:
        env = _saved_task(path, arrays["choices"], meta, make_env, success)
    elif meta["minigrid"] != (installed := version("minigrid")):
        raise DataError(
            f"{path}: recorded with minigrid {meta['minigrid']}, but {installed} is installed, whose levels may "
            f"differ. Install minigrid=={meta['minigrid']}, or delete the file and collect again."
        )
    try:
        demos = play(env, arrays["seed"], actions, shown, meta["horizon"], meta["dropped"], arrays.get("exact"))
        _prove(demos, demos.state_hash, arrays["state_hash"])
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return demos


def _saved_task(
    path: str | Path, table: NDArray, meta: dict[str, Any], make_env: MakeEnv | None, success: Success | None
) -> Task:
    """The task that demonstrations were made in, around the user's environment."""
    if make_env is None:
        raise UsageError(f"{path}: these are demonstrations of {meta['env_id']}: give make_env, which makes one.")
    task = Task.of(
        make_env,
        horizon=meta["horizon"],
        success=success,
        mode=meta["mode"],
        taken=table,
        codes=len(table),
        mission_length=meta["mission_length"],
    )
    if task.name != meta["env_id"]:
        raise DataError(f"{path}: these are demonstrations of {meta['env_id']}, but make_env() makes a {task.name}.")
    known = Choices(task.choices.space, table)
    if not isinstance(known.space, spaces.Box) and known != task.choices:
        raise DataError(f"{path}: recorded with {len(table)} other actions than those of {task.name}: {known.space}.")
    return dataclasses.replace(task, choices=known)


# ---- branches and practice ----
def branch(
    states: Simulator | Demos,
    *,
    horizon: int = 1,
    actor: Agent | None = None,
    rng: np.random.Generator | None = None,
    k: int | None = None,
    alternatives: Alternatives = "uniform",
    tried: NDArray[np.bool_] | None = None,
) -> Branches:
    """Try every action in every state, or ``k`` of them, or those ``tried`` (N, A), and look at what follows.

    ``states`` are demonstrations, or states that practice has reached; they stay as they are. After the first step
    a branch goes on with the agent's own actions (``actor``, default uniform) for ``horizon`` steps in all.
    With ``k``, at most so many actions are tried in each state, the expert's among them where it is known; the
    others are drawn uniformly, by the agent itself ("policy", with ``actor``), or half by each ("mixture").
    Environments that run in Python are branched COPIES branches at a time, so that the actor draws for some of them
    after the others have ended. Raises DataError when a fork is not in the state it was forked from, UsageError for a k
    that cannot be.
    """
    if not isinstance(states, Demos | Simulator):
        raise UsageError(
            "branch() starts from demonstrations, or from states that practice has reached, and not from a "
            f"{type(states).__name__}. Collect them with collect_demos or demonstrate."
        )
    if alternatives not in get_args(Alternatives):
        raise UsageError(f"alternatives={alternatives!r}: choose 'uniform', 'policy' or 'mixture'.")
    if k is not None and alternatives != "uniform" and actor is None:
        raise UsageError(f"alternatives={alternatives!r} are the agent's own. Give actor, such as policy.actor().")
    (horizon,) = check_numbers("branch", horizon=horizon)
    rng = generator(rng)
    expert = states.action if isinstance(states, Demos) else np.full(len(states), -1, np.int64)
    start = replay(states) if isinstance(states, Demos) else states
    act = uniform_actor(start.n_actions) if actor is None else acting(actor)
    n, a = len(start), start.n_actions
    if tried is None:
        tried = np.ones((n, a), np.bool_) if k is None else _some_actions(start, expert, act, rng, k, alternatives)
    elif k is not None:
        raise UsageError(f"k={k} and tried={_kind(tried)}: both say which actions are tried. Give one of them.")
    elif np.shape(tried) != (n, a) or np.asarray(tried).dtype != np.bool_:
        raise UsageError(f"tried={_kind(tried)}: give booleans of shape {(n, a)}, for {n} states and {a} actions.")
    state, first = np.nonzero(tried)  # (M,) of every branch
    origin = start.state_hash()
    actions = np.broadcast_to(np.arange(a, dtype=np.uint8)[:, None], (n, a, horizon)).copy()
    future = np.broadcast_to(start.frame()[:, None, None], (n, a, horizon, start.frame().shape[1])).copy()
    revisit, ended = np.zeros((n, a), np.bool_), np.zeros((n, a, horizon), np.bool_)
    env_steps = 0
    room = max(1, len(state)) if isinstance(start.states, GridStates) else COPIES
    for part in (slice(m, m + room) for m in range(0, len(state), room)):
        at = state[part], first[part]
        forks = start.fork(state[part])
        if (forks.state_hash() != origin[state[part]]).any():
            raise DataError("a fork is not in the state it was forked from: this environment cannot be branched.")
        for h in range(horizon):
            action = first[part] if h == 0 else act(forks.observe(), rng)
            env_steps += forks.step(action)
            if h == 0:
                revisit[at] = forks.revisit
            actions[*at, h], future[*at, h], ended[*at, h] = action, forks.frame(), forks.done
    if (start.state_hash() != origin).any():
        raise DataError("branching has changed the state it started from: this environment cannot be branched.")
    return Branches(
        obs=start.observe(),
        expert_action=expert,
        action=actions,
        future=future,
        revisit=revisit,
        ended=ended,
        env_steps=env_steps,
        tried=np.array(tried),
        env_id=states.env_id if isinstance(states, Demos) else states.states.env_id,
    )


def _kind(array: Any) -> str:
    return f"{np.asarray(array).dtype}{np.shape(array)}"


def _some_actions(
    start: Simulator,
    expert: NDArray[np.int64],
    actor: Actor,
    rng: np.random.Generator,
    k: int,
    alternatives: Alternatives,
) -> NDArray[np.bool_]:
    """(N, A): the expert's action where it is known, and others, at most k in all."""
    n, a = len(start), start.n_actions
    if k not in range(1, a + 1):
        raise UsageError(f"k={k!r}: there are {a} actions to try. Choose from 1 to {a}, or leave k out to try all.")
    if alternatives == "uniform":
        rank = rng.random((n, a))
        rank[expert >= 0, expert[expert >= 0]] = -1.0
        return rank.argsort(1).argsort(1) < k
    tried = np.zeros((n, a), np.bool_)
    tried[expert >= 0, expert[expert >= 0]] = True
    obs, uniform = start.observe(), uniform_actor(a)
    for draw in range(int(k)):
        action = (uniform if alternatives == "mixture" and draw % 2 else actor)(obs, rng)
        room = np.flatnonzero(tried.sum(1) < k)
        tried[room, action[room]] = True
    return tried


def practise(start: Simulator, actor: Agent, *, steps: int, rng: np.random.Generator) -> tuple[Simulator, Walk]:
    """Let the agent act from ``start`` for up to ``steps`` steps: every state it was in, and what it did there.

    The states of ``start`` are among them, ended episodes are not; ``start`` itself is not changed.
    """
    act, rng = acting(actor), generator(rng)
    agents = start.fork(np.flatnonzero(~start.done))
    visited, steps_taken = [agents], []
    env_steps = 0
    for _ in range(steps):
        if not len(agents):
            break
        action, agents = act(agents.observe(), rng), agents.fork()
        env_steps += agents.step(action)
        steps_taken.append((action, agents.frame(), agents.revisit, agents.done))
        agents = agents.fork(np.flatnonzero(~agents.done))
        visited.append(agents)
    stay = len(agents)
    steps_taken.append((np.full(stay, -1), agents.frame(), np.zeros(stay, np.bool_), np.zeros(stay, np.bool_)))
    taken, future, revisit, ended = (np.concatenate(part) for part in zip(*steps_taken, strict=True))
    return join(visited), Walk(taken, future, revisit, ended, env_steps)
