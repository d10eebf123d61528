"""Numbers that are refused before anything is begun."""

from typing import Any

import numpy as np
import pytest

from headstart.envs.errors import UsageError, check_numbers


def test_numbers_are_returned_as_integers_in_their_order() -> None:
    numbers = check_numbers("Lake", seed=np.int64(0), episodes=3.0, history=0, horizon=None, n_envs=np.uint8(2))
    assert numbers == [0, 3, 0, None, 2]
    assert all(type(number) is int for number in numbers if number is not None)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"episodes": 1.5}, "Lake: episodes=1.5. Give a whole number, at least 1."),
        ({"episodes": "3"}, "Lake: episodes='3'. Give a whole number, at least 1."),
        ({"episodes": 0}, "Lake: episodes=0. Give at least 1."),
        ({"seed": 1, "history": -1}, "Lake: history=-1. Give at least 0."),
        ({"seed": None}, "Lake: seed=None. Give a whole number, at least 0."),
        ({"n": float("nan")}, "Lake: n=nan. Give a whole number, at least 1."),
        ({"n": np.ones(2)}, "Lake: n=array"),
    ],
)
def test_the_first_that_cannot_be_is_named(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError) as error:
        check_numbers("Lake", horizon=3, **wrong)
    assert str(error.value).startswith(told)
