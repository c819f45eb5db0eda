"""Where unfinished files lie, so that what a kill leaves never counts as done."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from nnunet_semisam.data.disk import writing

PARTIAL = ".partial-"
ONE_DAY = 24 * 3600


@contextlib.contextmanager
def partial_folder(folder: Path) -> Iterator[Path]:
    """A folder for unfinished files on the same file system. What killed runs have left is removed after a day."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"{PARTIAL}*"):
            with contextlib.suppress(OSError):  # another process may be at the same
                if time.time() - left.stat().st_mtime > ONE_DAY:
                    shutil.rmtree(left, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=folder))
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
