"""nnU-Net's three folders inside the work folder: plans once, holds the splits and the configuration of every run."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nnunet_semisam.benchmark.dataset import RawDataset
from nnunet_semisam.benchmark.draws import Fold
from nnunet_semisam.benchmark.launch import MOST_FOR_3D, MOST_PROCESSES, Launcher, Slot, locked
from nnunet_semisam.benchmark.network import planning_words, smaller
from nnunet_semisam.benchmark.runs import Run, write_json

PLANS = "nnUNetPlans"
MARKER = "benchmark_planned.json"


class Home:
    """Folders `raw`, `preprocessed` and `results` of one planning of one data set.

    Args:
        folder: where they go.
        fingerprint_of: the cases that plans and fingerprint are made from; None = all.
        planning: more words for `nnUNetv2_plan_experiment`.
    """

    def __init__(
        self,
        folder: Path,
        dataset: RawDataset,
        fingerprint_of: tuple[str, ...] | None = None,
        planning: tuple[str, ...] = (),
    ) -> None:
        self.folder, self.dataset, self.fingerprint_of, self.planning = folder, dataset, fingerprint_of, planning
        self.raw, self.preprocessed, self.results = (folder / name for name in ("raw", "preprocessed", "results"))
        self.data = self.preprocessed / dataset.name
        self._lock = threading.Lock()
        self._failure: Exception | None = None

    def environment(self) -> dict[str, str]:
        """nnU-Net's three variables."""
        return {f"nnUNet_{name}": str(self.folder / name) for name in ("raw", "preprocessed", "results")}

    def prepare(self, run: Run, slot: Slot, launcher: Launcher) -> None:
        """Plans and preprocesses, unless that has been done; a failure is not tried twice.

        Raises:
            CommandFailed: nnU-Net could not plan.
            ValueError: the protocol's network does not fit what was planned.
            Busy: another process is planning.
        """
        with self._lock:
            if self._failure is not None:
                raise self._failure
            if (self.data / MARKER).is_file() and self._planned(run.protocol.configuration):
                return
            with locked(self.folder / f"planning_{self.dataset.name}") as lock:
                try:
                    self._plan(run, slot, launcher, lock)
                except (RuntimeError, ValueError) as error:
                    self._failure = error
                    raise

    def _planned(self, configuration: str) -> bool:
        return configuration in json.loads((self.data / MARKER).read_text())

    def _plan(self, run: Run, slot: Slot, launcher: Launcher, lock: int | None) -> None:
        configuration = run.protocol.configuration
        most = slot.processes(MOST_PROCESSES if configuration == "2d" else MOST_FOR_3D)
        number, processes = str(self.dataset.number), str(most)
        done = json.loads((self.data / MARKER).read_text()) if (self.data / MARKER).is_file() else []

        def command(*words: str) -> None:
            log = self.folder / f"planning_{self.dataset.name}" / "log.txt"
            environment = slot.environment(most) | self.environment()
            environment |= {"nnUNet_n_proc_DA": "1"}  # nnU-Net's planning fails with 0
            launcher.run(words, log=log, environment=environment, lock=lock)

        if not done:
            self._link(self.fingerprint_of)
            command("nnUNetv2_extract_fingerprint", "-d", number, "-np", processes, "--clean")
            command("nnUNetv2_plan_experiment", "-d", number, *self.planning)
        self._require_network(run)
        self._link(None)
        command("nnUNetv2_preprocess", "-d", number, "-c", configuration, "-np", processes)
        write_json(self.data / MARKER, [*done, configuration])

    def _require_network(self, run: Run) -> None:
        """Before the long preprocessing: is the smaller network possible?"""
        if (file := self.data / f"{PLANS}.json").is_file():
            planned = _resolved(json.loads(file.read_text())["configurations"], run.protocol.configuration)
            smaller(planned, run.protocol.network or {})

    def _link(self, cases: tuple[str, ...] | None) -> None:
        """The raw data set as links: whole, or of some cases only."""
        target = self.raw / self.dataset.name
        shutil.rmtree(target, ignore_errors=True)
        for folder in ("imagesTr", "labelsTr"):
            (target / folder).mkdir(parents=True)
        names = self.dataset.cases() if cases is None else cases
        for case in names:
            for file in (*self.dataset.images(case), self.dataset.label(case)):
                _link(file, target / file.parent.name / file.name)
                if file.with_suffix(".json").is_file():  # spacing of tiff files
                    side = file.with_suffix(".json")
                    _link(side, target / side.parent.name / side.name)
        write_json(target / "dataset.json", {**self.dataset.description, "numTraining": len(names)})

    # --- what a run needs ---------------------------------------------------------------------------------------

    def fold_number(self, fold: Fold) -> int:
        """Number of the fold in `splits_final.json`, to which it is added if it is not there yet.

        nnU-Net wants a validation case: the first labeled one serves once more, so that training meets no label of an
        evaluation case. What nnU-Net reports on it is not used.
        """
        entry = {"train": list(fold.labeled), "unlabeled": list(fold.unlabeled), "val": list(fold.labeled[:1])}
        file = self.data / "splits_final.json"
        with self._editing():
            entries = json.loads(file.read_text()) if file.is_file() else []
            if entry not in entries:
                entries.append(entry)
                write_json(file, entries)
            return entries.index(entry)

    def write_configuration(self, run: Run, epochs: int) -> None:
        """Adds the configuration of a run to the plans."""
        file = self.data / f"{PLANS}.json"
        with self._editing():
            plans = json.loads(file.read_text())
            configurations: dict[str, Any] = plans["configurations"]
            planned = _resolved(configurations, run.protocol.configuration)
            configurations[run.configuration] = {
                "inherits_from": run.protocol.configuration,
                **smaller(planned, run.protocol.network or {}),
                "semisam": run.section(epochs),
            }
            write_json(file, plans)

    @contextlib.contextmanager
    def _editing(self) -> Iterator[None]:
        """One at a time, in this process and in others."""
        with self._lock, locked(self.folder / f"editing_{self.dataset.name}", wait=True):
            yield

    def fold_folder(self, run: Run) -> Path:
        """Where nnU-Net puts the training."""
        trained = f"{run.arm.trainer}__{PLANS}__{run.configuration}"
        return self.results / self.dataset.name / trained / f"fold_{self.fold_number(run.fold)}"

    def inputs(self, run: Run) -> Path:
        """A folder with the images of the evaluation cases."""
        folder = self.folder / "evaluation" / run.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for case in run.cases:
            for file in self.dataset.images(case):
                _link(file, folder / file.name)
                if file.with_suffix(".json").is_file():
                    _link(file.with_suffix(".json"), folder / file.with_suffix(".json").name)
        return folder


def home_of(run: Run, work: Path) -> Home:
    """The home of a run: one per data set and spacing, or per labeled set where only labeled cases shape the plans."""
    network, cases, name = run.protocol.network or {}, None, "all"
    if run.protocol.fingerprint_from == "labeled":
        cases, name = run.fold.labeled, f"labeled_{run.fold.labels}_{run.fold.draw}"
    if spacing := network.get("spacing"):
        name += "_" + "x".join(f"{float(size):g}" for size in spacing)
    return Home(work / "nnunet" / name, run.dataset, cases, planning_words(network))


def _resolved(configurations: dict[str, Any], name: str) -> dict[str, Any]:
    if name not in configurations:
        raise ValueError(f"nnU-Net has planned no configuration {name!r}; it has {', '.join(configurations)}")
    entry = configurations[name]
    base = _resolved(configurations, entry["inherits_from"]) if "inherits_from" in entry else {}
    return base | entry


def _link(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source)
    except OSError:  # no links here, as on most Windows machines
        shutil.copy(source, target)
