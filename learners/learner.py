"""What a learner is: something that fits a policy to demonstrations and futures, without reward."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from headstart.envs.errors import Diverged
from headstart.envs.simulator import Simulator
from headstart.envs.transitions import Branches, Demos

__all__ = ["Fitted", "Learner", "Log", "Practice", "finite", "silent"]

Log = Callable[[int, dict[str, float]], None]
"""Called with the number of updates so far and the metrics of the last one."""


def silent(update: int, metrics: dict[str, float]) -> None:
    """Keep no metrics."""


@dataclass(frozen=True)
class Fitted:
    """What a fit has cost: gradient updates of all networks, and environment steps it took by itself."""

    updates: int
    env_steps: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


class Practice(Protocol):
    """Where an agent may act on its own: any environment that can start ``n`` fresh episodes and be forked."""

    def fresh(self, n: int, rng: np.random.Generator) -> Simulator: ...


class Learner(Protocol):
    """Fits a policy in place. A learner is made as ``Learner(policy, config, seed=0, log=log)``."""

    def fit(self, demos: Demos, branches: Branches | None = None, practise: Practice | None = None) -> Fitted: ...


def finite(loss: torch.Tensor, learner: str, update: int) -> float:
    """The loss as a number. Raises Diverged at the update where it stops being one."""
    value = float(loss.detach())
    if not np.isfinite(value):
        raise Diverged(
            f"{learner}: the loss is {value} at update {update}. Lower the learning rate, "
            "and check the observations of the demonstrations for values that are not finite."
        )
    return value
