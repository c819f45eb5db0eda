"""Numerical trouble: a step whose loss or gradient is not finite is told, left out, and after too many training ends.

Healthy steps stay as they are, bit for bit. What has to be known before the optimiser may step comes with the one
transfer from the device that a step makes anyway (`fetch`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn

from nnunet_semisam.teacher import bare

GRADIENT = "gradient"
SKIPPED = {"loss": np.float32(math.nan)}  # what a step returns that was left out


class TrainingDiverged(RuntimeError):
    """Too many steps were left out."""


class StepGuard:
    """Says whether the optimiser may step, and counts the steps that it may not.

    Mixed precision: a gradient that overflows because the loss was scaled up is ordinary. `GradScaler` leaves that step
    out and lowers the scale by itself, and nothing is counted as long as there is a scale to lower.

    Several processes: their findings are added up before anyone looks, so all of them decide alike.

    Args:
        limit: number of steps left out at which training ends; every epoch without one takes one off the count, as a
            long training with half precision has a few.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.count = limit, 0
        self._before = 0  # count at the end of the last epoch
        self.skipped = False  # was the last step left out
        self._late = 0  # bad steps of nnU-Net's own kind that this process alone has seen
        self._buffers: list[Tensor] = []

    def begin(self, network: nn.Module) -> None:
        """Remembers running statistics: batch normalisation changes them before the loss is known."""
        self.skipped = False
        self._buffers = [buffer.clone() for buffer in bare(network).buffers()]

    def allows(
        self, trainer: nnUNetTrainer, found: Sequence[float], names: Sequence[str], cases: Sequence[str]
    ) -> bool:
        """Whether the step may be made; if not, it is told and counted.

        Args:
            found: in how many processes each of the `names` is not finite.

        Raises:
            TrainingDiverged: it is one too many.
        """
        bad = [name for name, times in zip(names, found, strict=True) if times]
        scaler = trainer.grad_scaler
        if not bad or (bad == [GRADIENT] and scaler is not None and scaler.get_scale() > 1):
            return True
        if scaler is not None:
            scaler.update(scaler.get_scale())  # the scale is not at fault; the next step starts afresh
        for buffer, before in zip(bare(trainer.network).buffers(), self._buffers, strict=True):
            buffer.copy_(before)
        self._tell(trainer, bad, _of_all_processes(list(cases), trainer.is_ddp))
        return False

    def stock_step(self, trainer: nnUNetTrainer, step: Callable[[], dict], cases: Sequence[str]) -> dict:
        """nnU-Net's own training step; the optimiser is kept from using a gradient that is not finite.

        With mixed precision `GradScaler` does that.
        """
        self.skipped = False
        guard = None if trainer.grad_scaler else trainer.optimizer.register_step_pre_hook(_refuse_endless_gradient)
        try:
            outcome = step()
        except _EndlessGradient:
            self._tell(trainer, [GRADIENT], list(cases))
            return SKIPPED
        finally:
            if guard is not None:
                guard.remove()
        if not np.isfinite(outcome["loss"]).all():
            if not trainer.is_ddp:
                self._tell(trainer, ["supervised"], list(cases))
            self._late += trainer.is_ddp
        return outcome

    def end_epoch(self, trainer: nnUNetTrainer, outcomes: list[dict]) -> list[dict]:
        """The outcomes of the steps that were made; all of them where nothing is left. With several processes the mean
        of the others stands for a step that was left out: nnU-Net wants equally many from each process.

        Raises:
            TrainingDiverged: processes have seen too many bad steps that the others have not.
        """
        if trainer.is_ddp:
            late = torch.tensor(self._late, device=trainer.device)
            dist.all_reduce(late, op=dist.ReduceOp.MAX)
            if number := int(late.item()):
                self._late = 0
                self._tell(trainer, [f"supervised (in {number} steps of this epoch)"], [], number)
        self.count -= 0 < self.count == self._before
        self._before = self.count
        made = [outcome for outcome in outcomes if np.isfinite(outcome["loss"]).all()]
        if made and trainer.is_ddp:
            mean = {"loss": np.mean([outcome["loss"] for outcome in made])}
            return made + [mean] * (len(outcomes) - len(made))
        return made or outcomes

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.count = self._before = state["count"]

    def _tell(self, trainer: nnUNetTrainer, bad: Sequence[str], cases: Sequence[str], number: int = 1) -> None:
        self.skipped = True
        self.count += number
        batch = f" in the batch of {', '.join(sorted(set(cases)))}" if cases else ""
        what = f"not finite: {', '.join(bad)}{batch}"
        if trainer.local_rank == 0:
            trainer.print_to_log_file(
                f"WARNING: semisam: epoch {trainer.current_epoch}: {what}; step left out ({self.count} of at most "
                f"{self.limit - 1})"
            )
        if self.count >= self.limit:
            raise TrainingDiverged(
                f"semisam: training ends: {self.count} steps were left out (max_bad_steps), the last one for being "
                f"{what}. Checkpoints in {trainer.output_folder} are those of before. Look at these images and at the "
                "log; lower the weights of the terms or raise max_bad_steps in the semisam section, and go on with --c."
            )


def not_finite(values: Mapping[str, Tensor]) -> Float[Tensor, " N"]:
    """1 for each scalar that is NaN or infinite, else 0."""
    return 1 - torch.stack([value.detach().float() for value in values.values()]).isfinite().float()


def fetch(
    own: Mapping[str, Tensor], shared: Mapping[str, Tensor], *, is_ddp: bool
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Numbers of a step, brought from the device in one transfer.

    Args:
        own: scalars.
        shared: vectors, first added up over the processes.
    """
    joined = torch.cat([vector.detach().float() for vector in shared.values()])
    if is_ddp:
        dist.all_reduce(joined)
    scalars = torch.stack([value.detach().float() for value in own.values()])
    numbers = iter(torch.cat([scalars, joined]).tolist())
    return {name: next(numbers) for name in own}, {k: [next(numbers) for _ in v] for k, v in shared.items()}


class _EndlessGradient(Exception):
    """Takes nnU-Net's step back before the optimiser has done anything."""


def _refuse_endless_gradient(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not torch.stack(torch._foreach_norm(gradients)).isfinite().all():
        raise _EndlessGradient


def _of_all_processes(cases: list[str], is_ddp: bool) -> list[str]:
    if not is_ddp:
        return cases
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, cases)
    return [case for part in found for case in part]
