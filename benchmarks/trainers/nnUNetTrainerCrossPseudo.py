"""A candidate: cross pseudo supervision (Chen et al., CVPR 2021, https://arxiv.org/abs/2106.01226).

    nnUNet_extTrainer=$PWD/benchmarks/trainers nnUNetv2_semisam_benchmark WORK … --protocol cross.json --arms cross \
      --baseline cross

with cross.json: {"arms": [{"name": "cross", "trainer": "nnUNetTrainerCrossPseudo", "section": {"sam": null}}]}

Two networks that began with other weights, each learning the labels and what the other one says. Here everything else
is as in `nnUNetTrainerMeanTeacher` (the other network sees the weak view and says probabilities; the paper has hard
labels and one view), so that a comparison tells a second trained network from an average of the first.
"""

from __future__ import annotations

from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn

from nnunet_semisam.ops.outputs import OutputSpace, full_resolution
from nnunet_semisam.trainer import SemiSAM
from nnunet_semisam.types import LabeledBatch, PseudoLabel, UnlabeledBatch


class Twin:
    """The second network, in the teacher's place: image -> probabilities. It is trained, it follows nobody."""

    def __init__(self, network: nn.Module, outputs: OutputSpace) -> None:
        self.network, self.outputs = network, outputs

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        return self.outputs.prob(full_resolution(self.network(image)))

    def update(self, student: nn.Module, iteration: int) -> None:
        """Nothing: it has had its own step."""

    def state_dict(self) -> dict[str, Tensor]:
        return self.network.state_dict()


class nnUNetTrainerCrossPseudo(SemiSAM, nnUNetTrainer):  # noqa: N801 (nnU-Net's naming)
    """The first network is the result. On a CPU (no mixed precision, no DDP); it cannot be continued after a kill."""

    uses_sam = False
    teacher: Any

    def on_train_start(self) -> None:
        if self.current_epoch or self.device.type == "cuda" or self.is_ddp:
            raise RuntimeError("nnUNetTrainerCrossPseudo trains on a CPU, in one process, and cannot be continued")
        super().on_train_start()
        network = self.build_network_architecture(
            self.plans_manager, self.configuration_manager, self.num_input_channels,
            self.label_manager.num_segmentation_heads, self.enable_deep_supervision,
        ).to(self.device)  # fmt: skip
        self.teacher = Twin(network, self.outputs)
        student, self.network = self.network, network
        self._twin_optimizer, _ = self.configure_optimizers()  # of the network that it finds
        self.network = student

    def pseudo_labels(self, unlabeled: UnlabeledBatch, weights: dict[str, float]) -> dict[str, PseudoLabel]:
        """The twin's; the student's own are kept for the twin, from before its step."""
        with torch.no_grad():
            from_student = self.outputs.prob(full_resolution(self.network(unlabeled.image)))
        self._for_twin = unlabeled, {"consistency": PseudoLabel.certain(from_student)}
        return super().pseudo_labels(unlabeled, weights)

    def semi_supervised_step(self, batch: dict, weights: dict[str, float]) -> dict:
        step = super().semi_supervised_step(batch, weights)
        if not self.guard.skipped:
            self._teach_twin(LabeledBatch.from_nnunet(batch, self.device), weights["consistency"])
        return step

    def _teach_twin(self, labeled: LabeledBatch, weight: float) -> None:
        twin, optimizer = self.teacher.network, self._twin_optimizer
        optimizer.param_groups[0]["lr"] = self.optimizer.param_groups[0]["lr"]
        optimizer.zero_grad(set_to_none=True)
        if weight:
            unlabeled, pseudo = self._for_twin
            (weight * self.method.terms(twin, unlabeled, pseudo, labeled)["consistency"]).backward()
        self.loss(twin(labeled.image), labeled.target).backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), self.max_gradient_norm)
        optimizer.step()
