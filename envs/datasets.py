"""Demonstrations from anywhere: a function, a trained policy, a Minari dataset. And back to Minari.

    demos = demonstrate(lambda: gymnasium.make("Acrobot-v1"), policy, episodes=10)     # obs -> action, or has .predict
    demos = from_minari("minigrid/BabyAI-Pickup/optimal-v0")                           # needs headstart[minari]
    to_minari(demos, "acrobot/swing-up-v0")

What an environment does may depend on things that nobody recorded; so demonstrations are seeds and actions, played
again, and every observation is compared. A record that cannot be played again is still good for imitation, and says so.

Legend: E episodes, N steps of all of them, F bytes of a frame, T = history + 1 frames.
"""

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from headstart.envs import collect
from headstart.envs.episode import Episode, ForkMode, MakeEnv, Outcome, Success, close, env_name, make, make_new
from headstart.envs.errors import DataError, EnvironmentFailed, HeadstartError, UsageError, check_numbers
from headstart.envs.fork import succeeded
from headstart.envs.frames import FrameReader
from headstart.envs.levels import import_level
from headstart.envs.simulator import Obs
from headstart.envs.spaces import CODES, Choices, is_action, is_text
from headstart.envs.tasks import SEEDS, Task, step_limit
from headstart.envs.transitions import Demos

if TYPE_CHECKING:
    from minari import MinariDataset

__all__ = ["Predicts", "demonstrate", "from_minari", "to_minari"]

TRIES = 4  # episodes for each one that has to succeed


# ---- a policy ----
class Predicts(Protocol):
    """What Stable-Baselines3's models and policies have."""

    def predict(self, observation: Any, *, deterministic: bool) -> tuple[Any, Any]: ...


def demonstrate(
    make_env: MakeEnv,
    policy: Callable[[Any], Any] | Predicts,
    episodes: int,
    *,
    seed: int = 0,
    history: int = 1,
    horizon: int | None = None,
    codes: int = CODES,
    success: Success | None = None,
    only_successes: bool = False,
    mode: ForkMode | None = None,
    mission_length: int | None = None,
) -> Demos:
    """``episodes`` episodes of a policy in the environment that ``make_env()`` makes.

    ``policy`` is a function from the environment's own observations to its own actions, or a model of
    Stable-Baselines3, which acts deterministically. Actions in a Box are clipped to its bounds before they are played,
    so that agents can reach what was demonstrated, and get a codebook of at most ``codes``. ``success`` says which ends
    are a success; with ``only_successes`` others are dropped and counted. The rest is as in `Task.of`: finding out how
    to fork the environment takes thousands of its steps, and none if ``mode`` says it ("deepcopy", say).
    Raises EnvironmentFailed if the environment cannot be forked, and DataError if it hardly ever succeeds.
    """
    env = make_new(make_env)
    name, space, limit = env_name(env), env.action_space, step_limit(env, horizon)
    episodes, seed, history = check_numbers(name, episodes=episodes, seed=seed, history=history)
    if not isinstance(space, spaces.Box):
        Choices.of(space, name=name)  # says no before anything is played
    close(env)
    act = _actor(policy)
    rng = np.random.default_rng([seed, 0xDE])
    kept: list[Episode] = []
    dropped = 0
    while len(kept) < episodes:
        if len(kept) + dropped >= TRIES * episodes:
            raise DataError(
                f"{name}: only {len(kept)} of {TRIES * episodes} episodes of this policy succeeded, and "
                f"{episodes} were asked for. Ask for fewer, give a better policy, or say what success is (success=...)."
            )
        episode = Episode(make_env, int(rng.integers(SEEDS)))
        while not episode.ended and len(episode.actions) < limit:
            action = act(episode.obs)
            if not is_action(space, action):
                raise DataError(
                    f"{name}: the policy gave {action!r}, which is none of {space}, for demonstration {len(kept)}, "
                    f"{episode.where()}. Give actions of that space."
                )
            if isinstance(space, spaces.Box):
                action = np.clip(np.asarray(action), space.low, space.high)
            episode.step(int(action) if isinstance(space, spaces.Discrete) else action)
        if not kept and not dropped:
            _check_success(success, episode)
        if only_successes and not succeeded(episode, success):
            dropped += 1
        else:
            kept.append(episode)
        episode.close()
    taken = np.array([action for episode in kept for action in episode.actions])
    task = Task.of(
        make_env,
        horizon=limit,
        success=success,
        mode=mode,
        taken=taken,
        codes=codes,
        seed=seed,
        mission_length=mission_length,
    )
    lengths = [len(episode.actions) for episode in kept]
    seeds = np.array([episode.seed for episode in kept])
    return _of_task(task, seeds, taken, lengths, history, dropped)


def _check_success(success: Success | None, episode: Episode) -> None:
    """Say now that ``success`` cannot be asked, rather than when RL has begun. No reward is read for it."""
    outcome = Outcome(0.0, 0.0, len(episode.actions), episode.terminated, episode.info)
    try:
        bool(success and success(outcome))
    except Exception as error:
        fields = ", ".join(Outcome._fields)
        raise UsageError(
            f"{episode.name}: success raised {type(error).__name__}: {error} when it was asked about an ended episode. "
            f"It is given an Outcome, which has {fields}."
        ) from error


def _actor(policy: Callable[[Any], Any] | Predicts) -> Callable[[Any], Any]:
    """Observation -> action; a lone number is a plain number, as some environments index with it."""
    if not callable(getattr(policy, "predict", policy)):
        raise UsageError(f"policy={policy!r:.100}: give a function from observations to actions, or what has .predict.")
    if hasattr(policy, "predict"):
        takes = inspect.signature(policy.predict).parameters.values()  # type: ignore[union-attr]
        if not any(one.name == "deterministic" or one.kind is one.VAR_KEYWORD for one in takes):
            raise UsageError(
                f"The predict() of a {type(policy).__name__} takes no deterministic=, as that of Stable-Baselines3 "
                "does. Give a function from an observation to an action."
            )

    def act(obs: Any) -> Any:
        action = policy.predict(obs, deterministic=True)[0] if hasattr(policy, "predict") else policy(obs)  # type: ignore[operator]
        return action.item() if isinstance(action, np.ndarray | np.generic) and np.ndim(action) == 0 else action

    return act


def _of_task(
    task: Task, seeds: NDArray[np.int64], taken: NDArray, lengths: list[int], history: int, dropped: int = 0
) -> Demos:
    """Play the actions (N, ...) of a task's episodes."""
    codes = np.split(task.choices.codes(taken), np.cumsum(lengths)[:-1])
    exact = taken if isinstance(task.choices.space, spaces.Box) else None
    return collect.play(task, seeds, codes, history, task.horizon, dropped, exact)


# ---- Minari ----
@dataclass(frozen=True)
class _Step:
    """One observation of a recorded episode, for a FrameReader."""

    name: str
    obs: Any
    demonstration: int
    step: int

    def where(self) -> str:
        return f"in demonstration {self.demonstration}, step {self.step}"

    def failed(self, what: str, why: object) -> EnvironmentFailed:
        return EnvironmentFailed(f"{self.name}: {what} failed {self.where()}: {why}")


def from_minari(
    dataset: "str | MinariDataset",
    make_env: MakeEnv | None = None,
    *,
    episodes: int | None = None,
    history: int = 1,
    horizon: int | None = None,
    codes: int = CODES,
    success: Success | None = None,
    seed: int = 0,
    mission_length: int | None = None,
) -> Demos:
    """The first ``episodes`` (default: all) of a Minari dataset, an object or the id of one that is on this machine.

    ``make_env`` defaults to the environment that the dataset names. Where it can be forked, and the recorded seeds and
    actions lead to the recorded observations bit by bit, states can be branched; otherwise observations are taken as
    they are, and `Demos.unbranchable` says why. Missions are texts in the words of MiniGrid's. Rewards are not read.
    Raises DataError naming the demonstration and step of what does not fit.
    """
    data = _load(dataset)
    name = data.id
    seed, history, horizon = check_numbers(name, seed=seed, history=history, horizon=horizon)
    if episodes is not None:
        (episodes,) = check_numbers(name, episodes=episodes)
    if make_env is None and data.env_spec is None:
        raise UsageError(f"{name}: does not say which environment it is of. Give make_env, which makes one.")
    make_env = make_env or (lambda: data.recover_environment(disable_env_checker=True))
    count = data.total_episodes if episodes is None else min(episodes, data.total_episodes)
    if count < 1:
        raise DataError(f"{name}: the demonstrations are empty. Record at least one episode.")
    records = [data[i] for i in range(count)]
    seeds = [facts.get("seed") for facts in data.storage.get_episode_metadata(range(count))]
    lengths = [len(record) for record in records]
    if horizon is not None and max(lengths) > horizon:
        i = next(i for i, length in enumerate(lengths) if length > horizon)
        raise DataError(
            f"{name}: demonstration {i} has {lengths[i]} steps, more than horizon={horizon}. "
            f"Give horizon={max(lengths)}, the steps of the longest, or none."
        )
    taken = np.concatenate([np.asarray(record.actions) for record in records])
    task, why = _task_of(make_env, horizon or max(lengths), success, taken, codes, seed, mission_length)
    frames, mission = _read(name, task.reader, records, lengths)
    codes_taken = task.choices.codes(taken)
    if not why and any(one is None for one in seeds):
        why = "it does not say with which seeds its episodes began"
    if not why:
        demos = _play_again(task, make_env, np.array(seeds, np.int64), taken, lengths, history)
        if isinstance(demos, Demos):
            now = demos.obs["frames"][:, -1], demos.obs["mission"]
            wrong = np.flatnonzero((now[0] != frames).any(1) | (now[1] != mission).any(1))
            if not len(wrong):
                return demos
            why = f"played again, {demos.where(int(wrong[0]))} shows something else than the record"
        else:
            why = demos
    obs = _remembered(frames, mission, codes_taken, lengths, len(task.choices), history)
    known = np.array([-1 if one is None else one for one in seeds], np.int64)
    task = task.fitted(frames, np.repeat(np.arange(count), lengths))
    unhashed = np.zeros(len(taken), np.uint64)
    return Demos(
        task.name, task.horizon, known, np.array(lengths), codes_taken, unhashed, obs, task=task, unbranchable=why
    )


def _task_of(make_env: MakeEnv, horizon: int, *settings: Any) -> tuple[Task, str]:
    """The task, and why it cannot be forked, if so: then it is played from its start."""
    success, taken, codes, seed, mission_length = settings
    given: dict[str, Any] = {
        "horizon": horizon,
        "success": success,
        "taken": taken,
        "codes": codes,
        "seed": seed,
        "mission_length": mission_length,
    }
    try:
        return Task.of(make_env, **given), ""
    except EnvironmentFailed as error:
        return Task.of(make_env, mode="replay", **given), str(error)


def _play_again(
    task: Task, make_env: MakeEnv, seeds: NDArray[np.int64], taken: NDArray, lengths: list[int], history: int
) -> Demos | str:
    """The demonstrations, played by the engine if it can; or why that is not possible."""
    try:
        if task.layout.grid and task.name in gymnasium.registry and _is_of_engine(make_env, int(seeds[0])):
            actions = np.split(taken.astype(np.int64), np.cumsum(lengths)[:-1])
            return collect.play(task.name, seeds, actions, history, task.horizon)
        return _of_task(task, seeds, taken, lengths, history)
    except HeadstartError as error:
        return str(error)


def _is_of_engine(make_env: MakeEnv, seed: int) -> bool:
    with contextlib.closing(Episode(make_env, seed)) as episode:
        try:
            import_level(episode.env)
        except UsageError:
            return False
        return True


def _read(
    name: str, reader: FrameReader, records: Iterable[Any], lengths: list[int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Frames (N, F) and missions (N, L) before each action of the records."""
    read = [
        reader.read(_Step(name, _at(record.observations, t), i, t))
        for i, (record, length) in enumerate(zip(records, lengths, strict=True))
        for t in range(length)
    ]
    return np.array([frame for frame, _ in read]), np.array([mission for _, mission in read])


def _at(values: Any, t: int) -> Any:
    """Step t of observations that Minari keeps as arrays, in the structure of the space."""
    if isinstance(values, dict):
        return {key: _at(value, t) for key, value in values.items()}
    if isinstance(values, tuple):
        return tuple(_at(value, t) for value in values)
    return values[t]


def _remembered(
    frames: NDArray[np.uint8],
    mission: NDArray[np.uint8],
    codes: NDArray[np.int64],
    lengths: list[int],
    n_actions: int,
    history: int,
) -> Obs:
    """What an agent would remember in each state of recorded episodes: see simulator.Obs."""
    step = np.concatenate([np.arange(length) for length in lengths])
    stacked = np.zeros((len(frames), history + 1, frames.shape[1]), np.uint8)
    actions = np.full((len(frames), history), n_actions, np.uint8)
    for ago in range(history + 1):
        i = np.flatnonzero(step >= ago)
        stacked[i, history - ago] = frames[i - ago]
        if ago:
            actions[i, history - ago] = codes[i - ago]
    return {"frames": stacked, "actions": actions, "mission": mission}


def to_minari(demos: Demos, dataset_id: str, **about: Any) -> "MinariDataset":
    """Play the demonstrations once more in their environment and write all that it shows, rewards too, as a dataset.

    ``about`` goes to `minari.create_dataset_from_buffers`: author, description and so on. Missions become text.
    """
    minari = _minari()
    path = _path(dataset_id)
    if demos.unbranchable:
        raise UsageError(f"{demos.env_id}: these demonstrations cannot be played again: {demos.unbranchable}")
    if path.exists():
        raise UsageError(f"{dataset_id}: is there already. Give another id, or delete {path}")
    task = demos.task
    make_env = task.make_env if task else (lambda: gymnasium.make(demos.env_id, disable_env_checker=True))
    env = make(make_env)
    close(env)  # only its spaces are looked at
    buffers, first = [], 0
    for i, (seed, length) in enumerate(zip(demos.seed.tolist(), demos.length.tolist(), strict=True)):
        episode = Episode(make_env, seed)
        observations, ended = [copy.deepcopy(episode.obs)], []  # an environment may show the same array again
        for step in range(first, first + length):
            if demos.exact is not None:
                action = demos.exact[step]
            else:
                action = task.choices.action(int(demos.action[step])) if task else int(demos.action[step])
            episode.step(action)
            observations.append(copy.deepcopy(episode.obs))
            ended.append((episode.terminated, episode.truncated))
        if not episode.ended:  # our step limit came first
            ended[-1] = (False, True)
        episode.close()
        first += length
        terminated, truncated = zip(*ended, strict=True)
        buffers.append(
            minari.data_collector.EpisodeBuffer(
                id=i,
                seed=seed,
                observations=_stacked(observations),
                actions=np.array(episode.actions, dtype=cast(Any, env.action_space.dtype)),  # type: ignore[arg-type]
                rewards=[float(reward) for reward in episode.rewards],
                terminations=list(terminated),
                truncations=list(truncated),
                infos={},
            )
        )
    by_name = env.spec is not None and isinstance(env.spec.entry_point, str)  # or nobody else could make it
    return minari.create_dataset_from_buffers(
        dataset_id,
        buffers,
        env=env if by_name else None,
        action_space=env.action_space,
        observation_space=_without_mission_space(env.observation_space),
        jpeg_encoding=False,
        **about,
    )


def _stacked(values: list[Any]) -> Any:
    """Observations in Minari's form: one array for each entry of the space, or a list of texts."""
    if isinstance(values[0], dict):
        return {key: _stacked([value[key] for value in values]) for key in values[0]}
    if isinstance(values[0], tuple):
        return tuple(_stacked([value[i] for value in values]) for i in range(len(values[0])))
    return values if isinstance(values[0], str) else np.array(values)


def _without_mission_space(space: gymnasium.Space) -> gymnasium.Space:
    """The same space with texts in the place of MiniGrid's missions, which Minari cannot store."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: _without_mission_space(entry) for key, entry in space.spaces.items()})
    if is_text(space) and not isinstance(space, spaces.Text):
        return spaces.Text(512, charset="".join(map(chr, range(32, 127))))
    return space


def _load(dataset: "str | MinariDataset") -> "MinariDataset":
    if not isinstance(dataset, str):
        return dataset
    minari, path = _minari(), _path(dataset)
    try:
        return minari.load_dataset(dataset)
    except FileNotFoundError as error:
        raise DataError(f"{dataset}: is not on this machine. Fetch it: minari download {dataset}") from error
    except ValueError as error:
        raise DataError(f"{dataset}: cannot be read: {error}. Delete {path}, and fetch or write it again.") from error


def _path(dataset_id: str) -> Path:
    """Where Minari keeps a dataset. Raises UsageError for what is no id, which Minari says too late, or not at all."""
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.storage.datasets_root_dir import get_dataset_path

    try:
        parse_dataset_id(dataset_id)
    except (ValueError, TypeError) as error:  # TypeError: it has no version
        raise UsageError(
            f"{dataset_id}: is no id of a Minari dataset. Give a namespace of at least two characters, a name and a "
            "version, such as cart-pole/expert-v0."
        ) from error
    return Path(get_dataset_path(dataset_id))


def _minari() -> Any:
    try:
        import minari
    except ImportError as error:
        raise UsageError('Minari is not installed. Install it: pip install "headstart[minari]"') from error
    return minari
