"""Behaviour cloning: do what the expert did (L_IL in arXiv 2510.08558).

    L = -log pi(a_i | s_i)       over the expert's pairs (s_i, a_i)

Experts see the same again and again: equal observations are one row, with the share of each action there as the target
and their number as the weight. The gradient over all rows is that over all pairs, for a fraction of the work.

Labels are smoothed, because a policy that is never quite sure escapes its own loops. Demonstrations are also looked at
in a mirror, where left is right. A policy with memory is tempted to repeat its last action, which predicts the expert's
next one well (the copycat problem, arXiv 2010.14876): hiding the past of some samples takes the temptation away. With
``held_out`` some demonstrations are only looked at to stop early: the weights that predict them best are kept. This is
the baseline of everything else here, so it is tuned as hard: see experiments/tune.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from headstart.envs.errors import DataError, UsageError
from headstart.envs.mirror import mirror_action, mirror_branches, with_mirror_image
from headstart.envs.transitions import Branches, Demos
from headstart.learners.learner import Fitted, Lessons, Log, Practice, accept, check_settings, given, silent
from headstart.models.encoders import distinct_rows
from headstart.models.history import hide_past
from headstart.models.losses import soft_cross_entropy
from headstart.models.policy import HeadstartPolicy, as_tensors
from headstart.models.training import Loss, Metrics, Stage, train

__all__ = ["BC", "BCConfig", "Beside", "imitation_targets", "with_mirrored"]


@dataclass(frozen=True)
class BCConfig:
    updates: int = 1500
    """Gradient updates."""
    batch_size: int = 64
    """Distinct observations in an update."""
    learning_rate: float = 3e-3
    """Peak learning rate: linear warm-up, then cosine to zero."""
    weight_decay: float = 0.1
    """AdamW's decoupled weight decay."""
    label_smoothing: float = 0.1
    """Probability that is spread evenly over all actions in the target."""
    mirror: bool = True
    """Learn from mirrored demonstrations too: turning left there is turning right here, as in all of MiniGrid. For
    others, and for MiniGrid in a wrapper of one's own, none is known, and this makes no difference."""
    hidden_past: float = 0.5
    """Share of samples whose past is hidden. Without memory there is none to hide."""
    hidden_actions: float = 0.0
    """Share of samples whose past actions are hidden, but not what was seen."""
    held_out: float = 0.0
    """Share of the demonstrations that are held out to stop early, at least one; 0 learns from all to the end."""

    horizon = 0
    """Steps of the branches that a fit wants: none."""

    def __post_init__(self) -> None:
        shares = dict.fromkeys(("label_smoothing", "hidden_past", "hidden_actions", "held_out"), (0, 1))
        check_settings(self, batch_size=(1, inf), **shares)
        if self.hidden_past + self.hidden_actions > 1:
            raise UsageError(
                f"BCConfig: hidden_past={self.hidden_past} and hidden_actions={self.hidden_actions} are of different "
                "samples, and more than all together. Choose shares that make 1 at most."
            )

    @property
    def total_updates(self) -> int:
        """Gradient updates that a fit makes."""
        return self.updates


def imitation_targets(policy: HeadstartPolicy, demos: Demos, mirror: bool) -> Lessons:
    """What the policy can tell apart in the expert's states: the share of each action there, and how many they are."""
    obs, action = demos.obs, demos.action
    if mirror and policy.has_mirror:
        obs, action = with_mirror_image(obs), np.concatenate([action, mirror_action(action)])
    parts = policy.read(as_tensors(obs, "cpu"))
    rows, place = distinct_rows(torch.cat([part.flatten(1) for part in parts], dim=1))
    first = np.empty(len(rows), np.int64)
    first[place.numpy()] = np.arange(len(action))  # any of several equal observations will do
    taken = np.zeros((len(rows), policy.n_actions), np.float32)
    np.add.at(taken, (place.numpy(), action), 1.0)
    count = taken.sum(1)
    seen = {name: value[first] for name, value in obs.items()}
    return Lessons(seen, taken / count[:, None], count / count.mean())


def with_mirrored(policy: HeadstartPolicy, branches: Branches, mirror: bool) -> list[Branches]:
    """The branches, and beside them their mirror image if it is wanted and there is one."""
    return [branches, mirror_branches(branches)] if mirror and policy.has_mirror else [branches]


class Beside(NamedTuple):
    """A loss of the same trunk that is added in every update."""

    draw: Callable[[], tuple[Any, ...]]
    """A batch of its own."""
    loss: Loss
    """Of that batch."""
    head: nn.Module
    """What is trained for it beside the policy."""


class BC:
    """`fit` is the whole of it. A policy is fitted in place."""

    def __init__(
        self,
        policy: HeadstartPolicy,
        config: BCConfig | None = None,
        *,
        seed: int = 0,
        log: Log = silent,
        beside: Beside | None = None,
    ):
        self.policy, self.config = given(policy, config, BCConfig)
        self.seed, self.log = seed, log
        self.beside = beside

    def loss(self, obs: dict[str, Tensor], target: Tensor, weight: Tensor) -> tuple[Tensor, Metrics]:
        """Imitation loss of a batch: observations (B, ...), the expert's actions (B, A), weights (B,)."""
        logits = self.policy.logits(obs)
        loss = soft_cross_entropy(logits, target, weight=weight, label_smoothing=self.config.label_smoothing)
        agreed = target.gather(1, logits.argmax(1, keepdim=True)).flatten()
        return loss, {"bc/loss": loss.detach(), "bc/accuracy": (agreed * weight).sum() / weight.sum()}

    def fit(self, demos: Demos, branches: Branches | None = None, practise: Practice | None = None) -> Fitted:
        """Fit trunk and actor to the demonstrations; branches and practice are not used."""
        accept(self.policy, demos, branches, practise)
        c, policy, beside = self.config, self.policy, self.beside
        generator = torch.Generator().manual_seed(self.seed)
        demos, held_out = self._split(demos)
        seen, *numbers = imitation_targets(policy, demos, c.mirror)
        obs = as_tensors(seen, policy.device)
        target, weight = (torch.as_tensor(x, device=policy.device) for x in numbers)

        def draw() -> tuple[Any, ...]:
            i = torch.randint(len(target), (c.batch_size,), generator=generator).to(policy.device)
            batch = {name: value[i] for name, value in obs.items()}
            batch = hide_past(batch, policy.n_actions, c.hidden_past, c.hidden_actions, generator)
            return batch, target[i], weight[i], *([beside.draw()] if beside else [])

        def loss(obs: dict[str, Tensor], target: Tensor, weight: Tensor, other: Any = ()) -> tuple[Tensor, Metrics]:
            imitation, metrics = self.loss(obs, target, weight)
            if beside is None:
                return imitation, metrics
            more, found = beside.loss(*other)
            return imitation + more, metrics | found

        best, kept = float("inf"), policy.weights()

        def look(metrics: dict[str, float]) -> None:
            """At the demonstrations that are held out; the weights that predict them best so far are kept."""
            nonlocal best, kept
            if held_out:
                unseen = self._nats(held_out)
                metrics["bc/held_out_loss"] = unseen
                if unseen < best:
                    best, kept = unseen, {name: value.clone() for name, value in policy.weights().items()}

        def log(update: int, metrics: dict[str, float]) -> None:
            look(metrics)
            self.log(update, metrics)

        heads = [beside.head] if beside else []
        metrics = train(
            Stage(
                "bc",
                [policy, *heads],
                [*policy.actor_parameters(), *(weight for head in heads for weight in head.parameters())],
                draw,
                loss,
                updates=c.updates,
                learning_rate=c.learning_rate,
                weight_decay=c.weight_decay,
                log=log,
            )
        )
        if held_out and c.updates:
            look(metrics)
            policy.load_weights(kept)
            metrics = {**metrics, "bc/held_out_loss": best}
        policy.warm_start = "bc"
        return Fitted(updates=c.updates, metrics=metrics)

    def _split(self, demos: Demos) -> tuple[Demos, Demos | None]:
        """Those to learn from, and those held out (None for none). Raises DataError if the former are none."""
        if not self.config.held_out:
            return demos, None
        n = len(demos.length)
        out = max(1, round(self.config.held_out * n))
        if out >= n:
            raise DataError(
                f"{demos.env_id}: held_out={self.config.held_out} holds out {out} of {n} demonstrations, and leaves "
                "none to learn from. Collect more, or hold out none."
            )
        order = np.random.default_rng([self.seed, 0x0E1D]).permutation(n)
        return demos.take(np.sort(order[out:])), demos.take(np.sort(order[:out]))

    @torch.no_grad()
    def _nats(self, demos: Demos) -> float:
        """-log pi of the expert's actions, averaged over all states, nothing smoothed or hidden."""
        p = self.policy.probabilities(demos.obs)
        return float(-np.log(p[np.arange(len(demos)), demos.action]).mean())
