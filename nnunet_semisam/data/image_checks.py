"""What can be wrong with the content of image files, each a sentence with the file, what is wrong and what to do."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_semisam.data.raw_pool import num_channels
from nnunet_semisam.data.truncated import nifti_header, truncation_problems

WITH_GEOMETRY = (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl")  # formats that say where a voxel lies
LARGEST = 1e15  # a variance of larger values overflows in float32
FLAT = 999  # nnU-Net's readers give the missing axis of a 2D image so many times the spacing


def open_problems(
    cases: Mapping[str, list[str]],
    reader: Any,
    dataset_json: dict,
    *,
    num_files: int | None = None,
    volumes: bool = False,
    channels: bool = True,
    look: Callable[[list[str], np.ndarray], None] = lambda files, image: None,
) -> list[str]:
    """Opens every image with nnU-Net's `reader` object; what is wrong, one sentence per problem.

    Checked: the files are whole and open, the channels are as many as in `dataset.json` and lie on each other, the
    spacing is three positive numbers, and all values are finite, not too large, and not all the same.

    Args:
        num_files: the channels of cases with another number of files are not counted: `scan_unlabeled` has told.
        volumes: whether a 2D image is wrong.
        channels: whether channels that do not lie on each other are.
        look: gets the files and the image of every case that opens.
    """
    problems = []
    for case in cases:
        if before := file_problems(cases[case], type(reader), channels=channels):
            problems += before
            continue
        try:
            image, properties = reader.read_images(cases[case])
        except Exception as error:
            problems.append(f"{cases[case][0]}: {type(reader).__name__} cannot open it ({_short(error)}); replace it.")
            continue
        look(cases[case], image)
        counted = num_files is None or len(cases[case]) == num_files
        problems += image_problems(image, cases[case][0], dataset_json if counted else None)
        problems += spacing_problems(cases[case][0], properties["spacing"], volumes)
    return problems


def file_problems(files: Sequence[str], reader: type, *, channels: bool = True) -> list[str]:
    """What is wrong with the files of a case before a reader opens them, one sentence per problem.

    Args:
        reader: the class of nnU-Net's that will open them.
        channels: whether to look if they lie on each other.
    """
    if problems := truncation_problems(files):
        return problems
    return [*_header_problems(files), *(_geometry_problems(files, reorients(reader.__name__)) if channels else ())]


def reorients(reader: str) -> bool:
    """Whether the reader of this name brings all voxels into one order, whatever the file says."""
    return "Reorient" in reader


def has_volumes(plans_manager: Any) -> bool:
    """Whether the planned cases have more than one voxel along each axis."""
    return min(plans_manager.plans.get("original_median_shape_after_transp") or [1]) > 1


def image_problems(image: np.ndarray, file: str, dataset_json: dict | None) -> list[str]:
    """What is wrong with an opened image of shape (channels, z, y, x), one sentence per problem.

    Without `dataset_json` its channels are not counted.
    """
    channels = image.shape[0] if dataset_json is None else num_channels(dataset_json)
    problems = []
    if image.shape[0] != channels:
        problems.append(f"{file}: {image.shape[0]} channels, but dataset.json names {channels}; give exactly those.")
    if 0 in image.shape:
        return [*problems, f"{file}: has no voxels (shape {list(image.shape)}); replace or remove it."]
    low, high = float(image.min()), float(image.max())  # NaN if there is one
    if not np.isfinite([low, high]).all():
        problems.append(f"{file}: has values that are not finite (NaN or infinite); replace them, e.g. by 0.")
    elif low == high:
        problems.append(f"{file}: all its values are {low:g}, it shows nothing; replace or remove it.")
    elif max(-low, high) > LARGEST:
        problems.append(
            f"{file}: has values up to {max(-low, high):.1g}, too large to normalise; rescale or replace it."
        )
    return problems


def spacing_problems(file: str, spacing: Sequence[float], volumes: bool) -> list[str]:
    """What is wrong with the spacing (z, y, x) that nnU-Net's reader gives; with `volumes` a 2D image is wrong."""
    sides = np.asarray(spacing, dtype=float)
    if sides.shape != (3,) or not np.isfinite(sides).all() or (sides <= 0).any():
        return [f"{file}: its spacing is {sides.tolist()}; it must be three positive numbers. Correct the header."]
    if volumes and sides[0] >= FLAT * sides[1:].max():
        return [f"{file}: is a 2D image, but the labeled cases are volumes; give the whole volume, or remove it."]
    return []


def _header_problems(files: Sequence[str]) -> list[str]:
    """Spacings of NIfTI files that SimpleITK would take for 1 without a word."""
    problems = []
    for file in files:
        if (header := nifti_header(file)) is None:
            continue
        order, content = header
        axes = min(3, struct.unpack_from(f"{order}h", content, 40)[0])
        spacing = struct.unpack_from(f"{order}3f", content, 80)[:axes]
        if not np.isfinite(spacing).all() or 0 in spacing:
            problems.append(
                f"{file}: its header says that the spacing is {list(spacing)}; it must be positive numbers (mm). "
                "Correct the header."
            )
    return problems


def _geometry_problems(files: Sequence[str], reoriented: bool) -> list[str]:
    """Channels of a case that do not lie on the first one: shape, spacing, origin and orientation.

    Args:
        reoriented: they are brought into one order of voxels first, as nnU-Net's reader does.
    """
    if len(files) < 2 or not all(Path(file).name.endswith(WITH_GEOMETRY) for file in files):
        return []
    try:
        first, *others = [_reoriented(file) if reoriented else geometry(file) for file in files]
    except Exception:  # the reader will say
        return []
    return [
        f"{file}: its {what} is {_short_of(now)}, but that of {Path(files[0]).name} is {_short_of(was)}: the channels "
        "of a case must lie on each other. Resample it to the first channel, or correct the header."
        for file, other in zip(files[1:], others, strict=True)
        for what, was, now in _differences(first, other)
    ]


def geometry(file: str) -> dict[str, list[float]]:
    """What the header of an image says of where it lies: shape, spacing, orientation and origin (x, y, z)."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    found = {
        "shape": reader.GetSize(),
        "spacing": reader.GetSpacing(),
        "orientation": reader.GetDirection(),
        "origin": reader.GetOrigin(),
    }
    return {name: [float(value) for value in values] for name, values in found.items()}


def _reoriented(file: str) -> dict[str, list[float]]:
    """As `geometry`, of the image with its voxels along the axes of the room, as far as that can be (x, y, z)."""
    import nibabel

    image: Any = nibabel.load(file)
    turn = nibabel.io_orientation(image.affine)
    affine = image.affine @ nibabel.orientations.inv_ornt_aff(turn, image.shape[:3])
    sides = nibabel.affines.voxel_sizes(affine)
    shape = [image.shape[old] for old in np.argsort(turn[:, 0])]
    found = {"shape": shape, "spacing": sides, "orientation": (affine[:3, :3] / sides).ravel(), "origin": affine[:3, 3]}
    return {name: [float(value) for value in values] for name, values in found.items()}


def _short_of(values: list[float]) -> list[float]:
    return [float(f"{value:.7g}") for value in values]


def _differences(one: dict, other: dict) -> list[tuple[str, list[float], list[float]]]:
    """Forgiven is a hundredth in orientation, half a voxel of the origin, and of the spacing what nnU-Net forgives."""
    if one["shape"] != other["shape"]:
        return [("shape", one["shape"], other["shape"])]
    found = [] if np.allclose(one["spacing"], other["spacing"]) else ["spacing"]
    limits = {"orientation": 0.01, "origin": 0.5 * min(one["spacing"])}
    found += [name for name, limit in limits.items() if np.abs(np.subtract(one[name], other[name])).max() > limit]
    return [(name, one[name], other[name]) for name in found]


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
