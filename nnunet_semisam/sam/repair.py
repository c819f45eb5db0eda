"""What generalists are tuned for: true masks are spoiled and made into prompts; the answer should be the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from nnunet_semisam.config import SamConfig
from nnunet_semisam.ops.outputs import OutputSpace
from nnunet_semisam.sam.embedded.corruption import Corruption
from nnunet_semisam.sam.embedded.noise import blur, chance, dice, log_uniform, uniform
from nnunet_semisam.sam.patches import patch_around
from nnunet_semisam.sam.planes import choose_planes
from nnunet_semisam.sam.prompts import prompts_from_prob
from nnunet_semisam.types import LabeledCase, Prompts

PROMPT_DICE = (0.5, 0.97)  # how good the spoiled masks are
NOTHING = (
    "semisam: sam.tune: no labeled case has an object of at least sam.min_voxels voxels, labeled as a whole, to tune "
    "on; set it to 0"
)


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
    """What the labeler would ask about a single object, torn into pieces or not; empty where it is too small."""
    whole = replace(config, components=None)
    return prompts_from_prob(torch.stack([1 - prob, prob])[None], outputs=OutputSpace(2), config=whole)


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


def view_of(
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


def moved(prompts: Prompts, device: torch.device) -> Prompts:
    """The prompts on another device."""
    return Prompts(**{name: None if value is None else value.to(device) for name, value in vars(prompts).items()})
