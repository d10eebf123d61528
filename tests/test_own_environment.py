"""Your own environment in ten lines: numbers, dictionaries, many buttons or any force, through the same learners."""

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from headstart.envs import branch, demonstrate, evaluate, make_vec_env
from headstart.envs.errors import EnvironmentFailed, UsageError
from headstart.envs.simulator import uniform_actor
from headstart.learners import BC, IWM, LEARNERS, PPO, BCConfig, IWMConfig, JudgeConfig, Reflection, ReflectionConfig
from headstart.learners.affordance import Affordances
from headstart.models import HeadstartPolicy

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
SNIPPET = next(block for block in README.split("```python\n") if "demonstrate(" in block).split("```")[0]
BC_CONFIG = BCConfig(updates=300, batch_size=64, hidden_past=0.0)
SMALL = ReflectionConfig(
    bc=BC_CONFIG,
    judge=JudgeConfig(members=1, updates=100),
    rounds=1,
    levels=8,
    level_steps=10,
    states=60,
    round_updates=300,
)


class Docking(gymnasium.Env):
    """Bring a boat to a stop at the pier on one side of the river, which a word on a board says."""

    action_space: gymnasium.Space = spaces.Box(-1, 1, (1,), np.float32)
    observation_space = spaces.Dict({"boat": spaces.Box(-9, 9, (2,), np.float32), "pier": spaces.Discrete(2)})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.boat = self.np_random.uniform(-0.3, 0.3, 2).astype(np.float32)  # where it is, how fast it goes
        self.pier = int(self.np_random.integers(2))
        return self.look(), {}

    def look(self) -> dict[str, Any]:
        return {"boat": self.boat.copy(), "pier": self.pier}

    def force(self, action: Any) -> float:
        return float(action[0])

    def step(self, action: Any):
        self.boat[1] = 0.9 * self.boat[1] + 0.2 * self.force(action)
        self.boat[0] += 0.5 * self.boat[1]
        docked = bool(abs(self.boat[0] - (2 * self.pier - 1)) < 0.1 and abs(self.boat[1]) < 0.2)
        return self.look(), float(docked), docked, False, {}


class TwoOars(Docking):
    """Each of two oars is pulled, pushed or left alone."""

    action_space = spaces.MultiDiscrete([3, 3])

    def force(self, action: Any) -> float:
        return (float(action[0]) + float(action[1]) - 2) / 2


class Watched(Docking):
    """Where the boat and the pier are is seen in a picture; how fast the boat goes is a number."""

    observation_space = spaces.Dict(
        {"river": spaces.Box(0, 255, (32, 48, 3), np.uint8), "speed": spaces.Box(-9, 9, (1,), np.float32)}
    )

    def look(self) -> dict[str, Any]:
        river = np.zeros((32, 48, 3), np.uint8)
        column = int(np.clip(24 + 14 * self.boat[0], 0, 45))
        river[14:18, column : column + 3, 0] = 255
        river[4:28, -4 if self.pier else 0 :, 1][:, :4] = 255
        return {"river": river, "speed": self.boat[1:].copy()}


def steer(obs: Any) -> Any:
    wanted = 2 * obs["pier"] - 1 - obs["boat"][0] - 1.5 * obs["boat"][1]
    return np.array([np.clip(2 * wanted, -1, 1)], np.float32)


def steer_by_sight(obs: Any) -> Any:
    river = obs["river"]
    at = (np.flatnonzero(river[15, :, 0])[0] - 24) / 14
    return steer({"boat": np.float32([at, obs["speed"][0]]), "pier": int(river[15, -1, 1] > 0)})


def row(obs: Any) -> Any:
    pull = round(2 * float(steer(obs)[0]))
    return np.array([1 + np.sign(pull), 1 + np.sign(pull) * (abs(pull) == 2)], np.int64)


@pytest.mark.slow
def test_the_ten_lines_run(monkeypatch: pytest.MonkeyPatch) -> None:
    code = SNIPPET
    for printed, smaller in {
        "episodes=4": "episodes=1",
        "n_envs=16": "n_envs=8",
        "Reflection(model.policy)": "Reflection(model.policy, SMALL)",
        "100_000": "512",
    }.items():
        assert printed in code
        code = code.replace(printed, smaller)
    assert len([line for line in SNIPPET.splitlines() if line.strip()]) <= 12
    names: dict[str, Any] = {"SMALL": SMALL}
    exec(code, names)  # noqa: S102  our own
    assert names["model"].policy.warm_start == "reflect"
    assert names["model"].num_timesteps >= 512


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "expert", "episodes", "updates"),
    [(Docking, steer, 16, 300), (TwoOars, row, 16, 300), (Watched, steer_by_sight, 32, 1500)],
    ids=["any force", "two oars", "a picture"],
)
@pytest.mark.parametrize(
    ("learner", "config"),
    [
        (BC, lambda bc: bc),
        (IWM, lambda bc: IWMConfig(updates=100, bc=bc)),
        (Reflection, lambda bc: replace(SMALL, bc=bc, round_updates=bc.updates)),
    ],
    ids=["bc", "iwm", "reflect"],
)
def test_every_kind_of_action_is_learned_by_the_same_learners(
    env: Any, expert: Any, episodes: int, updates: int, learner: Any, config: Any
) -> None:
    demos = demonstrate(env, expert, episodes, horizon=30, codes=7, mode="deepcopy", only_successes=True)
    vec_env = make_vec_env(demos, 4)
    kwargs = {"features_extractor_kwargs": {"memory": 0, "width": 64}}
    policy = PPO(HeadstartPolicy, vec_env, seed=0, n_steps=16, batch_size=64, policy_kwargs=kwargs).policy
    learner(policy, config(replace(BC_CONFIG, updates=updates))).fit(demos, branch(demos), vec_env)
    assert demos.task is not None
    levels = demos.task.levels("test", 40)

    def success(actor: Any) -> float:
        """Sampled, as PPO would go on."""
        return float(evaluate(levels, actor, history=1, horizon=30, rng=np.random.default_rng(0))[0].mean())

    assert success(uniform_actor(policy.n_actions)) < 0.25
    assert success(policy.actor()) > 0.6


def test_where_any_force_can_be_used_the_experts_choice_is_tried_like_the_others() -> None:
    """The force that it has used is nearest to this choice, and leads elsewhere: a judge would know it by that."""
    demos = demonstrate(Docking, steer, 2, horizon=30, codes=7, mode="deepcopy")
    kwargs = {"features_extractor_kwargs": {"memory": 0, "width": 16}}
    policy = PPO(HeadstartPolicy, make_vec_env(demos, 2), policy_kwargs=kwargs).policy
    found, executed = Affordances(policy).branch_demos(demos), branch(demos)
    each = np.arange(len(demos)), demos.action
    np.testing.assert_equal(found.future[each], executed.future[each])
    following = np.setdiff1d(np.arange(len(demos)), demos.last)
    assert (executed.future[each][following, 0] != demos.obs["frames"][following + 1, -1]).any()


class Unread:
    """A reward that nobody may look at."""

    def __float__(self) -> float:
        raise AssertionError("somebody has read a reward")

    __bool__ = __index__ = __array__ = __add__ = __radd__ = __lt__ = __float__  # type: ignore[assignment]


class Secret(Docking):
    def step(self, action: Any):
        obs, _, terminated, truncated, info = super().step(action)
        return obs, Unread(), terminated, truncated, info


def test_no_reward_is_read_before_ppo_starts() -> None:
    tiny = BCConfig(updates=3, batch_size=8)
    demos = demonstrate(Secret, steer, 2, horizon=30, codes=7, mode="deepcopy")
    vec_env = make_vec_env(demos, 2)
    kwargs = {"features_extractor_kwargs": {"memory": 1, "width": 16}}
    model = PPO(HeadstartPolicy, vec_env, seed=0, n_steps=4, batch_size=8, policy_kwargs=kwargs)
    judge = JudgeConfig(members=1, updates=3)
    reflect = ReflectionConfig(bc=tiny, judge=judge, rounds=1, levels=3, level_steps=4, states=10, round_updates=3)
    for learner, config in ((BC, tiny), (IWM, IWMConfig(updates=3, bc=tiny)), (Reflection, reflect)):
        learner(model.policy, config).fit(demos, branch(demos, horizon=2), vec_env)  # type: ignore[arg-type, operator]
    with pytest.raises(EnvironmentFailed, match="reading the reward failed"):
        model.learn(8)


def small(config: Any) -> Any:
    """A configuration of any learner, cut down to a few updates and steps."""
    few = {"updates": 4, "round_updates": 4, "levels": 3, "level_steps": 4, "states": 10, "rounds": 1}
    inner = {f.name: getattr(config, f.name) for f in fields(config)}
    inner = {name: small(value) for name, value in inner.items() if is_dataclass(value)}
    return replace(config, **inner, **{name: n for name, n in few.items() if hasattr(config, name)})


def test_a_rationale_is_learned_and_said_outside_grids() -> None:
    demos = demonstrate(Docking, steer, 2, horizon=30, codes=7, mode="deepcopy")
    vec_env = make_vec_env(demos, 2)
    kwargs = {"features_extractor_kwargs": {"width": 16}}
    policy = PPO(HeadstartPolicy, vec_env, seed=0, n_steps=4, batch_size=8, policy_kwargs=kwargs).policy
    learner = Reflection(policy, replace(small(ReflectionConfig()), rationale_weight=1.0))
    assert learner.fit(demos, branch(demos), vec_env).metrics["rationale/loss"] > 0
    said = learner.explain(demos.obs)
    assert len(said) == len(demos)
    assert all(one.startswith("action ") and "changes" in one for one in said)


@pytest.mark.parametrize(("env", "expert"), [(Docking, steer), (Watched, steer_by_sight)], ids=["numbers", "a picture"])
@pytest.mark.parametrize("config", LEARNERS, ids=lambda config: config.__name__)
def test_every_learner_takes_every_environment_or_says_why_not(config: Any, env: Any, expert: Any) -> None:
    demos = demonstrate(env, expert, 2, horizon=30, codes=7, mode="deepcopy")
    vec_env = make_vec_env(demos, 2)
    kwargs = {"features_extractor_kwargs": {"width": 16}}
    policy = PPO(HeadstartPolicy, vec_env, seed=0, n_steps=4, batch_size=8, policy_kwargs=kwargs).policy
    before = {name: value.clone() for name, value in policy.weights().items()}
    learner = LEARNERS[config](policy, small(config()))
    if LEARNERS[config].__name__ == "Dagger":  # it asks the built-in experts
        with pytest.raises(UsageError, match="use a learner that asks no expert"):
            learner.fit(demos, branch(demos), vec_env)
    else:
        assert learner.fit(demos, branch(demos, horizon=4), vec_env).updates > 0
        assert any((value != before[name]).any() for name, value in policy.weights().items())
