"""The engine: nnU-Net's trainer with an unlabeled stream, an EMA teacher and a SAM that the teacher prompts.

SemiSAM (Zhang et al. 2023, https://arxiv.org/abs/2312.06316) as a mixin for nnU-Net v2 trainers. nnU-Net's loop,
planning, augmentation, validation and prediction stay its own.
"""

from __future__ import annotations

import os
import time
from io import BytesIO
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.helpers import empty_cache

from nnunet_semisam import cascade, resume, stream
from nnunet_semisam.checkpoint import (
    KEY,
    plain,
    read_checkpoint,
    reopen,
    restore_random_state,
    seed_everything,
    stock_trainer_name,
    write_atomically,
    write_teacher_checkpoint,
)
from nnunet_semisam.collapse import build_collapse_guard
from nnunet_semisam.config import SemiSAMConfig
from nnunet_semisam.curves import Curves
from nnunet_semisam.data.disk import writing
from nnunet_semisam.data.labeled import class_names
from nnunet_semisam.data.loader import close_unlabeled_loader
from nnunet_semisam.guards import StepGuard
from nnunet_semisam.methods import build_method
from nnunet_semisam.methods._sam_assisted import SamAssisted
from nnunet_semisam.ops.outputs import OutputSpace
from nnunet_semisam.readiness import NOT_COUNTED, Readiness
from nnunet_semisam.sam import build_backend
from nnunet_semisam.sam.labeler import SamLabeler
from nnunet_semisam.step import SemiSupervisedStep
from nnunet_semisam.teacher import EmaTeacher
from nnunet_semisam.trust import settle_trust, tested_trust
from nnunet_semisam.tuning import tune_generalist

CHECKPOINTS = 20  # in a training, at least: with nnU-Net's 1000 epochs every 50, as there; one of 49 would have none
LONGEST = 1800  # seconds without a checkpoint: jobs are killed on clusters, and an epoch may take minutes


class SemiSAM(SemiSupervisedStep):
    """Mixin for nnU-Net trainers: `class MyTrainer(SemiSAM, nnUNetTrainerDA5)`.

    Configuration: defaults < `preset` of the class < `semisam` section of the configuration in the plans file. With
    every term at weight 0 the stock `train_step` runs on stock batches.
    """

    preset = SemiSAMConfig()
    uses_sam = True  # False: without SAM, whatever the section says

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int | str,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net reads exactly this signature)
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.previous_channels = cascade.one_hot_channels(self)
        self.folder_with_segs_from_previous_stage = cascade.labeled_folder(self)
        self.semisam = self.preset.of_configuration(
            self.configuration_manager.configuration,
            f"configuration {configuration} of {self.plans_manager.plans_name}.json",
            uses_sam=self.uses_sam,
        )
        for name in ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch"):
            setattr(self, name, getattr(self.semisam, name) or getattr(self, name))
        self.save_every: int = min(self.save_every, max(1, self.num_epochs // CHECKPOINTS))  # type: ignore[has-type]
        self.outputs = OutputSpace(self.label_manager.num_segmentation_heads, self.label_manager.has_regions)
        self.method = build_method(self.semisam.method, self.semisam.method_args, self.outputs)
        self.semisam.require_terms((*self.method.term_names, "sam"))
        self.sam_assisted: SamAssisted | None = None
        self.teacher: EmaTeacher | None = None
        self.trust: dict[str, float] | None = None
        self.dataloader_unlabeled: Any = None
        self.curves = Curves()
        self.guard = StepGuard(self.semisam.max_bad_steps)
        self.collapse = build_collapse_guard(self, self.outputs, on=self.semisam.collapse_guard)
        self.readiness = Readiness(self.outputs, class_names(self.label_manager), self.semisam.min_labeled_dice)
        self.iteration = 0
        self.labels_seen: set[str] | None = set()  # cases whose labels these weights have learned from; None: unknown
        self._saved = time.monotonic()
        self._resumed: dict[str, Any] | None = None
        self._changed: list[str] = []  # since the checkpoint was written
        self._geometry: tuple | None = None

    # --- nnU-Net's life cycle -----------------------------------------------------------------------------------

    def initialize(self) -> None:
        if self.semisam.seed is not None:
            seed_everything(self.semisam.seed + self.local_rank)
        super().initialize()

    def on_train_start(self) -> None:
        resume.refuse(self._changed)
        if not self.was_initialized:
            self.initialize()
        resumed, self._resumed = self._resumed, None
        if self.semisam.active_terms():
            self.sam_assisted = None if self.is_finished else self.build_sam()
            self.teacher = EmaTeacher(self.network, self.outputs, decay=self.semisam.ema_decay)
            if resumed is not None and resumed["teacher"] is not None:
                self.teacher.load_state_dict(resumed["teacher"])
        super().on_train_start()
        if self.sam_assisted is not None:
            with self.autocast():  # as it is asked in training
                self.trust = settle_trust(self, self.sam_assisted.labeler, tested_trust(resumed))
            tune_generalist(self, self.sam_assisted.labeler.backend)
            self.sam_assisted = self.sam_assisted if any(self.trust.values()) else None
        elif self.is_finished:
            self.trust = (resumed or {}).get("trust")
        if resumed and self.local_rank == 0:
            restore_random_state(resumed["random_state"])
        elif resumed:  # the file has the generators of rank 0; the others must not draw the same
            seed_everything(self.iteration * 1000 + self.local_rank)
        self._reopen()  # last: what is refused above must leave a finished model as it is

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self):  # noqa: N802 (nnU-Net's name)
        self._geometry = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        return self._geometry

    def get_dataloaders(self):
        if self.is_finished:
            return super().get_dataloaders()
        asks = bool(self.semisam.active_terms())
        pool = stream.prepare_pool(self, self.semisam) if asks else {}
        stream.note_labels(self, pool)
        stream.write_configuration(self, pool if asks else None)
        loaders = super().get_dataloaders()
        if asks:
            extra = stream.labeled_images(self) if self.semisam.labeled_as_unlabeled else {}
            self.dataloader_unlabeled = stream.open_stream(
                self, pool | extra, self._geometry, batch_size=self.semisam.unlabeled_batch_size
            )
        if self.semisam.seed is not None:
            for loader in (*loaders, self.dataloader_unlabeled):
                stream.choose_no_kernels_by_timing(loader)
        return loaders

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        super().on_train_epoch_end(self.guard.end_epoch(self, train_outputs))
        for name, value in sorted(self.curves.end_epoch(self.current_epoch).items()):
            self.print_to_log_file(f"semisam {name}: {value:.5g}")
            for logger in self.logger.loggers:
                logger.log(f"semisam/{name}", value, self.current_epoch)

    def on_epoch_end(self) -> None:
        overdue = time.monotonic() - self._saved > LONGEST and not self.disable_checkpointing
        usual = self.save_every
        self.save_every = 1 if overdue else usual
        with writing(self.output_folder):
            super().on_epoch_end()
            self.save_every = usual
            if self.local_rank == 0:
                self.curves.plot(os.path.join(self.output_folder, "progress_semisam.png"))

    def on_train_end(self) -> None:
        super().on_train_end()
        if self.teacher is not None and not self.readiness.ready:
            self.print_to_log_file(
                f"WARNING: semisam: {NOT_COUNTED}: {self.readiness.reason()}. Train longer, or look at the labels; "
                "min_labeled_dice = 0 lets unlabeled patches count all the same, and can lose a class"
            )
        if self.teacher is not None and self.local_rank == 0 and not self.disable_checkpointing:
            write_teacher_checkpoint(self.output_folder)
        close_unlabeled_loader(self.dataloader_unlabeled)
        self.sam_assisted = None  # its memory is the last validation's
        empty_cache(self.device)

    # --- set-up and files ---------------------------------------------------------------------------------------

    @property
    def is_finished(self) -> bool:
        """Is nothing learned any more? Continued after a kill in the last validation, a training only validates."""
        return bool(self.current_epoch >= self.num_epochs)

    def build_sam(self) -> SamAssisted | None:
        """The method with SAM at its side; None where no term asks for SAM.

        SAM gets a first look at an empty patch: what it cannot serve is an error now, not after hours.
        """
        if self.semisam.sam is None or "sam" not in self.semisam.active_terms():
            return None
        backend = build_backend(self.semisam.sam, self.device, self.configuration_manager.spacing)
        labeler = SamLabeler(backend, self.semisam.sam, self.outputs, say=self.print_to_log_file)
        patch = (1, self.num_input_channels - self.previous_channels, *self.configuration_manager.patch_size)
        with self.autocast():
            labeler.probe(torch.zeros(patch, device=self.device))
        return SamAssisted(self.method, labeler, self.semisam.terms["sam"].every)

    def _reopen(self) -> None:
        goes_on = 0 < self.current_epoch < self.num_epochs and not self.disable_checkpointing
        if goes_on and self.local_rank == 0 and reopen(self.output_folder):
            self.print_to_log_file("semisam: a finished training goes on; its final checkpoint is now the latest")

    def save_checkpoint(self, filename: str) -> None:
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        if not filename.endswith("_best.pth"):  # nnU-Net resumes from the latest, if there is one
            self._saved = time.monotonic()
        buffer = BytesIO()
        super().save_checkpoint(buffer)
        buffer.seek(0)
        checkpoint = torch.load(buffer, map_location="cpu", weights_only=False)
        checkpoint["trainer_name"] = stock_trainer_name(type(self))
        checkpoint[KEY] = resume.state_of(self)
        write_atomically(plain(checkpoint), filename)

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        checkpoint = filename_or_checkpoint
        if not isinstance(checkpoint, dict):
            checkpoint = read_checkpoint(checkpoint)
        self._changed = resume.compare(self, checkpoint)
        super().load_checkpoint(filename_or_checkpoint)  # nnU-Net reads the file again
        self._resumed = resume.take_up(self, checkpoint)


class nnUNetTrainerSemiSAM(SemiSAM, nnUNetTrainer):  # noqa: N801 (nnU-Net's naming)
    """Student, EMA teacher, and SAM prompted by the teacher (SemiSAM, arXiv 2312.06316)."""


class nnUNetTrainerMeanTeacher(SemiSAM, nnUNetTrainer):  # noqa: N801
    """Student and EMA teacher (arXiv 1703.01780), without SAM: the teacher alone has the weight of both."""

    uses_sam = False
