"""Labels that were saved under the name of an image: they open and preprocess like one, and teach nonsense."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

MAX_VALUES = 16  # an image with so few different values, all of them integers, is taken for a label
SAMPLE = 10_000  # voxels that are looked at before all are


def label_problems(files: Sequence[str], image: np.ndarray, dataset_json: dict, plans: dict) -> list[str]:
    """A sentence if an opened case holds a few values of the data set's labels and no other, unlike labeled images.

    Args:
        image: of shape (channels, z, y, x).
        plans: content of the plans file; its foreground intensities tell whether labeled images look like this too.
    """
    values = _label_values(dataset_json)
    if not image.size or _images_are_like_labels(plans, values) or not _holds_only(image, values):
        return []
    found = np.unique(image)
    if len(found) == 1 or len(found) > MAX_VALUES:  # constant, of which others tell; or an image of few grey values
        return []
    values_found = ", ".join(f"{value:g}" for value in found)
    return [
        f"{files[0]}: holds nothing but {values_found}, which are values of labels in dataset.json: it is a label that "
        "was saved under the name of an image. Replace it by the image, or remove it."
    ]


def label_like_files(files: Sequence[str], image: np.ndarray) -> list[str]:
    """Those files of an opened case that look like labels, of this data set or another.

    Args:
        files: one per channel, or one for all.
        image: of shape (channels, z, y, x).
    """
    if len(files) == len(image):
        return [file for file, channel in zip(files, image, strict=True) if _label_like(channel)]
    return list(files[:1]) if _label_like(image) else []


def _label_values(dataset_json: dict) -> np.ndarray:
    """Every integer that a label file of the data set can hold; a region lists several."""
    listed = dataset_json["labels"].values()
    return np.unique([number for value in listed for number in (value if isinstance(value, Iterable) else [value])])


def _images_are_like_labels(plans: dict, values: np.ndarray) -> bool:
    """Whether the intensities that nnU-Net saw in labeled images (mean and spread aside) are values of labels too."""
    channels: dict[str, dict[str, Any]] = plans.get("foreground_intensity_properties_per_channel", {})
    seen = [channel[name] for channel in channels.values() for name in channel if name not in ("mean", "std")]
    return bool(np.isin(seen, values).all())


def _holds_only(image: np.ndarray, values: np.ndarray) -> bool:
    flat = image.ravel()
    return all(bool(np.isin(part, values).all()) for part in (flat[:: len(flat) // SAMPLE + 1], flat))


def _label_like(values: np.ndarray) -> bool:
    flat = values.ravel()
    return all(_few_integers(part) for part in (flat[:: len(flat) // SAMPLE + 1], flat))


def _few_integers(values: np.ndarray) -> bool:
    return bool((values == np.rint(values)).all()) and len(np.unique(values)) <= MAX_VALUES
