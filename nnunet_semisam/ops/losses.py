"""Losses between the student's probabilities and a pseudo-label. All are (prob, target, confidence) -> scalar.

All are linear in the confidence, their gradients too, and least where both probabilities are equal. Zero confidence
everywhere gives zero.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor


def soft_mse(
    prob: Float[Tensor, "U K *S"], target: Float[Tensor, "U K *S"], confidence: Float[Tensor, "U 1 *S"]
) -> Float[Tensor, ""]:
    """Mean squared difference of probabilities, each voxel counted by its confidence.

    The sum is divided by the number of voxels, not by the confidence.
    Source: mean teacher (Tarvainen and Valpola 2017, arXiv 1703.01780), as UA-MT and SemiSAM use it.
    """
    return ((prob.float() - target) ** 2 * confidence).mean()


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
    difference = ((prob - target) ** 2 * confidence).sum(axes)
    return (difference / (own + other + 1) * (other / (other + 1))).mean()


LOSSES: dict[str, Callable[..., Tensor]] = {"mse": soft_mse, "dice": soft_dice}
