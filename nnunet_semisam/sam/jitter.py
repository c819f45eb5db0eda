"""Shaken prompts: how much does an answer hang on where exactly SAM was asked?

SemiSAM+ (Zhang et al. 2025, https://arxiv.org/abs/2502.20749) takes the spread u of the answers to several prompts as
the generalist's uncertainty and means to weigh its supervision by exp(-u), the form of URPC (Luo et al., MICCAI 2021,
https://arxiv.org/abs/2012.07042); its published code multiplies by u instead, which favours what SAM is unsure of.
SAM-CLNet (Zhao et al. 2023, https://arxiv.org/abs/2312.00312) drops masks that differ between shaken boxes.

Shaking follows the seed that is given, on a generator of its own: the global random state is not touched.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from nnunet_semisam.sam.clicks import SURE_OUTSIDE
from nnunet_semisam.sam.objects import Objects, tight_boxes
from nnunet_semisam.sam.prompts import MAX_LOGIT
from nnunet_semisam.types import Prompts

SHARE = 0.05  # faces of boxes, clicks and masks move by up to this share of the object's side, at least 1 voxel
_STRIDE = 1_000_003  # a prime: seeds of neighbouring iterations do not meet


def shaken(prompts: Prompts, objects: Objects, prob: Float[Tensor, "U K *S"], *, seeds: Int64[Tensor, " P"]) -> Prompts:
    """The same items, asked a little differently.

    Every face of a box moves by itself. A click moves where it keeps its meaning (inside the object, or where the
    teacher is sure that it is not), else it stays. A mask is shifted as a whole.

    Args:
        seeds: one per item (see `seeds_for`); the same seed shakes the same item alike, whatever its company.
    """
    ndim = prompts.point_coords.shape[-1]
    clicks = prompts.point_coords.shape[1]
    drawn = _uniform(seeds, (3 + clicks) * ndim).to(objects.masks.device).view(len(prompts), 3 + clicks, ndim)
    side = (tight_boxes(objects.masks).diff(dim=1)[:, 0].float() * SHARE).clamp(min=1)  # (P, D)
    step = drawn * side[:, None]
    coords = _moved_clicks(prompts, objects, prob, step[:, 3:].round())
    boxes = None if prompts.boxes is None else _moved_boxes(prompts.boxes, step[:, :2], objects.masks.shape[1:])
    logits = None if prompts.mask_logits is None else _shifted(prompts.mask_logits, step[:, 2].round().long())
    return replace(prompts, point_coords=coords, boxes=boxes, mask_logits=logits)


def seeds_for(iteration: int, items: Int64[Tensor, " P"], number: int) -> Int64[Tensor, " P"]:
    """Seeds of the `number`-th shaking of some items in an iteration."""
    return (iteration * _STRIDE + items.cpu()) * _STRIDE + number


def stability(answers: Bool[Tensor, "J P *S"]) -> Float[Tensor, " P"]:
    """Mean Dice over all pairs of J >= 2 masks of each item: 1 where all agree, two empty masks do. u is 1 minus it."""
    sizes = answers.flatten(2).sum(2).float()  # (J, P)
    pairs = []
    for first, second in combinations(range(len(answers)), 2):
        both = (answers[first] & answers[second]).flatten(1).sum(1)
        total = sizes[first] + sizes[second]
        pairs.append(torch.where(total > 0, 2 * both / total.clamp(min=1), 1.0))
    return torch.stack(pairs).mean(0)


def _uniform(seeds: Int64[Tensor, " P"], count: int) -> Float[Tensor, "P count"]:
    """Numbers from -1 to 1, on the CPU."""
    rows = [torch.rand(count, generator=torch.Generator().manual_seed(seed)) for seed in seeds.tolist()]
    return 2 * torch.stack(rows) - 1 if rows else torch.zeros(0, count)


def _moved_clicks(
    prompts: Prompts, objects: Objects, prob: Float[Tensor, "U K *S"], step: Float[Tensor, "P N D"]
) -> Float[Tensor, "P N D"]:
    sides = torch.tensor(objects.masks.shape[1:], device=step.device)
    moved = torch.minimum((prompts.point_coords + step).clamp(min=0), sides - 1)
    place = tuple(moved.long().movedim(-1, 0))  # D times (P, N)
    rows = torch.arange(len(prompts), device=step.device)[:, None]
    inside = objects.masks[(rows, *place)]
    outside = prob[(objects.image[:, None], objects.head[:, None], *place)] < SURE_OUTSIDE
    valid = torch.where(prompts.point_labels == 1, inside, outside & (prompts.point_labels == 0))
    return torch.where(valid[..., None], moved, prompts.point_coords)


def _moved_boxes(
    boxes: Float[Tensor, "P 2 D"], step: Float[Tensor, "P 2 D"], shape: tuple[int, ...]
) -> Float[Tensor, "P 2 D"]:
    """Faces moved, inside the patch, at least one voxel apart."""
    sides = torch.tensor(shape, device=boxes.device, dtype=boxes.dtype)
    low, high = (boxes + step).unbind(1)
    low = torch.minimum(low.clamp(min=0), sides - 1)
    return torch.stack([low, torch.minimum(torch.maximum(high, low + 1), sides)], dim=1)


def _shifted(logits: Float[Tensor, "P *S"], step: Int64[Tensor, "P D"]) -> Float[Tensor, "P *S"]:
    """Every item shifted by whole voxels; what comes in from outside the patch is surely not the object."""
    shifted = torch.full_like(logits, -MAX_LOGIT)
    for row, move in enumerate(step.tolist()):
        pairs = list(zip(move, logits.shape[1:], strict=True))
        to = tuple(slice(max(d, 0), side + min(d, 0)) for d, side in pairs)
        origin = tuple(slice(max(-d, 0), side + min(-d, 0)) for d, side in pairs)
        shifted[row][to] = logits[row][origin]
    return shifted
