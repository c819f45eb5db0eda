"""UA-MT: uncertainty-aware mean teacher (Yu et al., MICCAI 2019, https://arxiv.org/abs/1907.07034)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nnunet_semisam.methods._base import SemiMethod, Teacher
from nnunet_semisam.types import PseudoLabel, UnlabeledBatch
from nnunet_semisam.values import require_number


@dataclass(kw_only=True)
class UncertaintyAwareMeanTeacher(SemiMethod):
    """The mean teacher, believed where it says the same under noise.

    Uncertainty is the entropy of the mean of `passes` predictions of the teacher, each of the patch with noise of its
    own (equations 2 and 3), as a share of the largest one possible. nnU-Net's networks have no dropout, so noise alone
    makes the predictions differ. The limit is fixed: the paper lets it rise from 0.75 to 1 over the training. Voxels
    are averaged over the patch, not over the certain ones, so that a few certain voxels do not get the weight of all.

    Args:
        passes: of the teacher beside the one that is the pseudo-label.
        noise_std: of the noise, clipped at twice its value.
        limit: voxels with a larger uncertainty are left out.
    """

    passes: int = 8
    noise_std: float = 0.1
    limit: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.passes) is not int or self.passes < 1:
            raise ValueError(f"semisam: method_args.passes is {self.passes!r}; it must be an integer of at least 1")
        require_number("method_args.noise_std", self.noise_std, 0)
        require_number("method_args.limit", self.limit, 0, 1)

    def pseudo_labels(self, teacher: Teacher, unlabeled: UnlabeledBatch) -> dict[str, PseudoLabel]:
        prob = teacher(unlabeled.image)  # (U, K, *S); the first call is what SAM is prompted with
        mean = torch.zeros_like(prob)
        for _ in range(self.passes):
            mean += teacher(self._noisy(unlabeled)) / self.passes
        return {"consistency": PseudoLabel(prob, (self._uncertainty(mean) <= self.limit).float())}

    def _noisy(self, unlabeled: UnlabeledBatch) -> Float[Tensor, "U C *S"]:
        """In a cascade the labels of the previous stage stay as they are."""
        noise = (torch.randn_like(unlabeled.picture) * self.noise_std).clamp(-2 * self.noise_std, 2 * self.noise_std)
        return torch.cat([unlabeled.picture + noise, unlabeled.image[:, unlabeled.picture.shape[1] :]], 1)

    def _uncertainty(self, mean: Float[Tensor, "U K *S"]) -> Float[Tensor, "U 1 *S"]:
        """From 0 to 1; for regions that of the least certain head."""
        mean = mean.clamp(0, 1)  # a sum of tenths is more than 1
        if self.outputs.has_regions:
            entropy = -(torch.xlogy(mean, mean) + torch.xlogy(1 - mean, 1 - mean))
            return entropy.amax(1, keepdim=True) / math.log(2)
        return -torch.xlogy(mean, mean).sum(1, keepdim=True) / math.log(self.outputs.num_heads)
