"""A made-up data set of any patch size for timing: two balls in noise, written as nnU-Net preprocesses cases."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from torch import Tensor

NAME, CONFIGURATION = "Dataset999_Balls", "timed"
GREY = {1: 2.0, 2: -2.0}  # of the two balls; the background is 0
SPLIT = {"train": ["labeled_0", "labeled_1"], "unlabeled": ["unlabeled_0", "unlabeled_1"], "val": ["val_0"]}
SLICES = 4  # of the cases for 2D patches
DATASET_JSON = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "bright": 1, "dark": 2},
    "numTraining": 5,
    "file_ending": ".nii.gz",
}


def write(folder: Path, patch_size: Sequence[int]) -> None:
    """Preprocessed cases, a quarter longer than the patch on every side, and their split."""
    cases = folder / NAME / "nnUNetPlans_timed"
    cases.mkdir(parents=True)
    for seed, name in enumerate(case for part in SPLIT.values() for case in part):
        image, labels = _case(patch_size, np.random.default_rng(seed))
        properties = {"class_locations": {label: np.argwhere(labels == label) for label in GREY}}
        layout = {"chunks": image.shape, "blocks": image.shape, "chunks_seg": labels.shape, "blocks_seg": labels.shape}
        nnUNetDatasetBlosc2.save_case(image, labels, properties, str(cases / name), **layout)
    (cases.parent / "splits_final.json").write_text(json.dumps([SPLIT]))
    (cases.parent / "dataset_fingerprint.json").write_text("{}")


def _case(patch_size: Sequence[int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Image and labels, with a first axis of one channel."""
    sides = [SLICES] * (3 - len(patch_size)) + [side * 5 // 4 for side in patch_size]
    radius = min(patch_size) * 0.15
    labels = np.zeros((1, *sides), dtype=np.int8)
    for label, share in zip(GREY, (0.35, 0.65), strict=True):
        centre = np.array([side * share for side in sides]) + rng.uniform(-1, 1, 3) * radius / 4
        if len(patch_size) == 2:
            centre[0] = SLICES / 2
        offsets = np.ix_(*[np.arange(side) - middle for side, middle in zip(sides, centre, strict=True)])
        labels[0][sum(offset**2 for offset in offsets) < radius**2] = label
    image = 0.1 * rng.standard_normal(labels.shape, dtype=np.float32)
    for label, grey in GREY.items():
        image[labels == label] += grey
    return image, labels


def ball_patch(patch_size: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """The middle of a case, (1, *patch_size)."""
    image, _ = _case(patch_size, rng)
    return image[(0, *[slice(side // 8, side // 8 + side) for side in patch_size])][None]


def seen_in(image: Tensor) -> Tensor:
    """What a good teacher would say about a patch: probabilities of background, bright and dark ball."""
    evidence = [torch.zeros_like(image[:, :1]), *(6 * (image[:, :1] * np.sign(g) - 1) for g in GREY.values())]
    return torch.cat(evidence, 1).float().softmax(1)


def plans(patch_size: Sequence[int], batch_size: int, features: Sequence[int]) -> dict[str, Any]:
    """Plans for the made-up data set, with nnU-Net's plain U-Net of so many channels per stage."""
    resampling = {
        f"resampling_fn_{what}{more}": value
        for what, is_seg in (("data", False), ("seg", True), ("probabilities", False))
        for more, value in (
            ("", "resample_data_or_seg_to_shape"),
            ("_kwargs", {"is_seg": is_seg, "order": 1, "order_z": 0, "force_separate_z": None}),
        )
    }
    configuration = {
        "data_identifier": "nnUNetPlans_timed",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": batch_size,
        "patch_size": list(patch_size),
        "median_image_size_in_voxels": [float(side) for side in patch_size],
        "spacing": [1.0] * len(patch_size),
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "architecture": architecture(len(patch_size), list(features)),
        "batch_dice": len(patch_size) == 2,
        **resampling,
    }
    return {
        "dataset_name": NAME,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0] * 3,
        "original_median_shape_after_transp": [64] * 3,
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {},
        "configurations": {CONFIGURATION: configuration},
    }


def architecture(ndim: int, features: list[int]) -> dict[str, Any]:
    """nnU-Net's plain U-Net with so many channels per stage, as plans describe it."""
    stages = len(features)
    arguments = {
        "n_stages": stages,
        "features_per_stage": features,
        "conv_op": f"torch.nn.modules.conv.Conv{ndim}d",
        "kernel_sizes": [[3] * ndim] * stages,
        "strides": [[1] * ndim, *[[2] * ndim] * (stages - 1)],
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{ndim}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": arguments,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
