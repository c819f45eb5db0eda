"""From a patch to the space of a volumetric generalist, and back: order of axes, voxel size, and a cubic window.

Such a model was trained on one voxel size and on windows around the object. A patch has the voxel size of its plans, in
array order, and any shape. Image, clicks, boxes and masks go through the same `Frame`, so they stay together.

A patch of nnU-Net is (z, y, x) if its plans do not transpose it; the published volumetric models read their training
images as (x, y, z).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from nnunet_semisam.sam.embedded.frame import Frame
from nnunet_semisam.sam.prompts import tight_boxes
from nnunet_semisam.types import Prompts


@dataclass(frozen=True)
class VolumeSpace:
    """Where a generalist looks from.

    Args:
        spacing: mm per voxel of the patch, array order.
        axes: the axes of the patch in the order of the generalist's.
        voxel: mm per voxel of the generalist's window, along every axis.
        side: voxels of the window along every axis.
    """

    spacing: tuple[float, ...]
    axes: tuple[int, ...]
    voxel: float
    side: int

    def turned(self, volume: Float[Tensor, "N C *S"]) -> Float[Tensor, "N C *T"]:
        """A volume with the generalist's order of axes."""
        return volume.permute(0, 1, *(axis + 2 for axis in self.axes))

    def turned_back(self, volume: Float[Tensor, "N C *T"]) -> Float[Tensor, "N C *S"]:
        """A volume of the generalist's, with the patch's order of axes."""
        return volume.permute(0, 1, *(self.axes.index(axis) + 2 for axis in range(len(self.axes))))

    def turned_prompts(self, prompts: Prompts) -> Prompts:
        """Prompts with the generalist's order of axes."""
        boxes, masks = prompts.boxes, prompts.mask_logits
        return replace(
            prompts,
            point_coords=prompts.point_coords[..., list(self.axes)].float(),
            boxes=None if boxes is None else boxes[..., list(self.axes)].float(),
            mask_logits=None if masks is None else self.turned(masks[:, None])[:, 0].float(),
        )

    def windows(self, boxes: Float[Tensor, "P 2 T"]) -> Frame:
        """Windows centred on boxes of the turned patch. Where a box does not fit, the voxels are larger."""
        spacing = boxes.new_tensor([self.spacing[axis] for axis in self.axes])
        low, high = boxes.unbind(1)
        longest = ((high - low) * spacing).amax(1, keepdim=True)  # mm
        size = longest.clamp(min=self.side * self.voxel) / spacing
        return Frame((low + high - size) / 2, size.expand_as(low), self.side)


def object_boxes(prompts: Prompts, shape: Sequence[int]) -> Float[Tensor, "P 2 D"]:
    """Where the object is thought to be: its box, else its mask's, else its clicks', else anywhere in the patch."""
    if prompts.boxes is not None:
        return prompts.boxes.float()
    boxes = whole_boxes(len(prompts), shape, prompts.image.device)
    inside = prompts.point_labels == 1
    if inside.any():
        coords, away = prompts.point_coords.float() + 0.5, ~inside[..., None]
        low, high = coords.masked_fill(away, torch.inf).amin(1), coords.masked_fill(away, -torch.inf).amax(1)
        boxes = torch.where(inside.any(1)[:, None, None], torch.stack([low, high], dim=1), boxes)
    if prompts.mask_logits is not None:
        masks = prompts.mask_logits > 0
        boxes = torch.where(masks.flatten(1).any(1)[:, None, None], tight_boxes(masks).float(), boxes)
    return boxes


def whole_boxes(count: int, shape: Sequence[int], device: torch.device) -> Float[Tensor, "P 2 D"]:
    """The box of the patch, `count` times."""
    box = torch.tensor([[0.0] * len(shape), [float(side) for side in shape]], device=device)
    return box.expand(count, -1, -1)
