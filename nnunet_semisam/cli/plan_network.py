"""The part of `nnUNetv2_semisam_plan` about patch, batch and network: smaller ones than planned, e.g. for a CPU."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

FLAGS = {
    "patch_size": "--patch-size 32 32 32",
    "batch_size": "--batch-size 2",
    "features_per_stage": "--features 8 16 32",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    group = parser.add_argument_group(
        "patch, batch and network of the written configuration (default: as planned, or as written before)"
    )
    group.add_argument("--patch-size", nargs="+", type=int, metavar="N", help="voxels along each axis, e.g. 32 32 32")
    group.add_argument(
        "--features", nargs="+", type=int, metavar="N", help="channels of the first stages of the network, e.g. 8 16 32"
    )
    group.add_argument("--batch-size", type=int, metavar="N", help="labeled patches per iteration")


def wanted(args: argparse.Namespace) -> dict[str, Any]:
    """What the flags ask for.

    Raises:
        ValueError: a number below 1.
    """
    given = {"patch_size": args.patch_size, "features": args.features, "batch_size": args.batch_size}
    given = {key: value for key, value in given.items() if value is not None}
    for key, value in given.items():
        if min(value if isinstance(value, list) else [value]) < 1:
            raise ValueError(f"--{key.replace('_', '-')} {value}: must be at least 1")
    return given


def refuse_keys_of_the_network(assignments: Sequence[str]) -> None:
    """Tells where a key belongs that is none of the section.

    Raises:
        ValueError: one of the assignments of --set is such a key.
    """
    for key in (assignment.partition("=")[0] for assignment in assignments):
        if key in FLAGS:
            raise ValueError(f"--set {key}: is no key of the semisam section; use {FLAGS[key]}")


def network_keys(plans: Mapping[str, Any], base: str, name: str, network: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of the configuration `name`, new or there, that inherits from `base` and has this patch, batch and network.

    Raises:
        ValueError: more stages than planned, fewer than three, or a patch that the strides do not divide; or the
            configuration is the base itself, on which others rest.
    """
    if not network:
        return {}
    if name == base:
        raise ValueError(f"patch, batch and network of {base} itself stay as planned; give another --name")
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_semisam.benchmark.network import smaller

    manager = PlansManager(dict(plans))
    planned = dict(manager.get_configuration(base).configuration)
    if name in plans["configurations"]:
        own = dict(manager.get_configuration(name).configuration)
        planned = own if "features" not in network else planned | {"patch_size": own["patch_size"]}
    return smaller(planned, network)
