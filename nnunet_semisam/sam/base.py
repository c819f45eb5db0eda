"""The contract of a promptable model: image in, prompts in, masks out."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nnunet_semisam.config import PROMPT_KINDS, SamConfig
from nnunet_semisam.types import Prompts, SamPrediction


class SamBackend(abc.ABC):
    """A frozen promptable segmentation model, encoded once per image and decoded once per prompted object.

    Stateless between calls, no gradient, no random numbers, parameters in evaluation mode. Backends that serve only 2D
    are asked plane by plane for 3D patches (`nnunet_semisam.sam.planes`).
    """

    ndims: tuple[int, ...]  # numbers of spatial axes served natively; of the class, or of what it was built from
    hears: tuple[str, ...] = PROMPT_KINDS  # kinds of prompts that are not ignored
    needs_checkpoint: bool = False  # is there nothing that ships

    @classmethod
    def tuning_steps(cls, cases: int) -> int:
        """Steps of tuning on so many labeled cases that were measured to help: what `sam.tune = "auto"` means."""
        return 0

    @classmethod
    def members_of(cls, config: SamConfig) -> Sequence[SamConfig]:
        """Configurations of the backends that this one is made of; an ensemble has some."""
        return ()

    @abc.abstractmethod
    def embed(self, image: Float[Tensor, "U C *S"]) -> Any:
        """Whatever `decode` needs of the images. Intensities are as nnU-Net normalises them (about z-scores)."""

    @abc.abstractmethod
    def decode(self, embedding: Any, prompts: Prompts) -> SamPrediction:
        """One mask per prompted object, at the resolution of the embedded images."""

    @abc.abstractmethod
    def to(self, device: torch.device) -> SamBackend:
        """Moves the weights; returns itself."""


def expected_iou(logits: Float[Tensor, "Q *M"]) -> Float[Tensor, " Q"]:
    """IoU that a mask has if its own probabilities are right: expected intersection over expected union.

    For models whose IoU head was never trained.
    """
    prob, inside = logits.sigmoid().flatten(1), (logits > 0).flatten(1)
    union = inside.sum(1) + (prob * ~inside).sum(1)
    return (prob * inside).sum(1) / union.clamp(min=1e-6)
