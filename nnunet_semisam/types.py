"""The nouns of the package: batches, pseudo-labels, prompts and SAM predictions.

Shape letters, once and for all: **B** labeled batch, **U** unlabeled batch, **C** image channels, **K** segmentation
heads, **S** spatial shape (2 or 3 axes), **D** number of spatial axes, **N** points, **P** prompted objects.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class LabeledBatch:
    """Image patches with the target that nnU-Net's loss compares with (a list of tensors under deep supervision)."""

    image: Float[Tensor, "B C *S"]
    target: Tensor | list[Tensor]
    keys: tuple[str, ...]

    @classmethod
    def from_nnunet(cls, batch: dict, device: torch.device) -> LabeledBatch:
        """The dictionary of nnU-Net's loader, moved to `device`."""
        target = batch["target"]
        target = [t.to(device, non_blocking=True) for t in target] if isinstance(target, list) else target.to(device)
        return cls(batch["data"].to(device, non_blocking=True), target, tuple(batch["keys"]))


@dataclass(frozen=True)
class LabeledCase:
    """A labeled case or a patch of one, as nnU-Net preprocesses it. Only cases that training may learn from become one.

    Args:
        truth: one mask per segmentation head: labels with the background as head 0, or regions.
        valid: False where the ignore label is; every `truth` is False there.
    """

    name: str
    image: Float[Tensor, "C *S"]
    truth: Bool[Tensor, "K *S"]
    valid: Bool[Tensor, "*S"]


@dataclass(frozen=True)
class UnlabeledBatch:
    """Views of the same unlabeled patches, voxel on voxel. There is no target, by design.

    Args:
        image: weak view: nnU-Net's geometric augmentation only. Teacher and SAM see this one.
        strong: the same patches after nnU-Net's full augmentation; None where nobody looks at them
            (`SemiMethod.wants_strong`).
        keys: case names.
        iteration: global iteration, counted from 0.
        previous: how many of the channels are no image but labels of a cascade's previous stage: the last ones. In the
            strong view nnU-Net has roughened them.
    """

    image: Float[Tensor, "U C *S"]
    strong: Float[Tensor, "U C *S"] | None
    keys: tuple[str, ...]
    iteration: int = 0
    previous: int = 0

    @property
    def picture(self) -> Float[Tensor, "U I *S"]:
        """The weak view without the labels of a previous stage: all that a SAM may look at."""
        return self.image[:, : -self.previous] if self.previous else self.image

    @property
    def roughened(self) -> Float[Tensor, "U L *S"]:
        """The strong view's labels of the previous stage; without a cascade there are none."""
        return self.full_view[:, -self.previous :] if self.previous else self.image[:, :0]

    @property
    def full_view(self) -> Float[Tensor, "U C *S"]:
        """The strong view.

        Raises:
            ValueError: there is none.
        """
        if self.strong is None:
            raise ValueError("semisam: no strong view was made; the method's `wants_strong` must be true for that")
        return self.strong

    @classmethod
    def from_nnunet(
        cls, batch: dict, device: torch.device, iteration: int = 0, *, previous: int = 0, channels: int | None = None
    ) -> UnlabeledBatch:
        """Takes the weak view, and the strong one in front of it if there is one, out of the channels of `data`.

        Args:
            channels: C of the network's input; None: `data` has two views.

        Raises:
            ValueError: `data` has neither C nor 2C channels.
        """
        views, keys = batch["data"].to(device, non_blocking=True), tuple(batch["keys"])
        if views.shape[1] == channels:
            return cls(views, None, keys, iteration, previous)
        if views.shape[1] != 2 * (channels or views.shape[1] // 2):
            raise ValueError(
                f"semisam: unlabeled batches have {views.shape[1]} channels, but the network's input has {channels}"
            )
        strong, weak = views.chunk(2, dim=1)
        return cls(weak.contiguous(), strong.contiguous(), keys, iteration, previous)


@dataclass(frozen=True)
class PseudoLabel:
    """What a machine believes about unlabeled patches: probabilities, and how much each voxel is to be trusted.

    Always float32 and without gradient. A confidence of 0 takes the voxel out of the loss.

    Args:
        scale: factor of each patch's confidence in the loss; above 1 where the voxels with confidence are a sample of
            those worth asking about.
    """

    prob: Float[Tensor, "U K *S"]
    confidence: Float[Tensor, "U 1 *S"]  # in [0, 1]
    scale: Float[Tensor, "U ..."] | float = 1.0  # (U, 1, 1, …)

    @classmethod
    def certain(cls, prob: Float[Tensor, "U K *S"]) -> PseudoLabel:
        """A pseudo-label that is trusted everywhere."""
        prob = prob.detach().float()
        return cls(prob, torch.ones_like(prob[:, :1]))


@dataclass(frozen=True)
class Prompts:
    """P prompted objects, flat: each points at an image of the embedded batch and at a segmentation head.

    Coordinates are in voxels of the patch in array order (z, y, x) or (y, x); an integer is a voxel centre. A backend
    that wants another order or frame converts at its own border.

    Args:
        image: index of the image in the embedded batch.
        head: segmentation head (class or region); never the background.
        point_coords: N may be 0.
        point_labels: 1 inside the object, 0 outside, -1 padding.
        boxes: low and high corner, half-open.
        mask_logits: natural log-odds of the prompting prediction.
    """

    image: Int64[Tensor, " P"]
    head: Int64[Tensor, " P"]
    point_coords: Float[Tensor, "P N D"]
    point_labels: Int64[Tensor, "P N"]
    boxes: Float[Tensor, "P 2 D"] | None = None
    mask_logits: Float[Tensor, "P *S"] | None = None

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True)
class SamPrediction:
    """A promptable model's answer, one mask per object: logits with threshold 0, and the IoU it predicts for them."""

    mask_logits: Float[Tensor, "P *S"]
    iou_predictions: Float[Tensor, " P"]  # in [0, 1]
