"""From a protocol to the runs and steps that carry it out, with every mistake found before anything starts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from nnunet_semisam.benchmark.arms import Arm
from nnunet_semisam.benchmark.dataset import find_dataset
from nnunet_semisam.benchmark.launch import Launcher
from nnunet_semisam.benchmark.protocol import Protocol
from nnunet_semisam.benchmark.runs import Run, expand
from nnunet_semisam.benchmark.steps import Steps
from nnunet_semisam.cli.plan import check_section, missing_files
from nnunet_semisam.presets import find_trainer
from nnunet_semisam.trust import configured_trust


def plan_steps(work: Path, protocol: Protocol, launcher: Launcher) -> Steps:
    """All runs of a protocol in a work folder; starts and writes nothing.

    Raises:
        ValueError: a data set, a splits file or an arm is not right.
    """
    datasets = [find_dataset(given) for given in protocol.datasets]
    numbers = [dataset.number for dataset in datasets]
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"datasets: two have the same number ({', '.join(d.name for d in datasets)}); rename one")
    length = {"num_epochs": protocol.epochs, "num_iterations_per_epoch": protocol.iterations}
    for arm in protocol.arms:
        with _of(arm):
            check_section({**arm.section, **length})
    runs = expand(protocol, datasets)
    for arm in protocol.arms:
        with _of(arm):
            _check(arm, [run for run in runs if run.arm == arm])
    return Steps(work, runs, launcher)


@contextlib.contextmanager
def _of(arm: Arm) -> Iterator[None]:
    """Errors are told with the name of the arm."""
    try:
        yield
    except (ValueError, ImportError) as error:
        raise ValueError(f"arm {arm.name}: {error}") from error


def _check(arm: Arm, runs: list[Run]) -> None:
    """What would end a training of the arm after hours of others."""
    trainer = find_trainer(arm.trainer)
    if trainer is None:
        require_trainer(arm.trainer)
        return
    config = trainer.preset.with_section(arm.section, uses_sam=trainer.uses_sam)
    for dataset in {run.dataset.name: run.dataset for run in runs}.values():
        if config.sam is not None:
            configured_trust(config.sam, list(dataset.classes))
    if missing := missing_files(arm.section) if trainer.uses_sam else []:
        raise ValueError(missing[0])
    needs_cases = config.active_terms() and not config.labeled_as_unlabeled
    if needs_cases and (alone := [run for run in runs if not run.fold.unlabeled]):
        raise ValueError(
            f"{alone[0].title} has no unlabeled case left; lower budgets, or set the weights of its terms to 0"
        )


def require_trainer(name: str) -> None:
    """Raises ValueError if nnU-Net does not find a trainer of that name."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    try:
        with contextlib.redirect_stdout(None):
            recursive_find_trainer_class_by_name(name)
    except RuntimeError as error:
        raise ValueError(f"nnU-Net finds no trainer {name!r}; nnUNet_extTrainer names folders of your own") from error
