"""The part of `nnUNetv2_semisam_check` that opens every image of `imagesUn`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tqdm import tqdm

from nnunet_semisam.data.copies import copied_images
from nnunet_semisam.data.dataset import PlannedDataset
from nnunet_semisam.data.image_checks import has_volumes, open_problems
from nnunet_semisam.data.label_like import MAX_VALUES, label_like_files, label_problems
from nnunet_semisam.data.likeness import starts_at_zero, unlike_labeled
from nnunet_semisam.data.preprocess import raw_folder_of
from nnunet_semisam.data.raw_pool import FOLDER, files_of_labeled, files_per_case, scan_unlabeled
from nnunet_semisam.data.splits import names
from nnunet_semisam.data.truncated import not_finite_files

if TYPE_CHECKING:
    import numpy as np

    from nnunet_semisam.cli.check import Report


class Images(NamedTuple):
    """Names of the cases in `imagesUn`."""

    usable: list[str]
    to_mend: list[str]


def check_images(planned: PlannedDataset, report: Report, *, skips: bool) -> Images:
    """The cases in `imagesUn`; what is wrong with images goes into the report.

    Args:
        skips: whether training leaves out what is wrong, so that it is no problem and nothing is to be mended.
    """
    known = len(report.problems)
    raw_folder = raw_folder_of(planned.name)
    if raw_folder is None:
        report.facts.append(f"{FOLDER}: not checked, this machine has no raw folder of {planned.name} (nnUNet_raw)")
        return Images([], [])
    cases, problems = scan_unlabeled(raw_folder, planned.dataset_json)
    report.problem(*(sentence for _, sentence in problems))
    bad = {case for spoiled, _ in problems for case in spoiled} | _open(planned, report, cases, raw_folder)
    usable = [case for case in cases if case not in bad]
    more = f", {len(bad)} that cannot be used" if bad else ""
    report.facts.append(f"{raw_folder / FOLDER}: {len(usable)} usable case(s){more}")
    if skips:
        report.warning(*(f"left out, since skip_bad is true: {problem}" for problem in report.problems[known:]))
        del report.problems[known:]
    labeled = files_of_labeled(raw_folder, planned.dataset_json)
    reader = planned.plans_manager.image_reader_writer_class.__name__
    unlike = unlike_labeled({case: cases[case] for case in usable}, labeled, reader)
    report.warning(*(f"{raw_folder / FOLDER}: {text}" for text in unlike))
    for file, twin in copied_images(cases, labeled):
        report.warning(
            f"{raw_folder / FOLDER}: {file} is a copy of {twin}, a labeled image. As a validation case it would be "
            "measured on an image that training has seen; to hide a label, list the case as "
            '"unlabeled" in splits_final.json instead. Remove the copy.'
        )
    return Images(usable, [] if skips else sorted(bad))


def _open(planned: PlannedDataset, report: Report, cases: dict[str, list[str]], raw_folder: Path) -> set[str]:
    """The cases whose content is wrong."""
    labels: list[str] = []
    endless: list[str] = []
    offset: list[str] = []
    found: list[str] = []  # in the case that is looked at
    bad = set()

    def look(files: list[str], image: np.ndarray) -> None:
        found.extend(label_problems(files, image, planned.dataset_json, planned.plans_manager.plans))
        if not found:
            labels.extend(Path(file).name for file in label_like_files(files, image))
            endless.extend(Path(file).name for file in not_finite_files(files))
            offset.extend([Path(files[0]).name] * starts_at_zero(image, planned.plans_manager.plans, content))

    manager, content = planned.plans_manager, planned.dataset_json
    num_files, volumes = files_per_case(raw_folder, content), has_volumes(manager)
    for case, files in tqdm(cases.items(), desc="Checking unlabeled images"):
        found.clear()
        reader = manager.image_reader_writer_class()
        found.extend(open_problems({case: files}, reader, content, num_files=num_files, volumes=volumes, look=look))
        report.problem(*found)
        bad |= {case} if found else set()
    _warn(report, f"{raw_folder / FOLDER}", labels, endless, offset)
    return bad


def _warn(report: Report, folder: str, labels: list[str], endless: list[str], offset: list[str]) -> None:
    if offset:
        report.warning(
            f"{folder}: {names(offset)} without any negative value, which labeled CT images have in their foreground. "
            "CT values are Hounsfield units, air at -1000; take the offset off where they were stored from 0 on."
        )
    if endless:
        report.warning(
            f"{folder}: {names(endless)} not finite everywhere (NaN or infinite voxels). SimpleITK reads 0 there, in "
            "labeled images alike; nothing is wrong where that is meant, else replace these values."
        )
    if labels:
        report.warning(
            f"{folder}: {names(labels)} made of integers, of at most {MAX_VALUES} different ones, as labels are. "
            "Remove what is a label; nothing is wrong where such a channel is meant."
        )
