"""Mixing of patches: a box of every patch is replaced, by its neighbour in the batch or by another batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool
from torch import Tensor

SHARE = 0.5  # of the patch that the box covers (French et al., section 3.3)

Mix = Callable[[Tensor], Tensor]


def cutmix(shape: torch.Size, device: torch.device) -> Mix:
    """A mixing of batches of shape (U, any, *S): image, pseudo-labels and confidences are to be mixed by the same one.

    Boxes are those of `random_boxes`. A batch of one patch stays as it is.

    Source: French et al. 2020, Semi-supervised semantic segmentation needs strong, varied perturbations
    (arXiv 1906.01916), after CutMix (Yun et al. 2019, arXiv 1905.04899).
    """
    inside = random_boxes(shape, device)
    return lambda batch: torch.where(inside, batch.roll(1, 0), batch)


def random_boxes(shape: torch.Size, device: torch.device) -> Bool[Tensor, "U 1 *S"]:
    """True inside one box per patch, anywhere in it; its sides are those of the patch times `SHARE`^(1/D)."""
    ndim = len(shape) - 2
    inside = torch.ones((shape[0], 1, *shape[2:]), dtype=torch.bool, device=device)
    for axis, size in enumerate(shape[2:], start=2):
        length = round(size * SHARE ** (1 / ndim))
        start = torch.randint(size - length + 1, (shape[0], *[1] * (ndim + 1)), device=device)
        index = torch.arange(size, device=device).view([size if other == axis else 1 for other in range(ndim + 2)])
        inside = inside & (index >= start) & (index < start + length)
    return inside
