"""The part of `nnUNetv2_semisam_check` about folds: splits, hidden cases, and the stage before a cascade."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2.paths import nnUNet_results

from nnunet_semisam.cascade import find_stage
from nnunet_semisam.data.dataset import PlannedDataset
from nnunet_semisam.data.hidden import find_hidden, label_shapes_image
from nnunet_semisam.data.manifest import Manifest
from nnunet_semisam.data.preprocess import open_manifest, preprocessed_elsewhere, raw_folder_of, refuse_vanished
from nnunet_semisam.data.previous_stage import missing_stage
from nnunet_semisam.data.raw_pool import FOLDER, LABELED_FOLDER
from nnunet_semisam.data.splits import (
    DEFAULT_FOLDS,
    Split,
    collision_problems,
    names,
    no_case_message,
    num_folds,
    read_split,
    too_few_for_default,
    training_cases_in_val,
)

if TYPE_CHECKING:
    from nnunet_semisam.cli.check import Report
    from nnunet_semisam.cli.check_images import Images
    from nnunet_semisam.config import SemiSAMConfig


def check_folds(
    planned: PlannedDataset, name: str, images: Images, report: Report, *,
    config: SemiSAMConfig | None, fold: int | str | None, trainers: Sequence[type],
) -> None:  # fmt: skip
    """Checks the folds of the preprocessed configuration `name`; what is found goes into the report.

    Args:
        images: of `imagesUn`.
        config: from the configuration's section; None if that is wrong.
        fold: None = all of `splits_final.json`.
        trainers: of which one must have trained the stage before a cascade.
    """
    manager = planned.plans_manager.get_configuration(name)
    known = report.attempt(planned.labeled_cases, manager)
    if not known:
        return
    manifest = report.attempt(open_manifest, planned.name, planned.plans_manager, manager, FOLDER)
    if manifest is None:
        return
    vanished = not any(images) and _have_vanished(planned, manifest, report)
    if raw_folder_of(planned.name) is None:
        images = images._replace(usable=report.attempt(_preprocessed, planned, manifest, name, report) or [])
    hidden = _check_splits(
        planned, known, images, report, fold=fold, name=name,
        allow_unlabeled_val=config is not None and config.allow_unlabeled_val,
        required=not vanished and (config is None or not config.labeled_as_unlabeled),
    )  # fmt: skip
    if label_shapes_image(manager):
        report.attempt(find_hidden, hidden, planned.name, planned.plans_manager, manager, planned.dataset_json)
    if manager.previous_stage_name is not None and nnUNet_results.is_set():
        _check_previous_stage(planned, name, report, fold=fold, trainers=trainers)


def _have_vanished(planned: PlannedDataset, manifest: Manifest, report: Report) -> bool:
    """Is a raw folder there, but without the images of `imagesUn` that were preprocessed before?"""
    if (raw_folder := raw_folder_of(planned.name)) is None or not manifest.present_cases():
        return False
    report.attempt(refuse_vanished, manifest, raw_folder)
    return True


def _preprocessed(planned: PlannedDataset, manifest: Manifest, name: str, report: Report) -> list[str]:
    """The unlabeled cases that training takes where it has no raw folder."""
    cases = list(preprocessed_elsewhere(manifest, planned.name))
    report.facts.append(f"{name}: {len(cases)} case(s) of {FOLDER} preprocessed before")
    return cases


def _check_splits(
    planned: PlannedDataset, known: list[str], images: Images, report: Report, *,
    fold: int | str | None, name: str, allow_unlabeled_val: bool, required: bool,
) -> list[str]:  # fmt: skip
    """The hidden cases of the checked folds."""
    splits_file = planned.folder / "splits_final.json"
    raw = raw_folder_of(planned.name)
    place = (raw or Path(planned.name)) / FOLDER
    report.problem(*collision_problems(images.usable, known, place, labeled_folder=place.with_name(LABELED_FOLDER)))
    splits = {}
    if fold is None and not splits_file.is_file():
        _announce_default_split(splits_file, known, report, name=name)
    for number in range(report.attempt(num_folds, splits_file) or 0) if fold is None else [fold]:
        split = report.attempt(read_split, splits_file, number, known=known, allow_unlabeled_val=allow_unlabeled_val)
        if split:
            splits[number] = split
            report.warning(*training_cases_in_val(split, splits_file, number))
            more = "" if required else " (and the images of the labeled cases)"
            unlabeled = f"{len(split.unlabeled)} hidden + {len(images.usable)} from {FOLDER}{more} unlabeled"
            report.facts.append(
                f"{name}, fold {number}: labeled and validation cases chosen by nnU-Net, {unlabeled} case(s)"
                if number != "all" and not split.labeled and not split.val
                else f"{name}, fold {number}: {len(split.labeled) or 'all'} labeled, {unlabeled}, "
                f"{len(split.val)} validation case(s){_left_over(split, known)}"
            )
    hidden = sorted({case for split in splits.values() for case in split.unlabeled})
    if required and not any(images) and not hidden and (splits or fold is None):
        unseen = "" if raw else f"nnUNet_raw is not set or holds no {planned.name}; if your images are there, set it. "
        report.problem(unseen + no_case_message(place, splits_file, fold))
    return hidden


def _left_over(split: Split, known: Sequence[str]) -> str:
    """Preprocessed cases that the fold names nowhere, so that nothing comes of them."""
    rest = sorted(set(known) - {*split.labeled, *split.unlabeled, *split.val})
    return f"; {names(rest)} in none of its lists and not used" if rest and split.labeled else ""


def _announce_default_split(splits_file: Path, known: list[str], report: Report, *, name: str) -> None:
    """What becomes of a data set whose splits nnU-Net is to make: five folds, if there are cases enough.

    Too few are no problem yet: fold "all" may be meant.
    """
    writes = "; nnU-Net writes it when the first training starts" if len(known) >= DEFAULT_FOLDS else ""
    report.facts.append(f"{name}: folds 0 to 4 not checked, there is no {splits_file.name} yet{writes}")
    report.warning(*too_few_for_default(splits_file, known))


def _check_previous_stage(
    planned: PlannedDataset, name: str, report: Report, *, fold: int | str | None, trainers: Sequence[type]
) -> None:
    """Warns where none of the trainers has trained the stage before a cascade."""
    folds = range(report.attempt(num_folds, planned.folder / "splits_final.json") or 0)
    for number in folds if fold is None else [fold]:
        stages = [find_stage(kind, planned.plans_manager, planned.dataset_json, name, number) for kind in trainers]
        if not any(stage.checkpoint.is_file() for stage in stages):
            report.warning(f"fold {number}: {missing_stage(stages[0])}")
