"""Memory: attention over the last frames and the actions taken in them, and a recall of all that was seen before.

And what training does to it: hidden pasts, swapped contexts.

Legend: B states in a batch, T = history + 1 frames, D width.
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["HistoryAttention", "Recall", "hide_past", "swap_context"]


def hide_past(
    obs: dict[str, Tensor], n_actions: int, past: float, actions: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """Observations (B, ...) with the past of a share of them hidden, and the past actions of another share.

    Drawn sample by sample. A hidden past looks like the start of an episode; a hidden action is the token
    ``n_actions + 1``, which only training shows.
    """
    taken = obs["actions"]  # (B, T-1)
    if not (past or actions) or not taken.shape[1]:
        return obs
    drawn = torch.rand(len(taken), 1, generator=generator).to(taken.device)
    started = taken != n_actions
    taken = torch.where(started & (drawn < past + actions), n_actions + 1, taken)
    return {**obs, "actions": torch.where(drawn < past, n_actions, taken).to(obs["actions"].dtype)}


def swap_context(obs: dict[str, Tensor], whose: Tensor, recent: int) -> dict[str, Tensor]:
    """Observations (B, ...) as they are now, in the contexts of those at ``whose`` (B,).

    A context is what is known and cannot be seen: the mission, and the past that is older than ``recent`` frames.
    """
    swapped = {name: value.clone() for name, value in obs.items()}
    older = obs["actions"].shape[1] - recent
    for name in ("frames", "actions"):
        swapped[name][:, :older] = obs[name][whose, :older]
    return {**swapped, "mission": obs["mission"][whose]}


class HistoryAttention(nn.Module):
    """What the present wants to know of the past.

    The present frame is the query; each earlier frame, with its age and the action taken there, is a key and a
    value. Frames from before the episode are masked; a learned null entry lets the present ignore the past, and
    keeps the softmax defined at the first step. Frames are projected by ``key_value`` before they are put in their
    place, each distinct one once; actions and ages are added to that.
    """

    def __init__(self, width: int, history: int, n_actions: int, heads: int = 4):
        super().__init__()
        self.n_actions, self.heads = n_actions, heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.action = nn.Embedding(n_actions + 2, 2 * width)  # no action yet, hidden action
        self.age = nn.Parameter(torch.randn(history, 2 * width) * 0.02)
        self.null = nn.Parameter(torch.randn(2 * width) * 0.02)
        self.out = nn.Linear(width, width)

    def forward(self, now: Tensor, past: Tensor, action: Tensor) -> Tensor:
        """Features (B, D) now, earlier ones through ``key_value`` (B, T-1, 2D), actions (B, T-1) -> (B, D).

        An action of ``n_actions`` marks a frame from before the episode.
        """
        past = past + self.action(action) + self.age
        memory = torch.cat([self.null.expand(len(past), 1, -1), past], dim=1)  # (B, T, 2D)
        missing = F.pad(action == self.n_actions, (1, 0))  # the null entry never is
        query = rearrange(self.query(now), "b (h d) -> b h 1 d", h=self.heads)
        key, value = rearrange(memory, "b t (two h d) -> two b h t d", two=2, h=self.heads)
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=~missing[:, None, None])
        return self.out(rearrange(read, "b h 1 d -> b (h d)"))


class Recall(nn.Module):
    """Whether something has been seen before, however long ago.

    The maximum over all earlier frames, neither ordered nor dated, times what the present makes of it. Attention with
    ages and actions solves Memory's few training levels by counting steps, and fails on all others; a set cannot be
    counted (experiments/LOG.md). The product lets "the same as there" be one feature.
    """

    def __init__(self, width: int):
        super().__init__()
        self.seen = nn.Linear(width, width)
        self.now = nn.Linear(width, width)

    def forward(self, now: Tensor, past: Tensor, before: Tensor) -> Tensor:
        """Features (B, D) now, earlier ones through ``seen`` and a ReLU (B, T-1, D) -> (B, D).

        ``before`` (B, T-1) marks frames from before the episode.
        """
        return past.masked_fill(before.unsqueeze(2), 0.0).amax(dim=1) * self.now(now)
