"""Perturbations of an image patch on the device it lies on: same voxels, other intensities, never in place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

REMAP_LAYERS, REMAP_CHANNELS, REMAP_KERNELS = 4, 2, (1, 3)  # GIN, section III-B
CONVOLUTIONS = {2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True, kw_only=True)
class Perturbation:
    """Random noise, brightness and contrast, and one erased box per patch.

    Voxels that are exactly 0 in all channels (padding, or background of a masked normalisation) stay 0.

    Args:
        noise_std: standard deviation of white noise, clipped at twice its value (UA-MT, SemiSAM: 0.1, clipped at 0.2).
        contrast: multiplies each patch by a factor out of [1 - contrast, 1 + contrast] around its mean.
        brightness: adds an offset out of [-brightness, brightness], in units of the patch's standard deviation.
        cutout: side of the box that is set to the patch's mean, as a share of the patch's sides; 0 = none
            (DeVries and Taylor 2017, arXiv 1708.04552).
        remap: probability that a patch gets another contrast by `remapped`: what was bright may be dark then.
    """

    noise_std: float = 0.1
    contrast: float = 0.25
    brightness: float = 0.1
    cutout: float = 0.25
    remap: float = 1.0

    def __call__(self, image: Float[Tensor, "U C *S"]) -> Float[Tensor, "U C *S"]:
        changed = image
        if self.remap > 0:
            chosen = torch.rand(len(image), *[1] * (image.ndim - 1), device=image.device) < self.remap
            with torch.autocast(image.device.type, enabled=False):  # half precision would overflow
                changed = torch.where(chosen, remapped(image), image)
        changed = self._disturbed(changed)
        return torch.where((image == 0).all(1, keepdim=True), torch.zeros_like(image), changed)

    def _disturbed(self, image: Float[Tensor, "U C *S"]) -> Float[Tensor, "U C *S"]:
        axes = tuple(range(2, image.ndim))
        mean, std = image.mean(axes, keepdim=True), image.std(axes, keepdim=True)
        gain = 1 + self.contrast * (2 * torch.rand_like(mean) - 1)
        offset = self.brightness * (2 * torch.rand_like(mean) - 1) * std
        noise = (torch.randn_like(image) * self.noise_std).clamp(-2 * self.noise_std, 2 * self.noise_std)
        changed = (image - mean) * gain + mean + offset + noise
        if self.cutout > 0:
            changed = torch.where(_random_box(image, self.cutout), mean, changed)
        return changed


def remapped(image: Float[Tensor, "U C *S"]) -> Float[Tensor, "U C *S"]:
    """Each channel of each patch through a small convolutional network of random weights, mixed with itself.

    A random curve of the intensities that need not be monotone, with some blur or sharpening: an organ keeps its shape
    and gets another contrast. The share of the original is drawn from 0..1; mean and standard deviation
    of the whole patch stay (not those of the foreground, where the background is 0 and put back to 0 later).

    Source: global intensity non-linear augmentation (GIN; Ouyang et al., IEEE TMI 2023, arXiv 2111.12525, section
    III-B), there with the Frobenius norm in place of mean and standard deviation.
    """
    count, space = image.shape[0] * image.shape[1], image.shape[2:]
    axes, start = tuple(range(2, image.ndim)), image.reshape(1, count, *space)
    mixed, channels = start, [1, *[REMAP_CHANNELS] * (REMAP_LAYERS - 1), 1]
    for layer, (into, out) in enumerate(zip(channels[:-1], channels[1:], strict=True)):
        size = REMAP_KERNELS[int(torch.randint(len(REMAP_KERNELS), ()))]
        weight = torch.randn(count * out, into, *[size] * len(space), device=image.device, dtype=image.dtype)
        bias = torch.randn(count * out, device=image.device, dtype=image.dtype)
        mixed = CONVOLUTIONS[len(space)](mixed, weight, bias, padding=size // 2, groups=count)
        mixed = F.leaky_relu(mixed) if layer < REMAP_LAYERS - 1 else mixed
    share = torch.rand(*image.shape[:2], *[1] * len(space), device=image.device, dtype=image.dtype)
    changed = share * _standardized(mixed.reshape(image.shape), axes) + (1 - share) * _standardized(image, axes)
    return _standardized(changed, axes) * image.std(axes, keepdim=True) + image.mean(axes, keepdim=True)


def _standardized(image: Tensor, axes: tuple[int, ...]) -> Tensor:
    return (image - image.mean(axes, keepdim=True)) / image.std(axes, keepdim=True).clamp(min=1e-6)


def _random_box(image: Float[Tensor, "U C *S"], share: float) -> Tensor:
    """(U, 1, *S) True inside one box per patch, whose sides are up to `share` of the patch's."""
    inside = torch.ones_like(image[:, :1], dtype=torch.bool)
    for axis, size in enumerate(image.shape[2:], start=2):
        shape = [image.shape[0]] + [1] * (image.ndim - 1)
        length = torch.rand(shape, device=image.device) * share * size
        start = torch.rand(shape, device=image.device) * (size - length)
        index_shape = [1] * image.ndim
        index_shape[axis] = size
        index = torch.arange(size, device=image.device).view(index_shape)
        inside = inside & (index >= start) & (index < start + length)
    return inside
