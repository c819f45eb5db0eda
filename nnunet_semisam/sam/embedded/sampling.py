"""Examples: a synthetic image, a true mask, and prompts as a segmenter or a user would give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from nnunet_semisam.sam.embedded.channels import attention_boxes, network_input
from nnunet_semisam.sam.embedded.corruption import Corruption
from nnunet_semisam.sam.embedded.frame import Frame
from nnunet_semisam.sam.embedded.network import BOX, VALID
from nnunet_semisam.sam.embedded.noise import blur, chance, log_uniform, mask_box, uniform, whole
from nnunet_semisam.sam.embedded.shapes import LabelMap
from nnunet_semisam.sam.embedded.synthesis import CLEAR, Contrast, draw_sample
from nnunet_semisam.types import Prompts

KINDS = {"mask": 0.76, "box": 0.08, "box and point": 0.08, "points": 0.08}  # prompt kinds and their share


@dataclass(frozen=True)
class Example:
    """One item in its frame. `guess` is the baseline to beat: the prompt itself read as a mask, in the frame."""

    channels: Float[Tensor, "8 *G"]
    truth: Float[Tensor, "*G"]
    guess: Float[Tensor, "*G"]
    kind: str


def draw_example(
    maps: Sequence[LabelMap],
    grid: int,
    rng: torch.Generator,
    kind: str | None = None,
    *,
    hardest: float = 1.2,
    kinds: Mapping[str, float] = KINDS,
    contrast: Contrast = CLEAR,
) -> Example:
    """Everything about one example is drawn from `rng`; `hardest` is the largest strength of corruption.

    `kinds` are the shares out of which the kind of prompt is drawn where `kind` does not name it.
    """
    image, truth = draw_sample(maps, rng, contrast)
    kind = kind or _draw_kind(kinds, rng)
    spoiled = _spoil(truth, hardest, rng) if kind == "mask" else truth
    prompts = _prompts(kind, truth, spoiled, rng)
    grow, extra = uniform(rng, 0.2, 0.4), uniform(rng, 1.0, 3.0)
    frame = Frame.around(attention_boxes(prompts, truth.shape), grid, grow=grow, extra=extra)
    channels = network_input(image[None, None], prompts, frame)
    valid = channels[:, VALID : VALID + 1]
    wanted = frame.crop(truth[None, None].float()) * valid
    guess = channels[:, BOX : BOX + 1]
    if kind == "mask":
        guess = frame.crop((prompts.mask_logits > 0).float()[None]) * valid
    return Example(channels[0], wanted[0, 0], guess[0, 0], kind)


def _draw_kind(kinds: Mapping[str, float], rng: torch.Generator) -> str:
    place = float(torch.rand((), generator=rng))
    for kind, share in kinds.items():
        place -= share
        if place < 0:
            return kind
    return next(iter(kinds))


def _spoil(truth: Bool[Tensor, "*S"], hardest: float, rng: torch.Generator) -> Bool[Tensor, "*S"]:
    """A corrupted mask that still has something to do with the object."""
    strength = uniform(rng, 0.05, hardest)
    drawn = Corruption.draw(truth, rng)
    for _ in range(4):
        spoiled = drawn.apply(truth, strength)
        if float((spoiled & truth).sum()) > 0.35 * float((spoiled | truth).sum()):
            return spoiled
        strength *= 0.6
    return truth


def _prompts(kind: str, truth: Tensor, spoiled: Tensor, rng: torch.Generator) -> Prompts:
    """Flat prompts of one item, as a backend gets them."""
    coords, labels = _points(kind, truth, spoiled, rng)
    boxes = logits = None
    if kind in ("box", "box and point"):
        boxes = _jitter(mask_box(truth), rng, 0.06)
    elif kind == "mask" and chance(rng, 0.6):
        boxes = _jitter(mask_box(spoiled), rng, 0.02)
    if kind == "mask":
        prob = spoiled.float()
        if chance(rng, 0.5):
            prob = blur(prob[None], [log_uniform(rng, 0.4, 1.5)] * truth.ndim)[0]
        logits = torch.logit(prob.clamp(1e-3, 1 - 1e-3))[None]
    item = torch.zeros(1, dtype=torch.long)
    return Prompts(item, item + 1, coords[None], labels[None], None if boxes is None else boxes[None], logits)


def _jitter(box: Float[Tensor, "2 D"], rng: torch.Generator, share: float) -> Float[Tensor, "2 D"]:
    """Corners moved by a share of the extent, more often outwards; never turned inside out."""
    extent = box[1] - box[0]
    moves = torch.randn(box.shape, generator=rng).clamp(-2, 2) * share * extent
    low, high = box[0] - share / 2 * extent + moves[0], box[1] + share / 2 * extent + moves[1]
    return torch.stack([low, torch.maximum(high, low + 1)])


def _points(kind: str, truth: Tensor, spoiled: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Positive points deep in the object, negative ones around it; from a segmenter, some positives are wrong."""
    if kind == "box":
        positives, negatives = 0, 0
    elif kind == "mask":
        positives, negatives = whole(rng, 0, 2), whole(rng, 0, 2) if chance(rng, 0.4) else 0
    else:
        positives, negatives = whole(rng, 1, 3), whole(rng, 0, 2) if chance(rng, 0.5) else 0
    coords, labels = [], []
    if positives:
        inner = _shrink(spoiled if chance(rng, 0.2) else spoiled & truth).nonzero()
        coords += [inner[whole(rng, 0, len(inner) - 1)].float() for _ in range(positives)]
        labels += [1] * positives
    around = (_dilate(spoiled | truth, 3) & ~_dilate(truth, 1)).nonzero()
    if negatives and len(around):
        coords += [around[whole(rng, 0, len(around) - 1)].float() for _ in range(negatives)]
        labels += [0] * negatives
    if not coords:
        return torch.zeros(0, truth.ndim), torch.zeros(0, dtype=torch.long)
    return torch.stack(coords), torch.tensor(labels)


def _shrink(mask: Bool[Tensor, "*S"]) -> Bool[Tensor, "*S"]:
    """The mask eroded twice, once, or not at all: the most that leaves something."""
    once = ~_dilate(~mask, 1)
    twice = ~_dilate(~once, 1)
    return twice if twice.any() else once if once.any() else mask


def _dilate(mask: Bool[Tensor, "*S"], steps: int) -> Bool[Tensor, "*S"]:
    """The mask grown by whole voxels along the axes (a cube), one axis after the other."""
    for axis in range(mask.ndim):
        lines = mask.float().movedim(axis, -1).flatten(0, -2)[None]
        grown = F.max_pool1d(lines, 2 * steps + 1, stride=1, padding=steps)[0] > 0.5
        mask = grown.view(mask.movedim(axis, -1).shape).movedim(-1, axis)
    return mask
