"""A preprocessed data set as the commands see it: its name, plans and `dataset.json`, by number or name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_semisam.data.hidden import label_shapes_image, preprocess_hidden
from nnunet_semisam.data.preprocess import open_manifest, preprocess_unlabeled, raw_folder_of
from nnunet_semisam.data.raw_pool import FOLDER
from nnunet_semisam.data.splits import hidden_cases

DEFAULT_CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres")


@dataclass(frozen=True)
class PlannedDataset:
    """A data set that nnU-Net has planned.

    Args:
        name: like `Dataset004_Hippocampus`.
        folder: its folder in `nnUNet_preprocessed`.
        dataset_json: content of `dataset.json`.
    """

    name: str
    folder: Path
    plans_manager: PlansManager
    dataset_json: dict[str, Any]

    @property
    def plans_file(self) -> Path:
        return self.folder / f"{self.plans_manager.plans_name}.json"

    @classmethod
    def open(cls, dataset: int | str, plans_name: str = "nnUNetPlans") -> PlannedDataset:
        """The data set with this number or name.

        Raises:
            ValueError: no such data set, or it was not planned under this plans name.
        """
        try:
            name = str(maybe_convert_to_dataset_name(dataset))
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        folder = Path(nnUNet_preprocessed) / name
        files = [folder / f"{plans_name}.json", folder / "dataset.json"]
        for file in files:
            if not file.is_file():
                found = sorted(
                    plans.stem for plans in folder.glob("*[pP]lans*.json") if not plans.stem.endswith("_unlabeled")
                )
                raise ValueError(
                    f"{file} does not exist; plan the data set first with nnUNetv2_plan_and_preprocess, or name other "
                    f"plans with -p (found: {', '.join(found) or 'none'})."
                )
        plans, dataset_json = (json.loads(file.read_text()) for file in files)
        return cls(name, folder, PlansManager(plans), dataset_json)

    def configurations(self, wanted: list[str] | None = None) -> dict[str, ConfigurationManager]:
        """The wanted configurations; by default those of 2d, 3d_fullres and 3d_lowres that the plans have."""
        known = self.plans_manager.available_configurations
        if unknown := [name for name in wanted or () if name not in known]:
            raise ValueError(
                f"no configuration {', '.join(unknown)} in the plans of {self.name}; known: {', '.join(known)}"
            )
        names = wanted or [name for name in DEFAULT_CONFIGURATIONS if name in known]
        return {name: self.plans_manager.get_configuration(name) for name in names}

    def labeled_cases(self, configuration_manager: ConfigurationManager) -> list[str]:
        """Names of all preprocessed cases of `imagesTr`; opens no file."""
        return labeled_cases(self.folder / configuration_manager.data_identifier)


def switched_on(planned: PlannedDataset, configurations: list[str] | None, key: str) -> bool:
    """Whether a key of the `semisam` section is true in all of the configurations."""
    chosen = planned.configurations(configurations).values()
    return all(manager.configuration.get("semisam", {}).get(key) is True for manager in chosen)


def labeled_cases(folder: Path) -> list[str]:
    """Names of the cases in a folder that nnU-Net has preprocessed; opens no file.

    Raises:
        ValueError: the folder is missing or empty, or holds cases in the older format (image and label in one file).
    """
    if folder.is_dir():
        if cases := sorted(nnUNetDatasetBlosc2.get_identifiers(str(folder))):
            return cases
        if any(folder.glob("*.npz")):
            raise ValueError(
                f"{folder} holds .npz files of an older nnU-Net, which keep image and label in one file, so that an "
                "unlabeled case would be read together with its label; run nnUNetv2_preprocess again."
            )
    raise ValueError(f"no preprocessed case in {folder}; run nnUNetv2_preprocess for this configuration first.")


def forget_dataset(dataset: int | str, *, configurations: list[str] | None, plans_name: str) -> dict[str, int]:
    """Leaves out for good what was preprocessed from `imagesUn`, until images lie there again; number of cases by data
    identifier. Files are kept.

    Raises:
        ValueError: as `PlannedDataset.open`.
    """
    planned = PlannedDataset.open(dataset, plans_name)
    counts = {}
    for manager in planned.configurations(configurations).values():
        manifest = open_manifest(planned.name, planned.plans_manager, manager, FOLDER)
        counts[manager.data_identifier] = len(manifest.present_cases())
        manifest.note_present([])
    return counts


def preprocess_dataset(
    dataset: int | str,
    *,
    configurations: list[str] | None = None,
    plans_name: str = "nnUNetPlans",
    num_processes: int | None = None,
    skipped: list[str] | None = None,
) -> dict[str, int]:
    """Preprocesses `imagesUn` of a data set for several configurations; those that share their data are made once.

    Hidden cases of all folds come with it where they have to be preprocessed without their labels.

    Args:
        skipped: as for `preprocess_unlabeled`.

    Returns:
        Number of unlabeled cases by data identifier.

    Raises:
        ValueError: as `PlannedDataset.open`, `preprocess_unlabeled` and `preprocess_hidden`; or no image in `imagesUn`,
            no hidden case, and labeled cases do not serve as unlabeled ones.
    """
    planned = PlannedDataset.open(dataset, plans_name)
    chosen = {manager.data_identifier: manager for manager in planned.configurations(configurations).values()}
    hidden = sorted(set().union(*hidden_cases(planned.folder / "splits_final.json").values()))
    counts = {}
    for identifier, manager in chosen.items():
        where = planned.name, planned.plans_manager, manager, planned.dataset_json
        cases = preprocess_unlabeled(*where, num_processes=num_processes, skipped=skipped)
        if label_shapes_image(manager):
            cases |= preprocess_hidden(hidden, *where, num_processes=num_processes)
        counts[identifier] = len(cases)
    others = bool(hidden) or switched_on(planned, configurations, "labeled_as_unlabeled")
    if not any(counts.values()) and not others:
        place = raw_folder_of(planned.name) or f"the raw folder of {planned.name} (nnUNet_raw)"
        raise ValueError(
            f"no image found in {place}/{FOLDER}; put unlabeled images there, named like those of imagesTr."
        )
    return counts
