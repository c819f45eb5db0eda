"""By which code a training was made: versions of packages, and a sum over the sources of this one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import nnunet_semisam

TRAINING = ("nnunet_semisam", "nnunetv2", "torch")
SCORING = ("monai", "scipy")


def training_versions() -> dict[str, str]:
    """Versions of what trains; that of this package with the sum of its sources, since commits share a version."""
    found = {name: version(name) for name in TRAINING}
    return {**found, "nnunet_semisam": f"{found['nnunet_semisam']} ({sources()})"}


def sources() -> str:
    """Eight hexadecimal digits that change with any Python file of this package."""
    root, digest = Path(nnunet_semisam.__file__).parent, hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return digest.hexdigest()[:8]


def version(name: str) -> str:
    """Of an installed package; "?" where it is not one."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "?"


def told(trainings: Iterable[Sequence[Mapping[str, str]] | None]) -> str:
    """The distinct versions of trainings in words.

    Args:
        trainings: for each the versions that it was begun and continued with; None where they were not noted.
    """
    every = [found for noted in trainings for found in noted or [{"versions": "not noted"}]]
    distinct = {", ".join(f"{name} {number}" for name, number in found.items()) for found in every}
    scored = ", ".join(f"{name} {version(name)}" for name in SCORING)
    if len(distinct) > 1:
        return f"TRAINED BY DIFFERENT VERSIONS: {'; or '.join(sorted(distinct))}. Scored with {scored}."
    return f"Trained by {''.join(distinct) or 'nothing yet'}; scored with {scored}."
