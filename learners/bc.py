"""Behaviour cloning: do what the expert did (L_IL in arXiv 2510.08558).

    L = -log pi(a_i | s_i)       over the expert's pairs (s_i, a_i)

Labels are smoothed: on DoorKey-8x8 with 16 demonstrations that is worth seven points of sampled success
(experiments/results/door_key/tuning.csv), because a policy that is never quite sure escapes its own loops. This is the
baseline of everything else here, so it is tuned as hard: see experiments/tune.py.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import trange

from headstart.envs.transitions import Branches, Demos
from headstart.learners.learner import Fitted, Log, Practice, finite, silent
from headstart.models.optimizer import adamw
from headstart.models.policy import HeadstartPolicy, as_tensors

__all__ = ["BC", "BCConfig"]


@dataclass(frozen=True)
class BCConfig:
    updates: int = 1500
    """Gradient updates."""
    batch_size: int = 64
    """Expert states in an update."""
    learning_rate: float = 1e-3
    """Peak learning rate: linear warm-up, then cosine to zero."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    label_smoothing: float = 0.1
    """Probability that is spread evenly over all actions in the target."""

    @property
    def total_updates(self) -> int:
        """Gradient updates that a fit makes."""
        return self.updates


class BC:
    def __init__(self, policy: HeadstartPolicy, config: BCConfig | None = None, *, seed: int = 0, log: Log = silent):
        self.policy, self.config, self.seed, self.log = policy, config or BCConfig(), seed, log

    def loss(self, obs: dict[str, Tensor], action: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Imitation loss of a batch: observations (B, ...), expert actions (B,)."""
        logits = self.policy.logits(obs)
        loss = F.cross_entropy(logits, action, label_smoothing=self.config.label_smoothing)
        accuracy = (logits.argmax(1) == action).float().mean()
        return loss, {"bc/loss": float(loss.detach()), "bc/accuracy": float(accuracy)}

    def fit(self, demos: Demos, branches: Branches | None = None, practise: Practice | None = None) -> Fitted:
        """Fit trunk and actor to the demonstrations; branches and practice are not used."""
        c, policy = self.config, self.policy
        generator = torch.Generator().manual_seed(self.seed)
        obs = as_tensors(demos.obs, policy.device)
        action = torch.as_tensor(demos.action, device=policy.device)
        optimizer, schedule = adamw(
            policy.actor_parameters(),
            learning_rate=c.learning_rate,
            weight_decay=c.weight_decay,
            updates=c.updates,
        )
        metrics: dict[str, float] = {}
        for update in trange(c.updates, desc="imitate", unit="update", delay=2, leave=False, disable=None):
            i = torch.randint(len(action), (c.batch_size,), generator=generator).to(policy.device)
            loss, metrics = self.loss({name: value[i] for name, value in obs.items()}, action[i])
            finite(loss, "bc", update)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if (update + 1) % 50 == 0:
                self.log(update + 1, metrics)
        policy.warm_start = "bc"
        return Fitted(updates=c.updates, metrics=metrics)
