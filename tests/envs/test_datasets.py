"""Demonstrations from functions, trained policies and Minari: what is branched is where the expert has been."""

import threading
import warnings
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from headstart.envs.collect import branch, collect_demos, load_demos, replay, save_demos
from headstart.envs.datasets import demonstrate, from_minari, to_minari
from headstart.envs.episode import Outcome
from headstart.envs.errors import DataError, Diverged, UsageError
from headstart.envs.evaluation import evaluate
from headstart.envs.transitions import Demos
from headstart.envs.vector import make_vec_env
from headstart.learners import PPO
from headstart.models import HeadstartPolicy

ABOUT = {"author": "a test", "author_email": "-", "algorithm_name": "-", "code_permalink": "-", "description": "-"}


class Reach(gymnasium.Env):
    """Walk a line to a goal in steps of any length; the goal, or what it is called, is seen."""

    action_space: gymnasium.Space = spaces.Box(-1, 1, (1,), np.float32)
    observation_space: gymnasium.Space = spaces.Dict(
        {"at": spaces.Box(-9, 9, (1,), np.float32), "goal": spaces.Discrete(3)}
    )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.at, self.goal = np.zeros(1, np.float32), int(self.np_random.integers(3))
        return self.look(), {}

    def look(self) -> Any:
        return {"at": self.at.copy(), "goal": self.goal}

    def step(self, action: Any):
        self.at = (self.at + action).astype(np.float32)
        there = abs(float(self.at[0]) - (self.goal - 1)) < 0.1
        return self.look(), 1.0 if there else -0.1, there, False, {}


class Pairs(Reach):
    """A left and a right leg, each of which steps or not."""

    action_space = spaces.MultiDiscrete([2, 2])

    def step(self, action: Any):
        return super().step(np.float32([0.25 * (action[1] - action[0])]))


def expert(obs: Any) -> Any:
    return np.clip(obs["goal"] - 1 - obs["at"], -0.3, 0.3) + np.float32(0.001)


def two_legs(obs: Any) -> Any:
    ahead = obs["goal"] - 1 - obs["at"][0]
    return np.array([ahead < -0.1, ahead > 0.1], np.int64)


@pytest.fixture(autouse=True)
def datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))


@pytest.fixture(scope="module")
def demos() -> Demos:
    return demonstrate(Reach, expert, 6, horizon=20, history=2, codes=4, mode="deepcopy")


# ---- policies ----
def test_the_states_are_exactly_the_experts_and_the_labels_are_the_nearest_codes(demos: Demos) -> None:
    assert demos.task is not None
    assert demos.exact is not None
    at = demos.layout.features(demos.obs["frames"][:, -1])[:, 0]
    for episode in range(6):
        mine = demos.episode == episode
        taken = demos.exact[mine, 0]
        np.testing.assert_array_equal(at[mine], np.concatenate([[0], np.cumsum(taken, dtype=np.float32)[:-1]]))
    nearest = np.abs(demos.exact - demos.task.choices.table[:, 0]).argmin(1)
    np.testing.assert_array_equal(demos.action, nearest)
    assert 2 <= len(demos.task.choices) <= 4
    np.testing.assert_array_equal(replay(demos).frame(), demos.obs["frames"][:, -1])


def test_branches_try_every_code_from_the_experts_states(demos: Demos) -> None:
    assert demos.task is not None
    branches = branch(demos)
    at = demos.layout.features(branches.frame)[:, 0]
    for code, action in enumerate(demos.task.choices.table[:, 0]):
        after = demos.layout.features(branches.future[:, code, 0])[:, 0]
        np.testing.assert_allclose(after, at + action, atol=1e-6)


def test_the_environment_of_the_demonstrations_for_ppo(demos: Demos) -> None:
    env = make_vec_env(demos, 3, seed=1)
    assert env.observation_space["frames"].layout == demos.layout  # type: ignore[index]
    assert env.action_space == spaces.Discrete(len(demos.task.choices))  # type: ignore[union-attr]
    obs, total, ended = env.reset(), np.zeros(3), 0
    for _ in range(45):
        obs, reward, done, infos = env.step(np.zeros(3, np.int64))
        total += reward
        for i in np.flatnonzero(done):
            assert infos[i]["episode"]["r"] == pytest.approx(total[i], abs=1e-5)  # not the last reward alone
            total[i], ended = 0.0, ended + 1
    assert ended >= 6
    assert obs["frames"].shape == (3, 3, 5)


def test_evaluation_asks_the_users_own_idea_of_success() -> None:
    asked: list[Outcome] = []

    def quick(outcome: Outcome) -> bool:
        asked.append(outcome)
        return outcome.total > 0.5

    demos = demonstrate(Pairs, two_legs, 8, horizon=20, success=quick)
    assert [outcome.total for outcome in asked] == [0.0]  # a try; demonstrations are kept whatever their reward
    assert demos.task is not None
    code = demos.task.choices.codes(np.array([[0, 1]]))[0]  # forwards: right if the goal is at 1, or here
    success, length = evaluate(
        demos.task.levels("test", 30),
        lambda obs, rng: np.full(len(obs["frames"]), code),
        history=1,
        horizon=20,
        rng=np.random.default_rng(0),
    )
    assert {(bool(s), int(n)) for s, n in zip(success, length, strict=True)} <= {(True, 4), (False, 20)}
    assert success.any()
    assert not success.all()
    assert all(outcome.steps == 4 and outcome.terminated for outcome in asked if outcome.total > 0.5)


def test_failed_episodes_are_dropped_if_asked() -> None:
    def only_right(obs: Any) -> Any:
        return np.array([0, 1])

    demos = demonstrate(Pairs, only_right, 3, horizon=20, only_successes=True)
    assert demos.dropped > 0
    assert (demos.length < 20).all()
    with pytest.raises(DataError, match="only 0 of 8 episodes of this policy succeeded, and 2 were asked for"):
        demonstrate(Pairs, only_right, 2, horizon=20, only_successes=True, success=lambda outcome: False)


def test_a_model_with_predict_is_a_policy_too() -> None:
    class Model:
        def predict(self, observation: Any, *, deterministic: bool) -> tuple[Any, Any]:
            assert deterministic
            return np.array(int(observation[2] > 0)), None  # zero-dimensional, as Stable-Baselines3 gives it

    demos = demonstrate(lambda: gymnasium.make("CartPole-v1"), Model(), 2, horizon=30)
    assert demos.env_id == "CartPole-v1"
    assert set(demos.action) == {0, 1}


def test_bad_observations_are_named(demos: Demos) -> None:
    class Broken(Reach):
        def look(self):
            return {"at": self.at * (np.nan if self.at > 0.4 else 1), "goal": self.goal}

    with pytest.raises(Diverged, match=r"Broken: an observation is not finite in the episode of seed \d+, step 2"):
        demonstrate(Broken, lambda obs: np.float32([0.29 + 0.01 * (obs["at"][0] > 0)]), 2, horizon=5, mode="deepcopy")
    obs = {name: value.copy() for name, value in demos.obs.items()}
    second = int(demos.length[0]) + 1
    obs["frames"][second, -1, :4] = np.array([np.inf], np.float32).view(np.uint8)
    with pytest.raises(Diverged, match=r"not finite in demonstration 1 \(seed \d+\), step 1,"):
        Demos(**{**vars(demos), "obs": obs})


def test_an_expert_and_an_environment_may_write_into_their_arrays_again() -> None:
    action = np.zeros(1, np.float32)

    def reuses(obs: Any) -> Any:
        action[:] = expert(obs)
        return action

    class Reuses(Reach):
        def step(self, action: Any):
            result = super().step(action)
            action[:] = 7
            return result

    ours, theirs = (demonstrate(Reach, policy, 3, horizon=20, mode="deepcopy") for policy in (expert, reuses))
    own = demonstrate(Reuses, reuses, 3, horizon=20, mode="deepcopy")
    assert len(np.unique(np.asarray(ours.exact))) > 1
    np.testing.assert_array_equal(theirs.exact, ours.exact)
    np.testing.assert_array_equal(own.exact, ours.exact)


@pytest.mark.parametrize(
    ("make_env", "wrong"),
    [
        (Reach, np.zeros(2, np.float32)),
        (Reach, np.array([np.nan], np.float32)),
        (Reach, [[0.0], [0.0, 1.0]]),
        (Reach, None),
        (Pairs, np.array([0, 2])),
        (Pairs, np.array([0, 0.5])),
    ],
)
def test_what_is_no_action_is_named_with_its_demonstration_and_step(make_env: Any, wrong: Any) -> None:
    asked = iter(range(99))
    good = np.zeros(1, np.float32) if make_env is Reach else np.zeros(2, np.int64)
    where = r"for demonstration 1, in the episode of seed \d+, step 2 after"
    with pytest.raises(DataError, match=rf"(?s){make_env.__name__}: the policy gave .*, which is none of .*, {where}"):
        demonstrate(make_env, lambda obs: wrong if next(asked) == 7 else good, 2, horizon=5)


def test_an_expert_may_answer_with_a_truth() -> None:
    demos = demonstrate(lambda: gymnasium.make("CartPole-v1"), lambda obs: obs[2] > 0, 1, horizon=9, mode="deepcopy")
    assert set(demos.action) <= {0, 1}


def test_an_expert_may_answer_with_a_number_that_is_whole() -> None:
    """Environments look things up with it."""
    demos = demonstrate(lambda: gymnasium.make("Acrobot-v1"), lambda obs: np.float64(2.0), 1, horizon=5)
    assert set(demos.action) == {2}


@pytest.mark.parametrize("no_function", ["Acrobot-v1", gymnasium.make("Acrobot-v1")])
def test_an_environment_instead_of_a_function_that_makes_one(no_function: Any) -> None:
    with pytest.raises(UsageError, match=r"Give a function that makes a new environment, such as lambda: gymnasium"):
        demonstrate(no_function, lambda obs: 2, 1)


def test_what_cannot_be_asked_about_success_is_said_at_once() -> None:
    """And not when RL begins, after the whole fit."""
    make_env = lambda: gymnasium.make("CartPole-v1")  # noqa: E731
    with pytest.raises(
        UsageError, match=r"CartPole-v1: success raised AttributeError: .*which has total, reward, steps"
    ):
        demonstrate(make_env, lambda obs: 0, 1, success=lambda end: end.success)  # type: ignore[attr-defined]


def test_they_are_shown_in_a_line(demos: Demos) -> None:
    assert repr(demos) == f"Demos({demos.env_id}: {len(demos.length)} episodes, {len(demos)} states)"
    made = branch(demos)
    n, a, h = made.action.shape
    assert repr(made) == f"Branches(Reach: {n} states, {a} actions, {h} steps; {made.env_steps} environment steps)"


def test_none_is_too_few() -> None:
    with pytest.raises(UsageError, match=r"Reach: episodes=0\. Give at least 1"):
        demonstrate(Reach, expert, 0, horizon=5)


def test_what_is_whole_counts() -> None:
    three: Any = 3.0
    assert len(demonstrate(Reach, expert, three, horizon=5, mode="deepcopy").length) == 3
    half: Any = 2.5
    with pytest.raises(UsageError, match=r"Reach: episodes=2\.5\. Give a whole number"):
        demonstrate(Reach, expert, half, horizon=5)
    with pytest.raises(UsageError, match=r"Reach: horizon=2\.5\. Give a whole number"):
        demonstrate(Reach, expert, 1, horizon=half)


def test_forces_are_clipped_to_what_agents_can_reach() -> None:
    """As Stable-Baselines3 does for its own policies."""
    demos = demonstrate(Reach, lambda obs: 7 * np.sign(expert(obs)), 4, horizon=9, mode="deepcopy")
    assert demos.exact is not None
    assert set(demos.exact.reshape(-1).tolist()) == {-1.0, 1.0}
    states = replay(demos)
    states.step(demos.action, list(demos.exact))
    future = branch(demos).future[np.arange(len(demos)), demos.action, 0]
    np.testing.assert_array_equal(states.frame(), future)


def test_who_cannot_demonstrate_is_told_so() -> None:
    class Sklearn:
        def predict(self, X: Any) -> Any:  # noqa: N803
            return np.zeros((1, 1))

    wrong: Any
    for wrong, told in (
        (None, "policy=None: give a function from observations to actions, or what has .predict"),
        (Sklearn(), r"predict\(\) of a Sklearn takes no deterministic="),
    ):
        with pytest.raises(UsageError, match=told):
            demonstrate(Reach, wrong, 1, horizon=5)


def test_the_step_limit_of_a_minigrid_is_its_own() -> None:
    class Other(gymnasium.Wrapper):
        """So that it has to run in Python."""

    demos = demonstrate(lambda: Other(gymnasium.make("MiniGrid-Empty-5x5-v0")), lambda obs: 0, 1, mode="deepcopy")
    assert demos.horizon == 100 == len(demos)
    with pytest.raises(UsageError, match=r"no step limit that is the same in every episode\. Give horizon"):
        demonstrate(lambda: Other(gymnasium.make("BabyAI-GoToLocal-v0")), lambda obs: 0, 1, mode="deepcopy")


def test_numbers_too_large_for_a_float32_are_said_to_be_so() -> None:
    class Large(Pairs):
        observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)

        def look(self) -> Any:
            return np.array([1e300])

    with np.errstate(over="ignore"), pytest.raises(Diverged, match=r"too large for a float32, .* Scale it down"):
        demonstrate(Large, lambda obs: np.array([0, 1]), 1, horizon=3, mode="deepcopy")


def test_a_step_limit_is_needed() -> None:
    def never(obs: Any) -> Any:
        raise AssertionError("it was asked before there is a limit, and would be asked forever")

    with pytest.raises(UsageError, match="Give horizon"):
        demonstrate(Pairs, never, 1)
    with pytest.raises(UsageError, match=r"Pairs: horizon=0\. Give at least 1"):
        demonstrate(Pairs, never, 1, horizon=0)


@pytest.mark.parametrize("wrong", ["seed", "history"])
def test_numbers_that_cannot_be_are_refused_first(wrong: str) -> None:
    with pytest.raises(UsageError, match=rf"Pairs: {wrong}=-1\. Give at least 0"):
        demonstrate(Pairs, lambda obs: 1 / 0, 1, horizon=5, **{wrong: -1})


def test_an_environment_has_to_last_as_long_as_the_horizon_and_no_longer() -> None:
    class Expires(Pairs):
        def reset(self, **settings: Any):
            self.time = 0
            return super().reset(**settings)

        def step(self, action: Any):
            assert self.time < 9
            self.time += 1
            return super().step(action)

    assert len(demonstrate(Expires, lambda obs: np.array([0, 0]), 2, horizon=9)) > 9


def test_the_horizon_of_an_environment_of_demonstrations_is_not_guessed(demos: Demos) -> None:
    with pytest.raises(UsageError, match="horizon=0"):
        make_vec_env(demos, 2, horizon=0)


def test_the_limit_of_a_wrapper_is_the_environments_own() -> None:
    def limited() -> gymnasium.Env:
        return gymnasium.wrappers.TimeLimit(Pairs(), 15)

    assert demonstrate(limited, two_legs, 1, mode="deepcopy").horizon == 15
    assert demonstrate(limited, two_legs, 1, horizon=9, mode="deepcopy").horizon == 9


class Holds(Reach):
    """Has to be closed, and cannot be copied."""

    open: ClassVar[set[int]] = set()
    made = 0

    def __init__(self) -> None:
        Holds.made += 1
        self.number, self.lock = Holds.made, threading.Lock()
        self.open.add(self.number)

    def close(self) -> None:
        self.open.discard(self.number)


def test_every_environment_is_closed_that_nobody_needs_any_more() -> None:
    demos = demonstrate(Holds, expert, 2, horizon=20)
    assert demos.task is not None
    assert demos.task.mode == "replay"
    branch(demos)
    to_minari(demos, "headstart/holds-v0", **ABOUT)
    from_minari("headstart/holds-v0", Holds)
    assert Holds.made > 100
    assert not Holds.open
    states = demos.task.states(np.arange(2))
    assert len(Holds.open) == 2
    del states
    assert not Holds.open


# ---- files ----
def test_demonstrations_are_kept_without_their_environment(demos: Demos, tmp_path: Path) -> None:
    save_demos(tmp_path / "demos.npz", demos)
    back = load_demos(tmp_path / "demos.npz", history=2, make_env=Reach)
    assert back.task is not None
    assert demos.task is not None
    assert back.task.choices == demos.task.choices
    assert back.layout == demos.layout
    for name in ("seed", "length", "action", "state_hash", "exact"):
        np.testing.assert_array_equal(getattr(back, name), getattr(demos, name), err_msg=name)
    for name, value in demos.obs.items():
        np.testing.assert_array_equal(back.obs[name], value, err_msg=name)


def test_files_remember_how_much_is_shown(demos: Demos, tmp_path: Path) -> None:
    for history in (1, 3):
        some = demonstrate(Reach, expert, 2, horizon=8, history=history, mode="deepcopy")
        save_demos(tmp_path / "demos.npz", some)
        assert load_demos(tmp_path / "demos.npz", make_env=Reach).history == history
        assert load_demos(tmp_path / "demos.npz", make_env=Reach, history=2).history == 2


def test_a_model_goes_on_with_other_demonstrations(tmp_path: Path) -> None:
    """Their statistics differ, its own stay."""

    def model_for(demos: Demos) -> PPO:
        return PPO(HeadstartPolicy, make_vec_env(demos, 2), seed=0, n_steps=4, batch_size=8)

    make_env = lambda: gymnasium.make("CartPole-v1")  # noqa: E731
    mine, others = (demonstrate(make_env, lambda obs: int(obs[2] > 0), n, horizon=30) for n in (2, 3))
    assert mine.layout != others.layout
    model_for(mine).save(tmp_path / "model")
    env = make_vec_env(others, 2)
    loaded = PPO.load(tmp_path / "model", env=env)
    assert loaded.policy.layout == mine.layout
    np.testing.assert_array_equal(
        loaded.policy.probabilities(mine.obs), PPO.load(tmp_path / "model").policy.probabilities(mine.obs)
    )
    loaded.learn(8)


def test_what_success_is_should_be_said() -> None:
    make_env = lambda: gymnasium.make("CartPole-v1")  # noqa: E731
    with pytest.warns(UserWarning, match=r"CartPole-v1 does not say what success is.* success=lambda"):
        demos = demonstrate(make_env, lambda obs: 0, 1, horizon=30, only_successes=True)
    assert len(demos) < 20  # it fell over, which pays too
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match=r"or say what success is \(success=...\)"):
            demonstrate(make_env, lambda obs: 0, 1, success=lambda end: end.total > 20, horizon=30, only_successes=True)


def test_files_of_another_environment_are_refused(demos: Demos, tmp_path: Path) -> None:
    class Slippery(Reach):
        def step(self, action: Any):
            return super().step(0.5 * action)

    Slippery.__name__ = "Reach"  # the same name, and yet another world
    path = tmp_path / "demos.npz"
    save_demos(path, demos)
    with pytest.raises(UsageError, match="demonstrations of Reach: give make_env"):
        load_demos(path)
    with pytest.raises(DataError, match=r"demos\.npz: these are demonstrations of Reach, but .* makes a Pairs"):
        load_demos(path, make_env=Pairs)
    with pytest.raises(DataError, match=r"demos\.npz: demonstration 0 of Reach \(level seed \d+\), step 1: replaying"):
        load_demos(path, history=2, make_env=Slippery)


# ---- Minari ----
def test_there_and_back() -> None:
    """Continuous actions, a dictionary of observations: written, read, played again, the same."""
    demos = demonstrate(Reach, expert, 4, history=2, horizon=20)
    to_minari(demos, "headstart/reach-v0", **ABOUT)
    back = from_minari("headstart/reach-v0", Reach, history=2, horizon=20)
    assert not back.unbranchable
    for name in ("seed", "length", "action", "state_hash", "exact"):
        np.testing.assert_array_equal(getattr(back, name), getattr(demos, name), err_msg=name)
    for name, value in demos.obs.items():
        np.testing.assert_array_equal(back.obs[name], value)
    assert back.layout == demos.layout
    assert len(from_minari("headstart/reach-v0", Reach, episodes=2).length) == 2
    with pytest.raises(UsageError, match="Give make_env"):
        from_minari("headstart/reach-v0")
    with pytest.raises(UsageError, match=r"reach-v0: is there already. Give another id"):
        to_minari(demos, "headstart/reach-v0", **ABOUT)


def test_an_environment_that_shows_the_same_array_again_is_written_as_it_was() -> None:
    class Same(Reach):
        def look(self):
            self.shown = getattr(self, "shown", np.zeros(1, np.float32))
            self.shown[:] = self.at
            return {"at": self.shown, "goal": self.goal}

    demos = demonstrate(Same, expert, 2, horizon=20, mode="deepcopy")
    record = to_minari(demos, "headstart/same-v0", **ABOUT)[0]
    seen = demos.layout.features(demos.obs["frames"][:, -1])[: demos.length[0], 0]
    assert len(np.unique(seen)) > 1
    np.testing.assert_array_equal(record.observations["at"][:-1, 0], seen)


@pytest.mark.slow
def test_minigrids_missions_become_text_and_the_engine_plays_what_comes_back(tmp_path: Path) -> None:
    demos = collect_demos("BabyAI-GoToObjS6-v1", 2, history=2, cache=tmp_path / "cache")
    dataset = to_minari(demos, "headstart/gotoobj-v0", **ABOUT)
    assert str(dataset[0].observations["mission"][0]).startswith("go to the ")
    back = from_minari(dataset, history=2, horizon=demos.horizon)
    assert back.task is None  # the engine's
    np.testing.assert_array_equal(back.state_hash, demos.state_hash)
    np.testing.assert_array_equal(back.action, demos.action)
    assert len(branch(back)) == len(back)


def test_a_record_that_cannot_be_played_again_is_good_for_imitation_only() -> None:
    demos = demonstrate(Reach, expert, 3, horizon=20)
    to_minari(demos, "headstart/reach-v1", **ABOUT)

    class Windy(Reach):
        def step(self, action: Any):
            return super().step(action + np.float32(0.01))

    back = from_minari("headstart/reach-v1", Windy, horizon=20)
    assert "demonstration 0 (seed" in back.unbranchable
    assert "step 1 shows something else" in back.unbranchable
    for name, value in demos.obs.items():
        np.testing.assert_array_equal(back.obs[name], value, err_msg=name)
    with pytest.raises(UsageError, match="cannot be branched: played again, demonstration 0"):
        branch(back)


def test_a_dataset_that_is_not_here_is_named() -> None:
    with pytest.raises(DataError, match="minari download headstart/none-v0"):
        from_minari("headstart/none-v0")


@pytest.mark.parametrize("wrong", ["t/cart-v0", "cart", "headstart/cart", ""])
def test_what_is_no_id_is_refused_before_anything_is_written(wrong: str, demos: Demos, tmp_path: Path) -> None:
    for use in (lambda: to_minari(demos, wrong, **ABOUT), lambda: from_minari(wrong, Reach)):
        with pytest.raises(UsageError, match=rf"{wrong}: is no id of a Minari dataset\. Give a namespace"):
            use()
    assert not list(tmp_path.iterdir())


def test_what_others_have_left_half_written_is_in_nobodys_way(demos: Demos, tmp_path: Path) -> None:
    for left in ("t/cart-v0", "headstart/half-v0"):
        (tmp_path / left / "data").mkdir(parents=True)
    with pytest.raises(
        UsageError, match=rf"is there already\. Give another id, or delete {tmp_path}/headstart/half-v0"
    ):
        to_minari(demos, "headstart/half-v0", **ABOUT)
    with pytest.raises(DataError, match=rf"half-v0: cannot be read: No data.*Delete {tmp_path}/headstart/half-v0, and"):
        from_minari("headstart/half-v0", Reach)
    to_minari(demos, "headstart/whole-v0", **ABOUT)
    assert len(from_minari("headstart/whole-v0", Reach)) == len(demos)


def test_records_that_are_longer_than_the_horizon_are_refused(demos: Demos) -> None:
    to_minari(demos, "headstart/long-v0", **ABOUT)
    most = int(demos.length.max())
    long = int(demos.length.argmax())
    why = rf"long-v0: demonstration {long} has {most} steps, more than horizon={most - 1}\. Give horizon={most},"
    with pytest.raises(DataError, match=why):
        from_minari("headstart/long-v0", Reach, horizon=most - 1)
    assert from_minari("headstart/long-v0", Reach, horizon=most).horizon == most
