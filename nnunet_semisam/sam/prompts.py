"""Prompts from the teacher's prediction: clicks, boxes and coarse masks, one item per object.

The kinds are those of Segment Anything (Kirillov et al., ICCV 2023, https://arxiv.org/abs/2304.02643). Nothing but the
prediction is within reach, so no label of an unlabeled image can leak into a prompt. Deterministic, without gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from nnunet_semisam.config import SamConfig
from nnunet_semisam.ops.outputs import OutputSpace
from nnunet_semisam.sam.clicks import find_clicks
from nnunet_semisam.sam.objects import Objects, find_objects, tight_boxes
from nnunet_semisam.types import Prompts

MAX_LOGIT = 7.0  # mask prompts are clamped to +-7, about the certainty 0.999
MIN_MARGIN = 2.0  # voxels: a box that is grown at all is grown by this much on each side


def prompts_from_prob(
    prob: Float[Tensor, "U K *S"], *, outputs: OutputSpace, config: SamConfig, heads: Sequence[int] | None = None
) -> Prompts:
    """The prompts of all objects (`nnunet_semisam.sam.objects`) that the teacher sees in some images.

    Args:
        prob: the teacher's probabilities: softmax with background in head 0, or sigmoid regions.
        outputs: which of the two; its hard masks are what is prompted.
        heads: foreground heads that are prompted; None = all.
    """
    prob = prob.detach().float()
    hard = outputs.harden(prob) > 0
    heads = outputs.foreground_heads if heads is None else heads
    objects = find_objects(prob, hard, heads=heads, config=config)
    return prompts_for(objects, prob, hard, outputs=outputs, config=config)


def prompts_for(
    objects: Objects,
    prob: Float[Tensor, "U K *S"],
    hard: Bool[Tensor, "U K *S"],
    *,
    outputs: OutputSpace,
    config: SamConfig,
) -> Prompts:
    """One item for each object. Kinds that `config.prompts` does not name stay empty.

    N is the same for all items: where fewer places qualify, a click is padding (label -1). A mask prompt knows nothing
    of other components of the same head.
    """
    image, head, masks = objects
    tight = tight_boxes(masks)
    coords, labels = _clicks(objects, prob, tight, heads=outputs.foreground_heads, config=config)
    logits = None
    if "mask" in config.prompts:
        logits = mask_logits(prob[image, head].masked_fill(hard[image, head] & ~masks, 0.0))
    return Prompts(
        image=image,
        head=head,
        point_coords=coords,
        point_labels=labels,
        boxes=_grown(tight, masks.shape[1:], config.box_margin) if "box" in config.prompts else None,
        mask_logits=logits,
    )


def select(prompts: Prompts, items: Int64[Tensor, " Q"] | Bool[Tensor, " P"] | slice) -> Prompts:
    """Some of the items."""
    return Prompts(
        image=prompts.image[items],
        head=prompts.head[items],
        point_coords=prompts.point_coords[items],
        point_labels=prompts.point_labels[items],
        boxes=None if prompts.boxes is None else prompts.boxes[items],
        mask_logits=None if prompts.mask_logits is None else prompts.mask_logits[items],
    )


def mask_logits(prob: Float[Tensor, "P *S"]) -> Float[Tensor, "P *S"]:
    """Natural log-odds, clamped to +-`MAX_LOGIT`."""
    return torch.logit(prob, eps=1 / (1 + math.exp(MAX_LOGIT)))


def _grown(tight: Int64[Tensor, "P 2 D"], shape: tuple[int, ...], share: float) -> Float[Tensor, "P 2 D"]:
    """Boxes with their margin, cut at the patch."""
    low, high = tight.float().unbind(1)
    margin = ((high - low) * share).clamp(min=MIN_MARGIN) if share else torch.zeros_like(low)
    side = torch.tensor(shape, device=tight.device, dtype=torch.float32)
    return torch.stack([(low - margin).clamp(min=0), torch.minimum(high + margin, side)], dim=1)


def _clicks(
    objects: Objects,
    prob: Float[Tensor, "U K *S"],
    boxes: Int64[Tensor, "P 2 D"],
    *,
    heads: tuple[int, ...],
    config: SamConfig,
) -> tuple[Float[Tensor, "P N D"], Int64[Tensor, "P N"]]:
    """Coordinates and labels of the configured clicks."""
    positive = config.num_points if "points" in config.prompts else 0
    negative = config.num_negative_points if "negative_points" in config.prompts else 0
    image, head, masks = objects
    coords = torch.zeros(len(masks), positive + negative, masks.ndim - 1)
    labels = torch.full(coords.shape[:2], -1, dtype=torch.int64)
    if coords.numel():
        rows = zip(masks, boxes.tolist(), image.tolist(), head.tolist(), strict=True)
        for row, (mask, box, number, own) in enumerate(rows):
            clicks = find_clicks(
                mask,
                prob[number],
                box,
                head=own,
                rivals=[other for other in heads if other != own],
                counts=(positive, negative),
                points_from=config.points_from,
            )
            for column, (label, place) in enumerate(clicks):
                coords[row, column], labels[row, column] = torch.tensor(place, dtype=torch.float32), label
    return coords.to(prob.device), labels.to(prob.device)
