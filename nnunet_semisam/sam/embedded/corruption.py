"""Wrong masks on purpose: what a half-trained segmenter might hand over in place of the truth.

A true mask is warped and shifted, grown or shrunk, roughened or smoothed; parts are torn away and blobs are added, all
in proportion to the object. Training draws the strength at random; the evaluation looks for the strength that gives a
wanted Dice with the draws held fixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from nnunet_semisam.sam.embedded.noise import (
    blur,
    chance,
    coordinates,
    dice,
    log_uniform,
    mask_box,
    smooth_noise,
    uniform,
    whole,
)

FINE_VOXELS = 2**17  # larger surroundings of an object are spoiled on a coarser grid
NEAR_ENOUGH = 0.05  # difference in Dice


@dataclass(frozen=True)
class Corruption:
    """One drawn way to spoil one mask; `apply` turns it up or down."""

    extent: Float[Tensor, " D"]  # side lengths of the object's box
    flow: Float[Tensor, "D *S"]  # displacement at strength 1, in voxels
    rough: Float[Tensor, "*S"]  # noise added to the smoothed mask at strength 1
    bumps: Float[Tensor, "*S"]  # parts torn away (negative) and blobs added (positive)
    grow: float  # shift of the threshold at strength 1
    smooth: float  # width of the smoothing, as a share of the extent

    @classmethod
    def draw(cls, mask: Bool[Tensor, "*S"], rng: torch.Generator) -> Corruption:
        """Every kind of error takes part by chance, so each mask is spoiled in another way."""
        box = _box(mask)
        extent, grid = box[1] - box[0], coordinates(mask.shape)
        flow = torch.zeros_like(grid)
        if chance(rng, 0.7):
            cells = [max(2.0, float(side) * uniform(rng, 0.2, 0.8)) for side in extent]
            flow = smooth_noise(mask.shape, cells, rng, mask.ndim) * uniform(rng, 0.03, 0.15)
        if chance(rng, 0.5):
            shift = torch.randn(mask.ndim, generator=rng) * 0.12
            flow = flow + shift.view(-1, *[1] * mask.ndim)
        flow = flow * extent.view(-1, *[1] * mask.ndim)
        rough = torch.zeros(tuple(mask.shape))
        if chance(rng, 0.8):
            share = log_uniform(rng, 0.08, 0.6)
            cells = [max(1.5, float(side) * share) for side in extent]
            rough = smooth_noise(mask.shape, cells, rng)[0] * uniform(rng, 0.1, 0.5)
        grow = uniform(rng, -0.45, 0.45) if chance(rng, 0.6) else 0.0
        return cls(extent, flow, rough, _bumps(mask, grid, extent, rng), grow, log_uniform(rng, 0.02, 0.15))

    def apply(self, mask: Bool[Tensor, "*S"], strength: float) -> Bool[Tensor, "*S"]:
        """The spoiled mask; strength 0 gives the mask back, 1 is a lot."""
        if strength <= 0:
            return mask.clone()
        soft = _warp(mask.float(), self.flow * strength)
        soft = blur(soft[None], [float(side) * self.smooth * min(1.0, 2 * strength) for side in self.extent])[0]
        near = (5 * blur(mask.float()[None], [0.1 * float(side) for side in self.extent])[0]).clamp(max=1)
        return soft + near * strength * (self.rough + self.grow) + min(1.0, 2 * strength) * self.bumps > 0.5


def corrupt_to_dice(
    mask: Bool[Tensor, "*S"], wanted: float, rng: torch.Generator, *, rounds: int = 12
) -> Bool[Tensor, "*S"]:
    """A spoiled mask whose Dice with the true one is about `wanted` (bisection over the strength of one draw)."""
    drawn, low, high, best = Corruption.draw(mask, rng), 0.0, 3.0, mask
    for _ in range(rounds):
        strength = (low + high) / 2
        spoiled = drawn.apply(mask, strength)
        reached = dice(spoiled, mask)
        if abs(reached - wanted) < abs(dice(best, mask) - wanted):
            best = spoiled
        low, high = (strength, high) if reached > wanted else (low, strength)
    return best


def corrupt_nearby(
    mask: Bool[Tensor, "*S"], wanted: float, rng: torch.Generator, *, rounds: int = 12
) -> Bool[Tensor, "*S"]:
    """`corrupt_to_dice` within the surroundings of the object, which saves most of its time in a large patch.

    Where these have more than `FINE_VOXELS` voxels, on a coarser grid: errors are in proportion to the object anyway.
    Of thin objects too little would be left there, and they are spoiled as they are.
    """
    near, spoiled = surroundings(mask), torch.zeros_like(mask)
    spoiled[near] = _on_coarse_grid(mask[near], wanted, rng, rounds)
    return spoiled


def _on_coarse_grid(mask: Bool[Tensor, "*S"], wanted: float, rng: torch.Generator, rounds: int) -> Bool[Tensor, "*S"]:
    shrink = (mask.numel() / FINE_VOXELS) ** (1 / mask.ndim)
    if shrink > 1:
        size = [max(1, round(side / shrink)) for side in mask.shape]
        coarse = F.interpolate(mask.float()[None, None], size, mode="area")[0, 0] > 0.5
        if coarse.any():
            spoiled = corrupt_to_dice(coarse, wanted, rng, rounds=rounds).float()[None, None]
            mode = "bilinear" if mask.ndim == 2 else "trilinear"
            found = F.interpolate(spoiled, tuple(mask.shape), mode=mode)[0, 0] > 0.5
            if abs(dice(found, mask) - wanted) <= NEAR_ENOUGH:
                return found
    return corrupt_to_dice(mask, wanted, rng, rounds=rounds)


def surroundings(mask: Bool[Tensor, "*S"]) -> tuple[slice, ...]:
    """The box of an object, grown by its own size on each side: as far as corruptions reach."""
    low, high = _box(mask).long()
    reach = (high - low).clamp(min=4)
    sides = zip((low - reach).tolist(), (high + reach).tolist(), mask.shape, strict=True)
    return tuple(slice(max(start, 0), min(stop, side)) for start, stop, side in sides)


def _box(mask: Bool[Tensor, "*S"]) -> Float[Tensor, "2 D"]:
    """The object's box, low and high corner."""
    box = mask_box(mask)
    if box is None:
        raise ValueError("an empty mask cannot be corrupted: choose a case that has the object")
    return box


def _bumps(mask: Bool[Tensor, "*S"], grid: Tensor, extent: Tensor, rng: torch.Generator) -> Float[Tensor, "*S"]:
    """Up to three parts torn out of the object and up to three blobs beside it, in proportion to the object."""
    field = torch.zeros(tuple(mask.shape))
    inside = mask.nonzero()
    for sign in (-1.0, 1.0):
        for _ in range(whole(rng, 1, 3) if chance(rng, 0.5) else 0):
            centre = inside[whole(rng, 0, len(inside) - 1)].float()
            if sign > 0:
                centre = centre + torch.randn(mask.ndim, generator=rng) * 0.35 * extent
            radius = extent * uniform(rng, 0.06, 0.3)
            radius = radius * torch.exp(0.3 * torch.randn(mask.ndim, generator=rng))
            far = ((grid - _column(centre)) / _column(radius.clamp(min=0.7))).square().sum(0)
            field = field + sign * 1.5 * torch.exp(-0.5 * far)
    return field


def _column(values: Sequence[float] | Tensor) -> Tensor:
    return torch.as_tensor(values).view(-1, *[1] * len(values))


def _warp(field: Float[Tensor, "*S"], flow: Float[Tensor, "D *S"]) -> Float[Tensor, "*S"]:
    """The field read at displaced places, zero beyond the edge."""
    places = coordinates(field.shape) + flow
    sides = _column([float(side) for side in field.shape])
    places = ((2 * places + 1) / sides - 1).flip(0).movedim(0, -1)
    return F.grid_sample(field[None, None], places[None], align_corners=False)[0, 0]
