"""Random numbers, smooth random fields and blurs: the raw material of synthetic images and corrupted masks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_INTERPOLATION = {2: "bilinear", 3: "trilinear"}


def uniform(rng: torch.Generator, low: float, high: float) -> float:
    """One number, uniform in [low, high)."""
    return low + (high - low) * float(torch.rand((), generator=rng))


def log_uniform(rng: torch.Generator, low: float, high: float) -> float:
    """One number whose logarithm is uniform."""
    return math.exp(uniform(rng, math.log(low), math.log(high)))


def chance(rng: torch.Generator, probability: float) -> bool:
    """True with the given probability."""
    return float(torch.rand((), generator=rng)) < probability


def whole(rng: torch.Generator, low: int, high: int) -> int:
    """One whole number, low and high included."""
    return int(torch.randint(low, high + 1, (), generator=rng))


def smooth_noise(
    shape: Sequence[int], cells: Sequence[float], rng: torch.Generator, channels: int = 1
) -> Float[Tensor, "channels *S"]:
    """Fields of about unit variance whose bumps are `cells` voxels long per axis."""
    coarse = [max(2, math.ceil(side / cell) + 1) for side, cell in zip(shape, cells, strict=True)]
    field = torch.randn((1, channels, *coarse), generator=rng)
    return 1.5 * F.interpolate(field, tuple(shape), mode=_INTERPOLATION[len(shape)], align_corners=True)[0]


def blur(field: Float[Tensor, "channels *S"], sigmas: Sequence[float]) -> Float[Tensor, "channels *S"]:
    """Gaussian blur, one width per axis, one small matrix product per axis; edges renormalise the weights."""
    for axis, sigma in enumerate(sigmas, start=1):
        if sigma > 0.2:
            place = torch.arange(field.shape[axis], dtype=field.dtype)
            kernel = torch.exp(-0.5 * ((place[:, None] - place[None]) / sigma) ** 2)
            kernel = kernel / kernel.sum(1, keepdim=True)
            field = (field.movedim(axis, -1) @ kernel.T).movedim(-1, axis)
    return field


def coordinates(shape: Sequence[int]) -> Float[Tensor, "D *S"]:
    """Voxel coordinates, one channel per axis."""
    return torch.stack(torch.meshgrid(*[torch.arange(float(side)) for side in shape], indexing="ij"))


def mask_box(mask: Tensor) -> Float[Tensor, "2 D"] | None:
    """Low and high corner (half-open) of a boolean mask; None if it is empty."""
    corners = []
    for axis in range(mask.ndim):
        hit = mask.any(dim=tuple(a for a in range(mask.ndim) if a != axis)) if mask.ndim > 1 else mask
        where = hit.nonzero()
        if where.numel() == 0:
            return None
        corners.append([float(where[0]), float(where[-1] + 1)])
    return torch.tensor(corners).T.contiguous()


def dice(first: Tensor, second: Tensor) -> float:
    """Dice of two boolean masks; 1 if both are empty."""
    total = float(first.sum() + second.sum())
    return 2 * float((first & second).sum()) / total if total else 1.0
