"""A smaller patch, batch and network than nnU-Net planned, the same for all arms: for CPUs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def smaller(planned: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a configuration that differ from the planned one.

    The network keeps the first stages of the planned one, with its strides and kernels (so also its anisotropy).

    Args:
        planned: configuration from nnU-Net's plans, with nothing inherited.
        wanted: any of `patch_size`, `features` (channels per stage) and `batch_size`; `spacing` was planned with.

    Raises:
        ValueError: more stages than planned, fewer than three, or a patch that the strides do not divide.
    """
    changed: dict[str, Any] = {}
    if "batch_size" in wanted:
        changed["batch_size"] = wanted["batch_size"]
    if "features" in wanted:
        arguments = _truncated(planned["architecture"]["arch_kwargs"], wanted["features"])
        changed["architecture"] = {**planned["architecture"], "arch_kwargs": arguments}
    if "patch_size" in wanted:
        changed["patch_size"] = list(wanted["patch_size"])
    _check_patch({**planned, **changed})
    return changed


def _truncated(arguments: Mapping[str, Any], features: list[int]) -> dict[str, Any]:
    planned, stages = arguments["n_stages"], len(features)
    if not 3 <= stages <= planned:
        raise ValueError(f"features: {stages} stages are given; there must be 3 to {planned}, as many as planned")
    shorter = dict(arguments)
    for key, value in arguments.items():
        if isinstance(value, list) and len(value) in (planned, planned - 1):
            shorter[key] = value[: stages - planned + len(value)]
    return {**shorter, "n_stages": stages, "features_per_stage": list(features)}


def _check_patch(configuration: Mapping[str, Any]) -> None:
    patch, strides = configuration["patch_size"], configuration["architecture"]["arch_kwargs"]["strides"]
    axes = len(strides[0]) if isinstance(strides[0], (list, tuple)) else len(patch)
    if len(patch) != axes:
        raise ValueError(f"patch size {patch}: this configuration has {axes} axes")
    divisor = np.prod([np.broadcast_to(stride, axes) for stride in strides], axis=0)
    if any(size % step for size, step in zip(patch, divisor.tolist(), strict=True)):
        raise ValueError(f"patch size {patch}: must be divisible by {divisor.tolist()}")


def planning_words(wanted: Mapping[str, Any]) -> tuple[str, ...]:
    """What `nnUNetv2_plan_experiment` has to be told: `spacing`, which decides the preprocessed images."""
    spacing = wanted.get("spacing")
    return ("-overwrite_target_spacing", *map(str, map(float, spacing))) if spacing else ()
