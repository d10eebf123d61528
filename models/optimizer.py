"""The one optimizer of the stages before RL."""

import math
from collections.abc import Iterable

import torch
from torch import nn

__all__ = ["adamw"]


def adamw(
    parameters: Iterable[nn.Parameter],
    *,
    learning_rate: float,
    weight_decay: float,
    updates: int,
    warm_up: int = 50,
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW (arXiv 1711.05101) with a linear warm-up, then a cosine to zero at the last of ``updates``."""
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=True)

    def factor(update: int) -> float:
        return min(1.0, (update + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * min(1.0, update / max(1, updates))))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
