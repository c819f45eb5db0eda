"""Cascades: what the stage before predicts for unlabeled cases, on the grid of the cascade's images.

nnU-Net writes such predictions (`predicted_next_stage`) for validation cases only. For unlabeled cases they are made
here, by the model of the same fold, from images that were preprocessed without labels. They lie beside nnU-Net's own:
`TRAINER__PLANS__3d_lowres/semisam_predicted_next_stage/DATA_IDENTIFIER/fold_0/CASE.b2nd`. Only what is missing or
outdated (another checkpoint, other images, other plans) is predicted.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import blosc2
import torch
from nnunetv2.configuration import default_num_processes
from nnunetv2.inference.export_prediction import resample_and_save
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.paths import nnUNet_results
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.helpers import empty_cache
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from tqdm import tqdm

from nnunet_semisam.data.manifest import Manifest, settings_hash
from nnunet_semisam.data.partial import partial_folder
from nnunet_semisam.data.splits import names
from nnunet_semisam.paths import sha256_of

FOLDER = "semisam_predicted_next_stage"
NNUNET_FOLDER = "predicted_next_stage"
CHECKPOINT = "checkpoint_final.pth"


@dataclass(frozen=True)
class PreviousStage:
    """The stage before a cascade, as trained on one fold.

    Args:
        model_folder: `TRAINER__PLANS__CONFIGURATION` in `nnUNet_results`.
        configuration: name of the stage, like `3d_lowres`.
        cascade: name of the cascaded configuration.
    """

    model_folder: Path
    configuration: str
    cascade: str
    fold: int | str
    plans_manager: PlansManager
    dataset_json: dict

    @classmethod
    def find(
        cls, plans_manager: PlansManager, dataset_json: dict, cascade: str, fold: int | str, trainers: Sequence[str]
    ) -> PreviousStage:
        """The stage trained by the first of the `trainers` that has finished this fold; else of the first."""
        name = plans_manager.get_configuration(cascade).previous_stage_name
        results = Path(str(nnUNet_results)) / plans_manager.dataset_name
        folders = [results / f"{trainer}__{plans_manager.plans_name}__{name}" for trainer in trainers]
        stages = [cls(folder, name, cascade, fold, plans_manager, dataset_json) for folder in folders]
        return next((stage for stage in stages if stage.checkpoint.is_file()), stages[0])

    @property
    def manager(self) -> ConfigurationManager:
        return self.plans_manager.get_configuration(self.configuration)

    @property
    def cascade_manager(self) -> ConfigurationManager:
        return self.plans_manager.get_configuration(self.cascade)

    @property
    def checkpoint(self) -> Path:
        return self.model_folder / f"fold_{self.fold}" / CHECKPOINT

    @property
    def folder(self) -> Path:
        """Where our predictions for unlabeled cases lie."""
        return self.model_folder / FOLDER / self.cascade_manager.data_identifier / f"fold_{self.fold}"

    @property
    def labeled_folder(self) -> Path:
        """Where nnU-Net's predictions for labeled cases lie: under the cascade's name, or under that of another cascade
        on the same images (a configuration that inherits from it)."""
        own = self.model_folder / NNUNET_FOLDER / self.cascade
        shared = self.cascade_manager.data_identifier
        known = [n for n in self.manager.next_stage_names or () if n in self.plans_manager.available_configurations]
        same = [n for n in known if self.plans_manager.get_configuration(n).data_identifier == shared]
        return own if self.cascade in same or not same else own.with_name(same[0])

    def settings(self) -> str:
        """Hash of what decides the predictions: the checkpoint's content and the plans of both stages."""
        managers = self.manager, self.cascade_manager
        decisive = [sha256_of(self.checkpoint), *(settings_hash(self.plans_manager, manager) for manager in managers)]
        return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:16]


def predict_previous_stage(
    stage: PreviousStage,
    images: Mapping[str, Path],
    targets: Mapping[str, Path],
    *,
    device: torch.device,
    show_progress: bool = True,
) -> dict[str, Path]:
    """Predicts the cases that are missing or outdated; returns the file of every case: labels (z, y, x) in blosc2.

    Args:
        images: preprocessed image of each case for the previous stage, (C, z, y, x).
        targets: that for the cascade, whose grid the prediction gets.

    Raises:
        ValueError: the stage is not trained.
    """
    require_trained(stage)
    manifest = Manifest.load(stage.folder, stage.settings(), source=stage.configuration)
    shapes = {case: _shape(file)[1:] for case, file in targets.items()}
    jobs = [case for case in images if not _is_done(manifest, case, images[case], shapes[case])]
    manifest.keep_times()
    if jobs:
        title = f"Predicting unlabeled cases with {stage.configuration}, fold {stage.fold}"
        predictor = _predictor(stage, device)
        with partial_folder(stage.folder) as partial:
            for case in tqdm(jobs, desc=title, disable=not show_progress):
                _predict(predictor, stage, images[case], shapes[case], partial / case)
                os.replace(partial / f"{case}.b2nd", manifest.image(case))
                manifest.add(case, [str(images[case])])
                manifest.save()
        empty_cache(device)
    return {case: manifest.image(case) for case in images}


def require_trained(stage: PreviousStage) -> None:
    """Refuses a stage that was not trained.

    Raises:
        ValueError: there is no final checkpoint of the fold; the message has the command.
    """
    if not stage.checkpoint.is_file():
        raise ValueError(missing_stage(stage))


def missing_stage(stage: PreviousStage) -> str:
    """What to do about a stage that was not trained."""
    trainer, dataset = stage.model_folder.name.split("__")[0], stage.plans_manager.dataset_name
    return (
        f"{stage.cascade} needs {stage.configuration} first, but there is no {stage.checkpoint}; run: "
        f"nnUNetv2_train {dataset} {stage.configuration} {stage.fold} -tr {trainer} -p {stage.plans_manager.plans_name}"
    )


def require_labeled(stage: PreviousStage, cases: Sequence[str]) -> None:
    """Refuses to go on without nnU-Net's own predictions for the fold's labeled and validation cases.

    Raises:
        ValueError: some are missing; the message names them and what makes them.
    """
    folder = stage.labeled_folder
    if missing := sorted(case for case in cases if not (folder / f"{case}.b2nd").is_file()):
        raise ValueError(
            f"{names(missing)} without prediction of {stage.configuration} in {folder}. nnU-Net predicts a case when "
            f'it validates the fold that has it in "val": train {stage.configuration} on every fold of '
            "splits_final.json (or validate again with --val), and let each labeled case be a validation case of one "
            'fold. Fold "all" needs fold all only.'
        )


def require_blind(
    stage: PreviousStage, hidden: Sequence[str], splits_file: Path, labels_seen: Sequence[str] | None
) -> None:
    """Refuses a model that may have seen labels of hidden cases.

    Our trainers keep in the checkpoint which labels it has learned from, and older ones wrote down which cases were
    unlabeled. Of a model of nnU-Net's trainer is known only that it was trained on the `train` list of its time; so
    the splits file must be older.

    Args:
        labels_seen: what the checkpoint says; None: nothing.

    Raises:
        ValueError: the model has seen such a label, or nobody can tell.
    """
    record = stage.checkpoint.with_name("semisam_unlabeled.json")
    if labels_seen is None and record.is_file():
        labels_seen = sorted(set(hidden) - set(json.loads(record.read_text())))
    cure = f"Train {stage.configuration}, fold {stage.fold}, again"
    if seen := sorted(set(hidden) & set(labels_seen or ())):
        raise ValueError(
            f'{names(seen)} hidden ("unlabeled" in {splits_file}), but not when {stage.checkpoint} was trained: its '
            f"predictions may tell of their labels. {cure}."
        )
    if hidden and labels_seen is None and splits_file.stat().st_mtime > stage.checkpoint.stat().st_mtime:
        raise ValueError(
            f"{splits_file} is newer than {stage.checkpoint}, so that this model may have been trained on labels which "
            f"are hidden now. {cure}; or, if its fold has not changed since: touch {stage.checkpoint}"
        )


def _predict(predictor: nnUNetPredictor, stage: PreviousStage, image: Path, shape: Sequence[int], out: Path) -> None:
    """nnU-Net's own prediction and export; of the case's properties only the number of axes has a say in it."""
    data = torch.from_numpy(blosc2.open(str(image), mode="r")[:])
    logits = predictor.predict_logits_from_preprocessed_data(data)
    spacing = list(stage.cascade_manager.spacing)
    properties = {
        "spacing": [spacing[axis] for axis in stage.plans_manager.transpose_backward],
        "shape_after_cropping_and_before_resampling": list(shape),
    }
    managers = stage.plans_manager, stage.manager
    resample_and_save(
        logits, list(shape), str(out), *managers, properties, stage.dataset_json,
        min(default_num_processes, torch.get_num_threads()), nnUNetDatasetBlosc2,
    )  # fmt: skip


def _predictor(stage: PreviousStage, device: torch.device) -> nnUNetPredictor:
    predictor = nnUNetPredictor(device=device, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(stage.model_folder), (stage.fold,), CHECKPOINT)
    predictor.network.to(device).eval()
    return predictor


def _is_done(manifest: Manifest, case: str, image: Path, shape: Sequence[int]) -> bool:
    return manifest.is_done(case, [str(image)]) and _shape(manifest.image(case)) == tuple(shape)


def _shape(file: Path) -> tuple[int, ...]:
    return tuple(blosc2.open(str(file), mode="r").shape)
