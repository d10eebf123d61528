"""How every stage before RL is trained: one loop, one optimizer. A learner says what is drawn, and the loss of that.

    metrics = train(Stage("bc", [policy], [*policy.actor_parameters()], draw, loss, updates=500,
                          learning_rate=1e-3, weight_decay=0.01))

A stage is a value, so that those of several seeds can also be trained as one: see stack.py.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import trange

from headstart.envs.errors import Diverged

__all__ = ["EVERY", "Descent", "Log", "Loss", "Metrics", "Stage", "as_numbers", "seeded", "silent", "train"]

EVERY = 50  # updates between two calls of a stage's log

Metrics = dict[str, Tensor]
"""What a loss says beside itself: scalars without gradient, which nobody turns into numbers until they are read."""

Loss = Callable[..., tuple[Tensor, Metrics]]

Log = Callable[[int, dict[str, float]], None]
"""Called with the number of updates so far and the metrics of the last one."""


def silent(update: int, metrics: dict[str, float]) -> None:
    """Keep no metrics."""


@dataclass(frozen=True)
class Stage:
    """Gradient descent on one loss."""

    name: str
    """What it is called on the bar, and where it diverges."""
    modules: Sequence[nn.Module]
    """The networks that the loss reads."""
    parameters: Sequence[nn.Parameter]
    """Those of their parameters that are trained."""
    draw: Callable[[], tuple[Any, ...]]
    """A batch: the arguments of the loss, tensors or dictionaries of them. But for dropout, all chance is in here."""
    loss: Loss
    """A function of the batch and of the networks' parameters, and of nothing else that differs between two seeds."""
    updates: int
    learning_rate: float
    """Its peak: a linear warm-up, then a cosine to zero."""
    weight_decay: float
    """AdamW's, decoupled."""
    seed: int = 0
    """Of dropout."""
    log: Log = silent
    """Called every 50 updates."""


def train(stage: Stage) -> dict[str, float]:
    """All updates of a stage, in place; returns the last metrics.

    Raises Diverged, naming stage and update, where a loss is no number.
    """
    elsewhere = trainer.get()
    return elsewhere(stage) if elsewhere else alone(stage)


trainer: ContextVar[Callable[[Stage], dict[str, float]] | None] = ContextVar("trainer", default=None)
"""Who trains stages in this context, if they are not to be trained one by one."""


def alone(stage: Stage) -> dict[str, float]:
    """One stage by itself."""
    descend = Descent(
        stage.name,
        stage.parameters,
        learning_rate=stage.learning_rate,
        weight_decay=stage.weight_decay,
        updates=stage.updates,
    )
    metrics: Metrics = {}
    with seeded(stage.seed):
        for update in trange(1, stage.updates + 1, desc=stage.name, unit="update", delay=2, leave=False, disable=None):
            loss, metrics = stage.loss(*stage.draw())
            descend(loss)
            if update % EVERY == 0:
                descend.check()
                stage.log(update, as_numbers(metrics))
        descend.check()
    return as_numbers(metrics)


def as_numbers(metrics: Metrics) -> dict[str, float]:
    """To be read. This waits for the device, once."""
    if not metrics:
        return {}
    return dict(zip(metrics, torch.stack([value.double() for value in metrics.values()]).tolist(), strict=True))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's own random numbers, of first weights and dropout, are those of ``seed``; afterwards, the user's again."""
    started = torch.cuda.is_initialized()  # torch.manual_seed would start CUDA, or leave it our seed for its start
    with torch.random.fork_rng(range(torch.cuda.device_count()) if started else []):
        torch.default_generator.manual_seed(seed)
        if started:
            torch.cuda.manual_seed_all(seed)
        yield


class Descent:
    """AdamW (arXiv 1711.05101) with a linear warm-up, then a cosine to zero at the last of ``updates``.

        descend = Descent("bc", policy.parameters(), learning_rate=1e-3, weight_decay=0.01, updates=500)
        descend(loss)

    Raises Diverged, naming ``stage`` and update, where a loss is no number: at once on a CPU; elsewhere, where asking
    means waiting, at the next ``check``.
    """

    def __init__(
        self,
        stage: str,
        parameters: Iterable[Tensor],
        *,
        learning_rate: float,
        weight_decay: float,
        updates: int,
        warm_up: int = 50,
    ):
        def factor(update: int) -> float:
            return min(1.0, (update + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * min(1.0, update / max(1, updates))))

        self.stage, self.update = stage, 0
        self.unchecked: list[tuple[int, Tensor]] = []  # updates since the last check, and their losses
        self.optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)

    def __call__(self, loss: Tensor) -> None:
        """One update."""
        self.unchecked.append((self.update, loss.detach()))
        if loss.device.type == "cpu":
            self.check()
        self.optimizer.zero_grad()
        loss.backward()
        self.step()

    def step(self) -> None:
        """One update by the gradients that the parameters have."""
        self.optimizer.step()
        self.schedule.step()
        self.update += 1

    def check(self) -> None:
        """Raise Diverged if a loss since the last check was no number."""
        if self.unchecked:
            updates, losses = zip(*self.unchecked, strict=True)
            self.unchecked.clear()
            for update, loss in zip(updates, torch.stack(losses).tolist(), strict=True):
                if not math.isfinite(loss):
                    raise diverged(self.stage, update, loss)


def diverged(stage: str, update: int, loss: float) -> Diverged:
    """The error that says so."""
    return Diverged(
        f"{stage}: the loss is {loss} at update {update}. Lower the learning rate, and check the observations of the "
        "demonstrations for values that are not finite."
    )
