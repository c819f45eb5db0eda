"""How gradients are made and used, as nnU-Net's own training step does it: precision, clipping, several processes."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    Base: TypeAlias = nnUNetTrainer
else:
    Base = object


class Optimization(Base):
    """Mixin for nnU-Net trainers: its training step in pieces, for a step with several backward passes."""

    max_gradient_norm = 12.0  # nnU-Net's; set it to what the other parent class clips at

    def autocast(self) -> contextlib.AbstractContextManager:
        """As nnU-Net has it: mixed precision on CUDA, nothing elsewhere."""
        return torch.autocast("cuda") if self.device.type == "cuda" else contextlib.nullcontext()

    def without_gradient_exchange(self) -> contextlib.AbstractContextManager:
        """DDP's `no_sync`; nothing without DDP."""
        return self.network.no_sync() if isinstance(self.network, DistributedDataParallel) else contextlib.nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradient of `loss`, scaled where mixed precision is on."""
        if loss.requires_grad:
            (loss if self.grad_scaler is None else self.grad_scaler.scale(loss)).backward()

    def clipped_norm(self) -> torch.Tensor:
        """Clips the gradient norm; returns what it was."""
        if self.grad_scaler is not None:
            self.grad_scaler.unscale_(self.optimizer)
        return torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.max_gradient_norm)

    def step_optimizer(self) -> None:
        """One step; under mixed precision only if the gradient is finite."""
        if self.grad_scaler is None:
            self.optimizer.step()
        else:
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
