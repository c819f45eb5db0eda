"""Weight schedules: pure functions of the iteration, each from 0 to 1 or back."""

from __future__ import annotations

import math
from collections.abc import Callable


def sigmoid_rampup(iteration: int, length: int) -> float:
    """exp(-5 (1 - t/T)^2), rising from 0.0067 to 1 over `length` iterations (Laine and Aila 2017, arXiv 1610.02242)."""
    progress = min(max(iteration, 0), length) / length
    return math.exp(-5.0 * (1.0 - progress) ** 2)


def sigmoid_rampdown(iteration: int, length: int) -> float:
    """The mirror image of `sigmoid_rampup`, and exactly 0 once `length` iterations are done.

    SemiSAM (arXiv 2312.06316) lets SAM lead while the student is weak and fade out later.
    """
    return 0.0 if iteration >= length else sigmoid_rampup(length - iteration, length)


def linear_rampup(iteration: int, length: int) -> float:
    """t/T, at most 1."""
    return min(max(iteration, 0), length) / length


def linear_rampdown(iteration: int, length: int) -> float:
    """1 - t/T, at least 0."""
    return 1.0 - linear_rampup(iteration, length)


def constant(iteration: int, length: int) -> float:
    """1 at every iteration."""
    return 1.0


SCHEDULES: dict[str, Callable[[int, int], float]] = {
    f.__name__: f for f in (sigmoid_rampup, sigmoid_rampdown, linear_rampup, linear_rampdown, constant)
}
