"""What a user may set of one loss term."""

from __future__ import annotations

from dataclasses import dataclass

from nnunet_semisam.ops.schedules import SCHEDULES
from nnunet_semisam.values import require_integer, require_number, require_one_of


@dataclass(frozen=True, kw_only=True)
class TermConfig:
    """Weight of one loss term over the training.

    `delay` iterations pass with weight 0 before the schedule begins. `iterations` is the length of the schedule; None
    means until the end of the training. With `every` = k the term counts in each k-th iteration only, with the weight
    that it has there.
    """

    weight: float | None  # None, for the teacher: what it has by default, beside SAM or without
    schedule: str = "constant"
    iterations: int | None = None
    delay: int = 0
    every: int = 1

    def __post_init__(self) -> None:
        require_one_of("schedule", self.schedule, SCHEDULES)
        require_number("weight", self.weight, 0, or_null=True)
        require_integer("iterations", self.iterations, 1, or_null=True)
        require_integer("delay", self.delay, 0)
        require_integer("every", self.every, 1)

    def at(self, iteration: int, total_iterations: int) -> float:
        """The weight at `iteration` (counted from 0) of a training of `total_iterations`."""
        if not self.weight or iteration < self.delay or (iteration - self.delay) % self.every:
            return 0.0
        length = self.iterations or max(1, total_iterations - self.delay)
        return self.weight * SCHEDULES[self.schedule](iteration - self.delay, length)
