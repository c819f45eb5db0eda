"""The phantoms as an nnU-Net raw data set, its one fold, and a plan that is small enough for two CPU cores."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_semisam.demo.phantom import ORGANS, make_phantom

NAME = "Dataset001_SemiSAMDemo"
UNTUNED = {"tune": 0}  # tuning the generalist would take as long as everything else together
SUPERVISED, SEMISAM = "3d_demo", "3d_demo_semisam"  # configurations in the plans
SPLITS = ("labeled", "unlabeled", "held_out")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Size of the demonstration."""

    seed: int = 0
    labeled: int = 3
    unlabeled: int = 16
    held_out: int = 10
    epochs: int = 8
    iterations: int = 50  # per epoch
    patch_size: tuple[int, int, int] = (32, 32, 32)
    min_labeled_dice: float = 0.5
    features: tuple[int, ...] = (8, 16, 32)  # at least 3: with 2, deep supervision gives its one output the weight 0/0

    def cases(self, split: str) -> list[str]:
        """Case names of "labeled", "unlabeled" or "held_out"."""
        return [f"{split.replace('_', '')}_{number:02d}" for number in range(getattr(self, split))]


# a run of the machinery in which nothing is learnt, and nothing waited for
QUICK = Settings(
    labeled=2, unlabeled=2, held_out=2, epochs=2, iterations=2, patch_size=(16, 16, 16), features=(4, 8, 8),
    min_labeled_dice=0.0,
)  # fmt: skip


def write_data_set(raw: Path, settings: Settings) -> dict[str, tuple[str, ...]]:
    """Writes the data set into the folder `raw`; returns the degradations of every case.

    Labels of the unlabeled cases are written nowhere. Those of the held-out cases go to `labelsTs`, which nnU-Net does
    not read.
    """
    folder = raw / NAME
    kinds = {}
    for images, labels, split in (
        ("imagesTr", "labelsTr", "labeled"),
        ("imagesUn", None, "unlabeled"),
        ("imagesTs", "labelsTs", "held_out"),
    ):
        for number, case in enumerate(settings.cases(split)):
            phantom = make_phantom(np.random.default_rng((settings.seed, SPLITS.index(split), number)))
            kinds[case] = phantom.kinds
            write_nifti(folder / images / f"{case}_0000.nii.gz", phantom.image)
            if labels is not None:
                write_nifti(folder / labels / f"{case}.nii.gz", phantom.labels)
    description = {
        "channel_names": {"0": "phantom"},
        "labels": {"background": 0, **ORGANS},
        "numTraining": settings.labeled,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=2))
    return kinds


def write_fold(preprocessed: Path, settings: Settings) -> None:
    """`splits_final.json` with one fold that trains on every labeled case.

    nnU-Net wants a validation case: the first labeled one serves once more. What nnU-Net reports on it is not used.
    """
    labeled = settings.cases("labeled")
    fold = {"train": labeled, "val": labeled[:1]}
    (preprocessed / NAME / "splits_final.json").write_text(json.dumps([fold], indent=2))


def write_plan(preprocessed: Path, settings: Settings) -> None:
    """Adds the two configurations of the demonstration to nnU-Net's plans: same network, same length, same seed."""
    file = preprocessed / NAME / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    length = {
        "num_epochs": settings.epochs,
        "num_iterations_per_epoch": settings.iterations,
        "num_val_iterations_per_epoch": 1,
        "seed": settings.seed,
    }
    off = {"terms": {"consistency": {"weight": 0}, "sam": {"weight": 0}}, "sam": None}
    semisam = {"sam": UNTUNED, "min_labeled_dice": settings.min_labeled_dice}
    full = plans["configurations"]["3d_fullres"]
    plans["configurations"][SUPERVISED] = {**_small(full, settings), "semisam": {**length, **off}}
    plans["configurations"][SEMISAM] = {"inherits_from": SUPERVISED, "semisam": {**length, **semisam}}
    file.write_text(json.dumps(plans, indent=4))


def _small(full: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """What differs from nnU-Net's own `3d_fullres`: patch, batch and network."""
    stages = len(settings.features)
    arguments = {
        **full["architecture"]["arch_kwargs"],
        "n_stages": stages,
        "features_per_stage": list(settings.features),
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1], *[[2, 2, 2]] * (stages - 1)],
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [1] * (stages - 1),
    }
    return {
        "inherits_from": "3d_fullres",
        "patch_size": list(settings.patch_size),
        "batch_size": 2,
        "batch_dice": True,  # as nnU-Net plans it where a patch is a small part of the image: organs are often outside
        "architecture": {**full["architecture"], "arch_kwargs": arguments},
    }


def write_nifti(file: Path, array: np.ndarray) -> None:
    """An array of axes z, y, x with a spacing of 1 mm."""
    import SimpleITK

    file.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(file))


def read_nifti(file: Path) -> np.ndarray:
    """The array of axes z, y, x."""
    import SimpleITK

    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file)))
