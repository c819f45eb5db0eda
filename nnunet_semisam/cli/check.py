"""`nnUNetv2_semisam_check`: the unlabeled pool and the set-up, checked before hours are spent."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunet_semisam.config import SemiSAMConfig
    from nnunet_semisam.data.dataset import PlannedDataset
    from nnunet_semisam.trainer import SemiSAM


@dataclass
class Report:
    """What was found: facts for the reader, problems that keep training from starting or spoil it, and warnings.

    A warning is what may be meant; it does not make the command fail.
    """

    facts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def _nothing(self) -> str:
        return f"no problem found, but {len(self.warnings)} warning(s):" if self.warnings else "no problem found."

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
        lines = [*self.facts, f"{len(self.problems)} problem(s):" if self.problems else self._nothing()]
        lines += [f"  - {problem}" for problem in self.problems]
        lines += [f"{len(self.warnings)} warning(s):"] if self.warnings and self.problems else []
        return "\n".join([*lines, *(f"  - WARNING: {warning}" for warning in self.warnings)])


def check_setup(
    dataset: int | str,
    *,
    configurations: list[str] | None = None,
    plans_name: str = "nnUNetPlans",
    fold: int | str | None = None,
    trainer: str | None = None,
) -> Report:
    """Opens every image of `imagesUn` and every label that is not hidden, checks splits and `semisam` sections.

    Builds the SAMs as well; changes nothing.

    Args:
        configurations: None = the usual ones and those with a `semisam` section, as far as they are preprocessed.
        fold: None = all folds of `splits_final.json`.
        trainer: name of the class that is to be trained; None = `nnUNetTrainerSemiSAM`, and a cascade may go on from
            what any trainer of this package has trained.

    Raises:
        ValueError: no such data set, plans, configuration or trainer.
    """
    from nnunet_semisam.cli.check_folds import check_folds
    from nnunet_semisam.cli.check_images import check_images
    from nnunet_semisam.cli.check_labels import check_labels, check_shapes
    from nnunet_semisam.data.dataset import PlannedDataset, switched_on

    planned = PlannedDataset.open(dataset, plans_name)
    report = Report([f"data set: {planned.name}, plans: {planned.plans_file}"])
    trainers = _trainers(trainer, report)
    configure = partial(trainers[0].preset.with_section, uses_sam=trainers[0].uses_sam)
    chosen = planned.configurations(configurations or _usual(planned))
    skips = trainers[0].preset.skip_bad or switched_on(planned, list(chosen), "skip_bad")
    images = check_images(planned, report, skips=skips)
    for name, manager in chosen.items():
        config = _check_section(name, manager.configuration, report, configure=configure, classes=_classes(planned))
        if config and config.distribution_alignment and "ignore" in planned.dataset_json["labels"]:
            report.warning(f"{name}: distribution_alignment has no effect: the data set has an ignore label")
        folder = planned.folder / manager.data_identifier
        if configurations is None and not folder.is_dir():
            report.facts.append(f"{name}: not preprocessed, splits not checked")
        else:
            check_folds(planned, name, images, report, config=config, fold=fold, trainers=trainers)
    if made := [manager for manager in chosen.values() if (planned.folder / manager.data_identifier).is_dir()]:
        check_labels(planned, made[0], report)
    for manager in made:
        check_shapes(planned, manager, report)
    return report


def _usual(planned: PlannedDataset) -> list[str]:
    from nnunet_semisam.config import is_section
    from nnunet_semisam.data.dataset import DEFAULT_CONFIGURATIONS

    every = planned.configurations(planned.plans_manager.available_configurations)
    return [
        name
        for name, manager in every.items()
        if name in DEFAULT_CONFIGURATIONS or any(is_section(key) for key in manager.configuration)
    ]


def _classes(planned: PlannedDataset) -> list[str]:
    from nnunet_semisam.data.labeled import class_names

    return class_names(planned.plans_manager.get_label_manager(planned.dataset_json))


def _trainers(name: str | None, report: Report) -> list[type[SemiSAM]]:
    """The class of that name; without a name, and where nnU-Net can find none, those of this package."""
    from nnunet_semisam.cli.lookup import require_torchvision
    from nnunet_semisam.trainer import nnUNetTrainerMeanTeacher, nnUNetTrainerSemiSAM

    report.attempt(require_torchvision)
    return [_find(name)] if name and not report.problems else [nnUNetTrainerSemiSAM, nnUNetTrainerMeanTeacher]


def _find(trainer: str) -> type[SemiSAM]:
    """The class of that name, as nnU-Net's training command finds it."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    from nnunet_semisam.presets import trainer_names
    from nnunet_semisam.trainer import SemiSAM

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net tells where it looks
            found = recursive_find_trainer_class_by_name(trainer)
    except Exception as error:  # noqa: BLE001 (files in a folder of the user's can fail in any way)
        near = difflib.get_close_matches(trainer, trainer_names(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else str(error)
        raise ValueError(f"-tr {trainer}: nnU-Net finds no such trainer; {hint}") from error
    if not (isinstance(found, type) and issubclass(found, SemiSAM)):
        raise ValueError(
            f"-tr {trainer}: it is none of this package and reads no semisam section; leave -tr out: what it trains on "
            "is checked as well"
        )
    return found


def _check_section(
    name: str, configuration: dict[str, Any], report: Report, *,
    configure: Callable[[Mapping[str, Any]], SemiSAMConfig], classes: list[str],
) -> SemiSAMConfig | None:  # fmt: skip
    """The configuration that the section makes, if it is right; SAM is built on the CPU where training would ask it."""
    import torch

    from nnunet_semisam.cli.plan import check_configuration
    from nnunet_semisam.config import SECTION, SemiSAMConfig, section_of
    from nnunet_semisam.sam import build_backend
    from nnunet_semisam.trust import configured_trust

    known = len(report.problems)
    config = report.attempt(lambda: configure(section_of(configuration)))
    if config is not None and (configuration.get(SECTION) or config != SemiSAMConfig()):
        report.attempt(check_configuration, config)
        if "sam" in config.active_terms():
            report.attempt(configured_trust, config.sam, classes)
            report.attempt(build_backend, config.sam, torch.device("cpu"))
    for index in range(known, len(report.problems)):
        report.problems[index] = f"configuration {name}: {report.problems[index]}"
    return config


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns 1 if there is a problem; warnings do not count."""
    args = _parser().parse_args(argv)
    try:
        report = check_setup(args.d, configurations=args.c, plans_name=args.p, fold=args.f, trainer=args.tr)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report)
    return 1 if report.problems else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_semisam_check",
        description="Checks the unlabeled images, the values of the labels, the splits, the semisam sections of the "
        "plans and the SAM checkpoints of a data set, and lists all problems. Nothing is changed.",
    )
    parser.add_argument("-d", required=True, metavar="ID", help="number or name of the data set")
    parser.add_argument(
        "-c",
        nargs="+",
        metavar="CONFIGURATION",
        help="default: those that are preprocessed, and those with a semisam section",
    )
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="name of the plans (default: %(default)s)")
    parser.add_argument("-f", metavar="FOLD", type=_fold, help='number of a fold or "all" (default: every fold)')
    parser.add_argument("-tr", metavar="TRAINER", help="class to be trained (default: nnUNetTrainerSemiSAM)")
    return parser


def _fold(text: str) -> int | str:
    return text if text == "all" else int(text)


if __name__ == "__main__":
    sys.exit(main())
