"""The embedded generalist's network: a small U-Net that takes its prompts as image channels.

Promptable segmentation follows Segment Anything (Kirillov et al., ICCV 2023, https://arxiv.org/abs/2304.02643): points,
a box and a coarse mask in, a mask and a predicted IoU out. Unlike SAM there is no transformer and no separate image
encoder: prompts are channels beside the image, as in deep interactive segmentation (Sakinis et al. 2019,
https://arxiv.org/abs/1903.08205), and image and prompts come in the object-centred grid of `frame.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

IMAGE, VALID, POSITIVE, NEGATIVE, BOX, MASK, LOOK, SMOOTH_LOOK = range(8)  # input channels
INPUTS = 8
_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_UP = {2: "bilinear", 3: "trilinear"}


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each cell (ConvNeXt, Liu et al. 2022): the cheapest norm on a CPU, batch-free."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Float[Tensor, "P I *G"]) -> Float[Tensor, "P I *G"]:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class Block(nn.Module):
    """Two normalised convolutions with a shortcut."""

    def __init__(self, ndim: int, channels: int) -> None:
        super().__init__()
        self.first = _CONV[ndim](channels, channels, 3, padding=1, bias=False)
        self.second = _CONV[ndim](channels, channels, 3, padding=1, bias=False)
        self.norm_first, self.norm_second = ChannelNorm(channels), ChannelNorm(channels)

    def forward(self, x: Float[Tensor, "P I *G"]) -> Float[Tensor, "P I *G"]:
        y = F.silu(self.norm_first(self.first(x)))
        return F.silu(self.norm_second(self.second(y)) + x)


class PromptableUNet(nn.Module):
    """Eight channels in a fixed grid to mask log-odds and a predicted IoU; the same code in 2D and 3D.

    All convolutions run on half the grid: neighbours are folded into channels at the start and unfolded at the end,
    where the folded input is read once more for its edges. What is learned is the change of a simple first guess.
    """

    def __init__(self, ndim: int, width: int = 32) -> None:
        super().__init__()
        conv, self.ndim, self.width = _CONV[ndim], ndim, width
        cells, widths = 2**ndim, [width, 2 * width, 4 * width]
        steps = list(zip(widths, widths[1:], strict=False))
        self.stem = conv(INPUTS * cells, width, 3, padding=1)
        self.encoder = nn.ModuleList([Block(ndim, channels) for channels in widths])
        self.down = nn.ModuleList([conv(fine, coarse, 2, stride=2) for fine, coarse in steps])
        self.bottom = Block(ndim, widths[-1])
        self.lateral = nn.ModuleList([conv(coarse, fine, 1) for fine, coarse in steps])
        self.decoder = nn.ModuleList([Block(ndim, fine) for fine in widths[:-1]])
        self.mix = conv(width + INPUTS * cells, width, 1)
        self.head = conv(width, cells, 3, padding=1)
        self.trust, self.lean = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(1.0))
        self.quality = nn.Sequential(nn.Linear(widths[-1] + width + 3, 64), nn.SiLU(), nn.Linear(64, 1))

    def forward(
        self, channels: Float[Tensor, "P 8 *G"], keep: float = 0.0
    ) -> tuple[Float[Tensor, "P *G"], Float[Tensor, " P"]]:
        """Log-odds of the mask, and the log-odds of the IoU that the mask is expected to reach.

        `keep` log-odds are added where the mask prompt says yes, and taken away where it says no.
        """
        folded = fold(channels)
        x, skips = self.stem(folded), []
        for level, block in enumerate(self.encoder):
            x = block(x if level == 0 else self.down[level - 1](x))
            skips.append(x)
        x = deepest = self.bottom(x)
        for level in reversed(range(len(self.decoder))):
            up = F.interpolate(self.lateral[level](x), skips[level].shape[2:], mode=_UP[self.ndim])
            x = self.decoder[level](up + skips[level])
        change = self.head(F.silu(self.mix(torch.cat([x, folded.to(x.dtype)], 1))))
        logits = spread(change.float(), self.ndim) + self._start(channels) + keep * channels[:, MASK]
        return logits, self._quality(logits.detach(), deepest, x, channels)

    def _start(self, channels: Float[Tensor, "P 8 *G"]) -> Float[Tensor, "P *G"]:
        """The first guess: the mask prompt and the look of the smoothed image, added up."""
        return self.trust * channels[:, MASK] + self.lean * channels[:, SMOOTH_LOOK]

    def _quality(self, logits: Tensor, deepest: Tensor, shallow: Tensor, channels: Tensor) -> Float[Tensor, " P"]:
        """Reads pooled features (no gradient goes back), the mask's sharpness, and its agreement with the prompt."""
        axes = tuple(range(1, logits.ndim))
        valid = channels[:, VALID]
        prob, hard = logits.sigmoid() * valid, (logits > 0).float() * valid
        sharp = (prob * hard).sum(axes) / (prob + hard - prob * hard).sum(axes).clamp(min=1)
        prompt = (0.5 + 0.5 * channels[:, MASK]) * valid
        agreement = (prompt * prob).sum(axes) / (prompt + prob - prompt * prob).sum(axes).clamp(min=1)
        pooled = [feature.detach().float().mean(tuple(range(2, feature.ndim))) for feature in (deepest, shallow)]
        numbers = torch.stack([sharp, agreement, hard.mean(axes)], 1)
        return self.quality(torch.cat([*pooled, numbers], 1))[:, 0].float()


def fold(x: Float[Tensor, "P C *G"]) -> Tensor:
    """Blocks of 2 per axis moved into channels (space to depth)."""
    ndim = x.ndim - 2
    parts = x.reshape(*x.shape[:2], *[size for side in x.shape[2:] for size in (side // 2, 2)])
    inner, outer = [3 + 2 * axis for axis in range(ndim)], [2 + 2 * axis for axis in range(ndim)]
    return parts.permute(0, 1, *inner, *outer).flatten(1, 1 + ndim)


def spread(x: Float[Tensor, "P cells *G"], ndim: int) -> Tensor:
    """One channel per place in the block, moved back to its place (depth to space)."""
    parts = x.unflatten(1, (2,) * ndim)
    order = [place for axis in range(ndim) for place in (1 + ndim + axis, 1 + axis)]
    return parts.permute(0, *order).reshape(len(x), *[2 * side for side in x.shape[2:]])
