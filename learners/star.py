"""STaR's control: rationales that nobody has checked against what really happens (after arXiv 2203.14465).

    1. L_IL
    2. Invent.   In every expert state s_i the policy acts, a ~ pi(a | s_i), and makes up its reasons: an effect for
                 each action, c ~ p(c | s_i) from its own rationale head, and margins from its own likelihoods. It
                 keeps them where a is what the expert did.
    3. Learn.    L = -log pi(a_i | s_i)  +  w [c, a kept] (-log p(c | s_i) + Huber(margins))
                 Then invent again.

Head, loss, weight and classes are those of a rationale that is grounded in executed futures (models/rationale.py), so
the difference between the two is what grounding is worth. No future is looked at.

As in STaR: rationales are the model's own, those that came with the right answer are kept, the model is trained on
them, and the loop is repeated. Not as in STaR: there is no language prior, so the first rationales are noise, and
filtering by the action cannot make them true; the action is not computed from the rationale, both are read from the
same features, as in reflection; training goes on from the weights so far instead of from the first ones; and states
whose action was wrong keep the expert's action, without a rationale, where STaR makes one up from a hint.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from headstart.envs.effects import EFFECTS
from headstart.envs.transitions import Branches, Demos
from headstart.learners.bc import BC, BCConfig, imitation_targets
from headstart.learners.learner import Fitted, Log, Practice, accept, check_settings, given, silent
from headstart.models.history import hide_past
from headstart.models.losses import soft_cross_entropy
from headstart.models.policy import HeadstartPolicy, as_tensors
from headstart.models.rationale import RationaleHead, margins
from headstart.models.training import Metrics, Stage, seeded, train

__all__ = ["Star", "StarConfig"]


@dataclass(frozen=True)
class StarConfig:
    bc: BCConfig = field(default_factory=BCConfig)
    """The imitation stage that comes first, and how all later ones look at demonstrations."""
    rounds: int = 2
    """How often rationales are invented and learned."""
    updates: int = 500
    """Gradient updates of each round."""
    rationale_weight: float = 1.0
    """Weight of the rationale beside the action."""

    horizon = 0
    """Steps of the branches that a fit wants: none."""

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def total_updates(self) -> int:
        """Gradient updates that a fit makes, imitation included."""
        return self.bc.total_updates + self.rounds * self.updates


class Star:
    """`fit` has the stages above. A policy is fitted in place."""

    def __init__(self, policy: HeadstartPolicy, config: StarConfig | None = None, *, seed: int = 0, log: Log = silent):
        self.policy, self.config = given(policy, config, StarConfig)
        self.seed, self.log = seed, log
        with seeded(seed):
            self.head = RationaleHead(policy.features_dim, policy.n_actions, len(EFFECTS)).to(policy.device)

    def loss(
        self, obs: dict[str, Tensor], target: Tensor, weight: Tensor, effect: Tensor, margin: Tensor, kept: Tensor
    ) -> tuple[Tensor, Metrics]:
        """Action and rationale: obs (B, ...), target (B, A), weight (B,), effect and margin (B, A), kept (B,)."""
        features = self.policy.features(obs)
        logits = self.policy.logits_of(features)
        imitation = soft_cross_entropy(logits, target, weight=weight, label_smoothing=self.config.bc.label_smoothing)
        rationale, metrics = self.head.loss(features, effect, margin, weight * kept)
        loss = imitation + self.config.rationale_weight * rationale
        return loss, {"bc/loss": imitation.detach(), "star/kept": kept.float().mean(), **metrics}

    @torch.no_grad()
    def invent(
        self, obs: dict[str, Tensor], target: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rationales for observations (N, ...): effects (N, A), margins (N, A), and which (N,) came with an action that
        an expert took there (target (N, A))."""
        p = torch.softmax(self.policy.logits(obs), dim=1).cpu()
        action = torch.multinomial(p, 1, generator=generator)
        effects = torch.softmax(self.head(self.policy.features(obs))[0], dim=2).cpu()  # (N, A, E)
        effect = torch.multinomial(effects.flatten(0, 1), 1, generator=generator).view(p.shape)
        kept = target.cpu().gather(1, action).flatten() > 0
        margin = torch.as_tensor(margins(p.numpy()))
        return effect.to(target.device), margin.to(target.device), kept.to(target.device)

    def fit(self, demos: Demos, branches: Branches | None = None, practise: Practice | None = None) -> Fitted:
        """Imitate, then invent and learn; branches and practice are not used."""
        accept(self.policy, demos, branches, practise)
        c, policy = self.config, self.policy
        imitation = BC(policy, c.bc, seed=self.seed, log=self.log).fit(demos)
        generator = torch.Generator().manual_seed(self.seed)
        rows, share, count = imitation_targets(policy, demos, c.bc.mirror)
        obs = as_tensors(rows, policy.device)
        target, weight = (torch.as_tensor(x, device=policy.device) for x in (share, count))
        metrics, done = imitation.metrics, c.bc.total_updates
        for _ in range(c.rounds):
            effect, margin, kept = self.invent(obs, target, generator)

            def draw(lessons: tuple[Tensor, ...] = (target, weight, effect, margin, kept)) -> tuple[Any, ...]:
                i = torch.randint(len(target), (c.bc.batch_size,), generator=generator).to(policy.device)
                batch = {name: value[i] for name, value in obs.items()}
                batch = hide_past(batch, policy.n_actions, c.bc.hidden_past, c.bc.hidden_actions, generator)
                return batch, *(lesson[i] for lesson in lessons)

            metrics = train(
                Stage(
                    "star",
                    [policy, self.head],
                    [*policy.actor_parameters(), *self.head.parameters()],
                    draw,
                    self.loss,
                    updates=c.updates,
                    learning_rate=c.bc.learning_rate,
                    weight_decay=c.bc.weight_decay,
                    log=lambda update, found, done=done: self.log(done + update, found),
                )
            )
            done += c.updates
        policy.warm_start = "star"
        return Fitted(updates=done, metrics=metrics)
