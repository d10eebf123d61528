"""The judge sees consequences and nothing else; equal cases share their work and not their gradient."""

import numpy as np
import pytest
import torch
from torch import Tensor

from headstart.models import judge as module
from headstart.models.judge import Judge

N, A = 6, 7


def made(dropout: float = 0.0) -> Judge:
    torch.manual_seed(0)
    return Judge(channels=4, width=8, dropout=dropout).double()


def case(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Frames, futures of which many are equal, revisits."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(11 * 18, size=(4, 50), dtype=np.uint8)
    frame, future = frames[rng.integers(4, size=N)], frames[rng.integers(4, size=(N, A))]
    return torch.as_tensor(frame), torch.as_tensor(future), torch.as_tensor(rng.integers(2, size=(N, A)) == 1)


def test_a_score_follows_its_future_and_not_its_button() -> None:
    judge, (frame, future, revisit) = made(), case()
    order = torch.randperm(A, generator=torch.Generator().manual_seed(1))
    score = judge(frame, future, revisit)
    assert score.shape == (N, A)
    torch.testing.assert_close(judge(frame, future[:, order], revisit[:, order]), score[:, order])


def test_equal_consequences_have_equal_scores() -> None:
    judge, (frame, future, revisit) = made(dropout=0.5), case()
    future[:, 3], revisit[:, 3] = future[:, 5], revisit[:, 5]
    score = judge(frame, future, revisit)
    assert torch.equal(score[:, 3], score[:, 5])
    assert (judge(frame, future, revisit) != score).any()  # while it learns it forgets, but fairly


def test_present_future_and_revisit_all_count() -> None:
    judge, (frame, future, revisit) = made(), case()
    score = judge(frame, future, revisit)
    assert (judge(frame, future, ~revisit) != score).all()
    assert (judge(frame, (future.int() + 18).clamp(max=197).to(torch.uint8), revisit) != score).any()
    assert (judge((frame.int() + 18).clamp(max=197).to(torch.uint8), future, revisit) != score).any()


def test_what_changed_is_marked() -> None:
    """The last plane of a case is where the two views differ; with all other weights zero it alone is scored."""
    judge = made()
    convolution = judge.views[0]
    torch.nn.init.zeros_(convolution.weight[:, :-1])
    torch.nn.init.ones_(convolution.bias)
    frame = torch.zeros(1, 50, dtype=torch.uint8)
    future = torch.zeros(1, 3, 50, dtype=torch.uint8)
    future[0, 1, 24], future[0, 2, 24] = 40, 90
    score = judge(frame, future, torch.zeros(1, 3, dtype=torch.bool))[0]
    assert score[1] == score[2] != score[0]


def test_the_direction_is_not_seen() -> None:
    """Nor anything else behind the view: a judge that read the compass could tell left from right."""
    judge, (frame, future, revisit) = made(), case()
    turned_frame, turned = frame.clone(), future.clone()
    turned_frame[:, 49] ^= 1
    turned[:, :, 49] ^= 2
    assert torch.equal(judge(turned_frame, turned, revisit), judge(frame, future, revisit))


def test_equal_cases_share_their_work_and_not_their_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    judge, weight = made(), torch.randn(N, A, dtype=torch.float64)
    shared = judge(*case())
    together = torch.autograd.grad((shared.sin() * weight).sum(), list(judge.parameters()))
    monkeypatch.setattr(module, "distinct_rows", lambda rows: (rows, torch.arange(len(rows))))
    states = [[part[i : i + 1] for part in case()] for i in range(N)]
    alone = torch.cat([judge(*state) for state in states])
    torch.testing.assert_close(shared, alone)
    apart = torch.autograd.grad((alone.sin() * weight).sum(), list(judge.parameters()))
    for one, other in zip(together, apart, strict=True):
        assert one.abs().max() > 1e-6
        torch.testing.assert_close(one, other)


def test_equal_cases_are_scored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    judge, seen = made(), []
    score = judge.score.forward
    monkeypatch.setattr(judge.score, "forward", lambda features: (seen.append(len(features)), score(features))[1])
    frame, future, revisit = case()
    judge(frame, future, revisit)
    before = np.repeat(frame[:, None, :49].numpy(), A, axis=1)
    cases = np.concatenate([before, future[:, :, :49].numpy(), revisit[..., None].numpy()], axis=2)
    assert seen == [len(np.unique(cases.reshape(N * A, -1), axis=0))]
    assert seen[0] < N * A
