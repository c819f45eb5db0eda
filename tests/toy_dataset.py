"""A toy data set for tests: a few tiny images, hand-written plans, and cases in nnU-Net's preprocessed format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

NAME = "Dataset901_Toy"
SHAPE = (10, 14, 12)
ENDING = ".nii.gz"


def dataset_json(channels: int = 1, **more: Any) -> dict[str, Any]:
    names = {str(channel): "MRI" for channel in range(channels)}
    return {
        "channel_names": names,
        "labels": {"background": 0, "thing": 1},
        "numTraining": 2,
        "file_ending": ENDING,
    } | more


def plans(channels: int = 1, reader: str = "SimpleITKIO") -> dict[str, Any]:
    """Plans with the keys that data loading and preprocessing read; 3d_other shares the data of 3d_fullres."""
    intensities = {
        "max": 9.0,
        "mean": 1.0,
        "median": 1.0,
        "min": -9.0,
        "percentile_00_5": -5.0,
        "percentile_99_5": 5.0,
        "std": 1.0,
    }
    image = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    fullres = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [8, 8, 8],
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"] * channels,
        "use_mask_for_norm": [False] * channels,
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": image,
        "resampling_fn_seg_kwargs": image | {"is_seg": True},
        "architecture": {},
    }
    flat = {
        "inherits_from": "3d_fullres",
        "data_identifier": "nnUNetPlans_2d",
        "patch_size": [8, 8],
        "spacing": [1.0, 1.0],
    }
    return {
        "dataset_name": NAME,
        "plans_name": "nnUNetPlans",
        "image_reader_writer": reader,
        "transpose_forward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {str(channel): intensities for channel in range(channels)},
        "label_manager": "LabelManager",
        "configurations": {
            "2d": flat, "3d_fullres": fullres,
            "3d_other": {"inherits_from": "3d_fullres", "batch_size": 3},
        },
    }  # fmt: skip


class ToyDataset:
    """Folders `raw/NAME` and `preprocessed/NAME` under a root, filled on demand."""

    def __init__(self, root: Path, channels: int = 1) -> None:
        self.channels = channels
        self.raw, self.preprocessed = root / "raw" / NAME, root / "preprocessed" / NAME
        for folder in (self.raw / "imagesTr", self.raw / "labelsTr", self.preprocessed):
            folder.mkdir(parents=True)
        self.write(self.preprocessed / "nnUNetPlans.json", plans(channels))
        for folder in (self.raw, self.preprocessed):
            self.write(folder / "dataset.json", dataset_json(channels))

    @staticmethod
    def write(file: Path, content: Any) -> Path:
        file.write_text(json.dumps(content))
        return file

    def edit_plans(self, configuration: str = "3d_fullres", **values: Any) -> None:
        file = self.preprocessed / "nnUNetPlans.json"
        content = json.loads(file.read_text())
        content["configurations"].setdefault(configuration, {}).update(values)
        self.write(file, content)

    def splits(self, *folds: dict[str, list[str]]) -> Path:
        return self.write(self.preprocessed / "splits_final.json", list(folds))

    def image(
        self, case: str, folder: str = "imagesUn", *, seed: int = 0, spacing: float = 1.0, channel: int = 0
    ) -> Path:
        """Writes one channel of a raw image of random values."""
        import SimpleITK as sitk

        (self.raw / folder).mkdir(exist_ok=True)
        file = self.raw / folder / f"{case}_{channel:04d}{ENDING}"
        values = np.random.default_rng(seed).normal(5, 1, SHAPE).astype(np.float32)
        image = sitk.GetImageFromArray(values)
        image.SetSpacing((spacing,) * 3)
        sitk.WriteImage(image, str(file))
        return file

    def preprocessed_case(
        self, case: str, identifier: str = "nnUNetPlans_3d_fullres", *, seed: int = 0, labels: int = 2
    ) -> Path:
        """Writes a preprocessed case of imagesTr with label and class locations; returns the image file."""
        from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

        folder = self.preprocessed / identifier
        folder.mkdir(exist_ok=True)
        for ending in (".b2nd", "_seg.b2nd"):
            (folder / f"{case}{ending}").unlink(missing_ok=True)
        rng = np.random.default_rng(seed)
        image = rng.normal(size=(self.channels, *SHAPE)).astype(np.float32)
        label = rng.integers(0, labels, size=(1, *SHAPE)).astype(np.int16)
        properties = {"class_locations": {1: np.argwhere(label == 1)}, "spacing": [1.0, 1.0, 1.0]}
        sizes = {"chunks": image.shape, "blocks": image.shape, "chunks_seg": label.shape, "blocks_seg": label.shape}
        nnUNetDatasetBlosc2.save_case(image, label, properties, str(folder / case), **sizes)
        return folder / f"{case}.b2nd"

    def managers(self, configuration: str = "3d_fullres") -> tuple[Any, Any, dict]:
        """Plans manager, configuration manager and dataset.json."""
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        manager = PlansManager(str(self.preprocessed / "nnUNetPlans.json"))
        return manager, manager.get_configuration(configuration), dataset_json(self.channels)


@pytest.fixture
def toy(tmp_path, monkeypatch) -> ToyDataset:
    """An empty toy data set that nnU-Net's folder variables point to."""
    for variable in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{variable}", str(tmp_path / variable))
    return ToyDataset(tmp_path)
