"""Arms: what is compared with what, and budgets that are what they say."""

import dataclasses

import pytest

from headstart.envs.errors import UsageError
from headstart.experiments.arms import Arm, arms_around, within
from headstart.learners import LEARNERS, BCConfig, IWMConfig, JudgeConfig, ReflectionConfig

BC = BCConfig(updates=900, learning_rate=2e-3, hidden_past=0.25)
ARMS = arms_around(BC, memory=2)


def test_the_main_arms_differ_in_what_is_compared() -> None:
    reflect = ReflectionConfig(bc=BC, judge=JudgeConfig(updates=600))  # 1,000 where bc makes 1,500
    assert {name: arm for name, arm in ARMS.items() if arm.main} == {
        "scratch": Arm(None, memory=2, rl=True),
        "bc": Arm(BC, memory=2, rl=True),
        "bc_long": Arm(dataclasses.replace(BC, updates=reflect.total_updates), memory=2, rl=False),
        "iwm": Arm(IWMConfig(bc=BC), memory=2, rl=False),
        "reflect": Arm(reflect, memory=2, rl=True),
    }
    assert reflect.total_updates > BC.updates


@pytest.mark.parametrize("name", [name for name in ARMS if name != "scratch"])
def test_every_arm_looks_at_demonstrations_as_bc_does(name: str) -> None:
    """Its bc is the tuned one, but for how long; and a learner belongs to it."""
    config = ARMS[name].learner
    assert type(config) in LEARNERS
    assert ARMS[name].memory == (0 if name.endswith("_memoryless") else 2)

    def imitation(part: object) -> list[BCConfig]:
        if isinstance(part, BCConfig):
            return [part]
        values = [getattr(part, field.name) for field in dataclasses.fields(part)]  # type: ignore[arg-type]
        return [bc for value in values if dataclasses.is_dataclass(value) for bc in imitation(value)]

    found = imitation(config)
    assert found
    assert all(dataclasses.replace(bc, updates=900) == BC for bc in found)


def test_the_exhaustive_arm_executes_everything_and_is_else_the_same() -> None:
    reflect = ARMS["reflect"].learner
    assert isinstance(reflect, ReflectionConfig)
    assert reflect.sparing
    exhaustive = dataclasses.replace(reflect, sparing=False)
    assert ARMS["reflect_exhaustive"] == dataclasses.replace(ARMS["reflect"], learner=exhaustive, main=False)


def test_arms_with_settings_of_ppo_are_else_those_that_they_are_compared_with() -> None:
    own = {
        "bc_plain": {"plain": True},
        "reflect_plain": {"plain": True},
        "bc_auxiliary": {"auxiliary_coef": 0.3},
        "reflect_rehearsal": {"rehearsal_coef": 0.3},
    }
    assert {name: arm.ppo for name, arm in ARMS.items() if arm.ppo} == own
    for name in own:
        start = ARMS[name.partition("_")[0]]
        assert start.rl
        assert dataclasses.replace(ARMS[name], ppo={}, main=True) == start


def test_settings_of_ppo_for_reflect_are_those_of_all_arms_that_start_from_it() -> None:
    found, same = arms_around(BC, memory=4, reflect_ppo={"learning_rate": 1e-4}), arms_around(BC, memory=4)
    slower = {name for name, arm in found.items() if arm != same[name]}
    assert slower == {"reflect", "reflect_exhaustive", "reflect_plain", "reflect_rehearsal"}
    for name in slower:
        assert found[name] == dataclasses.replace(same[name], ppo={"learning_rate": 1e-4, **same[name].ppo})


def test_what_memory_is_worth_can_be_asked_where_there_is_any() -> None:
    for name in ("bc", "reflect"):
        assert ARMS[f"{name}_memoryless"] == dataclasses.replace(ARMS[name], memory=0, rl=False, main=False)
    assert not [name for name in arms_around(BC, memory=0) if "memoryless" in name]


def test_matched_arms_make_no_more_updates_than_bc() -> None:
    matched = [name for name in ARMS if name.endswith("_matched")]
    assert "reflect_matched" in matched
    assert "iwm_matched" in matched
    for name in matched:
        config, extra = ARMS[name].learner, ARMS[name.removesuffix("_matched")].learner
        assert 0.97 * BC.updates < config.total_updates <= BC.updates < extra.total_updates, name


def test_within_shortens_all_stages_alike() -> None:
    config = ReflectionConfig(bc=BC, judge=JudgeConfig(members=2, updates=300), rounds=2, round_updates=750)
    assert config.total_updates == 900 + 600 + 1500
    half = within(config, 1500)
    assert (half.bc.updates, half.judge.updates, half.round_updates) == (450, 150, 375)
    assert dataclasses.replace(half, bc=BC, judge=config.judge, round_updates=750) == config
    assert within(config, 10**6) == config  # never longer
    with pytest.raises(UsageError, match="cannot be shortened to 3 updates"):
        within(config, 3)
