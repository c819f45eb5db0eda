"""By what an image file is known again: its size and modification time, or its content where it was copied."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from nnunet_semisam.paths import sha256_of

TIFF = (".tif", ".tiff")  # may have their spacing in CASE.json beside them
Facts = dict[str, list[Any]]  # name of a file -> size, modification time in nanoseconds, SHA-256


def facts_of(files: Sequence[str]) -> Facts:
    """The facts of the files of a case, and of a tiff's spacing file beside it."""
    return _with_sums(_times(files), files)


def recognized(was: Any, files: Sequence[str]) -> Facts | None:
    """The facts of the files, if they are those that `was` tells of; None if they are not, or nobody can tell.

    The files are read only where their times differ and their sizes do not.

    Args:
        was: facts, which older versions wrote without sums.
    """
    if not isinstance(was, Mapping) or not all(isinstance(facts, list) for facts in was.values()):
        return None
    now = _times(files)
    if {name: facts[:2] for name, facts in was.items()} == now:
        return dict(was)
    if {name: facts[:1] for name, facts in was.items()} != {name: facts[:1] for name, facts in now.items()}:
        return None
    if any(len(facts) < 3 for facts in was.values()):
        return None
    found = _with_sums(now, files)
    return found if all(found[name][2] == facts[2] for name, facts in was.items()) else None


def _decisive(files: Sequence[str]) -> dict[str, str]:
    found = list(files)
    if files[0].endswith(TIFF) and os.path.isfile(spacing := f"{files[0].rsplit('_', 1)[0]}.json"):
        found.append(spacing)
    return {os.path.basename(path): path for path in found}


def _times(files: Sequence[str]) -> Facts:
    stats = {name: os.stat(path) for name, path in _decisive(files).items()}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def _with_sums(times: Facts, files: Sequence[str]) -> Facts:
    return {name: [*times[name], sha256_of(path)] for name, path in _decisive(files).items()}
