"""Synthetic 3D phantoms: a trunk with two low-contrast organs, look-alikes of both, and a degraded image of it.

Everything follows from a NumPy generator: the same generator state gives the same phantom, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

SHAPE = (40, 48, 48)  # z, y, x
ORGANS = {"organ 1": 1, "organ 2": 2}
Rng = np.random.Generator

# mean grey values before degradation
AIR, FAT, TISSUE, BONE, GAS = 0.05, 0.30, 0.45, 0.80, 0.12
CONTRAST = {1: 0.12, 2: -0.15}  # of an organ to the tissue around it


@dataclass(frozen=True)
class Phantom:
    """One case: image and labels of shape `SHAPE`, and the names of the degradations that the image went through."""

    image: np.ndarray
    labels: np.ndarray
    kinds: tuple[str, ...]


def make_phantom(rng: Rng) -> Phantom:
    """A new anatomy in a new image."""
    clean, labels = draw_anatomy(rng)
    image, kinds = degrade(clean, rng)
    return Phantom(image.astype(np.float32), labels, kinds)


def draw_anatomy(rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    """Grey values without any degradation, and the labels of the two organs.

    The arrangement is always the same; sizes, positions, tilt and outlines vary.
    """
    grid = _bent_grid(rng)
    trunk = _ellipsoid(grid, (0, 0, 0), (1.6, 0.86, 0.90))
    inner = _ellipsoid(grid, (0, 0, 0), (1.6, 0.74, 0.78))
    organs = {
        1: _ellipsoid(grid, _near(rng, (-0.05, -0.10, -0.36)), _sized(rng, (0.56, 0.42, 0.30))),
        2: _bean(grid, _near(rng, (0.05, 0.12, 0.42)), _sized(rng, (0.50, 0.29, 0.25))),
    }
    image = np.where(trunk, FAT, AIR)
    image[inner] = TISSUE
    labels = np.zeros(SHAPE, np.uint8)
    for label, organ in organs.items():
        organ &= inner & (labels == 0)
        labels[organ] = label
    free = inner & ~ndimage.binary_dilation(labels > 0)
    _add_look_alikes(image, grid, free, rng)
    for label, contrast in CONTRAST.items():
        image[labels == label] = TISSUE + contrast * rng.uniform(0.75, 1.25)
    landmarks = [((0, 0.55, 0), (2, 0.16, 0.16), BONE), (_near(rng, (0.1, -0.5, 0.22)), (0.35, 0.13, 0.16), GAS)]
    for centre, radii, grey in landmarks:
        image[_ellipsoid(grid, centre, radii) & (labels == 0)] = grey
    texture = 0.025 * _smooth_noise(rng, 2.0) * trunk
    return ndimage.gaussian_filter(image + texture, 0.6), labels


def degrade(image: np.ndarray, rng: Rng) -> tuple[np.ndarray, tuple[str, ...]]:
    """One kind of noise and up to two other faults, at a random strength each."""
    faults = rng.choice(sorted(FAULTS), size=int(rng.integers(0, 3)), replace=False)
    kinds = (*(str(fault) for fault in faults), str(rng.choice(sorted(NOISES))))
    for kind in kinds:
        image = (FAULTS | NOISES)[kind](image, rng)
    return image, kinds


# --- degradations ---------------------------------------------------------------------------------------------------


def _gaussian(image: np.ndarray, rng: Rng) -> np.ndarray:
    return image + rng.uniform(0.03, 0.08) * rng.standard_normal(image.shape)


def _rician(image: np.ndarray, rng: Rng) -> np.ndarray:
    """Magnitude of a complex signal with noise in both parts, as in MR images."""
    strength = rng.uniform(0.03, 0.08)
    real, imaginary = strength * rng.standard_normal((2, *image.shape))
    return np.hypot(image + real, imaginary)


def _speckle(image: np.ndarray, rng: Rng) -> np.ndarray:
    """Grainy multiplicative noise, as in ultrasound images."""
    grain = ndimage.gaussian_filter(rng.standard_normal(image.shape), 0.5)
    return image * (1 + rng.uniform(0.08, 0.17) * grain / grain.std())


def _bias(image: np.ndarray, rng: Rng) -> np.ndarray:
    return image * np.exp(rng.uniform(0.10, 0.25) * _smooth_noise(rng, 14.0))


def _blur(image: np.ndarray, rng: Rng) -> np.ndarray:
    return ndimage.gaussian_filter(image, rng.uniform(0.5, 1.1))


def _contrast(image: np.ndarray, rng: Rng) -> np.ndarray:
    return np.clip(image, 0, None) ** rng.uniform(0.6, 1.6)


Degradation = Callable[[np.ndarray, Rng], np.ndarray]
NOISES: dict[str, Degradation] = {"gaussian": _gaussian, "rician": _rician, "speckle": _speckle}
FAULTS: dict[str, Degradation] = {"bias": _bias, "blur": _blur, "contrast": _contrast}

# --- shapes ---------------------------------------------------------------------------------------------------------


def _bent_grid(rng: Rng) -> np.ndarray:
    """Coordinates from -1 to 1 (3, *SHAPE) after a small shift, tilt, scaling and a smooth deformation."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, side) for side in SHAPE), indexing="ij"))
    tilt = np.eye(3) * rng.uniform(0.94, 1.08) + rng.normal(0, 0.06, (3, 3))
    grid = np.tensordot(tilt, grid, axes=1) + rng.uniform(-0.06, 0.06, (3, 1, 1, 1))
    coarse = np.stack([_smooth_noise(rng, 8.0) for _ in SHAPE])
    fine = np.stack([_smooth_noise(rng, 3.5) for _ in SHAPE])
    return grid + 0.06 * coarse + 0.02 * fine


def _ellipsoid(grid: np.ndarray, centre, radii) -> np.ndarray:
    scaled = (grid - _column(centre)) / _column(radii)
    return (scaled**2).sum(0) < 1


def _bean(grid: np.ndarray, centre, radii) -> np.ndarray:
    """An ellipsoid that is bent in the plane of its first and last axis."""
    bent = grid - _column(centre)
    bent[2] += 0.55 * bent[0] ** 2 / radii[0] - 0.1
    return _ellipsoid(bent, (0, 0, 0), radii)


def _add_look_alikes(image: np.ndarray, grid: np.ndarray, free: np.ndarray, rng: Rng) -> None:
    """A vessel and some small blobs with the grey value of one organ or the other."""
    vessel = _ellipsoid(grid, _near(rng, (0, 0.27, -0.02)), (2.0, 0.09, 0.09))
    image[vessel & free] = TISSUE + CONTRAST[1]
    for _ in range(int(rng.integers(3, 6))):
        blob = _ellipsoid(grid, rng.uniform(-0.65, 0.65, 3), rng.uniform(0.10, 0.22, 3))
        image[blob & free] = TISSUE + CONTRAST[int(rng.integers(1, 3))]


def _near(rng: Rng, centre: tuple[float, ...]) -> np.ndarray:
    return np.asarray(centre) + rng.normal(0, 0.035, 3)


def _sized(rng: Rng, radii: tuple[float, ...]) -> np.ndarray:
    return np.asarray(radii) * rng.uniform(0.88, 1.12, 3)


def _column(values) -> np.ndarray:
    return np.asarray(values, float).reshape(3, 1, 1, 1)


def _smooth_noise(rng: Rng, width: float) -> np.ndarray:
    """Smooth noise of standard deviation 1 with bumps of `width` voxels."""
    noise = ndimage.gaussian_filter(rng.standard_normal(SHAPE), width, mode="wrap")
    return (noise - noise.mean()) / noise.std()
