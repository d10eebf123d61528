"""No reward and no success flag is read before PPO: all stages of all learners, on states that raise when asked."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headstart.envs import engine
from headstart.envs.collect import branch, collect_demos, practise, replay
from headstart.envs.simulator import GridStates, Simulator, uniform_actor
from headstart.envs.transitions import Demos
from headstart.envs.vector import HeadstartVecEnv, make_vec_env
from headstart.learners import (
    LEARNERS,
    PPO,
    BCConfig,
    DaggerConfig,
    InverseConfig,
    IWMConfig,
    IWMReflectConfig,
    JudgeConfig,
    NoopConfig,
    PreferenceConfig,
    RandomJudgeConfig,
    ReflectionConfig,
    SelfLabelConfig,
    StarConfig,
)
from headstart.models import HeadstartPolicy

ENV_ID = "MiniGrid-DoorKey-5x5-v0"
BC = BCConfig(updates=3, batch_size=8, mirror=True, hidden_past=0.3, hidden_actions=0.3)
REFLECT = ReflectionConfig(
    bc=BC,
    judge=JudgeConfig(updates=3),
    rounds=2,
    round_updates=3,
    levels=12,
    level_steps=80,
    states=900,
)
CONFIGS = {
    BCConfig: BC,
    IWMConfig: IWMConfig(updates=3, batch_size=8, bc=BC),
    InverseConfig: InverseConfig(updates=3, batch_size=8, horizon=2, bc=BC),
    PreferenceConfig: PreferenceConfig(updates=3, batch_size=8, bc=BC),
    ReflectionConfig: REFLECT,
    IWMReflectConfig: IWMReflectConfig(IWMConfig(updates=3, batch_size=8), REFLECT),
    SelfLabelConfig: SelfLabelConfig(REFLECT),
    RandomJudgeConfig: RandomJudgeConfig(REFLECT),
    NoopConfig: NoopConfig(REFLECT),
    DaggerConfig: DaggerConfig(REFLECT),
    StarConfig: StarConfig(BC, updates=3),
}
VARIANTS = [pytest.param(config, id=kind.__name__) for kind, config in CONFIGS.items()]
VARIANTS += [pytest.param(replace(REFLECT, sparing=False), id="exhaustive")]


class Asked(Exception):
    """Somebody has read what is not theirs to read."""


@pytest.fixture(scope="module")
def demos(cache: Path) -> Demos:
    """Collected before reading raises: the recorder may know that the expert has succeeded."""
    return collect_demos(ENV_ID, 2, history=2, cache=cache)


@pytest.fixture
def env(cache: Path) -> HeadstartVecEnv:
    return make_vec_env(ENV_ID, 4, history=2, n_levels=32, cache=cache)


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*arguments: Any) -> None:
        raise Asked

    for owner in (engine, GridStates, Simulator):
        for name in ("reward", "succeeded", "success"):
            if hasattr(owner, name):
                monkeypatch.setattr(owner, name, asked)


def fitted(config: Any, demos: Demos, env: HeadstartVecEnv) -> PPO:
    settings = {"n_steps": 8, "batch_size": 32, "critic_updates": 0}
    model = PPO(HeadstartPolicy, env, seed=0, **settings)
    branches = branch(demos, horizon=3) if config.horizon else None
    LEARNERS[type(config)](model.policy, config).fit(demos, branches, env)
    return model


def test_every_learner_is_here() -> None:
    assert CONFIGS.keys() == LEARNERS.keys()


@pytest.mark.parametrize("config", VARIANTS)
@pytest.mark.usefixtures("unread")
def test_all_stages_learn_without_reward(config: Any, demos: Demos, env: HeadstartVecEnv) -> None:
    assert fitted(config, demos, env).policy.warm_start


@pytest.mark.usefixtures("unread")
def test_everything_before_rl_raises_when_it_should(demos: Demos, env: HeadstartVecEnv) -> None:
    """The alarm works: what may read the reward does, and is caught."""
    model = fitted(BC, demos, env)
    states = replay(demos)
    for read in (states.reward, states.success, states.states.reward, states.states.success):
        with pytest.raises(Asked):
            read()
    with pytest.raises(Asked):
        model.learn(32)


@pytest.mark.parametrize("config", VARIANTS)
def test_what_the_outcome_was_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, config: Any, demos: Demos, cache: Path
) -> None:
    """The same weights to the last bit when every success is recorded as a failure, and every failure as a success."""
    step = engine.step

    def other_outcome(rows: np.ndarray, action: np.ndarray) -> Any:
        ended = step(rows, action)
        over = ended[0]
        rows[over, engine.OUTCOME] = np.where(
            rows[over, engine.OUTCOME] == engine.SUCCESS, engine.FAILURE, engine.SUCCESS
        )
        return ended

    weights = []
    for patched in (False, True):
        if patched:
            monkeypatch.setattr(engine, "step", other_outcome)
        env = make_vec_env(ENV_ID, 4, history=2, n_levels=32, cache=cache)
        weights.append(dict(fitted(config, demos, env).policy.named_parameters()))
    for name, parameter in weights[0].items():
        assert (parameter == weights[1][name]).all(), name


def test_practice_does_reach_ends_that_would_be_rewarded(demos: Demos) -> None:
    """So that the tests above would have noticed."""
    play: Callable[..., Any] = uniform_actor(7)
    start = replay(demos)
    near_the_end = start.fork(np.repeat(np.cumsum(demos.length) - 1, 20))
    ends = near_the_end.fork()
    ends.step(play(ends.observe(), np.random.default_rng(0)))
    assert ends.success().any()
    states, _ = practise(near_the_end, play, steps=1, rng=np.random.default_rng(0))
    assert len(states) < 2 * len(near_the_end)
