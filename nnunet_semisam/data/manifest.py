"""What has been preprocessed from what: the file `<data_identifier>_unlabeled.json` beside the preprocessed folder.

A case counts as done when its image files are known again (see `fingerprint`), the plans decide the same result as
then, and its preprocessed image is there. A case that the last look into the raw folder did not find is
marked as removed, for machines that have no raw folder to look into. The manifest lies beside the folder, not in it:
nnU-Net wants one kind of file in a folder of cases.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nnunet_semisam.data.disk import DiskTrouble, writing
from nnunet_semisam.data.fingerprint import Facts, facts_of, recognized

SAVE_EVERY = 2  # seconds at least, and PATIENCE times what the last saving took: all records are written each time
PATIENCE = 20
REMOVED = "removed"
DECISIVE = (
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg",
    "resampling_fn_seg_kwargs",
    "preprocessor_name",
)


@dataclass
class Manifest:
    """The record of a folder of preprocessed cases.

    The file holds `{case: {"source": folder, "files": {name: [size, mtime, sum]}, "settings": hash, "removed": true}}`,
    the last key for removed cases only.

    Args:
        folder: the preprocessed folder; the file is `<folder>.json`.
        settings: hash of what decides the result now, from `settings_hash`.
        source: the raw folder that the cases of this object come from; records of other sources are left alone.
    """

    folder: Path
    settings: str
    source: str = "imagesUn"
    cases: dict[str, dict[str, Any]] = field(default_factory=dict)
    _own: dict[str, dict[str, Any]] = field(default_factory=dict, init=False)
    _next_save: float = field(default=0.0, init=False)

    @classmethod
    def load(cls, folder: Path, settings: str, source: str = "imagesUn") -> Manifest:
        """The manifest of `folder`; a missing or damaged file counts as empty, so that everything is made again.

        Raises:
            ValueError: it is there, but cannot be read.
        """
        return cls(folder, settings, source, _cases_in(_file_of(folder)))

    @property
    def file(self) -> Path:
        return _file_of(self.folder)

    def image(self, case: str) -> Path:
        """Where the preprocessed image of a case is or will be."""
        return self.folder / f"{case}.b2nd"

    def is_done(self, case: str, files: list[str]) -> bool:
        """Whether the preprocessed case still follows from its files and from the plans."""
        was = self.cases.get(case, {})
        if {**was, "files": {}} != self._record({}) or not self.image(case).is_file():
            return False
        if (facts := recognized(was.get("files"), files)) is None:
            return False
        if facts != was["files"]:  # other times: the next look need not read the files again
            self.cases[case] = self._own[case] = self._record(facts)
        return True

    def keep_times(self) -> None:
        """Saves the times of files that were known by their content; where that fails they are read again next time."""
        if self._own:
            with contextlib.suppress(DiskTrouble):
                self.save()

    def finished_cases(self) -> dict[str, Path]:
        """Cases that were made with the present settings and were in the source when somebody last looked there.

        For machines that do not have the raw images.
        """
        made = (case for case in self.present_cases() if self.cases[case].get("settings") == self.settings)
        return {case: self.image(case) for case in made if self.image(case).is_file()}

    def outdated_cases(self) -> list[str]:
        """Cases that were in the source, but were made with other settings than the present ones."""
        return [case for case in self.present_cases() if self.is_outdated(case)]

    def is_outdated(self, case: str) -> bool:
        """Was the case made with other settings than the present ones?"""
        return self.cases.get(case, {}).get("settings", self.settings) != self.settings

    def present_cases(self) -> list[str]:
        """Recorded cases that were in the source when somebody last looked there, in order."""
        own = (case for case, record in self.cases.items() if record.get("source") == self.source)
        return sorted(case for case in own if REMOVED not in self.cases[case])

    def note_present(self, cases: Iterable[str]) -> list[str]:
        """Marks recorded cases of the source as removed unless they are among `cases`, all that it holds now.

        Returns:
            Those that were not marked before.
        """
        present = set(cases)
        recorded = self.cases | _cases_in(self.file)
        own = {case: record for case, record in recorded.items() if record.get("source") == self.source}
        marks = {
            case: _as_present(record) | ({} if case in present else {REMOVED: True}) for case, record in own.items()
        }
        if marks != own:
            self.save(marks)
        return sorted(case for case, record in own.items() if case not in present and REMOVED not in record)

    def add(self, case: str, files: list[str]) -> None:
        """Record a case as done; the file follows soon, so that a kill loses little."""
        self.cases[case] = self._own[case] = self._record(facts_of(files))
        if time.monotonic() > self._next_save:
            self.save()

    def save(self, changes: Mapping[str, dict[str, Any]] | None = None) -> None:
        """Write the file in one move, with `changes`. What other processes have written meanwhile is kept."""
        begin = time.monotonic()
        recorded = {**self.cases, **_cases_in(self.file)}
        own = {case: record for case, record in self._own.items() if _as_present(recorded.get(case, {})) != record}
        self.cases = {**recorded, **own, **(changes or {})}
        partial = self.file.with_name(f".{self.file.name}.{uuid.uuid4().hex}")  # other machines may write, too
        with writing(self.file):
            try:
                partial.write_text(json.dumps(self.cases, indent=1, sort_keys=True))
                os.replace(partial, self.file)
            except OSError:
                partial.unlink(missing_ok=True)
                raise
        now = time.monotonic()
        self._next_save = now + max(SAVE_EVERY, PATIENCE * (now - begin))

    def _record(self, facts: Facts) -> dict[str, Any]:
        return {"source": self.source, "files": facts, "settings": self.settings}


def settings_hash(plans_manager: Any, configuration_manager: Any) -> str:
    """Hash of everything in the plans, and of the nnU-Net version, that decides how a preprocessed image looks."""
    configuration = configuration_manager.configuration
    decisive = {
        "configuration": {key: configuration.get(key) for key in DECISIVE},
        "transpose_forward": plans_manager.transpose_forward,
        "intensities": plans_manager.foreground_intensity_properties_per_channel,
        "reader": plans_manager.plans.get("image_reader_writer"),
        "nnunetv2": version("nnunetv2"),
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _as_present(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != REMOVED}


def _file_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


def _cases_in(file: Path) -> dict[str, dict[str, Any]]:
    try:
        cases = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    except OSError as error:  # an empty record would make everything again
        raise ValueError(f"{file} cannot be read ({error}); it has to be readable for whoever trains") from error
    if not isinstance(cases, Mapping):
        return {}
    return {case: record for case, record in cases.items() if isinstance(record, dict) and _is_name(case)}


def _is_name(case: str) -> bool:
    """Not a path, which would lead out of the folder."""
    return case not in ("", ".", "..") and not set(case) & {"/", "\\", "\0"}
