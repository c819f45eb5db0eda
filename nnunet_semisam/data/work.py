"""The preprocessing of one unlabeled case, in whatever process: nnU-Net's own, with a look at what goes in and out."""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from pathlib import Path

import blosc2
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_semisam.data.disk import DiskTrouble, comes_from, unwritable, writing
from nnunet_semisam.data.image_checks import file_problems, has_volumes, image_problems, open_problems, spacing_problems
from nnunet_semisam.data.label_like import label_problems
from nnunet_semisam.data.manifest import Manifest
from nnunet_semisam.data.raw_pool import FOLDER


class BadImage(ValueError):
    """What is wrong with an image, whole sentences that name its file."""


@dataclass(frozen=True)
class Work:
    """What a worker process knows; called with a case and its files, it returns the case and why it failed, or None."""

    partial: Path
    folder: Path
    settings: str
    source: str
    plans_manager: PlansManager
    configuration_manager: ConfigurationManager
    dataset_json: dict

    @property
    def is_2d(self) -> bool:
        return len(self.configuration_manager.patch_size) == 2

    def __call__(self, case: str, files: list[str]) -> tuple[str, str | None]:
        try:
            with writing(self.folder):
                if not self._done_by_others(case, files):
                    self._preprocess(case, files)
        except DiskTrouble:
            raise  # no fault of the case
        except BadImage as error:
            return case, str(error)
        except Exception as error:
            reader = self.plans_manager.image_reader_writer_class()
            problems = open_problems(
                {case: files}, reader, self.dataset_json,
                volumes=has_volumes(self.plans_manager), channels=self.source == FOLDER,
            )  # fmt: skip
            if not problems and comes_from("blosc2", error):  # which says of a quota no more than that it failed
                raise unwritable(self.folder, error) from error
            return case, "\n".join(problems) or f"{files[0]}: {type(error).__name__}: {error}"
        return case, None

    def _done_by_others(self, case: str, files: list[str]) -> bool:
        """Has another process made it since the jobs were listed? The record of a large pool is read only if so."""
        if not (self.folder / f"{case}.b2nd").is_file():
            return False
        return Manifest.load(self.folder, self.settings, self.source).is_done(case, files)

    def _label_problems(self, files: list[str]) -> list[str]:
        image, _ = self.plans_manager.image_reader_writer_class().read_images(files)
        return label_problems(files, image, self.dataset_json, self.plans_manager.plans)

    def _preprocess(self, case: str, files: list[str]) -> None:
        new = self.source == FOLDER  # nnU-Net has taken the others as they are
        reader = self.plans_manager.image_reader_writer_class
        if problems := file_problems(files, reader, channels=new) or self._label_problems(files):
            raise BadImage("\n".join(problems))
        preprocessor = self.configuration_manager.preprocessor_class(verbose=False)
        out = str(self.partial / case)
        preprocessor.run_case_save(out, files, None, self.plans_manager, self.configuration_manager, self.dataset_json)
        problems = image_problems(blosc2.open(f"{out}.b2nd", mode="r")[:], files[0], self.dataset_json)
        spacing = pickle.loads(Path(f"{out}.pkl").read_bytes())["spacing"]
        if problems := [*problems, *spacing_problems(files[0], spacing, has_volumes(self.plans_manager))]:
            raise ValueError("\n".join(problems))
        if self._done_by_others(case, files):  # while this process was at it; a training may have it open
            return
        for ending in ("_seg.b2nd", ".pkl", ".b2nd"):  # the image last: it is what counts as done
            os.replace(out + ending, self.folder / (case + ending))
