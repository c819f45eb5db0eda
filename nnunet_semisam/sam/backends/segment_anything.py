"""Segment Anything, the 2D model (Kirillov et al., ICCV 2023, https://arxiv.org/abs/2304.02643), and its relatives.

Needs the package `segment-anything` 1.0 (with torchvision) and a checkpoint: `sam_vit_b_01ec64.pth`,
`sam_vit_l_0b3195.pth` or `sam_vit_h_4b8939.pth`; code and these weights are under Apache-2.0. SAM's frame: pixels of
the resized image, points and boxes in (x, y); prompts come in array order and in voxels of the plane and are converted
here.

Unlike in the package's own predictor, many images and their prompts are decoded together, and the working resolution is
free. MedSAM, of the same layout, wants another preparation of the image: backend `medsam`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nnunet_semisam.sam.backends._segment_anything_model import load_sam, set_input_size
from nnunet_semisam.sam.base import SamBackend
from nnunet_semisam.sam.decoder_tuning import DecoderTask
from nnunet_semisam.sam.prompts import MAX_LOGIT, select
from nnunet_semisam.types import LabeledCase, Prompts, SamPrediction

PERCENTILES = (0.005, 0.995)  # of each channel of each image: black and white


@dataclass(frozen=True)
class Embedded:
    """Image features, the size of the images, and their size in SAM's frame (the rest of the square is padding)."""

    features: Float[Tensor, "U E G G"]
    size: tuple[int, int]
    inner: tuple[int, int]


class SegmentAnything(SamBackend):
    """SAM at a working resolution of choice.

    Args:
        checkpoint: file of a SAM checkpoint.
        model: "vit_b", "vit_l" or "vit_h"; None reads it off the checkpoint.
        input_size: pixels of the square that the image is resized into, a multiple of 16. Multiples of 224 fit SAM's
            attention windows without padding. 1024 is what SAM was trained at; 448 costs a seventh of it.
        channels: one image channel (shown as grey) or three (red, green, blue). None: all of a three-channel image,
            else the first channel.
        max_planes: images encoded at once; bounds the memory.

    Raises:
        ValueError: no checkpoint, or a file that is not one of these models.
        FileNotFoundError: the checkpoint is missing.
        ImportError: the package is missing.
    """

    ndims: tuple[int, ...] = (2,)
    needs_checkpoint = True
    name, example = "segment_anything", "sam_vit_b_01ec64.pth"  # of this backend and its checkpoint, for messages

    def __init__(
        self,
        checkpoint: str | None,
        device: torch.device,
        *,
        model: str | None = None,
        input_size: int = 448,
        channels: Sequence[int] | None = None,
        max_planes: int = 8,
    ) -> None:
        self._adopt(
            load_sam(checkpoint, model, backend=self.name, example=self.example),
            device,
            input_size,
            channels,
            max_planes,
        )

    @classmethod
    def from_network(
        cls,
        sam: nn.Module,
        device: torch.device,
        *,
        input_size: int = 448,
        channels: Sequence[int] | None = None,
        max_planes: int = 8,
    ) -> SegmentAnything:
        """A backend around an existing `segment_anything.modeling.Sam`, whose position embedding is resized."""
        backend = cls.__new__(cls)
        backend._adopt(sam, device, input_size, channels, max_planes)
        return backend

    def _adopt(
        self, sam: Any, device: torch.device, input_size: int, channels: Sequence[int] | None, max_planes: int
    ) -> None:
        if channels is not None and len(channels) not in (1, 3):
            raise ValueError(f"semisam: sam.backend_args.channels is {channels!r}; give one channel, or three for RGB")
        if max_planes < 1:
            raise ValueError(
                f"semisam: sam.backend_args.max_planes is {max_planes}; it must be an integer of at least 1"
            )
        self.sam = sam.eval().requires_grad_(False)
        set_input_size(self.sam, input_size)
        self.channels, self.max_planes = channels, max_planes
        self.to(device)

    def to(self, device: torch.device) -> SegmentAnything:
        self.sam.to(device)
        return self

    @torch.no_grad()
    def embed(self, image: Float[Tensor, "U C H W"]) -> Embedded:
        """Image features, `max_planes` images at a time."""
        height, width = image.shape[2:]
        inner = self._inner(height, width)
        features = [self.sam.image_encoder(self._prepare(part, inner)).float() for part in image.split(self.max_planes)]
        return Embedded(torch.cat(features), (height, width), inner)

    @torch.no_grad()
    def decode(self, embedding: Embedded, prompts: Prompts) -> SamPrediction:
        """One mask per item; items with equally many points are decoded together, whatever their images."""
        return self.answer(embedding, prompts)

    def answer(self, embedding: Embedded, prompts: Prompts) -> SamPrediction:
        """`decode`, with the gradient of whatever requires one."""
        logits = torch.empty(len(prompts), *embedding.size, device=embedding.features.device)
        quality = torch.empty(len(prompts), device=embedding.features.device)
        points = (prompts.point_labels >= 0).sum(1)
        for count in points.unique().tolist():
            items = points == count
            logits[items], quality[items] = self._decode(embedding, select(prompts, items), count)
        return SamPrediction(logits, self.quality(logits, quality).clamp(0, 1))

    def quality(self, logits: Float[Tensor, "P H W"], predicted: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
        """What the IoU head predicts."""
        return predicted

    def _inner(self, height: int, width: int) -> tuple[int, int]:
        """Size of the image in SAM's frame: its longer side fills it."""
        scale = self.sam.image_encoder.img_size / max(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))

    def tuning_task(self, cases: Sequence[LabeledCase], **asked: Any) -> DecoderTask:
        """See `Tunable` in `nnunet_semisam.sam.tuning`: the mask decoder alone."""
        return DecoderTask(self, self.sam.mask_decoder, cases, **asked)

    def _prepare(self, image: Float[Tensor, "U C H W"], inner: tuple[int, int]) -> Float[Tensor, "U 3 F F"]:
        """SAM's input: 0..255 between robust percentiles, SAM's standardisation, zeros at the bottom and right."""
        image = F.interpolate(self._pixels(image) * 255, inner, mode="bilinear", antialias=True)
        image = (image - self.sam.pixel_mean) / self.sam.pixel_std
        frame = self.sam.image_encoder.img_size
        return F.pad(image, (0, frame - inner[1], 0, frame - inner[0]))

    def _pixels(self, image: Float[Tensor, "U C H W"]) -> Float[Tensor, "U 3 H W"]:
        """Red, green and blue, 0..1 between robust percentiles."""
        image = image.float()[:, list(self._rgb(image.shape[1]))]
        flat = image.flatten(2)
        low, high = torch.quantile(flat, torch.tensor(PERCENTILES, device=image.device), dim=2)[..., None, None]
        return ((image - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)

    def _rgb(self, available: int) -> tuple[int, ...]:
        chosen = self.channels or ((0, 1, 2) if available == 3 else (0,))
        if min(chosen) < 0 or max(chosen) >= available:
            raise ValueError(
                f"semisam: sam.backend_args.channels is {chosen!r}, but images have {available} channels, 0 first"
            )
        return tuple(chosen) * (3 // len(chosen))

    def _decode(self, embedding: Embedded, prompts: Prompts, points: int) -> tuple[Tensor, Tensor]:
        """Logits (P, H, W) and predicted IoU (P,) of items that all have `points` clicks."""
        device = embedding.features.device
        with torch.autocast(device.type, enabled=False):  # the sine code of a position does not survive half precision
            sparse, dense = self._encode_prompts(embedding, prompts, points)
            positions = self.sam.prompt_encoder.get_dense_pe()
        source = embedding.features[prompts.image] + dense
        masks, quality = decode_items(self.sam.mask_decoder, source, positions, sparse)
        single = points == 1 and prompts.boxes is None and prompts.mask_logits is None
        masks, quality = (masks[:, 1:], quality[:, 1:]) if single else (masks[:, :1], quality[:, :1])
        best = quality.argmax(1)  # a single click is ambiguous: SAM offers three masks for it, one otherwise
        rows = torch.arange(len(best), device=device)
        return self._to_plane(masks[rows, best].float(), embedding), quality[rows, best].float()

    def _encode_prompts(self, embedding: Embedded, prompts: Prompts, points: int) -> tuple[Tensor, Tensor]:
        """Tokens of points and boxes (P, T, E), and the code of the mask prompt (P, E, G, G)."""
        inner, size = (torch.tensor(pair, device=prompts.image.device) for pair in (embedding.inner, embedding.size))
        scale = inner / size
        # SAM adds half a pixel to every coordinate: what is counted from the edge of the frame loses it here
        clicks = boxes = masks = None
        if points:
            order = prompts.point_labels.lt(0).to(torch.uint8).argsort(dim=1, stable=True)[:, :points]
            coords = prompts.point_coords.float().gather(1, order[..., None].expand(-1, -1, 2))
            clicks = (((coords + 0.5) * scale - 0.5).flip(-1), prompts.point_labels.gather(1, order))
        if prompts.boxes is not None:
            boxes = (prompts.boxes.float() * scale - 0.5).flip(-1).flatten(1)
        if prompts.mask_logits is not None:
            masks = self._mask_prompt(prompts.mask_logits.float(), embedding)
        sparse, dense = self.sam.prompt_encoder(clicks, boxes, masks)
        return sparse.expand(len(prompts), -1, -1), dense.expand(len(prompts), -1, -1, -1)

    def _mask_prompt(self, logits: Float[Tensor, "P H W"], embedding: Embedded) -> Float[Tensor, "P 1 M M"]:
        """Mask logits at four times the grid of the features; the padding is surely not the object."""
        frame, inner = self.sam.image_encoder.img_size, embedding.inner
        logits = F.interpolate(logits.clamp(-MAX_LOGIT, MAX_LOGIT)[:, None], inner, mode="bilinear", antialias=True)
        logits = F.pad(logits, (0, frame - inner[1], 0, frame - inner[0]), value=-MAX_LOGIT)
        return F.avg_pool2d(logits, frame // self.sam.prompt_encoder.mask_input_size[0])

    def _to_plane(self, logits: Float[Tensor, "P M M"], embedding: Embedded) -> Float[Tensor, "P H W"]:
        """SAM's logits read at the voxel centres of the plane."""
        frame = self.sam.image_encoder.img_size
        axes = [
            (torch.arange(side, device=logits.device) + 0.5) / side * inner / frame * 2 - 1
            for side, inner in zip(embedding.size, embedding.inner, strict=True)
        ]
        y, x = torch.meshgrid(*axes, indexing="ij")
        grid = torch.stack([x, y], dim=-1).expand(len(logits), -1, -1, -1)
        return F.grid_sample(logits[:, None], grid, padding_mode="border", align_corners=False)[:, 0]


def decode_items(
    decoder: Any, source: Float[Tensor, "P E G G"], positions: Float[Tensor, "1 E G G"], sparse: Float[Tensor, "P T E"]
) -> tuple[Float[Tensor, "P 4 M M"], Float[Tensor, "P 4"]]:
    """SAM's mask decoder for items of any images: the features of an item's image come with the item.

    The package repeats one image for all prompts instead. Gives all four masks (the first is for unambiguous prompts).
    """
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([own.expand(len(sparse), -1, -1), sparse], dim=1)
    states, keys = decoder.transformer(source, positions.expand(len(source), -1, -1, -1), tokens)
    features = decoder.output_upscaling(keys.transpose(1, 2).reshape(source.shape))
    heads = decoder.output_hypernetworks_mlps
    kernels = torch.stack([head(states[:, 1 + number]) for number, head in enumerate(heads)], dim=1)
    masks = torch.einsum("pme,pehw->pmhw", kernels, features)
    return masks, decoder.iou_prediction_head(states[:, 0])
