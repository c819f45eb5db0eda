"""The configuration of a run: dataclass defaults < preset of the trainer class < `semisam` section of the plans."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nnunet_semisam.ops.schedules import SCHEDULES
from nnunet_semisam.values import (
    Refused,
    require_instance,
    require_integer,
    require_no_twice,
    require_number,
    require_one_of,
)

SECTION = "semisam"  # key of a configuration in the plans
PROMPT_KINDS = ("points", "negative_points", "box", "mask")
POINT_SOURCES = ("center", "certain")
WEIGHTS = ("iou", "stability", "agreement")


@dataclass(frozen=True, kw_only=True)
class TermConfig:
    """Weight of one loss term over the training.

    `delay` iterations pass with weight 0 before the schedule begins. `iterations` is the length of the schedule; None
    means until the end of the training. With `every` = k the term counts in each k-th iteration only, with the weight
    that it has there.
    """

    weight: float
    schedule: str = "constant"
    iterations: int | None = None
    delay: int = 0
    every: int = 1

    def __post_init__(self) -> None:
        require_one_of("schedule", self.schedule, SCHEDULES)
        require_number("weight", self.weight, 0)
        require_integer("iterations", self.iterations, 1, or_null=True)
        require_integer("delay", self.delay, 0)
        require_integer("every", self.every, 1)

    def at(self, iteration: int, total_iterations: int) -> float:
        """The weight at `iteration` (counted from 0) of a training of `total_iterations`."""
        if self.weight == 0 or iteration < self.delay or (iteration - self.delay) % self.every:
            return 0.0
        length = self.iterations or max(1, total_iterations - self.delay)
        return self.weight * SCHEDULES[self.schedule](iteration - self.delay, length)


@dataclass(frozen=True, kw_only=True)
class SamConfig:
    """Which generalist is asked, and how."""

    backend: str = "embedded"
    checkpoint: str | None = None  # path, or name in the folder nnUNet_sam_checkpoints; None = what ships
    backend_args: dict[str, Any] = field(default_factory=dict)
    prompts: tuple[str, ...] = ("mask", "box", "points", "negative_points")
    num_points: int = 1  # positive clicks per object
    num_negative_points: int = 1
    points_from: str = "center"  # RITM: the deepest place; "certain" = SemiSAM's text: where the entropy is lowest
    box_margin: float = 0.05  # share of a box's side added on each side, at least 2 voxels; 0 = the tight box
    components: int | None = 2  # paired organs; decoding costs at most twice as much. null = a class is one object
    rounds: int = 1  # answers per object; from the second on its errors are clicked (RITM, Segment Anything)
    jitters: int = 0  # further answers to shaken prompts, whose spread lowers the weight (SemiSAM+)
    min_stability: float = 0.0  # Dice among the answers to shaken prompts below which none is used (SAM-CLNet)
    axis: int | str = "alternate"  # planes of a 3D patch for 2D generalists: 0, 1, 2, or a new axis each question
    planes: int = 8  # budget of planes per patch
    min_voxels: int = 20  # smaller objects are not prompted and cause no loss
    min_agreement: float = 0.3  # Dice between prompt and answer below which the answer is not used
    weigh_by: tuple[str, ...] = WEIGHTS  # what is multiplied into the confidence of an answer; none: all count 1
    hard: bool = False  # SemiSAM: masks of 0 and 1 instead of probabilities
    trust: str | dict[str, float] | None = "auto"  # factor per class; "auto" = tested at the start; None = all
    tune: int | str | None = "auto"  # steps of tuning on the labeled cases before training; "auto" = the backend's own

    def __post_init__(self) -> None:
        require_instance("backend", self.backend, str, "a string")
        if self.checkpoint is not None:
            require_instance("checkpoint", self.checkpoint, str, "a string, or null for the weights that ship")
        require_instance("backend_args", self.backend_args, Mapping, "a dictionary")
        require_instance("prompts", self.prompts, (list, tuple), f"a list out of {', '.join(PROMPT_KINDS)}")
        require_instance("weigh_by", self.weigh_by, (list, tuple), f"a list out of {', '.join(WEIGHTS)}, or []")
        for name in ("prompts", "weigh_by"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for number, name in enumerate(self.weigh_by):
            require_one_of(f"weigh_by[{number}]", name, WEIGHTS)
        require_no_twice("weigh_by", self.weigh_by)
        require_instance("hard", self.hard, bool, "true or false")
        self._check_prompts()
        require_one_of("axis", self.axis, (0, 1, 2, "alternate"))
        for name in ("num_points", "planes", "min_voxels"):
            require_integer(name, getattr(self, name), 1)
        require_integer("num_negative_points", self.num_negative_points, 0)
        require_number("min_agreement", self.min_agreement, 0, 1)
        require_one_of("points_from", self.points_from, POINT_SOURCES)
        require_number("box_margin", self.box_margin, 0)
        require_integer("components", self.components, 0, or_null=True)
        require_integer("rounds", self.rounds, 1)
        require_integer("jitters", self.jitters, 0)
        require_number("min_stability", self.min_stability, 0, 1)
        if self.min_stability and not self.jitters:
            raise Refused(
                "min_stability", f"is {self.min_stability!r}, but sam.jitters is 0; set sam.jitters to 2 or more"
            )
        if self.tune is not None and self.tune != "auto" and (type(self.tune) is not int or self.tune < 0):
            raise Refused("tune", f'is {self.tune!r}; it must be an integer of at least 0, null, or "auto"')
        self._check_trust()

    def _check_trust(self) -> None:
        if self.trust is None or self.trust == "auto":
            return
        if not isinstance(self.trust, Mapping):
            raise Refused("trust", f'is {self.trust!r}; it must be "auto", null, or like {{"liver": 1, "tumor": 0}}')
        for name, value in self.trust.items():
            require_number(f"trust.{name}", value, 0, 1)

    def _check_prompts(self) -> None:
        for number, kind in enumerate(self.prompts):
            require_one_of(f"prompts[{number}]", kind, PROMPT_KINDS)
        require_no_twice("prompts", self.prompts)
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
            "consistency": TermConfig(weight=2.0),
            "sam": TermConfig(weight=0.5, schedule="sigmoid_rise_and_fall"),
        }
    )
    sam: SamConfig | None = field(default_factory=SamConfig)  # None = no generalist
    distribution_alignment: float = 0.0  # scale the teacher's classes to the labeled patches' frequencies (ReMixMatch)
    labeled_as_unlabeled: bool = False  # labeled images join the unlabeled pool: what the ignore label left out counts
    allow_unlabeled_val: bool = False  # may a validation case also serve as unlabeled case (transductive)?
    num_epochs: int | None = None
    num_iterations_per_epoch: int | None = None
    num_val_iterations_per_epoch: int | None = None
    seed: int | None = None
    max_bad_steps: int = 20  # steps left out because loss or gradient is not finite, at which training ends
    min_labeled_dice: float = 0.5  # moving Dice on labeled patches that every class needs for unlabeled ones to count
    collapse_guard: bool = True  # hold back unlabeled terms while the teacher's shares of classes are out of range
    skip_bad: bool = False  # leave out images of imagesUn that cannot be used, instead of an error
    resume_changed: bool = False  # continue with other plans or another section than the checkpoint was written with

    def __post_init__(self) -> None:
        require_instance("method", self.method, str, "a string")
        for name in ("method_args", "terms"):
            require_instance(name, getattr(self, name), Mapping, "a dictionary")
        require_number("ema_decay", self.ema_decay, 0, 1, below=True)  # at 1 the teacher would never change
        for name in ("distribution_alignment", "min_labeled_dice"):
            require_number(name, getattr(self, name), 0, 1)
        if self.distribution_alignment and not self.collapse_guard:
            raise Refused(
                "distribution_alignment",
                f"is {self.distribution_alignment!r}, but collapse_guard, which counts the classes, is off; set one of "
                "them otherwise",
            )
        for name in ("labeled_as_unlabeled", "allow_unlabeled_val", "collapse_guard", "skip_bad", "resume_changed"):
            require_instance(name, getattr(self, name), bool, "true or false")
        for name in ("unlabeled_batch_size", "num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch"):
            require_integer(name, getattr(self, name), 1, or_null=True)
        require_integer("seed", self.seed, or_null=True)
        require_integer("max_bad_steps", self.max_bad_steps, 1)

    def with_section(self, section: Mapping[str, Any], *, uses_sam: bool = True) -> SemiSAMConfig:
        """This configuration with the keys of a `semisam` section laid over it.

        `terms` and `sam` are merged key by key, `method_args` while the method stays the same; `"sam": null` switches
        the generalist off, and so does `uses_sam` = False, whatever the section says.

        Raises:
            ValueError: unknown key or value; the message lists the known ones.
        """
        if not isinstance(section, Mapping):
            raise ValueError(f"semisam: the section is {section!r}; it must be a dictionary")
        values = dict(section)
        if "terms" in values:
            require_instance("terms", values["terms"], Mapping, "a dictionary")
            values["terms"] = self.terms | {
                name: _merged(TermConfig, self.terms.get(name), term, f"terms.{name}")
                for name, term in values["terms"].items()
            }
        if values.get("method", self.method) != self.method:
            values.setdefault("method_args", {})
        elif "method_args" in values:
            require_instance("method_args", values["method_args"], Mapping, "a dictionary")
            values["method_args"] = _laid_over(self.method_args, values["method_args"])
        if values.get("sam") is not None:
            values["sam"] = _merged(SamConfig, self.sam, values["sam"], "sam")
        config: SemiSAMConfig = _merged(SemiSAMConfig, self, values)
        return config if uses_sam else dataclasses.replace(config, sam=None)

    def of_configuration(self, configuration: Mapping[str, Any], where: str, *, uses_sam: bool = True) -> SemiSAMConfig:
        """`with_section` of the section of a configuration in the plans.

        Args:
            where: what the configuration is called in messages.

        Raises:
            ValueError: as `with_section` and `section_of`.
        """
        try:
            return self.with_section(section_of(configuration), uses_sam=uses_sam)
        except ValueError as error:
            raise ValueError(f"{error} ({where})") from error

    def active_terms(self) -> tuple[str, ...]:
        """Names of the terms whose weight is not zero for the whole training."""
        return tuple(name for name, term in self.terms.items() if term.weight > 0 and (name != "sam" or self.sam))

    def require_terms(self, known: tuple[str, ...]) -> None:
        """Checks that every term that has a weight is one that the method makes.

        Raises:
            ValueError: it names the term and lists those that the method makes.
        """
        for name in self.terms:
            if name not in known:
                raise Refused("terms", f"has no term named {name!r}; known are {', '.join(known)}")

    def refuse_late_terms(self, total_iterations: int) -> None:
        """Checks that every term counts in some iteration of the training.

        Raises:
            ValueError: it names the term and both numbers.
        """
        for name in self.active_terms():
            term = self.terms[name]
            turns = range(term.delay, total_iterations, term.every)
            if not any(term.at(iteration, total_iterations) for iteration in turns):
                late, rare = term.delay >= total_iterations, term.every > 1
                key = "delay" if late else "every" if rare else "schedule"
                raise Refused(
                    f"terms.{name}.{key}",
                    f"is {getattr(term, key)}, but the training has {total_iterations} iterations, so the term would "
                    f"never count; choose {'another' if key == 'schedule' else 'a smaller'} one, or weight 0",
                )

    def weights(self, iteration: int, total_iterations: int) -> dict[str, float]:
        """Weight of every active term at `iteration`."""
        return {name: self.terms[name].at(iteration, total_iterations) for name in self.active_terms()}

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists and numbers, ready for JSON and for `with_section`."""
        values = dataclasses.asdict(self)
        if values["sam"] is not None:
            values["sam"] |= {name: list(values["sam"][name]) for name in ("prompts", "weigh_by")}
        return values


def is_section(key: str) -> bool:
    """Whether a key is the section's, or almost: "semi_sam", "SemiSAM"."""
    return "".join(filter(str.isalpha, key.lower())) == SECTION


def section_of(configuration: Mapping[str, Any]) -> Mapping[str, Any]:
    """The `semisam` section of a configuration in the plans; empty where there is none.

    Raises:
        ValueError: a key is almost called so, which nobody would read.
    """
    for key in configuration:
        if key != SECTION and is_section(key):
            raise ValueError(f"semisam: a section is named {key!r}, which is not read; rename it to {SECTION!r}")
    return configuration.get(SECTION, {})


def _laid_over(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` over `base`, dictionaries key by key."""
    both = [name for name in values if isinstance(values[name], Mapping) and isinstance(base.get(name), Mapping)]
    return {**base, **values, **{name: {**base[name], **values[name]} for name in both}}


def _merged(kind: type, base: Any, values: Mapping[str, Any], where: str = "") -> Any:
    """`base` with `values` laid over it, or a new `kind` of them; `where` is the key that holds the values."""
    fields = dataclasses.fields(kind)
    known = [f.name for f in fields]
    if not isinstance(values, Mapping):
        hint = f', for instance {{"backend": "{values}"}}' if kind is SamConfig and isinstance(values, str) else ""
        raise Refused(where, f"is {values!r}; it must be a dictionary with keys out of {', '.join(known)}{hint}")
    for key in values:
        if key not in known:
            raise ValueError(
                f"semisam: unknown key {key!r} in {where or 'the section'}; known keys are {', '.join(known)}"
            )
    needed = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    if base is None and (missing := [name for name in needed if name not in values]):
        hint = ", or correct its name" if kind is TermConfig else ""
        raise Refused(where, f"has no {', '.join(missing)}; add it{hint}")
    try:
        return dataclasses.replace(base, **values) if base is not None else kind(**values)
    except Refused as error:
        raise Refused(f"{where}.{error.key}" if where else error.key, error.reason) from None
