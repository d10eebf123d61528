"""What the engine and what is built on it gain, as ratios measured in one run on one core.

    python experiments/bench.py                          all rows, written to experiments/results/bench/
    python experiments/bench.py --only branches steps    some of them, printed and not written

Both sides of a ratio are measured in turns, round by round, in CPU time: the ratio is the median over the rounds, with
the smallest and the largest. Every side has run once before it is timed, so that nothing compiles while the clock
runs. Only banks, of which the size is measured, are made with all cores. `imitation` needs packages older than
headstart's and lives in a virtual environment of its own, which the first run makes (some minutes of download); when
that fails its rows are left out, and the output says so.

Legend: N environments or states, K alternatives, B samples in a batch, T = history + 1 frames, L mission tokens.
"""

import argparse
import contextlib
import copy
import functools
import io
import itertools
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import gymnasium
import numpy as np
import torch
from einops import rearrange, repeat
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import PPO as StablePPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor, nn
from torch.nn import functional as F

from headstart.envs import (
    HeadstartVecEnv,
    Simulator,
    bank,
    branch,
    collect_demos,
    engine,
    evaluate,
    make_vec_env,
    missions,
)
from headstart.envs.banks import import_seeds
from headstart.envs.levels import export_level, import_level
from headstart.envs.registry import ENVIRONMENTS
from headstart.envs.simulator import Actor, GridStates, Obs
from headstart.envs.transitions import Demos
from headstart.experiments.runlog import write_rows
from headstart.learners import BC, PPO, BCConfig
from headstart.learners.bc import imitation_targets
from headstart.models import HeadstartPolicy
from headstart.models.encoders import CELLS, VIEW, ViewEncoder
from headstart.models.policy import FrameHistoryExtractor, draw

RESULTS = Path(__file__).resolve().parent / "results" / "bench"
IMITATION = "imitation==1.0.1"
DOOR_KEY, GO_TO, BOSS = "MiniGrid-DoorKey-8x8-v0", "BabyAI-GoToLocal-v0", "BabyAI-BossLevel-v0"
SMALL = "MiniGrid-DoorKey-5x5-v0"
PUT_NEXT = "BabyAI-PutNextLocal-v0"
STUDY = tuple(environment.id for environment in ENVIRONMENTS.values() if environment.study)

Rate = Callable[[], float]
"""Works for a while and returns units per CPU-second."""


@dataclass(frozen=True)
class Row:
    """One line of the table. ``target`` is the ratio to reach, or with "<=" the one to stay under."""

    name: str
    id: str
    ours: float
    theirs: float
    ratio: float
    ratio_min: float
    ratio_max: float
    target: str
    unit: str
    what: str


# ---- measuring ----
def nothing() -> None:
    """No tidying up."""


def rate(work: Callable[[], float], seconds: float, tidy: Callable[[], None] = nothing) -> float:
    """Units per CPU-second: ``work`` does some and returns how many; ``tidy`` runs in between, off the clock."""
    units = spent = 0.0
    while not units or spent < seconds:
        start = time.process_time()
        units += work()
        spent += time.process_time() - start
        tidy()
    return units / spent


def in_turns(rates: dict[str, Rate], rounds: int, back: bool = False) -> dict[str, list[float]]:
    """Measure every one once a round, after a first time that does not count.

    ``back``: twice a round, there and back (A B, B A), so that a machine that slows down meanwhile slows both alike.
    """
    for measure in rates.values():
        measure()
    measured: dict[str, list[float]] = {name: [] for name in rates}
    order = [*rates, *reversed(rates)] if back else [*rates]
    for _ in range(rounds):
        turn: dict[str, list[float]] = {name: [] for name in rates}
        for name in order:
            turn[name].append(rates[name]())
        for name, values in turn.items():
            measured[name].append(sum(values) / len(values))
    return measured


def compare(
    name: str, env_id: str, ours: list[float], theirs: list[float], *, target: str, unit: str, what: str
) -> Row:
    """The row of two sides that were measured in turns."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    spread = median(ratios), min(ratios), max(ratios)
    return Row(name, env_id, median(ours), median(theirs), *spread, target=target, unit=unit, what=what)


def my_cores() -> frozenset[int]:
    """The cores that this process may use; none where the system does not say."""
    return frozenset(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ())


@contextmanager
def on_cores(cores: Iterable[int]) -> Iterator[None]:
    """Keep this process, and those that it starts, on these cores, where the system lets one choose."""
    before = my_cores()
    if before:
        os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        if before:
            os.sched_setaffinity(0, before)


# ---- Python minigrid ----
def reset(env: gymnasium.Env, seed: int | None = None) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):  # BabyAI prints when it rejects a level
        return env.reset(seed=seed)


def python_envs(env_id: str, n: int) -> list[gymnasium.Env]:
    """n environments at the start of the levels of seeds 0 to n - 1."""
    envs = [gymnasium.make(env_id, disable_env_checker=True) for _ in range(n)]
    for seed, env in enumerate(envs):
        reset(env, seed)
    return envs


def pack(image: NDArray[np.uint8], direction: int) -> NDArray[np.uint8]:
    """minigrid's observation as a frame (50,)."""
    frame = np.empty(engine.FRAME, np.uint8)
    frame[:-1] = (image[..., 0] * 18 + image[..., 1] * 3 + image[..., 2]).reshape(-1)
    frame[-1] = direction
    return frame


@functools.lru_cache(maxsize=4096)
def tokens(mission: str, length: int) -> NDArray[np.uint8]:
    return np.asarray(missions.encode(mission, length), np.uint8)


class SameObs(gymnasium.Wrapper):
    """Python minigrid with the observations of HeadstartVecEnv: what an agent remembers, as a dict of bytes."""

    def __init__(self, env: gymnasium.Env, history: int):
        super().__init__(env)
        assert env.spec is not None
        self.length = missions.mission_length(env.spec.id)
        self.history = history
        shapes = {"frames": (history + 1, engine.FRAME), "actions": (history,), "mission": (self.length,)}
        high = {"frames": 255, "actions": engine.N_ACTIONS, "mission": len(missions.VOCABULARY) - 1}
        self.observation_space = spaces.Dict(
            {name: spaces.Box(0, high[name], shape, np.uint8) for name, shape in shapes.items()}
        )
        self.action_space = spaces.Discrete(engine.N_ACTIONS)

    def reset(self, **options: Any) -> tuple[Obs, dict[str, Any]]:
        with contextlib.redirect_stdout(io.StringIO()):
            obs, info = self.env.reset(**options)
        self.frames = np.zeros((self.history + 1, engine.FRAME), np.uint8)
        self.actions = np.full(self.history, engine.N_ACTIONS, np.uint8)
        self.frames[-1] = pack(obs["image"], obs["direction"])
        return self._obs(obs["mission"]), info

    def step(self, action: Any) -> tuple[Obs, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(int(action))
        self.frames[:-1], self.actions[:-1] = self.frames[1:], self.actions[1:]
        self.frames[-1], self.actions[-1] = pack(obs["image"], obs["direction"]), action
        return self._obs(obs["mission"]), reward, terminated, truncated, info

    def _obs(self, mission: str) -> Obs:
        return {
            "frames": self.frames.copy(),
            "actions": self.actions.copy(),
            "mission": tokens(mission, self.length),
        }


# ---- the network without sharing ----
class EveryViewExtractor(FrameHistoryExtractor):
    """The same network with the same weights, encoding every view and mission of a batch, equal ones too."""

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        view, action, mission = self.read(observations)  # (B, T, 49), (B, T - 1), (B, L)
        b, t = view.shape[:2]
        assert isinstance(self.view, ViewEncoder)
        planes = rearrange(self.view.cell[view.long()], "b t (i j) c -> (b t) c i j", i=VIEW)
        scale, shift = repeat(self.film(self.sentence(mission)), "b f -> (b t) f", t=t).chunk(2, dim=1)
        feature = torch.relu(self.view.layers(planes) * (1 + scale) + shift)  # (B * T, D)
        place = rearrange(torch.arange(b * t, device=view.device), "(b t) -> b t", b=b)
        now = feature[place[:, -1]]
        if self.memory:
            past = self.past.key_value(feature)[place[:, :-1]]
            now = torch.cat([now, self.past(now, past, action.long())], dim=1)
        return self.mix(now)

    def sentence(self, mission: Tensor) -> Tensor:
        """Missions (B, L) -> (B, D), as in MissionEncoder."""
        encoder, length = self.mission, int((mission != 0).sum(1).max().clamp(min=1))
        mission = mission[:, :length]
        table = rearrange(encoder.phrase(encoder.word.weight), "w (side d) -> side w d", side=3)
        left, middle, right = (F.embedding(mission.long(), part) for part in table)  # (B, L, D)
        phrase = middle + F.pad(left[:, :-1], (0, 0, 1, 0)) + F.pad(right[:, 1:], (0, 0, 0, 1)) + encoder.bias
        return (phrase.relu() * (mission != 0).unsqueeze(2)).amax(dim=1)


# ---- rows: the engine ----
def walked(env_id: str, n: int, seed: int = 0) -> tuple[NDArray[np.uint8], list[gymnasium.Env]]:
    """n states in the middle of their episodes, as rows and as Python environments in the same states."""
    levels = import_seeds(env_id, range(n))
    simulator = Simulator(GridStates.of(levels), history=0, horizon=32)
    rng = np.random.default_rng(seed)
    stop = rng.integers(1, 32, size=n)
    for t in range(31):
        going_on = np.flatnonzero((stop > t) & ~simulator.done)
        after = simulator.fork(going_on)
        after.step(rng.integers(engine.N_ACTIONS, size=len(going_on)))
        going_on, after = going_on[~after.done], after.fork(np.flatnonzero(~after.done))
        simulator.put(going_on, after)  # who would be done there stays one step before
    assert isinstance(simulator.states, GridStates)
    rows = simulator.states.rows
    return rows, [export_level(row, env_id, int(s)) for row, s in zip(rows, levels.seed, strict=True)]


def branches(options: "Options", states: int = 64, copies: int = 64) -> list[Row]:
    """Seven actions from every state: a call of the engine, against a deep copy and a step for each."""
    rows = []
    for env_id, target in ((DOOR_KEY, ">= 1500"), (PUT_NEXT, ">= 1500"), (BOSS, ">= 3000")):
        state, envs = walked(env_id, states)
        state = np.tile(state, (copies, 1))
        action = np.tile(np.arange(engine.N_ACTIONS), (len(state), 1))  # (N, K)
        turn = iter(range(10**9))

        def ours(state: NDArray = state, action: NDArray = action) -> int:
            return engine.branch(state, action).terminated.size

        def theirs(envs: list = envs, turn: Iterator[int] = turn) -> int:
            env = envs[next(turn) % len(envs)].unwrapped
            for k in range(engine.N_ACTIONS):
                copy.deepcopy(env).step(k)
            return engine.N_ACTIONS

        measured = in_turns(options.sides(ours=ours, theirs=theirs), options.rounds)
        what = f"engine.branch of {len(state)} states x 7 actions / copy.deepcopy + step, each with its observation"
        rows.append(compare("branches", env_id, **measured, target=target, unit="branches/s", what=what))

        levels = import_seeds(env_id, range(states))
        known = Simulator(GridStates.of(levels), history=4, horizon=200).fork(np.tile(np.arange(states), copies))

        def learned_from(known: Simulator = known) -> int:
            return branch(known).env_steps

        measured = in_turns(options.sides(ours=learned_from, theirs=theirs), options.rounds)
        what = (
            f"envs.branch of {len(known)} states, as learners call it: proven forks, histories, what was seen before / "
            "copy.deepcopy + step"
        )
        rows.append(compare("branches_learned", env_id, **measured, target="", unit="branches/s", what=what))
    return rows


class PythonSteps:
    """Steps Python environments; ``begin_again`` starts ended episodes anew, which is not timed."""

    def __init__(self, envs: list[gymnasium.Env], action: NDArray[np.int64]):
        self.envs, self.action, self.t, self.ended = envs, action, 0, []

    def __call__(self) -> int:
        for env, action in zip(self.envs, self.action[self.t % len(self.action)].tolist(), strict=True):
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                self.ended.append(env)
        self.t += 1
        return len(self.envs)

    def begin_again(self) -> None:
        for env in self.ended:
            reset(env)
        self.ended.clear()


class EngineSteps:
    """Steps the same levels in the engine; ``begin_again`` as there."""

    def __init__(self, rows: NDArray[np.uint8], action: NDArray[np.int64]):
        self.start, self.rows, self.action, self.t = rows, rows.copy(), action, 0
        self.over = np.zeros(len(rows), np.bool_)

    def __call__(self) -> int:
        terminated, truncated = engine.step(self.rows, self.action[self.t % len(self.action)])
        engine.observe(self.rows)
        self.over = terminated | truncated
        self.t += 1
        return len(self.rows)

    def begin_again(self) -> None:
        self.rows[self.over] = self.start[self.over]


def steps(options: "Options", sizes: tuple[int, ...] = (256, 4096)) -> list[Row]:
    """One random action in every environment, with the observation and the instruction's verifier."""
    rows = []
    rng = np.random.default_rng(0)
    for env_id in (DOOR_KEY, GO_TO, BOSS):
        all_envs = python_envs(env_id, max(sizes))
        levels = np.stack([import_level(env) for env in all_envs])
        for n in sizes:
            action = rng.integers(engine.N_ACTIONS, size=(64, n))
            ours, theirs = EngineSteps(levels[:n], action), PythonSteps(all_envs[:n], action)
            measured = in_turns(
                {
                    "ours": lambda ours=ours: rate(ours, options.seconds, ours.begin_again),
                    "theirs": lambda theirs=theirs: rate(theirs, options.seconds, theirs.begin_again),
                },
                options.rounds,
            )
            what = f"{n} environments: engine.step + observe / Python minigrid's step; without resets"
            rows.append(compare(f"steps_{n}", env_id, **measured, target=">= 300", unit="steps/s", what=what))
    return rows


def level_import(options: "Options", n: int = 64) -> list[Row]:
    """A level is made by minigrid's own reset and then imported: what the import adds."""
    rows = []
    for env_id in (DOOR_KEY, GO_TO, BOSS):
        env = gymnasium.make(env_id, disable_env_checker=True)

        def ours(env_id: str = env_id) -> int:
            return len(import_seeds(env_id, range(n)))

        def theirs(env: gymnasium.Env = env) -> int:
            for seed in range(n):
                reset(env, seed)
            return n

        measured = in_turns(options.sides(ours=ours, theirs=theirs), options.rounds)
        what = "import_seeds, which resets and imports / minigrid's reset(seed) alone, same seeds"
        rows.append(compare("level_import", env_id, **measured, target="", unit="levels/s", what=what))
    return rows


# ---- rows: learners ----
def our_ppo(env_id: str, cache: Path, n_envs: int, rollout: int, batch_size: int, levels: int, seed: int = 0) -> PPO:
    env = make_vec_env(env_id, n_envs, n_levels=levels, history=1, cache=cache)
    return PPO(
        env=env,
        n_steps=rollout // n_envs,
        batch_size=batch_size,
        n_epochs=4,
        ent_coef=0.01,
        seed=seed,
        device="cpu",
        policy_kwargs={"features_extractor_kwargs": {"memory": 0}},
    )


def their_ppo(env_id: str, n_envs: int, rollout: int, batch_size: int, seed: int = 0) -> StablePPO:
    """Stable-Baselines3 as it comes: its policy with the same layers, its Monitor, Python environments in a row."""

    def make() -> gymnasium.Env:
        return Monitor(SameObs(gymnasium.make(env_id, disable_env_checker=True), history=1))

    return StablePPO(
        "MultiInputPolicy",
        DummyVecEnv([make] * n_envs),
        n_steps=rollout // n_envs,
        batch_size=batch_size,
        n_epochs=4,
        ent_coef=0.01,
        seed=seed,
        device="cpu",
        policy_kwargs={
            "features_extractor_class": EveryViewExtractor,
            "features_extractor_kwargs": {"n_actions": engine.N_ACTIONS, "memory": 0},
            "net_arch": {"pi": [64], "vf": [64]},
            "activation_fn": nn.ReLU,
        },
    )


def ppo(
    options: "Options", rollout: int = 4096, envs: int = 64, batch_size: int = 512, levels: int = 2048
) -> list[Row]:
    """A rollout and its update: learners.PPO on the engine against Stable-Baselines3's PPO on Python minigrid."""
    rows = []
    small = min(64, batch_size)
    for env_id, target in ((DOOR_KEY, ">= 4"), (GO_TO, ">= 2.5")):
        with tempfile.TemporaryDirectory() as cache:
            models = {
                "ours": our_ppo(env_id, Path(cache), envs, rollout, batch_size, levels),
                "ours_16": our_ppo(env_id, Path(cache), 16, rollout, batch_size, levels),
                "theirs_small": their_ppo(env_id, 16, rollout, small),
                "theirs": their_ppo(env_id, 16, rollout, batch_size),
            }

        def learn(model: StablePPO) -> int:
            model.learn(rollout, reset_num_timesteps=False)
            return rollout

        measured = in_turns(
            options.sides(**{name: functools.partial(learn, model) for name, model in models.items()}), options.rounds
        )
        equal = f"equal: layers and sizes, observations, rollout of {rollout}, 4 epochs, learning rate, entropy bonus"
        for name, ours, theirs, differs, aim in (
            ("ppo_defaults", "ours", "theirs_small", f"minibatch {batch_size} / {small}, {envs} / 16 envs", target),
            ("ppo_same_minibatch", "ours", "theirs", f"{envs} / 16 envs; minibatch {batch_size} for both", target),
            ("ppo_same_everything", "ours_16", "theirs", f"nothing: 16 envs, minibatch {batch_size} for both", ""),
        ):
            what = f"{equal}; differs besides engine and sharing of equal views and missions: {differs}"
            unit = "env steps/s"
            rows.append(compare(name, env_id, measured[ours], measured[theirs], target=aim, unit=unit, what=what))
    return rows


def solved(
    options: "Options",
    seeds: Sequence[int] = (0, 1, 2),
    share: float = 0.95,
    steps: int = 1_000_000,
    rollout: int = 4096,
    levels: int = 2048,
    unseen: int = 300,
) -> list[Row]:
    """From scratch until this share of unseen levels is solved: CPU-seconds of learning, tests not counted.

    Seeds stand in the place of rounds, and a rollout of each side comes before the clock runs. Raises RuntimeError if
    it takes more than ``steps``.
    """
    tests = import_seeds(SMALL, range(1_000_000, 1_000_000 + unseen))

    def seconds(model: StablePPO) -> tuple[float, int]:
        spent, act = 0.0, lambda obs, rng: model.predict(obs)[0]
        while model.num_timesteps < steps:
            start = time.process_time()
            model.learn(rollout, reset_num_timesteps=False)
            spent += time.process_time() - start
            rng = np.random.default_rng(0)
            if evaluate(tests, act, history=1, horizon=250, rng=rng)[0].mean() >= share:
                return spent, model.num_timesteps
        raise RuntimeError(f"{SMALL}: {type(model).__name__} has not solved {share:.0%} after {steps:,} steps.")

    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as cache:
        sides = (
            lambda seed: our_ppo(SMALL, Path(cache), 64, rollout, min(512, rollout), levels, seed),
            lambda seed: their_ppo(SMALL, 16, rollout, min(64, rollout), seed),
        )
        for make in sides:
            make(0).learn(rollout)
        for seed, (make, found) in itertools.product(seeds, zip(sides, (ours, theirs), strict=True)):
            found.append(seconds(make(seed)))
    counts = [", ".join(f"{n:,}" for _, n in side) for side in (ours, theirs)]
    what = (
        f"PPO from scratch until {share:.0%} of {unseen} unseen levels, sampled; seeds {', '.join(map(str, seeds))}, "
        f"env steps {counts[0]} / {counts[1]}; minibatch 512 / 64, 64 / 16 envs, else as ppo"
    )
    times = [[spent for spent, _ in side] for side in (ours, theirs)]
    return [compare("solved", SMALL, *times, target="<= 0.2", unit="seconds", what=what)]


def imitation_python(venv: Path) -> Path:
    """The Python of a virtual environment that has `imitation`; it is made when it is not there.

    Raises OSError or subprocess.SubprocessError, with the reason, when it cannot be made.
    """
    python = venv / "bin" / "python"
    ready = venv / "ready"
    if not ready.exists():
        print(f"Installing {IMITATION} in {venv}; this downloads PyTorch and takes some minutes.", file=sys.stderr)
        base = shutil.which("python3.11") or sys.executable
        subprocess.run([base, "-m", "venv", str(venv)], check=True, timeout=120)  # noqa: S603
        install = [python, "-m", "pip", "install", "--quiet", f"torch=={version('torch').split('+')[0]}", IMITATION]
        subprocess.run(install, check=True, timeout=900, stdout=sys.stderr)  # noqa: S603
        ready.touch()
    return python


@contextmanager
def imitation_rate(python: Path, demos: Demos, batch_size: int, seconds: float) -> Iterator[tuple[Rate, dict]]:
    """`imitation`'s samples per CPU-second on the same demonstrations, and what it is: versions, parameters."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "demonstrations.npz"
        np.savez(path, obs=flat(demos), action=demos.action, words=len(missions.VOCABULARY))
        script = Path(__file__).with_name("bench_imitation.py")
        command = [str(python), "-W", "ignore", str(script), str(path), str(batch_size)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
            assert process.stdin is not None
            assert process.stdout is not None
            facts = json.loads(process.stdout.readline() or "{}")
            if not facts:
                raise RuntimeError(f"{script} ended for the reason above. Run it by hand with {python}")

            def measure() -> float:
                print(seconds, file=process.stdin, flush=True)
                return float(process.stdout.readline())  # type: ignore[union-attr]

            yield measure, facts
            process.stdin.close()


def flat(demos: Demos) -> NDArray[np.uint8]:
    """(N, 49 + L): the view now and the mission."""
    return np.concatenate([demos.obs["frames"][:, -1, :CELLS], demos.obs["mission"]], axis=1)


def our_policy(demos: Demos, extractor: type[FrameHistoryExtractor], memory: int = 0) -> HeadstartPolicy:
    env = HeadstartVecEnv(import_seeds(demos.env_id, demos.seed[:1].tolist()), 1, history=demos.history)
    kwargs = {"memory": memory, "n_actions": engine.N_ACTIONS}
    assert isinstance(env.observation_space, spaces.Dict)
    assert isinstance(env.action_space, spaces.Discrete)
    return HeadstartPolicy(
        env.observation_space,
        env.action_space,
        lambda _: 1e-3,
        features_extractor_class=extractor,
        features_extractor_kwargs=kwargs,
    )


def bc(options: "Options", episodes: int = 100, samples: int = 20_000) -> list[Row]:
    """Cloning the same demonstrations: learners.BC against `imitation`, same network, minibatches of the same size.

    Theirs is a minibatch of samples. Ours is one of distinct observations, each weighted by how many of the samples
    it stands for: so one figure counts what goes through the network, the other what is represented by it.
    """
    try:
        python = imitation_python(options.imitation_venv)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"LEFT OUT: the rows of BC, because {IMITATION} could not be installed: {error}", file=sys.stderr)
        return []
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        demos = collect_demos(DOOR_KEY, episodes, history=1, cache=cache)
    policy = our_policy(demos, FrameHistoryExtractor)
    parameters = sum(p.numel() for p in policy.parameters())
    n, distinct = len(demos), len(imitation_targets(policy, demos, mirror=False)[2])
    for batch_size in (64, 512):
        config = BCConfig(updates=max(1, samples // batch_size), batch_size=batch_size, mirror=False)

        def fit(
            extractor: type[FrameHistoryExtractor], stands_for: float, config: BCConfig = config
        ) -> Callable[[], float]:
            learner = BC(our_policy(demos, extractor), config)
            return lambda: learner.fit(demos).updates * config.batch_size * stands_for

        with imitation_rate(python, demos, batch_size, options.seconds) as (theirs, facts):
            if facts["parameters"] != parameters:
                raise RuntimeError(f"not the same network: {parameters} parameters, theirs {facts['parameters']}")
            sides = options.sides(
                processed=fit(EveryViewExtractor, 1), represented=fit(FrameHistoryExtractor, n / distinct)
            )
            measured = in_turns({**sides, "theirs": theirs}, options.rounds)
        equal = f"equal: {n} samples, layers and sizes, {batch_size} rows in a minibatch; {facts['versions']}"
        for name, side, target, counted in (
            ("bc_processed", "processed", ">= 1.3", "rows that go through the network, no view or mission shared"),
            (
                *("bc_distinct", "represented", ">= 3"),
                f"expert samples represented: {distinct} distinct observations, weighted by their number, stand for "
                f"all {n}, so a row for {n / distinct:.2f}; theirs: rows, each one sample",
            ),
        ):
            row = (f"{name}_{batch_size}", DOOR_KEY, measured[side], measured["theirs"])
            what = f"counted: {counted}; {equal}"
            rows.append(compare(*row, target=target, unit=f"{side} samples/s", what=what))
    return rows


# ---- rows: tests of a policy ----
def exams(options: "Options", levels: int = 500, updates: int = 500) -> list[Row]:
    """A policy that attends to its last four frames, tested: each view encoded once, or again at every step."""
    environment = ENVIRONMENTS["key_corridor"]
    with tempfile.TemporaryDirectory() as cache:
        demos = collect_demos(environment.id, environment.budget, history=4, cache=cache)
    policy = our_policy(demos, FrameHistoryExtractor, memory=4)
    BC(policy, BCConfig(updates=updates, batch_size=16)).fit(demos)
    unseen = import_seeds(environment.id, range(10_000, 10_000 + levels))

    def test(actor: Callable[[], Actor]) -> Callable[[], float]:
        rng = np.random.default_rng
        return lambda: float(evaluate(unseen, actor(), history=4, horizon=environment.horizon, rng=rng(0))[1].sum())

    def anew(obs: Obs, rng: np.random.Generator) -> NDArray[np.int64]:
        return draw(policy.probabilities(obs), rng)

    measured = in_turns(options.sides(ours=test(policy.actor), theirs=test(lambda: anew)), options.rounds)
    what = f"bc tested on {levels} levels at once, sampled; theirs: nothing is remembered from step to step"
    return [compare("exam", environment.id, **measured, target=">= 1.5", unit="steps/s", what=what)]


# ---- rows: cost ----
def linear(options: "Options", episodes: int = 256, states: int = 65_536) -> list[Row]:
    """Twice the demonstrations, six times the alternatives: seconds of the larger over those of the smaller.

    Large enough that no cache of the processor holds the smaller only, and measured there and back.
    """
    draw, steps = itertools.count(), 23  # new levels every time, whose episodes are some 23 steps long
    with tempfile.TemporaryDirectory() as cache:

        def collect(n: int) -> float:
            """CPU-seconds of n demonstrations and all their branches, if all draws had episodes of one length."""
            start = time.process_time()
            demos = collect_demos(DOOR_KEY, n, seed=next(draw), cache=cache)
            branch(demos)
            return (time.process_time() - start) * n * steps / len(demos)

        twice = {"ours": lambda: collect(2 * episodes), "theirs": lambda: collect(episodes)}
        measured = in_turns(twice, options.rounds, back=True)
    what = (
        f"collect_demos + branch: {2 * episodes} demonstrations / {episodes}, bank of levels already there; seconds "
        f"scaled to {steps} steps an episode, because draws differ in length"
    )
    rows = [compare("cost_demos_x2", DOOR_KEY, **measured, target="<= 2.1", unit="seconds", what=what)]

    state = np.tile(import_seeds(DOOR_KEY, range(64)).rows, (states // 64, 1))

    def alternatives(k: int) -> float:
        """CPU-seconds of K alternatives from every state."""
        action = np.tile(np.arange(k), (len(state), 1))

        def once() -> int:
            engine.branch(state, action)
            return 1

        return 1 / rate(once, options.seconds)

    six = {"ours": lambda: alternatives(6), "theirs": lambda: alternatives(1)}
    measured = in_turns(six, options.rounds, back=True)
    what = f"engine.branch of {len(state)} states: K = 6 / K = 1"
    rows.append(compare("cost_k_x6", DOOR_KEY, **measured, target="<= 6.3", unit="seconds", what=what))
    return rows


def bank_size(options: "Options", env_ids: Sequence[str] = STUDY, levels: int = 20_000) -> list[Row]:
    """Megabytes on disk of a bank made for so many training levels; the limit stands where the other side would."""
    rows = []
    for env_id in env_ids:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as cache, on_cores(options.cores):
            n = len(bank(env_id, "train", levels, cache=cache))
            size = sum(path.stat().st_size for path in Path(cache).rglob("*") if path.is_file()) / 1e6
        what = (
            f"whole directory after bank(train, {n}), which holds the other splits of those seeds too, built in "
            f"{time.perf_counter() - start:.0f} s on {max(1, len(options.cores))} cores; theirs: the limit"
        )
        rows.append(Row("bank_size", env_id, size, 100.0, *[size / 100.0] * 3, target="<= 1", unit="MB", what=what))
    return rows


# ---- the table ----
@dataclass(frozen=True)
class Options:
    """How long and how often a side is measured; ``cores`` are for what is not measured in time."""

    rounds: int = 5
    seconds: float = 0.5
    imitation_venv: Path = Path(".venv-imitation")
    cores: frozenset[int] = field(default_factory=my_cores)

    def sides(self, **work: Callable[[], float]) -> dict[str, Rate]:
        return {name: functools.partial(rate, side, self.seconds) for name, side in work.items()}


GROUPS: dict[str, Callable[[Options], list[Row]]] = {
    "branches": branches,
    "steps": steps,
    "level_import": level_import,
    "ppo": ppo,
    "solved": solved,
    "bc": bc,
    "exams": exams,
    "linear": linear,
    "bank_size": bank_size,
}


def reached(row: Row) -> str:
    if not row.target:
        return ""
    sign, number = row.target.split()
    good = row.ratio >= float(number) if sign == ">=" else row.ratio <= float(number)
    return "reached" if good else "MISSED"


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(rows: list[Row]) -> str:
    """Rows as aligned text."""
    head = ("name", "id", "ours", "theirs", "unit", "ratio", "min - max", "target", "")
    lines = [
        (
            *(row.name, row.id, number(row.ours), number(row.theirs), row.unit, number(row.ratio)),
            *(f"{number(row.ratio_min)} - {number(row.ratio_max)}", row.target, reached(row)),
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in (head, *lines))


def machine() -> list[dict[str, str]]:
    """What the numbers were measured on, and with."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    models = {line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")}
    packages = ("headstart", "numpy", "numba", "torch", "gymnasium", "minigrid", "stable-baselines3")
    facts = {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "command": f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '')} python {shlex.join(sys.argv)}",
        "cpu": f"{', '.join(models) or platform.processor()}, {os.cpu_count()} cores, one used",
        "system": platform.platform(),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }
    return [{"name": name, "value": value} for name, value in facts.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=GROUPS, metavar="NAME", help=f"some of: {', '.join(GROUPS)}")
    parser.add_argument("--imitation-venv", type=Path, default=Options.imitation_venv, help="where imitation lives")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    options = Options(imitation_venv=arguments.imitation_venv)
    facts = machine()
    print("\n".join(f"{fact['name']:18} {fact['value']}" for fact in facts))
    rows: list[Row] = []
    with on_cores(sorted(options.cores)[-1:]):  # one, for the processes started here too
        for name in arguments.only or GROUPS:
            start = time.perf_counter()
            rows += GROUPS[name](options)
            print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    print(table(rows))
    if arguments.only:
        print("Nothing was written: the file holds the rows of one whole run.")
        return
    fields = [{**vars(row), "reached": reached(row)} for row in rows]
    rounded = [{k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in fields]
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_rows(RESULTS / "bench.csv", rounded, kind="benchmark")
    write_rows(RESULTS / "machine.csv", facts, kind="machine")
    print(f"Written to {RESULTS}.")


if __name__ == "__main__":
    main()
