"""The rationale: before acting, a policy says what each of its actions will do and how much the judge will like that.

    head = RationaleHead(policy.features_dim, n_actions, n_effects=len(EFFECTS))
    loss, metrics = head.loss(policy.features(obs), effect, margins(label))     # added to the policy's own loss

It is the c of the (c, a) in arXiv 2510.08558, Eq. 4, in classes and numbers instead of words (envs/effects.py makes
classes of executed futures and English of predictions). It reads the features that the actor reads and nothing else:
futures are targets in training, and never inputs.

Legend: B states in a batch, N states, A actions, E classes of effects, D width. Class 0 is "nothing".
"""

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor, nn

from headstart.models.losses import rationale_loss
from headstart.models.training import Metrics

__all__ = ["RationaleHead", "margins", "shuffled"]

FLOOR = 1e-4  # of a probability in a margin: how unlikely hopeless actions are is noise


def margins(label: NDArray[np.floating]) -> NDArray[np.float32]:
    """How much more a judge likes each action than the average one: log label (N, A), in nats, with mean zero.

    The difference between two of them says by how much one action is preferred over the other.
    """
    log_p = np.log(np.maximum(label, FLOOR))
    return (log_p - log_p.mean(1, keepdims=True)).astype(np.float32)


def shuffled(
    effect: NDArray[np.uint8], margin: NDArray[np.float32], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The control: rationales (N, A) of other states, each state's kept whole. Equally much to learn, nothing true."""
    order = rng.permutation(len(effect))
    return effect[order], margin[order]


class RationaleHead(nn.Module):
    """Features (B, D) -> logits (B, A, E) of what each action will do, margins (B, A) of how it will be judged."""

    def __init__(self, width: int, n_actions: int, n_effects: int, hidden: int = 128):
        super().__init__()
        self.n_actions = n_actions
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, n_actions * (n_effects + 1)))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        flat = rearrange(self.layers(features), "b (a e) -> b a e", a=self.n_actions)
        margin = flat[..., -1]
        return flat[..., :-1], margin - margin.mean(1, keepdim=True)

    def loss(
        self, features: Tensor, effect: Tensor, judged: Tensor, weight: Tensor | None = None
    ) -> tuple[Tensor, Metrics]:
        """Loss and accuracies for features (B, D), true effects (B, A), judged margins (B, A), weights (B,)."""
        logits, margin = self(features)
        loss = rationale_loss(logits, margin, effect, judged, weight=weight)
        right, changes = logits.argmax(2) == effect, effect != 0
        best = judged.gather(1, margin.argmax(1, keepdim=True)).flatten()
        return loss, {
            "rationale/loss": loss.detach(),
            "rationale/effect_accuracy": right.float().mean(),
            # of the actions that change something; who always says "nothing" gets none of them right
            "rationale/change_accuracy": (right & changes).sum() / changes.sum().clamp(min=1),
            "rationale/share_of_nothing": (~changes).float().mean(),
            "rationale/preferred_accuracy": (best == judged.max(1).values).float().mean(),
            "rationale/margin_error": (margin.detach() - judged).abs().mean(),
        }

    @torch.no_grad()
    def predict(self, features: Tensor) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The likeliest effect (B, A) and the margin (B, A) of every action, for people to read (effects.explain)."""
        logits, margin = self(features)
        return logits.argmax(2).cpu().numpy(), margin.cpu().numpy()
