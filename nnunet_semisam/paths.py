"""Where the checkpoints of generalists lie, the one fact about the machine that no configuration holds; and sums."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

VARIABLE = "nnUNet_sam_checkpoints"


def checkpoint_folder() -> Path:
    """The folder of SAM checkpoints: `nnUNet_sam_checkpoints`, or `nnunet_semisam` in the user's cache folder."""
    if folder := os.environ.get(VARIABLE):
        return Path(folder).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "nnunet_semisam"


def find_checkpoint(name: str) -> Path:
    """The file of a checkpoint given as an absolute path (`~` is expanded) or as a name in `checkpoint_folder()`.

    Raises:
        FileNotFoundError: no such file, or a folder; the message names the value, the place looked in and the cure.
    """
    given = Path(name).expanduser()
    path = given if given.is_absolute() else checkpoint_folder() / given
    if path.is_file():
        return path
    if path.is_dir():
        raise FileNotFoundError(
            f"semisam: sam.checkpoint is {name!r}, but {path} is a folder; name the file of the weights in it"
        )
    origin = f"the variable {VARIABLE}" if os.environ.get(VARIABLE) else f"the default; {VARIABLE} is not set"
    looked = f"as {path}" if given.is_absolute() else f"in {path.parent} ({origin})"
    raise FileNotFoundError(
        f"semisam: sam.checkpoint is {name!r}, looked for {looked}: no such file. Put the file there, "
        f"point {VARIABLE} at the folder that holds it, or give an absolute path; "
        "nnUNetv2_semisam_sam lists and fetches published files"
    )


def sha256_of(file: str | os.PathLike) -> str:
    """Hexadecimal sum of a file's content."""
    digest = hashlib.sha256()
    with open(file, "rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
