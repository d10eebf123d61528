"""The arms that an experiment compares: the main ones, which run by default, then controls and other methods.

    headstart run door_key                          the main arms
    headstart run door_key --arms reflect noop      these
    headstart run door_key --arms all               all of them

All have the settings of the bc that was tuned for their environment, its memory too, and otherwise their defaults: up
to the warm start nothing but bc is chosen anew from environment to environment. PPO is tuned for bc, and where a script
says so for `reflect` by the same search.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Protocol

from headstart.envs.errors import UsageError
from headstart.learners import (
    BCConfig,
    DaggerConfig,
    InverseConfig,
    IWMConfig,
    IWMReflectConfig,
    NoopConfig,
    PreferenceConfig,
    RandomJudgeConfig,
    ReflectionConfig,
    SelfLabelConfig,
    StarConfig,
)

__all__ = ["Arm", "LearnerConfig", "arms_around", "reflection_around", "within"]


class LearnerConfig(Protocol):
    """A dataclass of settings; the learner that it belongs to is in learners.LEARNERS."""

    @property
    def total_updates(self) -> int: ...

    @property
    def horizon(self) -> int:
        """Steps of the branches at demonstrated states that a fit wants; 0 for none."""
        ...


@dataclass(frozen=True)
class Arm:
    learner: LearnerConfig | None
    """How the policy is warm-started; None starts from scratch."""
    memory: int
    """Earlier frames and actions that its policy looks at."""
    rl: bool
    """Whether PPO goes on from there."""
    main: bool = True
    """Whether it runs if no arms are named."""
    ppo: dict[str, Any] = field(default_factory=dict)
    """Settings of PPO that are this arm's own."""

    @property
    def fit(self) -> tuple[str, int]:
        """What its warm start depends on beside demonstrations and seed: arms that agree in it share one."""
        return repr(self.learner), self.memory


def reflection_around(bc: BCConfig) -> ReflectionConfig:
    """`reflect` with its defaults, beside a bc that may have been tuned to learn for longer: so do its judges."""
    default = ReflectionConfig()
    updates = default.judge.updates * bc.updates // default.bc.updates
    return ReflectionConfig(bc=bc, judge=dataclasses.replace(default.judge, updates=updates))


def arms_around(bc: BCConfig, memory: int, *, reflect_ppo: dict[str, Any] | None = None) -> dict[str, Arm]:
    """Every arm, with the tuned settings of bc and its memory.

    ``reflect_ppo``: settings of PPO from `reflect`'s warm starts, where those of the script, which suit bc, do not.

    ``bc_long`` has as many updates as ``reflect``. ``reflect_exhaustive`` executes every action, what is known already
    too. ``bc_plain`` and ``reflect_plain`` go on with PPO as Stable-Baselines3 has it, ``bc_auxiliary`` with a world
    model's loss beside PPO's, ``reflect_rehearsal`` with the judges' labels. Controls and other methods have no RL.

    A learner's name alone stands for the budget `extra`: its own stages come on top of bc's updates. With ``_matched``
    it makes no more updates than bc, all of its stages shortened alike; with ``_memoryless`` its policy sees nothing
    but the present.
    """
    reflect = reflection_around(bc)
    exhaustive = dataclasses.replace(reflect, sparing=False)
    ppo = reflect_ppo or {}
    named = {
        "scratch": Arm(None, memory, rl=True),
        "bc": Arm(bc, memory, rl=True),
        "bc_long": Arm(dataclasses.replace(bc, updates=reflect.total_updates), memory, rl=False),
        "iwm": Arm(IWMConfig(bc=bc), memory, rl=False),
        "reflect": Arm(reflect, memory, rl=True, ppo=ppo),
        "reflect_exhaustive": Arm(exhaustive, memory, rl=True, main=False, ppo=ppo),
    }
    others: dict[str, LearnerConfig] = {
        "iwm_joint": IWMConfig(bc=bc, mode="joint"),
        "inverse": InverseConfig(bc=bc),
        "preference": PreferenceConfig(bc=bc),
        "star": StarConfig(bc=bc),
        "noop": NoopConfig(reflect),
        "random_judge": RandomJudgeConfig(reflect),
        "self_label": SelfLabelConfig(reflect),
        "iwm_reflect": IWMReflectConfig(IWMConfig(bc=bc), reflect),
        "reflect_rationale": dataclasses.replace(reflect, rationale_weight=0.3),
        "reflect_shuffled": dataclasses.replace(reflect, rationale_weight=0.3, shuffled_rationale=True),
        "dagger": DaggerConfig(reflect),
    }
    own_ppo: dict[str, tuple[str, dict[str, Any]]] = {
        "bc_plain": ("bc", {"plain": True}),
        "reflect_plain": ("reflect", {"plain": True}),
        "bc_auxiliary": ("bc", {"auxiliary_coef": 0.3}),
        "reflect_rehearsal": ("reflect", {"rehearsal_coef": 0.3}),
    }
    named |= {
        name: dataclasses.replace(named[start], main=False, ppo=named[start].ppo | settings)
        for name, (start, settings) in own_ppo.items()
    }
    methods = {name: arm.learner for name, arm in named.items() if name in ("iwm", "reflect")} | others
    longer = {name: config for name, config in methods.items() if config and config.total_updates > bc.updates}
    matched = {f"{name}_matched": within(config, bc.updates) for name, config in longer.items()}
    more = {name: Arm(config, memory, rl=False, main=False) for name, config in {**others, **matched}.items()}
    if memory:
        more |= {f"{name}_memoryless": Arm(named[name].learner, 0, rl=False, main=False) for name in ("bc", "reflect")}
    return named | more


def within(config: LearnerConfig, updates: int) -> Any:
    """The same learner with at most ``updates`` gradient updates, all of its stages shortened alike.

    Raises UsageError where a stage would be left without any.
    """
    share = min(1.0, updates / config.total_updates)

    def shorten(part: Any) -> Any:
        changes = {}
        for one in dataclasses.fields(part):
            value = getattr(part, one.name)
            if dataclasses.is_dataclass(value):
                changes[one.name] = shorten(value)
            elif one.name in ("updates", "round_updates"):
                changes[one.name] = int(value * share)
                if not changes[one.name]:
                    raise UsageError(f"{type(config).__name__} cannot be shortened to {updates} updates.")
        return dataclasses.replace(part, **changes)

    return shorten(config)
