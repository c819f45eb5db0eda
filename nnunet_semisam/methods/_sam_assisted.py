"""SAM's part in any method: the teacher's prediction prompts it, its masks become one more pseudo-label.

SemiSAM (Zhang et al. 2023, https://arxiv.org/abs/2312.06316). The published code clicks SAM with the ground truth of
the unlabeled volumes; here nothing but the image and the teacher's prediction is within reach.
"""

from __future__ import annotations

from dataclasses import dataclass

from nnunet_semisam.methods._base import SemiMethod, Teacher
from nnunet_semisam.sam.labeler import SamLabeler
from nnunet_semisam.types import PseudoLabel, UnlabeledBatch


@dataclass
class SamAssisted:
    """A method plus the pseudo-label "sam".

    Args:
        every: iterations from one question to the next (`terms.sam.every`); planes and shaken prompts follow the number
            of the question, or some axes would never have their turn.
    """

    method: SemiMethod
    labeler: SamLabeler
    every: int = 1

    def pseudo_labels(self, teacher: Teacher, unlabeled: UnlabeledBatch) -> dict[str, PseudoLabel]:
        """The method's own pseudo-labels and SAM's. The teacher runs once."""
        seen: list = []

        def remember(image):
            prob = teacher(image)
            if not seen:  # of several passes one is enough: they are large
                seen.append(prob)
            return prob

        pseudo = self.method.pseudo_labels(remember, unlabeled)
        prob = seen[0] if seen else teacher(unlabeled.image)
        return {**pseudo, "sam": self.labeler(unlabeled.picture, prob, unlabeled.iteration // self.every)}
