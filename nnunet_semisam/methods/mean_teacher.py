"""Mean teacher (Tarvainen and Valpola, NeurIPS 2017, https://arxiv.org/abs/1703.01780)."""

from __future__ import annotations

from dataclasses import dataclass

from nnunet_semisam.methods._base import SemiMethod, Teacher
from nnunet_semisam.types import PseudoLabel, UnlabeledBatch


@dataclass(kw_only=True)
class MeanTeacher(SemiMethod):
    """The student must agree with an EMA of itself that sees the undisturbed patch."""

    def pseudo_labels(self, teacher: Teacher, unlabeled: UnlabeledBatch) -> dict[str, PseudoLabel]:
        return {"consistency": PseudoLabel.certain(teacher(unlabeled.image))}
