"""How much the places of a patch count: its middle more than its border."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def center_weights(size: Sequence[int], sigma: float, device: torch.device) -> Float[Tensor, "1 1 *S"]:
    """A Gaussian around the middle of a patch, with mean 1.

    Args:
        size: of the patch, in voxels.
        sigma: standard deviation along each axis, as a share of its size.
    """
    window = torch.ones((), device=device)
    for length in size:
        away = (torch.arange(length, device=device) + 0.5) / length - 0.5
        line = torch.softmax(-0.5 * (away / sigma) ** 2, 0) * length  # finite for any sigma
        window = window[..., None] * line
    return window[None, None]
