"""One conversation with the generalist: ask, correct, ask again with shaken prompts. The image is encoded once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nnunet_semisam.config import SamConfig
from nnunet_semisam.sam.jitter import seeds_for, shaken, stability
from nnunet_semisam.sam.objects import Objects
from nnunet_semisam.sam.prompts import select
from nnunet_semisam.sam.rounds import corrected
from nnunet_semisam.types import Prompts, SamPrediction

Decode = Callable[[Prompts], SamPrediction]  # the items' `image` is that of `prob`


def converse(
    decode: Decode,
    prompts: Prompts,
    objects: Objects,
    prob: Float[Tensor, "U K *S"],
    *,
    config: SamConfig,
    iteration: int = 0,
    items: Int64[Tensor, " P"],
) -> tuple[SamPrediction, Float[Tensor, " P"]]:
    """The answers after `config.rounds` rounds, and how much they agree when the prompts are shaken (1 unshaken).

    Shaken prompts only tell how steady an answer is. Their answers do not enter it: the mean of all was worse on small
    objects (`benchmarks/results/answer_quality.md`).

    Args:
        items: numbers of the items within the iteration; with it they seed the shaking.
    """
    prompts, predicted = _rounds(decode, prompts, objects, prob, rounds=config.rounds)
    if not config.jitters:
        return predicted, torch.ones(len(prompts), device=prob.device)
    masks = [predicted.mask_logits > 0]
    for number in range(config.jitters):
        asked = shaken(prompts, objects, prob, seeds=seeds_for(iteration, items, number))
        masks.append(decode(asked).mask_logits > 0)
    return predicted, stability(torch.stack(masks))


def _rounds(
    decode: Decode, prompts: Prompts, objects: Objects, prob: Float[Tensor, "U K *S"], *, rounds: int
) -> tuple[Prompts, SamPrediction]:
    """The last prompts and their answers. Items without an error keep the answer that they have."""
    predicted = decode(prompts)
    for _ in range(rounds - 1):
        prompts, wrong = corrected(prompts, predicted.mask_logits, objects, prob)
        if not wrong.any():
            break
        again = decode(select(prompts, wrong))
        logits, quality = predicted.mask_logits.clone(), predicted.iou_predictions.clone()
        logits[wrong], quality[wrong] = again.mask_logits.to(logits.dtype), again.iou_predictions.to(quality.dtype)
        predicted = SamPrediction(logits, quality)
    return prompts, predicted
