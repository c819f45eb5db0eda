"""Patches of labeled cases around an object, as training would cut them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_semisam.types import LabeledCase

MOSTLY = 0.5  # share of an object's box that has to be labeled, where there is an ignore label


def patch_around(case: LabeledCase, head: int, patch_size: Sequence[int], rng: torch.Generator) -> LabeledCase | None:
    """A patch of `patch_size` that contains a random voxel of the head's truth; None where the case has none.

    As nnU-Net's loader with forced foreground: the patch lies inside the case where it fits; where it does not, it is
    padded with zeros that are not `valid`. A 2D patch of a 3D case is a slice across the first axis.
    """
    places = case.truth[head].nonzero()
    if not len(places):
        return None
    centre = places[int(torch.randint(len(places), (), generator=rng))].tolist()
    image, truth, valid = case.image, case.truth, case.valid
    if len(patch_size) == 2 and valid.ndim == 3:
        image, truth, valid, centre = image[:, centre[0]], truth[:, centre[0]], valid[centre[0]], centre[1:]
    starts = [_start(c, side, size) for c, side, size in zip(centre, valid.shape, patch_size, strict=True)]
    parts = (_cut(part, starts, patch_size) for part in (image, truth, valid[None]))
    image, truth, valid = parts
    return LabeledCase(case.name, image, truth, valid[0])


def mostly_labeled(patch: LabeledCase, head: int) -> bool:
    """Whether at least half of the box around the head's truth is labeled, or there is none of it.

    Of an object with labels in a few planes only (ignore label), a mask prompt would be these planes: no teacher
    predicts such a thing, so nothing would be learned about the generalist.
    """
    places = patch.truth[head].nonzero()
    if not len(places):
        return True
    low, high = places.amin(0).tolist(), (places.amax(0) + 1).tolist()
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    return patch.valid[box].float().mean().item() >= MOSTLY


def _start(centre: int, side: int, size: int) -> int:
    """First voxel of the patch along an axis; negative where the case is smaller than the patch."""
    return -((size - side) // 2) if side <= size else min(max(centre - size // 2, 0), side - size)


def _cut(volume: Tensor, starts: Sequence[int], sizes: Sequence[int]) -> Tensor:
    pad: list[int] = []
    for axis, (start, size) in enumerate(zip(starts, sizes, strict=True), start=1):
        side = volume.shape[axis]
        low, high = max(start, 0), min(start + size, side)
        volume = volume.narrow(axis, low, high - low)
        pad = [max(-start, 0), size - (high - low) - max(-start, 0), *pad]
    return F.pad(volume.float(), pad).to(volume.dtype) if any(pad) else volume.clone()
