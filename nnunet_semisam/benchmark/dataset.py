"""A raw data set of nnU-Net, as the benchmark reads it: names of cases, files and classes."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

RAW = "nnUNet_raw"


@dataclass(frozen=True)
class RawDataset:
    """A folder `DatasetXXX_Name` with `imagesTr`, `labelsTr` and `dataset.json`."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def number(self) -> int:
        return int(self.name[7:10])

    @cached_property
    def description(self) -> dict[str, Any]:
        return json.loads((self.folder / "dataset.json").read_text())

    @property
    def ending(self) -> str:
        return self.description["file_ending"]

    @property
    def classes(self) -> dict[str, tuple[int, ...]]:
        """Foreground classes or regions: name -> label values."""
        named = {k: v for k, v in self.description["labels"].items() if k not in ("background", "ignore")}
        return {name: tuple(v) if isinstance(v, (list, tuple)) else (int(v),) for name, v in named.items()}

    @property
    def ignored(self) -> int | None:
        """The label whose voxels count for nothing."""
        return self.description["labels"].get("ignore")

    def cases(self) -> list[str]:
        """Names of all labeled cases, in order."""
        return sorted(
            file.name.removesuffix(self.ending) for file in (self.folder / "labelsTr").glob(f"*{self.ending}")
        )

    def images(self, case: str) -> list[Path]:
        """Files of the channels of a case."""
        channels = len(self.description["channel_names"])
        return [self.folder / "imagesTr" / f"{case}_{channel:04d}{self.ending}" for channel in range(channels)]

    def label(self, case: str) -> Path:
        return self.folder / "labelsTr" / f"{case}{self.ending}"


def find_dataset(given: str) -> RawDataset:
    """The data set at a path, or of that name in `nnUNet_raw`.

    Raises:
        ValueError: no such folder, not nnU-Net's raw format, or files of a case are missing.
    """
    raw = os.environ.get(RAW)
    places = [Path(given).expanduser().resolve(), *([(Path(raw) / given).resolve()] if raw else [])]
    folder = next((place for place in places if (place / "dataset.json").is_file()), places[0])
    if not (folder / "dataset.json").is_file():
        files = " or ".join(str(place / "dataset.json") for place in dict.fromkeys(places))
        raise ValueError(
            f"data set {given!r}: no file {files}; give the path of a raw data set folder, or its name in {RAW}"
        )
    if not re.fullmatch(r"Dataset\d{3}_\w+", folder.name):
        raise ValueError(f"data set {given!r}: the folder {folder.name!r} is not named like Dataset123_Name")
    dataset = RawDataset(folder)
    if "dataset" in dataset.description:
        raise ValueError(
            f"data set {given!r}: lists of files in dataset.json are not supported; use imagesTr, labelsTr"
        )
    if not (cases := dataset.cases()):
        raise ValueError(f"data set {given!r}: no labels *{dataset.ending} in {folder / 'labelsTr'}")
    if missing := [file for case in cases for file in dataset.images(case) if not file.exists()]:
        raise ValueError(f"data set {given!r}: {missing[0]} is missing ({len(missing)} in all)")
    return dataset
