"""Checks of values that a user wrote: each raises `Refused`, which names the key, the value and what is wanted."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from typing import Any


class Refused(ValueError):
    """A value that cannot be. The message names key, value and what is wanted."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"semisam: {key} {reason}")
        self.key, self.reason = key, reason


def require_one_of(name: str, value: Any, known: Iterable[Any]) -> None:
    """One of the known values; True and 1.0 are not taken for 1."""
    if not any(type(value) is type(choice) and value == choice for choice in known):
        raise Refused(name, f"is {value!r}; known are {', '.join(map(str, known))}")


def require_no_twice(name: str, values: tuple[str, ...]) -> None:
    """Nothing is named twice."""
    if len(set(values)) < len(values):
        raise Refused(name, f"is {list(values)!r}; name each once")


def require_instance(name: str, value: Any, kind: Any, wanted: str) -> None:
    """An instance of `kind`, which is called `wanted`."""
    if not isinstance(value, kind):
        raise Refused(name, f"is {value!r}; it must be {wanted}")


def require_integer(name: str, value: Any, low: int | None = None, *, or_null: bool = False) -> None:
    """An integer, from `low` on where it is given."""
    if or_null and value is None:
        return
    if type(value) is not int or (low is not None and value < low):
        wanted = "an integer" if low is None else f"an integer of at least {low}"
        raise Refused(name, f"is {value!r}; it must be {wanted}{', or null' if or_null else ''}")


def require_number(
    name: str, value: Any, low: float, high: float = math.inf, *, below: bool = False, or_null: bool = False
) -> None:
    """A number from `low` to `high`; `high` itself is refused if it must be `below`, or is infinite."""
    if or_null and value is None:
        return
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    below = below or high == math.inf
    # NaN is never in order, and an integer can be too large for a float
    if not is_number or not low <= value <= high or (below and value == high) or abs(value) > sys.float_info.max:
        wanted = f"of at least {low}" if below else f"from {low} to {high}"
        limit = f" and below {high}" if below and high < math.inf else ""
        raise Refused(name, f"is {value!r}; it must be a number {wanted}{limit}{', or null' if or_null else ''}")
