"""Collapse: the teacher predicts far more or far less of a class on unlabeled patches than labeled patches ever show.

The rule, in numbers of voxels per patch as a share of the patch, by class, as moving averages over iterations:

* too much: the teacher's share on unlabeled patches is above `HIGH` times the largest average of labeled patches, or
  above `STRANGE` for a class that no labeled patch has shown;
* too little: it is below 1/`LOW` of the smallest average of those labeled patches that were cropped at random, as
  unlabeled patches are (nnU-Net lays a third of the labeled patches on foreground on purpose), for a class that the
  teacher has known: predicted as often as 1/`RETURN` of that for `WINDOW` judged iterations in a row.

Nothing is judged before `WARM_UP` iterations. A class that labeled patches hardly ever show has a smallest average near
0 and cannot be too rare; one that the network has not learned yet, or only for a moment, was never known. While a class
is out of range the unlabeled terms have weight 0 and only labels teach; with a margin of `RETURN` inside it they come
back.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor

from nnunet_semisam.data.labeled import head_names
from nnunet_semisam.ops.align import aligned
from nnunet_semisam.ops.outputs import OutputSpace, full_resolution
from nnunet_semisam.ops.shares import shares_of_labels, shares_of_regions

HIGH, LOW, RETURN = 4.0, 10.0, 2.0
STRANGE = 1e-3  # an average in floating point never gets back to 0 from what an untrained network says
WARM_UP = 500  # iterations; two epochs of nnU-Net
WINDOW = 100  # iterations that the averages look back on
# by the teacher's labels of unlabeled patches; all labeled ones; labeled ones cropped at random; by its probabilities
SIDES = ("teacher", "labeled", "random", "believed")


@dataclass
class CollapseGuard:
    """Watches the share of each class; `held` names the classes that are out of range.

    Shapes: M = number of classes + 1.

    Args:
        outputs: what the heads mean. With regions the background is watched as one class more.
        names: of the classes, in the order of the heads.
        sparse: is there an ignore label. Its voxels do not count, and too little is not judged, since sparse
            annotations show more foreground than there is.
        on: False never judges and costs nothing.
    """

    outputs: OutputSpace
    names: Sequence[str]
    sparse: bool = False
    on: bool = True
    seen: int = 0
    mean: dict[str, list[float]] = field(default_factory=dict)
    largest: list[float] = field(default_factory=list)
    smallest: list[float] = field(default_factory=list)
    known: list[str] = field(default_factory=list)  # classes that the teacher has found
    met: dict[str, int] = field(default_factory=dict)  # judged iterations in a row in which a class was found
    held: dict[str, str] = field(default_factory=dict)  # class -> "above" or "below"
    _seen: tuple[Tensor, Tensor] | None = field(default=None, init=False, repr=False)

    def watch(self, teacher: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """The teacher; what it says first is looked at."""
        if not self.on:
            return teacher
        self._seen = None

        def watched(image: Tensor) -> Tensor:
            prob = teacher(image)
            if self._seen is None:
                self._seen = self._predicted_shares(prob).sum(0), _of_probabilities(prob, self.outputs).sum(0)
            return prob

        return watched

    def aligned(self, teacher: Callable[[Tensor], Tensor], strength: float) -> Callable[[Tensor], Tensor]:
        """The teacher with its classes as frequent as in labeled patches; itself while there are no averages yet."""
        if not strength or self.sparse or self.seen <= WINDOW or not {"believed", "random"} <= set(self.mean):
            return teacher
        labeled, predicted = self.mean["random"], self.mean["believed"]
        return lambda image: aligned(teacher(image), labeled, predicted, self.outputs, strength=strength)

    def shares(self, target: Any, random_crops: int) -> dict[str, Float[Tensor, " M"]]:
        """Sums over patches of the share of each class, and in the last place of the voxels that count.

        Args:
            target: nnU-Net's, a list under deep supervision.
            random_crops: the first so many patches were not laid on foreground.
        """
        if not self.on:
            return {}
        labeled = self._labeled_shares(full_resolution(target))
        predicted, believed = self._seen or [torch.zeros_like(labeled[0])] * 2
        found = (predicted, labeled.sum(0), labeled[:random_crops].sum(0), believed)
        return dict(zip(SIDES, found, strict=True))

    def update(self, sums: Mapping[str, Sequence[float]]) -> list[str]:
        """Takes in one iteration, as `shares` has it; returns what has changed in words."""
        if not self.on:
            return []
        for side, (*parts, valid) in ((side, sums[side]) for side in SIDES):
            if valid and math.isfinite(sum(parts)):  # one infinity of a teacher in half precision would stay for ever
                now = [part / valid for part in parts]
                before, weight = self.mean.get(side, now), 1 / min(self.seen + 1, WINDOW)
                self.mean[side] = [old + (new - old) * weight for old, new in zip(before, now, strict=True)]
        self.seen += 1
        if self.seen <= WINDOW or "teacher" not in self.mean:
            return []
        self._widen_range()
        if self.seen <= WARM_UP:
            return []
        return [line for index in range(len(self.names)) if (line := self._judge(index))]

    def state_dict(self) -> dict[str, Any]:
        names = ("seen", "mean", "largest", "smallest", "known", "met", "held")
        return copy.deepcopy({name: getattr(self, name) for name in names})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, value in copy.deepcopy(dict(state)).items():
            setattr(self, name, value)
        if not self.on:  # switched off since: nobody would let go
            self.held = {}

    def _widen_range(self) -> None:
        largest, smallest = self.mean["labeled"], self.mean.get("random")
        self.largest = [max(pair) for pair in zip(self.largest or largest, largest, strict=True)]
        if smallest is not None and not self.sparse:
            self.smallest = [min(pair) for pair in zip(self.smallest or smallest, smallest, strict=True)]

    def _judge(self, index: int) -> str | None:
        name, share = self.names[index], self.mean["teacher"][index]
        high, low = HIGH * self.largest[index] or STRANGE, self.smallest[index] / LOW if self.smallest else 0.0
        if name in self.held:
            high, low = high / RETURN, low * RETURN
        out = "above" if share > high else "below" if share < low else None
        self._meet(name, share, index)
        if out == "below" and name not in self.known:
            return None
        if out == self.held.get(name):
            return None
        self.held.pop(name, None)
        if out is None:
            return f"semisam: {name}: {share:.3g} of the unlabeled patches, within the range of the labeled ones again"
        self.held[name] = out
        return (
            f"WARNING: semisam: the teacher predicts {name} in {share:.3g} of the voxels of unlabeled patches, {out} "
            f"{high if out == 'above' else low:.3g}, the limit that labeled patches set. The weights of the unlabeled "
            "terms are 0 until it returns (collapse_guard = false switches this off)"
        )

    def _meet(self, name: str, share: float, index: int) -> None:
        found = bool(self.smallest) and share >= self.smallest[index] / RETURN
        self.met[name] = self.met.get(name, 0) + 1 if found else 0
        if self.met[name] >= WINDOW and name not in self.known:
            self.known.append(name)

    def _predicted_shares(self, prob: Float[Tensor, "U K *S"]) -> Float[Tensor, "U M"]:
        if self.outputs.has_regions:
            return shares_of_regions(prob > 0.5, None)
        return shares_of_labels(self.outputs.labels(prob), self.outputs.num_heads)

    def _labeled_shares(self, target: Tensor) -> Float[Tensor, "B M"]:
        """Of labels (B, 1, *S), or of regions (B, K or K + 1, *S), whose channel K marks what is ignored."""
        heads = self.outputs.num_heads
        if not self.outputs.has_regions:
            return shares_of_labels(target[:, 0].long(), heads)
        return shares_of_regions(target[:, :heads] > 0, target[:, heads] > 0 if target.shape[1] > heads else None)


def build_collapse_guard(trainer: nnUNetTrainer, outputs: OutputSpace, *, on: bool) -> CollapseGuard:
    """The guard for the classes of a trainer."""
    names = head_names(trainer.label_manager)
    names = ["background", *names] if outputs.has_regions else names
    return CollapseGuard(outputs, names, trainer.label_manager.has_ignore_label, on)


def alignment_trouble(trainer: nnUNetTrainer) -> str | None:
    """Why no labeled patch tells how frequent classes are; None if some do."""
    if trainer.label_manager.has_ignore_label:
        return "with an ignore label labeled voxels show more foreground than there is"
    if not random_crops(trainer, trainer.batch_size):
        return "no labeled patch is cropped at random (probabilistic oversampling, or a batch that is all foreground)"
    return None


def random_crops(trainer: nnUNetTrainer, batch_size: int) -> int:
    """How many patches of a batch, from its first one on, nnU-Net's loader has not laid on foreground."""
    if trainer.probabilistic_oversampling:
        return 0  # any
    return round(batch_size * (1 - trainer.oversample_foreground_percent))


def _of_probabilities(prob: Float[Tensor, "U K *S"], outputs: OutputSpace) -> Float[Tensor, "U M"]:
    """Mean probability of each class, with regions that of no region first; and 1."""
    mean = prob.flatten(2).mean(2)
    if outputs.has_regions:
        mean = torch.cat([1 - prob.amax(1).flatten(1).mean(1, keepdim=True), mean], 1)
    return torch.cat([mean, torch.ones_like(mean[:, :1])], 1)
