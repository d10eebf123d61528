"""The judge sees consequences and the mission, and nothing else; equal cases share their work, not their gradient."""

import numpy as np
import pytest
import torch
from torch import Tensor

from headstart.models import encoders
from headstart.models import judge as judge_module
from headstart.models.judge import Judge

N, A, L, WORDS = 6, 7, 5, 20


def made(dropout: float = 0.0) -> Judge:
    """With a mission that matters, as it does once something has been learned."""
    torch.manual_seed(0)
    judge = Judge(WORDS, channels=4, width=8, dropout=dropout).double()
    for parameter in judge.film.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return judge


def case(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Frames, futures of which many are equal, revisits, missions of which two differ."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(11 * 18, size=(4, 50), dtype=np.uint8)
    frame, future = frames[rng.integers(4, size=N)], frames[rng.integers(4, size=(N, A))]
    revisit = rng.integers(2, size=(N, A)) == 1
    mission = rng.integers(1, WORDS, size=(2, L), dtype=np.uint8)[np.arange(N) % 2]
    mission[:, 3:] = 0  # padding
    return torch.as_tensor(frame), torch.as_tensor(future), torch.as_tensor(revisit), torch.as_tensor(mission)


def test_a_score_follows_its_future_and_not_its_button() -> None:
    judge, (frame, future, revisit, mission) = made(), case()
    order = torch.randperm(A, generator=torch.Generator().manual_seed(1))
    score = judge(frame, future, revisit, mission)
    assert score.shape == (N, A)
    torch.testing.assert_close(judge(frame, future[:, order], revisit[:, order], mission), score[:, order])


def test_equal_consequences_have_equal_scores() -> None:
    judge, (frame, future, revisit, mission) = made(dropout=0.5), case()
    future[:, 3], revisit[:, 3] = future[:, 5], revisit[:, 5]
    score = judge(frame, future, revisit, mission)
    assert torch.equal(score[:, 3], score[:, 5])
    assert (judge(frame, future, revisit, mission) != score).any()  # while it learns it forgets, but fairly


def test_present_future_and_revisit_all_count() -> None:
    judge, (frame, future, revisit, mission) = made(), case()
    score = judge(frame, future, revisit, mission)
    assert (judge(frame, future, ~revisit, mission) != score).all()
    assert (judge(frame, (future.int() + 18).clamp(max=197).to(torch.uint8), revisit, mission) != score).any()
    assert (judge((frame.int() + 18).clamp(max=197).to(torch.uint8), future, revisit, mission) != score).any()


def test_what_changed_is_marked() -> None:
    """The last plane of a case is where the two views differ; with all other weights zero it alone is scored."""
    judge = made()
    convolution = judge.views[0]
    torch.nn.init.zeros_(convolution.weight[:, :-1])
    torch.nn.init.ones_(convolution.bias)
    frame = torch.zeros(1, 50, dtype=torch.uint8)
    future = torch.zeros(1, 3, 50, dtype=torch.uint8)
    future[0, 1, 24], future[0, 2, 24] = 40, 90
    mission = torch.zeros(1, L, dtype=torch.uint8)
    score = judge(frame, future, torch.zeros(1, 3, dtype=torch.bool), mission)[0]
    assert score[1] == score[2] != score[0]


def test_the_direction_is_not_seen() -> None:
    """Nor anything else behind the view: a judge that read the compass could tell left from right."""
    judge, (frame, future, revisit, mission) = made(), case()
    turned_frame, turned = frame.clone(), future.clone()
    turned_frame[:, 49] ^= 1
    turned[:, :, 49] ^= 2
    assert torch.equal(judge(turned_frame, turned, revisit, mission), judge(frame, future, revisit, mission))


def test_the_mission_counts_once_it_has_been_learned() -> None:
    frame, future, revisit, mission = case()
    other = mission.flip(0)  # every state has the mission of another
    assert (other != mission).any(1).all()
    torch.manual_seed(0)
    fresh = Judge(WORDS, channels=4, width=8)
    torch.testing.assert_close(fresh(frame, future, revisit, mission), fresh(frame, future, revisit, other))
    judge = made()
    difference = judge(frame, future, revisit, mission) - judge(frame, future, revisit, other)
    assert (difference.amax(1) - difference.amin(1) > 1e-3).all()  # not a constant, which a softmax would not see


def test_more_padding_of_the_mission_changes_nothing() -> None:
    judge, (frame, future, revisit, mission) = made(), case()
    longer = torch.nn.functional.pad(mission, (0, 9))
    torch.testing.assert_close(judge(frame, future, revisit, longer), judge(frame, future, revisit, mission))


def test_equal_cases_share_their_work_and_not_their_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    judge, weight = made(), torch.randn(N, A, dtype=torch.float64)
    shared = judge(*case())
    together = torch.autograd.grad((shared.sin() * weight).sum(), list(judge.parameters()))
    for module in (judge_module, encoders):
        monkeypatch.setattr(module, "distinct_rows", lambda rows: (rows, torch.arange(len(rows))))
    states = [[part[i : i + 1] for part in case()] for i in range(N)]
    alone = torch.cat([judge(*state) for state in states])
    torch.testing.assert_close(shared, alone)
    apart = torch.autograd.grad((alone.sin() * weight).sum(), list(judge.parameters()))
    for one, other in zip(together, apart, strict=True):
        assert one.abs().max() > 1e-6
        torch.testing.assert_close(one, other)


def test_equal_cases_of_one_mission_are_scored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    judge, seen = made(), []
    score = judge.score.forward
    monkeypatch.setattr(judge.score, "forward", lambda features: (seen.append(len(features)), score(features))[1])
    frame, future, revisit, mission = case()
    before = np.repeat(frame[:, None, :49].numpy(), A, axis=1)
    cases = np.concatenate([before, future[:, :, :49].numpy(), revisit[..., None].numpy()], axis=2)
    told = np.concatenate([cases, np.repeat(mission[:, None].numpy(), A, axis=1)], axis=2)
    judge(frame, future, revisit, mission)
    judge(frame, future, revisit, mission[:1].expand(N, -1))
    assert seen == [len(np.unique(rows.reshape(N * A, -1), axis=0)) for rows in (told, cases)]
    assert seen[1] < seen[0] < N * A
