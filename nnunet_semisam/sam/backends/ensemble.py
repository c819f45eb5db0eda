"""Several generalists at once, as in SemiSAM+ (Zhang et al. 2025, https://arxiv.org/abs/2502.20749).

Every member gets the same prompts. Their probabilities are averaged per object, each member weighted by how sure it is:
its predicted IoU times its stability (IoU of its masks at logits -1 and +1; Kirillov et al., ICCV 2023,
https://arxiv.org/abs/2304.02643). No checkpoint and no licence of its own: those of the members apply.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nnunet_semisam.config import SamConfig
from nnunet_semisam.sam import build_backend
from nnunet_semisam.sam.base import SamBackend
from nnunet_semisam.types import Prompts, SamPrediction

MEMBER_KEYS = ("backend", "checkpoint", "backend_args")
MAX_LOGIT = 20.0  # of a member's answer; keeps infinities out of the mean


class Ensemble(SamBackend):
    """The confidence-weighted mean of its members.

    Args:
        checkpoint: none; members have their own.
        members: at least one `{"backend": …, "checkpoint": …, "backend_args": …}`, keys as in the section `sam`.
        spacing: handed on to the members.

    `ndims` are the numbers of axes that all members serve. So with one 2D member a 3D patch is shown plane by plane to
    everybody.

    Raises:
        ValueError: no members, an unknown key, or members without a common number of axes.
        FileNotFoundError: the checkpoint of a member is missing.
    """

    ndims: tuple[int, ...] = (2, 3)

    def __init__(
        self,
        checkpoint: str | None,
        device: torch.device,
        *,
        members: Any = (),  # a list of dictionaries, as the user wrote it
        spacing: Sequence[float] | None = None,
    ) -> None:
        if checkpoint is not None:
            raise _refused(f"sam.checkpoint is {checkpoint!r}", "name the checkpoint of each member in members")
        configs = _member_list(members)
        self.members = [build_backend(config, device, spacing) for config in configs]
        self.ndims = _common_ndims(configs, self.members)

    @classmethod
    def members_of(cls, config: SamConfig) -> list[SamConfig]:
        """See `SamBackend`; members hear the prompts of the ensemble."""
        members = _member_list(config.backend_args.get("members", ()))
        return [dataclasses.replace(member, prompts=config.prompts) for member in members]

    @classmethod
    def of(cls, members: Sequence[SamBackend]) -> Ensemble:
        """An ensemble of backends that are there already."""
        ensemble = cls.__new__(cls)
        ensemble.members = list(members)
        ensemble.ndims = _common_ndims([SamConfig(backend=type(member).__name__) for member in members], members)
        return ensemble

    def to(self, device: torch.device) -> Ensemble:
        """Moves all members; returns itself."""
        for member in self.members:
            member.to(device)
        return self

    def embed(self, image: Float[Tensor, "U C *S"]) -> list[Any]:
        """The embedding of each member."""
        return [member.embed(image) for member in self.members]

    @torch.no_grad()
    def decode(self, embedding: list[Any], prompts: Prompts) -> SamPrediction:
        """Logit of the weighted mean probability, and the weighted mean of the predicted IoUs."""
        inside, outside, ious, weights = [], [], [], []
        for member, own in zip(self.members, embedding, strict=True):
            answer = member.decode(own, prompts)
            logits = answer.mask_logits.float().nan_to_num(nan=-MAX_LOGIT).clamp(-MAX_LOGIT, MAX_LOGIT)
            iou = answer.iou_predictions.float().nan_to_num(nan=0.0).clamp(0, 1)
            inside.append(logits.sigmoid())
            outside.append((-logits).sigmoid())
            ious.append(iou)
            weights.append(iou * _stability(logits))
        share = _shares(torch.stack(weights))
        logits = _mean(inside, share).log() - _mean(outside, share).log()  # precise on both sides
        return SamPrediction(logits, (torch.stack(ious) * share).sum(0))


def _shares(weights: Float[Tensor, "M P"]) -> Float[Tensor, "M P"]:
    """Weights that add up to 1 over the members; equal ones where nobody is sure."""
    total = weights.sum(0, keepdim=True)
    return torch.where(total > 0, weights / total.clamp(min=1e-12), 1 / len(weights))


def _stability(logits: Float[Tensor, "P *S"]) -> Float[Tensor, " P"]:
    counts = [(logits > level).flatten(1).sum(1).float() for level in (1, -1)]
    return counts[0] / counts[1].clamp(min=1)


def _mean(probs: list[Float[Tensor, "P *S"]], share: Float[Tensor, "M P"]) -> Float[Tensor, "P *S"]:
    total = torch.zeros_like(probs[0])
    for prob, own in zip(probs, share, strict=True):
        total += prob * own.view(-1, *[1] * (prob.ndim - 1))
    return total


def _member_list(members: Any) -> list[SamConfig]:
    if isinstance(members, (str, Mapping)) or not members:
        raise _refused(f"members is {members!r}", 'give a list such as [{"backend": "embedded"}]')
    return [_member(number, member) for number, member in enumerate(members)]


def _member(number: int, member: Any) -> SamConfig:
    known = f"give a dictionary with keys out of {', '.join(MEMBER_KEYS)}"
    if not isinstance(member, Mapping) or "backend" not in member:
        raise _refused(f"members[{number}] is {member!r}", f"{known}; backend is needed")
    for key in member:
        if key not in MEMBER_KEYS:
            raise _refused(f"members[{number}] has the unknown key {key!r}", known)
    return dataclasses.replace(SamConfig(), **member)


def _common_ndims(configs: Sequence[SamConfig], members: Sequence[SamBackend]) -> tuple[int, ...]:
    common = set.intersection(*(set(member.ndims) for member in members))
    if not common:
        served = "; ".join(
            f"{config.backend!r} serves {' and '.join(f'{n}D' for n in member.ndims)}"
            for config, member in zip(configs, members, strict=True)
        )
        raise _refused(f"no number of axes is common to all members ({served})", "choose members that share one")
    return tuple(sorted(common))


def _refused(problem: str, cure: str) -> ValueError:
    return ValueError(f"semisam: sam.backend 'ensemble': {problem}; {cure}")
