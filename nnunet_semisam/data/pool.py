"""The unlabeled pool of a run: `imagesUn`, and the hidden cases of the fold, added up and checked."""

from __future__ import annotations

from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_semisam.data.dataset import labeled_cases
from nnunet_semisam.data.hidden import preprocess_hidden
from nnunet_semisam.data.preprocess import Say, preprocess_unlabeled, raw_folder_of
from nnunet_semisam.data.raw_pool import FOLDER, LABELED_FOLDER
from nnunet_semisam.data.splits import collision_problems, no_case_message, read_split


def unlabeled_pool(
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    dataset_json: dict,
    fold: int | str,
    *,
    allow_unlabeled_val: bool = False,
    num_processes: int | None = None,
    skipped: list[str] | None = None,
    required: bool = True,
    say: Say = print,
) -> dict[str, Path]:
    """Preprocessed image file (`.b2nd`) of every unlabeled case; `UnlabeledDataset` opens them.

    New or changed images of `imagesUn` are preprocessed first, and so are hidden cases where nnU-Net's preprocessed
    images depend on the labels. With several training processes, call it in one and tell the others.

    Args:
        skipped, say: as for `preprocess_unlabeled`.
        required: whether it is an error that there is no unlabeled case.

    Raises:
        ValueError: the splits or `imagesUn` are wrong, or no unlabeled case is there and one is required; the cure is
            in the message.
    """
    name = plans_manager.dataset_name
    folder = Path(nnUNet_preprocessed) / name
    splits_file = folder / "splits_final.json"
    raw_folder = raw_folder_of(name) or Path("nnUNet_raw") / name

    known = labeled_cases(folder / configuration_manager.data_identifier)
    split = read_split(splits_file, fold, known=known, allow_unlabeled_val=allow_unlabeled_val)
    managers = plans_manager, configuration_manager, dataset_json
    images = preprocess_unlabeled(name, *managers, num_processes=num_processes, skipped=skipped, say=say)
    problems = collision_problems(images, known, raw_folder / FOLDER, labeled_folder=raw_folder / LABELED_FOLDER)
    if problems and skipped is None:
        raise ValueError("\n".join(problems))
    if problems:
        skipped += problems
        images = {case: file for case, file in images.items() if case not in known}
    pool = images | preprocess_hidden(split.unlabeled, name, *managers, num_processes=num_processes)
    if not pool and required:
        raise ValueError(no_case_message(raw_folder / FOLDER, splits_file, fold))
    return dict(sorted(pool.items()))
