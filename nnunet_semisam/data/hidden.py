"""Hidden cases: they lie in `imagesTr` and have labels, but nothing that training reads may depend on these.

nnU-Net normalises a channel with `use_mask_for_norm` within the nonzero voxels of the image, and counts every labeled
voxel as one of them (`crop_to_nonzero`). What it has preprocessed then tells of the label. With such a channel hidden
cases are therefore preprocessed again without labels, as the images of `imagesUn` are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_semisam.data.manifest import Manifest
from nnunet_semisam.data.preprocess import make_missing, open_manifest, raw_folder_of
from nnunet_semisam.data.raw_pool import LABELED_FOLDER, files_of_labeled
from nnunet_semisam.data.splits import names


def preprocess_hidden(
    hidden: Sequence[str],
    dataset_name: str,
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    dataset_json: dict,
    *,
    num_processes: int | None = None,
    show_progress: bool = True,
) -> dict[str, Path]:
    """The preprocessed image of every case of `imagesTr` in `hidden`, such that it does not depend on the label.

    Where the label has no say in the image, these are nnU-Net's own files; else what is missing is made.

    Raises:
        ValueError: a case was not preprocessed without its label, and its raw images are not there; or it cannot be
            preprocessed.
        RuntimeError: a worker process died.
    """
    managers = plans_manager, configuration_manager, dataset_json
    if not label_shapes_image(configuration_manager):
        folder = Path(nnUNet_preprocessed) / dataset_name / configuration_manager.data_identifier
        return {case: folder / f"{case}.b2nd" for case in hidden}
    manifest, cases = find_hidden(hidden, dataset_name, *managers)
    make_missing(manifest, cases, managers, num_processes=num_processes, show_progress=show_progress)
    return {case: manifest.image(case) for case in hidden}


def find_hidden(
    hidden: Sequence[str],
    dataset_name: str,
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    dataset_json: dict,
) -> tuple[Manifest, dict[str, list[str]]]:
    """The manifest of hidden cases, and the raw images of those that have some; opens no image and changes nothing.

    Raises:
        ValueError: a case has neither raw images nor a preprocessed image that was made without its label.
    """
    manifest = open_manifest(dataset_name, plans_manager, configuration_manager, LABELED_FOLDER)
    raw_folder = raw_folder_of(dataset_name)
    cases = files_of_labeled(raw_folder, dataset_json, hidden) if raw_folder else {}
    finished = manifest.finished_cases()
    if lost := [case for case in hidden if case not in cases and case not in finished]:
        place = raw_folder or Path("nnUNet_raw") / dataset_name
        raise ValueError(
            f'{names(lost)} hidden ("unlabeled" in splits_final.json), but there are no raw images in '
            f"{place / LABELED_FOLDER}. With use_mask_for_norm in the plans, images that nnU-Net has preprocessed tell "
            "of the labels, so hidden cases are preprocessed again without them: set nnUNet_raw to where the raw "
            "images are, or run nnUNetv2_semisam_preprocess on a machine that has them and copy "
            f"{manifest.folder} and {manifest.file.name}."
        )
    return manifest, cases


def label_shapes_image(configuration_manager: ConfigurationManager) -> bool:
    """Whether nnU-Net's preprocessed images depend on the labels: the mask of a normalisation takes them in."""
    return any(configuration_manager.use_mask_for_norm)
