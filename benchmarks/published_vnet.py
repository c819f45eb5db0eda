"""V-Net as semi-supervised papers use it (Milletari et al. 2016, https://arxiv.org/abs/1606.04797; UA-MT's sizes)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

CONVOLUTIONS = (1, 2, 3, 3, 3)  # per stage on the way down; on the way up the same, without the last
FILTERS = 16  # of the first stage; each further one has twice as many


class VNet(nn.Module):
    """16 filters, batch normalisation, dropout of 0.5 at the bottom and before the head; strides instead of pooling.

    Args:
        heads: channels of the output, which has the size of the input; its sides are multiples of 16.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        widths = [FILTERS * 2**stage for stage in range(len(CONVOLUTIONS))]
        self.down, self.shrink, self.grow, self.up = (nn.ModuleList() for _ in range(4))
        for stage, (width, count) in enumerate(zip(widths, CONVOLUTIONS, strict=True)):
            self.down.append(_stage(channels if stage == 0 else width, width, count))
        for wide, wider in zip(widths, widths[1:], strict=False):
            self.shrink.append(_normalized(nn.Conv3d(wide, wider, 2, stride=2)))
            self.grow.append(_normalized(nn.ConvTranspose3d(wider, wide, 2, stride=2)))
            self.up.append(_stage(wide, wide, CONVOLUTIONS[len(self.up)]))
        self.dropout, self.head = nn.Dropout3d(0.5), nn.Conv3d(FILTERS, heads, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, heads, *S)."""
        kept = [self.down[0](image)]
        for shrink, stage in zip(self.shrink, self.down[1:], strict=True):
            kept.append(stage(shrink(kept[-1])))
        features = self.dropout(kept.pop())
        for grow, stage, skip in reversed(list(zip(self.grow, self.up, kept, strict=True))):
            features = stage(grow(features) + skip)
        return self.head(self.dropout(features))


def _stage(channels: int, width: int, count: int) -> nn.Sequential:
    return nn.Sequential(
        *(_normalized(nn.Conv3d(width if number else channels, width, 3, padding=1)) for number in range(count))
    )


def _normalized(convolution: Any) -> nn.Sequential:
    return nn.Sequential(convolution, nn.BatchNorm3d(convolution.out_channels), nn.ReLU(inplace=True))


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, decay: float = 0.99) -> None:
    """The published EMA: parameters only."""
    for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
        slow.mul_(decay).add_(fast, alpha=1 - decay)
