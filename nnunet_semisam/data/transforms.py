"""Views of an unlabeled patch: the trainer's full augmentation, and its geometry alone, voxel on voxel.

Batchgeneratorsv2 moves a `regression_target` through every spatial transform with the parameters of the image, and
leaves it alone in intensity transforms. A copy of the image sent along as regression target is therefore the weak view.
Where nobody looks at the strong view, transforms of intensities are left out instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform, SegOnlyTransform
from batchgeneratorsv2.transforms.nnunet.seg_to_onehot import MoveSegAsOneHotToDataTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.rot90 import Rot90Transform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.spatial.transpose import TransposeAxesTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.random import OneOfTransform, RandomTransform
from torch import Tensor

NEAR_ZERO = 1e-3  # resampling leaves ripples in the background, which was exactly 0 after normalization

GEOMETRIC = (
    SpatialTransform,
    MirrorTransform,
    Rot90Transform,
    TransposeAxesTransform,
    Convert3DTo2DTransform,
    Convert2DTo3DTransform,
    MaskImageTransform,
    MoveSegAsOneHotToDataTransform,
    SegOnlyTransform,
)


def geometry_of(transform: BasicTransform) -> BasicTransform | None:
    """The same transforms without those of the intensities; None where one is of a kind that may change both."""
    kind = type(transform)
    if isinstance(transform, ImageOnlyTransform) and kind.apply is ImageOnlyTransform.apply:
        return ComposeTransforms([])
    if kind is ComposeTransforms:
        kept = [geometry_of(child) for child in transform.transforms]
        return None if None in kept else ComposeTransforms(kept)
    if kind is RandomTransform:
        inner = geometry_of(transform.transform)
        return None if inner is None else RandomTransform(inner, transform.apply_probability)
    if kind is OneOfTransform:
        kept = [geometry_of(child) for child in transform.list_of_transforms]
        return None if None in kept else OneOfTransform(kept)
    return transform if isinstance(transform, GEOMETRIC) else None


class WeakViewTransform:
    """Gives the weak view alone, C channels.

    Args:
        transform: of `geometry_of`; called as that of `TwoViewTransform`.
        use_mask_for_norm: see `TwoViewTransform`.
    """

    def __init__(self, transform: Callable[..., dict], use_mask_for_norm: Sequence[bool] | None = None) -> None:
        self.transform = transform
        self.masked_channels = _masked_channels(use_mask_for_norm)

    def __call__(self, *, image: Tensor, segmentation: Tensor) -> dict[str, Tensor]:
        """`image` (C, *S before) → `image` (C, *S after), and the `segmentation` as the transforms leave it.

        Raises:
            ValueError: the transforms change the number of channels.
        """
        body = _body(image, self.masked_channels)
        more = {"regression_target": body} if len(body) else {}
        moved = self.transform(image=image, segmentation=segmentation, **more)
        view = moved["image"]
        if len(view) != len(image):
            raise ValueError(
                f"the training transforms make {len(view)} channel(s) out of {len(image)}; such a one cannot be used "
                "for unlabeled images."
            )
        if more:
            background = moved["regression_target"][0] < 0.5
            for channel in self.masked_channels:
                view[channel][background] = 0
        return {"image": view, "segmentation": moved["segmentation"]}


class TwoViewTransform:
    """Wraps a trainer's training transforms; gives the strong and the weak view as 2C channels, strong first.

    Build the wrapped transforms with `deep_supervision_scales=None` and `regions=None`.

    In a cascade they turn the second channel of the segmentation, the previous stage's labels, into channels of the
    image, and roughen them. A copy of the labels goes along as third channel, which is moved only: from it the weak
    view gets its own channels.

    With `use_mask_for_norm`, nnU-Net keeps the background at 0, and finds it in the segmentation, which is blank here.
    The background of such data is found in the image instead: voxels that are near 0 in all channels normalized within
    the mask. (A channel normalized without the mask is not 0 in the background, and does not take part.) It travels as
    one more channel of the regression target, and both views are set to 0 there. A voxel of the body that is near 0 by
    chance is hit as well; in the weak view this changes it by less than `NEAR_ZERO`.

    Args:
        transform: called with `image`, `segmentation` and `regression_target`, of shape (channels, *S) each.
        use_mask_for_norm: of the configuration, one flag per channel.
        previous_labels: foreground labels of a cascade, in nnU-Net's order; empty without one.
    """

    def __init__(
        self,
        transform: Callable[..., dict],
        use_mask_for_norm: Sequence[bool] | None = None,
        *,
        previous_labels: Sequence[int] = (),
    ) -> None:
        self.transform = transform
        self.previous_labels = list(previous_labels)
        self.masked_channels = _masked_channels(use_mask_for_norm)

    def __call__(self, *, image: Tensor, segmentation: Tensor) -> dict[str, Tensor]:
        """`image` (C, *S before) → `image` (2C, *S after), and the `segmentation` as the transforms leave it.

        With L `previous_labels`, `segmentation` has two channels, and there are 2(C + L) channels afterwards.

        Raises:
            ValueError: the wrapped transforms change the image's channels or do not carry a regression target.
        """
        channels = image.shape[0]
        companion = torch.cat(
            [image, _body(image, self.masked_channels)]
        )  # always a copy: intensity transforms work in place
        if self.previous_labels:
            segmentation = torch.cat([segmentation, segmentation[1:2]])
        moved = self.transform(image=image, segmentation=segmentation, regression_target=companion)
        strong, companion = moved["image"], moved.get("regression_target")
        expected = channels + len(self.previous_labels)
        if companion is None or strong.shape != (expected, *companion.shape[1:]):
            shapes = [tuple(strong.shape), None if companion is None else tuple(companion.shape)]
            raise ValueError(
                f"the training transforms give image and regression target of shapes {shapes}, but two views need the "
                f"same size and an image of {expected} channel(s); a transform that adds channels or drops "
                "regression_target cannot be used for unlabeled images."
            )
        views = torch.cat([strong, companion[:channels], self._one_hot(moved["segmentation"][-1], strong)])
        if self.masked_channels:
            self._clear_background(views, companion[channels] < 0.5)
        return {"image": views, "segmentation": moved["segmentation"]}

    def _one_hot(self, labels: Tensor, like: Tensor) -> Tensor:
        """One channel per previous label; no channel without a cascade."""
        if not self.previous_labels:
            return like[:0]
        return torch.stack([labels == label for label in self.previous_labels]).to(like.dtype)

    def _clear_background(self, views: Tensor, background: Tensor) -> None:
        channels = views.shape[0] // 2
        for channel in self.masked_channels:
            views[channel][background] = 0
            views[channels + channel][background] = 0


def _masked_channels(use_mask_for_norm: Sequence[bool] | None) -> list[int]:
    return [channel for channel, masked in enumerate(use_mask_for_norm or ()) if masked]


def _body(image: Tensor, masked_channels: list[int]) -> Tensor:
    """1 in the body, 0 in the background, as one channel; no channel where nothing is masked."""
    if not masked_channels:
        return image[:0]
    return (image[masked_channels].abs() > NEAR_ZERO).any(0, keepdim=True).to(image.dtype)
