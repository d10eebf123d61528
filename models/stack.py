"""Several fits as one: a network of the size that these environments need can hardly fill a GPU, five can more.

    fitted = Together().fit([lambda: BC(a, seed=0).fit(demos_a), lambda: BC(b, seed=1).fit(demos_b)])

Each fit runs in a thread of its own, and only one of them at a time: acting, branching and labelling are as they would
be alone. Where all have come to a stage of training, it is trained as one: parameters and batches are stacked along a
new first axis, and the gradients of all are those of one vectorised function (torch.func). So a learner is written
for one seed, and knows nothing of this. Gradients are summed in another order, and rounding grows over many updates:
what comes out is as good as fits one by one would be, and not the same. Dropout draws other random numbers.

Legend: S fits in a stack.
"""

import math
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from tqdm import trange

from headstart.models.encoders import every_row
from headstart.models.training import EVERY, Descent, Stage, alone, as_numbers, diverged, seeded, trainer

__all__ = ["Together", "train_stacked"]

T = TypeVar("T")
Outcome = dict[str, float] | Exception
"""Of a stage: its last metrics, or that it has diverged."""


class _Networks(nn.Module):
    """The networks of a stage as one module, whose forward pass is the loss: what functional_call asks for."""

    def __init__(self, stage: Stage):
        super().__init__()
        self.networks = nn.ModuleList(stage.modules)
        self.loss = stage.loss
        trained = {id(parameter) for parameter in stage.parameters if parameter.requires_grad}
        self.trained = {name: value for name, value in self.named_parameters() if id(value) in trained}
        self.fixed = {name: value for name, value in self.named_parameters() if id(value) not in trained}

    def forward(self, *batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss(*batch)


def train_stacked(stages: Sequence[Stage], *, compiled: bool = False) -> list[Outcome]:
    """Train stages that differ in parameters and batches only; of each its last metrics, or Diverged.

    One that diverges does not stop the others: nothing of it reaches them. ``compiled`` has torch.compile make one
    kernel of many, which takes up to a minute for each stage, and a compiler of C++.
    """
    first, nets = stages[0], [_Networks(stage) for stage in stages]
    weights = {
        name: torch.stack([net.trained[name].detach() for net in nets]).requires_grad_() for name in nets[0].trained
    }

    fixed = {name: torch.stack([net.fixed[name].detach() for net in nets]) for name in nets[0].fixed}

    def loss_of_one(
        weights: dict[str, Tensor], fixed: dict[str, Tensor], batch: tuple[Any, ...]
    ) -> tuple[Tensor, tuple[Tensor, dict]]:
        # Actor and critic share one trunk, a module with several names: tying would swap it twice and restore it once.
        loss, metrics = functional_call(nets[0], weights | fixed, batch, tie_weights=False)
        return loss, (loss.detach(), metrics)

    gradients = vmap(grad(loss_of_one, has_aux=True), randomness="different")
    if compiled:
        gradients = torch.compile(gradients)
    descend = Descent(
        first.name,
        weights.values(),
        learning_rate=first.learning_rate,
        weight_decay=first.weight_decay,
        updates=first.updates,
    )
    outcomes: list[Outcome] = [{} for _ in stages]
    losses: list[Tensor] = []  # since they were last looked at, (S,) each
    with seeded(first.seed):
        for update in trange(1, first.updates + 1, desc=first.name, unit="update", delay=2, leave=False, disable=None):
            batches = [stage.draw() for stage in stages]
            batch = pytree.tree_map(lambda *parts: torch.stack(parts), *batches)
            with every_row(), sdpa_kernel(SDPBackend.MATH):  # vmap knows the parts of attention, and not the whole
                found, (loss, metrics) = gradients(
                    {name: value.detach() for name, value in weights.items()}, fixed, batch
                )
            losses.append(loss)
            for name, value in weights.items():
                value.grad = found[name]
            descend.step()
            if update % EVERY == 0 or update == first.updates:
                _give_back(weights, nets)
                _note_diverged(torch.stack(losses, dim=1), update, stages, outcomes)
                losses.clear()
                for i, stage in enumerate(stages):
                    if not isinstance(outcomes[i], Exception):
                        outcomes[i] = numbers = as_numbers({name: value[i] for name, value in metrics.items()})
                        if update % EVERY == 0:
                            stage.log(update, numbers)
    return outcomes


def _give_back(weights: dict[str, Tensor], nets: Sequence[_Networks]) -> None:
    """Each network its own."""
    with torch.no_grad():
        for i, net in enumerate(nets):
            for name, parameter in net.trained.items():
                parameter.copy_(weights[name][i])


def _note_diverged(losses: Tensor, update: int, stages: Sequence[Stage], outcomes: list[Outcome]) -> None:
    """By the losses (S, U) of the last U updates, the last of which is number ``update``."""
    for i, values in enumerate(losses.tolist()):
        wrong = [n for n, value in enumerate(values) if not math.isfinite(value)]
        if wrong and not isinstance(outcomes[i], Exception):
            outcomes[i] = diverged(stages[i].name, update - len(values) + wrong[0], values[wrong[0]])


class Together:
    """Runs fits that meet in their stages; see the head of this file, and ``train_stacked`` for ``compiled``."""

    def __init__(self, *, compiled: bool = False) -> None:
        self.compiled = compiled
        self.turn = threading.Condition()  # held by the one fit that is running
        self.running = 0
        self.met: dict[int, Stage] = {}  # by the place of the fit that it belongs to
        self.outcomes: dict[int, Outcome] = {}

    def fit(self, fits: Sequence[Callable[[], T]]) -> list[T | BaseException]:
        """What each of the fits returns or raises, in their order. All must be of one learner and configuration."""
        results: list[Any] = [None] * len(fits)

        def run(i: int) -> None:
            torch.set_num_threads(threads)  # a new thread would begin with as many as there are cores
            with self.turn:
                trainer.set(partial(self._train, i))
                try:
                    results[i] = fits[i]()
                except BaseException as error:  # whoever asked for the fit is told
                    results[i] = error
                self.running -= 1
                self._train_those_that_have_met()

        threads, self.running = torch.get_num_threads(), len(fits)
        workers = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(fits))]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return results

    def _train(self, i: int, stage: Stage) -> dict[str, float]:
        """Wait until all fits that are still running have come to a stage; returns the metrics of this one."""
        self.met[i] = stage
        self._train_those_that_have_met()
        while i not in self.outcomes:
            self.turn.wait()
        outcome = self.outcomes.pop(i)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _train_those_that_have_met(self) -> None:
        if len(self.met) < self.running or not self.met:
            return
        alike: dict[tuple[str, int], list[int]] = defaultdict(list)
        for i in sorted(self.met):  # who came first is chance
            alike[self.met[i].name, self.met[i].updates].append(i)
        for places in alike.values():
            stages = [self.met.pop(i) for i in places]
            try:
                outcomes = train_stacked(stages, compiled=self.compiled) if len(stages) > 1 else [alone(stages[0])]
            except Exception as error:
                outcomes = [error] * len(stages)
            self.outcomes |= dict(zip(places, outcomes, strict=True))
        self.turn.notify_all()
