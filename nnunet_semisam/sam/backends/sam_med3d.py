"""SAM-Med3D (Wang et al. 2023, https://arxiv.org/abs/2310.15161), the volumetric generalist of SemiSAM.

Needs a checkpoint, `sam_med3d_turbo.pth` or `sam_med3d.pth` (https://huggingface.co/blueyo0/SAM-Med3D, Apache-2.0), and
no package: the network is `nnunet_semisam.sam.med3d`. Its frame: windows of 128^3 voxels of 1.5 mm, axes x, y, z, the
object in the middle; grey values z-scored over the voxels above 0. Patches and prompts come in array order and in
voxels of the patch and are converted here (`nnunet_semisam.sam.volume`).

It hears clicks and masks. A box only says where to look: the model has no code for boxes. Its IoU head was not trained,
so the IoU is estimated from the answer itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from nnunet_semisam.sam.base import SamBackend, expected_iou
from nnunet_semisam.sam.embedded.frame import Frame
from nnunet_semisam.sam.med3d import Med3D, load_weights
from nnunet_semisam.sam.prompts import MAX_LOGIT, select
from nnunet_semisam.sam.volume import VolumeSpace, object_boxes, whole_boxes
from nnunet_semisam.sam.weights import read_weights
from nnunet_semisam.types import Prompts, SamPrediction

VOXEL = 1.5  # mm
NOISE = 0.01  # share of the way from the lowest to the mean grey value up to which a voxel is background
WINDOWS = ("object", "patch")


@dataclass(frozen=True)
class Volumes:
    """One channel of U patches with the network's order of axes; `floor` is the grey value of the background."""

    image: Float[Tensor, "U 1 *T"]
    floor: Float[Tensor, " U"]


class SamMed3D(SamBackend):
    """SAM-Med3D in windows of its own voxel size.

    Args:
        checkpoint: file of SAM-Med3D, or a network that is there already.
        spacing: mm per voxel of the patches, array order. The trainer fills it in from the plans.
        channel: image channel to look at.
        window: "object" centres a window on each object, as in training, and encodes it; "patch" shows every object
            of a patch in the same window, which is encoded once. What does not fit is shown with larger voxels.
        axes: the axes of the patch that are x, y and z. Set it if the plans transpose the axes.
        raw_zero: what the grey value 0 of the file is after nnU-Net's normalisation (CT: -mean / standard deviation
            of the plans' foreground intensities). None: the lowest value of the patch.
        max_windows: windows encoded, and objects decoded, at once; bounds the memory.

    Raises:
        ValueError: no checkpoint, or one with another layout; an argument that cannot be.
        FileNotFoundError: the checkpoint is missing.
    """

    ndims = (3,)
    hears = ("points", "negative_points", "mask")
    needs_checkpoint = True

    def __init__(
        self,
        checkpoint: str | Med3D | None,
        device: torch.device,
        *,
        spacing: Sequence[float] | None = None,
        channel: int = 0,
        window: str = "object",
        axes: Sequence[int] = (2, 1, 0),
        raw_zero: float | None = None,
        max_windows: int = 4,
    ) -> None:
        if window not in WINDOWS:
            raise _refused("window", window, f"known are {', '.join(WINDOWS)}")
        if sorted(axes) != [0, 1, 2]:
            raise _refused("axes", axes, "give 0, 1 and 2 in some order")
        if max_windows < 1:
            raise _refused("max_windows", max_windows, "give at least 1")
        network = checkpoint if isinstance(checkpoint, Med3D) else load_network(checkpoint)
        self.network = network.eval().requires_grad_(False)
        self.spacing = None if spacing is None else tuple(float(length) for length in spacing)
        self.channel, self.window, self.axes = channel, window, tuple(axes)
        self.raw_zero, self.max_windows = raw_zero, max_windows
        self.to(device)

    def to(self, device: torch.device) -> SamMed3D:
        self.network.to(device)
        return self

    @torch.no_grad()
    def embed(self, image: Float[Tensor, "U C *S"]) -> Volumes:
        """The chosen channel: windows are cut, and encoded, when the objects are known."""
        space, count = self._space(image), image.shape[1]
        if not 0 <= self.channel < count:
            raise _refused("channel", self.channel, f"images have {count} channels, 0 first")
        grey = space.turned(image[:, self.channel, None].detach().float())
        empty = grey == 0  # nnU-Net fills with exact zeros what no image covers, or what its mask leaves out
        floor = grey.masked_fill(empty, torch.inf).flatten(1).amin(1).nan_to_num(posinf=0.0)
        if self.raw_zero is not None:
            floor = torch.full_like(floor, self.raw_zero)
        return Volumes(torch.where(empty, floor[:, None, None, None, None], grey), floor)

    @torch.no_grad()
    def decode(self, embedding: Volumes, prompts: Prompts) -> SamPrediction:
        """One mask per item; log-odds are strongly negative outside the window.

        Raises:
            ValueError: there are neither clicks nor masks.
        """
        if len(prompts) and prompts.mask_logits is None and not prompts.point_labels.shape[1]:
            raise ValueError(
                "semisam: sam.backend 'sam_med3d' hears points and masks, and these prompts have neither; "
                "add points or mask to sam.prompts"
            )
        shape, space = embedding.image.shape[2:], self._space(embedding.image)
        prompts = space.turned_prompts(prompts)
        whole = self.window == "patch"
        boxes = whole_boxes(len(prompts), shape, prompts.image.device) if whole else object_boxes(prompts, shape)
        frame = space.windows(boxes)
        features = self._encode(embedding, prompts.image, frame)
        logits, quality = features.new_empty(len(prompts), *shape), features.new_empty(len(prompts))
        coords, labels = _in_window(frame, prompts)
        with torch.autocast(features.device.type, enabled=False):
            for items, clicks in _portions(labels, self.max_windows):
                view = replace(frame, low=frame.low[items], size=frame.size[items], grid=self.network.mask_side)
                order = clicks[..., None].expand(-1, -1, 3)
                masks = self.network.decode(
                    features[items],
                    coords[items].gather(1, order),
                    labels[items].gather(1, clicks),
                    _mask_prompt(view, select(prompts, items).mask_logits, shape),
                )[0][:, 0]  # the first of four, the only one that was trained
                logits[items], quality[items] = view.paste(masks, shape), expected_iou(masks)
        return SamPrediction(space.turned_back(logits[:, None])[:, 0], quality)

    def _space(self, image: Float[Tensor, "U C *S"]) -> VolumeSpace:
        if image.ndim != 5:
            raise ValueError(f"semisam: sam.backend 'sam_med3d' serves 3D images, not one of {image.ndim - 2} axes")
        if self.spacing is None or len(self.spacing) != 3:
            raise _refused("spacing", self.spacing, "give the mm per voxel of the patches, one for each of three axes")
        return VolumeSpace(self.spacing, self.axes, VOXEL, self.network.image_side)

    def _encode(self, volumes: Volumes, image: Int64[Tensor, " P"], frame: Frame) -> Float[Tensor, "P E G G G"]:
        """Features of each item's window; a window that several items share is encoded once."""
        keys = torch.cat([image[:, None].to(frame.low.dtype), frame.low, frame.size], dim=1)
        windows, item_window = keys.unique(dim=0, return_inverse=True)
        features = [volumes.image.new_empty(0, *self._feature_shape())]
        for part in windows.split(self.max_windows) if len(windows) else ():
            number = part[:, 0].long()
            with torch.autocast(part.device.type, enabled=False):
                view = _standardized(volumes, number, Frame(part[:, 1:4], part[:, 4:], frame.grid))
            features.append(self.network.encode(view).float())
        return torch.cat(features)[item_window]

    def _feature_shape(self) -> tuple[int, ...]:
        return (self.network.mask_decoder.mask_tokens.embedding_dim, *[self.network.grid] * 3)


def load_network(checkpoint: str | None) -> Med3D:
    """The network of a published file; errors name the file and the cure."""
    weights = read_weights(checkpoint, backend="sam_med3d", example="sam_med3d_turbo.pth", key="model_state_dict")
    network = Med3D()
    try:
        load_weights(network, weights)
    except ValueError as error:
        raise ValueError(
            f"semisam: sam.checkpoint {checkpoint} does not hold SAM-Med3D ({error}); give another file"
        ) from error
    return network


def _in_window(frame: Frame, prompts: Prompts) -> tuple[Float[Tensor, "P N 3"], Int64[Tensor, "P N"]]:
    """Clicks in voxels of the window; those outside become padding."""
    coords = frame.to_grid(prompts.point_coords)
    inside: Bool[Tensor, "P N"] = ((coords >= -0.5) & (coords <= frame.grid - 0.5)).all(-1)
    return coords, torch.where(inside, prompts.point_labels, -1)


def _portions(labels: Int64[Tensor, "P N"], size: int) -> Iterator[tuple[Int64[Tensor, " Q"], Int64[Tensor, "Q K"]]]:
    """Items with equally many clicks, at most `size` at once, and which of their N clicks are none of padding."""
    counts = (labels >= 0).sum(1)
    order = labels.lt(0).to(torch.uint8).argsort(dim=1, stable=True)
    for count in counts.unique().tolist():
        for items in (counts == count).nonzero()[:, 0].split(size):
            yield items, order[items, :count]


def _mask_prompt(
    frame: Frame, logits: Float[Tensor, "Q *T"] | None, shape: Sequence[int]
) -> Float[Tensor, "Q 1 M M M"]:
    """Mask logits in the window, surely not the object beyond the patch; zeros where there are none, as in training."""
    if logits is None:
        return frame.low.new_zeros(len(frame.low), 1, *[frame.grid] * 3)
    masks = frame.crop(logits.clamp(-MAX_LOGIT, MAX_LOGIT)[:, None])
    return torch.where(frame.valid(shape) > 0, masks, -MAX_LOGIT)


def _standardized(volumes: Volumes, number: Int64[Tensor, " V"], frame: Frame) -> Float[Tensor, "V 1 I I I"]:
    """Windows z-scored over what is not background; beyond the patch there is background."""
    image = volumes.image[number]
    floor = volumes.floor[number].view(-1, 1, 1, 1, 1)
    covered = frame.valid(image.shape[2:]) > 0
    view = torch.where(covered, frame.crop(image), floor)
    mean = _mean(view, covered)
    body = covered & (view > floor + NOISE * (mean - floor).clamp(min=0))
    mean = _mean(view, body)
    spread = _mean((view - mean).square(), body).sqrt()
    return (view - mean) / spread.clamp(min=1e-6)


def _mean(view: Float[Tensor, "V 1 I I I"], where: Bool[Tensor, "V 1 I I I"]) -> Float[Tensor, "V 1 1 1 1"]:
    axes = (1, 2, 3, 4)
    return (view * where).sum(axes, keepdim=True) / where.sum(axes, keepdim=True).clamp(min=1)


def _refused(name: str, value: object, cure: str) -> ValueError:
    return ValueError(f"semisam: sam.backend_args.{name} of sam.backend 'sam_med3d' is {value!r}; {cure}")
