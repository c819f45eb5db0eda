"""Distribution alignment: the teacher's probabilities, scaled until classes are as frequent as in labeled patches.

ReMixMatch (Berthelot et al. 2020, arXiv 1911.09785, section 3.1), by voxel instead of by image.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from nnunet_semisam.ops.outputs import OutputSpace

FAINT = 1e-3  # added to both shares: a class that is hardly ever in sight is left as it is


def aligned(
    prob: Float[Tensor, "U K *S"],
    labeled: Sequence[float],
    predicted: Sequence[float],
    outputs: OutputSpace,
    *,
    strength: float = 1.0,
) -> Float[Tensor, "U K *S"]:
    """Labels: p_k times (labeled_k / predicted_k)^strength, divided by the sum over k. Regions: the same for each head
    and its complement.

    Args:
        labeled, predicted: share of each class among the voxels of labeled patches cropped at random, and the teacher's
            mean probability of it in unlabeled ones. With regions the first entry is the background's, which has no
            head.
        strength: 0 changes nothing, 1 is the paper's.
    """
    shares = prob.new_tensor([labeled, predicted])
    if outputs.has_regions:
        shares = shares[:, 1:]
        inside, outside = _factor(shares, prob, strength), _factor(1 - shares, prob, strength)
        return prob * inside / (prob * inside + (1 - prob) * outside)
    scaled = prob * _factor(shares, prob, strength)
    return scaled / scaled.sum(1, keepdim=True)


def _factor(shares: Float[Tensor, "2 K"], prob: Tensor, strength: float) -> Float[Tensor, "K ..."]:
    labeled, predicted = shares + FAINT
    return ((labeled / predicted) ** strength).view(-1, *[1] * (prob.ndim - 2))
