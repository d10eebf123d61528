"""Heads that predict futures from the features that the policy reads.

Each kind of frame has one: `world_model_head` chooses. Both say what they got right beside what has changed, because
most of a frame stays as it is, and a model that copies the present looks good otherwise.

Legend: B states in a batch, D width, F bytes of a frame, C parts of a frame that are predicted: the 49 cells of a view,
or numbers and choices.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from headstart.envs.spaces import CHANGED, Layout
from headstart.models.encoders import CELL_PARTS, CELLS, Features, cell_classes
from headstart.models.losses import changed_mean, gaussian_nats, view_loss

__all__ = ["FeatureModelHead", "WorldModelHead", "world_model_head"]

CLOSE = 0.5  # of the usual change of a number: a prediction that is as near is counted as right


class WorldModelHead(nn.Module):
    """(features (B, D), action (B,)) -> logits of type, colour and state of every cell of the next view.

    Cells are predicted independently given the features, which is all that a loss on a deterministic step needs.
    """

    def __init__(self, width: int, n_actions: int, hidden: int = 256):
        super().__init__()
        self.action = nn.Embedding(n_actions, width)
        self.layers = nn.Sequential(nn.Linear(2 * width, hidden), nn.ReLU(), nn.Linear(hidden, CELLS * sum(CELL_PARTS)))

    def forward(self, features: Tensor, action: Tensor) -> tuple[Tensor, ...]:
        """Three tensors (B, C, classes), one for each part of a cell."""
        flat = self.layers(torch.cat([features, self.action(action)], dim=-1))
        return rearrange(flat, "b (c p) -> b c p", c=CELLS).split(CELL_PARTS, dim=-1)

    def loss(
        self, prediction: Sequence[Tensor], before: Tensor, after: Tensor, changed_weight: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, which cells are right (B, C), and which have changed (B, C); frames before and after are (B, F)."""
        before, after = before[:, :CELLS], after[:, :CELLS]
        changed, target = before != after, cell_classes(after)
        loss = view_loss(tuple(prediction), target, changed, changed_weight)
        right = torch.stack([part.argmax(-1) == t for part, t in zip(prediction, target, strict=True)]).all(0)
        return loss, right, changed


class FeatureModelHead(nn.Module):
    """(features (B, D), action (B,)) -> for each number mean and log-variance of its change, for each choice logits.

    Changes are in units of what usually changes, and Gaussian: where futures are random, the variance says so, and
    numbers that nobody can predict cost little.
    """

    numbers: Tensor

    def __init__(self, layout: Layout, width: int, n_actions: int, hidden: int = 256):
        super().__init__()
        self.features = Features(layout)
        numbers = [not part.choices for part in layout.parts for _ in range(part.n_features)]
        self.register_buffer("numbers", torch.tensor(numbers), persistent=False)
        self.choices = [n for part in layout.parts for n in part.choices]
        self.action = nn.Embedding(n_actions, width)
        self.sizes = [sum(numbers), sum(numbers), *self.choices]
        self.layers = nn.Sequential(nn.Linear(2 * width, hidden), nn.ReLU(), nn.Linear(hidden, sum(self.sizes)))

    def forward(self, features: Tensor, action: Tensor) -> tuple[Tensor, ...]:
        """Mean and log-variance (B, numbers), then logits (B, n) of each choice."""
        mean, spread, *logits = self.layers(torch.cat([features, self.action(action)], dim=-1)).split(self.sizes, dim=1)
        return mean, 4 * torch.tanh(spread / 4), *logits  # a variance between e^-4 and e^4 keeps the loss in bounds

    def loss(
        self, prediction: Sequence[Tensor], before: Tensor, after: Tensor, changed_weight: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, which parts are right (B, C), and which have changed (B, C); frames before and after are (B, F)."""
        mean, log_variance, *logits = prediction
        change = self.features.difference(before, after)[:, self.numbers]
        nats, right, changed = (
            [gaussian_nats(mean, log_variance, change)],
            [(mean - change).abs() < CLOSE],
            [change.abs() > CHANGED],
        )
        old, new = (self.features.raw(frame)[:, ~self.numbers].split(self.choices, dim=1) for frame in (before, after))
        for guess, was, now in zip(logits, old, new, strict=True):
            target = now.argmax(1)
            nats.append(F.cross_entropy(guess, target, reduction="none").unsqueeze(1))
            right.append((guess.argmax(1) == target).unsqueeze(1))
            changed.append((was.argmax(1) != target).unsqueeze(1))
        has_changed = torch.cat(changed, dim=1)
        return changed_mean(torch.cat(nats, dim=1), has_changed, changed_weight), torch.cat(right, dim=1), has_changed


def world_model_head(layout: Layout, width: int, n_actions: int) -> WorldModelHead | FeatureModelHead:
    """The head for what frames of this layout show."""
    return WorldModelHead(width, n_actions) if layout.grid else FeatureModelHead(layout, width, n_actions)
