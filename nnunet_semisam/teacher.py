"""The EMA teacher (Tarvainen and Valpola 2017, https://arxiv.org/abs/1703.01780, eq. 1)."""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_semisam.ops.outputs import OutputSpace, full_resolution


def bare(network: nn.Module) -> nn.Module:
    """The network without the wrappers of DDP and torch.compile."""
    network = _without_ddp(network)
    return getattr(network, "_orig_mod", network)


def _without_ddp(network: nn.Module) -> nn.Module:
    return network.module if isinstance(network, DistributedDataParallel) else network


class EmaTeacher:
    """Exponential moving average of the student: image -> probabilities. In evaluation mode, without gradient.

    The average runs over `parameters()` and buffers are copied. It must not run over `state_dict()`: nnU-Net's U-Nets
    list the same tensor several times there, and it would be averaged as often.

    Args:
        student: the network to follow; wrappers of DDP and torch.compile are taken off. Where it is compiled, so is the
            teacher's answering; `network` itself stays as it is.
        outputs: turns logits into probabilities.
        decay: upper limit of the EMA factor.
    """

    def __init__(self, student: nn.Module, outputs: OutputSpace, *, decay: float) -> None:
        self.network = copy.deepcopy(bare(student)).eval().requires_grad_(False)
        decoder = getattr(self.network, "decoder", None)
        if hasattr(decoder, "deep_supervision"):
            decoder.deep_supervision = False
        compiled = bare(student) is not _without_ddp(student)
        self._forward = torch.compile(self.network) if compiled else self.network
        self.outputs = outputs
        self.decay = decay

    @torch.no_grad()
    def __call__(self, image: Float[Tensor, "U C *S"]) -> Float[Tensor, "U K *S"]:
        return self.outputs.prob(full_resolution(self._forward(image)))

    @torch.no_grad()
    def update(self, student: nn.Module, iteration: int) -> None:
        """teacher <- a * teacher + (1 - a) * student with a = min(1 - 1/(t + 1), decay), t = `iteration` from 0."""
        alpha = min(1 - 1 / (iteration + 1), self.decay)
        student = bare(student)
        torch._foreach_lerp_(list(self.network.parameters()), [p.detach() for p in student.parameters()], 1 - alpha)
        for own, new in zip(self.network.buffers(), student.buffers(), strict=True):
            own.copy_(new)

    def state_dict(self) -> dict[str, Tensor]:
        """Weights under the names of the student's network."""
        return self.network.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.network.load_state_dict(state)
