"""Many answers, one pseudo-label: how far SAM's masks are believed, and what they say together about each voxel."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from nnunet_semisam.ops.outputs import OutputSpace
from nnunet_semisam.types import Prompts, PseudoLabel, SamPrediction

MAX_LOGIT = 20.0  # keeps float16 infinities out of softmax


class Answers(NamedTuple):
    """SAM's masks for P items and what they are worth."""

    image: Int64[Tensor, " P"]
    head: Int64[Tensor, " P"]
    logits: Float[Tensor, "P *S"]
    agreement: Float[Tensor, " P"]  # Dice of SAM's mask and the mask that prompted it
    weight: Float[Tensor, " P"]  # predicted IoU x stability x agreement

    @classmethod
    def judged(cls, prompts: Prompts, predicted: SamPrediction, mask: Bool[Tensor, "P *S"]) -> Answers:
        """The answers to `prompts`, weighed against the masks that prompted them. NaN counts as "not the object"."""
        logits = predicted.mask_logits.detach().float().nan_to_num(nan=-MAX_LOGIT).clamp(-MAX_LOGIT, MAX_LOGIT)
        iou = predicted.iou_predictions.detach().float().nan_to_num(nan=0.0).clamp(0, 1)
        answer = logits > 0
        agreement = 2 * _count(answer & mask) / (_count(answer) + _count(mask)).clamp(min=1)
        stability = _count(logits > 1) / _count(logits > -1).clamp(min=1)
        return cls(prompts.image, prompts.head, logits, agreement, iou * stability * agreement)

    @classmethod
    def none(cls, image: Float[Tensor, "U C *S"]) -> Answers:
        """No answers, on the device and with the spatial shape of `image`."""
        index = torch.empty(0, dtype=torch.int64, device=image.device)
        empty = image.new_empty(0, dtype=torch.float32)
        return cls(index, index, image.new_empty((0, *image.shape[2:]), dtype=torch.float32), empty, empty)

    @classmethod
    def joined(cls, parts: list[Answers]) -> Answers:
        """All answers of several chunks."""
        return cls(*(torch.cat(field) for field in zip(*parts, strict=True)))

    def only(self, items: Bool[Tensor, " P"]) -> Answers:
        """The answers that are marked."""
        return Answers(*(field[items] for field in self))


def fuse(
    prob: Float[Tensor, "U K *S"], hard: Bool[Tensor, "U K *S"], answers: Answers, outputs: OutputSpace
) -> PseudoLabel:
    """The pseudo-label of the believed answers; the teacher's `prob` with confidence 0 where an image has none.

    Labels: softmax over 0 for the background and the logits of the answered heads. A head without an answer has
    probability 0 in it, so confidence falls with the teacher's probability of such heads and is 0 where one is the
    teacher's hard label. Regions: sigmoid of each answered head, the teacher's probability of the others.

    Confidence is the expectation of the answers' weights under the fused distribution; the background counts with the
    mean weight of the image.
    """
    weight, answered = _per_head(answers, prob)
    scores = torch.full_like(prob, -torch.inf)
    for image, head, logits in zip(answers.image.tolist(), answers.head.tolist(), answers.logits, strict=True):
        scores[image, head] = torch.maximum(scores[image, head], logits)
    if outputs.has_regions:
        fused, confidence = _fuse_regions(prob, scores, weight, answered)
    else:
        fused, confidence = _fuse_labels(prob, scores, weight, answered)
        silent = ~answered[:, list(outputs.foreground_heads)]
        unheard = hard[:, list(outputs.foreground_heads)] & _spatial(silent, prob)
        confidence = confidence * ~unheard.any(1, keepdim=True)
    asked = _spatial(answered.any(1, keepdim=True), prob)
    return PseudoLabel(torch.where(asked, fused, prob), (confidence * asked).clamp(0, 1))


def _fuse_labels(
    prob: Float[Tensor, "U K *S"],
    scores: Float[Tensor, "U K *S"],
    weight: Float[Tensor, "U K"],
    answered: Bool[Tensor, "U K"],
) -> tuple[Float[Tensor, "U K *S"], Float[Tensor, "U 1 *S"]]:
    scores[:, 0] = 0
    fused = scores.softmax(1)
    weight = torch.cat([_mean(weight, answered), weight[:, 1:]], dim=1)
    silent = torch.cat([torch.zeros_like(answered[:, :1]), ~answered[:, 1:]], dim=1)
    heard = 1 - (prob * _spatial(silent, prob)).sum(1, keepdim=True)
    return fused, (fused * _spatial(weight, prob)).sum(1, keepdim=True) * heard.clamp(min=0)


def _fuse_regions(
    prob: Float[Tensor, "U K *S"],
    scores: Float[Tensor, "U K *S"],
    weight: Float[Tensor, "U K"],
    answered: Bool[Tensor, "U K"],
) -> tuple[Float[Tensor, "U K *S"], Float[Tensor, "U 1 *S"]]:
    inside = scores.sigmoid()  # 0 for heads without an answer
    outside = 1 - inside.amax(1, keepdim=True)
    total = (inside * _spatial(weight, prob)).sum(1, keepdim=True) + outside * _spatial(_mean(weight, answered), prob)
    return torch.where(_spatial(answered, prob), inside, prob), total / (inside.sum(1, keepdim=True) + outside)


def _per_head(answers: Answers, prob: Float[Tensor, "U K *S"]) -> tuple[Float[Tensor, "U K"], Bool[Tensor, "U K"]]:
    """The best weight of the answers for each image and head (0 without one), and whether there is one."""
    weight = prob.new_zeros(prob.shape[:2])
    answered = torch.zeros_like(weight, dtype=torch.bool)
    answered[answers.image, answers.head] = True
    flat = answers.image * prob.shape[1] + answers.head
    return weight.view(-1).scatter_reduce(0, flat, answers.weight, "amax").view_as(weight), answered


def _mean(weight: Float[Tensor, "U K"], answered: Bool[Tensor, "U K"]) -> Float[Tensor, "U 1"]:
    return (weight * answered).sum(1, keepdim=True) / answered.sum(1, keepdim=True).clamp(min=1)


def _spatial(values: Tensor, like: Float[Tensor, "U K *S"]) -> Tensor:
    """(U, K) values with one-sized spatial axes."""
    return values.reshape(*values.shape, *[1] * (like.ndim - 2))


def _count(mask: Bool[Tensor, "P *S"]) -> Float[Tensor, " P"]:
    return mask.flatten(1).sum(1).float()
