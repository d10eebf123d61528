"""Views and missions: what they become, and that equal ones are encoded once with the gradient of all of them."""

from typing import Any

import numpy as np
import pytest
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from headstart.envs import engine
from headstart.envs.banks import import_seeds
from headstart.envs.missions import encode
from headstart.models import encoders
from headstart.models.encoders import (
    CELL_PARTS,
    CELLS,
    VIEW,
    Memo,
    MissionEncoder,
    ViewEncoder,
    cell_classes,
    cell_table,
    distinct_rows,
)

SMALL_BYTES = arrays(np.uint8, st.tuples(st.integers(0, 40), st.integers(1, 12)), elements=st.integers(0, 3))


# ---- cells ----
def test_a_packed_cell_comes_apart_as_the_engine_puts_it_together() -> None:
    for kind, color, state in [(0, 0, 0), (4, 2, 1), (10, 5, 2), (8, 1, 0)]:
        packed = kind * engine.TYPE_STEP + color * engine.COLOR_STEP + state
        assert [int(part) for part in cell_classes(torch.tensor(packed))] == [kind, color, state]


def test_every_cell_has_a_code_of_its_own() -> None:
    table = cell_table()
    assert table.shape == (256, sum(CELL_PARTS))
    for part in table.split(CELL_PARTS, dim=1):
        assert (part.sum(1) == 1).all()
    cells = CELL_PARTS[0] * engine.TYPE_STEP
    assert len(torch.unique(table[:cells], dim=0)) == cells


def test_real_views_survive_the_table() -> None:
    cells = np.unique(engine.observe(import_seeds("BabyAI-GoToLocal-v0", range(30)).rows)[:, :CELLS])
    parts = cell_table()[torch.as_tensor(cells).long()].split(CELL_PARTS, dim=1)
    kind, color, state = (part.argmax(1).numpy() for part in parts)
    np.testing.assert_equal(kind * engine.TYPE_STEP + color * engine.COLOR_STEP + state, cells)


# ---- distinct rows ----
@settings(max_examples=150, deadline=None)
@given(SMALL_BYTES)
def test_distinct_rows_put_back_in_place_are_the_rows(rows: np.ndarray) -> None:
    distinct, place = distinct_rows(torch.as_tensor(rows))
    np.testing.assert_equal(distinct[place].numpy(), rows)
    assert len(distinct) == len(np.unique(rows, axis=0))
    assert distinct.dtype == torch.uint8


@pytest.mark.parametrize(
    ("n", "width"), [(0, 5), (3, 0), (0, 0), (1, 2**20 + 1), (2, 2**20), (70, 18_816), (17_000, 62)]
)
def test_many_bytes_have_the_keys_of_each_row_by_itself(n: int, width: int) -> None:
    """And no copy of all is made that is eight times as large: that takes several times as long."""

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            if isinstance(made, Tensor) and made.dtype is torch.int64:
                self.elements = max(self.elements, made.numel())
            return made

    rows = torch.randint(256, (n, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    alone = [encoders.row_keys(row[None]) for row in rows]
    with Largest() as largest:
        keys = encoders.row_keys(rows)
    assert torch.equal(keys, torch.cat(alone) if n else torch.zeros(0, dtype=torch.int64))
    assert largest.elements <= max(2**15, width)


def test_rows_that_nearly_agree_are_told_apart() -> None:
    rows = torch.cat([torch.eye(58, dtype=torch.uint8) * value for value in (1, 2, 128, 255)])
    rows = torch.cat([rows, rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]])
    distinct, place = distinct_rows(rows)
    assert len(distinct) == len(rows) // 2
    assert torch.equal(distinct[place], rows)
    two_swapped = torch.tensor([[1, 2] + [0] * 48, [2, 1] + [0] * 48], dtype=torch.uint8)
    assert len(distinct_rows(two_swapped)[0]) == 2


@settings(max_examples=100, deadline=None)
@given(st.lists(SMALL_BYTES, min_size=1, max_size=6), st.sampled_from([1, 8, 1000]))
def test_a_memo_has_what_would_have_been_computed(batches: list[np.ndarray], limit: int) -> None:
    width = min(batch.shape[1] for batch in batches)
    memo, asked = Memo(limit), []

    def compute(rows: Tensor) -> tuple[Tensor, Tensor]:
        asked.extend(map(tuple, rows.tolist()))
        return rows.double() ** 2, rows.sum(1)

    for batch in batches:
        rows = torch.as_tensor(batch[:, :width])
        (squares, sums), place = memo("numbers", rows, compute)
        assert torch.equal(squares[place], rows.double() ** 2)
        assert torch.equal(sums[place], rows.sum(1))
        assert len(memo.kept["numbers"][0]) <= len(squares)
    if limit == 1000:
        assert len(asked) == len(set(asked))  # nothing twice


def test_what_was_interrupted_is_computed_again() -> None:
    memo, rows = Memo(), torch.ones(3, 4, dtype=torch.uint8)

    def interrupted(rows: Tensor) -> tuple[Tensor]:
        raise KeyboardInterrupt

    memo("sums", rows * 2, lambda rows: (rows.sum(1),))
    with pytest.raises(KeyboardInterrupt):
        memo("sums", rows, interrupted)
    (sums,), place = memo("sums", rows, lambda rows: (rows.sum(1),))
    assert sums[place].tolist() == [4, 4, 4]


def test_a_full_memo_starts_over() -> None:
    memo, asked = Memo(limit=4), []
    for value in (1, 2, 1, 3, 4, 5, 1):
        rows = torch.full((1, 3), value, dtype=torch.uint8)
        memo("rows", rows, lambda rows: (asked.append(int(rows[0, 0])), (rows,))[1])
        (table,), place = memo("others", rows, lambda rows: (rows + 7,))
        assert table[place].unique() == value + 7  # of the same row, and not what the first were
    assert asked == [1, 2, 3, 4, 5, 1]
    assert {what: len(known) for what, (known, _) in memo.kept.items()} == {"rows": 2, "others": 2}


def test_real_views_repeat_and_are_found_again() -> None:
    rows = import_seeds("MiniGrid-DoorKey-5x5-v0", range(200)).rows
    view = torch.as_tensor(engine.observe(rows))
    distinct, place = distinct_rows(view)
    assert torch.equal(distinct[place], view)
    assert len(distinct) == len(np.unique(view.numpy(), axis=0)) < 100


# ---- views ----
def random_views(n: int, distinct: int, seed: int = 0) -> Tensor:
    """(n, 50) frames, of which only ``distinct`` differ."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(CELL_PARTS[0] * 18, size=(distinct, CELLS + 1), dtype=np.uint8)
    return torch.as_tensor(frames[rng.integers(distinct, size=n)])


def one_by_one(encoder: ViewEncoder, frame: Tensor) -> Tensor:
    """Every view through the layers by itself, nothing shared."""
    planes = encoder.cell[frame[:, :CELLS].long()].reshape(-1, VIEW, VIEW, sum(CELL_PARTS)).permute(0, 3, 1, 2)
    return torch.cat([encoder.layers(plane[None]) for plane in planes])


def test_equal_views_share_their_work_and_not_their_gradient() -> None:
    torch.manual_seed(0)
    encoder = ViewEncoder(width=6, channels=4).double()
    frame, weight = random_views(40, distinct=7), torch.randn(40, 6, dtype=torch.float64)
    shared, alone = encoder(frame), one_by_one(encoder, frame)
    torch.testing.assert_close(shared, alone)
    gradients = [
        torch.autograd.grad((out.tanh() * weight).sum(), list(encoder.parameters())) for out in (shared, alone)
    ]
    for one, other in zip(*gradients, strict=True):
        assert one.abs().max() > 1e-3
        torch.testing.assert_close(one, other)


def test_each_distinct_view_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = ViewEncoder(width=6, channels=4)
    seen: list[int] = []
    layers = encoder.layers.forward
    monkeypatch.setattr(encoder.layers, "forward", lambda planes: (seen.append(len(planes)), layers(planes))[1])
    encoder(random_views(40, distinct=7))
    assert seen == [7]


def test_the_direction_is_not_part_of_a_view() -> None:
    encoder, frame = ViewEncoder(width=6, channels=4), random_views(3, distinct=3)
    turned = frame.clone()
    turned[:, CELLS] ^= 1
    assert torch.equal(encoder(frame), encoder(turned))


def test_where_a_thing_is_makes_a_difference() -> None:
    """Including the corners: the convolutions are valid, not blind at the rim."""
    encoder = ViewEncoder(width=16, channels=8)
    frame = torch.zeros(CELLS, CELLS + 1, dtype=torch.uint8)
    frame[torch.arange(CELLS), torch.arange(CELLS)] = 5 * 18
    features = encoder(frame)
    assert (torch.cdist(features, features) + torch.eye(CELLS)).min() > 1e-4


# ---- missions ----
WORDS = 20


def mission_encoder() -> MissionEncoder:
    torch.manual_seed(0)
    made = MissionEncoder(WORDS, width=6).double()
    for parameter in made.parameters():  # with a bias that is not zero, as after a fit
        with torch.no_grad():
            parameter += 0.1 * torch.randn_like(parameter)
    with torch.no_grad():
        made.word.weight[0] = 0  # padding
    return made


def sentences(n: int = 40, distinct: int = 7, length: int = 9) -> Tensor:
    """(n, length) missions of one to ``length`` words, of which only ``distinct`` differ; the first is empty."""
    rng = np.random.default_rng(0)
    words = rng.integers(1, WORDS, size=(distinct, length), dtype=np.uint8)
    words[np.arange(length) >= rng.integers(1, length + 1, size=(distinct, 1))] = 0
    words[0] = 0
    return torch.as_tensor(words[np.arange(n) % distinct])


def test_a_mission_is_the_greatest_of_its_phrases_of_three_words() -> None:
    """A convolution, written out: nothing stands before the first word or after the last."""
    encoder, mission = mission_encoder(), sentences(7)
    kernel = rearrange(encoder.phrase.weight, "(side d) e -> side d e", side=3)
    wanted = []
    for sentence in mission.tolist():
        words = [encoder.word.weight[word] for word in sentence if word]
        nothing = torch.zeros(6, dtype=torch.float64)
        around = [nothing, *words, nothing]
        phrases = []
        for i in range(len(words)):
            phrase = sum(part @ word for part, word in zip(kernel, around[i : i + 3], strict=True))
            phrases.append((phrase + encoder.bias).relu())
        wanted.append(torch.stack(phrases).amax(0) if phrases else nothing)
    torch.testing.assert_close(encoder(mission), torch.stack(wanted))


@pytest.mark.parametrize("more", [1, 5, 60])
def test_padding_changes_nothing(more: int) -> None:
    encoder, mission = mission_encoder(), sentences()
    padded = torch.nn.functional.pad(mission, (0, more))
    torch.testing.assert_close(encoder(padded), encoder(mission), rtol=1e-12, atol=1e-12)
    alone = torch.cat([encoder(sentence[None][:, : max(1, int((sentence > 0).sum()))]) for sentence in mission])
    torch.testing.assert_close(alone, encoder(mission), rtol=1e-12, atol=1e-12)


def test_a_mission_longer_than_any_before_is_read_to_its_end() -> None:
    encoder, long = mission_encoder(), torch.ones(1, 100, dtype=torch.uint8)
    other = long.clone()
    other[0, -1] = 7
    assert not torch.equal(encoder(long), encoder(other))


def test_an_empty_mission_is_zero() -> None:
    encoder = mission_encoder()
    assert torch.equal(encoder(torch.zeros(3, 5, dtype=torch.uint8)), torch.zeros(3, 6, dtype=torch.float64))
    some = encoder(sentences(7))
    assert torch.equal(some[0], torch.zeros(6, dtype=torch.float64))  # among others too
    assert (some[1:] > 0).any(1).all()


def test_the_order_of_words_counts() -> None:
    there_and_back = "put the ball next to the box", "put the box next to the ball"
    mission = torch.as_tensor(np.stack([encode(words, length=9) for words in there_and_back]))
    assert sorted(mission[0].tolist()) == sorted(mission[1].tolist())  # the same bag of words
    torch.manual_seed(0)
    one, other = MissionEncoder(int(mission.max()) + 1, width=32)(mission)
    assert (one - other).abs().max() > 0.1


def test_equal_missions_are_encoded_once_with_the_gradient_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, mission = mission_encoder(), sentences()
    weight = torch.randn(len(mission), 6, dtype=torch.float64)
    parameters, looked_up = [encoder.word.weight, encoder.phrase.weight, encoder.bias], []
    assert len(parameters) == len(list(encoder.parameters()))

    def gradient(out: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((out.tanh() * weight).sum(), parameters)

    lookup = torch.nn.functional.embedding

    def counted(words: Tensor, table: Tensor, **options: Any) -> Tensor:
        looked_up.append(len(words))
        return lookup(words, table, **options)

    with monkeypatch.context() as patch:
        patch.setattr(encoders.F, "embedding", counted)
        shared = encoder(mission)
    assert looked_up == [7] * 3
    together = gradient(shared)
    monkeypatch.setattr(encoders, "distinct_rows", lambda rows: (rows, torch.arange(len(rows))))
    alone = torch.cat([encoder(mission[i : i + 1]) for i in range(len(mission))])
    torch.testing.assert_close(shared, alone)
    for one, other in zip(together, gradient(alone), strict=True):
        assert one.abs().max() > 1e-3
        torch.testing.assert_close(one, other)
    assert (together[0][0] == 0).all()  # padding learns nothing
