"""Prompts to network input: where to look, and what the eight channels hold there.

Six are the image and the prompts. Two say how much the grey value at a cell looks like the inside of the prompt rather
than its surroundings: the log ratio of two histograms, the unary term of GrabCut (Rother et al., SIGGRAPH 2004,
https://doi.org/10.1145/1015706.1015720), once for the image and once for the smoothed image. A small network is slow to
learn such comparisons across the whole frame; given them, it can spend its capacity on edges and shapes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from nnunet_semisam.sam.embedded.frame import Frame, outer
from nnunet_semisam.sam.objects import tight_boxes
from nnunet_semisam.types import Prompts

POINT_RADIUS = 1.5  # width of the Gaussian ball of a point, in cells
CLIP = 4.0  # grey values beyond this many standard deviations are cut
BINS, BIN_BLUR = 48, 1.5  # histogram of the clipped grey values, and the width of its smoothing in bins
EVIDENCE = 3.0  # log ratios are cut here


def attention_boxes(prompts: Prompts, shape: Sequence[int]) -> Float[Tensor, "P 2 D"]:
    """The box to look at: the given box, else the mask's, else half the patch around the points, else the patch."""
    coords = prompts.point_coords
    if prompts.boxes is not None:
        return prompts.boxes.to(coords.dtype)
    whole = torch.tensor([[0.0] * len(shape), [float(side) for side in shape]], device=coords.device)
    boxes = whole.expand(len(prompts), -1, -1)
    used = prompts.point_labels == 1
    if used.any():
        far = torch.full_like(coords, float("inf"))
        low = torch.where(used[..., None], coords, far).amin(1) + 0.5 - whole[1] / 4
        high = torch.where(used[..., None], coords, -far).amax(1) + 0.5 + whole[1] / 4
        boxes = torch.where(used.any(1)[:, None, None], torch.stack([low, high], 1), boxes)
    if prompts.mask_logits is not None:
        masks = prompts.mask_logits > 0
        boxes = torch.where(masks.flatten(1).any(1)[:, None, None], tight_boxes(masks).to(boxes.dtype), boxes)
    return boxes


def network_input(image: Float[Tensor, "P 1 *S"], prompts: Prompts, frame: Frame) -> Float[Tensor, "P 8 *G"]:
    """Image (z-scored in the frame), valid cells, positive and negative points, box, mask in -1 .. 1, looks."""
    valid = frame.valid(image.shape[2:])
    grey = _standardize(frame.crop(image), valid)
    absent = torch.zeros_like(valid)
    box = absent if prompts.boxes is None else frame.filled(prompts.boxes)
    mask = absent
    if prompts.mask_logits is not None:
        inside = frame.crop(prompts.mask_logits[:, None].sigmoid()) * valid
        mask = 2 * inside - 1
    points = [frame.balls(prompts.point_coords, prompts.point_labels, label, POINT_RADIUS) for label in (1, 0)]
    near = _inside(points[0], box, None if prompts.mask_logits is None else 0.5 + 0.5 * mask)
    looks = [evidence(grey, near, valid), evidence(soften(grey), near, valid)]
    return torch.cat([grey, valid, *points, box, mask, *looks], 1)


def evidence(
    grey: Float[Tensor, "P 1 *G"], inside: Float[Tensor, "P 1 *G"], valid: Float[Tensor, "P 1 *G"]
) -> Float[Tensor, "P 1 *G"]:
    """Log ratio of the grey value's frequency inside and outside of the prompt, both histograms smoothed."""
    place = ((grey / CLIP + 1) / 2 * (BINS - 1)).round().long().clamp(0, BINS - 1).flatten(1)
    weights = torch.stack([(inside * valid).flatten(1), ((1 - inside) * valid).flatten(1)], 1)  # (P, 2, cells)
    counts = grey.new_zeros((len(grey), 2, BINS)).scatter_add_(2, place[:, None].expand_as(weights), weights)
    bins = torch.arange(BINS, device=grey.device, dtype=grey.dtype)
    kernel = torch.exp(-0.5 * ((bins[:, None] - bins[None]) / BIN_BLUR) ** 2)
    share = (counts / counts.sum(2, keepdim=True).clamp(min=1e-6)) @ (kernel / kernel.sum(1, keepdim=True))
    ratio = torch.log(share[:, 0] + 2e-3) - torch.log(share[:, 1] + 2e-3)
    return ratio.gather(1, place).view_as(grey).clamp(-EVIDENCE, EVIDENCE) * valid


def _inside(
    points: Float[Tensor, "P 1 *G"], box: Float[Tensor, "P 1 *G"], mask: Float[Tensor, "P 1 *G"] | None
) -> Float[Tensor, "P 1 *G"]:
    """Where the object is thought to be: the mask, else the middle of the box and the points, else the middle."""
    if mask is not None:
        return mask
    grid, ndim = box.shape[-1], box.ndim - 2
    place = (torch.arange(grid, device=box.device, dtype=box.dtype) + 0.5) / grid - 0.5
    middle = torch.exp(-0.5 * (place / 0.15).square())
    ball = outer(middle[None, :, None].expand(len(box), -1, ndim))
    near = torch.maximum(box * ball, points)
    return torch.where(near.flatten(1).amax(1).view(-1, *[1] * (ndim + 1)) > 0, near, ball)


def soften(image: Float[Tensor, "P 1 *G"]) -> Float[Tensor, "P 1 *G"]:
    """The mean over 3 cells per axis."""
    pool = F.avg_pool2d if image.ndim == 4 else F.avg_pool3d
    return pool(image, 3, stride=1, padding=1, count_include_pad=False)


def _standardize(image: Float[Tensor, "P 1 *G"], valid: Float[Tensor, "P 1 *G"]) -> Float[Tensor, "P 1 *G"]:
    axes = tuple(range(1, image.ndim))
    count = valid.sum(axes, keepdim=True).clamp(min=1)
    mean = (image * valid).sum(axes, keepdim=True) / count
    deviation = ((image - mean).square() * valid).sum(axes, keepdim=True) / count
    return ((image - mean) / deviation.sqrt().clamp(min=1e-6)).clamp(-CLIP, CLIP)
