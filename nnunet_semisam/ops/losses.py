"""Losses between the student's probabilities and a pseudo-label. All are (prob, target, confidence) -> scalar.

All are linear in the confidence and least where both probabilities are equal. Zero confidence everywhere gives zero.
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
    """1 - Dice with squares in the denominator, over the voxels of the batch, averaged over heads.

    With weights w it is sum(w (p - t)^2) / (sum(w (p^2 + t^2)) + 1) per head: the squared difference, relative to the
    size of the object instead of the patch. It is multiplied by the share of the object that has confidence. A head
    that the target does not have at all gives next to no gradient, so what the teacher has not found yet is not
    unlearned. Source: V-Net (Milletari et al. 2016, arXiv 1606.04797, equation 2).
    """
    prob, axes = prob.float(), (0, *range(2, prob.ndim))
    mass = prob**2 + target**2
    weighted = (mass * confidence).sum(axes) + 1
    share = weighted.detach() / (mass.detach().sum(axes) + 1)
    return (((prob - target) ** 2 * confidence).sum(axes) / weighted * share).mean()


LOSSES: dict[str, Callable[..., Tensor]] = {"mse": soft_mse, "dice": soft_dice}
