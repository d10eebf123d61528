"""The schedule of the learning rate, and that weights decay apart from the gradient."""

import math

import pytest
import torch
from torch import nn

from headstart.envs.errors import Diverged
from headstart.models.training import Descent


def rates(updates: int, warm_up: int) -> list[float]:
    weight = nn.Parameter(torch.zeros(1))
    descend = Descent("a test", [weight], learning_rate=0.2, weight_decay=0.0, updates=updates, warm_up=warm_up)
    seen = []
    for _ in range(updates + 3):
        seen.append(descend.optimizer.param_groups[0]["lr"])
        descend((weight**2).sum())
    return seen


def test_the_rate_rises_in_a_line_then_falls_in_a_cosine() -> None:
    updates, warm_up = 40, 10
    for update, rate in enumerate(rates(updates, warm_up)):
        cosine = 0.1 * (1 + math.cos(math.pi * min(update, updates) / updates))
        assert rate == pytest.approx(min(1, (update + 1) / warm_up) * cosine, abs=1e-12)


def test_the_rate_never_rises_again() -> None:
    after = rates(20, 4)[4:]
    assert after == sorted(after, reverse=True)
    assert after[-3:] == pytest.approx([0, 0, 0], abs=1e-12)


def test_weights_decay_without_a_gradient() -> None:
    weight = nn.Parameter(torch.tensor([2.0]))
    descend = Descent("a test", [weight], learning_rate=0.1, weight_decay=0.5, updates=100, warm_up=1)
    descend((0 * weight).sum())
    assert float(weight.detach()) == pytest.approx(2.0 * (1 - 0.1 * 0.5))


def test_a_loss_that_is_no_number_is_named_before_it_does_harm() -> None:
    weight = nn.Parameter(torch.tensor([2.0]))
    descend = Descent("a test", [weight], learning_rate=0.1, weight_decay=0.5, updates=100)
    descend(weight.sum())
    before = weight.detach().clone()
    with pytest.raises(Diverged, match=r"a test: the loss is nan at update 1. Lower the learning rate"):
        descend((weight * float("nan")).sum())
    assert torch.equal(weight, before)


def test_no_updates_are_no_error() -> None:
    assert len(rates(0, 4)) == 3
