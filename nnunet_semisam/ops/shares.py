"""How much of a patch each class fills, counted on the device."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


def shares_of_labels(labels: Int64[Tensor, "B X *S"], count: int) -> Float[Tensor, "B M"]:
    """Share of each label below `count`, and of all of them; the ignore label is `count`. Sums of ones are exact."""
    rows = labels.flatten(2)  # each with sums of its own: on a GPU fewer threads then add to the same one
    sums = torch.zeros(*rows.shape[:2], count + 1, device=rows.device)
    sums.scatter_add_(2, rows, torch.ones((), device=rows.device).expand_as(rows))
    sums = sums.sum(1)
    sums[:, count] = sums[:, :count].sum(1)
    return sums / rows[0].numel()


def shares_of_regions(inside: Bool[Tensor, "B K *S"], ignored: Bool[Tensor, "B *S"] | None) -> Float[Tensor, "B M"]:
    """Share of the background, of each region, and of the voxels that count."""
    valid = torch.ones_like(inside[:, :1]) if ignored is None else ~ignored[:, None]
    parts = torch.cat([~inside.any(1, keepdim=True), inside, valid], 1) & valid
    return parts.flatten(2).float().mean(2)
