"""Real examples for the embedded generalist, in the form in which it sees objects at use, mixed with synthetic ones.

Around every object of the labeled cases a scene is cut out. An example is a scene that was mirrored, turned, cut at one
side as a patch would cut it, given other contrast and noise, with prompts of a spoiled mask, in the frame around them.
The synthetic share keeps one labeled case from being learned by heart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from joblib import cpu_count
from torch import Tensor

from nnunet_semisam.config import SamConfig
from nnunet_semisam.sam.embedded import Generalist
from nnunet_semisam.sam.embedded.channels import attention_boxes, network_input
from nnunet_semisam.sam.embedded.frame import Frame
from nnunet_semisam.sam.embedded.network import VALID
from nnunet_semisam.sam.embedded.noise import blur, chance, log_uniform, mask_box, smooth_noise, uniform, whole
from nnunet_semisam.sam.embedded.sampling import draw_example
from nnunet_semisam.sam.embedded.shapes import LabelMap, random_label_map
from nnunet_semisam.sam.patches import mostly_labeled, patch_around
from nnunet_semisam.sam.repair import NOTHING, mask_loss, spoiled_prompts
from nnunet_semisam.types import LabeledCase

BATCH = {2: 16, 3: 8}
SYNTHETIC_SHARE = 0.125
SYNTHETIC_MAPS = 24
SYNTHETIC_SIDE = {2: 96, 3: 40}  # as in the generalist's own training
SYNTHETIC_HARDEST = 0.7
PATCHES = {2: 8, 3: 2}  # per case and head, beside the whole case in 3D
SCENE_SIDE = 44  # larger scenes are resampled: the frame would do it anyway
_LAYOUT = {2: torch.channels_last, 3: torch.channels_last_3d}


@dataclass(frozen=True)
class Scene:
    """One object and its surroundings."""

    image: Float[Tensor, "1 *S"]
    truth: Bool[Tensor, "*S"]
    valid: Bool[Tensor, "*S"]  # False where the ignore label is


@dataclass(frozen=True)
class Example:
    """One item in its frame; `valid` is where its truth is known."""

    channels: Float[Tensor, "8 *G"]
    truth: Float[Tensor, "*G"]
    guess: Float[Tensor, "*G"]
    valid: Float[Tensor, "*G"]


class FrameTask:
    """Repairing masks in frames of the embedded generalist.

    Args:
        scenes: real objects; none: synthetic examples only.
        keep: as at use.
        grow: as at use; varied a little.
    """

    learning_rate = 2e-3

    def __init__(
        self, generalist: Generalist, scenes: Sequence[Scene], *, keep: float, grow: float, config: SamConfig
    ) -> None:
        if not scenes:
            raise ValueError(NOTHING)
        self.module, self.grid, self.ndim = generalist.network, generalist.grid, generalist.network.ndim
        self.scenes, self.keep, self.grow, self.config = scenes, keep, grow, config

    @cached_property
    def maps(self) -> list[LabelMap]:
        """The pool of synthetic label maps, always the same."""
        rng, side = torch.Generator().manual_seed(0), SYNTHETIC_SIDE[self.ndim]
        return [random_label_map(side, self.ndim, rng) for _ in range(SYNTHETIC_MAPS)]

    def loss(self, rng: torch.Generator) -> Float[Tensor, ""]:
        """The loss of a batch of real and synthetic examples; in bfloat16 on devices that are quick at it."""
        device = next(self.module.parameters()).device
        examples = self._drawn(rng, threads=min(BATCH[self.ndim], cpu_count()) if device.type == "cuda" else 1)
        names = ("channels", "truth", "guess", "valid")
        channels, truth, guess, valid = (torch.stack([getattr(e, n) for e in examples]).to(device) for n in names)
        with torch.autocast(device.type, torch.bfloat16, enabled=_quick_in_bfloat16(device)):
            logits, quality = self.module(channels.contiguous(memory_format=_LAYOUT[self.ndim]), self.keep)
        return mask_loss(logits.float(), quality.float().sigmoid(), truth=truth, guess=guess, valid=valid)

    def _drawn(self, rng: torch.Generator, threads: int) -> list[Example]:
        """A batch, each example from a generator of its own: the same with any number of threads."""
        size = BATCH[self.ndim]
        generators = [
            torch.Generator().manual_seed(seed) for seed in torch.randint(2**62, (size,), generator=rng).tolist()
        ]
        synthetic = round(SYNTHETIC_SHARE * size)
        self.maps  # noqa: B018 (made once, not by several threads)
        makers = [self.synthetic] * synthetic + [self.real] * (size - synthetic)
        if threads == 1:
            return [make(own) for make, own in zip(makers, generators, strict=True)]
        with ThreadPoolExecutor(threads) as pool:  # nnU-Net gives torch one thread on CUDA, and the device would wait
            return list(pool.map(lambda make, own: make(own), makers, generators))

    def synthetic(self, rng: torch.Generator) -> Example:
        """An example as in the generalist's own training."""
        drawn = draw_example(self.maps, self.grid, rng, hardest=SYNTHETIC_HARDEST)
        return Example(drawn.channels, drawn.truth, drawn.guess, drawn.channels[VALID])

    def real(self, rng: torch.Generator) -> Example:
        """An example of a labeled case; a synthetic one where five draws left too little of an object."""
        for _ in range(5):
            scene = disguised(self.scenes[whole(rng, 0, len(self.scenes) - 1)], rng)
            if (drawn := spoiled_prompts(scene.truth, rng, self.config)) is not None:
                break
        else:
            return self.synthetic(rng)
        prompts, spoiled = drawn
        boxes = attention_boxes(prompts, scene.truth.shape)
        frame = Frame.around(boxes, self.grid, grow=self.grow * uniform(rng, 0.7, 1.3))
        channels = network_input(scene.image[None], prompts, frame)[0]
        known = (frame.crop(scene.valid.float()[None, None])[0, 0] > 0.99).float() * channels[VALID]
        truth, guess = (frame.crop(mask.float()[None, None])[0, 0] * known for mask in (scene.truth, spoiled))
        return Example(channels, truth, guess, known)


def _quick_in_bfloat16(device: torch.device) -> bool:
    """GPUs from Ampere on. Older ones pretend to compute in it, and so do CPUs (without AVX-512, 20 times slower)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8


def scenes_of(
    cases: Iterable[LabeledCase], heads: Sequence[int], patch_size: Sequence[int], *, min_voxels: int
) -> list[Scene]:
    """Scenes around the objects of single-channel cases: in whole cases, and in patches that may cut them.

    None around objects that are not `mostly_labeled`: a scribble is not the mask that a prompt asks for.
    """
    ndim, scenes = len(patch_size), []
    for number, case in enumerate(cases):
        for head in heads:
            rng = torch.Generator().manual_seed(1000 * number + head)
            views = [patch_around(case, head, patch_size, rng) for _ in range(PATCHES[ndim])]
            views += [case] * (case.valid.ndim == ndim)
            shown = [v for v in views if v is not None and v.truth[head].sum() >= min_voxels]
            scenes += [_scene(v, head) for v in shown if mostly_labeled(v, head)]
    return scenes


def _scene(view: LabeledCase, head: int) -> Scene:
    """The object's box with half of its extent and four voxels on each side, as far as the view reaches."""
    box = mask_box(view.truth[head])
    margin = 0.5 * (box[1] - box[0]) + 4
    low = (box[0] - margin).clamp(min=0).floor()
    high = torch.minimum(box[1] + margin, torch.tensor(view.valid.shape)).ceil()
    window = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    parts = torch.stack([view.image[0][window], view.truth[head][window].float(), view.valid[window].float()])
    if max(parts.shape[1:]) > SCENE_SIDE:
        size = torch.tensor([parts.shape[1:]], dtype=torch.float32)
        parts = Frame(torch.zeros_like(size), size, SCENE_SIDE).crop(parts[None])[0]
    return Scene(parts[:1].contiguous(), parts[1] > 0.5, parts[2] > 0.99)


def disguised(scene: Scene, rng: torch.Generator) -> Scene:
    """The scene in another pose and contrast."""
    parts = torch.cat([scene.image, scene.truth.float()[None], scene.valid.float()[None]])
    parts = parts.flip([axis for axis in range(1, parts.ndim) if chance(rng, 0.5)])
    if chance(rng, 0.5):
        parts = _turned(parts, rng)
    if chance(rng, 0.3):
        parts = _cut(parts, rng)
    return Scene(_shaded(parts[:1], rng), parts[1] > 0.5, parts[2] > 0.99)


def _turned(parts: Float[Tensor, "3 *S"], rng: torch.Generator) -> Float[Tensor, "3 *S"]:
    """A rotation of up to about 25 degrees and a stretch of each axis, about the centre."""
    ndim, shape = parts.ndim - 1, torch.tensor(parts.shape[1:], dtype=torch.float32)
    skew = torch.triu(0.3 * (2 * torch.rand((ndim, ndim), generator=rng) - 1), 1)
    matrix = torch.matrix_exp(skew - skew.T) @ torch.diag(torch.exp(0.2 * (torch.rand(ndim, generator=rng) - 0.5)))
    matrix = (matrix * shape[None] / shape[:, None]).flip(0, 1)  # in units of half sides, x first
    theta = torch.cat([matrix, torch.zeros(ndim, 1)], 1)
    grid = F.affine_grid(theta[None], [1, 1, *parts.shape[1:]], align_corners=False)
    inside = F.grid_sample(parts[None, 1:], grid, align_corners=False)[0]
    image = F.grid_sample(parts[None, :1], grid, padding_mode="border", align_corners=False)[0]
    return torch.cat([image, inside])


def _cut(parts: Float[Tensor, "3 *S"], rng: torch.Generator) -> Float[Tensor, "3 *T"]:
    """One side cut off, as the border of a patch would, leaving about half of the object or more."""
    box = mask_box(parts[1] > 0.5)
    if box is None:
        return parts
    axis = whole(rng, 0, parts.ndim - 2)
    low, high = (float(corner[axis]) for corner in box)
    kept = max(4, round(low + uniform(rng, 0.5, 1.1) * (high - low)))
    return parts.narrow(axis + 1, 0, min(kept, parts.shape[axis + 1]))


def _shaded(image: Float[Tensor, "1 *S"], rng: torch.Generator) -> Float[Tensor, "1 *S"]:
    """Gamma, a bias field, blur and noise; brightness and contrast go away in the frame's z-score."""
    low, high = image.min(), image.max()
    image = (image - low) / (high - low).clamp(min=1e-6)
    if chance(rng, 0.4):
        image = image.pow(log_uniform(rng, 0.6, 1.6))
    if chance(rng, 0.3):
        field = smooth_noise(image.shape[1:], [side * uniform(rng, 0.4, 1.0) for side in image.shape[1:]], rng)
        image = image * torch.exp(uniform(rng, 0.0, 0.25) * field)
    if chance(rng, 0.2):
        image = blur(image, [uniform(rng, 0.4, 1.0)] * (image.ndim - 1))
    if chance(rng, 0.4):
        image = image + uniform(rng, 0.0, 0.08) * torch.randn(image.shape, generator=rng)
    return image
