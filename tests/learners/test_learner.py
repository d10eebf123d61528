"""What does not belong together is refused before the first update, with the demonstration and step named."""

import re
from dataclasses import MISSING, fields, is_dataclass, replace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from headstart.envs.collect import branch
from headstart.envs.datasets import demonstrate
from headstart.envs.errors import DataError, UsageError
from headstart.envs.transitions import Demos
from headstart.envs.vector import make_vec_env
from headstart.learners import BC, GRPO, LEARNERS, PPO, BCConfig, GRPOConfig, JudgeConfig, Reflection, ReflectionConfig
from headstart.learners.learner import accept
from headstart.models import HeadstartPolicy


class Line(gymnasium.Env):
    """Walk to a place on a line; the steps are of any size."""

    action_space: gymnasium.Space = spaces.Box(-1, 1, (1,), np.float32)
    observation_space: gymnasium.Space = spaces.Box(-9, 9, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.at, self.goal = np.float32(0), np.float32(self.np_random.uniform(-1, 1))
        return self.look(), {}

    def look(self) -> Any:
        return np.array([self.at, self.goal], np.float32)

    def step(self, action: Any):
        self.at = np.float32(self.at + action[0])
        there = bool(abs(self.at - self.goal) < 0.02)
        return self.look(), float(there), there, False, {}


class Buttons(Line):
    action_space = spaces.Discrete(5)

    def step(self, action: Any):
        return super().step([(int(action) - 2) / 25])


class Dictionary(Line):
    observation_space = spaces.Dict({"at": spaces.Box(-9, 9, (1,), np.float32), "side": spaces.Discrete(2)})

    def look(self):
        return {"at": np.array([self.at], np.float32), "side": int(self.goal > 0)}


def towards(obs: Any) -> Any:
    return np.clip(0.4 * (obs[1:] - obs[:1]), -0.2, 0.2)


def press(obs: Any) -> int:
    return int(np.clip(np.round(25 * (obs[1] - obs[0])), -2, 2)) + 2


def on_side(obs: Any) -> Any:
    return np.float32([0.2 if obs["side"] else -0.2])


def demos_of(env: Any = Line, policy: Any = towards, **settings: Any) -> Demos:
    return demonstrate(env, policy, 4, **{"horizon": 30, "mode": "deepcopy", "codes": 5} | settings)


@pytest.fixture(scope="module")
def demos() -> Demos:
    return demos_of()


def policy_for(demos: Demos) -> HeadstartPolicy:
    extractor = {"width": 16, "channels": 4}
    policy_kwargs = {"features_extractor_kwargs": extractor}
    return PPO(HeadstartPolicy, make_vec_env(demos, 2), n_steps=4, batch_size=8, policy_kwargs=policy_kwargs).policy


def test_what_belongs_together_is_accepted(demos: Demos) -> None:
    accept(policy_for(demos), demos, branch(demos), make_vec_env(demos, 2))


def test_demonstrations_of_another_environment(demos: Demos) -> None:
    policy = policy_for(demos)
    with pytest.raises(DataError, match=r"of Dictionary show at \(1 float32\), side \(1 uint8\), but the policy"):
        accept(policy, demos_of(Dictionary, on_side))
    with pytest.raises(DataError, match="demonstrations are of Line, but practice would be in Buttons"):
        accept(policy, demos, None, make_vec_env(demos_of(Buttons, press), 2))


def test_another_environment_that_looks_the_same(demos: Demos) -> None:
    class Row(Line):
        """Of the same observations."""

    with pytest.raises(DataError, match="demonstrations are of Row, but the policy is made for Line"):
        accept(policy_for(demos), demos_of(Row))


def test_practice_elsewhere(demos: Demos) -> None:
    policy = policy_for(demos)
    with pytest.raises(DataError, match="show 1 earlier frames, but practice would show 3"):
        accept(policy, demos, None, make_vec_env(demos, 2, history=3))
    with pytest.raises(UsageError, match="practise=Line cannot start fresh episodes"):
        accept(policy, demos, None, Line())  # type: ignore[arg-type]


def test_branches_of_others(demos: Demos) -> None:
    policy, env = policy_for(demos), make_vec_env(demos, 2)
    with pytest.raises(DataError, match=r"the branches show frames of shape \(4, 8\), but the demonstrations \(2, 8\)"):
        accept(policy, demos, branch(demos_of(history=3)))
    of_one = branch(demos.take(np.array([0])))
    accept(policy, demos, of_one)  # a world model may learn from them
    with pytest.raises(DataError, match=rf"of {len(of_one)} states, are not those of the {len(demos)} demonstrated"):
        Reflection(policy).fit(demos, of_one, env)


def test_branches_of_an_environment_that_looks_the_same(demos: Demos) -> None:
    class Row(Line):
        """Of the same observations."""

    of_row = branch(demos_of(Row))
    with pytest.raises(DataError, match="demonstrations are of Line, but the branches are of Row"):
        accept(policy_for(demos), demos, of_row)


def test_the_same_actions_in_other_states(demos: Demos) -> None:
    branches = branch(demos)
    turned = replace(branches, obs={name: value[::-1] for name, value in branches.obs.items()})
    with pytest.raises(DataError, match="are not those of the"):
        Reflection(policy_for(demos)).fit(demos, turned, make_vec_env(demos, 2))


def test_arguments_in_another_order(demos: Demos) -> None:
    policy, branches = policy_for(demos), branch(demos)
    for given in ((branches, demos), ([demos], branches), (None,)):
        with pytest.raises(UsageError, match=r"fit\(\w+, \w+, ...\): give fit\(demos, branches, practise\)"):
            BC(policy).fit(*given)  # type: ignore[arg-type]


@pytest.mark.parametrize("learner", [*LEARNERS.values(), lambda policy, config=None: GRPO(policy, None, config)])
def test_a_learner_is_made_of_a_policy_and_its_settings(demos: Demos, learner: Any) -> None:
    model = PPO(HeadstartPolicy, make_vec_env(demos, 2), n_steps=4, batch_size=8)
    with pytest.raises(UsageError, match=r"and not a PPO\. Give model.policy"):
        learner(model)
    with pytest.raises(UsageError, match=r"and not a str\. Make one"):
        learner("MlpPolicy")
    with pytest.raises(UsageError, match="settings of another kind"):
        learner(model.policy, {"updates": 3})


@pytest.mark.parametrize("config", [*LEARNERS, JudgeConfig, GRPOConfig])
def test_settings_that_cannot_be_are_refused_at_once(config: Any) -> None:
    """Numbers below what makes sense, no numbers, parts of another kind."""
    for field in fields(config):
        default = field.default if field.default is not MISSING else field.default_factory()
        name = f"{config.__name__}: {field.name}"
        refused: list[tuple[Any, str]] = []
        if is_dataclass(default):
            refused = [(None, f"{name}=None. Give a {type(default).__name__}.")]
        if type(default) is int:
            refused = [(wrong, f"{name}={wrong!r}. Choose a whole number") for wrong in (-1, 1.5, "3", None)]
        if type(default) is float:
            refused = [(wrong, f"{name}={wrong!r}. Choose a number") for wrong in (-0.1, float("nan"), "3", None)]
        for wrong, said in refused:
            with pytest.raises(UsageError, match=re.escape(said)):
                config(**{field.name: wrong})


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (BCConfig, {"batch_size": 0}),
        (BCConfig, {"label_smoothing": 2.0}),
        (BCConfig, {"hidden_past": 1.1}),
        (JudgeConfig, {"members": 0}),
        (JudgeConfig, {"weight": 5}),
        (JudgeConfig, {"temperature": 0}),
        (ReflectionConfig, {"levels": 0}),
        (ReflectionConfig, {"alternatives": "foo"}),
    ],
)
def test_settings_beyond_their_bounds(config: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=re.escape("{}={!r}".format(*next(iter(settings.items()))))):
        config(**settings)


def test_more_actions_than_there_are(demos: Demos) -> None:
    with pytest.raises(UsageError, match="k=9: there are 5 actions to try"):
        Reflection(policy_for(demos), ReflectionConfig(k=9, sparing=False)).fit(
            demos, branch(demos), make_vec_env(demos, 2)
        )


def test_another_history(demos: Demos) -> None:
    with pytest.raises(DataError, match=r"their actions have shape \(3,\), but the policy reads \(1,\)"):
        accept(policy_for(demos), demos_of(history=3))


def test_an_action_that_the_policy_does_not_have_is_named_with_demonstration_and_step(demos: Demos) -> None:
    action = demos.action.copy()
    action[int(demos.length[0]) + 1] = 200
    with pytest.raises(DataError, match=r"demonstration 1 \(seed \d+\), step 1: action 200 was taken"):
        accept(policy_for(demos), replace(demos, action=action))


def test_another_action_set(demos: Demos) -> None:
    other = demos_of(seed=1)  # of the same environment; but its expert has taken other actions
    policy = policy_for(demos)
    assert other.task is not None
    assert len(other.task.choices) == policy.n_actions
    with pytest.raises(DataError, match=r"choose from other actions .* than the environment to practise in"):
        accept(policy, demos, None, make_vec_env(other, 2))
    with pytest.raises(DataError, match=r"choose from other actions \(5 of .*\(codebook .* than the policy"):
        accept(policy, other)
    fewer = demos_of(codes=3)
    with pytest.raises(DataError, match="branches try 3 actions, but the policy has 5"):
        accept(policy, demos, branch(fewer))


@pytest.mark.parametrize("learner", LEARNERS.values(), ids=lambda learner: learner.__name__)
def test_every_learner_refuses_before_it_has_learned_anything(learner: Any, demos: Demos) -> None:
    policy = policy_for(demos)
    before = {name: value.clone() for name, value in policy.weights().items()}
    other = demos_of(Dictionary, on_side)
    with pytest.raises(DataError, match="but the policy reads"):
        learner(policy).fit(other, branch(other), make_vec_env(other, 2))
    assert all((value == before[name]).all() for name, value in policy.weights().items())
