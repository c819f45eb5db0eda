"""What is compared: an arm is a trainer, a `semisam` section, and the labels that it may see."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

TRAINER = "nnUNetTrainerSemiSAM"
NAME = re.compile(r"[A-Za-z0-9]+([_-][A-Za-z0-9]+)*")  # no double underscore: nnU-Net splits folder names there
SETTLED = ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch", "seed")
CONTROL = {"sam": {"backend_args": {"random_weights": 0}, "tune": 0, "trust": None, "min_agreement": 0.0}}
NO_TERMS = {"terms": {"consistency": {"weight": 0}, "sam": {"weight": 0}}}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One column of the comparison.

    Args:
        name: appears in folder names and tables.
        trainer: class name, as for `nnUNetv2_train -tr`.
        section: `semisam` section without length and seed, which the protocol sets for all arms alike.
        labels: "budget", or "all" for the fully supervised ceiling.
        time_of: name of another arm whose training time this one gets, by training more epochs.
        like: for `time_of`: name of the arm that is this one at the common length.
    """

    name: str
    trainer: str = TRAINER
    section: Mapping[str, Any] = field(default_factory=dict)
    labels: str = "budget"
    time_of: str | None = None
    like: str | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """Arms that have to be finished before this one starts."""
        return () if self.time_of is None else (self.time_of, str(self.like))

    def as_entry(self) -> str | dict[str, Any]:
        """What `parse_arms` makes this arm from: the name of a built-in one, or what differs from the defaults."""
        if self == BUILT_IN.get(self.name):
            return self.name
        plain = Arm(name=self.name)
        own = {key.name: getattr(self, key.name) for key in fields(self)}
        return {key: value for key, value in own.items() if key == "name" or value != getattr(plain, key)}


# with every term at weight 0 nnUNetTrainerSemiSAM is the stock trainer, step for step, but of any length and seeded
BUILT_IN = {
    arm.name: arm
    for arm in (
        Arm(name="supervised", section=NO_TERMS),
        Arm(name="supervised_time", section=NO_TERMS, time_of="semisam", like="supervised"),
        Arm(name="full", section=NO_TERMS, labels="all"),
        Arm(name="mean_teacher", trainer="nnUNetTrainerMeanTeacher"),
        Arm(name="semisam"),
        Arm(name="faithful", trainer="nnUNetTrainerSemiSAMFaithful"),
        Arm(name="random_sam", section=CONTROL),  # neither known anything before, nor shown the labels
    )
}


def parse_arms(entries: list[Any]) -> tuple[Arm, ...]:
    """Arms from names of built-in ones and dictionaries of the fields of `Arm`.

    Raises:
        ValueError: unknown name or key, a name twice, or a section that sets what the protocol sets.
    """
    arms = tuple(_parse(entry) for entry in entries)
    names = [arm.name for arm in arms]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"arms: {', '.join(twice)} twice; every arm needs a name of its own")
    for arm in arms:
        _check_needs(arm, {arm.name: arm for arm in arms})
    return arms


def _check_needs(arm: Arm, arms: Mapping[str, Arm]) -> None:
    if missing := [name for name in arm.needs if name not in arms]:
        raise ValueError(f"arms: {arm.name} needs the arm {' and '.join(missing)}, which is not in the list; add it")
    for other in (arms[name] for name in arm.needs):
        if other.needs or other.labels != arm.labels:
            raise ValueError(
                f"arms: {arm.name} cannot be measured against {other.name}: both need the same labels, and "
                f"{other.name} a length of its own"
            )


def _parse(entry: Any) -> Arm:
    if isinstance(entry, str):
        if entry not in BUILT_IN:
            raise ValueError(
                f"arms: {entry!r} is unknown; built in are {', '.join(BUILT_IN)}; an arm of your own is "
                'a dictionary such as {"name": "fixmatch", "section": {"method": "fixmatch", "sam": null}}'
            )
        return BUILT_IN[entry]
    known = [entry.name for entry in fields(Arm)]
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not NAME.fullmatch(entry["name"]):
        raise ValueError(f"arms: {entry!r} must be a name, or a dictionary with a name of letters, digits, _ and -")
    if strange := [key for key in entry if key not in known]:
        raise ValueError(f"arms: {entry['name']} has the unknown key {strange[0]!r}; known are {', '.join(known)}")
    _check_values(entry)
    return Arm(**entry)


def _check_values(entry: dict[str, Any]) -> None:
    name = entry["name"]
    if not isinstance(section := entry.get("section", {}), dict):
        raise ValueError(f"arms: the section of {name} is {section!r}; it must be a dictionary")
    if strange := [key for key in SETTLED if key in section]:
        raise ValueError(f"arms: {name} sets {strange[0]} in its section; the protocol sets it for all arms alike")
    if entry.get("labels", "budget") not in ("budget", "all"):
        raise ValueError(f'arms: the labels of {name} are {entry["labels"]!r}; they must be "budget" or "all"')
    if not isinstance(trainer := entry.get("trainer", TRAINER), str):
        raise ValueError(f"arms: the trainer of {name} is {trainer!r}; it must be the name of a class")
    times = [entry.get(key) for key in ("time_of", "like")]
    if any(times) and not all(isinstance(value, str) for value in times):
        raise ValueError(f"arms: {name} needs time_of and like, both names of arms, or neither; they are {times}")
