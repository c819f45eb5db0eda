"""MedSAM (Ma et al., Nature Communications 2024, https://doi.org/10.1038/s41467-024-44824-z): SAM's ViT-B on CT, MR and
eight more modalities, prompted by boxes.

Needs the package `segment-anything` 1.0 and `medsam_vit_b.pth` (https://github.com/bowang-lab/MedSAM, Apache-2.0). Its
images are stretched to a square and shown as 0..1, without SAM's standardisation. It was trained on boxes alone: clicks
and masks are not handed on. Its IoU head was not trained, so the IoU is estimated from the answer itself.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from nnunet_semisam.sam.backends.segment_anything import SegmentAnything
from nnunet_semisam.sam.base import expected_iou
from nnunet_semisam.types import Prompts, SamPrediction


class MedSam(SegmentAnything):
    """MedSAM at a working resolution of choice; 1024 is what it was trained at.

    Arguments and errors are those of `SegmentAnything`.
    """

    name, example = "medsam", "medsam_vit_b.pth"
    hears = ("box",)
    tuning_task = None  # tuning draws clicks and masks, which are not heard

    def heard(self, prompts: Prompts) -> Prompts:
        """The boxes alone.

        Raises:
            ValueError: there are none.
        """
        if prompts.boxes is None:
            raise ValueError("semisam: sam.backend 'medsam' hears boxes only; add box to sam.prompts")
        return replace(prompts, point_labels=torch.full_like(prompts.point_labels, -1), mask_logits=None)

    def quality(self, logits: Float[Tensor, "P H W"], predicted: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
        """The IoU to expect from the answer itself."""
        return expected_iou(logits)

    def answer(self, embedding, prompts: Prompts) -> SamPrediction:
        """One mask per item, by its box."""
        return super().answer(embedding, self.heard(prompts))

    def _inner(self, height: int, width: int) -> tuple[int, int]:
        side = self.sam.image_encoder.img_size
        return side, side

    def _prepare(self, image: Float[Tensor, "U C H W"], inner: tuple[int, int]) -> Float[Tensor, "U 3 F F"]:
        """0..1 between robust percentiles, stretched to the square."""
        return F.interpolate(self._pixels(image), inner, mode="bilinear", antialias=True)
