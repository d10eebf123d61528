"""Shared mathematics of the learners: pure functions of tensors, each returning a scalar loss.

Legend: B states in a batch, A actions, C cells of a view, D width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def soft_cross_entropy(
    logits: Tensor, target: Tensor, *, weight: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy against a distribution, averaged over the batch; logits and target (B, A), weight (B,).

    ``label_smoothing`` is the probability that is spread evenly over all actions, as in torch's cross_entropy.
    """
    target = target * (1 - label_smoothing) + label_smoothing / target.shape[-1]
    nats = -(target * F.log_softmax(logits, dim=-1)).sum(-1)
    return (nats if weight is None else nats * weight).mean()


def same_future_credit(future: Tensor, action: Tensor) -> Tensor:
    """Which actions lead where the expert's action led: (B, A) bool.

    ``future`` (B, A, D) are the observations after each action, ``action`` (B,) the expert's. Two actions
    that end in the same observation are the same choice for a judge, which sees consequences only.
    """
    expert = future[torch.arange(len(action), device=action.device), action].unsqueeze(1)  # (B, 1, D)
    return (future == expert).all(-1)


def contrast_loss(score: Tensor, credit: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Negative log of the probability that softmax(score) gives to the credited futures.

    ``score`` (B, A) rates each future, ``credit`` (B, A) marks those that equal the expert's. This is the
    contrast of arXiv 2510.08558, section 4.3 (own futures beside the expert's), learned instead of verbalised.
    ``label_smoothing`` is the weight of a uniform target beside it: a judge that has seen few demonstrations can tell
    every future by heart, and would be certain of what it knows nothing of.
    """
    log_p = F.log_softmax(score, dim=-1)
    right = torch.logsumexp(log_p.masked_fill(~credit, -torch.inf), dim=-1)
    possible = score > -torch.inf  # a score of -inf says that there is no such future
    even = log_p.masked_fill(~possible, 0.0).sum(-1) / possible.sum(-1)
    return -((1 - label_smoothing) * right + label_smoothing * even).mean()


def view_loss(logits: tuple[Tensor, ...], target: tuple[Tensor, ...], changed: Tensor, changed_weight: float) -> Tensor:
    """Cross-entropy of predicted cells, arXiv 2510.08558 Eq. 3, with changed cells weighted up.

    ``logits`` are (B, C, classes) for each part of a cell (type, colour, state), ``target`` their classes (B, C);
    ``changed`` (B, C) marks the cells that differ from the view before. Six views in ten stay as they are after
    a step, so that a plain mean mostly learns to copy. Weights are normalised: nats per cell, whatever the weight.
    """
    nats = torch.stack(
        [F.cross_entropy(part.transpose(1, 2), t, reduction="none") for part, t in zip(logits, target, strict=True)]
    ).sum(0)  # (B, C)
    return changed_mean(nats, changed, changed_weight)


def changed_mean(nats: Tensor, changed: Tensor, changed_weight: float) -> Tensor:
    """Mean of ``nats`` (B, C), where what has ``changed`` (B, C) weighs more."""
    weight = torch.where(changed, changed_weight, 1.0)
    return (nats * weight).sum() / weight.sum()


def gaussian_nats(mean: Tensor, log_variance: Tensor, target: Tensor) -> Tensor:
    """-log N(target; mean, exp(log_variance)) without its constant, elementwise."""
    return 0.5 * (log_variance + (target - mean) ** 2 * torch.exp(-log_variance))


def preference_loss(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Direct preference optimisation (arXiv 2305.18290, Eq. 7): -log sigmoid(beta (chosen - rejected)), averaged.

    Both (B,) are log pi(a | s) - log pi_ref(a | s): how much more likely an action is than under the reference.
    """
    return -F.logsigmoid(beta * (chosen - rejected)).mean()


def rationale_loss(
    effect_logits: Tensor, margin: Tensor, effect: Tensor, judged: Tensor, *, weight: Tensor | None = None
) -> Tensor:
    """Predict what each action will do and how much the judge likes that: -log p(effect) + Huber(margin), in nats.

    ``effect_logits`` (B, A, E) over classes, ``margin`` (B, A), ``effect`` (B, A) true classes, ``judged`` (B, A)
    the judge's margins, ``weight`` (B,) of each state. Averaged over states and actions. Huber's is quadratic within
    one nat and linear beyond, so that a few certain judgements do not outweigh all others.
    """
    nats = F.cross_entropy(effect_logits.flatten(0, 1), effect.flatten().long(), reduction="none").view_as(margin)
    nats = nats + F.smooth_l1_loss(margin, judged, reduction="none")
    return (nats if weight is None else nats * weight.unsqueeze(1)).mean()
