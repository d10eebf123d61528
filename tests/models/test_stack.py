"""Fits that are trained as one come out as they would one by one."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from headstart.envs.errors import Diverged
from headstart.models.stack import Together
from headstart.models.training import Metrics, Stage, train

UPDATES = 60


def linear_fit(seed: int, scale: float = 1.0) -> tuple[nn.Linear, Stage]:
    """A regression with batches of its own, and a trunk that has two names, as that of a policy has."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Linear(3, 2)
    both = nn.ModuleDict({"actor": net, "critic": net})
    generator = torch.Generator().manual_seed(seed)

    def draw() -> tuple[Tensor]:
        return (scale * torch.randn(8, 3, generator=generator),)

    def loss(x: Tensor) -> tuple[Tensor, Metrics]:
        error = ((both["critic"](x) - x.sum(1, keepdim=True)) ** 2).mean()
        return error, {"loss": error.detach()}

    stage = Stage(
        "a test", [both], [*net.parameters()], draw, loss, updates=UPDATES, learning_rate=0.1, weight_decay=0.01
    )
    return net, stage


def test_they_agree_with_fits_one_by_one() -> None:
    alone = [linear_fit(seed) for seed in range(3)]
    metrics = [train(stage) for _, stage in alone]
    stacked = [linear_fit(seed) for seed in range(3)]
    found = Together().fit([lambda stage=stage: train(stage) for _, stage in stacked])
    for (one, _), (other, _), expected, outcome in zip(alone, stacked, metrics, found, strict=True):
        torch.testing.assert_close(other.weight, one.weight, rtol=1e-4, atol=1e-5)
        assert isinstance(outcome, dict)
        assert outcome["loss"] == pytest.approx(expected["loss"], rel=1e-3, abs=1e-6)
    assert not torch.allclose(stacked[0][0].weight, linear_fit(0)[0].weight, atol=0.1)  # something was learned


def test_what_is_not_trained_is_each_networks_own_and_stays() -> None:
    """Such as the means and scales by which numbers of observations are standardised."""

    def fit(seed: int) -> tuple[nn.Module, Stage]:
        net, stage = linear_fit(seed)
        net.offset = nn.Parameter(torch.full((2,), float(seed)), requires_grad=False)

        def loss(x: Tensor) -> tuple[Tensor, Metrics]:
            error = ((net(x) + net.offset) ** 2).mean()
            return error, {"loss": error.detach()}

        return net, dataclasses.replace(stage, parameters=[*net.parameters()], loss=loss)

    alone, stacked = [fit(seed) for seed in (1, 5)], [fit(seed) for seed in (1, 5)]
    for _, stage in alone:
        train(stage)
    Together().fit([lambda stage=stage: train(stage) for _, stage in stacked])
    for seed, (one, _), (other, _) in zip((1, 5), alone, stacked, strict=True):
        assert (other.offset == seed).all()
        torch.testing.assert_close(other.state_dict(), one.state_dict(), rtol=1e-4, atol=1e-4)


def test_the_networks_can_be_used_afterwards() -> None:
    fits = [linear_fit(seed) for seed in range(2)]
    Together().fit([lambda stage=stage: train(stage) for _, stage in fits])
    for net, _ in fits:
        assert np.isfinite(net(torch.ones(1, 3)).detach().numpy()).all()


def test_one_that_diverges_does_not_stop_the_others() -> None:
    fits = [linear_fit(0), linear_fit(1, scale=float("nan"))]
    good, bad = Together().fit([lambda stage=stage: train(stage) for _, stage in fits])
    assert isinstance(good, dict)
    assert isinstance(bad, Diverged)
    assert "a test: the loss is nan at update 0" in str(bad)


def test_one_that_fails_before_it_is_trained_does_not_stop_the_others() -> None:
    _, stage = linear_fit(0)

    def fails() -> dict[str, float]:
        raise ValueError("no demonstrations")

    good, bad = Together().fit([lambda: train(stage), fails])
    assert isinstance(good, dict)
    assert isinstance(bad, ValueError)
