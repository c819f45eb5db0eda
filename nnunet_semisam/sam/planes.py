"""Planes of 3D patches, for generalists that serve only 2D: which ones, and the way there and back.

An object that SAM sees slice by slice has no end along the slicing axis; asking along another axis each time lets
the errors of one axis be contradicted by the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from nnunet_semisam.types import PseudoLabel

MIN_SIDE = 16  # voxels: planes with a shorter side show too little to recognise anything
MAX_RATIO = 3.0  # longest to shortest side of a plane
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Planes:
    """V chosen planes of U patches: patch number and position along `axis`. Without axis, the patches as they are.

    `stand_for` is how many planes with something to ask about each patch has for each chosen one.
    """

    axis: int | None = None
    image: Int64[Tensor, " V"] | None = None
    position: Int64[Tensor, " V"] | None = None
    stand_for: Float[Tensor, " U"] | None = None

    def take(self, volume: Shaped[Tensor, "U C *S"]) -> Shaped[Tensor, "V C *T"]:
        """The planes of a patch-shaped tensor (image, probabilities or masks alike), the other axes in their order."""
        if self.axis is None:
            return volume
        return volume.movedim(self.axis + 2, 1)[self.image, self.position]

    def scatter(self, pseudo: PseudoLabel, elsewhere: Float[Tensor, "U K *S"]) -> PseudoLabel:
        """A pseudo-label of the planes, back in the patches: `elsewhere` with confidence 0 on planes not asked.

        Its loss is scaled by `stand_for`: planes are a sample of those that show something, and so the expected loss is
        that of asking about them all (weights inverse to the chance of being drawn; Horvitz and Thompson 1952).
        """
        if self.axis is None:
            return pseudo
        prob = elsewhere.detach().float().clone()
        confidence = torch.zeros_like(prob[:, :1])
        prob.movedim(self.axis + 2, 1)[self.image, self.position] = pseudo.prob
        confidence.movedim(self.axis + 2, 1)[self.image, self.position] = pseudo.confidence
        scale = 1.0 if self.stand_for is None else self.stand_for.view(-1, *[1] * (prob.ndim - 1))
        return PseudoLabel(prob, confidence, scale)


def choose_planes(
    objects: Bool[Tensor, "U F D H W"], *, axis: int | str, budget: int, iteration: int, min_voxels: int
) -> Planes:
    """At most `budget` planes per patch, evenly spread over those that show a large enough piece of some object.

    The spread starts at another plane each iteration. Deterministic.

    Args:
        objects: the teacher's hard masks of the foreground heads.
        axis: 0, 1, 2, or "alternate": the next of `sensible_axes` each iteration.
        min_voxels: smallest piece of one object on a plane that is worth a prompt.
    """
    axes = sensible_axes(objects.shape[2:])
    normal = axes[iteration % len(axes)] if axis == "alternate" else int(axis)
    others = tuple(d for d in (2, 3, 4) if d != normal + 2)
    promptable = (objects.sum(dim=others) >= min_voxels).any(1)  # (U, side)
    offset = (iteration * _GOLDEN) % 1
    chosen = [
        (image, position)
        for image, row in enumerate(promptable.cpu())
        for position in _spread(row.nonzero()[:, 0].tolist(), budget, offset)
    ]
    pairs = torch.tensor(chosen, dtype=torch.int64, device=objects.device).reshape(-1, 2)
    shown = promptable.sum(1)
    stand_for = (shown / shown.clamp(min=1, max=budget)).clamp(min=1)
    return Planes(normal, pairs[:, 0], pairs[:, 1], stand_for)


def sensible_axes(shape: tuple[int, ...]) -> list[int]:
    """Axes whose planes have sides of at least 16 voxels and a side ratio of at most 3.

    A patch of 14 x 256 x 256 is cut along axis 0 only: its other planes are strips. Where no axis qualifies, the one
    whose planes have the longest short side.
    """
    sides = {axis: sorted(side for other, side in enumerate(shape) if other != axis) for axis in range(len(shape))}
    good = [axis for axis, (short, long) in sides.items() if short >= MIN_SIDE and long <= MAX_RATIO * short]
    return good or [max(sides, key=lambda axis: sides[axis])]


def _spread(candidates: list[int], budget: int, offset: float) -> list[int]:
    """`budget` of the candidates at equal steps, beginning at a share `offset` of the first step."""
    if len(candidates) <= budget:
        return candidates
    return [candidates[int((i + offset) * len(candidates) / budget)] for i in range(budget)]
