"""The one optimizer of the stages before RL."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from headstart.envs.errors import Diverged

__all__ = ["Descent"]


class Descent:
    """AdamW (arXiv 1711.05101) with a linear warm-up, then a cosine to zero at the last of ``updates``.

        descend = Descent("bc", policy.parameters(), learning_rate=1e-3, weight_decay=0.01, updates=500)
        descend(loss)

    Raises Diverged, naming ``stage`` and update, where a loss is no number.
    """

    def __init__(
        self,
        stage: str,
        parameters: Iterable[nn.Parameter],
        *,
        learning_rate: float,
        weight_decay: float,
        updates: int,
        warm_up: int = 50,
    ):
        def factor(update: int) -> float:
            return min(1.0, (update + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * min(1.0, update / max(1, updates))))

        self.stage, self.update = stage, 0
        self.optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)

    def __call__(self, loss: Tensor) -> None:
        """One update."""
        value = float(loss.detach())
        if not math.isfinite(value):
            raise Diverged(
                f"{self.stage}: the loss is {value} at update {self.update}. Lower the learning rate, and check the "
                "observations of the demonstrations for values that are not finite."
            )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.update += 1
