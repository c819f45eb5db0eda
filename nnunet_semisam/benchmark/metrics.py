"""Dice, HD95, ASSD and surface Dice of two masks, computed by MONAI.

HD95 and ASSD are measured between boundary voxels, the surface Dice (NSD) between surface elements weighted by their
area (Nikolov et al., arXiv 1809.04430).
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

METRICS = ("dice", "hd95", "assd", "nsd")
MISSED, INVENTED, ABSENT = "missed", "invented", "absent"
EMPTY_RULE = (
    "A class that is in the reference but not in the prediction (missed), or the other way round (invented), has Dice "
    "and NSD 0, and as HD95 and ASSD the diagonal of the image. A class that is in neither has Dice and NSD 1 and "
    "distances of 0: where one arm invents it, all others have found that it is not there."
)


def require_monai() -> None:
    """Raises ImportError, with the cure, if MONAI is not installed."""
    if importlib.util.find_spec("monai") is None:
        raise ImportError("the metrics need MONAI: pip install 'nnunet_semisam[benchmark]', or pip install monai")


def measure(
    prediction: Bool[np.ndarray, "*S"], truth: Bool[np.ndarray, "*S"], spacing: Sequence[float], tolerance: float
) -> dict[str, float | str]:
    """The four metrics, and under "empty" which mask is: "missed", "invented", "absent", or "" for none.

    Args:
        spacing: per axis; distances have its unit. Axes of length 1 are dropped: a single plane is a 2D image.
        tolerance: of the surface Dice, in the unit of `spacing`.
    """
    axes = [axis for axis, size in enumerate(truth.shape) if size > 1]
    size = [truth.shape[axis] * float(spacing[axis]) for axis in axes]
    flat = tuple(truth.shape[axis] for axis in axes)
    prediction, truth = prediction.reshape(flat), truth.reshape(flat)
    if not prediction.any() and not truth.any():
        return {"dice": 1.0, "hd95": 0.0, "assd": 0.0, "nsd": 1.0, "empty": ABSENT}
    if not prediction.any() or not truth.any():
        far = math.hypot(*size)
        return {"dice": 0.0, "hd95": far, "assd": far, "nsd": 0.0, "empty": INVENTED if prediction.any() else MISSED}
    return {**_monai(prediction, truth, [float(spacing[axis]) for axis in axes], tolerance), "empty": ""}


def _monai(prediction: np.ndarray, truth: np.ndarray, spacing: list[float], tolerance: float) -> dict[str, float]:
    """The metrics of two masks of which none is empty."""
    require_monai()
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI warns of its own deprecations
        from monai.metrics import (
            compute_average_surface_distance,
            compute_dice,
            compute_hausdorff_distance,
            compute_surface_dice,
        )

        one, two = (torch.from_numpy(mask)[None, None] for mask in (prediction, truth))
        hd95 = compute_hausdorff_distance(one, two, include_background=True, percentile=95, spacing=spacing)
        assd = compute_average_surface_distance(one, two, include_background=True, symmetric=True, spacing=spacing)
        measured = {
            "dice": compute_dice(one.float(), two.float(), include_background=True),
            "hd95": hd95,
            "assd": assd,
            "nsd": compute_surface_dice(
                one, two, [tolerance], include_background=True, spacing=spacing, use_subvoxels=True
            ),
        }
    return {name: float(value) for name, value in measured.items()}
