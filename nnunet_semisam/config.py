"""The configuration of a run: dataclass defaults < preset of the trainer class < `semisam` section of the plans."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nnunet_semisam.ops.schedules import SCHEDULES

PROMPT_KINDS = ("points", "negative_points", "box", "mask")


@dataclass(frozen=True, kw_only=True)
class TermConfig:
    """Weight of one loss term over the training.

    `iterations` is the length of the schedule; None means the whole training.
    """

    weight: float
    schedule: str = "constant"
    iterations: int | None = None

    def __post_init__(self) -> None:
        _one_of("schedule", self.schedule, SCHEDULES)
        _at_least("weight", self.weight, 0)
        if self.iterations is not None:
            _at_least("iterations", self.iterations, 1)

    def at(self, iteration: int, total_iterations: int) -> float:
        """The weight at `iteration` (counted from 0) of a training of `total_iterations`."""
        if self.weight == 0:
            return 0.0
        return self.weight * SCHEDULES[self.schedule](iteration, self.iterations or total_iterations)


@dataclass(frozen=True, kw_only=True)
class SamConfig:
    """Which generalist is asked, and how."""

    backend: str = "embedded"
    checkpoint: str | None = None  # path, or name in the folder nnUNet_sam_checkpoints; None = what ships
    backend_args: dict[str, Any] = field(default_factory=dict)
    prompts: tuple[str, ...] = ("mask", "box", "points", "negative_points")
    num_points: int = 1  # positive clicks per object
    num_negative_points: int = 1
    axis: int | str = "alternate"  # planes of a 3D patch for 2D generalists: 0, 1, 2, or a new axis each iteration
    planes: int = 8  # budget of planes per patch
    min_voxels: int = 20  # smaller objects are not prompted and cause no loss
    min_agreement: float = 0.3  # Dice between prompt and answer below which the answer is not used

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", tuple(self.prompts))
        for kind in self.prompts:
            _one_of("prompts", kind, PROMPT_KINDS)
        if not self.prompts:
            raise ValueError(f"semisam: sam.prompts is empty; choose from {', '.join(PROMPT_KINDS)}")
        if set(self.prompts) == {"negative_points"}:
            raise ValueError("semisam: sam.prompts is negative_points alone, which finds no object; add others")
        _one_of("axis", self.axis, (0, 1, 2, "alternate"))
        for name in ("num_points", "planes", "min_voxels"):
            _at_least(name, getattr(self, name), 1)
        for name in ("num_negative_points", "min_agreement"):
            _at_least(name, getattr(self, name), 0)


@dataclass(frozen=True, kw_only=True)
class SemiSAMConfig:
    """Everything a user may set in the `semisam` section of a configuration in the plans file."""

    method: str = "mean_teacher"
    method_args: dict[str, Any] = field(default_factory=dict)
    ema_decay: float = 0.99  # UA-MT, SSL4MIS, SemiSAM
    unlabeled_batch_size: int | None = None  # None = the batch size of the plans
    terms: dict[str, TermConfig] = field(
        default_factory=lambda: {
            "consistency": TermConfig(weight=0.1, schedule="sigmoid_rampup"),  # SemiSAM: lambda(t)
            "sam": TermConfig(weight=0.1, schedule="sigmoid_rampdown"),  # SemiSAM: lambda_sam(t)
        }
    )
    sam: SamConfig | None = field(default_factory=SamConfig)  # None = no generalist
    allow_unlabeled_val: bool = False  # may a validation case also serve as unlabeled case (transductive)?
    num_epochs: int | None = None
    num_iterations_per_epoch: int | None = None
    num_val_iterations_per_epoch: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"semisam: ema_decay is {self.ema_decay}; it must be at least 0 and below 1")
        for name in ("unlabeled_batch_size", "num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch"):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 1)

    def with_section(self, section: Mapping[str, Any]) -> SemiSAMConfig:
        """This configuration with the keys of a `semisam` section laid over it.

        `terms` and `sam` are merged key by key; `"sam": null` switches the generalist off.

        Raises:
            ValueError: unknown key or value; the message lists the known ones.
        """
        values = dict(section)
        if "terms" in values:
            values["terms"] = self.terms | {
                name: _merged(TermConfig, self.terms.get(name), term, f"terms.{name}")
                for name, term in values["terms"].items()
            }
        if values.get("sam") is not None:
            values["sam"] = _merged(SamConfig, self.sam, values["sam"], "sam")
        return _merged(SemiSAMConfig, self, values, "semisam")

    def active_terms(self) -> tuple[str, ...]:
        """Names of the terms whose weight is not zero for the whole training."""
        return tuple(name for name, term in self.terms.items() if term.weight > 0 and (name != "sam" or self.sam))

    def require_terms(self, known: tuple[str, ...]) -> None:
        """Checks that every term that has a weight is one that the method makes.

        Raises:
            ValueError: it names the term and lists those that the method makes.
        """
        for name in self.terms:
            _one_of("terms", name, known)

    def weights(self, iteration: int, total_iterations: int) -> dict[str, float]:
        """Weight of every active term at `iteration`."""
        return {name: self.terms[name].at(iteration, total_iterations) for name in self.active_terms()}

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists and numbers, ready for JSON and for `with_section`."""
        values = dataclasses.asdict(self)
        if values["sam"] is not None:
            values["sam"]["prompts"] = list(values["sam"]["prompts"])
        return values


def _merged(kind: type, base: Any, values: Mapping[str, Any], where: str) -> Any:
    known = [f.name for f in dataclasses.fields(kind)]
    if not isinstance(values, Mapping):
        raise ValueError(f"semisam: {where} is {values!r}; it must be a dictionary with keys out of {', '.join(known)}")
    for key in values:
        if key not in known:
            raise ValueError(f"semisam: unknown key {key!r} in {where}; known keys are {', '.join(known)}")
    try:
        return dataclasses.replace(base, **values) if base is not None else kind(**values)
    except TypeError as error:
        raise ValueError(f"semisam: {where}: {error}") from error


def _one_of(name: str, value: Any, known: Any) -> None:
    if value not in known:
        raise ValueError(f"semisam: {name} is {value!r}; known are {', '.join(map(str, known))}")


def _at_least(name: str, value: float, low: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < low:
        raise ValueError(f"semisam: {name} is {value!r}; it must be a number of at least {low}")
