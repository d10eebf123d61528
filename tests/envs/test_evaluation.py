"""Evaluation: every level once, counted step by step; and who may act in it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from actors import decided, repeats
from gymnasium.envs.classic_control import CartPoleEnv

from headstart.envs import engine
from headstart.envs.banks import bank, import_seeds
from headstart.envs.collect import branch, collect_demos, practise
from headstart.envs.datasets import demonstrate
from headstart.envs.errors import UsageError
from headstart.envs.evaluation import evaluate
from headstart.envs.instructions import ALTERATIONS
from headstart.envs.simulator import GridStates, Obs, Simulator, uniform_actor
from headstart.envs.transitions import Demos

DOOR_KEY = "MiniGrid-DoorKey-5x5-v0"
EMPTY = "MiniGrid-Empty-5x5-v0"
SOLUTION = [engine.FORWARD, engine.FORWARD, engine.RIGHT, engine.FORWARD, engine.FORWARD]  # of EMPTY


@pytest.fixture(scope="module")
def demos(cache: Path) -> Demos:
    return collect_demos(DOOR_KEY, 3, seed=0, history=2, cache=cache)


# ---- evaluation ----
def test_evaluation_plays_every_level_once(stepped: list[int], cache: Path) -> None:
    chosen = bank(DOOR_KEY, "test", 12, cache=cache)
    rows = chosen.rows.copy()
    played = {"history": 2, "horizon": 30, "rng": np.random.default_rng(0)}
    success, length = evaluate(chosen, decided, **played)
    assert sum(stepped) == length.sum()
    assert len(success) == len(length) == 12
    np.testing.assert_equal(chosen.rows, rows)  # so that the next evaluation plays the same levels
    np.testing.assert_equal(evaluate(chosen, decided, **played), (success, length))
    for i in range(12):  # each by itself
        np.testing.assert_equal(evaluate(chosen[i : i + 1], decided, **played), (success[i : i + 1], length[i : i + 1]))


def test_evaluation_counts_successes_and_steps() -> None:
    chosen = import_seeds(EMPTY, range(3))
    played = {"history": 1, "horizon": 20, "rng": np.random.default_rng(0)}
    success, length = evaluate(chosen, repeats(SOLUTION), **played)
    assert (success.tolist(), length.tolist()) == ([True] * 3, [5] * 3)
    success, length = evaluate(chosen, repeats([engine.LEFT] * 20), **played)
    assert (success.tolist(), length.tolist()) == ([False] * 3, [20] * 3)

    lava = import_seeds("MiniGrid-LavaGapS5-v0", [0, 1])  # to end an episode is not to succeed
    success, length = evaluate(lava, uniform_actor(3), **{**played, "horizon": 200})
    assert not success.all()
    assert length.max() < 200


FETCH = "MiniGrid-Fetch-5x5-N2-v0"


def told(missions: list[np.ndarray], then: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """An actor that keeps what it is told, and acts as another does."""
    return lambda obs, rng: (missions.append(obs["mission"]), then(obs, rng))[1]


@pytest.mark.parametrize("instruction", ["given", *ALTERATIONS])
def test_an_instruction_is_altered_for_the_agent_alone(instruction: str) -> None:
    """What it is told is untrue from the first step to the last; what counts as success is what it was."""
    levels = import_seeds(FETCH, range(40))
    true, text = GridStates.of(levels).mission(), levels.mission.copy()
    missions: list[np.ndarray] = []
    turning = told(missions, lambda obs, rng: np.full(len(obs["frames"]), engine.LEFT))
    evaluate(levels, turning, history=1, horizon=6, rng=np.random.default_rng(0), instruction=instruction)
    assert len(missions) == 6
    np.testing.assert_equal(missions, [missions[0]] * 6)
    assert (missions[0] == true).all() == (instruction == "given")
    if instruction == "shuffled":
        np.testing.assert_equal(np.sort(missions[0], axis=1), np.sort(true, axis=1))
    if instruction == "emptied":
        assert not missions[0].any()
    if instruction == "swapped":
        assert set(map(bytes, missions[0])) <= set(map(bytes, true))
        assert (missions[0] != true).any(1).all()
    played = {"history": 1, "horizon": 30}
    pick_all = np.random.default_rng(1).integers(4, size=(31, 40))  # an actor that listens to nobody

    def deaf() -> Callable[..., np.ndarray]:
        t = iter(pick_all)
        return lambda obs, rng: next(t)[: len(obs["frames"])]

    found = evaluate(levels, deaf(), **played, rng=np.random.default_rng(0), instruction=instruction)
    np.testing.assert_equal(found, evaluate(levels, deaf(), **played, rng=np.random.default_rng(5)))
    assert 0 < found[0].mean() < 1
    np.testing.assert_equal(levels.mission, text)


def test_the_generator_decides_which_untrue_instruction_it_is() -> None:
    levels = import_seeds(FETCH, range(40))
    missions: list[np.ndarray] = []
    for seed in (0, 0, 1):
        actor = told(missions, lambda obs, rng: np.full(len(obs["frames"]), engine.LEFT))
        evaluate(levels, actor, history=1, horizon=1, rng=np.random.default_rng(seed), instruction="swapped")
    np.testing.assert_equal(missions[0], missions[1])
    assert (missions[0] != missions[2]).any()


def test_an_instruction_that_cannot_be_altered_is_refused() -> None:
    played = {"history": 1, "horizon": 5, "rng": np.random.default_rng(0)}
    with pytest.raises(UsageError, match=r"'backwards'.*shuffled, emptied, swapped"):
        evaluate(import_seeds(FETCH, range(3)), uniform_actor(7), **played, instruction="backwards")
    with pytest.raises(UsageError, match="all 3 missions are equal"):
        evaluate(import_seeds(DOOR_KEY, range(3)), uniform_actor(7), **played, instruction="swapped")


def test_circles_are_left_early_and_change_nothing() -> None:
    """A greedy policy at random: most episodes go in circles, some end. What moves by itself never comes back."""
    for env_id, horizon in ((DOOR_KEY, 60), ("MiniGrid-Empty-5x5-v0", 300), ("MiniGrid-Dynamic-Obstacles-5x5-v0", 40)):
        levels, steps = import_seeds(env_id, range(30)), []
        weight = np.random.default_rng(3).normal(size=(50 * 3, 7))

        def greedy(obs: Obs, rng: np.random.Generator) -> np.ndarray:
            steps.append(len(obs["frames"]))  # noqa: B023  read within the loop
            return np.cos(obs["frames"].reshape(len(obs["frames"]), -1) @ weight).argmax(1) % 3  # noqa: B023

        played = {"history": 2, "horizon": horizon, "rng": np.random.default_rng(0)}
        full, spent = evaluate(levels, greedy, **played), sum(steps)
        steps.clear()
        np.testing.assert_equal(evaluate(levels, greedy, **played, deterministic=True), full)
        assert sum(steps) < 0.6 * spent or "Obstacles" in env_id


def cart() -> gymnasium.Env:
    """An environment that runs in Python."""
    return gymnasium.make("CartPole-v1")


# ---- who acts ----
class Decides:
    """What a policy has that evaluation asks for."""

    def __init__(self, levels: Any, history: int) -> None:
        self.observation_space = {"frames": levels.frame_space(history)}

    def actor(self, *, greedy: bool = False) -> Any:
        return decided if greedy else uniform_actor(3)


class Holds:
    def __init__(self, policy: Any) -> None:
        self.policy = policy

    def predict(self, obs: Any) -> Any: ...


def test_a_policy_and_what_has_one_act_as_its_actor_does() -> None:
    levels = import_seeds(DOOR_KEY, range(8))
    policy: Any = Decides(levels, 2)
    known: dict[str, Any] = {"history": 2, "horizon": int(engine.max_steps(levels.rows).max())}
    for deterministic in (True, False):
        act = decided if deterministic else uniform_actor(3)
        wanted = evaluate(levels, act, **known, rng=np.random.default_rng(0), deterministic=deterministic)
        for agent in (policy, Holds(policy)):  # which know their history, as the levels know their limit
            np.testing.assert_equal(evaluate(levels, agent, deterministic=deterministic), wanted)
    states = Simulator(GridStates.of(levels), history=2, horizon=9)
    ours, theirs = (
        practise(states, agent, steps=4, rng=np.random.default_rng(0))[0].state_hash()
        for agent in (policy, uniform_actor(3))
    )
    np.testing.assert_equal(ours, theirs)
    ours, theirs = (branch(states, horizon=3, actor=agent) for agent in (policy, uniform_actor(3)))
    np.testing.assert_equal(vars(ours), vars(theirs))


def test_what_cannot_be_evaluated_is_refused() -> None:
    levels = import_seeds(DOOR_KEY, range(2))
    policy: Any = Decides(levels, 2)
    wrong: Any
    for wrong in (Holds(None), Holds(policy).predict, policy.actor, None):
        with pytest.raises(UsageError, match=r"cannot act here. Give a HeadstartPolicy, .* such as policy\.actor\(\)"):
            evaluate(levels, wrong, history=2, horizon=9)
    with pytest.raises(UsageError, match="Give history"):
        evaluate(levels, decided)
    with pytest.raises(UsageError, match=rf"looks at 3 frames of {DOOR_KEY}, .* shown 5 frames of {DOOR_KEY}"):
        evaluate(levels, policy, history=4)
    task = demonstrate(cart, lambda obs: int(obs[0] < 1), 1, horizon=3, mode="deepcopy").task
    assert task is not None
    with pytest.raises(UsageError, match=r"looks at 3 frames of .*, and would be shown 3 frames of CartPole"):
        evaluate(task.levels("test", 1), policy)
    unplayable: list[dict[str, Any]] = [{"history": 1.5}, {"history": 2, "horizon": 0}, {"history": 2, "rng": 0}]
    for settings in unplayable:
        name, value = list(settings.items())[-1]
        with pytest.raises(UsageError, match=f"{name}={value}"):
            evaluate(levels, decided, **settings)


def test_what_is_no_action_is_refused_and_not_cut_off() -> None:
    grid = import_seeds(DOOR_KEY, range(3))
    task = demonstrate(cart, lambda obs: int(obs[0] < 1), 1, horizon=3, mode="deepcopy").task
    assert task is not None
    wrong: Any
    for wrong, told in (
        (np.full(3, 1.9), r"float64\(3,\)"),
        (np.full(3, True), r"bool\(3,\)"),
        (np.zeros((3, 1), np.int64), r"int64\(3, 1\)"),
        (2, r"int64\(\)"),
    ):
        for levels in (grid, task.levels("test", 3)):
            with pytest.raises(UsageError, match=rf"{levels.env_id}: actions are {told}, give integers of shape \(3"):
                evaluate(levels, lambda obs, rng, wrong=wrong: wrong, history=1, horizon=5)


def test_what_is_no_levels_is_told_which_to_give(demos: Demos) -> None:
    own: Any = demonstrate(cart, lambda obs: int(obs[0] < 1), 1, horizon=3, mode="deepcopy")
    of_door_key = rf'Give bank\("{DOOR_KEY}", "test", 1000\)'
    wrong: Any
    for wrong, told in (
        (DOOR_KEY, rf"not a str\. {of_door_key}"),
        (demos, rf"not a Demos\. {of_door_key}"),
        (own, r'not a Demos\. Give demos\.task\.levels\("test", 1000\)'),
        (cart(), r'not a TimeLimit\. Give bank\(env_id, "test", 1000\), or demos\.task\.levels\("test", 1000\)'),
    ):
        with pytest.raises(UsageError, match=told):
            evaluate(wrong, decided, history=2)


def test_no_environment_is_copied_while_all_of_them_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """By replay, a copy takes as many steps as its episode has had."""
    demos = demonstrate(cart, lambda obs: int(obs[0] < 1), 1, horizon=5, mode="replay")
    assert demos.task is not None
    levels, steps, step = demos.task.levels("test", 3), [], CartPoleEnv.step
    monkeypatch.setattr(CartPoleEnv, "step", lambda self, action: (steps.append(action), step(self, action))[1])
    _, length = evaluate(levels, uniform_actor(2), history=0)
    assert length.tolist() == [5, 5, 5]
    assert len(steps) == 15
