"""Heads that predict futures from the features that the policy reads.

Legend: B states in a batch, D width, C = 49 cells of a view.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from headstart.models.encoders import CELL_PARTS, CELLS

__all__ = ["WorldModelHead"]


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
