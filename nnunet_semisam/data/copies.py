"""Images of `imagesUn` that are copies of images of `imagesTr`: unlabeled and labeled or validation case at once."""

from __future__ import annotations

import filecmp
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from nnunet_semisam.data.raw_pool import FOLDER, LABELED_FOLDER


def copied_images(raw_folder: Path) -> list[tuple[str, str]]:
    """Names of files in `imagesUn` and of those in `imagesTr` that they equal byte for byte.

    Only files of the same size are opened; an image that was written again, by another program, is not found.
    """
    labeled = defaultdict(list)
    for file in _files(raw_folder / LABELED_FOLDER):
        labeled[file.stat().st_size].append(file)
    return [
        (file.name, twin.name)
        for file in _files(raw_folder / FOLDER)
        for twin in labeled.get(file.stat().st_size, [])
        if filecmp.cmp(file, twin, shallow=False)
    ]


def _files(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from (file for file in sorted(folder.iterdir()) if file.is_file())
