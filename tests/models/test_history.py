"""Memory: masked before the episode, blind to nothing in it, defined when there is no past at all, hidden at will."""

import pytest
import torch
from torch import Tensor

from headstart.models.history import HistoryAttention, Recall, hide_past, swap_context

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


def remember(memory: HistoryAttention, feature: Tensor, place: Tensor, action: Tensor) -> Tensor:
    return memory(feature[place[:, -1]], memory.key_value(feature)[place[:, :-1]], action)


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
    torch.testing.assert_close(
        remember(memory, feature, place, action), attention_by_hand(memory, feature, place, action)
    )


def test_what_lies_before_the_episode_is_masked(memory: HistoryAttention) -> None:
    feature, place, action = remembered()
    action[:, :2] = NONE
    elsewhere = place.clone()
    elsewhere[:, :2] = (place[:, :2] + 1) % 9
    assert torch.equal(remember(memory, feature, place, action), remember(memory, feature, elsewhere, action))
    elsewhere[:, 2] = (place[:, 2] + 1) % 9
    assert (remember(memory, feature, place, action) != remember(memory, feature, elsewhere, action)).any(1).all()


def test_the_first_step_of_an_episode_reads_the_null_entry(memory: HistoryAttention) -> None:
    feature, place, action = remembered()
    out = remember(memory, feature, place, torch.full_like(action, NONE))
    value = memory.null[WIDTH:]
    torch.testing.assert_close(out, memory.out(value).expand(5, -1))


def test_masked_frames_have_no_gradient(memory: HistoryAttention) -> None:
    feature, _, action = remembered(1)
    feature.requires_grad_()
    action[0] = torch.tensor([NONE, NONE, 2])
    remember(memory, feature, torch.tensor([[0, 1, 2, 3]]), action).square().sum().backward()
    assert feature.grad is not None
    moved = feature.grad.abs().sum(1) > 0
    assert moved.tolist() == [False, False, True, True] + [False] * 5


@pytest.mark.parametrize("age", range(HISTORY))
def test_every_age_and_every_action_counts(memory: HistoryAttention, age: int) -> None:
    feature, place, action = remembered()
    before = remember(memory, feature, place, action)
    other = action.clone()
    other[:, age] = (action[:, age] + 1) % A
    assert (remember(memory, feature, place, other) != before).any(1).all()
    moved = place.clone()
    moved[:, age] = (place[:, age] + 1) % 9
    assert (remember(memory, feature, moved, action) != before).any(1).all()


def test_the_order_of_the_past_counts(memory: HistoryAttention) -> None:
    feature, _, _ = remembered(1)
    action, place = torch.tensor([[2, 2, 2]]), torch.tensor([[0, 1, 2, 3]])
    swapped = torch.tensor([[1, 0, 2, 3]])
    assert not torch.allclose(remember(memory, feature, place, action), remember(memory, feature, swapped, action))


# ---- hidden pasts ----
HIDDEN = A + 1  # the action that training hides


def observed(b: int = 20_000) -> dict[str, Tensor]:
    """The first steps of episodes and later ones, in equal shares: how much of the past is there goes from 0 to all."""
    generator = torch.Generator().manual_seed(2)
    action = torch.randint(A, (b, HISTORY), generator=generator, dtype=torch.uint8)
    missing = HISTORY - torch.arange(b)[:, None] % (HISTORY + 1)
    action[torch.arange(HISTORY) < missing] = NONE
    frames = torch.randint(198, (b, HISTORY + 1, 50), generator=generator, dtype=torch.uint8)
    return {"frames": frames, "actions": action, "mission": torch.ones(b, 4, dtype=torch.uint8)}


def hidden(obs: dict[str, Tensor], past: float, actions: float, seed: int = 3) -> dict[str, Tensor]:
    return hide_past(obs, A, past, actions, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("past", "actions"), [(0.3, 0.0), (0.0, 0.3), (0.2, 0.5), (1.0, 0.0), (0.0, 1.0)])
def test_hidden_pasts_have_their_shares(past: float, actions: float) -> None:
    obs = observed()
    before, after = obs["actions"], hidden(obs, past, actions)["actions"]
    whole = (before != NONE).all(1)
    kinds = [(after == NONE).all(1), (after == HIDDEN).all(1), (after == before).all(1)]
    shares = [float(kind[whole].float().mean()) for kind in kinds]
    assert shares == pytest.approx([past, actions, 1 - past - actions], abs=0.02)
    assert sum(shares) == pytest.approx(1)  # a whole past is hidden or it is not


@pytest.mark.parametrize(("past", "actions"), [(0.3, 0.3), (0.0, 1.0)])
def test_what_lies_before_the_episode_stays_masked(past: float, actions: float) -> None:
    obs = observed()
    before, after = obs["actions"], hidden(obs, past, actions)["actions"]
    assert (after[before == NONE] == NONE).all()
    half_hidden = (after == HIDDEN).any(1)
    assert ((after == HIDDEN) == (before != NONE))[half_hidden].all()  # all of its actions, and nothing else


def test_only_actions_are_touched_and_the_batch_is_left_alone() -> None:
    obs = observed(50)
    before = {name: value.clone() for name, value in obs.items()}
    after = hidden(obs, 0.3, 0.3)
    assert all(torch.equal(obs[name], before[name]) for name in obs)
    assert not torch.equal(after["actions"], before["actions"])
    assert after["actions"].dtype == torch.uint8
    assert all(torch.equal(after[name], before[name]) for name in ("frames", "mission"))


def test_the_generator_decides_what_is_hidden() -> None:
    obs = observed(200)
    torch.manual_seed(0)
    one = hidden(obs, 0.3, 0.3)
    torch.manual_seed(1)
    assert torch.equal(hidden(obs, 0.3, 0.3)["actions"], one["actions"])
    assert not torch.equal(hidden(obs, 0.3, 0.3, seed=4)["actions"], one["actions"])


def test_nothing_to_hide_draws_nothing() -> None:
    """A fit without hidden pasts is the fit that it was before they existed."""
    generator = torch.Generator().manual_seed(0)
    state, obs = generator.get_state(), observed(5)
    assert hide_past(obs, A, 0.0, 0.0, generator) is obs
    short = {**obs, "actions": obs["actions"][:, :0]}
    assert hide_past(short, A, 0.5, 0.5, generator) is short
    assert torch.equal(generator.get_state(), state)


def test_a_hidden_action_is_a_word_of_its_own(memory: HistoryAttention) -> None:
    """It reads as no action that was taken, and what was seen there is read as before."""
    feature, place, action = remembered()
    told = remember(memory, feature, place, torch.full_like(action, HIDDEN))
    for a in range(A):
        assert (remember(memory, feature, place, torch.full_like(action, a)) != told).any(1).all()
    moved = place.clone()
    moved[:, 1] = (place[:, 1] + 1) % 9
    assert (remember(memory, feature, moved, torch.full_like(action, HIDDEN)) != told).any(1).all()


def test_recall_worked_by_hand() -> None:
    """Two past frames (1, 0) and (0, 2), the present (3, 5): the maximum (1, 2), times the present."""
    recall = Recall(2)
    for layer in (recall.seen, recall.now):
        torch.nn.init.eye_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    now, past = torch.tensor([[3.0, 5.0]]), recall.seen(torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])).relu()
    assert recall(now, past, torch.tensor([[False, False]])).tolist() == [[3.0, 10.0]]
    assert recall(now, past, torch.tensor([[True, False]])).tolist() == [[0.0, 10.0]]
    assert recall(now, past, torch.tensor([[True, True]])).tolist() == [[0.0, 0.0]]


# ---- swapped contexts ----
@pytest.mark.parametrize("recent", [0, 2, 4])
def test_contexts_are_swapped_and_the_present_is_not(recent: int) -> None:
    """Frame t of state b is (b, t), its action 10 b + t, its mission b."""
    frame = torch.stack(torch.meshgrid(torch.arange(3), torch.arange(5), indexing="ij"), dim=2)  # (3, 5, 2)
    obs = {"frames": frame, "actions": 10 * frame[:, :-1, 0] + frame[:, :-1, 1], "mission": torch.arange(3)[:, None]}
    kept = {name: value.clone() for name, value in obs.items()}
    swapped = swap_context(obs, torch.tensor([2, 1, 0]), recent)
    older = 4 - recent
    for here, there in enumerate([2, 1, 0]):
        assert swapped["mission"][here].tolist() == [there]
        assert swapped["frames"][here].tolist() == [[there if t < older else here, t] for t in range(5)]
        assert swapped["actions"][here].tolist() == [10 * (there if t < older else here) + t for t in range(4)]
    assert all(torch.equal(obs[name], kept[name]) for name in obs)
