"""The part of `nnUNetv2_semisam_check` about labeled cases as nnU-Net has preprocessed them."""

from __future__ import annotations

import contextlib
import pickle
from pathlib import Path
from typing import TYPE_CHECKING

import blosc2
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from tqdm import tqdm

from nnunet_semisam.data.dataset import PlannedDataset
from nnunet_semisam.data.labeled import LabeledCases
from nnunet_semisam.data.splits import hidden_cases, names

if TYPE_CHECKING:
    from nnunet_semisam.cli.check import Report


def check_labels(planned: PlannedDataset, manager: ConfigurationManager, report: Report) -> None:
    """Reads the preprocessed label of every case that no fold hides; what is wrong goes into the report."""
    labels = planned.plans_manager.get_label_manager(planned.dataset_json)
    folder = planned.folder / manager.data_identifier
    for case in tqdm(_seen_cases(planned, manager, report), desc="Checking labels"):
        report.problem(*_problems(folder, case, labels))


def check_shapes(planned: PlannedDataset, manager: ConfigurationManager, report: Report) -> None:
    """Tells of labeled cases that were preprocessed before the plans were made anew with another spacing.

    Unlabeled images always follow the plans, so the two would differ.
    """
    plain = manager.configuration.get("preprocessor_name") == DefaultPreprocessor.__name__
    if not plain or "no_resampling" in str(manager.configuration.get("resampling_fn_data")):
        return
    folder, old = planned.folder / manager.data_identifier, dict[str, tuple[list[int], list[int]]]()
    for case in _seen_cases(planned, manager, report):
        with contextlib.suppress(Exception):  # what cannot be read is told elsewhere
            shapes = _shapes(folder / f"{case}.b2nd", planned.plans_manager, manager)
            old |= {case: shapes} if shapes and shapes[0] != shapes[1] else {}
    for case, (is_now, would_be) in list(old.items())[:1]:
        report.problem(
            f"{folder}: {names(sorted(old))} older than the plans: {case} has the shape {is_now}, and the plans make "
            f"{would_be} of its image. Unlabeled images will be preprocessed by the plans. Run nnUNetv2_preprocess -d "
            f"{planned.name} -plans_name {planned.plans_manager.plans_name} again"
        )


def _shapes(
    file: Path, plans_manager: PlansManager, manager: ConfigurationManager
) -> tuple[list[int], list[int]] | None:
    """Voxels (z, y, x) of a preprocessed image, and those that nnU-Net would give it now; None where nobody knows."""
    properties = pickle.loads(file.with_suffix(".pkl").read_bytes())
    if (before := properties.get("shape_after_cropping_and_before_resampling")) is None:
        return None
    spacing = [properties["spacing"][axis] for axis in plans_manager.transpose_forward]
    target = [*spacing[: len(spacing) - len(manager.spacing)], *manager.spacing]  # 2D: slices stay as they are
    planned = compute_new_shape(before, spacing, target)
    return list(blosc2.open(str(file), mode="r").shape[1:]), [int(side) for side in planned]


def _seen_cases(planned: PlannedDataset, manager: ConfigurationManager, report: Report) -> list[str]:
    hidden = set().union(*(report.attempt(hidden_cases, planned.folder / "splits_final.json") or {}).values())
    return [case for case in report.attempt(planned.labeled_cases, manager) or [] if case not in hidden]


def _problems(folder: Path, case: str, labels: LabelManager) -> list[str]:
    try:
        return LabeledCases(folder, [case], labels).label_problems()
    except Exception as error:  # noqa: BLE001 (a damaged file makes readers fail in any way)
        return [f"{folder / case}: cannot be read ({type(error).__name__}: {error}); run nnUNetv2_preprocess again"]
