"""A toy cascade: a lowres stage at half the resolution of the toy data set, and a fullres stage after it."""

import json
from copy import deepcopy

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from toy_trainer import LABELED, LABELS, NAME, REGIONS, UNLABELED, VAL, case, locations, plans, save_case, short

LOWRES, CASCADE = "low", "high"


def cascade_plans(**section):
    """Plans with both stages; the semisam section is that of both."""
    content = plans((16, 16, 16)) | {"foreground_intensity_properties_per_channel": {"0": {}}}
    content["configurations"][CASCADE] = content["configurations"].pop("toy") | {"previous_stage": LOWRES}
    lowres = deepcopy(content["configurations"][CASCADE])
    del lowres["previous_stage"]
    lowres |= {"data_identifier": "nnUNetPlans_low", "spacing": [2.0] * 3, "patch_size": [8] * 3, "next_stage": CASCADE}
    content["configurations"][LOWRES] = lowres
    for configuration in content["configurations"].values():
        configuration["semisam"] = short(**section)
    return content


def write_lowres(preprocessed):
    """Every second voxel of the toy cases, as the lowres stage's preprocessed data."""
    folder = preprocessed / NAME / "nnUNetPlans_low"
    folder.mkdir()
    for seed, name in enumerate((*LABELED, *UNLABELED, *VAL)):
        image, seg = (np.ascontiguousarray(array[:, ::2, ::2, ::2]) for array in case(seed))
        save_case(image, seg, {"class_locations": locations(seg)}, str(folder / name))


def write_predictions(model_folder):
    """What nnU-Net's validation of all lowres folds leaves for labeled cases: here an image of their labels."""
    folder = model_folder / "predicted_next_stage" / CASCADE
    folder.mkdir(parents=True)
    for seed, name in enumerate((*LABELED, *UNLABELED, *VAL)):
        if name not in UNLABELED:
            seg = case(seed)[1][0].astype(np.uint8)
            nnUNetDatasetBlosc2.save_seg(seg, str(folder / name), seg.shape, seg.shape)


def build_stage(trainer, stage, content, *, regions=False, continue_training=False):
    """A trainer of one of the two stages, on the CPU."""
    dataset_json = {"channel_names": {"0": "MRI"}, "labels": REGIONS if regions else LABELS}
    dataset_json |= {"numTraining": 6, "file_ending": ".nii.gz"} | ({"regions_class_order": [2, 1]} if regions else {})
    content = json.loads(json.dumps(content)) | {"continue_training": continue_training}
    built = trainer(content, stage, 0, dataset_json, torch.device("cpu"))
    if "semisam" not in str(type(built).__mro__):
        built.num_epochs, built.num_iterations_per_epoch, built.num_val_iterations_per_epoch = 1, 3, 1
    return built
