"""Both: predict the futures of all actions, then reflect on them, with the same trunk.

    L_IWM on the branches        as in iwm.py
    then reflection              as in reflection.py, from that trunk on; its judges have trunks of their own

Reflection imitates the expert itself, so iwm's imitation stage is left out.
"""

from dataclasses import dataclass, field, replace

from headstart.envs.errors import UsageError
from headstart.envs.transitions import Branches, Demos
from headstart.learners.iwm import IWM, IWMConfig
from headstart.learners.learner import Fitted, Lessons, Log, Practice, check_settings, given, silent
from headstart.learners.reflection import Reflection, ReflectionConfig
from headstart.models.policy import HeadstartPolicy

__all__ = ["IWMReflect", "IWMReflectConfig"]


@dataclass(frozen=True)
class IWMReflectConfig:
    iwm: IWMConfig = field(default_factory=IWMConfig)
    """The world-model stage. Of its ``bc`` only ``mirror`` is used."""
    reflect: ReflectionConfig = field(default_factory=ReflectionConfig)
    """Everything after it."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.iwm.mode != "two_stage":
            raise UsageError("IWMReflect predicts first and reflects then: leave IWMConfig.mode at 'two_stage'.")

    @property
    def horizon(self) -> int:
        """Steps of the branches that a fit wants."""
        return max(self.iwm.horizon, self.reflect.horizon)

    @property
    def total_updates(self) -> int:
        """Gradient updates that a fit makes, those of the judges included."""
        return self.iwm.updates + self.reflect.total_updates


class IWMReflect:
    """`fit` has both. A policy is fitted in place."""

    def __init__(
        self, policy: HeadstartPolicy, config: IWMReflectConfig | None = None, *, seed: int = 0, log: Log = silent
    ):
        self.policy, self.config = policy, c = given(policy, config, IWMReflectConfig)
        self.iwm = IWM(policy, c.iwm, seed=seed, log=log)
        self.reflection = Reflection(policy, c.reflect, seed=seed, log=lambda u, m: log(c.iwm.updates + u, m))

    @property
    def lessons(self) -> Lessons | None:
        """Reflection's: own states and their labels."""
        return self.reflection.lessons

    def fit(self, demos: Demos, branches: Branches | None = None, practise: Practice | None = None) -> Fitted:
        """All stages. ``branches`` may be longer than a step: the world model learns from all of it."""
        if branches is None or practise is None:
            raise UsageError("IWMReflect needs fit(demos, branches, practise): branch(demos), and an environment.")
        self.reflection.accepted(demos, branches, practise)  # before the world model has learned
        predicted = self.iwm.predict(branches)
        reflected = self.reflection.fit(demos, branches, practise)
        self.policy.warm_start = "iwm+reflect"
        updates = self.config.iwm.updates + reflected.updates
        return replace(reflected, updates=updates, metrics=predicted | reflected.metrics)
