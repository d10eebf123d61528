"""Inverse dynamics: say which action has caused a change, then imitate, with the same trunk.

    L = -log sum_{k: s^k = s'} p_theta(a^k | s, s')     over every action tried in a state and what it led to
    then L_IL on the expert's pairs                      same parameters theta

In arXiv 2305.16985 this is the one pretraining that beats none: to name the action, features must hold what the agent
can influence, and need not hold anything else. With ``horizon`` H above one, s' is what is seen H steps later, after
H - 1 more of the agent's own actions, and the first of these actions is asked for.

Departures from the paper: all actions are tried in the same state, so it is known which of them lead to the same s'.
They share the credit, because nobody could tell them apart. (Beyond one step, chance decides whether two branches meet,
and the credit is less than it should be.) Six alternatives in ten change nothing, so pairs that do are drawn as often
as those that do not. s' is read without its past, which holds the answer: the last action.
"""

from dataclasses import dataclass, field
from math import inf

import torch
from torch import Tensor, nn

from headstart.envs.errors import UsageError
from headstart.envs.transitions import Branches, Demos
from headstart.learners.bc import BC, BCConfig, with_mirrored
from headstart.learners.learner import Fitted, Log, Practice, accept, check_settings, given, silent
from headstart.models.losses import contrast_loss
from headstart.models.policy import HeadstartPolicy, as_tensors
from headstart.models.training import Metrics, Stage, seeded, train

__all__ = ["Inverse", "InverseConfig"]


@dataclass(frozen=True)
class InverseConfig:
    horizon: int = 1
    """Steps between the two views; branches must be as long. The first action of these steps is asked for."""
    updates: int = 1500
    """Gradient updates of the inverse stage, before imitation."""
    batch_size: int = 128
    """Pairs of views in an update."""
    learning_rate: float = 1e-3
    """Peak learning rate of the inverse stage."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    bc: BCConfig = field(default_factory=BCConfig)
    """The imitation stage that follows."""

    def __post_init__(self) -> None:
        check_settings(self, horizon=(1, inf), batch_size=(2, inf))

    @property
    def total_updates(self) -> int:
        """Gradient updates that a fit makes, imitation included."""
        return self.updates + self.bc.total_updates


class Inverse:
    """`fit` has the stages above, `loss` is the first one's. A policy is fitted in place."""

    def __init__(
        self, policy: HeadstartPolicy, config: InverseConfig | None = None, *, seed: int = 0, log: Log = silent
    ):
        self.policy, self.config = given(policy, config, InverseConfig)
        self.seed, self.log = seed, log
        with seeded(seed):
            self.head = nn.Sequential(
                nn.Linear(2 * policy.features_dim, 256), nn.ReLU(), nn.Linear(256, policy.n_actions)
            ).to(policy.device)

    def alone(self, frame: Tensor, mission: Tensor) -> dict[str, Tensor]:
        """Frames (B, F) and missions (B, L) as observations without a past: what is seen, and not how it came about."""
        history = self.policy.observation_space["actions"].shape[0]  # type: ignore[index]
        frames = frame.new_zeros((len(frame), history + 1, frame.shape[1]))
        frames[:, -1] = frame
        return {
            "frames": frames,
            "actions": frame.new_full((len(frame), history), self.policy.n_actions),
            "mission": mission,
        }

    def loss(self, obs: dict[str, Tensor], later: Tensor, credit: Tensor) -> tuple[Tensor, Metrics]:
        """Inverse loss of a batch: observations (B, ...), later frames (B, F), actions that lead there (B, A) bool."""
        after = self.alone(later, obs["mission"])
        features = self.policy.features({name: torch.cat([value, after[name]]) for name, value in obs.items()})
        logits = self.head(torch.cat(features.chunk(2), dim=1))
        loss = contrast_loss(logits, credit)
        right = credit.gather(1, logits.argmax(1, keepdim=True)).flatten()
        telling = credit.sum(1) == 1
        return loss, {
            "inverse/loss": loss.detach(),
            "inverse/accuracy": right.float().mean(),
            # where only one action leads there; among the others, chance is often right
            "inverse/accuracy_of_telling": (right & telling).sum() / telling.sum().clamp(min=1),
        }

    def fit(self, demos: Demos, branches: Branches | None = None, practise: Practice | None = None) -> Fitted:
        """Two stages: name the first actions of branches, then imitate the demonstrations."""
        if branches is None:
            raise UsageError("Inverse learns from branches: pass fit(demos, branches), from envs.branch(demos).")
        accept(self.policy, demos, branches, practise)
        if not branches.tried.all():
            raise UsageError("Inverse compares all actions, but some were not tried: pass branch(demos) without k.")
        c, policy = self.config, self.policy
        if c.horizon > branches.action.shape[2]:
            raise UsageError(
                f"Inverse is to look {c.horizon} steps ahead, but the branches are {branches.action.shape[2]} long: "
                f"pass envs.branch(demos, horizon={c.horizon}), or change InverseConfig.horizon."
            )
        generator = torch.Generator().manual_seed(self.seed)
        seen = Branches.join(with_mirrored(policy, branches, c.bc.mirror))
        obs = as_tensors(seen.obs, policy.device)
        future = torch.as_tensor(seen.future[:, :, c.horizon - 1], device=policy.device)
        over = seen.ended[:, :, : c.horizon - 1].any(2)
        alive = torch.as_tensor(~over, device=policy.device)  # (N, A): whether the last of these steps was taken
        credit, changes = self._credit(obs, future)
        credit &= alive.unsqueeze(1)
        pools = [pool.nonzero() for pool in (alive & changes, alive & ~changes) if pool.any()]  # (M, 2): state, action

        def draw() -> tuple[dict[str, Tensor], Tensor, Tensor]:
            share = c.batch_size // len(pools)
            drawn = [pool[torch.randint(len(pool), (share,), generator=generator).to(pool.device)] for pool in pools]
            i, k = torch.cat(drawn).unbind(1)
            return {name: value[i] for name, value in obs.items()}, future[i, k], credit[i, k]

        metrics = train(
            Stage(
                "inverse",
                [policy, self.head],
                [*policy.features_extractor.parameters(), *self.head.parameters()],
                draw,
                self.loss,
                updates=c.updates,
                learning_rate=c.learning_rate,
                weight_decay=c.weight_decay,
                log=self.log,
            )
        )
        imitation = BC(policy, c.bc, seed=self.seed, log=lambda u, m: self.log(c.updates + u, m)).fit(demos)
        policy.warm_start = "inverse"
        return Fitted(updates=c.updates + imitation.updates, metrics={**metrics, **imitation.metrics})

    def _credit(self, obs: dict[str, Tensor], future: Tensor) -> tuple[Tensor, Tensor]:
        """Which actions lead where each action leads (N, A, A), and which change something (N, A), to the policy's eye.

        What the policy does not read, such as the compass, tells no two futures apart.
        """
        n, a = future.shape[:2]
        later = self.alone(future.flatten(0, 1), obs["mission"].repeat_interleave(a, dim=0))
        view = self.policy.read(later)[0][:, -1].reshape(n, a, -1)
        present = self.policy.read(obs)[0][:, -1].unsqueeze(1)
        return (view.unsqueeze(2) == view.unsqueeze(1)).all(-1), (view != present).any(-1)
