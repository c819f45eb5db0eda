"""The protocol of a benchmark: everything that decides its numbers, in one JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_semisam.benchmark.arms import Arm, parse_arms

DEFAULT_ARMS = ["supervised", "supervised_time", "full", "mean_teacher", "semisam"]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Data sets x label budgets x draws x seeds x arms. See `KEYS` for what each field means."""

    datasets: tuple[str, ...]
    splits: str | None = None
    budgets: tuple[int, ...] = (1, 2, 4)
    draws: tuple[str, ...] = ("0", "1", "2")
    seeds: tuple[int, ...] = (0,)
    arms: tuple[Arm, ...] = parse_arms(DEFAULT_ARMS)
    baseline: str = "supervised"
    configuration: str = "3d_fullres"
    epochs: int = 200
    iterations: int = 250
    val_iterations: int = 5
    network: Mapping[str, Any] | None = None
    fingerprint_from: str = "all"
    val_cases: int | None = None
    max_cases: int | None = None
    mirroring: bool = False
    tolerance: float = 1.0
    voxel_units: bool = False

    def arm(self, name: str) -> Arm:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    def as_dict(self) -> dict[str, Any]:
        """What `read_protocol` understands."""
        values = {key: getattr(self, key) for key in KEYS}
        return json.loads(json.dumps(values | {"arms": [arm.as_entry() for arm in self.arms]}))


KEYS = {
    "datasets": "raw data sets: folders, or names in nnUNet_raw",
    "splits": "JSON file: data set -> number of labels -> draw -> labeled, unlabeled, val; null = drawn at random",
    "budgets": "numbers of labeled cases",
    "draws": "names of draws in the splits file; without a file any names: each seeds a draw",
    "seeds": "of the trainings",
    "arms": "names of built-in arms, and dictionaries with name, section, trainer, labels, time_of, like",
    "baseline": "the arm that all others are compared with",
    "configuration": "nnU-Net's configuration",
    "epochs": "of every training",
    "iterations": "per epoch",
    "val_iterations": "per epoch: time, and without processes for augmentation other random numbers",
    "network": "null = as planned, or patch_size, features, batch_size and spacing (mm) of a smaller one",
    "fingerprint_from": '"all" cases, or only the "labeled" ones of each draw (plans once per draw)',
    "val_cases": "evaluation cases where there is no splits file (null = a fifth)",
    "max_cases": "evaluate at most so many (null = all)",
    "mirroring": "predict with mirroring: eight times as long in 3D",
    "tolerance": "of the surface Dice (NSD), in mm, or in voxels with voxel_units",
    "voxel_units": "distances in voxels instead of mm",
}


def read_protocol(values: Mapping[str, Any]) -> Protocol:
    """A checked protocol from the dictionary of a JSON file.

    Raises:
        ValueError: names the key, its value and what is wanted.
    """
    if strange := [key for key in values if key not in KEYS]:
        raise ValueError(f"protocol: unknown key {strange[0]!r}; known are {', '.join(KEYS)}")
    values = dict(values)
    if not values.get("datasets"):
        raise ValueError("protocol: no data sets; give datasets, a list of raw data set folders or names")
    for key in ("datasets", "draws", "seeds", "budgets", "arms"):
        if key in values and (not isinstance(values[key], (list, tuple)) or not values[key]):
            raise ValueError(f"protocol: {key} is {values[key]!r}; it must be a list that is not empty")
    _check_numbers(values)
    _check_words(values)
    for key in ("datasets", "draws"):
        values[key] = tuple(str(value) for value in values.get(key, getattr(Protocol, key, ())))
    for key in ("seeds", "budgets"):
        values[key] = tuple(values.get(key, getattr(Protocol, key)))
    for key in ("datasets", "draws", "seeds", "budgets"):
        if len(set(values[key])) < len(values[key]):
            raise ValueError(f"protocol: {key} is {list(values[key])}; something is in it twice")
    if "spacing" in (values.get("network") or {}):
        values["network"] = {**values["network"], "spacing": [float(size) for size in values["network"]["spacing"]]}
    values["arms"] = parse_arms(list(values.get("arms", DEFAULT_ARMS)))
    protocol = Protocol(**values)
    baseline = [arm for arm in protocol.arms if arm.name == protocol.baseline]
    if not baseline or baseline[0].labels != "budget":
        names = ", ".join(arm.name for arm in protocol.arms if arm.labels == "budget")
        raise ValueError(f"protocol: baseline is {protocol.baseline!r}; it must be one of the arms {names}")
    return protocol


def read_protocol_file(file: Path) -> dict[str, Any]:
    """The dictionary in a protocol file.

    Raises:
        ValueError: no such file, or not a JSON dictionary.
    """
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"protocol {file}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(
            f"protocol {file} holds a {type(values).__name__}; it must be a dictionary of {', '.join(KEYS)}"
        )
    return values


def _check_numbers(values: Mapping[str, Any]) -> None:
    limits = {"epochs": 1, "iterations": 1, "val_iterations": 1, "val_cases": 1, "max_cases": 1}
    may_be_null = ("val_cases", "max_cases")
    for key, low in limits.items():
        value = values.get(key, low)
        if not (value is None and key in may_be_null) and (type(value) is not int or value < low):
            raise ValueError(f"protocol: {key} is {value!r}; it must be an integer of at least {low}")
    for key, low in (("budgets", 1), ("seeds", 0)):
        if strange := [value for value in values.get(key, ()) if type(value) is not int or value < low]:
            raise ValueError(f"protocol: {key} has {strange[0]!r}; it must hold integers of at least {low}")
    tolerance = values.get("tolerance", 1.0)
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not 0 <= tolerance < float("inf"):
        raise ValueError(f"protocol: tolerance is {tolerance!r}; it must be a number of at least 0")


def _check_words(values: Mapping[str, Any]) -> None:
    if (value := values.get("fingerprint_from", "all")) not in ("all", "labeled"):
        raise ValueError(f'protocol: fingerprint_from is {value!r}; it must be "all" or "labeled"')
    for key in ("mirroring", "voxel_units"):
        if not isinstance(value := values.get(key, False), bool):
            raise ValueError(f"protocol: {key} is {value!r}; it must be true or false")
    for key in ("configuration", "baseline", "splits"):
        if not isinstance(value := values.get(key, ""), (str, type(None) if key == "splits" else str)):
            raise ValueError(f"protocol: {key} is {value!r}; it must be a string")
    _check_network(values)


def _check_network(values: Mapping[str, Any]) -> None:
    network, known = values.get("network"), ("patch_size", "features", "batch_size", "spacing")
    if network is not None and (not isinstance(network, dict) or set(network) - set(known)):
        raise ValueError(f"protocol: network is {network!r}; it must be null or a dictionary of {', '.join(known)}")
    for key, value in (network or {}).items():
        numbers = [value] if key == "batch_size" else value
        types, wanted = ((int, float), "numbers") if key == "spacing" else ((int,), "integers")
        if not isinstance(numbers, list) or not all(type(n) in types and 0 < n < float("inf") for n in numbers):
            raise ValueError(f"protocol: network.{key} is {value!r}; it must be made of positive {wanted}")
    configuration, spacing = values.get("configuration", "3d_fullres"), (network or {}).get("spacing", [1] * 3)
    if len(spacing) != 3 or ("spacing" in (network or {}) and configuration != "3d_fullres"):
        raise ValueError(
            f"protocol: network.spacing is {spacing} and the configuration {configuration}; nnU-Net plans with other "
            "spacings for 3d_fullres only, and wants three numbers"
        )
    axes = {"2d": 2, "3d": 3}.get(configuration[:2])
    if axes and len(patch := (network or {}).get("patch_size", [1] * axes)) != axes:
        raise ValueError(f"protocol: network.patch_size is {patch}; this configuration has {axes} axes")
    if len(features := (network or {}).get("features", [1] * 3)) < 3:
        raise ValueError(f"protocol: network.features is {features}; it must have at least 3 stages")
