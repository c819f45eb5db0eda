"""From teacher to pseudo-label: prompt the generalist with the teacher's prediction, and judge its answer.

SemiSAM (Zhang et al. 2023, https://arxiv.org/abs/2312.06316) takes SAM's masks as they come. Here every answer carries
a weight: SAM's predicted IoU times its stability score (IoU of the masks at logits -1 and +1; Kirillov et al., ICCV
2023, https://arxiv.org/abs/2304.02643) times its agreement (Dice) with the mask that prompted it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nnunet_semisam.config import SamConfig
from nnunet_semisam.ops.outputs import OutputSpace
from nnunet_semisam.sam.base import SamBackend
from nnunet_semisam.sam.fuse import Answers, fuse
from nnunet_semisam.sam.planes import Planes, choose_planes
from nnunet_semisam.sam.prompts import prompts_from_prob, select
from nnunet_semisam.types import Prompts, PseudoLabel

MAX_ITEMS = 32  # prompted objects per call of a backend's decoder


class SamLabeler:
    """Makes the pseudo-label "sam" out of images and the teacher's probabilities.

    `stats` describes the last call: "agreement" (mean Dice between the teacher's and SAM's masks over all prompted
    objects, 0 without any), "coverage" (share of voxels with confidence above 0), "items", "dropped" (items that agreed
    too little), "seconds".

    Args:
        outputs: what the heads of the network mean.
        max_items: how many objects are decoded at once; the answers of all are kept at patch resolution.
        trust: one factor from 0 to 1 per segmentation head, multiplied into the weight of its answers; heads with 0 are
            not prompted. The background's is not looked at. None: 1 everywhere. May be set anew at any time.

    Raises:
        ValueError: `trust` has another length, or a value out of range.
    """

    def __init__(
        self,
        backend: SamBackend,
        config: SamConfig,
        outputs: OutputSpace,
        *,
        max_items: int = MAX_ITEMS,
        trust: Sequence[float] | None = None,
    ) -> None:
        self.backend, self.config, self.outputs, self.max_items = backend, config, outputs, max_items
        self.trust = trust
        self.stats: dict[str, float] = {}

    @property
    def trust(self) -> tuple[float, ...]:
        """How far answers for each head are believed; see the class."""
        return self._trust

    @trust.setter
    def trust(self, values: Sequence[float] | None) -> None:
        trust = (1.0,) * self.outputs.num_heads if values is None else tuple(float(value) for value in values)
        if len(trust) != self.outputs.num_heads or not all(0 <= value <= 1 for value in trust):
            raise ValueError(
                f"semisam: trust is {values!r}; give {self.outputs.num_heads} numbers from 0 to 1, one per "
                "segmentation head"
            )
        self._trust = trust

    @torch.no_grad()
    def __call__(self, image: Float[Tensor, "U C *S"], prob: Float[Tensor, "U K *S"], iteration: int) -> PseudoLabel:
        """Probabilities and confidences in float32; confidence 0 wherever SAM was not asked or is not believed.

        Args:
            image: as nnU-Net normalises it; the view that the teacher saw.
            prob: the teacher's probabilities.
            iteration: chooses the planes that a 2D generalist is asked about in a 3D patch.
        """
        begin = time.perf_counter()
        image, prob = image.detach().float(), prob.detach().float()
        planes = self._planes(prob, iteration)
        pseudo, answers = self._label(planes.take(image), planes.take(prob))
        pseudo = planes.scatter(pseudo, elsewhere=prob)
        believed = answers.agreement >= self.config.min_agreement
        self.stats = {
            "agreement": answers.agreement.mean().item() if len(answers.agreement) else 0.0,
            "coverage": (pseudo.confidence > 0).float().mean().item(),
            "items": float(len(answers.agreement)),
            "dropped": float((~believed).sum().item()),
            "seconds": time.perf_counter() - begin,
        }
        return pseudo

    @torch.no_grad()
    def probe(self, image: Float[Tensor, "U C *S"]) -> None:
        """Encodes an image as `__call__` would.

        Raises:
            ValueError: the backend does not serve its channels or its number of axes.
        """
        everywhere = torch.ones((len(image), self.outputs.num_heads, *image.shape[2:]), device=image.device)
        if not self.outputs.has_regions:
            everywhere[:, 0] = 0
        planes = self._planes(everywhere, iteration=0)
        self.backend.embed(planes.take(image)[:1])

    def _planes(self, prob: Float[Tensor, "U K *S"], iteration: int) -> Planes:
        ndim = prob.ndim - 2
        if ndim in self.backend.ndims:
            return Planes()
        if 2 not in self.backend.ndims or ndim != 3:
            served = " and ".join(f"{n}D" for n in self.backend.ndims)
            raise ValueError(
                f"semisam: sam.backend {self.config.backend!r} serves {served} images, but the configuration's patches "
                f"are {ndim}D; choose a backend for {ndim}D"
            )
        objects = self.outputs.harden(prob)[:, list(self._asked_heads())] > 0
        config = self.config
        return choose_planes(
            objects, axis=config.axis, budget=config.planes, iteration=iteration, min_voxels=config.min_voxels
        )

    def _label(self, image: Float[Tensor, "V C *T"], prob: Float[Tensor, "V K *T"]) -> tuple[PseudoLabel, Answers]:
        prompts = prompts_from_prob(prob, outputs=self.outputs, config=self.config, heads=self._asked_heads())
        hard = self.outputs.harden(prob) > 0
        answers = self._ask(image, prompts, hard)
        answers = answers._replace(weight=answers.weight * answers.weight.new_tensor(self.trust)[answers.head])
        kept = answers.only(answers.agreement >= self.config.min_agreement)
        return fuse(prob, hard, kept, self.outputs), answers

    def _asked_heads(self) -> tuple[int, ...]:
        return tuple(head for head in self.outputs.foreground_heads if self.trust[head] > 0)

    def _ask(self, image: Float[Tensor, "V C *T"], prompts: Prompts, hard: Bool[Tensor, "V K *T"]) -> Answers:
        """Every image with items is encoded once; all items are decoded together, `max_items` at a time."""
        if not len(prompts):
            return Answers.none(image)
        images, position = prompts.image.unique(return_inverse=True)
        embedding = self.backend.embed(image[images])
        asked = replace(prompts, image=position)
        parts = []
        for start in range(0, len(prompts), self.max_items):
            chunk = slice(start, start + self.max_items)
            predicted = self.backend.decode(embedding, select(asked, chunk))
            mask = hard[prompts.image[chunk], prompts.head[chunk]]
            parts.append(Answers.judged(select(prompts, chunk), predicted, mask))
        return Answers.joined(parts)
