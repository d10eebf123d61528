"""Preference: make the expert's action more likely than one's own that led elsewhere (DPO, arXiv 2305.18290).

    1. L_IL, which gives the reference        pi_ref = pi
    2. L = -log sigmoid(beta [log pi(a_i | s_i)   - log pi_ref(a_i | s_i)]
                      - beta [log pi(a_i^k | s_i) - log pi_ref(a_i^k | s_i)])

over all expert states s_i and all of one's own actions a_i^k there whose future differs from the expert's. An action
that leads where the expert's leads is no worse, and is not pushed down. The pairs are those that reflection's judge
learns from; here they teach the policy at the expert's states and nowhere else, and no future is looked at but to
find the pairs.

DPO's preferences come from people who compare answers; here the expert is taken to prefer what it did. Only the
difference of two likelihoods is trained, so both may fall: "preference/expert_gain" tells.
"""

import copy
from dataclasses import dataclass, field
from math import inf

import torch
from torch import Tensor

from headstart.envs.errors import UsageError
from headstart.envs.transitions import Branches, Demos
from headstart.learners.bc import BC, BCConfig, with_mirrored
from headstart.learners.learner import Fitted, Log, Practice, accept, check_settings, given, silent
from headstart.models.history import hide_past
from headstart.models.losses import preference_loss, same_future_credit
from headstart.models.policy import HeadstartPolicy, as_tensors
from headstart.models.training import Metrics, Stage, train

__all__ = ["Preference", "PreferenceConfig"]


@dataclass(frozen=True)
class PreferenceConfig:
    updates: int = 500
    """Gradient updates of the preference stage, after imitation."""
    batch_size: int = 64
    """Pairs in an update."""
    learning_rate: float = 3e-4
    """Peak learning rate of the preference stage."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay: the reference is what holds the policy."""
    beta: float = 0.1
    """How strongly the policy is held at the reference: the smaller, the further apart a pair is pushed."""
    bc: BCConfig = field(default_factory=BCConfig)
    """The imitation stage that comes first."""

    horizon = 1
    """Steps of the branches that a fit wants."""

    def __post_init__(self) -> None:
        check_settings(self, batch_size=(1, inf))

    @property
    def total_updates(self) -> int:
        """Gradient updates that a fit makes, imitation included."""
        return self.updates + self.bc.total_updates


class Preference:
    """`fit` has both stages, `loss` is the second one's. A policy is fitted in place."""

    def __init__(
        self, policy: HeadstartPolicy, config: PreferenceConfig | None = None, *, seed: int = 0, log: Log = silent
    ):
        self.policy, self.config = given(policy, config, PreferenceConfig)
        self.seed, self.log = seed, log

    def loss(
        self, obs: dict[str, Tensor], reference: Tensor, chosen: Tensor, rejected: Tensor
    ) -> tuple[Tensor, Metrics]:
        """Preference loss: observations (B, ...), the reference's logits (B, A), the expert's and own actions (B,)."""
        gain = torch.log_softmax(self.policy.logits(obs), dim=1) - torch.log_softmax(reference, dim=1)
        up, down = (gain.gather(1, action.unsqueeze(1)).flatten() for action in (chosen, rejected))
        loss = preference_loss(up, down, self.config.beta)
        return loss, {
            "preference/loss": loss.detach(),
            "preference/accuracy": (up > down).float().mean(),
            "preference/expert_gain": up.detach().mean(),  # nats; below zero it has become less likely
            "preference/own_gain": down.detach().mean(),
        }

    def fit(self, demos: Demos, branches: Branches | None = None, practise: Practice | None = None) -> Fitted:
        """Two stages: imitate, then prefer the expert's actions to one's own with another future."""
        if branches is None or (branches.expert_action < 0).any():
            raise UsageError(
                "Preference compares the expert's actions with one's own in the expert's states: pass "
                "fit(demos, branches), from envs.branch(demos)."
            )
        accept(self.policy, demos, branches, practise)
        if not branches.tried.all():
            raise UsageError("Preference compares all actions, but some were not tried: pass branch(demos) without k.")
        c, policy = self.config, self.policy
        generator = torch.Generator().manual_seed(self.seed)
        seen = Branches.join(with_mirrored(policy, branches, c.bc.mirror))
        obs = as_tensors(seen.obs, policy.device)
        expert = torch.as_tensor(seen.expert_action, device=policy.device)
        future = torch.as_tensor(seen.future[:, :, 0], device=policy.device)
        pairs = (~same_future_credit(future, expert)).nonzero()  # (M, 2): state, own action
        if not len(pairs):
            raise UsageError("Preference has nothing to compare: in no state does an action lead elsewhere.")
        imitation = BC(policy, c.bc, seed=self.seed, log=self.log).fit(demos)
        reference = copy.deepcopy(policy).requires_grad_(False)

        def draw() -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
            i, k = pairs[torch.randint(len(pairs), (c.batch_size,), generator=generator).to(pairs.device)].unbind(1)
            batch = {name: value[i] for name, value in obs.items()}
            batch = hide_past(batch, policy.n_actions, c.bc.hidden_past, c.bc.hidden_actions, generator)
            return batch, reference.logits(batch), expert[i], k

        metrics = train(
            Stage(
                "preference",
                [policy],
                [*policy.actor_parameters()],
                draw,
                self.loss,
                updates=c.updates,
                learning_rate=c.learning_rate,
                weight_decay=c.weight_decay,
                log=lambda update, found: self.log(c.bc.total_updates + update, found),
            )
        )
        policy.warm_start = "preference"
        return Fitted(updates=imitation.updates + c.updates, metrics={**imitation.metrics, **metrics})
