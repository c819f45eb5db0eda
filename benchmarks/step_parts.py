"""Where a training step spends its seconds, or its operations: the trainer's methods are wrapped while one step runs.

The product has no timers. What is wrapped is listed in `places`; the innermost open part gets what is spent, so the
parts add up to the step.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch.utils.flop_counter import FlopCounterMode

from nnunet_semisam import stream
from nnunet_semisam.sam import dialogue, labeler
from nnunet_semisam.sam.labeler import SamLabeler
from nnunet_semisam.teacher import EmaTeacher

REST = "rest"
PARTS = (
    "loading", "student, labeled", "student, unlabeled", "teacher", "view", "prompts", "SAM encode", "SAM decode",
    "SAM judging", "losses", "backward", "guards", "EMA", "optimizer", REST,
)  # fmt: skip
Place = tuple[Any, str, str]  # whose attribute, its name, the part that it belongs to


class Meter:
    """Gives what a reading grows by to the innermost part that is open.

    Args:
        read: a number that only grows: a clock, or a counter of operations.
    """

    def __init__(self, read: Callable[[], float]) -> None:
        self.read = read
        self.spent: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._last = 0.0

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._book()
        self._open.append("student, unlabeled" if name == "student, labeled" and "losses" in self._open else name)
        try:
            yield
        finally:
            self._book()
            self._open.pop()

    def _book(self) -> None:
        now = self.read()
        if self._open:
            self.spent[self._open[-1]] += now - self._last
        self._last = now


def places(trainer: Any) -> Iterator[Place]:
    """What is wrapped for a step of this trainer; stock trainers have the first group only."""
    yield from [(trainer.network, "forward", "student, labeled"), (trainer.loss, "forward", "losses")]
    yield torch.Tensor, "backward", "backward"
    yield torch.nn.utils, "clip_grad_norm_", "optimizer"
    yield from ((trainer.optimizer, name, "optimizer") for name in ("step", "zero_grad"))
    if trainer.grad_scaler is not None:
        yield from ((trainer.grad_scaler, name, "optimizer") for name in ("unscale_", "step", "update"))
    if getattr(trainer, "teacher", None) is None:
        return
    yield stream, "next_batch", "loading"
    yield from [(EmaTeacher, "__call__", "teacher"), (trainer.teacher, "update", "EMA")]
    yield from [(trainer.method, "terms", "losses"), (trainer.method, "student_view", "view")]
    yield from ((trainer.collapse, name, "guards") for name in ("_predicted_shares", "shares"))
    yield from [(trainer.guard, "begin", "guards"), (trainer, "record", "guards")]
    if trainer.sam_assisted is not None:
        yield from _places_of_sam(trainer.sam_assisted.labeler.backend)


def _places_of_sam(backend: Any) -> Iterator[Place]:
    yield SamLabeler, "__call__", "SAM judging"
    yield from ((labeler, name, "prompts") for name in ("find_objects", "prompts_for", "choose_planes"))
    yield from ((dialogue, name, "prompts") for name in ("corrected", "shaken"))
    yield from [(backend, "embed", "SAM encode"), (backend, "decode", "SAM decode")]
    if hasattr(backend, "_encode"):  # SAM-Med3D encodes when the objects are known
        yield backend, "_encode", "SAM encode"


@contextlib.contextmanager
def watching(trainer: Any, meter: Meter) -> Iterator[None]:
    """While open, everything in `places` reports to the meter."""
    with contextlib.ExitStack() as stack:
        for owner, name, part in list(places(trainer)):
            stack.enter_context(mock.patch.object(owner, name, _reporting(getattr(owner, name), part, meter)))
        yield


def _reporting(call: Callable, part: str, meter: Meter) -> Callable:
    @functools.wraps(call)
    def reporting(*args: Any, **kwargs: Any) -> Any:
        with meter.part(part):
            return call(*args, **kwargs)

    return reporting


def parts_of_step(trainer: Any, read: Callable[[], float]) -> dict[str, float]:
    """One iteration, loading included, part by part."""
    meter = Meter(read)
    with watching(trainer, meter), meter.part(REST):
        with meter.part("loading"):
            batch = next(trainer.dataloader_train)
        trainer.train_step(batch)
    return {part: meter.spent.get(part, 0.0) for part in PARTS}


def seconds_of_step(trainer: Any) -> float:
    """One iteration, loading included, nothing wrapped."""
    read = clock(trainer.device)
    start = read()
    trainer.train_step(next(trainer.dataloader_train))
    return read() - start


def operations_of_step(trainer: Any) -> dict[str, float]:
    """Floating-point operations of one iteration, part by part: matrix products and convolutions, forth and back."""
    with FlopCounterMode(display=False) as counter:
        return parts_of_step(trainer, lambda: float(counter.get_total_flops()))


def clock(device: torch.device) -> Callable[[], float]:
    """Seconds; waits for the device."""

    def read() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return read
