"""The errors that a user can meet, one exit code each.

A message says what went wrong, where (file, flag or environment), why, and what to type next, in a sentence
or two: the command line prints it without a traceback. A mistake in the program itself stays a plain Python
error.
"""

import operator
from typing import Any

__all__ = ["Busy", "DataError", "Diverged", "EnvironmentFailed", "HeadstartError", "UsageError", "check_numbers"]

LEAST = {"seed": 0, "history": 0, "first_seed": 0}  # of every other number 1


class HeadstartError(Exception):
    """Base of all errors below; `exit_code` is what the command line exits with."""

    exit_code = 1


class UsageError(HeadstartError):
    """What the user asked for cannot be done: an unknown name or flag, or no place to write to."""

    exit_code = 2


class DataError(HeadstartError):
    """A file is missing, damaged, of another kind or version, or does not fit the environment."""

    exit_code = 3


class EnvironmentFailed(HeadstartError):
    """An environment raised, hung, or does not repeat itself."""

    exit_code = 4


class Diverged(HeadstartError):
    """A loss, gradient or observation stopped being a finite number."""

    exit_code = 5


class Busy(HeadstartError):
    """Somebody else is writing here (75 is EX_TEMPFAIL of sysexits.h: try again later)."""

    exit_code = 75


def check_numbers(name: str, **numbers: Any) -> list[Any]:
    """The numbers as integers, in their order; a horizon that was not given stays None.

    Raises UsageError naming the first that is not whole, or too small.
    """
    return [
        None if setting == "horizon" and value is None else _whole(name, setting, value)
        for setting, value in numbers.items()
    ]


def _whole(name: str, setting: str, value: Any) -> int:
    least = LEAST.get(setting, 1)
    try:
        whole: int = int(value) if isinstance(value, float) and value.is_integer() else operator.index(value)  # type: ignore
    except TypeError:
        raise UsageError(f"{name}: {setting}={value!r}. Give a whole number, at least {least}.") from None
    if whole < least:
        raise UsageError(f"{name}: {setting}={value}. Give at least {least}.")
    return whole
