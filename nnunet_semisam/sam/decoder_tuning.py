"""Tuning of generalists with a heavy image encoder: the encoder is frozen, only the mask decoder learns.

Every view is encoded once and remembered, so a step costs a few runs of the decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nnunet_semisam.config import SamConfig
from nnunet_semisam.sam.embedded.noise import whole
from nnunet_semisam.sam.patches import mostly_labeled
from nnunet_semisam.sam.repair import NOTHING, mask_loss, moved, spoiled_prompts, view_of
from nnunet_semisam.types import LabeledCase, Prompts, SamPrediction

BATCH = 4
VIEWS = 6  # per case and head


@runtime_checkable
class PromptedDecoder(Protocol):
    """A backend whose answers may carry a gradient."""

    ndims: tuple[int, ...]

    def embed(self, image: Float[Tensor, "U C *S"]) -> Any:
        """As in `SamBackend`."""

    def answer(self, embedding: Any, prompts: Prompts) -> SamPrediction:
        """`decode` with its gradient."""


class DecoderTask:
    """Repairing masks on a fixed set of views; `module` is the decoder of `backend`."""

    learning_rate = 1e-4

    def __init__(
        self,
        backend: PromptedDecoder,
        module: nn.Module,
        cases: Sequence[LabeledCase],
        *,
        heads: Sequence[int],
        patch_size: Sequence[int],
        config: SamConfig,
    ) -> None:
        self.backend, self.module, self.config = backend, module, config
        self.views: list[LabeledCase] = []  # each with the mask of one head only
        for case in cases:
            for head in heads:
                found = (
                    view_of(case, head, patch_size, ndims=backend.ndims, config=config, seed=n) for n in range(VIEWS)
                )
                whole_ones = (v for v in found if v is not None and mostly_labeled(v, head))
                views = (replace(v, truth=v.truth[head : head + 1].clone()) for v in whole_ones)
                self.views += [view for view in views if view.truth.sum() >= config.min_voxels]
        if not self.views:
            raise ValueError(NOTHING)
        self.embeddings: dict[int, Any] = {}

    def loss(self, rng: torch.Generator) -> Float[Tensor, ""]:
        """The mean loss of a few items, each on its own view."""
        items = (self._item(whole(rng, 0, len(self.views) - 1), rng) for _ in range(BATCH))
        return torch.stack([item for item in items if item is not None] or [self._nothing()]).mean()

    def _item(self, number: int, rng: torch.Generator) -> Float[Tensor, ""] | None:
        view = self.views[number]
        truth = view.truth[0]
        drawn = spoiled_prompts(truth.cpu(), rng, self.config)
        if drawn is None:
            return None
        device = next(self.module.parameters()).device
        if number not in self.embeddings:
            self.embeddings[number] = self.backend.embed(view.image[None].to(device))
        prompts, guess = drawn
        answer = self.backend.answer(self.embeddings[number], moved(prompts, device))
        masks = (mask.float()[None].to(device) for mask in (truth, guess, view.valid))
        truth, guess, valid = masks
        return mask_loss(answer.mask_logits, answer.iou_predictions, truth=truth, guess=guess, valid=valid)

    def _nothing(self) -> Float[Tensor, ""]:
        """A loss without an example, for the rare batch whose items all got lost."""
        return 0.0 * next(self.module.parameters()).sum()
