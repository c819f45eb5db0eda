"""Preprocessed cases with their labels: what a generalist may be judged by and tuned on.

Only for cases of a fold's `train` list. The caller names them; nothing here looks for more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_semisam.types import LabeledCase


class NotFinite(ValueError):
    """An image with NaN or infinity in it."""


class StrangeLabel(ValueError):
    """A label with a value that `dataset.json` does not name."""


class LabeledCases(Sequence[LabeledCase]):
    """The named cases of a folder that nnU-Net has preprocessed (`nnUNetPlans_3d_fullres`).

    Each is read when it is asked for, and only what asked holds it: with a mask per head a large CT takes gigabytes.
    Images are (C, z, y, x) for every configuration, 2D ones included.

    Raises:
        ValueError: a case was not preprocessed.
        NotFinite: (when it is read) the image of a case has such values.
        StrangeLabel: (when it is read) so has its label.
    """

    def __init__(self, folder: str | Path, names: Sequence[str], label_manager: LabelManager) -> None:
        dataset_class = infer_dataset_class(str(folder))
        missing = sorted(set(names) - set(dataset_class.get_identifiers(str(folder))))
        if missing:
            raise ValueError(f"no preprocessed case {', '.join(missing)} in {folder}; run nnUNetv2_preprocess first")
        self.folder, self.names, self.label_manager = str(folder), list(names), label_manager
        self._dataset = dataset_class(str(folder), self.names)

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> LabeledCase: ...

    @overload
    def __getitem__(self, index: slice) -> LabeledCases: ...

    def __getitem__(self, index: int | slice) -> LabeledCase | LabeledCases:
        if isinstance(index, slice):
            return LabeledCases(self.folder, self.names[index], self.label_manager)
        image, label, *_ = self._dataset.load_case(self.names[index])
        return _labeled_case(self.names[index], image, label, self.label_manager)

    def label_problems(self) -> list[str]:
        """A sentence for each case whose label holds values that `dataset.json` does not name; opens no image."""
        labels = ((name, np.asarray(self._dataset.load_case(name)[1][:])[0]) for name in self.names)
        found = ((name, unknown_values(label, self.label_manager)) for name, label in labels)
        return [_strange(name, values, self.label_manager) for name, values in found if values]

    def only(self, wanted: Callable[[LabeledCase], bool]) -> LabeledCases:
        """Those that a look at them says are wanted."""
        names = [name for name, case in zip(self.names, self, strict=True) if wanted(case)]
        return LabeledCases(self.folder, names, self.label_manager)


def head_names(label_manager: LabelManager) -> list[str]:
    """Name of each segmentation head in `dataset.json`, in the order of the network's outputs."""
    values = {name: np.unique(value).tolist() for name, value in label_manager.label_dict.items() if name != "ignore"}
    if label_manager.has_regions:
        return [name for name, value in values.items() if value != [0]]
    by_label = {value[0]: name for name, value in values.items()}
    return [by_label[label] for label in label_manager.all_labels]


def class_names(label_manager: LabelManager) -> list[str]:
    """The same without the background."""
    return head_names(label_manager)[0 if label_manager.has_regions else 1 :]


def _labeled_case(name: str, image: Any, label: Any, label_manager: LabelManager) -> LabeledCase:
    """`image` and `label` are arrays, or blosc2 files that are read when they are indexed."""
    image, label = image[:], np.asarray(label[:])[0]
    if not np.isfinite(image).all():
        raise NotFinite(
            f"the preprocessed image of the labeled case {name} holds values that are not finite, which training would "
            "not survive; correct the image in imagesTr and preprocess again"
        )
    if strange := unknown_values(label, label_manager):
        raise StrangeLabel(_strange(name, strange, label_manager))
    heads: Sequence = label_manager.foreground_regions if label_manager.has_regions else label_manager.all_labels
    truth = np.stack([np.isin(label, head) for head in heads])
    valid = np.ones(label.shape, dtype=bool)
    if label_manager.has_ignore_label:
        valid = label != label_manager.ignore_label
    if not label_manager.has_regions:
        truth[0] |= label < 0  # nnU-Net marks what it cropped away as -1; its losses count that as background
    tensors = (torch.from_numpy(np.ascontiguousarray(part)) for part in (image, truth, valid))
    return LabeledCase(name, *tensors)


def unknown_values(label: np.ndarray, label_manager: LabelManager) -> list[int]:
    """Values of a preprocessed label that `dataset.json` does not name, and that nnU-Net's loss has no channel for.

    In no region they are background like any other value. -1 is nnU-Net's own, for what it cropped.
    """
    if label_manager.has_regions:
        return []
    return sorted({int(value) for value in np.unique(label)} - {-1, *_known(label_manager)})


def _known(label_manager: LabelManager) -> list[int]:
    ignore = [label_manager.ignore_label] if label_manager.has_ignore_label else []
    return [*map(int, label_manager.all_labels), *ignore]


def _strange(name: str, values: Sequence[int], label_manager: LabelManager) -> str:
    known = ", ".join(map(str, _known(label_manager)))
    return (
        f"the label of the case {name} holds {', '.join(map(str, values))}, but dataset.json names {known} only, so "
        f"that training would fail; correct labelsTr/{name} or dataset.json, and run nnUNetv2_preprocess again"
    )
