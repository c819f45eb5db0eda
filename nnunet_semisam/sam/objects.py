"""What is prompted: the teacher's mask of a class as a whole, or its largest connected components one by one.

Promptable models are made for one connected object. A box around two kidneys holds mostly what lies between them, and
a speckled prediction agrees with nobody as a whole, while its largest piece may well be right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cc3d
import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from nnunet_semisam.config import SamConfig


class Objects(NamedTuple):
    """P objects that the teacher sees: image, segmentation head and hard mask, never empty."""

    image: Int64[Tensor, " P"]
    head: Int64[Tensor, " P"]
    masks: Bool[Tensor, "P *S"]


def find_objects(
    prob: Float[Tensor, "U K *S"], hard: Bool[Tensor, "U K *S"], *, heads: Sequence[int], config: SamConfig
) -> Objects:
    """Objects of at least `config.min_voxels` voxels by image, then head, then probability mass (largest first).

    Up to `config.components` connected components of a head are objects of their own, voxels that touch at a corner
    being connected; without `components` all voxels of a head are one object.
    """
    asked = torch.tensor(tuple(heads), device=hard.device, dtype=torch.int64)
    present = hard[:, asked].flatten(2).sum(-1) >= config.min_voxels
    image, which = present.nonzero(as_tuple=True)
    whole = Objects(image, asked[which], hard[image, asked[which]])
    return _split(whole, prob, config) if config.components else whole


def tight_boxes(masks: Bool[Tensor, "P *S"]) -> Int64[Tensor, "P 2 D"]:
    """Half-open bounding boxes of masks that are not empty."""
    dims = range(1, masks.ndim)
    corners = []
    for axis in dims:
        others = tuple(d for d in dims if d != axis)
        profile = masks.to(torch.uint8).amax(others) if others else masks.to(torch.uint8)  # (P, side); `any` is slower
        corners.append(torch.stack([profile.argmax(1), profile.shape[1] - profile.flip(1).argmax(1)], dim=1))
    return torch.stack(corners, dim=-1)


def _split(whole: Objects, prob: Float[Tensor, "U K *S"], config: SamConfig) -> Objects:
    """The largest components of every object."""
    rows: list[int] = []
    masks: list[Tensor] = []
    found = zip(tight_boxes(whole.masks).tolist(), whole.image.tolist(), whole.head.tolist(), strict=True)
    for row, (box, image, head) in enumerate(found):
        window = tuple(slice(low, high) for low, high in zip(*box, strict=True))
        near = (prob[image, head][window].clamp(0, 1) * 254 + 1) * whole.masks[row][window]
        for piece in _components(near.to(torch.uint8).cpu().numpy(), config):  # a byte per voxel leaves the device
            mask = torch.zeros_like(whole.masks[row])
            mask[window] = torch.from_numpy(piece).to(mask.device)
            rows.append(row)
            masks.append(mask)
    kept = torch.tensor(rows, device=whole.image.device, dtype=torch.int64)
    return Objects(whole.image[kept], whole.head[kept], torch.stack(masks) if masks else whole.masks[:0])


def _components(near: np.ndarray, config: SamConfig) -> list[np.ndarray]:
    """Masks of up to `config.components` components that are large enough, most probability first.

    `near` is 0 outside of the object, else 1 and 254 times the probability (uint8).
    """
    labels, count = cc3d.connected_components(near > 0, connectivity=8 if near.ndim == 2 else 26, return_N=True)
    own = labels[near > 0]  # in a speckled prediction a small part of the box
    sizes = np.bincount(own, minlength=count + 1)[1:]
    mass = np.bincount(own, weights=near[near > 0], minlength=count + 1)[1:] - sizes
    order = np.argsort(-mass, kind="stable")
    return [labels == number + 1 for number in order[sizes[order] >= config.min_voxels][: config.components]]
