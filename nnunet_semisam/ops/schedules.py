"""Weight schedules: pure functions of the iteration, each from 0 to 1, back, or both."""

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


def sigmoid_rise_and_fall(iteration: int, length: int) -> float:
    """`sigmoid_rampup` over the first third, `sigmoid_rampdown` over the rest.

    For a generalist that beats a weak teacher, is asked too much by an untrained one, and is beaten by a good one.
    """
    peak = length / 3
    if iteration < peak:
        return math.exp(-5.0 * (1.0 - max(iteration, 0) / peak) ** 2)
    return 0.0 if iteration >= length else math.exp(-5.0 * ((iteration - peak) / (length - peak)) ** 2)


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
    f.__name__: f
    for f in (sigmoid_rampup, sigmoid_rampdown, sigmoid_rise_and_fall, linear_rampup, linear_rampdown, constant)
}
