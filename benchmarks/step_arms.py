"""The trainers that are timed: stock, mean teacher, and SemiSAM with one or more generalists, on one data set."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import step_data
import torch
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

from nnunet_semisam.config import SamConfig
from nnunet_semisam.readiness import Readiness
from nnunet_semisam.sam import build_backend, find_backend
from nnunet_semisam.sam.base import SamBackend
from nnunet_semisam.teacher import EmaTeacher
from nnunet_semisam.trainer import SemiSAM, nnUNetTrainerMeanTeacher, nnUNetTrainerSemiSAM


@dataclass(frozen=True)
class Task:
    """What is trained: plans and data set, on a device; `seeing` lets teachers see what is in made-up images."""

    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    configuration: str
    fold: int
    device: str
    seeing: bool = False

    @classmethod
    def prepared(cls, dataset: str, configuration: str, *, fold: int, plans: str, device: str) -> Task:
        """A data set that nnU-Net has planned and preprocessed."""
        name = int(dataset) if dataset.isdecimal() else dataset
        folder = Path(str(nnUNet_preprocessed)) / maybe_convert_to_dataset_name(name)
        read = [json.loads((folder / file).read_text()) for file in (f"{plans}.json", "dataset.json")]
        return cls(*read, configuration, fold, device)

    @classmethod
    def made_up(cls, patch_size: Sequence[int], *, batch_size: int, features: Sequence[int], device: str) -> Task:
        """The data set that `step_data.write` has written."""
        plans = step_data.plans(patch_size, batch_size, features)
        return cls(plans, step_data.DATASET_JSON, step_data.CONFIGURATION, 0, device, seeing=True)


@dataclass(frozen=True)
class Arm:
    """A trainer class under a name, which generalist it asks, and its `semisam` section where it has one."""

    name: str
    trainer: type
    sam: SamConfig | None = None
    section: dict[str, Any] | None = None


def arms(backends: Sequence[str], settings: Sequence[str] = ()) -> list[Arm]:
    """Stock, mean teacher, SemiSAM with each of the backends (NAME or NAME=CHECKPOINT), and settings (NAME=JSON)."""
    found = [Arm("stock", nnUNetTrainer), Arm("mean teacher", nnUNetTrainerMeanTeacher)]
    for given in backends:
        backend, _, checkpoint = given.partition("=")
        arguments = {"input_size": 1024} if backend == "medsam" else {}
        sam = SamConfig(backend=backend, checkpoint=checkpoint or None, backend_args=arguments)
        found.append(Arm(f"SemiSAM, {backend}", nnUNetTrainerSemiSAM, sam))
    for name, _, section in (setting.partition("=") for setting in settings):
        found.append(Arm(f"SemiSAM, {name}", nnUNetTrainerSemiSAM, section=json.loads(section)))
    if len({arm.name for arm in found}) < len(found):
        raise ValueError(f"two arms of one name: {', '.join(arm.name for arm in found)}")
    return found


def started(arm: Arm, task: Task) -> Any:
    """A trainer of the arm, ready for a step with all its terms: SAM is asked about all classes, and was not tuned.

    On CUDA convolutions choose their kernels by timing them, as nnUNetv2_train has it.
    """
    torch.backends.cudnn.benchmark = True
    plans = copy.deepcopy(task.plans) | {"continue_training": False}
    if arm.section is not None:
        plans["configurations"][task.configuration]["semisam"] = arm.section
    trainer = arm.trainer(plans, task.configuration, task.fold, dict(task.dataset_json), torch.device(task.device))
    if isinstance(trainer, SemiSAM) and (sam := arm.sam or trainer.semisam.sam) is not None:
        trainer.semisam = replace(trainer.semisam, sam=replace(sam, tune=0, trust=None))
    with mock.patch("nnunet_semisam.trainer.build_backend", built):
        trainer.on_train_start()
    if isinstance(trainer, SemiSAM):
        made_ready(trainer.readiness)
    trainer.on_train_epoch_start()
    return trainer


def stopped(trainer: Any) -> None:
    """Ends the processes of its loaders, as nnU-Net does at the end of a training."""
    for name in ("dataloader_train", "dataloader_val", "dataloader_unlabeled"):
        if hasattr(loader := getattr(trainer, name, None), "_finish"):
            loader._finish()


def made_ready(readiness: Readiness) -> None:
    """It counts as it does in training, and is ready whatever it finds: an untrained network knows no class."""
    readiness.judge = lambda *_: None  # type: ignore[method-assign]


def built(config: SamConfig, device: torch.device, spacing: Sequence[float] | None = None) -> SamBackend:
    """The backend; with random weights where it needs a checkpoint and none is given."""
    kind: Any = find_backend(config.backend)
    if config.checkpoint is not None or not kind.needs_checkpoint:
        return build_backend(config, device, spacing)
    if config.backend == "sam_med3d":
        from nnunet_semisam.sam.med3d import Med3D

        return kind(Med3D(), device, spacing=spacing, **config.backend_args)
    from segment_anything import sam_model_registry

    return kind.from_network(sam_model_registry["vit_b"](), device, **config.backend_args)


@contextlib.contextmanager
def good_teachers(task: Task) -> Iterator[None]:
    """While open, teachers on made-up images run their network, and then say what is in the image.

    An untrained teacher sees objects everywhere, or none: neither is what SAM is asked about in a training.
    """
    if not task.seeing:
        yield
        return
    ask = EmaTeacher.__call__

    def seeing(teacher: EmaTeacher, image: torch.Tensor) -> torch.Tensor:
        ask(teacher, image)
        return step_data.seen_in(image)

    with mock.patch.object(EmaTeacher, "__call__", seeing):
        yield
