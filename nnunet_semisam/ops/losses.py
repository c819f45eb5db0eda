"""Losses between the student's probabilities and a pseudo-label. All are (prob, target, confidence) -> scalar."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def soft_mse(
    prob: Float[Tensor, "U K *S"], target: Float[Tensor, "U K *S"], confidence: Float[Tensor, "U 1 *S"]
) -> Float[Tensor, ""]:
    """Mean squared difference of probabilities, each voxel counted by its confidence.

    Zero confidence everywhere gives zero, not NaN: the sum is divided by the number of voxels, not by the confidence.
    Source: mean teacher (Tarvainen and Valpola 2017, arXiv 1703.01780), as UA-MT and SemiSAM use it.
    """
    return ((prob.float() - target) ** 2 * confidence).mean()
