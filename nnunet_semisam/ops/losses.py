"""Losses between the student's probabilities and a pseudo-label. All are (prob, target, confidence) -> scalar.

All are linear in the confidence, their gradients too, and least where both probabilities are equal. Zero confidence
everywhere gives zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def soft_mse(
    prob: Float[Tensor, "U K *S"], target: Float[Tensor, "U K *S"], confidence: Float[Tensor, "U 1 *S"]
) -> Float[Tensor, ""]:
    """Mean squared difference of probabilities, each voxel counted by its confidence.

    The sum is divided by the number of voxels, not by the confidence.
    Source: mean teacher (Tarvainen and Valpola 2017, arXiv 1703.01780), as UA-MT and SemiSAM use it.
    """
    return _squared_difference(prob.float(), target, confidence).sum() / prob.numel()


def soft_dice(
    prob: Float[Tensor, "U K *S"], target: Float[Tensor, "U K *S"], confidence: Float[Tensor, "U 1 *S"]
) -> Float[Tensor, ""]:
    """Squared difference of probabilities, relative to the size of the object; averaged over heads.

    Per head, over the voxels of the batch and with confidences w: sum(w (p - t)^2) / (sum(p^2 + t^2) + 1), which with
    w = 1 is 1 - Dice in the squared form of V-Net (Milletari et al. 2016, arXiv 1606.04797). Unlike there the
    denominator is held fixed for the gradient, which so stays linear in w: where a sample of planes has confidence,
    loss and gradient have the expectation that they have with all planes.

    A head that the target lacks is left alone: everything is multiplied by sum(t^2) / (sum(t^2) + 1). Else the first
    voxels that a student finds, and its teacher has not found yet, would be pushed back with the weight of an object.
    """
    prob, axes = prob.float(), (0, *range(2, prob.ndim))
    own, other = (prob.detach() ** 2).sum(axes), (target**2).sum(axes)
    difference = _squared_difference(prob, target, confidence)
    return (difference / (own + other + 1) * (other / (other + 1))).mean()


class _SquaredDifference(torch.autograd.Function):
    """sum(w (p - t)^2) per head. Keeps no tensor but its arguments: with many classes each is as large as the network's
    output, and both unlabeled losses would keep one more."""

    @staticmethod
    def forward(ctx: Any, prob: Tensor, target: Tensor, confidence: Tensor) -> Tensor:
        ctx.save_for_backward(prob, target, confidence)
        return (prob - target).square_().mul_(confidence).sum((0, *range(2, prob.ndim)))

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        prob, target, confidence = ctx.saved_tensors
        per_head = 2 * upstream[0].view(1, -1, *[1] * (prob.ndim - 2))
        return (prob - target).mul_(confidence).mul_(per_head), None, None


def _squared_difference(
    prob: Float[Tensor, "U K *S"], target: Float[Tensor, "U K *S"], confidence: Float[Tensor, "U 1 *S"]
) -> Float[Tensor, " K"]:
    return _SquaredDifference.apply(prob, target, confidence)


LOSSES: dict[str, Callable[..., Tensor]] = {"mse": soft_mse, "dice": soft_dice}
