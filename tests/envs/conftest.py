"""For all tests of environments: what is stepped is counted."""

from typing import Any

import numpy as np
import pytest

from headstart.envs import engine


@pytest.fixture
def stepped(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every environment step from now on: how many states each call has stepped."""
    counts: list[int] = []
    step = engine.step

    def counted(rows: np.ndarray, action: np.ndarray) -> Any:
        counts.append(len(rows))
        return step(rows, action)

    monkeypatch.setattr(engine, "step", counted)
    return counts
