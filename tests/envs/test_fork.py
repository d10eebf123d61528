"""Forking by copies: exact where it says so, refused where it is not, and the same as the engine's rows."""

import copy
import random
import threading
from typing import Any

import gymnasium
import minigrid.envs  # noqa: F401  registers the ids
import numpy as np
import pytest
from gymnasium import spaces

from headstart.envs.banks import import_seeds
from headstart.envs.episode import MODES
from headstart.envs.errors import Diverged, EnvironmentFailed, UsageError
from headstart.envs.experts import expert_for
from headstart.envs.fork import CopiedStates, choose_fork_mode
from headstart.envs.simulator import GridStates, Simulator

DOOR_KEY = "MiniGrid-DoorKey-5x5-v0"
# Gymnasium 1.4 has Taxi-v4 only, earlier versions have Taxi-v3 only.
TAXI = next(name for name in ("Taxi-v4", "Taxi-v3") if name in gymnasium.registry)


class Unknown(gymnasium.Wrapper):
    """Changes nothing, but the engine cannot know that."""


def make(env_id: str):
    return lambda: gymnasium.make(env_id, disable_env_checker=True)


def make_wrapped():
    return Unknown(gymnasium.make(DOOR_KEY, disable_env_checker=True))


class Walk(gymnasium.Env):
    """A random walk: the step is the action and, half of the time, one more."""

    action_space = spaces.Discrete(3, start=-1)
    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.at = 0.0
        self.time = 0
        return self.look(), {}

    def look(self) -> Any:
        return np.array([self.at, self.time], np.float32)

    def noise(self) -> float:
        return float(self.np_random.integers(2))

    def step(self, action: Any):
        self.at += action + self.noise()
        self.time += 1
        return self.look(), self.pay(), False, self.time == 12, {}

    def pay(self) -> Any:
        return 1.0


class Expires(Walk):
    def step(self, action: Any):
        assert self.time < 7
        return super().step(action)


class Counted(Walk):
    steps = 0

    def step(self, action: Any):
        Counted.steps += 1
        return super().step(action)


class GlobalNumpy(Walk):
    def noise(self):
        return float(np.random.rand() < 0.5)  # noqa: NPY002


class GlobalRandom(Walk):
    def noise(self):
        return float(random.random() < 0.5)  # noqa: S311


class Unseeded(Walk):
    """Its generator is its own, but reset(seed) does not seed it."""

    def __init__(self):
        self.generator = np.random.default_rng()

    def noise(self):
        return float(self.generator.integers(2))


class SharedGenerator(Walk):
    """Every reset seeds one generator of the class: it repeats itself, but a copy disturbs the original."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        type(self).generator = np.random.default_rng(seed)
        return super().reset(seed=seed)

    def noise(self):
        return float(self.generator.integers(2))


class Handle(Walk):
    """Nobody can copy a lock."""

    def __init__(self):
        self.lock = threading.Lock()


class Closure(Walk):
    """Functions cannot be pickled. deepcopy shares them, which is right as long as they hold no state."""

    def __init__(self):
        self.noise = lambda: 0.0


class ClosureOfSelf(Walk):
    """In a deepcopy, the function still moves the original."""

    def __init__(self):
        self.noise = lambda: setattr(self, "at", self.at + 1) or 0.0


class StatelessCopies(Walk):
    """A pickle that forgets half of the state."""

    def __getstate__(self):
        return {key: value for key, value in self.__dict__.items() if key != "time"} | {"time": 0}


class CopyingHurts(Walk):
    """Its copies are perfect, but it is not the same afterwards."""

    def __deepcopy__(self, memo):
        other = CopyingHurts()
        other.__dict__ = copy.deepcopy(self.__dict__, memo) | {"hurt": 0}
        self.hurt = 1
        return other

    hurt = 0

    def noise(self):
        return super().noise() + self.hurt


class Costly:
    """A reward that must not be looked at."""

    def __float__(self):
        raise AssertionError("the reward was read")

    __bool__ = __lt__ = __gt__ = __eq__ = __add__ = __radd__ = __deepcopy__ = __float__  # type: ignore
    __hash__ = None  # type: ignore


class SecretReward(Walk):
    def pay(self):
        return Costly()


class Broken(Walk):
    def step(self, action: Any):
        if self.time == 2:
            raise RuntimeError("the simulator is gone")
        return super().step(action)


class Infinite(Walk):
    def look(self):
        return np.array([np.nan if self.time > 2 else 0, 0], np.float32)


# ---- the self-check ----
@pytest.mark.parametrize("env_id", [TAXI, "Acrobot-v1", "CartPole-v1", "FrozenLake-v1"])
def test_gymnasium_environments_are_forked_exactly_in_every_mode(env_id):
    report = choose_fork_mode(make(env_id), steps=240, states=6)
    assert set(report.branches_per_second) == set(MODES)
    assert report.mode == max(report.branches_per_second, key=report.branches_per_second.__getitem__)
    assert not report.refused
    assert report.rewards_compared


def test_a_wrapped_minigrid_is_forked_exactly_in_every_mode():
    assert set(choose_fork_mode(make_wrapped, steps=120, states=6).branches_per_second) == set(MODES)


def test_replay_is_the_last_resort_where_not_all_modes_are_asked_for():
    """It takes most of the steps."""
    steps = []
    for all_modes in (True, False):
        Counted.steps = 0
        report = choose_fork_mode(Counted, all_modes=all_modes)
        steps.append(Counted.steps)
    assert set(report.branches_per_second) == {"deepcopy", "pickle"}
    assert 1000 < steps[1] < 0.6 * steps[0]
    assert choose_fork_mode(Handle, all_modes=False).mode == "replay"


def test_no_episode_is_played_for_longer_than_it_will_be_used():
    """Copies and their copies neither."""
    report = choose_fork_mode(Expires, limit=7)
    assert set(report.branches_per_second) == set(MODES)
    assert report.steps == 7 * report.episodes
    with pytest.raises(EnvironmentFailed, match="step 7 after"):
        choose_fork_mode(Expires, limit=8)


@pytest.mark.parametrize(("env", "generator"), [(GlobalNumpy, "np.random"), (GlobalRandom, "random")])
def test_global_randomness_is_refused_by_name(env, generator):
    with pytest.raises(EnvironmentFailed, match=rf"{env.__name__}.*global generator of {generator},.*step 1"):
        choose_fork_mode(env)


def test_global_randomness_of_torch_is_refused():
    torch = pytest.importorskip("torch")

    class GlobalTorch(Walk):
        def noise(self):
            return float(torch.rand(()) < 0.5)

    with pytest.raises(EnvironmentFailed, match="global generator of torch"):
        choose_fork_mode(GlobalTorch)


def test_an_environment_that_does_not_repeat_itself_is_refused():
    with pytest.raises(EnvironmentFailed, match=r"Unseeded does not repeat itself.*observation after step"):
        choose_fork_mode(Unseeded)


def test_an_environment_whose_copies_share_state_is_refused_with_all_reasons():
    with pytest.raises(EnvironmentFailed) as error:
        choose_fork_mode(SharedGenerator)
    for mode in MODES:
        assert f"\n  {mode}: with seed 0, " in str(error.value)


def test_an_unpicklable_handle_leaves_replay():
    report = choose_fork_mode(Handle)
    assert report.mode == "replay"
    assert set(report.refused) == {"deepcopy", "pickle"}
    assert "lock" in report.refused["deepcopy"]


def test_an_unpicklable_function_leaves_deepcopy():
    report = choose_fork_mode(Closure)
    assert "pickle" in report.refused
    assert {"deepcopy", "replay"} == set(report.branches_per_second)


def test_a_copy_that_moves_the_original_is_noticed():
    report = choose_fork_mode(ClosureOfSelf)
    assert report.mode == "replay"
    assert "disturb" in report.refused["deepcopy"] or "another observation" in report.refused["deepcopy"]


def test_a_copy_that_forgets_is_noticed():
    report = choose_fork_mode(StatelessCopies)
    assert report.mode == "replay"
    assert "has another observation than the original" in report.refused["deepcopy"]
    assert "has another observation than the original" in report.refused["pickle"]


def test_an_original_that_changes_when_it_is_copied_is_noticed():
    report = choose_fork_mode(CopyingHurts)
    assert "disturb the original: it has another observation" in report.refused["deepcopy"]
    assert set(report.branches_per_second) == {"pickle", "replay"}


def test_a_time_limit_that_a_copy_forgets_is_noticed():
    """Observations agree until the end: only the last step of an episode shows it."""

    class Limit(gymnasium.wrappers.TimeLimit):
        def __deepcopy__(self, memo):
            other = Limit(copy.deepcopy(self.env, memo), 30)
            other._elapsed_steps = 0
            return other

    report = choose_fork_mode(lambda: Limit(gymnasium.make("Acrobot-v1").unwrapped, 30))
    assert "another truncated" in report.refused["deepcopy"]
    assert {"pickle", "replay"} & set(report.branches_per_second)


def test_rewards_that_cannot_be_read_are_left_out():
    report = choose_fork_mode(SecretReward)
    assert not report.rewards_compared


def test_an_environment_that_raises_is_named_with_seed_step_and_actions():
    with pytest.raises(EnvironmentFailed) as error:
        choose_fork_mode(Broken, seed=7)
    for part in ("Broken", "seed 7", "step 2", "after the actions", "RuntimeError: the simulator is gone"):
        assert part in str(error.value)


def test_what_is_not_an_environment_is_a_usage_error():
    with pytest.raises(UsageError, match=r"returned a dict, not a gymnasium\.Env"):
        choose_fork_mode(dict)  # type: ignore


# ---- states ----
def play_both(one: Simulator, other: Simulator, actions: np.ndarray) -> None:
    for action in actions:
        one.step(action)
        other.step(action)
        for name in ("terminated", "truncated", "revisit", "t"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
        for name, value in one.observe().items():
            np.testing.assert_array_equal(value, other.observe()[name], err_msg=name)
        np.testing.assert_array_equal(one.success(), other.success())
        np.testing.assert_allclose(one.reward(), other.reward(), rtol=1e-15)


@pytest.mark.parametrize("mode", MODES)
def test_branches_are_those_of_the_engine(mode):
    """From states along an expert's path, through Simulator: frames, ends, success, reward, revisits."""
    seeds = [0, 1, 2]
    solutions = []
    for seed in seeds:
        env = gymnasium.make(DOOR_KEY, disable_env_checker=True)
        env.reset(seed=seed)
        solutions.append(expert_for(DOOR_KEY).solve(env).actions)
    length = max(map(len, solutions))
    path = np.array([[*actions, *[6] * (length - len(actions))] for actions in solutions]).T

    rows = Simulator(GridStates.of(import_seeds(DOOR_KEY, seeds)), history=2, horizon=60)
    copies = Simulator(CopiedStates(make_wrapped, seeds, mode), history=2, horizon=60)
    np.testing.assert_array_equal(rows.observe()["mission"], copies.observe()["mission"])
    rng = np.random.default_rng(0)
    alternatives = np.repeat(np.arange(len(seeds)), 7)
    for t, action in enumerate(path):
        if t % 3 == 0 or t >= length - 2:
            first = np.tile(np.arange(7), len(seeds))
            later = rng.integers(7, size=(2, len(first)))
            play_both(rows.fork(alternatives), copies.fork(alternatives), np.stack([first, *later]))
        play_both(rows, copies, action[None])
    assert copies.success().all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("env_id", [TAXI, "FrozenLake-v1", "CartPole-v1"])
def test_a_copy_is_the_same_state_and_lives_alone(env_id, mode):
    states = CopiedStates(make(env_id), range(3), mode)
    everyone = np.arange(3)
    states.step(everyone, np.zeros(3, np.int64))
    copies = states.take(np.array([2, 0, 0]))
    before = states.state_hash()
    np.testing.assert_array_equal(copies.state_hash(), before[[2, 0, 0]])
    for _ in range(3):
        copies.step(np.array([0, 1]), np.array([1, 1]))
    assert (copies.state_hash()[:2] != before[[2, 0]]).all()
    assert copies.state_hash()[2] == before[0]
    np.testing.assert_array_equal(states.state_hash(), before)
    for _ in range(3):
        states.step(everyone[:1], np.array([1]))
    assert states.state_hash()[0] == copies.state_hash()[1]
    np.testing.assert_array_equal(states.frame()[0], copies.frame()[1])


def test_hashes_do_not_depend_on_the_mode():
    hashes = []
    for mode in MODES:
        states = CopiedStates(Walk, [4, 5], mode)
        for action in (0, 2, 1):
            states = states.take(np.arange(2))
            states.step(np.arange(2), np.array([action, action]))
        hashes.append(states.state_hash())
    np.testing.assert_array_equal(hashes[0], hashes[1])
    np.testing.assert_array_equal(hashes[0], hashes[2])
    assert hashes[0][0] != hashes[0][1]


def test_hashes_tell_states_apart_that_look_the_same():
    states = CopiedStates(make_wrapped, [0, 0], "pickle")
    done, everyone = np.array([6, 6]), np.arange(2)  # only the step count changes
    states.step(everyone, done)
    once = states.state_hash()
    states.step(everyone[:1], done[:1])
    np.testing.assert_array_equal(states.frame()[0], states.frame()[1])
    assert once[0] == once[1] == states.state_hash()[1] != states.state_hash()[0]


def test_states_that_are_put_are_copies():
    states, fresh = CopiedStates(Walk, [0, 1], "deepcopy"), CopiedStates(Walk, [2], "deepcopy")
    start = fresh.state_hash()
    states.put(np.array([1]), fresh)
    assert states.state_hash()[1] == start[0]
    states.step(np.array([1]), np.array([2]))
    np.testing.assert_array_equal(fresh.state_hash(), start)
    fresh.step(np.array([0]), np.array([2]))
    assert states.state_hash()[1] == fresh.state_hash()[0]


def test_rewards_are_not_read_until_asked_for():
    simulator = Simulator(CopiedStates(SecretReward, [0, 1], "deepcopy"), history=1, horizon=5)
    for _ in range(5):
        simulator.fork(np.array([0, 0, 1])).step(np.array([0, 1, 2]))
        simulator.step(np.array([2, 2]))
    assert simulator.done.all()
    with pytest.raises(EnvironmentFailed, match=r"reading the reward.*seed 0, step 5"):
        simulator.reward()


def test_a_reward_that_is_no_number_is_named():
    class Divides(Walk):
        def pay(self):
            return np.inf if self.time == 2 else 1.0

    states = CopiedStates(Divides, [5, 6], "deepcopy")
    states.step(np.array([0, 1]), np.array([2, 2]))
    assert states.reward().tolist() == [1, 1]
    states.step(np.array([1]), np.array([2]))
    with pytest.raises(EnvironmentFailed, match=r"Divides: reading the reward failed .* seed 6, step 2 .*: it is inf"):
        states.reward()


def test_success_is_what_the_environment_says_or_a_positive_reward_at_its_end():
    states = CopiedStates(make(TAXI), [0], "deepcopy")
    states._episodes[0].terminated = True
    states._episodes[0].reward = 20
    assert states.success().tolist() == [True]
    states._episodes[0].reward = -1
    assert states.success().tolist() == [False]
    states._episodes[0].info = {"is_success": True}
    assert states.success().tolist() == [True]


def test_a_replay_that_went_elsewhere_is_noticed():
    states = CopiedStates(Unseeded, [0], "replay")
    for _ in range(8):  # eight coin flips
        states.step(np.array([0]), np.array([1]))
    many = states.take(np.zeros(20, np.int64))
    with pytest.raises(EnvironmentFailed, match=r"Unseeded: a fork by replay failed .* seed 0, step 8"):
        many.step(np.arange(20), np.ones(20, np.int64))


def test_errors_while_stepping_name_the_episode():
    states = CopiedStates(Broken, [3, 4], "pickle")
    for _ in range(2):
        states.step(np.array([1]), np.array([2]))
    with pytest.raises(EnvironmentFailed, match=r"Broken.*seed 4, step 2 after the actions 1, 1"):
        states.step(np.array([1]), np.array([2]))
    infinite = CopiedStates(Infinite, [0], "pickle")
    for _ in range(2):
        infinite.step(np.array([0]), np.array([0]))
    with pytest.raises(Diverged, match=r"Infinite: .* seed 0, step 3"):
        infinite.step(np.array([0]), np.array([0]))


def test_bad_actions_modes_and_spaces_are_refused():
    with pytest.raises(UsageError, match="mode='copy': choose one of deepcopy, pickle, replay"):
        CopiedStates(Walk, [0], "copy")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"1 numbers in 0..2, not \[3\]"):
        CopiedStates(Walk, [0], "pickle").step(np.array([0]), np.array([3]))
    with pytest.raises(UsageError, match=r"Pendulum-v1: its actions are Box"):
        CopiedStates(make("Pendulum-v1"), [0], "pickle")
