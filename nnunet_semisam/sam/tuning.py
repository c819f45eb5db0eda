"""Tunes a generalist to the user's task before training: true masks of labeled cases, spoiled, serve as prompts.

Published methods tune SAM on the few labeled scans as well (KnowSAM: Huang et al., IEEE TMI 2025,
https://arxiv.org/abs/2412.13742). Here the generalist learns what it is asked for later: to repair a mask. Nothing but
labeled cases that the caller names comes in, and no global random number is drawn.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from nnunet_semisam.config import SamConfig
from nnunet_semisam.ops.outputs import OutputSpace
from nnunet_semisam.sam.embedded.corruption import Corruption, corrupt_to_dice
from nnunet_semisam.sam.embedded.noise import blur, chance, dice, log_uniform, uniform
from nnunet_semisam.sam.patches import patch_around
from nnunet_semisam.sam.planes import choose_planes
from nnunet_semisam.sam.prompts import prompts_from_prob
from nnunet_semisam.types import LabeledCase, Prompts, SamPrediction

EMA_DECAY = 0.98
PROMPT_DICE = (0.5, 0.97)  # how good the spoiled masks are
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

    ndims: ClassVar[tuple[int, ...]]

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
    *,
    heads: Sequence[int],
    patch_size: Sequence[int],
    config: SamConfig,
    seed: int,
) -> Report | None:
    """Tunes for `config.tune` steps: two thirds without the last case, on which the report is made, then with all.

    With a single case there is nothing to report on.
    """
    steps, report = config.tune or 0, None
    asked: dict[str, Any] = {"heads": heads, "patch_size": patch_size, "config": config}
    if len(cases) > 1:
        without = 2 * steps // 3
        before = repaired(backend, cases[-1], **asked)
        tune(backend.tuning_task(cases[:-1], **asked), steps=without, seed=seed)
        report = Report(cases[-1].name, without, before, repaired(backend, cases[-1], **asked))
        steps -= without
    tune(backend.tuning_task(cases, **asked), steps=steps, seed=seed + 1)
    return report


def tune(task: TuningTask, *, steps: int, seed: int) -> None:
    """Changes the parameters of the task's module: AdamW, then the running average of what it went through."""
    module, average = task.module, copy.deepcopy(task.module)
    module.requires_grad_(True)
    optimizer = torch.optim.AdamW(module.parameters(), lr=task.learning_rate, betas=(0.9, 0.99), weight_decay=0.02)
    try:
        for step in range(steps):
            rng = torch.Generator().manual_seed(seed * 1_000_003 + step)
            for group in optimizer.param_groups:
                group["lr"] = task.learning_rate * schedule(step, steps)
            with torch.enable_grad():
                loss = task.loss(rng)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), LARGEST_GRADIENT)
            optimizer.step()
            with torch.no_grad():
                for mean, now in zip(average.parameters(), module.parameters(), strict=True):
                    mean.lerp_(now, 1 - min(EMA_DECAY, (step + 1) / (step + 10)))
        module.load_state_dict(average.state_dict())
    finally:
        module.zero_grad(set_to_none=True)
        module.requires_grad_(False)


def schedule(step: int, steps: int) -> float:
    """Share of the learning rate: warm-up over the first tenth, flat, linear to zero over the last half."""
    return min(1.0, (step + 1) / max(1.0, 0.1 * steps), (steps - step) / (0.5 * steps))


def mask_loss(
    logits: Float[Tensor, "P *S"],
    quality: Float[Tensor, " P"],
    *,
    truth: Float[Tensor, "P *S"],
    guess: Float[Tensor, "P *S"],
    valid: Float[Tensor, "P *S"],
) -> Float[Tensor, ""]:
    """Dice + cross entropy (voxels where the prompt is wrong count twice) + the predicted IoU against the reached one.

    As in the training of the embedded generalist. Voxels that are not valid do not count.

    Args:
        quality: predicted IoU in 0..1.
        guess: the prompt read as a mask.
    """
    axes = tuple(range(1, truth.ndim))
    weight = valid * (1 + (truth - guess).abs())
    entropy = F.binary_cross_entropy_with_logits(logits, truth, weight, reduction="sum") / weight.sum().clamp(min=1)
    prob, truth = logits.sigmoid() * valid, truth * valid
    overlap = 1 - (2 * (prob * truth).sum(axes) + 1) / (prob.sum(axes) + truth.sum(axes) + 1)
    answer, true = (logits.detach() > 0).float() * valid, (truth > 0.5).float()
    both = (answer * true).sum(axes)
    reached = both / (answer.sum(axes) + true.sum(axes) - both).clamp(min=1)
    told = F.binary_cross_entropy(quality.clamp(1e-4, 1 - 1e-4), reached)
    return overlap.mean() + 2 * entropy + 0.2 * told


def spoiled_prompts(
    truth: Bool[Tensor, "*S"], rng: torch.Generator, config: SamConfig
) -> tuple[Prompts, Float[Tensor, "*S"]] | None:
    """Prompts of one item as a fair teacher would cause them, and the spoiled mask; None where it is too small.

    The prompts are made by the code that makes them in training, at times of the mask alone.
    """
    if truth.sum() < config.min_voxels:
        return None
    spoiled = spoil(truth, uniform(rng, *PROMPT_DICE), rng)
    prob = spoiled.float()
    if chance(rng, 0.6):  # a teacher is sure, or has soft borders
        prob = blur(prob[None], [log_uniform(rng, 0.4, 1.5)] * truth.ndim)[0]
    if "mask" in config.prompts and chance(rng, 0.5):
        config = replace(config, prompts=("mask",))
    prompts = prompts_of(prob, config)
    return (prompts, (prob > 0.5).float()) if len(prompts) else None


def prompts_of(prob: Float[Tensor, "*S"], config: SamConfig) -> Prompts:
    """What the labeler would ask about a single object; empty where it is too small."""
    return prompts_from_prob(torch.stack([1 - prob, prob])[None], outputs=OutputSpace(2), config=config)


def spoil(truth: Bool[Tensor, "*S"], wanted: float, rng: torch.Generator) -> Bool[Tensor, "*S"]:
    """A spoiled mask of roughly the wanted Dice: the error of a mask grows about linearly with the strength."""
    drawn, strength = Corruption.draw(truth, rng), uniform(rng, 0.2, 0.8)
    for _ in range(2):
        spoiled = drawn.apply(truth, strength)
        error = 1 - dice(spoiled, truth)
        if abs(error - (1 - wanted)) < 0.05:
            break
        strength = min(3.0, strength * (1 - wanted) / max(error, 0.02))
    return spoiled if dice(spoiled, truth) > 0.4 else truth


def views_of(
    case: LabeledCase, head: int, patch_size: Sequence[int], *, ndims: Sequence[int], config: SamConfig, seed: int
) -> LabeledCase | None:
    """A patch around an object, or a plane of it for backends that serve only 2D; None where there is no object."""
    rng = torch.Generator().manual_seed(seed)
    patch = patch_around(case, head, patch_size, rng)
    if patch is None or len(patch_size) in ndims:
        return patch
    objects = patch.truth[head][None, None]
    planes = choose_planes(objects, axis=config.axis, budget=1, iteration=seed, min_voxels=config.min_voxels)
    parts = [planes.take(part[None].float()) for part in (patch.image, patch.truth, patch.valid[None])]
    if not len(parts[0]):
        return None
    return LabeledCase(case.name, parts[0][0], parts[1][0] > 0.5, parts[2][0, 0] > 0.5)


@torch.no_grad()
def repaired(
    backend: Tunable, case: LabeledCase, *, heads: Sequence[int], patch_size: Sequence[int], config: SamConfig
) -> dict[tuple[int, float], float]:
    """Mean Dice of the backend's answer for (head, Dice of the prompt) on four views of one case, prompts fixed."""
    found: dict[tuple[int, float], list[float]] = {}
    for head in heads:
        for number in range(4):
            view = views_of(case, head, patch_size, ndims=backend.ndims, config=config, seed=number)
            if view is None or view.truth[head].sum() < config.min_voxels:
                continue
            truth = view.truth[head]
            embedding = backend.embed(view.image[None])
            for wanted in REPORTED:
                rng = torch.Generator().manual_seed(number)
                prompts = prompts_of(corrupt_to_dice(truth, wanted, rng, rounds=8).float(), config)
                if len(prompts):
                    answer = backend.decode(embedding, prompts).mask_logits[0] > 0
                    found.setdefault((head, wanted), []).append(dice(answer & view.valid, truth))
    return {key: sum(values) / len(values) for key, values in found.items()}
