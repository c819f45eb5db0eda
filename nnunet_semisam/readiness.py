"""Readiness: unlabeled patches teach nothing while the network cannot do the labeled ones.

A teacher that has not found a class calls it background; with the weight of an unlabeled term that keeps the student
from finding it either. So the unlabeled terms have weight 0 while the student's Dice on the labeled patches of the
training steps, as a moving average, is below a threshold for any class that these patches show. A class that the
network never learns from its labels leaves the run a supervised one.

The first iterations of a training are free of this: what a network learns first from few labels stays, and unlabeled
patches have a say in it.

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

START = 250  # iterations that are free, or an eighth of the training if that is less: an epoch of nnU-Net
WINDOW = 100  # iterations that the averages look back on
FORGET = 1000  # iterations after which a class that was not shown again does not matter
MARGIN = 0.9  # of the threshold: below it the terms end, so that they do not come and go
NAMED = 5  # classes in a message
NOT_COUNTED = "unlabeled patches did not count at the end"
COUNTS = ("overlap", "predicted", "shown")


@dataclass
class Readiness:
    """The moving Dice of each foreground class on labeled patches; `ready` says whether unlabeled terms may count.

    Args:
        outputs: what the heads mean.
        names: of the foreground classes, in the order of the heads.
        threshold: Dice that every class needs; 0: always ready, and nothing is counted.
    """

    outputs: OutputSpace
    names: Sequence[str]
    threshold: float
    ready: bool = field(default=True, init=False)
    starting: bool = field(default=True, init=False, compare=False)  # as judged last: in the free first iterations
    mean: dict[str, list[float]] = field(init=False)  # of `COUNTS`, over the iterations that have shown the class
    unseen: list[int] = field(init=False)  # iterations since a class was shown

    def __post_init__(self) -> None:
        self.mean = {name: [0.0] * len(self.names) for name in COUNTS}
        self.unseen = [FORGET] * len(self.names)

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

    def update(self, sums: Mapping[str, Sequence[float]]) -> None:
        """Takes in one iteration, as `counts` has it."""
        for number, shown in enumerate(sums["shown"] if self.threshold else ()):
            self.unseen[number] = 0 if shown else self.unseen[number] + 1
            for name in COUNTS if shown else ():
                self.mean[name][number] += (sums[name][number] - self.mean[name][number]) / WINDOW

    def judge(self, iteration: int, total_iterations: int) -> str | None:
        """Sets `ready` for an iteration (counted from 0); says in words when it has changed."""
        dice, was = self.dice(), self.ready
        limit = self.threshold * (MARGIN if was else 1)
        self.starting = iteration < min(START, total_iterations // 8)
        free = self.starting or not self.threshold
        self.ready = free or (bool(dice) and min(dice.values()) >= limit)
        if self.ready == was:
            return None
        if self.ready:
            return f"semisam: unlabeled patches count again: Dice on labeled patches {_lowest(dice)}"
        return f"WARNING: semisam: the weights of the unlabeled terms are 0: {self.reason()}"

    def reason(self) -> str:
        """Why unlabeled patches do not count, in words."""
        dice = self.dice()
        found = f"Dice on labeled patches {_lowest(dice)}" if dice else "labeled patches have not shown any class yet"
        return f"{found}; min_labeled_dice is {self.threshold}"

    def dice(self) -> dict[str, float]:
        """The moving Dice of every class that labeled patches show."""
        rows = zip(self.names, self.unseen, *(self.mean[name] for name in COUNTS), strict=True)
        return {name: 2 * hit / (said + shown) for name, unseen, hit, said, shown in rows if unseen < FORGET}

    def state_dict(self) -> dict[str, Any]:
        return copy.deepcopy({name: getattr(self, name) for name in ("ready", "mean", "unseen")})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, value in copy.deepcopy(dict(state)).items():
            setattr(self, name, value)

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


def _lowest(dice: Mapping[str, float]) -> str:
    few = sorted(dice, key=dice.__getitem__)[:NAMED]
    more = f" and {len(dice) - len(few)} more above" if len(dice) > len(few) else ""
    return ", ".join(f"{name} {dice[name]:.3f}" for name in few) + more
