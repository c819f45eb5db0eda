"""Labels that were saved under the name of an image: they open and preprocess like one, and teach nonsense."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MAX_VALUES = 16  # an image with so few different values, all of them integers, is taken for a label
SAMPLE = 10_000  # voxels that are looked at before all are


def label_like_files(files: Sequence[str], image: np.ndarray) -> list[str]:
    """Those files of an opened case that look like labels.

    Args:
        files: one per channel, or one for all.
        image: of shape (channels, z, y, x).
    """
    if len(files) == len(image):
        return [file for file, channel in zip(files, image, strict=True) if _label_like(channel)]
    return list(files[:1]) if _label_like(image) else []


def _label_like(values: np.ndarray) -> bool:
    flat = values.ravel()
    return all(_few_integers(part) for part in (flat[:: len(flat) // SAMPLE + 1], flat))


def _few_integers(values: np.ndarray) -> bool:
    return bool((values == np.rint(values)).all()) and len(np.unique(values)) <= MAX_VALUES
