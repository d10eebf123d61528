"""Controls of reflection: the same states, updates and schedule, and somebody else in the judge's place.

    L = -log pi(a_i | h_i)  -  w' sum_a q(a | h) log pi(a | h)      as in reflection.py, with another q

    SelfLabel     q = pi_0, what imitation alone would do: what are own states and updates worth without a judge?
    RandomJudge   q = as in reflection, of a judge that has learned nothing: is any preference among futures enough?
    Noop          q = pi_0 without the actions that change nothing: is it only that waste is avoided?
    Dagger        q = the expert's own action: what would be reached if the expert were asked (arXiv 1011.0686)?

Dagger is no rival: it pays for every answer. It is an upper reference where the expert's answers can be known from what
the policy sees; where it answers by what it remembers, it is none (experiments/LOG.md). It asks in the states that
reflection would judge, in its own episodes. Where the expert has no answer, a state is left out and counted.

Whatever is not said here is inherited: imitation first, how states are reached, how many, and how the policy is fitted
to them. No judge is trained, so a fit makes fewer updates in all than reflection's, and as many of the policy.
"""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from headstart.envs import collect
from headstart.envs.advice import advice
from headstart.envs.effects import NOTHING, effects
from headstart.envs.simulator import Simulator
from headstart.envs.transitions import Branches, Demos
from headstart.learners.learner import Fitted, Log, Practice, check_settings, given, silent
from headstart.learners.reflection import Reflection, ReflectionConfig
from headstart.models.policy import HeadstartPolicy

__all__ = [
    "Control",
    "ControlConfig",
    "Dagger",
    "DaggerConfig",
    "Noop",
    "NoopConfig",
    "RandomJudge",
    "RandomJudgeConfig",
    "SelfLabel",
    "SelfLabelConfig",
]


@dataclass(frozen=True)
class ControlConfig:
    reflect: ReflectionConfig = field(default_factory=ReflectionConfig)
    """What it is a control of. Of the judge's settings only those that read it can matter."""

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def horizon(self) -> int:
        """Steps of the branches that a fit wants."""
        return self.reflect.horizon

    @property
    def total_updates(self) -> int:
        """Gradient updates that a fit makes: all but those of judges."""
        return self.reflect.policy_updates


class Control(Reflection):
    """Reflection without its judges; subclasses label in another way."""

    name: str

    def __init__(
        self, policy: HeadstartPolicy, config: ControlConfig | None = None, *, seed: int = 0, log: Log = silent
    ):
        policy, control = given(policy, config, ControlConfig)
        super().__init__(policy, control.reflect, seed=seed, log=log)

    def fit_judges(self, branches: Branches, outcomes: Branches | None = None) -> dict[str, float]:
        """Nobody learns to judge."""
        return {}

    def imitation(self, branches: Branches) -> NDArray[np.float64]:
        """pi_0 (N, A)."""
        assert self.imitator is not None, "imitation comes first"
        return self.imitator.probabilities(branches.obs)

    def fit(self, demos: Demos, branches: Branches | None = None, practise: Practice | None = None) -> Fitted:
        """Reflection's stages, without the second."""
        fitted = super().fit(demos, branches, practise)
        self.policy.warm_start = self.name
        return fitted


# ---- the policy itself ----
@dataclass(frozen=True)
class SelfLabelConfig(ControlConfig):
    """Nothing more to decide."""


class SelfLabel(Control):
    name = "self_label"

    def label(self, branches: Branches, states: Simulator) -> NDArray[np.float32]:
        return self.imitation(branches).astype(np.float32)


# ---- a judge that knows nothing ----
@dataclass(frozen=True)
class RandomJudgeConfig(ControlConfig):
    spread: float = 1.5
    """Standard deviation of its scores within a state, in nats: untrained scores hardly differ. A judge that has
    learned labels smoothed by 0.1 prefers one future in seven by log(0.914 / 0.014), which is this much."""


class RandomJudge(Control):
    name = "random_judge"

    def __init__(
        self, policy: HeadstartPolicy, config: RandomJudgeConfig | None = None, *, seed: int = 0, log: Log = silent
    ):
        policy, config = given(policy, config, RandomJudgeConfig)
        super().__init__(policy, config, seed=seed, log=log)
        self.spread, self.scale = config.spread, 0.0

    def judgement(self, branches: Branches) -> NDArray[np.float32]:
        """The judges' scores, on a scale that is set once, on the states that are judged first."""
        score = np.where(branches.tried, super().judgement(branches), 0.0)
        mean = np.mean(score, axis=1, keepdims=True, where=branches.tried)
        self.scale = self.scale or self.spread / max(float(np.std((score - mean)[branches.tried])), 1e-6)
        return np.where(branches.tried, self.scale * (score - mean), -np.inf)


# ---- everything but waste ----
@dataclass(frozen=True)
class NoopConfig(ControlConfig):
    """Nothing more to decide."""


class Noop(Control):
    name = "noop"

    def label(self, branches: Branches, states: Simulator) -> NDArray[np.float32]:
        """Imitation among the actions that change what is seen; all of it where there is none.

        Where luck decides, an action counts by how often it changes something, with the luck that judges would see.
        """
        changes = np.mean([self._changes(one) for one in self.drawn(branches, states)], axis=0)  # (N, A)
        imitated, tried = self.imitation(branches), branches.tried
        p = imitated * tried * np.where(changes.any(1, keepdims=True), changes, 1.0)
        p *= (imitated * tried).sum(1, keepdims=True) / p.sum(1, keepdims=True)  # the others keep what they had
        return np.where(tried, p, imitated).astype(np.float32)

    def _changes(self, branches: Branches) -> NDArray[np.bool_]:
        effect = effects(branches.frame, branches.future[:, :, 0], layout=self.policy.layout)
        return branches.tried & (effect != NOTHING)


# ---- the expert ----
@dataclass(frozen=True)
class DaggerConfig(ControlConfig):
    """Nothing more to decide."""


class Dagger(Control):
    name = "dagger"
    queries = unanswered = 0  # of the last fit

    def label(self, branches: Branches, states: Simulator) -> NDArray[np.float32]:
        """The expert's action, as smooth and then as sharp as reflection's labels are; zero where it has no answer."""
        action = advice(states)
        self.queries += len(action)
        self.unanswered += int((action < 0).sum())
        n_actions, smoothing = self.policy.n_actions, self.config.bc.label_smoothing
        label = (1 - smoothing) * np.eye(n_actions)[action] + smoothing / n_actions
        label = label ** (1 / self.config.judge.temperature)
        label = label / label.sum(1, keepdims=True)
        return np.where(action[:, None] >= 0, label, 0.0).astype(np.float32)

    def fit_policy(self, demos: Demos, own: list[Branches], labels: list[NDArray], updates: int) -> dict[str, float]:
        """As in reflection, on the states that were answered."""
        answered = [np.flatnonzero(label.sum(1) > 0) for label in labels]
        kept = [states.take(where) for states, where in zip(own, answered, strict=True)]
        labels = [label[where] for label, where in zip(labels, answered, strict=True)]
        return super().fit_policy(demos, kept, labels, updates)

    def fit(self, demos: Demos, branches: Branches | None = None, practise: Practice | None = None) -> Fitted:
        """As any control; its metrics say how many answers it has paid for."""
        self.accepted(demos, branches, practise)
        advice(collect.replay(demos).fork(np.zeros(0, np.int64)))  # is there an expert who can be asked?
        self.queries = self.unanswered = 0
        fitted = super().fit(demos, branches, practise)
        asked = {"dagger/queries": float(self.queries), "dagger/unanswered": float(self.unanswered)}
        return replace(fitted, metrics=fitted.metrics | asked)
