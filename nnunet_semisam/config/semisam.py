"""Everything that a user may set, and what is taken without it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nnunet_semisam.config.sam import SamConfig
from nnunet_semisam.config.section import laid_over, merged, section_of
from nnunet_semisam.config.term import TermConfig
from nnunet_semisam.values import Refused, require_instance, require_integer, require_number

TEACHER, TEACHER_ALONE = 1.0, 2.0  # weight of the teacher, where none is set: beside SAM, and without it


@dataclass(frozen=True, kw_only=True)
class SemiSAMConfig:
    """Everything a user may set in the `semisam` section of a configuration in the plans file."""

    method: str = "mean_teacher"
    method_args: dict[str, Any] = field(default_factory=dict)
    ema_decay: float = 0.99  # UA-MT, SSL4MIS, SemiSAM
    unlabeled_batch_size: int | None = None  # None = the batch size of the plans
    terms: dict[str, TermConfig] = field(
        default_factory=lambda: {
            "consistency": TermConfig(weight=None),
            "sam": TermConfig(weight=2.0),  # times the confidence of its answers, about a half
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
        for name, term in self.terms.items():
            if term.weight is None and name != "consistency":
                raise Refused(f"terms.{name}.weight", "is None; it must be a number of at least 0")
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
                name: merged(TermConfig, self.terms.get(name), term, f"terms.{name}")
                for name, term in values["terms"].items()
            }
        if values.get("method", self.method) != self.method:
            values.setdefault("method_args", {})
        elif "method_args" in values:
            require_instance("method_args", values["method_args"], Mapping, "a dictionary")
            values["method_args"] = laid_over(self.method_args, values["method_args"])
        if values.get("sam") is not None:
            values["sam"] = merged(SamConfig, self.sam, values["sam"], "sam")
        config: SemiSAMConfig = merged(SemiSAMConfig, self, values)
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

    def resolved_terms(self, *, with_sam: bool = True) -> dict[str, TermConfig]:
        """The terms with their weights in numbers, without that of SAM where there is none.

        Args:
            with_sam: False: SAM is configured, but not asked about any class.
        """
        sam = self.terms.get("sam") if with_sam and self.sam is not None else None
        teacher = TEACHER if sam is not None and sam.weight else TEACHER_ALONE
        return {
            name: dataclasses.replace(term, weight=teacher) if term.weight is None else term
            for name, term in self.terms.items()
            if name != "sam" or sam is not None
        }

    def active_terms(self) -> tuple[str, ...]:
        """Names of the terms whose weight is not zero for the whole training."""
        return tuple(name for name, term in self.resolved_terms().items() if term.weight)

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
        for name, term in self.resolved_terms().items():
            if not term.weight:
                continue
            turns = range(term.delay, total_iterations, term.every)
            if not any(term.at(iteration, total_iterations) for iteration in turns):
                late, rare = term.delay >= total_iterations, term.every > 1
                key = "delay" if late else "every" if rare else "schedule"
                raise Refused(
                    f"terms.{name}.{key}",
                    f"is {getattr(term, key)}, but the training has {total_iterations} iterations, so the term would "
                    f"never count; choose {'another' if key == 'schedule' else 'a smaller'} one, or weight 0",
                )

    def weights(self, iteration: int, total_iterations: int, *, with_sam: bool = True) -> dict[str, float]:
        """Weight of every active term at `iteration`; `with_sam` as for `resolved_terms`."""
        terms = self.resolved_terms(with_sam=with_sam)
        return {name: term.at(iteration, total_iterations) for name, term in terms.items() if term.weight}

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists and numbers, ready for JSON and for `with_section`."""
        values = dataclasses.asdict(dataclasses.replace(self, terms={**self.terms, **self.resolved_terms()}))
        if values["sam"] is not None:
            values["sam"] |= {name: list(values["sam"][name]) for name in ("prompts", "weigh_by")}
        return values
