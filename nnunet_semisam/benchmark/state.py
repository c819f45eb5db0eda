"""What is done: the markers that steps leave in the folder of a run."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from nnunet_semisam.benchmark.metrics import EMPTY_RULE
from nnunet_semisam.benchmark.runs import Run
from nnunet_semisam.benchmark.scores import FINAL, SCORES_FILE, TEACHER, read_csv
from nnunet_semisam.benchmark.training_log import epoch_seconds, length, start_up_seconds

CHECKPOINTS = {FINAL: "checkpoint_final.pth", TEACHER: "checkpoint_final_teacher.pth"}
LENGTH = "length.json"  # of an arm of equal time
BEGUN, TRAINED, PREDICTED, SCORED = "begun.json", "trained.json", "benchmark_predicted.json", "scored.json"


class State:
    """Runs of a work folder, as far as they have come."""

    def __init__(self, work: Path, runs: list[Run]) -> None:
        self.work, self.runs = work, runs

    def folder(self, run: Run) -> Path:
        """Where logs, predictions and scores of a run lie."""
        return self.work / "runs" / run.name

    def done(self, run: Run) -> bool:
        """Are there scores of these cases, in these units?"""
        return read(self.folder(run) / SCORED).get("settings") == scoring(run)

    def trained(self, run: Run) -> dict[str, Any]:
        """Seconds, epochs, iterations and device of a finished training; empty before."""
        return read(self.folder(run) / TRAINED)

    def require_same_cases(self) -> None:
        """Raises ValueError if a finished training had other labeled or unlabeled cases than its draw now has."""
        for run in self.runs:
            now = cases_of(run)
            had = self.trained(run).get("cases", now)
            differing = {name: sorted(set(had[name]) ^ set(now[name])) for name in now}
            if told := [f"{name}: {', '.join(cases)}" for name, cases in differing.items() if cases]:
                raise ValueError(
                    f"{run.title}: trained in {self.folder(run)} with other cases than this draw now means (only then "
                    f"or only now: {'; '.join(told)}); take another work folder"
                )

    def epochs_done(self, run: Run) -> int:
        """Finished epochs of a training that is not finished."""
        begun = read(self.folder(run) / BEGUN)
        return len(epoch_seconds(self.work / begun["fold"])) if begun else 0

    def underway(self, run: Run) -> tuple[float, float] | None:
        """Seconds of a training so far, and those that it will still take, without predictions and scores.

        None before its first epoch, and when the run is done.
        """
        if trained := self.trained(run):
            return None if self.done(run) else (trained.get("wall", 0.0), 0.0)
        if not (begun := read(self.folder(run) / BEGUN)):
            return None
        try:
            return self._underway(self.work / begun["fold"], run)
        except (OSError, ValueError, KeyError):  # just being deleted, to begin anew, or written
            return None

    def _underway(self, fold: Path, run: Run) -> tuple[float, float] | None:
        if not (seconds := epoch_seconds(fold)):
            return None
        epochs = read(self.folder(run) / LENGTH).get("epochs", run.protocol.epochs)
        epochs = length(fold)["epochs"] if (fold / "debug.json").is_file() else epochs
        spent = start_up_seconds(fold) + sum(seconds.values())
        return spent, statistics.median(seconds.values()) * max(0, epochs - len(seconds))

    def seconds(self, run: Run) -> float | None:
        """How long a run took in all; None if it is not done."""
        wall = self.trained(run).get("wall")
        if not self.done(run) or wall is None:
            return None
        predicted = [read(self.folder(run) / f"predicted_{name}" / PREDICTED) for name in CHECKPOINTS]
        return wall + sum(marker.get("seconds", 0) for marker in predicted)

    def rows(self) -> list[dict[str, Any]]:
        """Scores of all runs that are done."""
        return [row for run in self.runs if self.done(run) for row in read_csv(self.folder(run) / SCORES_FILE)]


def scoring(run: Run) -> dict[str, Any]:
    """What decides the scores of a trained run: noted beside them, so that other settings score again."""
    protocol = run.protocol
    units = {"tolerance": protocol.tolerance, "voxel_units": protocol.voxel_units, "mirroring": protocol.mirroring}
    return {"cases": list(run.cases), "empty": EMPTY_RULE, **units}


def cases_of(run: Run) -> dict[str, list[str]]:
    """What a run may see, as it is noted with its training."""
    return {"labeled": list(run.fold.labeled), "unlabeled": list(run.fold.unlabeled)}


def read(file: Path) -> dict[str, Any]:
    """What a marker says; nothing if there is none, or the power went while it was written."""
    try:
        return json.loads(file.read_text()) if file.is_file() else {}
    except ValueError:
        return {}
