"""`nnUNetv2_semisam_check`: the unlabeled pool and the set-up, checked before hours are spent."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

    from nnunet_semisam.config import SemiSAMConfig
    from nnunet_semisam.data.dataset import PlannedDataset

DEFAULT_FOLDS = 5  # nnU-Net's cross-validation, where no splits_final.json is given


@dataclass
class Report:
    """What was found: facts for the reader, problems that keep training from starting or spoil it, and warnings.

    A warning is what may be meant; it does not make the command fail.
    """

    facts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def attempt(self, check: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Result of a check, or None if it raised one of the errors that are meant for users."""
        try:
            return check(*args, **kwargs)
        except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
            self.problem(*str(error).split("\n"))

    def problem(self, *found: str) -> None:
        """Adds problems; what is already known (another configuration has it, too) is not repeated."""
        self.problems += [problem for problem in found if problem not in self.problems]

    def warning(self, *found: str) -> None:
        """Adds warnings that are not known yet."""
        self.warnings += [warning for warning in found if warning not in self.warnings]

    def __str__(self) -> str:
        lines = [*self.facts, f"{len(self.problems)} problem(s):" if self.problems else "no problem found."]
        lines += [f"  - {problem}" for problem in self.problems]
        lines += [f"{len(self.warnings)} warning(s):"] if self.warnings else []
        return "\n".join([*lines, *(f"  - WARNING: {warning}" for warning in self.warnings)])


def check_setup(
    dataset: int | str,
    *,
    configurations: list[str] | None = None,
    plans_name: str = "nnUNetPlans",
    fold: int | str | None = None,
) -> Report:
    """Opens every image of `imagesUn`, checks splits and `semisam` sections, builds the SAMs; changes nothing.

    Args:
        configurations: None = the usual ones and those with a `semisam` section, as far as they are preprocessed.
        fold: None = all folds of `splits_final.json`.

    Raises:
        ValueError: no such data set, plans or configuration.
    """
    from nnunet_semisam.cli.check_images import check_images
    from nnunet_semisam.data.dataset import PlannedDataset

    planned = PlannedDataset.open(dataset, plans_name)
    chosen = planned.configurations(configurations or _usual(planned))
    report = Report([f"data set: {planned.name}, plans: {plans_name}"])
    images = check_images(planned, report)
    for name, manager in chosen.items():
        config = _check_section(name, manager.configuration.get("semisam", {}), report, classes=_classes(planned))
        folder = planned.folder / manager.data_identifier
        if configurations is None and not folder.is_dir():
            report.facts.append(f"{name}: not preprocessed, splits not checked")
        else:
            known = report.attempt(planned.labeled_cases, manager)
            if known:
                allow = config is not None and config.allow_unlabeled_val
                hidden = _check_splits(
                    planned, known, images, report, fold=fold, name=name, allow_unlabeled_val=allow,
                    required=config is None or not config.labeled_as_unlabeled,
                )  # fmt: skip
                _check_hidden(planned, manager, hidden, report)
                _check_previous_stage(planned, name, manager, report, fold=fold)
    return report


def _usual(planned: PlannedDataset) -> list[str]:
    from nnunet_semisam.data.dataset import DEFAULT_CONFIGURATIONS

    every = planned.configurations(planned.plans_manager.available_configurations)
    return [
        name for name, manager in every.items() if name in DEFAULT_CONFIGURATIONS or "semisam" in manager.configuration
    ]


def _classes(planned: PlannedDataset) -> list[str]:
    from nnunet_semisam.data.labeled import head_names

    labels = planned.plans_manager.get_label_manager(planned.dataset_json)
    return head_names(labels)[0 if labels.has_regions else 1 :]


def _check_section(name: str, section: dict, report: Report, *, classes: list[str]) -> SemiSAMConfig | None:
    """The configuration that the section makes, if it is right; SAM is built on the CPU where training would ask it."""
    import torch

    from nnunet_semisam.cli.plan import check_section
    from nnunet_semisam.config import SemiSAMConfig
    from nnunet_semisam.sam import build_backend
    from nnunet_semisam.trust import configured_trust

    known = len(report.problems)
    config = report.attempt(SemiSAMConfig().with_section, section)
    if config is not None and section:
        report.attempt(check_section, section)
        if "sam" in config.active_terms():
            report.attempt(configured_trust, config.sam, classes)
            report.attempt(build_backend, config.sam, torch.device("cpu"))
    for index in range(known, len(report.problems)):
        report.problems[index] = f"configuration {name}: {report.problems[index]}"
    return config


def _check_splits(
    planned: PlannedDataset, known: list[str], images: list[str], report: Report, *,
    fold: int | str | None, name: str, allow_unlabeled_val: bool, required: bool,
) -> list[str]:  # fmt: skip
    """The hidden cases of the checked folds."""
    from nnunet_semisam.data.preprocess import raw_folder_of
    from nnunet_semisam.data.raw_pool import FOLDER
    from nnunet_semisam.data.splits import (
        collision_problems,
        no_case_message,
        num_folds,
        read_split,
        training_cases_in_val,
    )

    splits_file = planned.folder / "splits_final.json"
    place = (raw_folder_of(planned.name) or Path(planned.name)) / FOLDER
    report.problem(*collision_problems(images, known, place))
    splits = {}
    if fold != "all" and not splits_file.is_file():
        _check_default_split(splits_file, known, report, fold=fold, name=name)
    for number in range(report.attempt(num_folds, splits_file) or 0) if fold is None else [fold]:
        split = report.attempt(read_split, splits_file, number, known=known, allow_unlabeled_val=allow_unlabeled_val)
        if split:
            splits[number] = split
            report.warning(*training_cases_in_val(split, splits_file, number))
            unlabeled = f"{len(split.unlabeled)} hidden + {len(images)} from {FOLDER} unlabeled"
            report.facts.append(
                f"{name}, fold {number}: labeled and validation cases chosen by nnU-Net, {unlabeled} case(s)"
                if number != "all" and not split.labeled and not split.val
                else f"{name}, fold {number}: {len(split.labeled) or 'all'} labeled, {unlabeled}, "
                f"{len(split.val)} validation case(s)"
            )
    hidden = sorted({case for split in splits.values() for case in split.unlabeled})
    if required and not images and not hidden and (splits or fold is None):
        report.problem(no_case_message(place, splits_file, "(any)" if fold is None else fold))
    return hidden


def _check_default_split(
    splits_file: Path, known: list[str], report: Report, *, fold: int | str | None, name: str
) -> None:
    """What becomes of a data set whose splits nnU-Net is to make: five folds, if there are cases enough."""
    import json

    enough = len(known) >= DEFAULT_FOLDS
    if fold is None:
        writes = "; nnU-Net writes it when the first training starts" if enough else ""
        report.facts.append(f"{name}: folds 0 to 4 not checked, there is no {splits_file.name} yet{writes}")
    if enough:
        return
    example = json.dumps([{"train": known[:-1], "val": known[-1:]}])
    cure = f"write it yourself, for instance {example}, or train fold all" if len(known) > 1 else "train fold all"
    tell = report.warning if fold is None else report.problem  # fold "all" may be meant; a fold that is asked for fails
    tell(
        f"{splits_file} does not exist, and nnU-Net's own split into {DEFAULT_FOLDS} folds fails with {len(known)} "
        f"labeled case(s): {cure}."
    )


def _check_hidden(planned: PlannedDataset, manager: ConfigurationManager, hidden: list[str], report: Report) -> None:
    from nnunet_semisam.data.hidden import find_hidden, label_shapes_image

    if label_shapes_image(manager):
        report.attempt(find_hidden, hidden, planned.name, planned.plans_manager, manager, planned.dataset_json)


def _check_previous_stage(
    planned: PlannedDataset, name: str, manager: ConfigurationManager, report: Report, *, fold: int | str | None
) -> None:
    """Whether the stage before a cascade is trained: a problem for a fold that is asked for, else a warning."""
    from nnunetv2.paths import nnUNet_results

    if manager.previous_stage_name is None or not nnUNet_results.is_set():
        return
    from nnunet_semisam.cascade import find_stage
    from nnunet_semisam.data.previous_stage import require_trained
    from nnunet_semisam.data.splits import num_folds
    from nnunet_semisam.trainer import nnUNetTrainerSemiSAM

    where = nnUNetTrainerSemiSAM, planned.plans_manager, planned.dataset_json, name
    folds = range(report.attempt(num_folds, planned.folder / "splits_final.json") or 0)
    for number in folds if fold is None else [fold]:
        try:
            require_trained(find_stage(*where, number))
        except ValueError as error:
            (report.warning if fold is None else report.problem)(str(error))


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns 1 if there is a problem; warnings do not count."""
    args = _parser().parse_args(argv)
    try:
        report = check_setup(args.d, configurations=args.c, plans_name=args.p, fold=args.f)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report)
    return 1 if report.problems else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_semisam_check",
        description="Checks the unlabeled images, the splits, the semisam sections of the plans and the SAM "
        "checkpoints of a data set, and lists all problems. Nothing is changed.",
    )
    parser.add_argument("-d", required=True, metavar="ID", help="number or name of the data set")
    parser.add_argument("-c", nargs="+", metavar="CONFIGURATION", help="default: those that are preprocessed")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="name of the plans (default: %(default)s)")
    parser.add_argument("-f", metavar="FOLD", type=_fold, help='number of a fold or "all" (default: every fold)')
    return parser


def _fold(text: str) -> int | str:
    return text if text == "all" else int(text)


if __name__ == "__main__":
    sys.exit(main())
