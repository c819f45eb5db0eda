"""Unlabeled images unlike the labeled ones: turned otherwise, of another scale, CT values with an offset.

Nothing of it makes preprocessing fail, and nnU-Net mends none of it: its usual reader takes voxels in the order of the
file. The student would learn from patches that are nothing like those it is to segment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_semisam.data.image_checks import WITH_GEOMETRY, geometry, reorients
from nnunet_semisam.data.splits import names

FACTOR = 5  # between spacings along an axis: slices of 1 and 5 mm are usual, meters for millimeters are not


def unlike_labeled(
    unlabeled: Mapping[str, Sequence[str]], labeled: Mapping[str, Sequence[str]], reader: str
) -> list[str]:
    """A sentence for each way in which unlabeled images lie unlike all labeled ones; only headers are read.

    Args:
        unlabeled: image files by case; labeled: the same.
        reader: name of nnU-Net's reader, from the plans.
    """
    ours = {case: found for case, files in labeled.items() if (found := _header(files[0]))}
    if not ours:
        return []
    theirs = {case: found for case, files in unlabeled.items() if (found := _header(files[0]))}
    if reorients(reader):  # voxels come out in one order, whatever the file says
        ours, theirs = (
            {case: header | {"spacing": sorted(header["spacing"])} for case, header in headers.items()}
            for headers in (ours, theirs)
        )
        return _scaled(theirs, ours)
    return [*_turned(theirs, ours), *_scaled(theirs, ours)]


def starts_at_zero(image: np.ndarray, plans: Mapping[str, Any], dataset_json: Mapping[str, Any]) -> bool:
    """Whether a CT channel of an opened image (C, z, y, x) has no negative value, though labeled foreground has some.

    CT values count from air at -1000 HU. Stored from 0 on, as unsigned numbers, they look whole and are all wrong.
    """
    known = plans.get("foreground_intensity_properties_per_channel", {})
    kinds = dataset_json.get("channel_names", {})
    return any(
        str(kinds.get(str(number), "")).casefold() == "ct"
        and known.get(str(number), {}).get("percentile_00_5", 0) < 0 <= channel.min()
        for number, channel in enumerate(image)
    )


def _turned(theirs: dict[str, dict], ours: dict[str, dict]) -> list[str]:
    seen = sorted({_code(header) for header in ours.values()})
    others = {case: code for case, header in theirs.items() if (code := _code(header)) not in seen}
    if not others:
        return []
    return [
        f"{names(sorted(others))} turned otherwise ({', '.join(sorted(set(others.values())))}) than the labeled images "
        f"({', '.join(seen)}). nnU-Net does not look at the orientation; if it differs in the scans, too, and not only "
        "in how they are stored, reorient them."
    ]


def _scaled(theirs: dict[str, dict], ours: dict[str, dict]) -> list[str]:
    axes = min(len(header["spacing"]) for header in [*ours.values(), *theirs.values()])
    known = np.array([header["spacing"][:axes] for header in ours.values()])
    low, high = known.min(0) / FACTOR, known.max(0) * FACTOR
    others = [
        case
        for case, header in theirs.items()
        if (np.less(header["spacing"][:axes], low) | np.greater(header["spacing"][:axes], high)).any()
    ]
    if not others:
        return []
    example = [float(f"{side:.4g}") for side in theirs[others[0]]["spacing"]]
    return [
        f"{names(sorted(others))} of a spacing more than {FACTOR} times that of any labeled image, or less than a "
        f"{FACTOR}th: {example} in {others[0]!r}. Correct the header if the unit is wrong (mm)."
    ]


def _header(file: str) -> dict[str, list[float]] | None:
    if not Path(file).name.endswith(WITH_GEOMETRY):
        return None
    try:
        found = geometry(file)
    except RuntimeError:  # it cannot be opened, which others tell
        return None
    if len(found["spacing"]) == 4:  # channels are the fourth axis
        turn = found["orientation"]
        return {"spacing": found["spacing"][:3], "orientation": [*turn[0:3], *turn[4:7], *turn[8:11]]}
    return found


def _code(header: dict[str, list[float]]) -> str:
    """Where the axes of the file point to, such as LPS."""
    import SimpleITK as sitk

    if len(header["orientation"]) != 9:
        return "2D"
    return str(sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(header["orientation"]))
