"""A preprocessed toy data set with hand-written plans, and trainers on it: small enough to train in a second."""

import json
from pathlib import Path

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

NAME = "Dataset998_Toy"
LABELED, UNLABELED, VAL = ("l0", "l1"), ("u0", "u1", "u2"), ("v0",)
LABELS = {"background": 0, "ball": 1, "shell": 2}
REGIONS = {"background": 0, "whole": [1, 2], "ball": 1}
SAM_SECTION = {"min_voxels": 1, "min_agreement": 0.0, "trust": None}


def plans(patch_size):
    ndim = len(patch_size)
    configuration = {
        "data_identifier": "nnUNetPlans_toy",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch_size),
        "median_image_size_in_voxels": [20.0] * ndim,
        "spacing": [1.0] * ndim,
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 0, "order_z": 0, "force_separate_z": None},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 3,
                "features_per_stage": [4, 8, 8],
                "conv_op": f"torch.nn.modules.conv.Conv{ndim}d",
                "kernel_sizes": [[3] * ndim] * 3,
                "strides": [[1] * ndim, [2] * ndim, [2] * ndim],
                "n_conv_per_stage": [1, 1, 1],
                "n_conv_per_stage_decoder": [1, 1],
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{ndim}d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": ndim == 2,
    }
    return {
        "dataset_name": NAME,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0] * 3,
        "original_median_shape_after_transp": [20] * 3,
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {},
        "configurations": {"toy": configuration},
    }


def case(seed):
    """Image (1, 20, 22, 18) with a bright ball in a less bright shell, and its labels."""
    random = np.random.RandomState(seed)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in (20, 22, 18)], indexing="ij"))
    radius = np.sqrt(((grid - random.uniform(8, 12, (3, 1, 1, 1))) ** 2).sum(0))
    seg = np.where(radius < 4, 1, np.where(radius < 7, 2, 0)).astype(np.int8)
    image = np.choose(seg, [-0.5, 2.0, 1.0]) + 0.3 * random.randn(*seg.shape)
    return image[None].astype(np.float32), seg[None]


def locations(seg):
    return {label: np.stack(np.nonzero(seg == label), 1) for label in (1, 2)}


def save_case(image, seg, properties, file):
    """nnU-Net's writer; it warns where chunks are not given."""
    layout = {"chunks": image.shape, "blocks": image.shape, "chunks_seg": seg.shape, "blocks_seg": seg.shape}
    nnUNetDatasetBlosc2.save_case(image, seg, properties, file, **layout)


def write_preprocessed(folder):
    """Preprocessed cases, splits and fingerprint under `folder`/NAME."""
    cases = Path(folder) / NAME / "nnUNetPlans_toy"
    cases.mkdir(parents=True)
    for seed, name in enumerate((*LABELED, *UNLABELED, *VAL)):
        image, seg = case(seed)
        properties = {"class_locations": locations(seg)}
        save_case(image, seg, properties, str(cases / name))
    split = {"train": LABELED, "unlabeled": UNLABELED, "val": VAL}
    (cases.parent / "splits_final.json").write_text(json.dumps([split]))
    (cases.parent / "dataset_fingerprint.json").write_text("{}")


def build(trainer, section=None, *, patch_size=(16, 16, 16), labels=None, continue_training=False):
    """A trainer on the toy data set, on the CPU: one epoch of three iterations unless the section says otherwise."""
    toy_plans = plans(patch_size)
    if section is not None:
        toy_plans["configurations"]["toy"]["semisam"] = section
    toy_plans["continue_training"] = continue_training
    labels = LABELS if labels is None else labels
    dataset_json = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": 6, "file_ending": ".nii.gz"}
    if labels is REGIONS:
        dataset_json["regions_class_order"] = [2, 1]
    built = trainer(plans=toy_plans, configuration="toy", fold=0, dataset_json=dataset_json, device=torch.device("cpu"))
    if section is None:
        built.num_epochs, built.num_iterations_per_epoch, built.num_val_iterations_per_epoch = 1, 3, 1
    return built


def short(**section):
    """A section for tests: seeded, one epoch of three iterations, unlabeled patches count from the first one on."""
    sam = section.pop("sam", SAM_SECTION)
    length = {"num_epochs": 1, "num_iterations_per_epoch": 3, "num_val_iterations_per_epoch": 1}
    return {"seed": 7, "sam": sam, "min_labeled_dice": 0.0, **length, **section}


def weights(trainer):
    """All parameters of the student in one vector."""
    return torch.cat([p.detach().flatten() for p in trainer.network.parameters()])
