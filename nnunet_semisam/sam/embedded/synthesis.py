"""Synthetic images from label maps: random grey values, texture, blur, bias field, noise, thick slices.

No real image is used anywhere. The recipe of "any contrast" is SynthSeg's (Billot et al., Med Image Anal 2023,
https://arxiv.org/abs/2107.09559); the share of images in which the target differs from everything else is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from nnunet_semisam.sam.embedded.noise import blur, chance, log_uniform, smooth_noise, uniform, whole
from nnunet_semisam.sam.embedded.shapes import LabelMap

_MODE = {2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class Contrast:
    """How well targets can be seen.

    Args:
        distance: share of images in which the target keeps its distance in grey value from all other labels.
        relatives: share of relatives that look like the label they belong to.
        alike: share of images in which up to two other labels have the grey value of the target, so that parts of its
            border cannot be seen.
        noise: range of the standard deviation of the noise; grey values lie in 0 .. 1.
    """

    distance: float = 0.85
    relatives: float = 0.5
    alike: float = 0.0
    noise: tuple[float, float] = (0.01, 0.15)


CLEAR = Contrast()
FAINT = Contrast(distance=0.3, relatives=0.7, alike=0.6, noise=(0.06, 0.45))


def draw_sample(
    maps: Sequence[LabelMap], rng: torch.Generator, contrast: Contrast = CLEAR
) -> tuple[Float[Tensor, "*S"], Bool[Tensor, "*S"]]:
    """One image and one true mask: a label map from the pool, turned at random, in new grey values."""
    drawn = maps[whole(rng, 0, len(maps) - 1)]
    bit = whole(rng, 0, len(drawn.target_labels) - 1)
    labels, target = drawn.labels, (drawn.targets >> bit & 1).bool()
    axes = torch.randperm(labels.ndim, generator=rng).tolist()
    flips = [axis for axis in range(labels.ndim) if chance(rng, 0.5)]
    labels, target = (part.permute(axes).flip(flips).contiguous() for part in (labels, target))
    return _paint(labels, drawn, drawn.target_labels[bit], rng, contrast), target


def _paint(
    labels: Tensor, drawn: LabelMap, wanted: int, rng: torch.Generator, contrast: Contrast
) -> Float[Tensor, "*S"]:
    """Grey values for every label, then everything a scanner does to them."""
    means, spread = _grey_values(int(labels.max()) + 1, drawn.relatives, wanted, rng, contrast)
    where, ndim, shape = labels.long(), labels.ndim, labels.shape
    image = means[where]
    if chance(rng, 0.7):
        cell = log_uniform(rng, 1.5, 12)
        image = image + spread[where] * smooth_noise(shape, [cell * log_uniform(rng, 0.7, 1.4) for _ in shape], rng)[0]
    base = uniform(rng, 0.2, 1.0)
    image = blur(image[None], [base * uniform(rng, 0.7, 1.4) for _ in shape])[0]
    if chance(rng, 0.6):
        field = smooth_noise(shape, [side * uniform(rng, 0.4, 1.0) for side in shape], rng)[0]
        image = image * torch.exp(uniform(rng, 0.0, 0.3) * field)
    noise = torch.randn(tuple(shape), generator=rng)
    if chance(rng, 0.4):
        noise = blur(noise[None], [0.7] * ndim)[0] * 2.0
    image = image + log_uniform(rng, *contrast.noise) * noise
    if chance(rng, 0.3):
        image = _thick_slices(image, whole(rng, 0, ndim - 1), whole(rng, 2, 3))
    if chance(rng, 0.4):
        low, high = image.min(), image.max()
        image = ((image - low) / (high - low).clamp(min=1e-6)).pow(log_uniform(rng, 0.6, 1.7))
    return image


def _grey_values(
    count: int, relatives: dict[int, int], wanted: int, rng: torch.Generator, contrast: Contrast
) -> tuple[Tensor, Tensor]:
    """Mean and texture strength per label; relatives often look alike, and the target often stands out."""
    means = torch.rand(count, generator=rng)
    spread = 0.15 * torch.rand(count, generator=rng) ** 2 + 0.01
    if chance(rng, contrast.distance):  # the target keeps its distance from others, as far as that is possible
        others = torch.cat([means[:wanted], means[wanted + 1 :]])
        gaps = torch.rand(8, generator=rng)
        distance = (gaps[:, None] - others[None]).abs().amin(1) if len(others) else gaps
        means[wanted] = gaps[int(distance.argmax())]
    for label, relative in relatives.items():
        if label < count and chance(rng, contrast.relatives):
            means[label], spread[label] = means[relative] + 0.03 * torch.randn((), generator=rng), spread[relative]
    if contrast.alike and chance(rng, contrast.alike):
        for _ in range(whole(rng, 1, 2)):
            if (label := whole(rng, 0, count - 1)) != wanted:
                means[label] = means[wanted] + 0.04 * torch.randn((), generator=rng)
    return means, spread


def _thick_slices(image: Float[Tensor, "*S"], axis: int, factor: int) -> Float[Tensor, "*S"]:
    """The mean over `factor` neighbouring slices, interpolated back."""
    kernel = [factor if a == axis else 1 for a in range(image.ndim)]
    pool = F.avg_pool2d if image.ndim == 2 else F.avg_pool3d
    thick = pool(image[None, None], kernel)
    return F.interpolate(thick, tuple(image.shape), mode=_MODE[image.ndim])[0, 0]
