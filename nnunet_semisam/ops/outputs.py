"""The one place that tells label heads (softmax, background first) from region heads (sigmoid, overlapping)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def full_resolution(logits: Tensor | list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """The output at patch resolution: under deep supervision nnU-Net's networks return a list, finest first."""
    return logits[0] if isinstance(logits, (list, tuple)) else logits


@dataclass(frozen=True)
class OutputSpace:
    """What the K heads of the network mean.

    Args:
        num_heads: K. Labels count the background, regions do not; an ignore label has no head.
        has_regions: regions (sigmoid) instead of labels (softmax).
    """

    num_heads: int
    has_regions: bool = False

    @property
    def foreground_heads(self) -> tuple[int, ...]:
        """Heads that stand for an object: all regions, or all labels but the background."""
        return tuple(range(0 if self.has_regions else 1, self.num_heads))

    def prob(self, logits: Float[Tensor, "U K *S"]) -> Float[Tensor, "U K *S"]:
        """Probabilities in float32."""
        logits = logits.float()
        return torch.sigmoid(logits) if self.has_regions else torch.softmax(logits, dim=1)

    def truth(self, target: Tensor) -> tuple[Float[Tensor, "B K *S"], Float[Tensor, "B 1 *S"]]:
        """nnU-Net's target at patch resolution as probabilities, and 1 where it counts, 0 where it is to be ignored.

        Args:
            target: labels (B, 1, *S), where K is the ignore label; or regions (B, K or K + 1, *S), whose channel K
                marks what is ignored.
        """
        if self.has_regions:
            inside, ignored = target[:, : self.num_heads].float(), target[:, self.num_heads :].float()
            return inside, 1 - ignored.sum(1, keepdim=True)
        label = target.long()
        heads = torch.arange(self.num_heads, device=label.device).view(-1, *[1] * (label.ndim - 2))
        return (label == heads).float(), (label < self.num_heads).float()

    def harden(self, prob: Float[Tensor, "U K *S"]) -> Float[Tensor, "U K *S"]:
        """0/1 masks: the most probable label, or every region above one half."""
        if self.has_regions:
            return (prob > 0.5).to(prob.dtype)
        return torch.zeros_like(prob).scatter_(1, self.labels(prob)[:, None], 1)

    def labels(self, prob: Float[Tensor, "U K *S"]) -> Int64[Tensor, "U *S"]:
        """The most probable label, of equal ones the first: what `argmax` says, more slowly on a CPU."""
        return prob.max(1).indices

    def confidence(self, prob: Float[Tensor, "U K *S"]) -> Float[Tensor, "U 1 *S"]:
        """Probability of the most probable label; for regions that of the least certain head."""
        if self.has_regions:
            return torch.maximum(prob, 1 - prob).amin(1, keepdim=True)
        return prob.amax(1, keepdim=True)
