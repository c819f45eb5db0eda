"""A full or read-only disk: an error that names place and cure, also where a library only says that it failed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import traceback
from collections.abc import Iterator
from pathlib import Path

CURES = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some of your quota there",
    errno.EROFS: "it is read-only; mount it writable, or choose another folder",
    errno.EACCES: "it is not yours to write; change its permissions, or choose another folder",
    errno.EPERM: "it is not yours to write; change its permissions, or choose another folder",
    errno.EIO: "the disk is failing or was taken away",
}
NEARLY_NOTHING = 1 << 18  # bytes: with so little left, whatever failed failed for that


class DiskTrouble(OSError):
    """A file could not be written for want of space or permission. What was there before is still there."""


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Around the writing of a file, or of files into a folder; other errors pass as they are.

    Raises:
        DiskTrouble: no space, or no permission; the message has the path and what to do.
    """
    try:
        yield
    except DiskTrouble:
        raise
    except Exception as error:
        number = _number_of(error, path)
        if number is None:
            raise
        reason = os.strerror(number).lower()
        raise DiskTrouble(
            number, f"cannot write {path}: {reason}; {CURES[number]}, and start again. Finished files are untouched"
        ) from error


def comes_from(package: str, error: BaseException) -> bool:
    """Is it a `RuntimeError`, which may mean anything, of code in a folder of this name, be it compiled or not?"""
    frames = traceback.extract_tb(error.__traceback__)
    return type(error) is RuntimeError and bool(frames) and Path(frames[-1].filename).parent.name == package


def unwritable(path: str | Path, error: BaseException) -> DiskTrouble:
    """For a library that could not write and does not say why, though there is space on the disk."""
    return DiskTrouble(
        errno.EDQUOT,
        f"cannot write {path}: {error}. It does not say why, and the disk is not full; have a look at your quota "
        "there, and at the limits of your shell or job (ulimit -f), and start again. Finished files are untouched",
    )


def _number_of(error: BaseException | None, path: str | Path) -> int | None:
    """The error number of the disk behind an error or its causes; files elsewhere, which were read, do not count."""
    seen = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in CURES and _concerns(seen.filename, path):
            return seen.errno
        seen = seen.__cause__ or seen.__context__
    place = _existing(path)
    return errno.ENOSPC if shutil.disk_usage(place).free < NEARLY_NOTHING else None


def _concerns(file: str | bytes | int | None, path: str | Path) -> bool:
    if not isinstance(file, str):
        return True  # a write; it does not say where
    return os.path.abspath(file).startswith(os.path.abspath(path if os.path.isdir(path) else os.path.dirname(path)))


def _existing(path: str | Path) -> Path:
    return next(place for place in (Path(path).absolute(), *Path(path).absolute().parents) if place.exists())
