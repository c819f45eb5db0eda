"""Prompts from the teacher's prediction: clicks, boxes and coarse masks, one item per image and foreground head.

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
from nnunet_semisam.types import Prompts

MAX_LOGIT = 7.0  # mask prompts are clamped to +-7, about the certainty 0.999
BOX_MARGIN = (2.0, 0.05)  # a box is grown on each side by 2 voxels or 5 % of its side, whichever is more


def prompts_from_prob(
    prob: Float[Tensor, "U K *S"], *, outputs: OutputSpace, config: SamConfig, heads: Sequence[int] | None = None
) -> Prompts:
    """One item for each foreground head with at least `config.min_voxels` hard voxels in an image, by image, then head.

    Kinds that `config.prompts` does not name stay empty. N is the same for all items: where fewer places qualify,
    a click is padding (label -1).

    Args:
        prob: the teacher's probabilities: softmax with background in head 0, or sigmoid regions.
        outputs: which of the two; its hard masks are what is prompted.
        heads: foreground heads that are prompted; None = all.
    """
    prob = prob.detach().float()
    hard = outputs.harden(prob) > 0
    asked = torch.tensor(
        outputs.foreground_heads if heads is None else tuple(heads), device=prob.device, dtype=torch.int64
    )
    present = hard[:, asked].flatten(2).sum(-1) >= config.min_voxels
    image, which = present.nonzero(as_tuple=True)
    head = asked[which]
    masks = hard[image, head]  # (P, *S)
    tight = tight_boxes(masks)
    coords, labels = _clicks(
        prob, (image, head), masks=masks, boxes=tight, heads=outputs.foreground_heads, config=config
    )
    return Prompts(
        image=image,
        head=head,
        point_coords=coords,
        point_labels=labels,
        boxes=_grown(tight, masks.shape[1:]) if "box" in config.prompts else None,
        mask_logits=mask_logits(prob[image, head]) if "mask" in config.prompts else None,
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


def tight_boxes(masks: Bool[Tensor, "P *S"]) -> Int64[Tensor, "P 2 D"]:
    """Half-open bounding boxes of masks that are not empty."""
    dims = range(1, masks.ndim)
    corners = []
    for axis in dims:
        others = tuple(d for d in dims if d != axis)
        profile = (masks.any(dim=others) if others else masks).to(torch.uint8)  # (P, side)
        corners.append(torch.stack([profile.argmax(1), profile.shape[1] - profile.flip(1).argmax(1)], dim=1))
    return torch.stack(corners, dim=-1)


def _grown(tight: Int64[Tensor, "P 2 D"], shape: tuple[int, ...]) -> Float[Tensor, "P 2 D"]:
    """Boxes with their margin, cut at the patch."""
    low, high = tight.float().unbind(1)
    margin = ((high - low) * BOX_MARGIN[1]).clamp(min=BOX_MARGIN[0])
    side = torch.tensor(shape, device=tight.device, dtype=torch.float32)
    return torch.stack([(low - margin).clamp(min=0), torch.minimum(high + margin, side)], dim=1)


def _clicks(
    prob: Float[Tensor, "U K *S"],
    items: tuple[Int64[Tensor, " P"], Int64[Tensor, " P"]],
    *,
    masks: Bool[Tensor, "P *S"],
    boxes: Int64[Tensor, "P 2 D"],
    heads: tuple[int, ...],
    config: SamConfig,
) -> tuple[Float[Tensor, "P N D"], Int64[Tensor, "P N"]]:
    """Coordinates and labels of the configured clicks; `items` are indices of image and head."""
    positive = config.num_points if "points" in config.prompts else 0
    negative = config.num_negative_points if "negative_points" in config.prompts else 0
    coords = torch.zeros(len(masks), positive + negative, masks.ndim - 1)
    labels = torch.full(coords.shape[:2], -1, dtype=torch.int64)
    if coords.numel():
        rows = zip(masks, boxes.tolist(), *(index.tolist() for index in items), strict=True)
        for row, (mask, box, image, head) in enumerate(rows):
            rivals = [other for other in heads if other != head]
            clicks = find_clicks(mask, prob[image], box, head=head, rivals=rivals, counts=(positive, negative))
            for column, (label, place) in enumerate(clicks):
                coords[row, column], labels[row, column] = torch.tensor(place, dtype=torch.float32), label
    return coords.to(prob.device), labels.to(prob.device)
