"""A stub generalist with faults to plant, a tiny Segment Anything, and a scene of ellipsoids."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnunet_semisam.config import SamConfig
from nnunet_semisam.ops.outputs import OutputSpace
from nnunet_semisam.sam.backends.medsam import MedSam
from nnunet_semisam.sam.backends.segment_anything import SegmentAnything
from nnunet_semisam.sam.base import SamBackend
from nnunet_semisam.sam.med3d import Med3D
from nnunet_semisam.sam.prompts import prompts_from_prob
from nnunet_semisam.types import Prompts, SamPrediction

SHAPES = {2: (40, 56), 3: (20, 32, 44)}


def voxels(shape: tuple[int, ...]) -> Tensor:
    """Coordinates of all voxels, (*S, D)."""
    return torch.stack(torch.meshgrid(*[torch.arange(float(s)) for s in shape], indexing="ij"), dim=-1)


class StubSam(SamBackend):
    """Answers by geometry alone, so that it is known what is right; `fault` plants one mistake."""

    ndims = (2, 3)

    def __init__(self, fault: str | None = None, ndims: tuple[int, ...] = (2, 3)) -> None:
        self.fault, self.ndims, self.calls, self.embedded = fault, ndims, 0, 0
        self.weight = nn.Parameter(torch.ones(()), requires_grad=fault == "trainable")
        self.previous: Tensor | float = 0.0

    def to(self, device: torch.device) -> StubSam:
        return self

    def embed(self, image: Tensor) -> Tensor:
        self.embedded += len(image)
        if self.fault == "leaking_images":
            image = image - image.mean(0, keepdim=True)
        return image.mean(1) if self.fault == "trainable" else image.detach().mean(1)

    def decode(self, embedding: Tensor, prompts: Prompts) -> SamPrediction:
        self.calls += 1
        grid = voxels(tuple(embedding.shape[1:]))
        logits = [
            self._answer(grid, embedding[0 if self.fault == "first_image" else i], prompts, row)
            for row, i in enumerate(prompts.image.tolist())
        ]
        if self.fault == "leaking_items":
            logits = [mask + (logits[row - 1] if row else 0) for row, mask in enumerate(logits)]
        answer = torch.stack(logits) * self.weight
        if self.fault == "leaking_calls":
            answer, self.previous = answer + self.previous, answer.mean()
        if self.fault == "random":
            answer = answer + 0.1 * torch.randn(answer.shape)
        if self.fault == "probabilities":
            answer = answer.sigmoid()
        if self.fault == "background":
            answer = -answer
        if self.fault == "cropped":
            answer = answer[..., 1:]
        return SamPrediction(answer, torch.full((len(prompts),), 0.9))

    def _answer(self, grid: Tensor, image: Tensor, prompts: Prompts, row: int) -> Tensor:
        swap = (lambda t: t.flip(-1)) if self.fault == "swapped_axes" else (lambda t: t)
        logits = 0.1 * image
        if prompts.boxes is not None:
            low, high = swap(prompts.boxes[row])
            logits = logits + torch.minimum(grid + 0.5 - low, high - grid - 0.5).amin(-1).clamp(max=1)
        for place, label in zip(swap(prompts.point_coords[row]), prompts.point_labels[row].tolist(), strict=True):
            ball = torch.exp(-((grid - place) ** 2).sum(-1) / 18)
            logits = logits + {1: 2, 0: -2, -1: 0}[label] * ball
        if prompts.mask_logits is None:
            return logits
        mask = prompts.mask_logits[row]
        return logits + 0.5 * (mask.clamp(0, 1) if self.fault == "mask_as_probability" else mask)


def tiny_sam() -> nn.Module:
    """Segment Anything in miniature, with random weights: two blocks of width 32 for 64 x 64 pixels."""
    modeling = pytest.importorskip("segment_anything.modeling")
    from segment_anything.modeling.image_encoder import ImageEncoderViT

    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = ImageEncoderViT(
            img_size=64, embed_dim=32, depth=2, num_heads=2, mlp_ratio=2, out_chans=32, use_rel_pos=True, window_size=2,
            global_attn_indexes=(1,),
        )  # fmt: skip
        nn.init.normal_(encoder.pos_embed)
        transformer = modeling.TwoWayTransformer(depth=2, embedding_dim=32, num_heads=2, mlp_dim=64)
        decoder = modeling.MaskDecoder(transformer_dim=32, transformer=transformer, iou_head_hidden_dim=32)
        prompts = modeling.PromptEncoder(
            embed_dim=32, image_embedding_size=(4, 4), input_image_size=(64, 64), mask_in_chans=8
        )
        return modeling.Sam(image_encoder=encoder, prompt_encoder=prompts, mask_decoder=decoder)


def tiny_med3d() -> Med3D:
    """SAM-Med3D in miniature, with random weights: two blocks of width 24 for 32^3 voxels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Med3D(
            grid=2, width=24, depth=2, heads=2, window=3, global_blocks=(1,), embed=48, decoder_heads=2, hidden=(32, 16)
        )
        for name, parameter in network.named_parameters():
            if "pos" in name:  # zero at birth, so that nobody would notice a mistake
                nn.init.normal_(parameter)
    return network.eval()


class EchoMed3D(Med3D):
    """Answers with the mask prompt, so that it is known what is right. `voxels`: side of the image per token."""

    def __init__(self, voxels: int = 16) -> None:
        super().__init__(width=12, depth=1, heads=1, embed=48, decoder_heads=2, hidden=(8, 8))
        self.voxels = voxels

    @property
    def image_side(self) -> int:
        return self.voxels * self.grid

    def encode(self, image: Tensor) -> Tensor:
        return image.new_zeros(len(image), 48, *[self.grid] * 3)

    def decode(self, features: Tensor, points: Tensor, labels: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        return masks.expand(-1, 4, -1, -1, -1), masks.new_ones(len(masks), 4)


class EchoSegmentAnything(SegmentAnything):
    """Answers with the mask prompt."""

    def _decode(self, embedding, prompts, points):
        masks = self._mask_prompt(prompts.mask_logits.float(), embedding)
        return self._to_plane(masks[:, 0], embedding), masks.new_ones(len(masks))


class EchoMedSam(EchoSegmentAnything, MedSam):
    """The same, in MedSAM's frame."""

    def heard(self, prompts):
        return prompts


@dataclass
class Scene:
    """Two images with an ellipsoid of each of two classes, and what a fairly sure teacher makes of them."""

    image: Tensor
    prob: Tensor
    outputs: OutputSpace
    prompts: Prompts


def make_scene(ndim: int, **settings) -> Scene:
    shape = SHAPES[ndim]
    grid, size = voxels(shape), torch.tensor(shape)
    centres = [[(0.3, 0.3, 0.25), (0.7, 0.6, 0.7)], [(0.3, 0.7, 0.3), (0.65, 0.25, 0.65)]]
    logits = torch.zeros(2, 3, *shape)
    for image, pair in enumerate(centres):
        for head, centre in enumerate(pair, start=1):
            radii = size * (0.2 if head == 1 else 0.15)
            level = (((grid - torch.tensor(centre[:ndim]) * size) / radii) ** 2).sum(-1).sqrt()
            logits[image, head] = (8 * (1 - level)).clamp(-8, 8)
    prob = logits.softmax(1)
    noise = torch.randn(2, 1, *shape, generator=torch.Generator().manual_seed(0))
    image = 2 * prob[:, 1:2] - 2 * prob[:, 2:3] + 0.2 * noise
    outputs = OutputSpace(3)
    return Scene(image, prob, outputs, prompts_from_prob(prob, outputs=outputs, config=SamConfig(**settings)))


def dice(first: Tensor, second: Tensor) -> float:
    return (2 * (first & second).sum() / (first.sum() + second.sum()).clamp(min=1)).item()


def flip(prompts: Prompts, axis: int) -> Prompts:
    """The prompts of the flipped image."""
    side = prompts.mask_logits.shape[axis + 1]
    coords, boxes = prompts.point_coords.clone(), prompts.boxes.clone()
    coords[..., axis] = side - 1 - coords[..., axis]
    boxes[..., axis] = side - prompts.boxes[..., axis].flip(1)
    return replace(prompts, point_coords=coords, boxes=boxes, mask_logits=prompts.mask_logits.flip(axis + 1))


def transpose(prompts: Prompts, axis: int, other: int) -> Prompts:
    """The prompts of the image with two axes exchanged."""
    order = list(range(prompts.boxes.shape[-1]))
    order[axis], order[other] = other, axis
    return replace(
        prompts,
        point_coords=prompts.point_coords[..., order],
        boxes=prompts.boxes[..., order],
        mask_logits=prompts.mask_logits.transpose(axis + 1, other + 1),
    )


def modules_of(thing: Any, seen: set[int] | None = None) -> list[nn.Module]:
    """All networks in an object, in its lists, dictionaries and parts; a lone parameter counts as one."""
    seen = set() if seen is None else seen
    if id(thing) in seen:
        return []
    seen.add(id(thing))
    if isinstance(thing, nn.Parameter):
        return [nn.ParameterList([thing]).eval()]
    if isinstance(thing, nn.Module):
        return [thing]
    parts = thing.values() if isinstance(thing, dict) else thing if isinstance(thing, (list, tuple)) else ()
    if hasattr(thing, "__dict__") and not isinstance(thing, (type, Tensor)):
        parts = vars(thing).values()
    return [module for part in parts for module in modules_of(part, seen)]


@pytest.fixture
def kit():
    """What the tests of this folder share."""

    class Kit:
        stub, sam, scene = StubSam, staticmethod(tiny_sam), staticmethod(make_scene)
        med3d, echo_med3d, echo_sam = staticmethod(tiny_med3d), EchoMed3D, EchoSegmentAnything
        echo_medsam, modules_of = EchoMedSam, staticmethod(modules_of)
        flip, transpose = staticmethod(flip), staticmethod(transpose)
        voxels, dice, inf = staticmethod(voxels), staticmethod(dice), math.inf

    return Kit
