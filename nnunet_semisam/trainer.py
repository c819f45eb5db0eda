"""The engine: nnU-Net's trainer with an unlabeled stream, an EMA teacher and a SAM that the teacher prompts.

SemiSAM (Zhang et al. 2023, https://arxiv.org/abs/2312.06316) as a mixin for nnU-Net v2 trainers. nnU-Net's loop,
planning, augmentation, validation and prediction stay its own.
"""

from __future__ import annotations

import math
import os
from functools import partial
from io import BytesIO
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_semisam import cascade, resume, stream
from nnunet_semisam.checkpoint import (
    KEY,
    plain,
    read_checkpoint,
    restore_random_state,
    seed_everything,
    stock_trainer_name,
    write_atomically,
    write_teacher_checkpoint,
)
from nnunet_semisam.collapse import build_collapse_guard, random_crops
from nnunet_semisam.config import SemiSAMConfig
from nnunet_semisam.curves import Curves
from nnunet_semisam.data.disk import writing
from nnunet_semisam.data.labeled import class_names
from nnunet_semisam.data.loader import close_unlabeled_loader
from nnunet_semisam.guards import GRADIENT, SKIPPED, StepGuard, fetch, not_finite
from nnunet_semisam.methods import build_method
from nnunet_semisam.methods._sam_assisted import SamAssisted
from nnunet_semisam.ops.outputs import OutputSpace
from nnunet_semisam.optimization import Optimization
from nnunet_semisam.readiness import NOT_COUNTED, Readiness
from nnunet_semisam.sam import build_backend
from nnunet_semisam.sam.labeler import SamLabeler
from nnunet_semisam.teacher import EmaTeacher
from nnunet_semisam.trust import settle_trust, tested_trust
from nnunet_semisam.tuning import tune_generalist
from nnunet_semisam.types import LabeledBatch


class SemiSAM(Optimization):
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
            self.sam_assisted = self.build_sam()
            self.teacher = EmaTeacher(self.network, self.outputs, decay=self.semisam.ema_decay)
            if resumed is not None and resumed["teacher"] is not None:
                self.teacher.load_state_dict(resumed["teacher"])
        super().on_train_start()
        if self.sam_assisted is not None:
            self.trust = settle_trust(self, self.sam_assisted.labeler, tested_trust(resumed))
            tune_generalist(self, self.sam_assisted.labeler.backend)
            self.sam_assisted = self.sam_assisted if any(self.trust.values()) else None
        if resumed and self.local_rank == 0:
            restore_random_state(resumed["random_state"])
        elif resumed:  # the file has the generators of rank 0; the others must not draw the same
            seed_everything(self.iteration * 1000 + self.local_rank)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self):  # noqa: N802 (nnU-Net's name)
        self._geometry = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        return self._geometry

    def get_dataloaders(self):
        asks = bool(self.semisam.active_terms())
        pool = stream.prepare_pool(self, self.semisam) if asks else {}
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

    def train_step(self, batch: dict) -> dict:
        """One iteration: nnU-Net's loss on labeled patches, and what the method asks on unlabeled ones."""
        weights = self.semisam.weights(self.iteration, self.total_iterations)
        if self.sam_assisted is None:  # there is none, or it is trusted with no class
            weights.pop("sam", None)
        asks = any(weights.values())
        if asks and (line := self.readiness.judge(self.iteration, self.total_iterations)):
            self.print_to_log_file(line)
        weights = weights if self.unlabeled_terms_on else dict.fromkeys(weights, 0.0)
        if asks:
            step = self.semi_supervised_step(batch, weights)
        else:
            step = self.guard.stock_step(self, partial(super().train_step, batch), tuple(batch["keys"]))
        if self.teacher is not None and not self.guard.skipped:
            self.teacher.update(self.network, self.iteration)
        self.curves.add({f"weight/{name}": weight for name, weight in weights.items()})
        self.iteration += 1
        return step

    def semi_supervised_step(self, batch: dict, weights: dict[str, float]) -> dict:
        """Gradient of all terms and one step of the optimiser. A term of weight 0 is not computed, nor SAM called."""
        labeled = LabeledBatch.from_nnunet(batch, self.device)
        unlabeled = stream.next_batch(self)
        self.guard.begin(self.network)

        # what do we believe about the unlabeled patches?
        asks_sam = self.sam_assisted is not None and weights.get("sam", 0) > 0
        source = self.sam_assisted if asks_sam else self.method
        teacher = self.collapse.aligned(self.collapse.watch(self.teacher), self.semisam.distribution_alignment)
        pseudo = {}
        with torch.no_grad(), self.autocast():
            if self.unlabeled_terms_on:
                pseudo = source.pseudo_labels(teacher, unlabeled)
            elif self.collapse.on:
                teacher(unlabeled.image)
        pseudo = {name: label for name, label in pseudo.items() if weights.get(name, 0) > 0}

        # what must the student do about it? (unlabeled first: under DDP the last backward exchanges the gradients)
        self.optimizer.zero_grad(set_to_none=True)
        with self.without_gradient_exchange():
            with self.autocast():
                terms = self.method.terms(self.network, unlabeled, pseudo, labeled) if pseudo else {}
                unsupervised = sum((weights[name] * term for name, term in terms.items()), torch.zeros(()))
            self.backward(unsupervised)
        with self.autocast():
            output = self.network(labeled.image)
            supervised = self.loss(output, labeled.target)
        self.backward(supervised)
        losses = {**terms, "supervised": supervised}

        counts = self.readiness.counts(output, labeled.target)
        counts |= self.collapse.shares(labeled.target, random_crops(self, len(labeled.image)))
        found = self.record(losses, self.clipped_norm(), pseudo, counts, asks_sam)
        if not self.guard.allows(self, found, (*losses, GRADIENT), (*labeled.keys, *unlabeled.keys)):
            return SKIPPED
        self.step_optimizer()
        return {"loss": (supervised + unsupervised).detach().cpu().numpy()}

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        super().on_train_epoch_end(self.guard.end_epoch(self, train_outputs))
        for name, value in sorted(self.curves.end_epoch(self.current_epoch).items()):
            self.print_to_log_file(f"semisam {name}: {value:.5g}")
            for logger in self.logger.loggers:
                logger.log(f"semisam/{name}", value, self.current_epoch)

    def on_epoch_end(self) -> None:
        with writing(self.output_folder):
            super().on_epoch_end()
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

    # --- pieces of a step ---------------------------------------------------------------------------------------

    @property
    def total_iterations(self) -> int:
        """Length of the training."""
        return self.num_epochs * self.num_iterations_per_epoch

    @property
    def unlabeled_terms_on(self) -> bool:
        """Do unlabeled patches teach the student now?"""
        return self.readiness.ready and not self.collapse.held

    def record(self, losses: dict, norm: torch.Tensor, pseudo: dict, counts: dict, asks_sam: bool) -> list[float]:
        """Notes the numbers of this iteration, in one transfer from the device; returns which are not finite."""
        values = {f"loss/{name}": term for name, term in losses.items()}
        values |= {f"used_voxels/{name}": (label.confidence > 0).float().mean() for name, label in pseudo.items()}
        found = {"bad": not_finite({**losses, GRADIENT: norm}), **counts}
        own, shared = fetch(values, found, is_ddp=self.is_ddp)
        for line in self.collapse.update(shared):
            self.print_to_log_file(line)
        self.readiness.update(shared)
        if dice := self.readiness.dice():
            self.curves.add({"labeled_dice": min(dice.values())})
        self.curves.add({name: value for name, value in own.items() if math.isfinite(value)})
        if asks_sam and self.sam_assisted is not None:
            stats = dict(self.sam_assisted.labeler.stats)
            if not stats["items"]:  # nobody was asked: no agreement to speak of
                stats.pop("agreement")
            self.curves.add({f"sam/{name}": value for name, value in stats.items()})
        return shared["bad"]

    # --- set-up and files ---------------------------------------------------------------------------------------

    def build_sam(self) -> SamAssisted | None:
        """The method with SAM at its side; None where no term asks for SAM.

        SAM gets a first look at an empty patch: what it cannot serve is an error now, not after hours.
        """
        if self.semisam.sam is None or "sam" not in self.semisam.active_terms():
            return None
        backend = build_backend(self.semisam.sam, self.device, self.configuration_manager.spacing)
        labeler = SamLabeler(backend, self.semisam.sam, self.outputs, say=self.print_to_log_file)
        patch = (1, self.num_input_channels - self.previous_channels, *self.configuration_manager.patch_size)
        labeler.probe(torch.zeros(patch, device=self.device))
        return SamAssisted(self.method, labeler, self.semisam.terms["sam"].every)

    def save_checkpoint(self, filename: str) -> None:
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
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
    """Student and EMA teacher (arXiv 1703.01780), without SAM."""

    uses_sam = False
