"""Many answers, one pseudo-label: how far SAM's masks are believed, and what they say together about each voxel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from nnunet_semisam.config import WEIGHTS
from nnunet_semisam.ops.outputs import OutputSpace
from nnunet_semisam.sam.objects import Objects
from nnunet_semisam.types import PseudoLabel, SamPrediction

MAX_LOGIT = 20.0  # keeps float16 infinities out of softmax


class Answers(NamedTuple):
    """SAM's masks for P objects and what they are worth."""

    image: Int64[Tensor, " P"]
    head: Int64[Tensor, " P"]
    masks: Bool[Tensor, "P *S"]  # what was prompted
    logits: Float[Tensor, "P *S"]
    agreement: Float[Tensor, " P"]  # Dice of SAM's mask and the mask that prompted it
    steadiness: Float[Tensor, " P"]  # mean Dice among the answers to shaken prompts; 1 where none were shaken
    weight: Float[Tensor, " P"]  # `weigh_by` (predicted IoU x stability x agreement) x exp(-u), with u = 1 - steadiness

    @classmethod
    def judged(
        cls,
        objects: Objects,
        predicted: SamPrediction,
        steadiness: Float[Tensor, " P"] | None = None,
        *,
        weigh_by: Sequence[str] = WEIGHTS,
    ) -> Answers:
        """The answers about `objects`, weighed against the masks that prompted. NaN counts as "not the object"."""
        logits = predicted.mask_logits.detach().float().nan_to_num(nan=-MAX_LOGIT).clamp(-MAX_LOGIT, MAX_LOGIT)
        iou = predicted.iou_predictions.detach().float().nan_to_num(nan=0.0).clamp(0, 1)
        answer = logits > 0
        agreement = 2 * _count(answer & objects.masks) / (_count(answer) + _count(objects.masks)).clamp(min=1)
        stability = _count(logits > 1) / _count(logits > -1).clamp(min=1)
        steadiness = torch.ones_like(iou) if steadiness is None else steadiness
        weight = torch.exp(steadiness - 1)
        for name, factor in zip(WEIGHTS, (iou, stability, agreement), strict=True):
            weight = weight * factor if name in weigh_by else weight
        return cls(*objects, logits, agreement, steadiness, weight)

    @classmethod
    def none(cls, image: Float[Tensor, "U C *S"]) -> Answers:
        """No answers, on the device and with the spatial shape of `image`."""
        index = torch.empty(0, dtype=torch.int64, device=image.device)
        empty = image.new_empty(0, dtype=torch.float32)
        logits = image.new_empty((0, *image.shape[2:]), dtype=torch.float32)
        return cls(index, index, logits > 0, logits, empty, empty, empty)

    @classmethod
    def joined(cls, parts: list[Answers]) -> Answers:
        """All answers of several chunks."""
        return cls(*(torch.cat(field) for field in zip(*parts, strict=True)))

    def only(self, items: Bool[Tensor, " P"]) -> Answers:
        """The answers that are marked."""
        return Answers(*(field[items] for field in self))


class _Heads(NamedTuple):
    """The answers, gathered by image and head."""

    scores: Float[Tensor, "U K *S"]  # the highest logit at each voxel, -inf without an answer
    weights: Float[Tensor, "U K *S"]  # the weight of the answer with that logit
    background: Float[Tensor, "U 1 *one"]  # the mean weight of the image's answers
    answered: Bool[Tensor, "U K *one"]  # is there an answer
    unheard: Bool[Tensor, "U K *S"]  # hard voxels of objects without an answer, which no other answer claims


def fuse(
    prob: Float[Tensor, "U K *S"], hard: Bool[Tensor, "U K *S"], answers: Answers, outputs: OutputSpace
) -> PseudoLabel:
    """The pseudo-label of the believed answers; the teacher's `prob` with confidence 0 where an image has none.

    Several answers for one head (its connected components) are joined by their maximum.

    Labels: SAM says nothing for or against a head without an answer, so that keeps the teacher's probability; the rest
    is shared out by softmax over 0 for the background and the logits of the answered heads. Confidence is 0 where an
    object without an answer is the teacher's hard label. Regions: sigmoid of each answered head, the teacher's
    probability of the others and in objects without an answer.

    Confidence is the expectation of the answers' weights under the fused distribution: 0 for heads without an answer,
    the mean weight of the image for the background.
    """
    if not len(answers.head):
        return PseudoLabel(prob, torch.zeros_like(prob[:, :1]))
    heads = _by_head(prob, hard, answers, outputs)
    fused, confidence = (_fuse_regions if outputs.has_regions else _fuse_labels)(prob, heads)
    asked = heads.answered.any(1, keepdim=True)
    return PseudoLabel(torch.where(asked, fused, prob), (confidence * asked).clamp(0, 1))


def _fuse_labels(
    prob: Float[Tensor, "U K *S"], heads: _Heads
) -> tuple[Float[Tensor, "U K *S"], Float[Tensor, "U 1 *S"]]:
    heads.scores[:, 0] = 0
    silent = prob * ~heads.answered
    silent[:, 0] = 0
    fused = heads.scores.softmax(1) * (1 - silent.sum(1, keepdim=True)).clamp(min=0) + silent
    expected = fused[:, :1] * heads.background + (fused * heads.weights)[:, 1:].sum(1, keepdim=True)
    return fused, expected * ~heads.unheard.any(1, keepdim=True)


def _fuse_regions(
    prob: Float[Tensor, "U K *S"], heads: _Heads
) -> tuple[Float[Tensor, "U K *S"], Float[Tensor, "U 1 *S"]]:
    inside = heads.scores.sigmoid()  # 0 for heads without an answer
    outside = 1 - inside.amax(1, keepdim=True)
    total = (inside * heads.weights).sum(1, keepdim=True) + outside * heads.background
    confidence = total / (inside.sum(1, keepdim=True) + outside)
    return torch.where(heads.answered & ~heads.unheard, inside, prob), confidence


def _by_head(
    prob: Float[Tensor, "U K *S"], hard: Bool[Tensor, "U K *S"], answers: Answers, outputs: OutputSpace
) -> _Heads:
    scores, weights = torch.full_like(prob, -torch.inf), torch.zeros_like(prob)
    unheard = hard.clone()
    if not outputs.has_regions:
        unheard[:, 0] = False
    flat = (*prob.shape[:2], *[1] * (prob.ndim - 2))
    answered = torch.zeros(flat, dtype=torch.bool, device=prob.device)
    for row, place in enumerate(zip(answers.image.tolist(), answers.head.tolist(), strict=True)):
        logits = answers.logits[row]
        better = logits > scores[place]
        scores[place] = torch.where(better, logits, scores[place])
        weights[place] = torch.where(better, answers.weight[row], weights[place])
        unheard[place] &= ~answers.masks[row] & (logits <= 0)
        answered[place] = True
    total = prob.new_zeros(len(prob)).index_add(0, answers.image, answers.weight)
    count = prob.new_zeros(len(prob)).index_add(0, answers.image, torch.ones_like(answers.weight))
    background = (total / count.clamp(min=1)).view(-1, *[1] * (prob.ndim - 1))
    return _Heads(scores, weights, background, answered, unheard)


def _count(mask: Bool[Tensor, "P *S"]) -> Float[Tensor, " P"]:
    return mask.flatten(1).sum(1).float()
