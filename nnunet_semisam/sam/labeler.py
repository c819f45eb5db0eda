"""From teacher to pseudo-label: prompt the generalist with the teacher's prediction, and judge its answer.

SemiSAM (Zhang et al. 2023, https://arxiv.org/abs/2312.06316) takes SAM's masks as they come. Here every answer carries
a weight: SAM's predicted IoU times its stability score (IoU of the masks at logits -1 and +1; Kirillov et al., ICCV
2023, https://arxiv.org/abs/2304.02643) times its agreement (Dice) with the mask that prompted it (which of the three is
`sam.weigh_by`) times exp(-u), where u is the spread of the answers to shaken prompts (`nnunet_semisam.sam.jitter`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from nnunet_semisam.config import SamConfig
from nnunet_semisam.ops.outputs import OutputSpace
from nnunet_semisam.sam.base import SamBackend
from nnunet_semisam.sam.dialogue import converse
from nnunet_semisam.sam.fuse import Answers, Fusion
from nnunet_semisam.sam.objects import Objects, find_objects
from nnunet_semisam.sam.planes import Planes, choose_planes
from nnunet_semisam.sam.portions import Portions
from nnunet_semisam.sam.prompts import prompts_for
from nnunet_semisam.types import Prompts, PseudoLabel, SamPrediction

MAX_ITEMS = 32  # prompted objects per call of a backend's decoder


class SamLabeler:
    """Makes the pseudo-label "sam" out of images and the teacher's probabilities.

    `stats` describes the last call: "agreement" (mean Dice between the teacher's and SAM's masks over all prompted
    objects, 0 without any), "items", "dropped" (items that agreed too little, or changed too much with the prompt),
    "stability" (mean over the items, only with `jitters`), "seconds".

    Args:
        outputs: what the heads of the network mean.
        max_items: how many objects are decoded at once. When memory runs out it is halved, and so is the number of
            images encoded at once, for the rest of the run.
        say: is told about that.
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
        say: Callable[[str], None] = print,
    ) -> None:
        self.backend, self.config, self.outputs = backend, config, outputs
        self.portions = Portions(max_items, say)
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
            iteration: chooses the planes that a 2D generalist is asked about in a 3D patch, and shakes the prompts.
        """
        if image.is_cuda:  # the teacher's pending work is not SAM's; SAM's own is done when the statistics are read
            torch.cuda.synchronize(image.device)
        begin = time.perf_counter()
        image, prob = image.detach().float(), prob.detach().float()
        hard = self.outputs.harden(prob) > 0
        planes = self._planes(hard, iteration)
        fused, told = self._ask(planes.take(image), planes.take(prob), planes.take(hard), iteration=iteration)
        pseudo = planes.scatter(fused, elsewhere=prob)
        if self.config.hard:
            pseudo = replace(pseudo, prob=self.outputs.harden(pseudo.prob))
        items = told.shape[1]
        agreement, steadiness, believed = told.mean(1).tolist() if items else (0.0, 1.0, 1.0)
        self.stats = {
            "agreement": agreement,
            "items": float(items),
            "dropped": float(round(items * (1 - believed))),
            "seconds": time.perf_counter() - begin,
        }
        if items and self.config.jitters:
            self.stats["stability"] = steadiness
        return pseudo

    @torch.no_grad()
    def probe(self, image: Float[Tensor, "U C *S"]) -> None:
        """Encodes an image as `__call__` would.

        Raises:
            ValueError: the backend does not serve its channels or its number of axes.
            RuntimeError: it does not fit into the memory of the device.
        """
        shape = (len(image), self.outputs.num_heads, *image.shape[2:])
        everywhere = torch.ones(shape, dtype=torch.bool, device=image.device)
        planes = self._planes(everywhere, iteration=0)
        with self.portions.encoding(1):
            self.backend.embed(planes.take(image)[:1])

    def _planes(self, hard: Bool[Tensor, "U K *S"], iteration: int) -> Planes:
        ndim = hard.ndim - 2
        if ndim in self.backend.ndims:
            return Planes()
        if 2 not in self.backend.ndims or ndim != 3:
            served = " and ".join(f"{n}D" for n in self.backend.ndims)
            raise ValueError(
                f"semisam: sam.backend {self.config.backend!r} serves {served} images, but the configuration's patches "
                f"are {ndim}D; choose a backend for {ndim}D"
            )
        config, objects = self.config, hard[:, list(self._asked_heads())]
        return choose_planes(
            objects, axis=config.axis, budget=config.planes, iteration=iteration, min_voxels=config.min_voxels
        )

    def _asked_heads(self) -> tuple[int, ...]:
        return tuple(head for head in self.outputs.foreground_heads if self.trust[head] > 0)

    def _ask(
        self,
        image: Float[Tensor, "V C *T"],
        prob: Float[Tensor, "V K *T"],
        hard: Bool[Tensor, "V K *T"],
        *,
        iteration: int,
    ) -> tuple[PseudoLabel, Float[Tensor, "3 P"]]:
        """What the answers about all objects say together; of each its agreement and steadiness, and 1 if believed.

        Every image with items is encoded once; all items are decoded together, as far as memory allows.
        """
        config = self.config
        objects = find_objects(prob, hard, heads=self._asked_heads(), config=config)

        def ask() -> tuple[PseudoLabel, Float[Tensor, "3 P"]]:
            fusion, told = Fusion(prob, hard, self.outputs), [prob.new_empty((3, 0))]
            for answers in self._answers(image, prob, hard, objects, iteration=iteration):
                agreement, steadiness = answers.agreement, answers.steadiness
                believed = (agreement >= config.min_agreement) & (steadiness >= config.min_stability)
                fusion.add(answers, believed)
                told.append(torch.stack([agreement, steadiness, believed.to(agreement)]))
                del answers  # before the next ones are made
            return fusion.pseudo_label(), torch.cat(told, 1)

        return self.portions.fitted(ask)

    def _answers(
        self,
        image: Float[Tensor, "V C *T"],
        prob: Float[Tensor, "V K *T"],
        hard: Bool[Tensor, "V K *T"],
        objects: Objects,
        *,
        iteration: int,
    ) -> Iterator[Answers]:
        """Answers about all objects, in their order, a portion at a time; none of them is kept here."""
        if not len(objects.head):
            return
        every = torch.arange(len(objects.head), device=prob.device)
        for images in objects.image.unique().split(self.portions.images):
            with self.portions.encoding(len(images)):
                embedding = self.backend.embed(image[images])
            for items in every[torch.isin(objects.image, images)].split(self.portions.items):
                part = Objects(*(field[items] for field in objects))
                with self.portions.decoding(len(items), len(images)):
                    answers = self._portion(self._decoder(embedding, images), part, prob, hard, iteration, items)
                yield answers
                del answers, part

    def _portion(
        self,
        decode: Callable[[Prompts], SamPrediction],
        part: Objects,
        prob: Float[Tensor, "V K *T"],
        hard: Bool[Tensor, "V K *T"],
        iteration: int,
        items: Int64[Tensor, " Q"],
    ) -> Answers:
        """Answers about some of the objects, those numbered `items`, weighted by the trust in their heads."""
        config = self.config
        prompts = prompts_for(part, prob, hard, outputs=self.outputs, config=config)
        predicted, steadiness = converse(decode, prompts, part, prob, config=config, iteration=iteration, items=items)
        answers = Answers.judged(part, predicted, steadiness, weigh_by=config.weigh_by)
        return answers._replace(weight=answers.weight * prob.new_tensor(self.trust)[part.head])

    def _decoder(self, embedding: Any, images: Int64[Tensor, " E"]) -> Callable[[Prompts], SamPrediction]:
        """Decodes prompts whose `image` is that of the whole batch; `images` are the encoded ones."""

        def decode(asked: Prompts) -> SamPrediction:
            return self.backend.decode(embedding, replace(asked, image=torch.searchsorted(images, asked.image)))

        return decode
