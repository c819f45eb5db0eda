"""Tunes a generalist to the user's task before training: true masks of labeled cases, spoiled, serve as prompts.

Published methods tune SAM on the few labeled scans as well (KnowSAM: Huang et al., IEEE TMI 2025,
https://arxiv.org/abs/2412.13742). Here the generalist learns what it is asked for later: to repair a mask. Nothing but
labeled cases that the caller names comes in, and no global random number is drawn.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nnunet_semisam.config import SamConfig
from nnunet_semisam.sam.embedded.corruption import corrupt_nearby
from nnunet_semisam.sam.embedded.noise import dice
from nnunet_semisam.sam.repair import moved, prompts_of, view_of
from nnunet_semisam.types import LabeledCase, Prompts, SamPrediction

EMA_DECAY = 0.98
REPORTED = (0.6, 0.75, 0.9)  # Dice of the prompts of a report
LARGEST_GRADIENT = 1.0


@runtime_checkable
class TuningTask(Protocol):
    """What a backend offers to be tuned: the module whose parameters change, and a loss on freshly drawn examples."""

    module: nn.Module
    learning_rate: float

    def loss(self, rng: torch.Generator) -> Float[Tensor, ""]:
        """Differentiable; everything random comes from `rng`, a generator on the CPU."""


@runtime_checkable
class Tunable(Protocol):
    """A `SamBackend` that can be tuned."""

    ndims: tuple[int, ...]

    def embed(self, image: Float[Tensor, "U C *S"]) -> Any:
        """See `SamBackend`."""

    def decode(self, embedding: Any, prompts: Prompts) -> SamPrediction:
        """See `SamBackend`."""

    def tuning_task(
        self, cases: Sequence[LabeledCase], *, heads: Sequence[int], patch_size: Sequence[int], config: SamConfig
    ) -> TuningTask:
        """The task of repairing masks of these heads on patches of these cases. Deterministic.

        `module` of the task is a part of the backend, which changes with it.

        Raises:
            ValueError: none of the cases has an object large enough to be prompted.
        """


@dataclass(frozen=True)
class Report:
    """Mean Dice of the answers on a case that had no part in the tuning so far, by (head, Dice of the prompt)."""

    case: str
    steps: int
    before: dict[tuple[int, float], float]
    after: dict[tuple[int, float], float]


def tune_and_report(
    backend: Tunable,
    cases: Sequence[LabeledCase],
    everything: TuningTask,
    *,
    heads: Sequence[int],
    patch_size: Sequence[int],
    config: SamConfig,
    seed: int,
    told: Callable[[int, int], object] = lambda step, steps: None,
) -> Report | None:
    """Tunes for `config.tune` steps (a number). The last case joins after two thirds; until then it serves the report.

    Args:
        everything: the backend's task of all these cases.
        told: called after every step with its number, counted from 1, and the number of all.

    Returns:
        None where the other cases have nothing to tune on.
    """
    steps = int(config.tune or 0)
    asked: dict[str, Any] = {"heads": heads, "patch_size": patch_size, "config": config}
    try:
        others = backend.tuning_task(cases[:-1], **asked)
    except ValueError:
        tune([(everything, steps)], seed=seed, told=told)
        return None
    without = 2 * steps // 3
    reports: list[dict[tuple[int, float], float]] = []
    measured = partial(repaired, backend, cases[-1], device=next(everything.module.parameters()).device, **asked)
    before = measured()
    stages = [(others, without), (everything, steps - without)]
    tune(stages, seed=seed, between=lambda: reports.append(measured()), told=told)
    return Report(cases[-1].name, without, before, reports[0])


def tune(
    stages: Sequence[tuple[TuningTask, int]],
    *,
    seed: int,
    between: Callable[[], object] = lambda: None,
    told: Callable[[int, int], object] = lambda step, steps: None,
) -> None:
    """Changes the parameters of a module: AdamW, then the running average of what it went through.

    Args:
        stages: tasks of the same module, and how many steps each lasts. One schedule covers all.
        between: called after every stage but the last, with the average so far in the module.
        told: as for `tune_and_report`.
    """
    (task, _), *_ = stages
    module, average = task.module, copy.deepcopy(task.module)
    module.requires_grad_(True)
    optimizer = torch.optim.AdamW(module.parameters(), lr=task.learning_rate, betas=(0.9, 0.99), weight_decay=0.02)
    total, first = sum(steps for _, steps in stages), 0
    try:
        for number, (task, steps) in enumerate(stages):
            if number:
                with _exchanged(module, average):
                    between()
            for step in range(first, first + steps):
                for group in optimizer.param_groups:
                    group["lr"] = task.learning_rate * schedule(step, total)
                _step(task, optimizer, torch.Generator().manual_seed(seed * 1_000_003 + step))
                _follow(average, module, min(EMA_DECAY, (step + 1) / (step + 10)))
                told(step + 1, total)
            first += steps
        module.load_state_dict(average.state_dict())
    finally:
        module.zero_grad(set_to_none=True)
        module.requires_grad_(False)


def _step(task: TuningTask, optimizer: torch.optim.Optimizer, rng: torch.Generator) -> None:
    with torch.enable_grad():
        loss = task.loss(rng)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(task.module.parameters(), LARGEST_GRADIENT)
    optimizer.step()


@torch.no_grad()
def _follow(average: nn.Module, module: nn.Module, keep: float) -> None:
    for mean, now in zip(average.parameters(), module.parameters(), strict=True):
        mean.lerp_(now, 1 - keep)


@contextlib.contextmanager
def _exchanged(module: nn.Module, average: nn.Module) -> Iterator[None]:
    """The average's weights in the module, for a while."""
    own = copy.deepcopy(module.state_dict())
    module.load_state_dict(average.state_dict())
    yield
    module.load_state_dict(own)


def schedule(step: int, steps: int) -> float:
    """Share of the learning rate: warm-up over the first tenth, flat, linear to zero over the last half."""
    return min(1.0, (step + 1) / max(1.0, 0.1 * steps), (steps - step) / (0.5 * steps))


@torch.no_grad()
def repaired(
    backend: Tunable,
    case: LabeledCase,
    *,
    heads: Sequence[int],
    patch_size: Sequence[int],
    config: SamConfig,
    device: torch.device,
) -> dict[tuple[int, float], float]:
    """Mean Dice of the backend's answer for (head, Dice of the prompt) on four views of one case, prompts fixed.

    `device` is that of the backend.
    """
    found: dict[tuple[int, float], list[float]] = {}
    for head in heads:
        for number in range(4):
            view = view_of(case, head, patch_size, ndims=backend.ndims, config=config, seed=number)
            if view is None or view.truth[head].sum() < config.min_voxels:
                continue
            truth = view.truth[head]
            embedding = backend.embed(view.image[None].to(device))
            for wanted in REPORTED:
                rng = torch.Generator().manual_seed(number)
                prompts = prompts_of(corrupt_nearby(truth, wanted, rng, rounds=8).float(), config)
                if len(prompts):
                    answer = backend.decode(embedding, moved(prompts, device)).mask_logits[0].cpu() > 0
                    found.setdefault((head, wanted), []).append(dice(answer & view.valid, truth))
    return {key: sum(values) / len(values) for key, values in found.items()}
