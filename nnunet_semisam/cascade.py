"""Cascades: the unlabeled cases of a trainer get the previous stage's prediction, as its labeled cases have one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_results
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_semisam.checkpoint import KEY, random_state, read_checkpoint, restore_random_state, stock_trainer_name
from nnunet_semisam.data.dataset import labeled_cases
from nnunet_semisam.data.pool import unlabeled_pool
from nnunet_semisam.data.previous_stage import (
    PreviousStage,
    predict_previous_stage,
    require_blind,
    require_labeled,
    require_trained,
)
from nnunet_semisam.data.splits import every_split, hidden_cases, read_split


def find_stage(
    trainer: type, plans_manager: PlansManager, dataset_json: dict, cascade: str, fold: int | str
) -> PreviousStage:
    """The previous stage as this trainer class has trained it, or else the stock class of the same architecture."""
    trainers = list(dict.fromkeys((trainer.__name__, stock_trainer_name(trainer))))
    return PreviousStage.find(plans_manager, dataset_json, cascade, fold, trainers)


def stage_of(trainer: nnUNetTrainer) -> PreviousStage:
    """The previous stage of a cascaded trainer."""
    where = trainer.plans_manager, trainer.dataset_json, trainer.configuration_name, trainer.fold
    return find_stage(type(trainer), *where)


def one_hot_channels(trainer: nnUNetTrainer) -> int:
    """How many of the network's input channels, behind those of the image, are the previous stage's labels."""
    return len(trainer.label_manager.foreground_labels) if trainer.is_cascaded else 0


def labeled_folder(trainer: nnUNetTrainer) -> str | None:
    """What the trainer's `folder_with_segs_from_previous_stage` shall be."""
    known = trainer.is_cascaded and nnUNet_results.is_set()
    return str(stage_of(trainer).labeled_folder) if known else trainer.folder_with_segs_from_previous_stage


def prepare_previous_stage(
    trainer: nnUNetTrainer, *, allow_val: bool, skipped: list[str] | None = None
) -> dict[str, Path]:
    """Predicts what is missing for the trainer's unlabeled cases; returns the files of all, as `predict_unlabeled`.

    Raises:
        ValueError: the previous stage is not trained, has not predicted the labeled cases, or may have seen labels of
            hidden ones; the cure is in the message.
    """
    stage = stage_of(trainer)
    require_trained(stage)
    labeled, validated = trainer.do_split()
    splits = Path(nnUNet_preprocessed) / stage.plans_manager.dataset_name / "splits_final.json"
    require_labeled(stage, sorted({*labeled, *validated}))
    hidden = hidden_cases(splits).get(trainer.fold, ())
    if folds := folds_that_saw(splits, hidden, labeled):
        trainer.print_to_log_file(
            f"WARNING: semisam: predictions of {stage.configuration} for labeled cases come from fold {folds}, whose "
            f'training saw labels that fold {trainer.fold} hides; list the same cases as "unlabeled" in all folds'
        )
    return predict_unlabeled(stage, allow_val=allow_val, device=trainer.device, skipped=skipped)


def folds_that_saw(splits_file: Path, hidden: Sequence[str], labeled: Sequence[str]) -> list[int]:
    """Folds whose previous stage predicts some of the labeled cases and was trained on labels of hidden ones."""
    every = enumerate(every_split(splits_file))
    return [n for n, split in every if {*split.val} & {*labeled} and {*split.labeled} & {*hidden}]


def previous_stage_files(trainer: nnUNetTrainer, cases: dict[str, Path]) -> dict[str, Path] | None:
    """Prediction of every unlabeled case, made by `prepare_previous_stage`; None where there is no previous stage.

    That of a labeled case is nnU-Net's own.
    """
    if not trainer.is_cascaded:
        return None
    stage, labeled = stage_of(trainer), trainer.do_split()[0]
    return {case: (stage.labeled_folder if case in labeled else stage.folder) / f"{case}.b2nd" for case in cases}


def predict_unlabeled(
    stage: PreviousStage,
    *,
    allow_val: bool,
    device: torch.device,
    num_processes: int | None = None,
    skipped: list[str] | None = None,
) -> dict[str, Path]:
    """Predicts the unlabeled cases of the stage's fold as far as necessary; returns the files of all.

    The global random generators are as before: a training draws the same whether it finds predictions or makes them.

    Args:
        skipped: as for `unlabeled_pool`; cases whose image one of the two stages cannot use are left out.

    Raises:
        ValueError: as `unlabeled_pool`, `predict_previous_stage` and `require_blind`.
    """
    folder = Path(nnUNet_preprocessed) / stage.plans_manager.dataset_name
    known = labeled_cases(folder / stage.cascade_manager.data_identifier)
    splits_file = folder / "splits_final.json"
    require_trained(stage)
    hidden = read_split(splits_file, stage.fold, known=known, allow_unlabeled_val=allow_val).unlabeled
    require_blind(stage, hidden, splits_file, _labels_seen(stage) if hidden else None)
    images, targets = (
        unlabeled_pool(
            stage.plans_manager, manager, stage.dataset_json, stage.fold,
            allow_unlabeled_val=allow_val, num_processes=num_processes, skipped=skipped, required=False,
        )
        for manager in (stage.manager, stage.cascade_manager)
    )  # fmt: skip
    images = {case: file for case, file in images.items() if case in targets}
    before = random_state()
    try:
        return predict_previous_stage(stage, images, targets, device=device)
    finally:
        restore_random_state(before)


def _labels_seen(stage: PreviousStage) -> list[str] | None:
    """The cases whose labels the stage's model has learned from; None where the checkpoint does not say."""
    try:
        return read_checkpoint(str(stage.checkpoint)).get(KEY, {}).get("labels_seen")
    except ValueError:  # objects of somebody else's trainer; or damaged, which the prediction will say
        return None
