"""Implicit world modelling: predict the futures of all actions, then imitate, with the same trunk.

    L_IWM = -log p_theta(s_i^k | s_i, a_i^k)     over every executed action      (arXiv 2510.08558, Eq. 3)
    then L_IL on the expert's pairs              same parameters theta

Departures from the paper: the future is the next view, cell by cell, not text; or the next numbers, as a Gaussian of
their change, where an environment shows numbers. Six alternatives in ten change nothing, so changed cells weigh more
and transitions that change nothing are drawn as often as those that do. The head that predicts is thrown away;
"implicit" means that the policy's trunk has had to carry what it needs. What is carried needs no target of its own:
MiniGrid shows it in the agent's own cell of the view.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart.envs.errors import UsageError
from headstart.envs.simulator import Obs
from headstart.envs.transitions import Branches, Demos
from headstart.learners.bc import BC, BCConfig, Beside, with_mirrored
from headstart.learners.learner import Fitted, Log, Practice, accept, check_settings, given, silent
from headstart.models.encoders import CELL_PARTS
from headstart.models.policy import HeadstartPolicy, as_tensors
from headstart.models.training import Metrics, Stage, seeded, train
from headstart.models.world_model import world_model_head

__all__ = ["IWM", "IWMConfig"]


@dataclass(frozen=True)
class IWMConfig:
    updates: int = 1500
    """Gradient updates of the world-model stage, before imitation."""
    batch_size: int = 128
    """Executed actions in an update."""
    learning_rate: float = 1e-3
    """Peak learning rate of the world-model stage."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    changed_weight: float = 10.0
    """How much more a cell counts when the action has changed it."""
    mode: Literal["two_stage", "joint"] = "two_stage"
    """Predict, then imitate (the paper's); or both in every update of imitation, as a weighted sum."""
    joint_weight: float = 0.1
    """Weight of the world model's loss beside imitation's, in the joint mode."""
    horizon: int = 4
    """At most so many steps of each branch are learned from: the action, then the agent's own."""
    bc: BCConfig = field(default_factory=BCConfig)
    """The imitation stage that follows."""

    def __post_init__(self) -> None:
        check_settings(self, horizon=(1, inf), batch_size=(2, inf))
        if self.mode not in ("two_stage", "joint"):
            raise UsageError(f"IWMConfig: mode={self.mode!r}. Choose 'two_stage' or 'joint'.")

    @property
    def total_updates(self) -> int:
        """Gradient updates that a fit makes, imitation included."""
        return self.bc.total_updates + (self.updates if self.mode == "two_stage" else 0)


class IWM:
    """`fit` has the stages above, `loss` is the first one's. A policy is fitted in place."""

    def __init__(self, policy: HeadstartPolicy, config: IWMConfig | None = None, *, seed: int = 0, log: Log = silent):
        self.policy, self.config = given(policy, config, IWMConfig)
        self.seed, self.log = seed, log
        with seeded(seed):
            self.head = world_model_head(policy.layout, policy.features_dim, policy.n_actions).to(policy.device)

    def loss(self, obs: dict[str, Tensor], action: Tensor, future: Tensor) -> tuple[Tensor, Metrics]:
        """World-model loss of a batch: observations (B, ...), actions (B,), frames that followed (B, F)."""
        prediction = self.head(self.policy.features(obs), action)
        before = obs["frames"][:, -1]
        loss, right, changed = self.head.loss(prediction, before, future, self.config.changed_weight)
        return loss, {
            "iwm/loss": loss.detach(),
            # of the cells that changed; a model that copies the present view gets none of them right
            "iwm/changed_cell_accuracy": (right & changed).sum() / changed.sum().clamp(min=1),
            "iwm/view_accuracy": right.all(1).float().mean(),
            "iwm/view_accuracy_of_copying": (~changed).all(1).float().mean(),
        }

    def fit(self, demos: Demos, branches: Branches | None = None, practise: Practice | None = None) -> Fitted:
        """Predict the branches and imitate the demonstrations, one after the other or together."""
        if branches is None:
            raise UsageError("IWM learns from branches: pass fit(demos, branches), from envs.branch(demos).")
        accept(self.policy, demos, branches, practise)
        c = self.config
        if c.mode == "joint":
            metrics, before, beside = {}, 0, self._beside(branches)
        else:
            metrics, before, beside = self.predict(branches), c.updates, None
        log = lambda update, found: self.log(before + update, found)  # noqa: E731
        imitation = BC(self.policy, c.bc, seed=self.seed, log=log, beside=beside).fit(demos)
        self.policy.warm_start = "iwm"
        return Fitted(updates=c.total_updates, metrics={**metrics, **imitation.metrics})

    @torch.no_grad()
    def foresee(self, obs: Obs, action: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The frames (N, 50) that are expected after actions (N,) in N states of a grid; the direction is left out."""
        if not self.policy.layout.grid:
            raise UsageError("Only views of a grid can be foreseen as frames; this environment shows numbers.")
        on = torch.as_tensor(action, device=self.policy.device)
        parts = self.head(self.policy.features(as_tensors(obs, self.policy.device)), on)
        kind, color, state = (part.argmax(-1) for part in parts)
        cells = kind * CELL_PARTS[1] * CELL_PARTS[2] + color * CELL_PARTS[2] + state
        return np.pad(cells.cpu().numpy().astype(np.uint8), ((0, 0), (0, 1)))

    def predict(self, branches: Branches) -> dict[str, float]:
        """The first stage alone: trunk and head learn what follows, for whatever comes after it."""
        c, policy = self.config, self.policy
        return train(
            Stage(
                "iwm",
                [policy, self.head],
                [*policy.features_extractor.parameters(), *self.head.parameters()],
                self._transitions(branches),
                self.loss,
                updates=c.updates,
                learning_rate=c.learning_rate,
                weight_decay=c.weight_decay,
                log=self.log,
            )
        )

    def _beside(self, branches: Branches) -> Beside:
        """The world model's loss, weighted, for imitation to add to its own."""

        def weighted(*batch: Any) -> tuple[Tensor, Metrics]:
            loss, metrics = self.loss(*batch)
            return self.config.joint_weight * loss, metrics

        return Beside(self._transitions(branches), weighted, self.head)

    def _transitions(self, branches: Branches) -> Callable[[], tuple[dict[str, Tensor], Tensor, Tensor]]:
        """Draws batches of executed actions: observations (B, ...), actions (B,), frames that followed (B, F).

        Those that change something and those that do not are drawn equally often.
        """
        c, policy = self.config, self.policy
        generator = torch.Generator().manual_seed(self.seed)
        parts = [part.transitions(c.horizon) for part in with_mirrored(policy, branches, c.bc.mirror)]
        before = {name: np.concatenate([part[0][name] for part in parts]) for name in parts[0][0]}
        actions, futures = np.concatenate([part[1] for part in parts]), np.concatenate([part[2] for part in parts])
        changes = policy.layout.changed(before["frames"][:, -1], futures).any(1)
        pools = [torch.as_tensor(np.flatnonzero(pool)) for pool in (changes, ~changes) if pool.any()]
        obs = as_tensors(before, policy.device)
        action, future = (torch.as_tensor(x, device=policy.device) for x in (actions, futures))

        def draw() -> tuple[dict[str, Tensor], Tensor, Tensor]:
            share = c.batch_size // len(pools)
            drawn = [pool[torch.randint(len(pool), (share,), generator=generator)] for pool in pools]
            i = torch.cat(drawn).to(policy.device)
            return {name: value[i] for name, value in obs.items()}, action[i], future[i]

        return draw
