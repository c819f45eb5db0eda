"""The images of `imagesUn/`: unlabeled cases of a raw data set, named like those of `imagesTr`.

Listing looks at names only and opens no file. `open_problems` opens images, for the check command.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_semisam.data.splits import collision_problems, names
from nnunet_semisam.data.truncated import truncation_problems

FOLDER = "imagesUn"
LABELED_FOLDER = "imagesTr"
CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")


def list_unlabeled(raw_folder: str | Path, dataset_json: dict) -> dict[str, list[str]]:
    """Image files of every unlabeled case, in channel order: `{case: [file, ...]}`; empty without a folder `imagesUn`.

    Raises:
        ValueError: with one line for every file or case that is wrong.
    """
    cases, problems = scan_unlabeled(raw_folder, dataset_json)
    if problems:
        raise ValueError("\n".join(problems))
    return cases


def scan_unlabeled(raw_folder: str | Path, dataset_json: dict) -> tuple[dict[str, list[str]], list[str]]:
    """The cases of `imagesUn` and what is wrong with their names, one sentence per problem."""
    folder = Path(raw_folder) / FOLDER
    if not folder.is_dir():
        return {}, []
    ending = dataset_json["file_ending"]
    cases, problems = _sorted_into_cases(folder, ending)
    labeled = _labeled_channels(Path(raw_folder), dataset_json)
    problems += _channel_problems(cases, folder, _expected_channels(labeled, dataset_json))
    problems += _name_problems(cases, folder)
    problems += collision_problems(cases, labeled, folder)
    files = {
        case: [os.path.join(folder, f"{case}_{channel}{ending}") for channel in sorted(channels)]
        for case, channels in sorted(cases.items())
    }
    return files, problems


def files_of_labeled(raw_folder: str | Path, dataset_json: dict, wanted: Iterable[str]) -> dict[str, list[str]]:
    """Image files, in channel order, of those of the `wanted` cases of `imagesTr` that have some."""
    folder, ending = Path(raw_folder) / LABELED_FOLDER, dataset_json["file_ending"]
    if "dataset" in dataset_json:  # the files are listed there, and may lie anywhere
        listed = {case: entry["images"] for case, entry in dataset_json["dataset"].items()}
        files = {case: [os.path.join(raw_folder, os.path.expandvars(file)) for file in listed[case]] for case in listed}
    else:
        found = _labeled_channels(Path(raw_folder), dataset_json)
        files = {
            case: [os.path.join(folder, f"{case}_{channel}{ending}") for channel in sorted(channels)]
            for case, channels in found.items()
        }
    return {case: files[case] for case in wanted if case in files and all(map(os.path.isfile, files[case]))}


def files_per_case(raw_folder: str | Path, dataset_json: dict) -> int | None:
    """How many files a case has by the names in `imagesTr`; None if they do not tell."""
    expected = _expected_channels(_labeled_channels(Path(raw_folder), dataset_json), dataset_json)
    return None if expected is None else len(expected)


def open_problems(
    cases: Mapping[str, list[str]],
    reader: Any,
    dataset_json: dict,
    *,
    num_files: int | None = None,
    look: Callable[[list[str], np.ndarray], None] = lambda files, image: None,
    progress: Any = iter,
) -> list[str]:
    """Opens every image with nnU-Net's `reader` object; what is wrong, one sentence per problem.

    Checked: the files are whole and open, the channels are as many as in `dataset.json`, the spacing is three positive
    numbers, and all values are finite (SimpleITK reads NaN in a NIfTI file as 0).

    Args:
        num_files: the channels of cases with another number of files are not counted: `scan_unlabeled` has told.
        look: gets the files and the image of every case that opens.
    """
    problems = []
    for case in progress(list(cases)):
        if cut := truncation_problems(cases[case]):
            problems += cut
            continue
        try:
            image, properties = reader.read_images(cases[case])
        except Exception as error:
            problems.append(f"{cases[case][0]}: {type(reader).__name__} cannot open it ({_short(error)}); replace it.")
            continue
        look(cases[case], image)
        counted = num_files is None or len(cases[case]) == num_files
        problems += image_problems(image, cases[case][0], dataset_json if counted else None)
        spacing = np.asarray(properties["spacing"], dtype=float)
        if spacing.shape != (3,) or not np.isfinite(spacing).all() or (spacing <= 0).any():
            problems.append(f"{cases[case][0]}: its spacing is {spacing.tolist()}; it must be three positive numbers.")
    return problems


def image_problems(image: np.ndarray, file: str, dataset_json: dict | None) -> list[str]:
    """What is wrong with an opened image of shape (channels, z, y, x), one sentence per problem.

    Without `dataset_json` its channels are not counted.
    """
    channels = image.shape[0] if dataset_json is None else num_channels(dataset_json)
    problems = []
    if image.shape[0] != channels:
        problems.append(f"{file}: {image.shape[0]} channels, but dataset.json names {channels}; give exactly those.")
    if not np.isfinite(image).all():
        problems.append(f"{file}: has values that are not finite (NaN or infinite); replace them, e.g. by 0.")
    return problems


def num_channels(dataset_json: dict) -> int:
    """Number of image channels that `dataset.json` names (`modality` is the older key)."""
    return len(dataset_json["modality"] if "modality" in dataset_json else dataset_json["channel_names"])


def _sorted_into_cases(folder: Path, ending: str) -> tuple[dict[str, list[str]], list[str]]:
    cases: dict[str, list[str]] = {}
    problems = []
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if entry.name.startswith(".") or _is_spacing_file(entry.name, ending):
            continue
        if entry.is_dir():
            problems.append(f"{entry.path} is a folder; move its images to {folder} itself.")
        elif not entry.name.endswith(ending):
            problems.append(
                f"{entry.path} does not end in '{ending}', the file_ending of dataset.json; convert or remove it."
            )
        elif match := CHANNEL.fullmatch(entry.name[: -len(ending)]):
            cases.setdefault(match["case"], []).append(match["channel"])
        else:
            problems.append(
                f"{entry.path} has no channel number ('_0000' before '{ending}'): labels are named like this and have "
                f"no place in {FOLDER}; remove it, or rename it if it is an image."
            )
    return cases, problems


def _is_spacing_file(name: str, ending: str) -> bool:
    """Tiff images may have their spacing in `CASE.json` beside them."""
    return ending in (".tif", ".tiff") and name.endswith(".json")


def _labeled_channels(raw_folder: Path, dataset_json: dict) -> dict[str, list[str]]:
    """Channel numbers of every labeled case by file name; none where dataset.json lists the files itself."""
    if "dataset" in dataset_json:
        return {case: [] for case in dataset_json["dataset"]}
    folder = raw_folder / LABELED_FOLDER
    return _sorted_into_cases(folder, dataset_json["file_ending"])[0] if folder.is_dir() else {}


def _expected_channels(labeled: Mapping[str, list[str]], dataset_json: dict) -> tuple[str, ...] | None:
    """What imagesTr has (an RGB file is one file with three channels); without it, unknown."""
    counted = Counter(tuple(sorted(channels)) for channels in labeled.values() if channels)
    if counted:
        return counted.most_common(1)[0][0]
    return ("0000",) if num_channels(dataset_json) == 1 else None


def _channel_problems(cases: Mapping[str, list[str]], folder: Path, expected: tuple[str, ...] | None) -> list[str]:
    if expected is None:
        return []
    return [
        f"{folder}: case '{case}' has the channel(s) {', '.join(sorted(channels))}, but the cases of imagesTr have "
        f"{', '.join(expected)}; add or remove files."
        for case, channels in cases.items()
        if tuple(sorted(channels)) != expected
    ]


def _name_problems(cases: Iterable[str], folder: Path) -> list[str]:
    problems = [
        f"{folder}: case '{case}' ends in '_seg', which nnU-Net keeps for label files; rename the image."
        for case in cases
        if case.endswith("_seg")
    ]
    alike: dict[str, list[str]] = {}
    for case in cases:
        alike.setdefault(case.casefold(), []).append(case)
    problems += [
        f"{folder}: {names(same)} the same but for upper and lower case, which some file systems do not tell apart; "
        "rename one."
        for same in alike.values()
        if len(same) > 1
    ]
    return problems


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
