"""Readiness: unlabeled patches teach nothing while the network cannot do the labeled ones.

A teacher that has not found a class calls it background; with the weight of an unlabeled term that keeps the student
from finding it either. So, a short time at the start excepted, the unlabeled terms have weight 0 while the student's
Dice on the labeled patches of the training steps, as a moving average, is below a threshold for any class that these
patches have shown. A class that the network never learns from its labels leaves the run a supervised one.

The time at the start counts, because consistency then decides what a network looks for, before it knows anything.

Only labeled patches are looked at, after augmentation and by the weights that learn from them: a training Dice.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nnunet_semisam.ops.outputs import OutputSpace, full_resolution
from nnunet_semisam.ops.shares import shares_of_labels, shares_of_regions

GRACE = 250  # iterations at the start, or an eighth of the training if that is less: an epoch of nnU-Net
WINDOW = 100  # iterations that the averages look back on
COUNTS = ("overlap", "predicted", "shown")


@dataclass
class Readiness:
    """The moving Dice of each foreground class on labeled patches; `ready` says whether unlabeled terms may count.

    Args:
        outputs: what the heads mean.
        names: of the foreground classes, in the order of the heads.
        threshold: Dice that every class needs; 0: always ready, and nothing is counted.
        iterations: length of the training.
    """

    outputs: OutputSpace
    names: Sequence[str]
    threshold: float
    iterations: int
    ready: bool = field(init=False)
    seen: int = field(default=0, init=False)
    mean: dict[str, list[float]] = field(init=False)  # of `COUNTS`, over the iterations that have shown the class

    def __post_init__(self) -> None:
        self.ready = self.threshold == 0 or self.grace > 0
        self.mean = {name: [0.0] * len(self.names) for name in COUNTS}

    @property
    def grace(self) -> int:
        """Iterations at the start in which nothing has to be known."""
        return min(GRACE, self.iterations // 8)

    def counts(self, output: Tensor | list[Tensor], target: Tensor | list[Tensor]) -> dict[str, Float[Tensor, " F"]]:
        """Sums over labeled patches of the share that each foreground class has, by `COUNTS`.

        Args:
            output: the student's logits, a list under deep supervision.
            target: nnU-Net's, likewise.
        """
        if not self.threshold:
            return {}
        logits, truth = full_resolution(output), full_resolution(target)
        parts = self._of_regions(logits, truth) if self.outputs.has_regions else self._of_labels(logits, truth)
        return dict(zip(COUNTS, (part[:, 1:-1].sum(0) for part in parts), strict=True))

    def update(self, sums: Mapping[str, Sequence[float]]) -> str | None:
        """Takes in one iteration, as `counts` has it; says in words when `ready` has changed."""
        if not self.threshold:
            return None
        self.seen += 1
        for number, shown in enumerate(sums["shown"]):
            if shown:
                for name in COUNTS:
                    self.mean[name][number] += (sums[name][number] - self.mean[name][number]) / WINDOW
        dice, was = self.dice(), self.ready
        self.ready = self.seen < self.grace or (bool(dice) and not self.missing())
        if self.ready and not was:
            return f"semisam: Dice on labeled patches {_words(dice)}: unlabeled patches count from now on"
        if was and not self.ready:
            return f"WARNING: semisam: the weights of the unlabeled terms are 0: {self.reason()}"
        return None

    def missing(self) -> dict[str, float]:
        """The Dice of the classes that are not known well enough."""
        return {name: dice for name, dice in self.dice().items() if dice < self.threshold}

    def reason(self) -> str:
        """What keeps unlabeled patches from counting, in words."""
        if missing := self.missing():
            return f"Dice on labeled patches {_words(missing)}, below min_labeled_dice = {self.threshold}"
        return "labeled patches have not shown any class"

    def dice(self) -> dict[str, float]:
        """The moving Dice of every class that labeled patches have shown."""
        rows = zip(self.names, *(self.mean[name] for name in COUNTS), strict=True)
        return {name: 2 * overlap / (predicted + shown) for name, overlap, predicted, shown in rows if shown}

    def state_dict(self) -> dict[str, Any]:
        return copy.deepcopy({name: getattr(self, name) for name in ("ready", "seen", "mean")})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, value in copy.deepcopy(dict(state)).items():
            setattr(self, name, value)
        self.ready = self.ready or not self.threshold

    def _of_labels(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        count = self.outputs.num_heads
        truth, predicted = target[:, 0].long(), self.outputs.labels(logits)
        nowhere = torch.full_like(truth, count)
        hit = torch.where(predicted == truth, truth, nowhere)
        predicted = torch.where(truth == count, nowhere, predicted)
        return tuple(shares_of_labels(labels, count) for labels in (hit, predicted, truth))  # type: ignore[return-value]

    def _of_regions(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        heads = self.outputs.num_heads
        truth, predicted = target[:, :heads] > 0, logits > 0
        ignored = target[:, heads] > 0 if target.shape[1] > heads else None
        masks = (predicted & truth, predicted, truth)
        return tuple(shares_of_regions(mask, ignored) for mask in masks)  # type: ignore[return-value]


def _words(dice: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in dice.items())
