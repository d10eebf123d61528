"""Memory: masked before the episode, blind to nothing in it, defined when there is no past at all."""

import pytest
import torch
from torch import Tensor

from headstart.models.history import HistoryAttention

WIDTH, HISTORY, A = 16, 3, 7
NONE = A  # the action that marks a frame from before the episode


@pytest.fixture
def memory() -> HistoryAttention:
    torch.manual_seed(0)
    return HistoryAttention(WIDTH, HISTORY, A).double()


def remembered(b: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Features of distinct frames, their place in time, actions."""
    generator = torch.Generator().manual_seed(1)
    feature = torch.randn(9, WIDTH, generator=generator, dtype=torch.float64)
    place = torch.randint(9, (b, HISTORY + 1), generator=generator)
    return feature, place, torch.randint(A, (b, HISTORY), generator=generator)


def attention_by_hand(memory: HistoryAttention, feature: Tensor, place: Tensor, action: Tensor) -> Tensor:
    """One state after the other, one head after the other, with a softmax written out."""
    out, size = [], WIDTH // memory.heads
    for where, taken in zip(place.tolist(), action.tolist(), strict=True):
        query = memory.query(feature[where[-1]])
        entries = [memory.null]
        for age, (frame, a) in enumerate(zip(where[:-1], taken, strict=True)):
            if a != NONE:
                entries.append(memory.key_value(feature[frame]) + memory.action.weight[a] + memory.age[age])
        heads = []
        for h in range(memory.heads):
            at = slice(h * size, (h + 1) * size)
            score = torch.stack([(entry[:WIDTH][at] * query[at]).sum() / size**0.5 for entry in entries])
            heads.append((torch.softmax(score, 0)[:, None] * torch.stack([e[WIDTH:][at] for e in entries])).sum(0))
        out.append(memory.out(torch.cat(heads)))
    return torch.stack(out)


def test_it_is_attention_written_out(memory: HistoryAttention) -> None:
    feature, place, action = remembered()
    action[0] = NONE
    action[1, :2] = NONE
    torch.testing.assert_close(memory(feature, place, action), attention_by_hand(memory, feature, place, action))


def test_what_lies_before_the_episode_is_masked(memory: HistoryAttention) -> None:
    feature, place, action = remembered()
    action[:, :2] = NONE
    elsewhere = place.clone()
    elsewhere[:, :2] = (place[:, :2] + 1) % 9
    assert torch.equal(memory(feature, place, action), memory(feature, elsewhere, action))
    elsewhere[:, 2] = (place[:, 2] + 1) % 9
    assert (memory(feature, place, action) != memory(feature, elsewhere, action)).any(1).all()


def test_the_first_step_of_an_episode_reads_the_null_entry(memory: HistoryAttention) -> None:
    feature, place, action = remembered()
    out = memory(feature, place, torch.full_like(action, NONE))
    value = memory.null[WIDTH:]
    torch.testing.assert_close(out, memory.out(value).expand(5, -1))


def test_masked_frames_have_no_gradient(memory: HistoryAttention) -> None:
    feature, _, action = remembered(1)
    feature.requires_grad_()
    action[0] = torch.tensor([NONE, NONE, 2])
    memory(feature, torch.tensor([[0, 1, 2, 3]]), action).square().sum().backward()
    assert feature.grad is not None
    moved = feature.grad.abs().sum(1) > 0
    assert moved.tolist() == [False, False, True, True] + [False] * 5


@pytest.mark.parametrize("age", range(HISTORY))
def test_every_age_and_every_action_counts(memory: HistoryAttention, age: int) -> None:
    feature, place, action = remembered()
    before = memory(feature, place, action)
    other = action.clone()
    other[:, age] = (action[:, age] + 1) % A
    assert (memory(feature, place, other) != before).any(1).all()
    moved = place.clone()
    moved[:, age] = (place[:, age] + 1) % 9
    assert (memory(feature, moved, action) != before).any(1).all()


def test_the_order_of_the_past_counts(memory: HistoryAttention) -> None:
    feature, _, _ = remembered(1)
    action, place = torch.tensor([[2, 2, 2]]), torch.tensor([[0, 1, 2, 3]])
    swapped = torch.tensor([[1, 0, 2, 3]])
    assert not torch.allclose(memory(feature, place, action), memory(feature, swapped, action))
