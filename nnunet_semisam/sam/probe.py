"""How good is a generalist at the classes of a data set? It is asked about labeled patches, where the truth is known.

The questions are those of training: the same prompts, planes and fusion, from a probability like a teacher's. Such a
probability is made of a mask that is known to be wrong by so much (`corrupt_nearby`), of the truth itself, or comes
from a trained model. One class is asked about at a time.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nnunet_semisam.config import SamConfig
from nnunet_semisam.ops.outputs import OutputSpace
from nnunet_semisam.sam.base import SamBackend
from nnunet_semisam.sam.embedded.corruption import corrupt_nearby, surroundings
from nnunet_semisam.sam.embedded.noise import blur, dice
from nnunet_semisam.sam.labeler import SamLabeler
from nnunet_semisam.sam.patches import patch_around
from nnunet_semisam.types import LabeledCase, Prompts, SamPrediction

PIECES = 64  # of a class that are asked about at most: a piece without an answer would count against the generalist
CERTAINTY = 0.95  # of a made-up teacher, inside an object
SOFTNESS = 1.0  # voxels: width of its doubt at borders


@dataclass(frozen=True)
class Trial:
    """One class of one patch: how good the prompt was and how good the answer is, on the voxels that were asked about.

    Args:
        head: segmentation head.
        objects: prompted items (components, planes).
        prompt: Dice of the prompting mask with the truth.
        answer: Dice of the generalist's mask with the truth.
        quality: IoU that the generalist predicts for its masks, mean over the items.
        seconds: of the whole question.
    """

    case: str
    head: int
    objects: int
    prompt: float
    answer: float
    quality: float
    seconds: float


class Asked(NamedTuple):
    """A trial and its masks."""

    trial: Trial
    prompt: Bool[Tensor, "*S"]
    answer: Bool[Tensor, "*S"]
    voxels: Bool[Tensor, "*S"]  # that were asked about


class Prober:
    """Asks a generalist as training would, but believes every answer."""

    def __init__(self, backend: SamBackend, config: SamConfig, outputs: OutputSpace, device: torch.device) -> None:
        self.listener, self.outputs, self.device = _Listener(backend), outputs, device
        pieces = config.components and PIECES
        asked = replace(config, min_agreement=0.0, min_stability=0.0, components=pieces)
        self.labeler = SamLabeler(self.listener, asked, outputs)

    def ask(self, patch: LabeledCase, prob: Float[Tensor, "K *S"], head: int, *, iteration: int = 0) -> Asked | None:
        """The trial for one head; None where nothing is prompted (the mask is too small).

        Args:
            prob: what prompts, as a teacher's.
            iteration: chooses the planes for a 2D generalist in a 3D patch.
        """
        self.labeler.trust = [float(other == head) for other in range(self.outputs.num_heads)]
        self.listener.qualities.clear()
        prob = prob.float()
        begin = time.perf_counter()
        pseudo = self.labeler(patch.image[None].to(self.device), prob[None].to(self.device), iteration).prob.cpu()
        seconds = time.perf_counter() - begin
        # the labeler hands the teacher's probabilities back wherever nobody was asked
        voxels = (pseudo[0] != prob.cpu()).any(0) & patch.valid
        if not self.listener.qualities or not voxels.any():
            return None
        truth = patch.truth[head] & voxels
        prompt = self.outputs.harden(prob[None].cpu())[0, head].bool() & voxels
        # only this head was asked: what others keep of the teacher's probability is not the generalist's
        answer = (pseudo[0, head] > (0.5 if self.outputs.has_regions else pseudo[0, 0])) & voxels
        quality = torch.cat(self.listener.qualities)
        trial = Trial(
            patch.name,
            head,
            len(quality),
            prompt=dice(prompt, truth),
            answer=dice(answer, truth),
            quality=float(quality.mean()),
            seconds=seconds,
        )
        return Asked(trial, prompt, answer, voxels)


def patches_by_head(
    cases: Sequence[LabeledCase], heads: Sequence[int], *, patch_size: Sequence[int], count: int
) -> dict[int, list[LabeledCase]]:
    """Up to `count` patches for each head that show it, the cases in turn; the same ones at every call.

    Every case is looked at twice and let go. None for a head that no case has.
    """
    shown = [{head for head in heads if case.truth[head].any()} for case in cases]
    found: dict[int, dict[int, LabeledCase]] = {head: {} for head in heads}
    for place, case in enumerate(cases):
        for head in shown[place]:
            having = [other for other, heads_there in enumerate(shown) if head in heads_there]
            for number in range(having.index(place), count, len(having)):
                patch = patch_around(case, head, patch_size, _generator(f"patch {case.name} {head} {number}"))
                if patch is not None:
                    found[head][number] = patch
    return {head: [patches[number] for number in sorted(patches)] for head, patches in found.items()}


def truth_prob(patch: LabeledCase, head: int, outputs: OutputSpace) -> Float[Tensor, "K *S"]:
    """A teacher that is right."""
    return teacher_like(patch.truth, head, outputs)


def corrupted_prob(
    patch: LabeledCase, head: int, outputs: OutputSpace, *, wanted: float, number: int
) -> Float[Tensor, "K *S"]:
    """A teacher whose mask of `head` and of every object near it has about the `wanted` Dice; far ones are right.

    Args:
        head: keeps its corrupted mask where those of several labels overlap.
        number: another number, another corruption; the same one, the same.
    """
    masks = patch.truth.clone()
    place = surroundings(patch.truth[head]) if patch.truth[head].any() else None
    for other in outputs.foreground_heads:
        if patch.truth[other].any():
            near = surroundings(patch.truth[other])
            if place is not None and not _meet(place, near):
                continue
            rng = _generator(f"corruption {patch.name} {other} {number}")
            masks[other] = corrupt_nearby(patch.truth[other], wanted, rng)
    return teacher_like(masks, head, outputs)


def teacher_like(masks: Bool[Tensor, "K *S"], head: int, outputs: OutputSpace) -> Float[Tensor, "K *S"]:
    """Probabilities whose hard masks are `masks`, less sure at borders. Of overlapping labels, `head` is on top."""
    if not outputs.has_regions:
        others = [other for other in outputs.foreground_heads if other != head]
        label = torch.zeros(masks.shape[1:], dtype=torch.int64)
        for number in [*others, head]:
            label[masks[number]] = number
        masks = torch.stack([label == number for number in range(outputs.num_heads)])
    hard = masks.float()
    soft = (hard + blur(hard, [SOFTNESS] * (hard.ndim - 1))) / 2  # the mask stays above one half
    if outputs.has_regions:
        return (1 - CERTAINTY) / 2 + CERTAINTY * soft
    return (1 - CERTAINTY) / outputs.num_heads + CERTAINTY * soft / soft.sum(0, keepdim=True)


def _meet(first: tuple[slice, ...], second: tuple[slice, ...]) -> bool:
    """Have two windows a voxel in common?"""
    return all(a.start < b.stop and b.start < a.stop for a, b in zip(first, second, strict=True))


def _generator(name: str) -> torch.Generator:
    """Random numbers of its own for every name: nothing is drawn from the global generators."""
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


class _Listener(SamBackend):
    """A backend that notes the predicted IoU of everything that is asked of it."""

    def __init__(self, backend: SamBackend) -> None:
        self.backend = backend
        self.qualities: list[Tensor] = []

    @property
    def ndims(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.backend.ndims

    def embed(self, image: Tensor) -> Any:
        return self.backend.embed(image)

    def decode(self, embedding: Any, prompts: Prompts) -> SamPrediction:
        predicted = self.backend.decode(embedding, prompts)
        self.qualities.append(predicted.iou_predictions.detach().float().cpu())
        return predicted

    def to(self, device: torch.device) -> _Listener:
        self.backend.to(device)
        return self
