"""The part of `nnUNetv2_semisam_check` about labels: values that nnU-Net preprocesses but cannot train on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from tqdm import tqdm

from nnunet_semisam.data.dataset import PlannedDataset
from nnunet_semisam.data.labeled import LabeledCases
from nnunet_semisam.data.splits import hidden_cases

if TYPE_CHECKING:
    from nnunet_semisam.cli.check import Report


def check_labels(planned: PlannedDataset, manager: ConfigurationManager, report: Report) -> None:
    """Reads the preprocessed label of every case that no fold hides; what is wrong goes into the report."""
    labels = planned.plans_manager.get_label_manager(planned.dataset_json)
    folder = planned.folder / manager.data_identifier
    hidden = set().union(*(report.attempt(hidden_cases, planned.folder / "splits_final.json") or {}).values())
    cases = [case for case in report.attempt(planned.labeled_cases, manager) or [] if case not in hidden]
    for case in tqdm(cases, desc="Checking labels"):
        report.problem(*_problems(folder, case, labels))


def _problems(folder: Path, case: str, labels: LabelManager) -> list[str]:
    try:
        return LabeledCases(folder, [case], labels).label_problems()
    except Exception as error:  # noqa: BLE001 (a damaged file makes readers fail in any way)
        return [f"{folder / case}: cannot be read ({type(error).__name__}: {error}); run nnUNetv2_preprocess again"]
