"""A control for the methods: what would the same term do without any unlabeled patch?

    PYTHONPATH=. nnUNetv2_semisam_benchmark WORK … --arm 'NAME={"sam": null, "method": "benchmarks.labels_only", …}'

Methods that disturb the student's view teach it two things at once: what a teacher says about unlabeled patches, and
to do without what was disturbed. Here only the second is left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from nnunet_semisam.methods._base import SemiMethod, Student, Teacher
from nnunet_semisam.ops.outputs import full_resolution
from nnunet_semisam.types import LabeledBatch, PseudoLabel, UnlabeledBatch


@dataclass(kw_only=True)
class LabelsOnly(SemiMethod):
    """The student sees the labeled patches of the step as others see unlabeled ones, and learns their labels.

    With `"view": "nnunet"` these are the patches as nnU-Net has augmented them. SAM has no part in it: leave it out
    (`sam` = null). There is nothing to wait for (`min_labeled_dice` = 0).
    """

    def pseudo_labels(self, teacher: Teacher, unlabeled: UnlabeledBatch) -> dict[str, PseudoLabel]:
        return {"consistency": PseudoLabel.certain(teacher(unlabeled.image))}  # the collapse guard looks at it

    def terms(
        self,
        student: Student,
        unlabeled: UnlabeledBatch,
        pseudo: dict[str, PseudoLabel],
        labeled: LabeledBatch | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        if labeled is None:
            raise ValueError("semisam: the method labels_only needs the labeled patches of the step")
        if "consistency" not in pseudo:
            return {}
        truth, valid = self.outputs.truth(full_resolution(labeled.target))
        batch = replace(unlabeled, image=labeled.image, strong=labeled.image, keys=labeled.keys)
        return super().terms(student, batch, {"consistency": PseudoLabel(truth, valid)}, labeled)
