"""The head that predicts the next view."""

import torch

from headstart.models.encoders import CELL_PARTS, CELLS
from headstart.models.world_model import WorldModelHead


def made() -> WorldModelHead:
    torch.manual_seed(0)
    return WorldModelHead(width=8, n_actions=7, hidden=16)


def test_every_part_of_every_cell_is_predicted() -> None:
    parts = made()(torch.randn(5, 8), torch.arange(5))
    assert [tuple(part.shape) for part in parts] == [(5, CELLS, classes) for classes in CELL_PARTS]


def test_each_cell_and_part_has_outputs_of_its_own() -> None:
    head = made()
    for cell, part in [(0, 0), (3, 2), (48, 1)]:
        head.zero_grad()
        head(torch.randn(2, 8), torch.tensor([0, 1]))[part][:, cell].sum().backward()
        used = head.layers[-1].bias.grad.nonzero().flatten().tolist()  # type: ignore[union-attr]
        first = cell * sum(CELL_PARTS) + sum(CELL_PARTS[:part])
        assert used == list(range(first, first + CELL_PARTS[part]))


def test_the_action_decides() -> None:
    features = torch.randn(1, 8).expand(7, -1)
    kinds = made()(features, torch.arange(7))[0].reshape(7, -1)
    assert (torch.cdist(kinds, kinds) + torch.eye(7)).min() > 1e-3
