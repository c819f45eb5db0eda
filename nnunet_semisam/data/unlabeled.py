"""Unlabeled cases for nnU-Net's loader: the image is read, a label never is.

The promise: of an unlabeled case only the preprocessed image (`CASE.b2nd`) is opened. Its `CASE_seg.b2nd` and
`CASE.pkl` (whose class locations tell where the labels are) may be noise or missing; nothing changes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.label_handling.label_handling import LabelManager


class UnlabeledDataset:
    """Stands in for nnU-Net's data set object: preprocessed images with a blank segmentation and no class locations.

    Args:
        images: preprocessed image file (`.b2nd`) by case name; the files may lie in different folders.
        previous: for cascades, what the previous stage predicts for each case, on the grid of its image.

    Raises:
        ValueError: no case, or a file that does not exist.
    """

    def __init__(self, images: Mapping[str, str | Path], previous: Mapping[str, str | Path] | None = None) -> None:
        if not images:
            raise ValueError("the unlabeled pool is empty; unlabeled_pool says where unlabeled cases come from.")
        if missing := [str(file) for file in images.values() if not os.path.isfile(file)]:
            raise ValueError(
                f"{len(missing)} preprocessed unlabeled image(s) missing, e.g. {missing[0]}; run "
                "nnUNetv2_semisam_preprocess (cases of imagesUn) or nnUNetv2_preprocess (cases of imagesTr)."
            )
        self.images = {case: str(images[case]) for case in sorted(images)}
        self.previous = None if previous is None else {case: str(previous[case]) for case in self.images}
        self.identifiers = list(self.images)
        blosc2.set_nthreads(1)

    def __len__(self) -> int:
        return len(self.identifiers)

    def __getitem__(self, identifier: str) -> tuple[Any, np.ndarray, Any, dict]:
        return self.load_case(identifier)

    def load_case(self, identifier: str) -> tuple[Any, np.ndarray, Any, dict]:
        """Image (C, z, y, x), read from disk where it is sliced; zeros (1, z, y, x) without storage; what the previous
        stage predicts, (z, y, x), or None; properties."""
        image = _open(self.images[identifier])
        blank = np.broadcast_to(np.int8(0), (1, *image.shape[1:]))
        previous = None if self.previous is None else _open(self.previous[identifier])
        return image, blank, previous, {"class_locations": {}}


def _open(file: str) -> Any:
    mmap = {} if os.name == "nt" else {"mmap_mode": "r"}  # as in nnU-Net: no memory map on Windows
    return blosc2.open(urlpath=file, mode="r", dparams={"nthreads": 1}, **mmap)


class UnlabeledDataLoader(nnUNetDataLoader):
    """nnU-Net's loader on unlabeled cases: uniform crops, and batches of `data` and `keys` without a target.

    Args:
        patch_size: size of the crop before the transforms.
        final_patch_size: size of the patch that the network sees.
    """

    def __init__(
        self,
        dataset: UnlabeledDataset,
        batch_size: int,
        patch_size: Sequence[int],
        final_patch_size: Sequence[int],
        *,
        label_manager: LabelManager,
        transforms: Any,
    ) -> None:
        super().__init__(
            dataset, batch_size, patch_size, final_patch_size, label_manager,
            oversample_foreground_percent=0.0, transforms=transforms,
        )  # fmt: skip
        names: np.ndarray = np.empty(len(dataset), dtype=object)
        names[:] = dataset.identifiers
        self.indices = names  # else nnU-Net makes an array of all names for every batch
        self.has_ignore = False  # nnU-Net would look up where the annotated voxels are
        self._process = os.getpid()

    def generate_train_batch(self) -> dict[str, Any]:
        """`data` (U, channels, *S) float32 and `keys`, U case names."""
        self._seed_torch_once()
        batch = super().generate_train_batch()
        return {"data": batch["data"], "keys": batch["keys"]}

    def _seed_torch_once(self) -> None:
        """A torch seed of its own for a worker process: only numpy is seeded there, and forks share torch's stream."""
        if os.getpid() != self._process:
            torch.manual_seed(np.random.randint(2**31))
            self._process = os.getpid()
