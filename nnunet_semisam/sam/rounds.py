"""Error clicks: the generalist is shown where its answer contradicts a teacher who is sure of itself.

Iterative clicking as in RITM (Sofiiuk et al. 2021, https://arxiv.org/abs/2102.06583) and in the training of Segment
Anything (Kirillov et al., ICCV 2023, https://arxiv.org/abs/2304.02643). There the errors are taken from the truth;
here from the teacher, and only where it is sure.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from nnunet_semisam.sam.clicks import SURE_INSIDE, SURE_OUTSIDE, deepest
from nnunet_semisam.sam.objects import Objects
from nnunet_semisam.sam.prompts import MAX_LOGIT
from nnunet_semisam.types import Prompts


def corrected(
    prompts: Prompts, answer: Float[Tensor, "P *S"], objects: Objects, prob: Float[Tensor, "U K *S"]
) -> tuple[Prompts, Bool[Tensor, " P"]]:
    """The prompts with two more clicks per item, and which items got at least one: the others need not ask again.

    A positive click lies deepest in what the answer lacks: voxels of the object of which the teacher is sure. A
    negative one lies deepest in what the answer has too much: where the teacher is sure that the object is not. Without
    such voxels a click is padding (label -1). Earlier clicks stay. Where items have a mask prompt, the answer takes its
    place if it was in error.
    """
    own = prob[objects.image, objects.head]
    missing = (answer <= 0) & objects.masks & (own > SURE_INSIDE)
    excess = (answer > 0) & ~objects.masks & (own < SURE_OUTSIDE)
    coords, labels = _clicked(missing, excess)
    wrong = (labels >= 0).any(1)
    logits = prompts.mask_logits
    if logits is not None:
        previous = answer.float().nan_to_num(nan=-MAX_LOGIT).clamp(-MAX_LOGIT, MAX_LOGIT)
        logits = torch.where(wrong.view(-1, *[1] * (answer.ndim - 1)), previous, logits)
    more = replace(
        prompts,
        point_coords=torch.cat([prompts.point_coords, coords], dim=1),
        point_labels=torch.cat([prompts.point_labels, labels], dim=1),
        mask_logits=logits,
    )
    return more, wrong


def _clicked(
    missing: Bool[Tensor, "P *S"], excess: Bool[Tensor, "P *S"]
) -> tuple[Float[Tensor, "P 2 D"], Int64[Tensor, "P 2"]]:
    coords = torch.zeros(len(missing), 2, missing.ndim - 1)
    labels = torch.full((len(missing), 2), -1, dtype=torch.int64)
    for column, (label, errors) in enumerate([(1, missing), (0, excess)]):
        for row, error in enumerate(errors):
            place = deepest(error)
            if place is not None:
                coords[row, column], labels[row, column] = torch.tensor(place, dtype=torch.float32), label
    return coords.to(missing.device), labels.to(missing.device)
