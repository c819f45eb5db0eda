"""The canonical frame: every prompted object is looked at in a small grid of fixed size, centred on the object.

The crop around the prompt is resampled per axis, so an object always has about the same size in the grid, whatever the
patch, the voxel spacing or the anisotropy. Crops and pastes are products with one small matrix per axis (a triangle
filter, widened when the grid is coarser than the patch, so nothing aliases). Object-centred crops are an old habit of
instance segmentation (Mask R-CNN's RoIAlign, He et al., ICCV 2017, https://arxiv.org/abs/1703.06870).

Positions are in array order. In patch coordinates a whole number is a voxel centre; boxes are half-open, so voxel i
covers [i, i + 1) in box coordinates, and box coordinate = centre coordinate + 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

OUTSIDE = -10.0  # log-odds given to voxels that the frame does not reach
FAINT = 1e-20  # less of a ball is nothing: CPUs need twice the time for a network whose input has denormal numbers


@dataclass(frozen=True)
class Frame:
    """Where each item's grid lies in its patch: `low` corner and `size`, in box coordinates, (P, D) each."""

    low: Float[Tensor, "P D"]
    size: Float[Tensor, "P D"]
    grid: int

    @classmethod
    def around(cls, boxes: Float[Tensor, "P 2 D"], grid: int, *, grow: float = 0.25, extra: float = 2.0) -> Frame:
        """The box, grown on each side by a share of its length and by `extra` voxels."""
        margin = grow * (boxes[:, 1] - boxes[:, 0]) + extra
        return cls(boxes[:, 0] - margin, boxes[:, 1] - boxes[:, 0] + 2 * margin, grid)

    def to_grid(self, coords: Float[Tensor, "P N D"]) -> Float[Tensor, "P N D"]:
        """Patch coordinates (voxel centres) to grid coordinates (cell centres)."""
        return (coords + 0.5 - self.low[:, None]) / self.size[:, None] * self.grid - 0.5

    def to_patch(self, coords: Float[Tensor, "P N D"]) -> Float[Tensor, "P N D"]:
        """Grid coordinates back to patch coordinates."""
        return (coords + 0.5) / self.grid * self.size[:, None] + self.low[:, None] - 0.5

    def crop(self, volume: Float[Tensor, "P C *S"]) -> Float[Tensor, "P C *G"]:
        """The volume in the frame; beyond the patch its edge is repeated (see `valid`)."""
        cells = torch.arange(self.grid, device=volume.device, dtype=volume.dtype)
        centres = self.to_patch(cells[None, :, None].expand(len(volume), -1, self.low.shape[1]))  # (P, G, D)
        step = self.size / self.grid
        for axis, side in enumerate(volume.shape[2:]):
            volume = _along(volume, axis, _triangle(centres[..., axis], side, step[:, axis]))
        return volume

    def valid(self, shape: Sequence[int]) -> Float[Tensor, "P 1 *G"]:
        """1 where a cell's centre lies in the patch, 0 beyond it."""
        cells = torch.arange(self.grid, device=self.low.device, dtype=self.low.dtype)
        centres = self.to_patch(cells[None, :, None].expand(len(self.low), -1, self.low.shape[1]))
        upper = torch.tensor(shape, device=centres.device, dtype=centres.dtype) - 0.5
        return outer(((centres >= -0.5) & (centres <= upper)).to(self.low.dtype))

    def paste(self, logits: Float[Tensor, "P *G"], shape: Sequence[int]) -> Float[Tensor, "P *S"]:
        """Grid values back in the patch; `OUTSIDE` where the frame does not reach."""
        logits = logits[:, None]
        reached = []
        for axis, side in enumerate(shape):
            voxels = torch.arange(side, device=logits.device, dtype=logits.dtype) + 0.5
            cells = (voxels[None] - self.low[:, axis, None]) / self.size[:, axis, None] * self.grid - 0.5
            logits = _along(logits, axis, _triangle(cells, self.grid, self.grid / self.size[:, axis]))
            reached.append((cells >= -0.5) & (cells <= self.grid - 0.5))
        for axis, hit in enumerate(reached):
            view = [len(hit), 1] + [1] * len(shape)
            view[axis + 2] = -1
            logits = torch.where(hit.view(view), logits, OUTSIDE)
        return logits[:, 0]

    def balls(
        self, coords: Float[Tensor, "P N D"], labels: Int[Tensor, "P N"], wanted: int, radius: float
    ) -> Float[Tensor, "P 1 *G"]:
        """A Gaussian ball at every point whose label is `wanted`; where balls meet, the higher counts."""
        places = self.to_grid(coords)
        cells = torch.arange(self.grid, device=coords.device, dtype=coords.dtype)
        total = coords.new_zeros((len(coords), 1) + (self.grid,) * coords.shape[-1])
        for n in range(coords.shape[1]):
            profile = torch.exp(-0.5 * ((cells[None, :, None] - places[:, n, None]) / radius) ** 2)
            keep = (labels[:, n] == wanted).to(coords.dtype).view(-1, *[1] * (total.ndim - 1))
            total = torch.maximum(total, outer(profile) * keep)
        return torch.where(total < FAINT, 0.0, total)

    def filled(self, boxes: Float[Tensor, "P 2 D"]) -> Float[Tensor, "P 1 *G"]:
        """How much of each cell the box covers."""
        corners = (boxes - self.low[:, None]) / self.size[:, None] * self.grid  # (P, 2, D), in cells
        cells = torch.arange(self.grid, device=boxes.device, dtype=boxes.dtype)[None, :, None]
        covered = torch.minimum(corners[:, 1:], cells + 1) - torch.maximum(corners[:, :1], cells)
        return outer(covered.clamp(0, 1))


def outer(profiles: Float[Tensor, "P G D"]) -> Float[Tensor, "P 1 *G"]:
    """The product of one profile per axis, as a field."""
    dims = profiles.shape[-1]
    field = torch.ones((len(profiles),) + (1,) * dims, device=profiles.device, dtype=profiles.dtype)
    for axis in range(dims):
        view = [len(profiles)] + [1] * dims
        view[axis + 1] = -1
        field = field * profiles[..., axis].reshape(view)
    return field[:, None]


def _triangle(positions: Float[Tensor, "P M"], side: int, width: Float[Tensor, " P"]) -> Float[Tensor, "P M side"]:
    """Linear interpolation at `positions` of an axis with `side` samples; wider than a sample where `width` > 1."""
    sources = torch.arange(side, device=positions.device, dtype=positions.dtype)
    reach = width.clamp(min=1)[:, None, None]
    weights = (1 - (positions.clamp(0, side - 1)[..., None] - sources).abs() / reach).clamp(min=0)
    return weights / weights.sum(-1, keepdim=True)


def _along(volume: Float[Tensor, "P C *S"], axis: int, weights: Float[Tensor, "P M side"]) -> Tensor:
    """The weights applied to one spatial axis."""
    moved = volume.movedim(axis + 2, -1)
    product = torch.bmm(moved.reshape(len(moved), -1, moved.shape[-1]), weights.transpose(1, 2))
    return product.view(*moved.shape[:-1], -1).movedim(-1, axis + 2)
