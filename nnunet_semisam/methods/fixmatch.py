"""FixMatch (Sohn et al., NeurIPS 2020, https://arxiv.org/abs/2001.07685), with an EMA teacher."""

from __future__ import annotations

from dataclasses import dataclass

from nnunet_semisam.methods._base import SemiMethod, Teacher
from nnunet_semisam.types import PseudoLabel, UnlabeledBatch
from nnunet_semisam.values import require_number


@dataclass(kw_only=True)
class FixMatch(SemiMethod):
    """Hard pseudo-labels where the teacher is sure; elsewhere the student is left alone."""

    threshold: float = 0.95  # FixMatch, section 4

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("method_args.threshold", self.threshold, 0, 1)

    def pseudo_labels(self, teacher: Teacher, unlabeled: UnlabeledBatch) -> dict[str, PseudoLabel]:
        prob = teacher(unlabeled.image)  # (U, K, *S)
        sure = (self.outputs.confidence(prob) >= self.threshold).float()  # (U, 1, *S)
        return {"consistency": PseudoLabel(self.outputs.harden(prob), sure)}
