"""The configuration of a run: dataclass defaults < preset of the trainer class < `semisam` section of the plans."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
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
        _number("weight", self.weight, 0)
        _integer("iterations", self.iterations, 1, or_null=True)

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
    tune: int | None = None  # steps of tuning on the labeled cases before training; null or 0 = none

    def __post_init__(self) -> None:
        _instance("backend", self.backend, str, "a string")
        if self.checkpoint is not None:
            _instance("checkpoint", self.checkpoint, str, "a string, or null for the weights that ship")
        _instance("backend_args", self.backend_args, Mapping, "a dictionary")
        _instance("prompts", self.prompts, (list, tuple), f"a list out of {', '.join(PROMPT_KINDS)}")
        object.__setattr__(self, "prompts", tuple(self.prompts))
        self._check_prompts()
        _one_of("axis", self.axis, (0, 1, 2, "alternate"))
        for name in ("num_points", "planes", "min_voxels"):
            _integer(name, getattr(self, name), 1)
        _integer("num_negative_points", self.num_negative_points, 0)
        _number("min_agreement", self.min_agreement, 0, 1)
        _integer("tune", self.tune, 0, or_null=True)

    def _check_prompts(self) -> None:
        for kind in self.prompts:
            _one_of("prompts", kind, PROMPT_KINDS)
        if not self.prompts:
            raise Refused("prompts", f"is empty; choose from {', '.join(PROMPT_KINDS)}")
        if set(self.prompts) == {"negative_points"}:
            raise Refused("prompts", "is negative_points alone, which finds no object; add others")


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
        _instance("method", self.method, str, "a string")
        for name in ("method_args", "terms"):
            _instance(name, getattr(self, name), Mapping, "a dictionary")
        _number("ema_decay", self.ema_decay, 0, 1)
        if self.ema_decay == 1:
            raise Refused("ema_decay", f"is {self.ema_decay!r}; it must be below 1, else the teacher never changes")
        _instance("allow_unlabeled_val", self.allow_unlabeled_val, bool, "true or false")
        for name in ("unlabeled_batch_size", "num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch"):
            _integer(name, getattr(self, name), 1, or_null=True)
        _integer("seed", self.seed, or_null=True)

    def with_section(self, section: Mapping[str, Any]) -> SemiSAMConfig:
        """This configuration with the keys of a `semisam` section laid over it.

        `terms` and `sam` are merged key by key; `"sam": null` switches the generalist off.

        Raises:
            ValueError: unknown key or value; the message lists the known ones.
        """
        if not isinstance(section, Mapping):
            raise ValueError(f"semisam: the section is {section!r}; it must be a dictionary")
        values = dict(section)
        if "terms" in values:
            _instance("terms", values["terms"], Mapping, "a dictionary")
            values["terms"] = self.terms | {
                name: _merged(TermConfig, self.terms.get(name), term, f"terms.{name}")
                for name, term in values["terms"].items()
            }
        if values.get("sam") is not None:
            values["sam"] = _merged(SamConfig, self.sam, values["sam"], "sam")
        return _merged(SemiSAMConfig, self, values)

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


def _merged(kind: type, base: Any, values: Mapping[str, Any], where: str = "") -> Any:
    """`base` with `values` laid over it, or a new `kind` of them; `where` is the key that holds the values."""
    fields = dataclasses.fields(kind)
    known = [f.name for f in fields]
    if not isinstance(values, Mapping):
        raise Refused(where, f"is {values!r}; it must be a dictionary with keys out of {', '.join(known)}")
    for key in values:
        if key not in known:
            raise ValueError(
                f"semisam: unknown key {key!r} in {where or 'the section'}; known keys are {', '.join(known)}"
            )
    needed = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    if base is None and (missing := [name for name in needed if name not in values]):
        raise Refused(where, f"has no {', '.join(missing)}; add it")
    try:
        return dataclasses.replace(base, **values) if base is not None else kind(**values)
    except Refused as error:
        raise Refused(f"{where}.{error.key}" if where else error.key, error.reason) from None


class Refused(ValueError):
    """A value that cannot be. The message names key, value and what is wanted."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"semisam: {key} {reason}")
        self.key, self.reason = key, reason


def _one_of(name: str, value: Any, known: Iterable[Any]) -> None:
    """True and 1.0 are not taken for 1."""
    if not any(type(value) is type(choice) and value == choice for choice in known):
        raise Refused(name, f"is {value!r}; known are {', '.join(map(str, known))}")


def _instance(name: str, value: Any, kind: Any, wanted: str) -> None:
    if not isinstance(value, kind):
        raise Refused(name, f"is {value!r}; it must be {wanted}")


def _integer(name: str, value: Any, low: int | None = None, *, or_null: bool = False) -> None:
    if or_null and value is None:
        return
    if type(value) is not int or (low is not None and value < low):
        wanted = "an integer" if low is None else f"an integer of at least {low}"
        raise Refused(name, f"is {value!r}; it must be {wanted}{', or null' if or_null else ''}")


def _number(name: str, value: Any, low: float, high: float = math.inf) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high or value == math.inf:  # NaN is never in order
        wanted = f"of at least {low}" if high == math.inf else f"from {low} to {high}"
        raise Refused(name, f"is {value!r}; it must be a number {wanted}")
