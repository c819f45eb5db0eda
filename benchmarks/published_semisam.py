"""An iteration of SemiSAM as published (Zhang et al. 2023, https://arxiv.org/abs/2312.06316, and its code), to time it.

Written anew from its description: the operations are those of the published code, prompts and data are made up.
"""

from __future__ import annotations

from unittest import mock

import torch
import torch.nn.functional as F
from med3d_cost import padded_attention
from published_vnet import VNet, follow
from torch import Tensor

from nnunet_semisam.sam.med3d import Med3D
from nnunet_semisam.sam.med3d.encoder import WindowAttention

LABELED, UNLABELED, CLICKS, UNUSED = 1, 3, 10, 8


class Published:
    """The published iteration.

    Args:
        unused: are the eight passes made that no loss looks at?
        sam: what is asked, with the layout of SAM-Med3D.
    """

    def __init__(self, device: torch.device, *, unused: bool, sam: Med3D) -> None:
        self.student, self.teacher = VNet(1, 2).to(device), VNet(1, 2).to(device).requires_grad_(requires_grad=False)
        self.sam, self.unused, self.device = sam.to(device).eval(), unused, device
        self.optimizer = torch.optim.SGD(self.student.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
        side, patches = sam.image_side, LABELED + UNLABELED
        self.image = torch.randn(patches, 1, side, side, side, device=device)
        self.target = (self.image[:LABELED, 0] > 1).long()

    def step(self) -> None:
        logits = self.student(self.image)
        prob = logits.softmax(1)
        with torch.no_grad():
            teacher = self.teacher(_noisy(self.image)).softmax(1)
            masks = torch.cat([self.asked(patch) for patch in self.image.split(1)])
            if self.unused:
                for _ in range(UNUSED // 2):
                    self.teacher(_noisy(self.image.repeat(2, 1, 1, 1, 1))).softmax(1)
        answer = torch.cat([1 - masks, masks], 1)
        loss = self.supervised(logits[:LABELED]) + 0.05 * ((prob - teacher) ** 2).mean()
        loss = loss + 0.05 * ((prob - answer)[LABELED:] ** 2).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        follow(self.teacher, self.student)

    def supervised(self, logits: Tensor) -> Tensor:
        found, truth = logits.softmax(1)[:, 1], self.target.float()
        overlap = 2 * (found * truth).sum() + 1e-5
        return F.cross_entropy(logits, self.target) + 1 - overlap / ((found**2).sum() + (truth**2).sum() + 1e-5)

    def asked(self, patch: Tensor) -> Tensor:
        """The mask (1, 1, *S) after ten clicks, each decoded with the logits of the one before."""
        with mock.patch.object(WindowAttention, "forward", padded_attention):
            features = self.sam.encode(patch)
        logits = torch.zeros(1, 1, *[self.sam.mask_side] * 3, device=self.device)
        for number in range(CLICKS):
            click = torch.randint(self.sam.image_side, (1, 1, 3), device=self.device).float()
            sign = torch.full((1, 1), number % 2, device=self.device)
            logits = self.sam.decode(features, click, sign, logits)[0][:, :1]
        return (F.interpolate(logits, scale_factor=4, mode="trilinear") > 0.5).float()


def _noisy(image: Tensor) -> Tensor:
    return image + (0.1 * torch.randn_like(image)).clamp(-0.2, 0.2)
