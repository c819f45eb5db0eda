"""One iteration: nnU-Net's loss on labeled patches, and what teacher and SAM say about unlabeled ones."""

from __future__ import annotations

import math
from functools import partial

import torch

from nnunet_semisam import stream
from nnunet_semisam.collapse import CollapseGuard, random_crops
from nnunet_semisam.config import SemiSAMConfig
from nnunet_semisam.curves import Curves
from nnunet_semisam.guards import GRADIENT, SKIPPED, StepGuard, fetch, not_finite
from nnunet_semisam.methods._base import SemiMethod
from nnunet_semisam.methods._sam_assisted import SamAssisted
from nnunet_semisam.optimization import Optimization
from nnunet_semisam.readiness import Readiness
from nnunet_semisam.teacher import EmaTeacher
from nnunet_semisam.types import LabeledBatch, PseudoLabel, UnlabeledBatch


class SemiSupervisedStep(Optimization):
    """Mixin for nnU-Net trainers: its `train_step`, with unlabeled patches. The trainer makes what it works with."""

    semisam: SemiSAMConfig
    method: SemiMethod
    sam_assisted: SamAssisted | None
    teacher: EmaTeacher | None
    curves: Curves
    guard: StepGuard
    collapse: CollapseGuard
    readiness: Readiness
    iteration: int

    @property
    def total_iterations(self) -> int:
        """Length of the training."""
        return self.num_epochs * self.num_iterations_per_epoch

    @property
    def unlabeled_terms_on(self) -> bool:
        """Do unlabeled patches teach the student now?"""
        return self.readiness.ready and not self.collapse.held

    def train_step(self, batch: dict) -> dict:
        """One iteration: nnU-Net's loss on labeled patches, and what the method asks on unlabeled ones."""
        with_sam = self.sam_assisted is not None  # it may be trusted with no class
        weights = self.semisam.weights(self.iteration, self.total_iterations, with_sam=with_sam)
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

        pseudo = self.pseudo_labels(unlabeled, weights)
        self.method.pastes = not self.readiness.starting
        self.optimizer.zero_grad(set_to_none=True)
        with self.without_gradient_exchange():  # first: under DDP the last backward exchanges the gradients
            with self.autocast():
                terms = self.method.terms(self.network, unlabeled, pseudo, labeled) if pseudo else {}
                unsupervised = sum((weights[name] * term for name, term in terms.items()), torch.zeros(()))
            self.backward(unsupervised)
        used = {f"used_voxels/{name}": (label.confidence > 0).float().mean() for name, label in pseudo.items()}
        del pseudo  # as large as the network's output, twice
        with self.autocast():
            output = self.network(labeled.image)
            supervised = self.loss(output, labeled.target)
        self.backward(supervised)

        losses = {**terms, "supervised": supervised}
        counts = self.readiness.counts(output, labeled.target)
        counts |= self.collapse.shares(labeled.target, random_crops(self, len(labeled.image)))
        found = self.record(losses, self.clipped_norm(), used, counts)
        if not self.guard.allows(self, found, (*losses, GRADIENT), (*labeled.keys, *unlabeled.keys)):
            return SKIPPED
        self.step_optimizer()
        return {"loss": (supervised + unsupervised).detach().cpu().numpy()}

    def pseudo_labels(self, unlabeled: UnlabeledBatch, weights: dict[str, float]) -> dict[str, PseudoLabel]:
        """What teacher and SAM believe about the unlabeled patches, by name of the term; none for a weight of 0.

        Where unlabeled patches do not count, the teacher still predicts, for the collapse guard to watch.
        """
        asks_sam = self.sam_assisted is not None and weights.get("sam", 0) > 0
        source = self.sam_assisted if asks_sam else self.method
        teacher = self.collapse.aligned(self.collapse.watch(self.teacher), self.semisam.distribution_alignment)
        pseudo = {}
        with torch.no_grad(), self.autocast():
            if self.unlabeled_terms_on:
                pseudo = source.pseudo_labels(teacher, unlabeled)
            elif self.collapse.on:
                teacher(unlabeled.image)
        return {name: label for name, label in pseudo.items() if weights.get(name, 0) > 0}

    def record(self, losses: dict, norm: torch.Tensor, used: dict, counts: dict) -> list[float]:
        """Notes the numbers of this iteration, in one transfer from the device; returns which are not finite."""
        values = {**{f"loss/{name}": term for name, term in losses.items()}, **used}
        found = {"bad": not_finite({**losses, GRADIENT: norm}), **counts}
        own, shared = fetch(values, found, is_ddp=self.is_ddp)
        for line in self.collapse.update(shared):
            self.print_to_log_file(line)
        self.readiness.update(shared)
        if dice := self.readiness.dice():
            self.curves.add({"labeled_dice": min(dice.values())})
        self.curves.add({name: value for name, value in own.items() if math.isfinite(value)})
        if "used_voxels/sam" in used:
            stats = dict(self.sam_assisted.labeler.stats)
            if not stats["items"]:  # nobody was asked: no agreement to speak of
                stats.pop("agreement")
            self.curves.add({f"sam/{name}": value for name, value in stats.items()})
        return shared["bad"]
