"""The embedded generalist as a backend: serves 2D and 3D patches, offline, with weights that ship with the package.

Checkpoint: `nnunet_semisam/sam/embedded/weights.pt`, under the licence of the package; trained on synthetic images only
(see the model card beside it). Coordinates: array order, voxels, as in `Prompts`; points, boxes and masks are all
understood, masks best. Every object is looked at in a frame of fixed size, so the network's cost per object does not
depend on the patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from nnunet_semisam.config import SamConfig
from nnunet_semisam.sam.base import SamBackend
from nnunet_semisam.sam.embedded import forgotten, load_generalists
from nnunet_semisam.sam.embedded.channels import attention_boxes, network_input
from nnunet_semisam.sam.embedded.frame import Frame
from nnunet_semisam.sam.embedded.tuning import FrameTask, scenes_of
from nnunet_semisam.types import LabeledCase, Prompts, SamPrediction

ITEMS_AT_ONCE = 16  # bounds the memory of full-resolution copies


class EmbeddedSam(SamBackend):
    """The small promptable network of `nnunet_semisam.sam.embedded`.

    Args:
        checkpoint: weights file; None for the shipped one.
        device: where the networks run.
        channels: image channels to look at; several are averaged (nnU-Net has normalised each of them).
        grow: how much of the prompt's box is added on each side before looking.
        keep: log-odds added in favour of a mask prompt. 0 repairs bad prompts most and spoils good ones, 3 changes
            little; the default gains on masks of Dice 0.6 to 0.85 (`benchmarks/results/embedded_on_real.md`).
        rounds: how often to look; from the second time on the answer is the mask prompt and sets the frame.
        random_weights: seed of fresh random weights in place of the file's: a control for experiments.
    """

    ndims = (2, 3)

    @classmethod
    def tuning_steps(cls, cases: int) -> int:
        """Measured with one and four cases (`benchmarks/results/tuned_on_real.md`)."""
        return min(200 * cases, 600)

    def __init__(
        self,
        checkpoint: str | None = None,
        device: torch.device | str = "cpu",
        *,
        channels: Sequence[int] = (0,),
        grow: float = 0.3,
        keep: float = 1.0,
        rounds: int = 1,
        random_weights: int | None = None,
    ) -> None:
        if rounds < 1:
            raise ValueError(f"semisam: sam.backend_args.rounds is {rounds}; the generalist has to look at least once")
        if not channels:
            raise ValueError(f"semisam: sam.backend_args.channels is {channels!r}; name at least one channel")
        if grow < 0:
            raise ValueError(f"semisam: sam.backend_args.grow is {grow}; it must be a number of at least 0")
        self.generalists = load_generalists(checkpoint)
        if random_weights is not None:
            self.generalists = forgotten(self.generalists, random_weights)
        self.channels, self.grow, self.keep, self.rounds = tuple(channels), grow, keep, rounds
        self.to(device)

    def to(self, device: torch.device | str) -> EmbeddedSam:
        """Moves both networks; returns itself."""
        for generalist in self.generalists.values():
            generalist.network.to(device)
        return self

    def embed(self, image: Float[Tensor, "U C *S"]) -> Float[Tensor, "U 1 *S"]:
        """The mean of the chosen channels: prompts are channels too, so nothing is encoded before they are known."""
        if image.ndim - 2 not in self.ndims:
            raise ValueError(f"image of shape {tuple(image.shape)}: give (U, C, y, x) or (U, C, z, y, x)")
        count = image.shape[1]
        if not set(self.channels) <= set(range(count)):
            chosen = list(self.channels)
            raise ValueError(
                f"semisam: sam.backend_args.channels is {chosen}, but images have {count} channels, 0 first"
            )
        return image[:, list(self.channels)].detach().float().mean(1, keepdim=True)

    @torch.no_grad()
    def decode(self, embedding: Float[Tensor, "U 1 *S"], prompts: Prompts) -> SamPrediction:
        """Looks at each object in its own frame; log-odds are strongly negative outside the frame."""
        shape, device = embedding.shape[2:], embedding.device
        logits, ious = [torch.zeros((0, *shape), device=device)], [torch.zeros(0, device=device)]
        with torch.autocast(device.type, enabled=False):
            for part in _split(prompts):
                for _ in range(self.rounds):
                    answer, iou = self._look(embedding[part.image], part)
                    part = replace(part, mask_logits=answer, boxes=None)
                logits.append(answer)
                ious.append(iou)
        return SamPrediction(torch.cat(logits), torch.cat(ious))

    def tuning_task(
        self, cases: Sequence[LabeledCase], *, heads: Sequence[int], patch_size: Sequence[int], config: SamConfig
    ) -> FrameTask:
        """See `nnunet_semisam.sam.tuning`: the network for patches of this size, all of its parameters."""
        seen = (replace(case, image=self.embed(case.image[None])[0]) for case in cases)
        scenes = scenes_of(seen, heads, patch_size, min_voxels=config.min_voxels)
        return FrameTask(self.generalists[len(patch_size)], scenes, keep=self.keep, grow=self.grow, config=config)

    def _look(
        self, image: Float[Tensor, "P 1 *S"], prompts: Prompts
    ) -> tuple[Float[Tensor, "P *S"], Float[Tensor, " P"]]:
        """One look at some items."""
        generalist = self.generalists[image.ndim - 2]
        frame = Frame.around(attention_boxes(prompts, image.shape[2:]), generalist.grid, grow=self.grow)
        logits, quality = generalist.network(network_input(image, prompts, frame), self.keep)
        return frame.paste(logits, image.shape[2:]), quality.sigmoid()


def _split(prompts: Prompts) -> list[Prompts]:
    """The items in handy portions, in single precision."""
    fields = {name: value for name, value in vars(prompts).items() if value is not None}
    parts = []
    for start in range(0, len(prompts), ITEMS_AT_ONCE):
        cut = {name: value[start : start + ITEMS_AT_ONCE] for name, value in fields.items()}
        parts.append(replace(prompts, **{n: v.float() if v.is_floating_point() else v for n, v in cut.items()}))
    return parts
