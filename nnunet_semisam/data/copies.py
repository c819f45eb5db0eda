"""Images of `imagesUn` that are copies of labeled images: unlabeled and labeled or validation case at once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from nnunet_semisam.paths import sha256_of

Files = Mapping[str, Sequence[str]]  # image files by case


def copied_images(unlabeled: Files, labeled: Files) -> Iterator[tuple[str, str]]:
    """Names of unlabeled files and of the labeled ones that they equal byte for byte.

    Only files whose size occurs on both sides are read, each once; an image that was written again, by another
    program, is not found.
    """
    ours, theirs = ({file: os.path.getsize(file) for file in chain(*files.values())} for files in (unlabeled, labeled))
    shared = set(ours.values()) & set(theirs.values())
    by_content = {sha256_of(file): Path(file).name for file, size in theirs.items() if size in shared}
    for file, size in ours.items():
        if size in shared and (twin := by_content.get(sha256_of(file))):
            yield Path(file).name, twin
