"""A promptable model without weights: answers with the box, or with the mask that it is given."""

import torch

from nnunet_semisam.sam.base import SamBackend
from nnunet_semisam.types import SamPrediction


class StubSam(SamBackend):
    ndims = (2, 3)

    def __init__(self):
        self.calls = 0
        self.spacing = None

    def built_for(self, spacing):
        self.spacing = spacing
        return self

    def embed(self, image):
        return image

    def decode(self, embedding, prompts):
        self.calls += 1
        logits = torch.full((len(prompts), *embedding.shape[2:]), -3.0)
        for item in range(len(prompts)):
            low, high = prompts.boxes[item].round().long().clamp_min(0)
            logits[item][tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))] = 3.0
        return SamPrediction(logits, torch.full((len(prompts),), 0.9))

    def to(self, device):
        return self
