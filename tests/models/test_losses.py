"""Losses against numbers worked by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from headstart.models.losses import (
    contrast_loss,
    preference_loss,
    rationale_loss,
    same_future_credit,
    soft_cross_entropy,
    view_loss,
)


def near(value: torch.Tensor, wanted: float) -> None:
    assert float(value.detach()) == pytest.approx(wanted, rel=1e-5, abs=1e-7)


# ---- soft cross-entropy ----
def test_soft_cross_entropy_worked_by_hand() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]))
    target = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    one, other = 0.5 * math.log(2) + 0.5 * math.log(4), -math.log(0.7)
    near(soft_cross_entropy(logits, target), (one + other) / 2)
    near(soft_cross_entropy(logits + 5, target), (one + other) / 2)  # logits are known up to a constant


def test_soft_cross_entropy_is_least_at_its_target() -> None:
    target = torch.tensor([[0.6, 0.3, 0.1]])
    logits = target.log().requires_grad_()
    loss = soft_cross_entropy(logits, target)
    near(loss, -sum(p * math.log(p) for p in (0.6, 0.3, 0.1)))
    loss.backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.zeros(1, 3), atol=1e-7, rtol=0)


def test_soft_cross_entropy_pushes_by_the_difference_of_distributions() -> None:
    logits, target = torch.zeros(1, 4, requires_grad=True), torch.tensor([[0.7, 0.1, 0.1, 0.1]])
    soft_cross_entropy(logits, target).backward()
    torch.testing.assert_close(logits.grad, 0.25 - target)


def test_weights_and_smoothing_worked_by_hand() -> None:
    """The second state counts three times the first; of its label (0, 0, 1), 0.3 is spread over three actions."""
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]))
    target = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    weight = torch.tensor([0.5, 1.5])
    one, other = 0.5 * math.log(2) + 0.5 * math.log(4), -math.log(0.7)
    near(soft_cross_entropy(logits, target, weight=weight), (0.5 * one + 1.5 * other) / 2)
    smooth = -(0.45 * math.log(0.5) + 0.55 * math.log(0.25)), -(0.1 * math.log(0.1 * 0.2) + 0.8 * math.log(0.7))
    near(soft_cross_entropy(logits, target, label_smoothing=0.3), sum(smooth) / 2)
    both = soft_cross_entropy(logits, target, weight=weight, label_smoothing=0.3)
    near(both, (0.5 * smooth[0] + 1.5 * smooth[1]) / 2)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_with_one_action_each_it_is_torchs_cross_entropy(smoothing: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(30, 7, generator=generator, dtype=torch.float64)
    action = torch.randint(7, (30,), generator=generator)
    target = F.one_hot(action, 7).double()
    wanted = F.cross_entropy(logits, action, label_smoothing=smoothing)
    torch.testing.assert_close(soft_cross_entropy(logits, target, label_smoothing=smoothing), wanted)
    weight = torch.rand(30, generator=generator, dtype=torch.float64)
    nats = F.cross_entropy(logits, action, label_smoothing=smoothing, reduction="none")
    found = soft_cross_entropy(logits, target, weight=weight, label_smoothing=smoothing)
    torch.testing.assert_close(found, (nats * weight).mean())


# ---- contrast ----
def test_futures_equal_to_the_experts_share_its_credit() -> None:
    future = torch.tensor(
        [
            [[1, 2], [3, 4], [1, 2], [1, 3]],
            [[0, 0], [0, 0], [0, 0], [5, 0]],
            [[7, 7], [8, 8], [9, 9], [6, 6]],
        ],
        dtype=torch.uint8,
    )
    credit = same_future_credit(future, torch.tensor([0, 3, 1]))
    assert credit.tolist() == [[True, False, True, False], [False, False, False, True], [False, True, False, False]]


def test_contrast_worked_by_hand() -> None:
    score = torch.log(torch.tensor([[1.0, 2.0, 5.0], [3.0, 3.0, 2.0]]))  # softmax: eighths
    credit = torch.tensor([[True, True, False], [False, True, False]])
    near(contrast_loss(score, credit), (-math.log(3 / 8) - math.log(3 / 8)) / 2)
    near(contrast_loss(score[:1], torch.tensor([[False, False, True]])), -math.log(5 / 8))
    near(contrast_loss(score, torch.ones(2, 3, dtype=torch.bool)), 0.0)  # nothing to tell apart


def test_shared_credit_goes_to_whoever_already_has_more() -> None:
    """The gradient is softmax minus softmax among the credited; where all is credited there is none."""
    score = torch.log(torch.tensor([[1.0, 2.0, 5.0]])).requires_grad_()
    contrast_loss(score, torch.tensor([[True, True, False]])).backward()
    torch.testing.assert_close(score.grad, torch.tensor([[1 / 8 - 1 / 3, 2 / 8 - 2 / 3, 5 / 8]]))
    everything = torch.randn(4, 3, requires_grad=True)
    contrast_loss(everything, torch.ones(4, 3, dtype=torch.bool)).backward()
    torch.testing.assert_close(everything.grad, torch.zeros(4, 3), atol=1e-6, rtol=0)


# ---- views ----
def part(*probabilities: list[float]) -> torch.Tensor:
    """Logits (1, C, classes) of one part, from the probabilities of each cell."""
    return torch.log(torch.tensor([probabilities]))


def test_view_loss_worked_by_hand() -> None:
    """Two cells, a part of three classes and one of two; the second cell has changed and weighs four times."""
    kind = part([0.5, 0.25, 0.25], [0.2, 0.2, 0.6])
    state = part([0.9, 0.1], [0.5, 0.5])
    target = torch.tensor([[0, 1]]), torch.tensor([[0, 1]])
    first = -math.log(0.5) - math.log(0.9)
    second = -math.log(0.2) - math.log(0.5)
    changed = torch.tensor([[False, True]])
    near(view_loss((kind, state), target, changed, 4.0), (first + 4 * second) / 5)
    near(view_loss((kind, state), target, changed, 1.0), (first + second) / 2)
    near(view_loss((kind, state), target, torch.zeros(1, 2, dtype=torch.bool), 4.0), (first + second) / 2)
    near(view_loss((kind, state), target, torch.ones(1, 2, dtype=torch.bool), 4.0), (first + second) / 2)


def test_view_loss_weighs_cells_over_the_whole_batch() -> None:
    """A view with many changes counts more than one with few: the weights of a batch are one sum."""
    logits = torch.log(torch.tensor([[[0.5, 0.5]], [[0.25, 0.75]]]))
    target, changed = torch.tensor([[0], [0]]), torch.tensor([[True], [False]])
    near(view_loss((logits,), (target,), changed, 3.0), (3 * math.log(2) + math.log(4)) / 4)


def test_view_loss_needs_a_target_for_each_part() -> None:
    with pytest.raises(ValueError, match="shorter"):
        view_loss((part([0.5, 0.5]), part([0.5, 0.5])), (torch.tensor([[0]]),), torch.tensor([[True]]), 1.0)


# ---- preference ----
def test_preference_loss_worked_by_hand() -> None:
    """Twice as likely as under the reference against half as likely: a factor of four; and one pair not told apart."""
    chosen, rejected = torch.log(torch.tensor([2.0, 3.0])), torch.log(torch.tensor([0.5, 3.0]))
    near(preference_loss(chosen, rejected, 1.0), (math.log(1 + 1 / 4) + math.log(2)) / 2)
    near(preference_loss(chosen, rejected, 0.5), (math.log(1 + 1 / 2) + math.log(2)) / 2)


def test_preference_pushes_both_ways_by_how_wrong_it_is() -> None:
    """At the reference the gradient is beta / 2 up for the chosen and down for the rejected; it fades when learned."""
    for apart, share in ((0.0, 1 / 2), (math.log(9.0), 1 / 10)):
        chosen, rejected = torch.tensor([apart], requires_grad=True), torch.zeros(1, requires_grad=True)
        preference_loss(chosen, rejected, 1.0).backward()
        torch.testing.assert_close(chosen.grad, torch.tensor([-share]))
        torch.testing.assert_close(rejected.grad, torch.tensor([share]))


# ---- rationale ----
def test_rationale_loss_worked_by_hand() -> None:
    """Two states of two actions: nats of the effects, Huber's distance of the margins, and weights of the states."""
    p = torch.tensor([[[0.5, 0.5], [0.25, 0.75]], [[0.9, 0.1], [0.2, 0.8]]])
    effect = torch.tensor([[0, 1], [1, 1]], dtype=torch.uint8)
    margin, judged = torch.tensor([[0.0, 0.0], [1.0, -1.0]]), torch.tensor([[0.5, -0.5], [4.0, -4.0]])
    one = -math.log(0.5) - math.log(0.75) + 2 * 0.5 * 0.25
    other = -math.log(0.1) - math.log(0.8) + 2 * (3 - 0.5)
    near(rationale_loss(p.log(), margin, effect, judged), (one + other) / 4)
    near(rationale_loss(p.log(), margin, effect, judged, weight=torch.tensor([2.0, 0.5])), (2 * one + other / 2) / 4)
