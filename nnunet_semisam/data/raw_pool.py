"""The images of `imagesUn/`: unlabeled cases of a raw data set, named like those of `imagesTr`.

Listing looks at names only and opens no file; `image_checks` opens them.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from nnunet_semisam.data.fingerprint import TIFF
from nnunet_semisam.data.splits import collision_problems, names

FOLDER = "imagesUn"
LABELED_FOLDER = "imagesTr"
CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>[0-9]{4})")
Problem = tuple[tuple[str, ...], str]  # the cases that it spoils, and a sentence


def list_unlabeled(
    raw_folder: str | Path, dataset_json: dict, *, skipped: list[str] | None = None
) -> dict[str, list[str]]:
    """Image files of every unlabeled case, in channel order: `{case: [file, ...]}`; empty without a folder `imagesUn`.

    Args:
        skipped: a list leaves out what is wrong and takes the sentences about it.

    Raises:
        ValueError: with one line for every file or case that is wrong.
    """
    cases, problems = scan_unlabeled(raw_folder, dataset_json)
    sentences = [sentence for _, sentence in problems]
    if sentences and skipped is None:
        raise ValueError(
            "\n".join(sentences) + "\nNothing was preprocessed. Correct or remove these, or leave them out with "
            "skip_bad=true in the section of the configuration (nnUNetv2_semisam_preprocess, for itself: --skip-bad). "
            "nnUNetv2_semisam_check lists what is wrong inside the images, too."
        )
    if skipped is not None:
        skipped += sentences
    bad = {case for spoiled, _ in problems for case in spoiled}
    return {case: files for case, files in cases.items() if case not in bad}


def scan_unlabeled(raw_folder: str | Path, dataset_json: dict) -> tuple[dict[str, list[str]], list[Problem]]:
    """The cases of `imagesUn` and what is wrong with their names."""
    folder = Path(raw_folder) / FOLDER
    if not folder.is_dir():
        return {}, []
    ending = dataset_json["file_ending"]
    cases, sentences = _sorted_into_cases(folder, ending)
    problems: list[Problem] = [((), sentence) for sentence in sentences]
    labeled = _labeled_channels(Path(raw_folder), dataset_json)
    problems += _channel_problems(cases, folder, _expected_channels(labeled, dataset_json))
    problems += _name_problems(cases, folder)
    problems += _spacing_problems(cases, folder, labeled, ending)
    shared = tuple(sorted(set(cases) & set(labeled)))
    problems += [(shared, sentence) for sentence in collision_problems(cases, labeled, folder)]
    place = str(folder)
    files = {
        case: [os.path.join(place, f"{case}_{channel}{ending}") for channel in sorted(channels)]
        for case, channels in sorted(cases.items())
    }
    return files, problems


def files_of_labeled(
    raw_folder: str | Path, dataset_json: dict, wanted: Iterable[str] | None = None
) -> dict[str, list[str]]:
    """Image files, in channel order, of those of the `wanted` cases of `imagesTr` (None: all) that have some."""
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
    chosen = (case for case in (files if wanted is None else wanted) if case in files)
    return {case: files[case] for case in chosen if files[case] and all(map(os.path.isfile, files[case]))}


def files_per_case(raw_folder: str | Path, dataset_json: dict) -> int | None:
    """How many files a case has by the names in `imagesTr`; None if they do not tell."""
    expected = _expected_channels(_labeled_channels(Path(raw_folder), dataset_json), dataset_json)
    return None if expected is None else len(expected)


def num_channels(dataset_json: dict) -> int:
    """Number of image channels that `dataset.json` names (`modality` is the older key)."""
    return len(dataset_json["modality"] if "modality" in dataset_json else dataset_json["channel_names"])


def _sorted_into_cases(folder: Path, ending: str) -> tuple[dict[str, list[str]], list[str]]:
    cases: dict[str, list[str]] = {}
    problems = []
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if entry.name.startswith(".") or _is_spacing_file(entry.name, ending):
            continue
        path = entry.path.encode(errors="backslashreplace").decode()  # a name that is no text can be printed, too
        if _is(entry, os.path.isdir, entry.is_dir):
            problems.append(f"{path} is a folder; move its images to {folder} itself.")
        elif path != entry.path:
            problems.append(f"{path}: the name is not valid UTF-8; rename it.")
        elif not _is(entry, os.path.isfile, entry.is_file):
            problems.append(f"{path} is {_no_file(entry)}; put the image itself there, or remove it.")
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


def _is(entry: os.DirEntry, of_target: Callable[[str], bool], of_entry: Callable[[], bool]) -> bool:
    """What the listing of the folder has told already is not asked again, for every file; links are followed."""
    return of_target(entry.path) if entry.is_symlink() else of_entry()


def _no_file(entry: os.DirEntry) -> str:
    if entry.is_symlink():
        return f"a link to {os.readlink(entry.path)}, which is not there"
    return "no ordinary file (a pipe, a socket or a device)"


def _is_spacing_file(name: str, ending: str) -> bool:
    """Tiff images may have their spacing in `CASE.json` beside them."""
    return ending in TIFF and name.endswith(".json")


def _spacing_problems(cases: Iterable[str], folder: Path, labeled: Iterable[str], ending: str) -> Iterator[Problem]:
    """Where labeled tiffs have a spacing file and unlabeled ones do not: nnU-Net would take 1 for each spacing."""
    beside = folder.with_name(LABELED_FOLDER)
    if ending not in TIFF or not any(_has_spacing(beside / f"{case}.json") for case in labeled):
        return
    if without := tuple(case for case in sorted(cases) if not (folder / f"{case}.json").is_file()):
        yield (
            without,
            f"{folder}: {names(without)} without a file {without[0]}.json with the spacing, which the labeled images "
            "have beside them; nnU-Net would take 1 along each axis. Copy it, too.",
        )


def _has_spacing(file: Path) -> bool:
    """Is it a file of the kind that nnU-Net's reader of tiff volumes looks at?"""
    try:
        return "spacing" in json.loads(file.read_text())
    except (OSError, ValueError, TypeError):
        return False


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


def _channel_problems(
    cases: Mapping[str, list[str]], folder: Path, expected: tuple[str, ...] | None
) -> Iterator[Problem]:
    for case, channels in cases.items() if expected is not None else ():
        if tuple(sorted(channels)) != expected:
            yield (
                (case,),
                f"{folder}: case '{case}' has the channel(s) {', '.join(sorted(channels))}, but the cases of imagesTr "
                f"have {', '.join(expected)}; add or remove files.",
            )


def _name_problems(cases: Iterable[str], folder: Path) -> Iterator[Problem]:
    alike: dict[str, list[str]] = {}
    for case in cases:
        alike.setdefault(case.casefold(), []).append(case)
        if case.endswith("_seg"):
            yield (
                (case,),
                f"{folder}: case '{case}' ends in '_seg', which nnU-Net keeps for label files; rename the image.",
            )
    for same in alike.values():
        if len(same) > 1:
            yield (
                tuple(same),
                f"{folder}: {names(same)} the same but for upper and lower case, which some file systems do not tell "
                "apart; rename one.",
            )
