"""Beyond grids: numbers come out of bytes as they went in, and encoders, judge and world model read them."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from headstart.envs.spaces import GRID, FrameSpace, Layout
from headstart.models.encoders import (
    Features,
    PictureEncoder,
    VectorEffectEncoder,
    VectorEncoder,
    ViewEffectEncoder,
    ViewEncoder,
    apart,
    effect_encoder,
    frame_encoder,
)
from headstart.models.judge import Judge
from headstart.models.policy import FrameHistoryExtractor, HeadstartPolicy
from headstart.models.world_model import FeatureModelHead, WorldModelHead, world_model_head

SPACE = spaces.Dict(
    {
        "a": spaces.Discrete(300),
        "b": spaces.Box(-9, 9, (3,), np.float32),
        "c": spaces.Box(-9, 9, (2,), np.float64),
        "d": spaces.MultiDiscrete([3, 2]),
        "e": spaces.Box(0, 255, (2, 2), np.uint8),
        "f": spaces.Box(-5, 5, (1,), np.int64),
        "g": spaces.Box(0, 60_000, (1,), np.uint16),
    }
)
T, A, B = 3, 4, 5


def shown(n: int, seed: int = 0) -> Tensor:
    """Frames (n, F) of random observations in SPACE; b, the first number that matters, is about 1000 +- 0.1."""
    rng = np.random.default_rng(seed)
    parts = [
        rng.integers(300, size=(n, 1)).astype("<u2"),
        (1000 + rng.normal(size=(n, 3)) / 10).astype("<f4"),
        rng.normal(size=(n, 2)),
        np.stack([rng.integers(3, size=n), rng.integers(2, size=n)], 1).astype(np.uint8),
        rng.integers(256, size=(n, 4)).astype(np.uint8),
        rng.integers(-5, 6, size=(n, 1)),
        rng.integers(60_000, size=(n, 1)).astype("<u2"),
    ]
    return torch.as_tensor(np.concatenate([np.ascontiguousarray(part).view(np.uint8) for part in parts], axis=1))


LAYOUT = Layout.of(SPACE).fitted(shown(64).numpy(), np.zeros(64, np.int64))


def observation_space(layout: Layout = LAYOUT) -> spaces.Dict:
    return spaces.Dict(
        {
            "frames": FrameSpace(layout, T),
            "actions": spaces.Box(0, A, (T - 1,), np.uint8),
            "mission": spaces.Box(0, 55, (1,), np.uint8),
        }
    )


def observed(n: int = B) -> dict[str, Tensor]:
    return {
        "frames": torch.stack([shown(n, seed) for seed in range(T)], dim=1),
        "actions": torch.randint(A, (n, T - 1), dtype=torch.uint8),
        "mission": torch.zeros(n, 1, dtype=torch.uint8),
    }


def test_the_numbers_are_exactly_those_of_the_layout() -> None:
    frames = shown(20, seed=1)
    for given in (frames, frames.float()):  # Stable-Baselines3 hands bytes over as floats
        np.testing.assert_array_equal(Features(LAYOUT).raw(given).numpy(), LAYOUT.features(frames.numpy()))


def test_numbers_are_standardised_and_their_changes_too() -> None:
    features, frames = Features(LAYOUT), shown(64)
    numbers = features(frames)[:, 300:303]
    np.testing.assert_allclose(numbers.mean(0), 0, atol=0.05)
    np.testing.assert_allclose(numbers.std(0, correction=0), 1, atol=0.05)
    steps = features.difference(frames[:-1], frames[1:])[:, 300:303]
    np.testing.assert_allclose((steps**2).mean(0), 1, rtol=0.01)
    assert features.difference(frames, frames).abs().max() == 0


def test_what_was_never_seen_drowns_nothing() -> None:
    far = torch.as_tensor(np.full((1, 3), -9e9, np.float32).view(np.uint8).copy())
    layout = Layout.of(spaces.Box(-1, 1, (3,), np.float32))
    assert Features(layout)(far).tolist() == [[-10.0] * 3]


def test_statistics_are_weights_that_nothing_trains() -> None:
    encoder = VectorEncoder(LAYOUT, 8)
    assert {"features.mean", "features.scale", "features.change"} <= dict(encoder.named_parameters()).keys()
    encoder(shown(4)).sum().backward()
    torch.optim.AdamW(encoder.parameters(), lr=1.0, weight_decay=1.0).step()
    assert torch.equal(encoder.features.mean, torch.tensor(LAYOUT.mean))


def test_the_layout_chooses() -> None:
    assert isinstance(frame_encoder(GRID, 8, 4), ViewEncoder)
    assert isinstance(frame_encoder(LAYOUT, 8, 4), VectorEncoder)
    assert isinstance(effect_encoder(GRID, 4), ViewEffectEncoder)
    assert isinstance(effect_encoder(LAYOUT, 4), VectorEffectEncoder)
    assert isinstance(world_model_head(GRID, 8, A), WorldModelHead)
    assert isinstance(world_model_head(LAYOUT, 8, A), FeatureModelHead)


def test_an_extractor_reads_every_part_and_a_judge_every_change() -> None:
    torch.manual_seed(0)
    extractor = FrameHistoryExtractor(observation_space(), n_actions=A, width=16, channels=4)
    obs = observed()
    features = extractor(obs)
    at = 0
    for part in LAYOUT.parts:
        frames = obs["frames"].clone()
        frames[:, -1, at : at + part.n_bytes] = shown(B, seed=99)[:, at : at + part.n_bytes]
        at += part.n_bytes
        assert (extractor({**obs, "frames": frames}) != features).any(1).sum() >= 2, part.name
    judge = Judge(extractor, width=16, channels=4)
    future = torch.stack([obs["frames"][:, -1], shown(B, 7), shown(B, 8), obs["frames"][:, -1]], dim=1)
    score = judge(obs, future, torch.zeros(B, A, 1, dtype=torch.bool))
    assert score.shape == (B, A)
    assert torch.equal(score[:, 0], score[:, 3])
    assert (score[:, 0] != score[:, 1]).all()


def test_a_policy_takes_its_layout_from_the_space_and_keeps_its_statistics_with_its_weights() -> None:
    policy = HeadstartPolicy(observation_space(), spaces.Discrete(A), lambda _: 1e-3)
    assert policy.layout == LAYOUT
    assert torch.equal(policy.weights()["features_extractor.view.features.mean"], torch.tensor(LAYOUT.mean))
    obs: dict[str, Any] = observed()
    values = policy.evaluate_actions(obs, torch.zeros(B))[0]
    assert torch.isfinite(values).all()
    np.testing.assert_allclose(policy.probabilities({k: v.numpy() for k, v in obs.items()}).sum(1), 1)


# ---- pictures ----
RIVER = Layout.of(
    spaces.Dict({"river": spaces.Box(0, 255, (32, 40, 3), np.uint8), "speed": spaces.Box(-9, 9, (1,), np.float32)})
)


def rivers(n: int, seed: int = 0) -> Tensor:
    return torch.randint(256, (n, RIVER.width - 4), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def with_speed(pixels: Tensor, speed: float) -> Tensor:
    number = torch.tensor(np.float32([speed]).view(np.uint8))
    return torch.cat([pixels, number.expand(len(pixels), 4)], dim=1)


def test_pixels_and_numbers_are_told_apart() -> None:
    frames = with_speed(rivers(3), 2.0)
    for given in (frames, frames.float()):
        plain, (pixels,) = apart(RIVER, given)
        assert Features(RIVER.plain).raw(plain).tolist() == [[2.0]] * 3
        torch.testing.assert_close(pixels, frames[:, :-4].reshape(3, 3, 32, 40).float() / 255 - 0.5)
    assert apart(LAYOUT, shown(3))[1] == []


@pytest.mark.parametrize(("size", "left"), [((32, 32), 6 * 6), ((84, 84), 8 * 8), ((56, 160), 5 * 18), ((32, 33), 36)])
def test_pictures_of_any_size_are_halved_until_they_are_small(size: tuple[int, int], left: int) -> None:
    encoder = PictureEncoder((3, *size), channels=4)
    pixels = torch.zeros(2, 3, *size)
    assert encoder[0](pixels).flatten(1).shape == (2, 4 * left)
    assert encoder(pixels).shape == (2, encoder.width)


def test_a_picture_is_read_by_convolutions_and_what_is_beside_it_too() -> None:
    """What moves by four pixels moves by one where pictures have been halved twice."""
    encoder = frame_encoder(RIVER, 8, 4)
    assert isinstance(encoder, VectorEncoder)
    assert isinstance(encoder.pictures[0][0][0], nn.Conv2d)
    still, faster, other = with_speed(rivers(1), 0.0), with_speed(rivers(1), 1.0), with_speed(rivers(1, 1), 0.0)
    features = encoder(torch.cat([still, faster, other, still]))
    assert torch.equal(features[0], features[3])
    assert (features[0] != features[1]).any()
    assert (features[0] != features[2]).any()
    dot = torch.full((2, 3, 32, 40), -0.5)
    dot[0, :, 12:16, 12:16] = dot[1, :, 12:16, 16:20] = 0.5
    here, there = encoder.pictures[0][0](dot)
    torch.testing.assert_close(here[:, :, 1:-2], there[:, :, 2:-1])


def test_a_change_of_a_picture_or_a_number_is_an_effect() -> None:
    encoder = effect_encoder(RIVER, 4)
    still, faster, other = with_speed(rivers(1), 0.0), with_speed(rivers(1), 1.0), with_speed(rivers(1, 1), 0.0)
    effect = encoder(torch.cat([still] * 3), torch.cat([still, faster, other]))
    assert effect.shape == (3, encoder.width)
    assert len(torch.unique(effect, dim=0)) == 3
    encoder(still, other).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in encoder.pictures.parameters() if p.dim() > 1)


# ---- the world model ----
def certain(head: FeatureModelHead, before: Tensor, after: Tensor) -> tuple[Tensor, ...]:
    """The prediction of ``after`` by somebody who knows it."""
    change = head.features.difference(before, after)[:, head.numbers]
    chosen = head.features.raw(after)[:, ~head.numbers].split(head.choices, dim=1)
    return change, torch.zeros_like(change), *(20 * one for one in chosen)


def test_predictions_of_the_world_model_worked_by_hand() -> None:
    head = FeatureModelHead(LAYOUT, 8, A)
    before, after = shown(6, 1), shown(6, 2)
    assert [tuple(x.shape) for x in head(torch.zeros(6, 8), torch.zeros(6).long())] == [
        (6, 11),
        (6, 11),
        (6, 300),
        (6, 3),
        (6, 2),
    ]
    loss, right, changed = head.loss(certain(head, before, after), before, after, 10.0)
    assert right.all()
    assert float(loss) == pytest.approx(0, abs=1e-5)
    assert changed.shape == right.shape == (6, 14)
    loss, right, changed = head.loss(certain(head, before, before), before, after, 1.0)  # a copy of the present
    assert not right[changed][: int(changed.sum())].all()
    assert right[~changed].all()
    change = head.features.difference(before, after)[:, head.numbers]
    wrong = sum(int((head.features.raw(before) != head.features.raw(after))[:, at].any(1).sum()) for at in CHOSEN)
    assert float(loss) == pytest.approx((float((change**2).sum()) / 2 + 20 * wrong) / (6 * 14), rel=1e-4)


CHOSEN = (slice(0, 300), slice(305, 308), slice(308, 310))


def test_a_variance_learns_what_nobody_can_predict() -> None:
    """Coin flips of unit size have variance one; what is certain has none."""
    layout = Layout.of(spaces.Box(-9, 9, (2,), np.float32))
    head = FeatureModelHead(layout, 4, 1)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(head.layers.parameters(), 1e-2)
    before = torch.zeros(256, 8, dtype=torch.uint8)
    for _ in range(200):
        flips = torch.randint(0, 2, (256, 1), generator=generator) * 2.0 - 1
        after = torch.cat([flips, torch.ones(256, 1)], dim=1).contiguous().view(torch.uint8)
        prediction = head(torch.zeros(256, 4), torch.zeros(256).long())
        loss, _, _ = head.loss(prediction, before, after, 1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    mean, log_variance = prediction[0][0].detach(), prediction[1][0].detach()
    np.testing.assert_allclose(mean, [0, 1], atol=0.15)
    assert abs(float(log_variance[0])) < 0.3
    assert float(log_variance[1]) < -2
