"""The judge sees situations and consequences, never buttons; equal effects share their work, not their gradient."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from headstart.models import encoders
from headstart.models import judge as judge_module
from headstart.models.judge import Judge
from headstart.models.policy import FrameHistoryExtractor

N, A, S, L, T, WORDS = 6, 7, 2, 5, 3, 20
SPACE = spaces.Dict(
    {
        "frames": spaces.Box(0, 255, (T, 50), np.uint8),
        "actions": spaces.Box(0, 255, (T - 1,), np.uint8),
        "mission": spaces.Box(0, WORDS - 1, (L,), np.uint8),
    }
)
Case = tuple[dict[str, Tensor], Tensor, Tensor]


def made(dropout: float = 0.0, memory: int = T - 1) -> Judge:
    torch.manual_seed(0)
    situation = FrameHistoryExtractor(SPACE, A, memory=memory, width=8, channels=4)
    return Judge(situation, signs=S, channels=4, width=8, dropout=dropout).double()


def case(seed: int = 0) -> Case:
    """Observations, futures of which many are equal, signs; two missions."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(11 * 18, size=(4, 50), dtype=np.uint8)
    mission = rng.integers(1, WORDS, size=(2, L), dtype=np.uint8)[np.arange(N) % 2]
    mission[:, 3:] = 0  # padding
    obs = {
        "frames": frames[rng.integers(4, size=(N, T))],
        "actions": rng.integers(A, size=(N, T - 1), dtype=np.uint8),
        "mission": mission,
    }
    future, signs = frames[rng.integers(4, size=(N, A))], rng.integers(2, size=(N, A, S)) == 1
    return {name: torch.as_tensor(x) for name, x in obs.items()}, torch.as_tensor(future), torch.as_tensor(signs)


def test_a_score_follows_its_future_and_not_its_button() -> None:
    judge, (obs, future, signs) = made(), case()
    order = torch.randperm(A, generator=torch.Generator().manual_seed(1))
    score = judge(obs, future, signs)
    assert score.shape == (N, A)
    torch.testing.assert_close(judge(obs, future[:, order], signs[:, order]), score[:, order])


def test_equal_consequences_have_equal_scores() -> None:
    judge, (obs, future, signs) = made(), case()
    future[:, 3], signs[:, 3] = future[:, 5], signs[:, 5]
    score = judge(obs, future, signs)
    torch.testing.assert_close(score[:, 3], score[:, 5])


def test_present_future_signs_past_and_mission_all_count() -> None:
    judge, (obs, future, signs) = made(), case()
    score = judge(obs, future, signs)
    assert (judge(obs, future, ~signs) != score).all()
    other = (future.int() + 18).clamp(max=197).to(torch.uint8)
    assert (judge(obs, other, signs) != score).any()
    for name in obs:
        changed = {**obs, name: obs[name].roll(1, dims=0)}  # what another state has there
        difference = judge(changed, future, signs) - score
        assert (difference.amax(1) - difference.amin(1) > 1e-4).any(), name  # not a constant, which softmax ignores


def test_without_memory_the_past_does_not_count() -> None:
    judge, (obs, future, signs) = made(memory=0), case()
    earlier = obs["frames"].clone()
    earlier[:, :-1] ^= 1
    other = {**obs, "frames": earlier, "actions": obs["actions"].roll(1, dims=0)}
    assert torch.equal(judge(other, future, signs), judge(obs, future, signs))


def test_what_changed_is_marked() -> None:
    """The last plane of an effect is where the two views differ; with all other weights zero it alone is scored."""
    judge = made()
    convolution = judge.views.layers[0]
    torch.nn.init.zeros_(convolution.weight[:, :-1])
    torch.nn.init.ones_(convolution.bias)
    obs = {
        "frames": torch.zeros(1, T, 50, dtype=torch.uint8),
        "actions": torch.full((1, T - 1), A, dtype=torch.uint8),
        "mission": torch.zeros(1, L, dtype=torch.uint8),
    }
    future = torch.zeros(1, 3, 50, dtype=torch.uint8)
    future[0, 1, 24], future[0, 2, 24] = 40, 90
    score = judge(obs, future, torch.zeros(1, 3, S, dtype=torch.bool))[0]
    assert score[1] == score[2] != score[0]


def test_the_direction_is_not_seen() -> None:
    """Nor anything else behind the view: a judge that read the compass could tell left from right."""
    judge, (obs, future, signs) = made(), case()
    turned = {**obs, "frames": obs["frames"].clone()}
    turned["frames"][:, :, 49] ^= 1
    turned_future = future.clone()
    turned_future[:, :, 49] ^= 2
    assert torch.equal(judge(turned, turned_future, signs), judge(obs, future, signs))


def test_more_padding_of_the_mission_changes_nothing() -> None:
    judge, (obs, future, signs) = made(), case()
    longer = {**obs, "mission": torch.nn.functional.pad(obs["mission"], (0, 9))}
    torch.testing.assert_close(judge(longer, future, signs), judge(obs, future, signs))


def test_equal_effects_share_their_work_and_not_their_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    judge, weight = made(), torch.randn(N, A, dtype=torch.float64)
    shared = judge(*case())
    together = torch.autograd.grad((shared.sin() * weight).sum(), list(judge.parameters()))
    for module in (judge_module, encoders):
        monkeypatch.setattr(module, "distinct_rows", lambda rows: (rows, torch.arange(len(rows))))
    obs, future, signs = case()
    alone = torch.cat(
        [judge({name: x[i : i + 1] for name, x in obs.items()}, future[i : i + 1], signs[i : i + 1]) for i in range(N)]
    )
    torch.testing.assert_close(shared, alone)
    apart = torch.autograd.grad((alone.sin() * weight).sum(), list(judge.parameters()))
    assert max(gradient.abs().max() for gradient in together) > 1e-3
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other)


def test_equal_effects_are_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    judge, seen = made(), []
    encode = judge.views.forward
    counted = lambda before, after: (seen.append(len(before)), encode(before, after))[1]  # noqa: E731
    monkeypatch.setattr(judge.views, "forward", counted)
    obs, future, signs = case()
    judge(obs, future, signs)
    before = np.repeat(obs["frames"][:, -1:, :49].numpy(), A, axis=1)
    effects = np.concatenate([before, future[:, :, :49].numpy(), signs.numpy()], axis=2)
    assert seen == [len(np.unique(effects.reshape(N * A, -1), axis=0))]
    assert seen[0] < N * A
