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


class _Heads(NamedTuple):
    """The answers, gathered by image and head."""

    scores: Float[Tensor, "U K *S"]  # the highest logit at each voxel, -inf without an answer
    weights: Float[Tensor, "U K *S"]  # the weight of the answer with that logit
    total: Float[Tensor, "U 1 *one"]  # of the weights of the image's answers
    number: Float[Tensor, "U 1 *one"]  # of these answers
    answered: Bool[Tensor, "U K *one"]  # is there an answer
    unheard: Bool[Tensor, "U K *S"]  # hard voxels of objects without an answer, which no other answer claims

    @property
    def background(self) -> Float[Tensor, "U 1 *one"]:
        """The mean weight of the image's answers."""
        return self.total / self.number.clamp(min=1)


class Fusion:
    """The pseudo-label of the believed answers, which come a portion at a time and need not be kept.

    Where an image has none it is the teacher's `prob` with confidence 0. Several answers for one head (its connected
    components) are joined by their maximum.

    Labels: SAM says nothing for or against a head without an answer, so that keeps the teacher's probability; the rest
    is shared out by softmax over 0 for the background and the logits of the answered heads. Confidence is 0 where an
    object without an answer is the teacher's hard label. Regions: sigmoid of each answered head, the teacher's
    probability of the others and in objects without an answer.

    Confidence is the expectation of the answers' weights under the fused distribution: 0 for heads without an answer,
    the mean weight of the image for the background.
    """

    def __init__(self, prob: Float[Tensor, "U K *S"], hard: Bool[Tensor, "U K *S"], outputs: OutputSpace) -> None:
        self.prob, self.hard, self.outputs = prob, hard, outputs
        self.heads: _Heads | None = None

    def add(self, answers: Answers, believed: Bool[Tensor, " P"]) -> None:
        """The answers that are `believed`; the others count as not given."""
        places = torch.stack([answers.image, answers.head, believed.long()], 1).tolist()
        for row, (image, head, counts) in enumerate(places):
            if counts:
                self._add(image, head, answers.logits[row], answers.masks[row], answers.weight[row])

    def _add(
        self, image: int, head: int, logits: Float[Tensor, "*S"], mask: Bool[Tensor, "*S"], weight: Float[Tensor, ""]
    ) -> None:
        if self.heads is None:
            self.heads = self._nothing()
        scores, weights, total, number, answered, unheard = self.heads
        place = image, head
        better = logits > scores[place]
        scores[place] = torch.where(better, logits, scores[place])
        weights[place] = torch.where(better, weight, weights[place])
        unheard[place] &= ~mask & (logits <= 0)
        answered[place] = True
        total[image] += weight
        number[image] += 1

    def pseudo_label(self) -> PseudoLabel:
        """What all answers so far say together."""
        if self.heads is None:
            return PseudoLabel(self.prob, torch.zeros_like(self.prob[:, :1]))
        fused, confidence = (_fuse_regions if self.outputs.has_regions else _fuse_labels)(self.prob, self.heads)
        asked = self.heads.answered.any(1, keepdim=True)
        return PseudoLabel(torch.where(asked, fused, self.prob), (confidence * asked).clamp(0, 1))

    def _nothing(self) -> _Heads:
        prob, unheard = self.prob, self.hard.clone()
        if not self.outputs.has_regions:
            unheard[:, 0] = False
        flat = [1] * (prob.ndim - 2)
        per_image = prob.new_zeros((len(prob), 1, *flat))
        answered = torch.zeros((*prob.shape[:2], *flat), dtype=torch.bool, device=prob.device)
        return _Heads(
            torch.full_like(prob, -torch.inf), torch.zeros_like(prob), per_image, per_image.clone(), answered, unheard
        )


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


def _count(mask: Bool[Tensor, "P *S"]) -> Float[Tensor, " P"]:
    return mask.flatten(1).sum(1).float()
