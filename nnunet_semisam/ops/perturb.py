"""Perturbations of an image patch on the device it lies on: same voxels, other intensities, never in place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


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
    """

    noise_std: float = 0.1
    contrast: float = 0.25
    brightness: float = 0.1
    cutout: float = 0.25

    def __call__(self, image: Float[Tensor, "U C *S"]) -> Float[Tensor, "U C *S"]:
        axes = tuple(range(2, image.ndim))
        mean, std = image.mean(axes, keepdim=True), image.std(axes, keepdim=True)
        gain = 1 + self.contrast * (2 * torch.rand_like(mean) - 1)
        offset = self.brightness * (2 * torch.rand_like(mean) - 1) * std
        noise = (torch.randn_like(image) * self.noise_std).clamp(-2 * self.noise_std, 2 * self.noise_std)
        changed = (image - mean) * gain + mean + offset + noise
        if self.cutout > 0:
            changed = torch.where(_random_box(image, self.cutout), mean, changed)
        return torch.where((image == 0).all(1, keepdim=True), torch.zeros_like(image), changed)


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
