"""One run from nothing to scores: train, predict, score. What is done already is not done again."""

from __future__ import annotations

import contextlib
import math
import shutil
import threading
import time
from pathlib import Path
from typing import Any

from nnunet_semisam.benchmark.home import PLANS, Home, home_of
from nnunet_semisam.benchmark.launch import Busy, CommandFailed, Launcher, Slot, locked
from nnunet_semisam.benchmark.provenance import training_versions
from nnunet_semisam.benchmark.runs import Run, needs, write_json, write_text
from nnunet_semisam.benchmark.scores import FINAL, SCORES_FILE, score, write_csv
from nnunet_semisam.benchmark.state import (
    BEGUN,
    CHECKPOINTS,
    LENGTH,
    PREDICTED,
    SCORED,
    TRAINED,
    State,
    cases_of,
    read,
    scoring,
)
from nnunet_semisam.benchmark.training_log import epoch_seconds, length, training_seconds

BEST = "checkpoint_best.pth"
FAILED, LOG = "failed.txt", "log.txt"


class Steps(State):
    """Carries runs out in a work folder.

    Args:
        runs: all runs, so that one can find those it needs.
    """

    def __init__(self, work: Path, runs: list[Run], launcher: Launcher) -> None:
        super().__init__(work, runs)
        self.launcher = launcher
        self._homes: dict[Path, Home] = {}
        self._lock, self._scoring = threading.Lock(), threading.Lock()

    def __call__(self, run: Run, slot: Slot) -> None:
        """Brings a run to its end.

        Raises:
            Busy: another process is at it.
            Exception: whatever went wrong; it is also in `failed.txt` of the run.
        """
        folder = self.folder(run)
        with locked(folder) as lock:
            (folder / FAILED).unlink(missing_ok=True)
            try:
                self._all_steps(run, slot, lock)
            except Busy:
                raise
            except Exception as error:
                if not self.launcher.stopped:  # an interrupted run has not failed
                    write_text(folder / FAILED, f"{type(error).__name__}: {error}\n")
                raise

    def _all_steps(self, run: Run, slot: Slot, lock: int | None) -> None:
        home = self.home(run)
        home.prepare(run, slot, self.launcher)
        self.train(run, home, slot, lock)
        fold = home.fold_folder(run)
        weights = [name for name, file in CHECKPOINTS.items() if (fold / file).is_file()]
        if FINAL not in weights:
            raise RuntimeError(f"{fold} has no {CHECKPOINTS[FINAL]}, though {self.folder(run) / TRAINED} says trained")
        for name in weights:
            self.predict(run, home, slot, lock, name)
        self.score(run, weights)

    def home(self, run: Run) -> Home:
        home = home_of(run, self.work)
        with self._lock:
            return self._homes.setdefault(home.data, home)

    # --- steps ----------------------------------------------------------------------------------------------------

    def train(self, run: Run, home: Home, slot: Slot, lock: int | None) -> None:
        """`nnUNetv2_train`, continued where there is a checkpoint; one that cannot be read is dropped."""
        if self.trained(run):
            return
        home.write_configuration(run, self.epochs(run))
        fold = home.fold_folder(run)
        versions = read(self.folder(run) / BEGUN).get("versions", [])
        versions += [now] if (now := training_versions()) not in versions else []  # it may be continued by other code
        write_json(self.folder(run) / BEGUN, {"fold": str(fold.relative_to(self.work)), "versions": versions})
        start = time.time()
        words: tuple[str, ...] = (
            "nnUNetv2_train",
            run.dataset.name,
            run.configuration,
            fold.name.removeprefix("fold_"),
        )
        words += ("-tr", run.arm.trainer, "-p", PLANS, "-device", slot.kind)
        self._train_or_continue(run, home, slot, lock, words)
        seconds = training_seconds(fold)
        facts: dict[str, Any] = {
            "seconds": seconds,
            "wall": max(seconds, time.time() - start),
            "device": slot.device,
            "cases": cases_of(run),
            "versions": versions,
            **length(fold),
        }
        facts["last_epoch"] = epoch_seconds(fold)[facts["epochs"] - 1]
        write_json(self.folder(run) / TRAINED, facts)

    def _train_or_continue(self, run: Run, home: Home, slot: Slot, lock: int | None, words: tuple[str, ...]) -> None:
        fold, loaders = home.fold_folder(run), {"nnUNet_n_proc_DA": str(slot.loaders)}
        if (fold / "validation" / "summary.json").is_file():  # written last, by a command that outlived its benchmark
            return
        if any(fold.glob("checkpoint_*.pth")):
            try:
                self.command(run, home, slot, lock, *words, "--c", **loaders)
                return
            except CommandFailed:
                if self.launcher.stopped or not _damaged(fold):
                    raise  # no memory, a full disk: nothing that training anew would mend
            fold.rename(fold.with_name(f"damaged_{fold.name}_{time.time():.0f}"))
        shutil.rmtree(fold, ignore_errors=True)
        self.command(run, home, slot, lock, *words, **loaders)

    def epochs(self, run: Run) -> int:
        """Epochs of a run; for an arm of equal time as many as fill the time of the other arm, at least."""
        if not run.arm.needs:
            return run.protocol.epochs
        if settled := read(self.folder(run) / LENGTH):
            return settled["epochs"]
        facts = {other.arm.name: self.trained(other) for other in needs(run, self.runs)}
        devices = {name: found["device"].split(":")[0] for name, found in facts.items()}
        if all("gpu" in found for found in facts.values()):  # trainings of before did not note it
            devices = {name: found["gpu"] for name, found in facts.items()}
        if len(set(devices.values())) > 1:
            raise RuntimeError(
                f"{run.arm.name}: no equal time, as its arms ran on {devices}; use one kind of --devices"
            )
        seconds = {name: found["seconds"] for name, found in facts.items()}
        ratio = seconds[run.arm.time_of] / seconds[run.arm.like]
        epochs = max(1, math.ceil(run.protocol.epochs * ratio - 1e-9))
        write_json(self.folder(run) / LENGTH, {"epochs": epochs, "ratio": ratio})
        return epochs

    def predict(self, run: Run, home: Home, slot: Slot, lock: int | None, weights: str) -> None:
        """`nnUNetv2_predict` on the evaluation cases."""
        out = self.folder(run) / f"predicted_{weights}"
        marker, wanted = out / PREDICTED, {"cases": list(run.cases), "mirroring": run.protocol.mirroring}
        had = read(marker)
        if had.get("mirroring") == wanted["mirroring"] and set(had["cases"]) >= set(run.cases):
            return
        shutil.rmtree(out, ignore_errors=True)
        fold, processes = home.fold_folder(run), "0" if slot.kind == "cpu" else "2"
        words: tuple[str, ...] = (
            "-i",
            str(home.inputs(run)),
            "-o",
            str(out),
            "-d",
            run.dataset.name,
            "-c",
            run.configuration,
        )
        words += ("-f", fold.name.removeprefix("fold_"), "-tr", run.arm.trainer, "-p", PLANS)
        words += (
            "-chk",
            CHECKPOINTS[weights],
            "-device",
            slot.kind,
            *("-npp", processes, "-nps", processes),
            "--disable_progress_bar",
        )
        words += () if run.protocol.mirroring else ("--disable_tta",)
        start = time.time()
        self.command(run, home, slot, lock, "nnUNetv2_predict", *words)
        write_json(marker, {**wanted, "seconds": time.time() - start})

    def score(self, run: Run, weights: list[str]) -> None:
        """Metrics of all predictions; one run at a time."""
        folder = self.folder(run)
        with self._scoring:
            rows = [row for name in weights for row in score(run, folder / f"predicted_{name}", name)]
        write_csv(folder / SCORES_FILE, rows)
        write_json(folder / SCORED, {"settings": scoring(run), "weights": weights})
        if begun := read(folder / BEGUN):
            with contextlib.suppress(OSError):  # scored all the same
                (self.work / begun["fold"] / BEST).unlink(missing_ok=True)  # large, and never used here

    def command(self, run: Run, home: Home, slot: Slot, lock: int | None, *words: str, **more: str) -> None:
        log = self.folder(run) / LOG
        environment = slot.environment() | home.environment() | more
        self.launcher.run(words, log=log, environment=environment, lock=lock)


def _damaged(fold: Path) -> bool:
    """Is there no sense in the checkpoint from which nnU-Net would go on? What may be read another time has sense."""
    from nnunet_semisam.checkpoint import read_checkpoint

    files = (fold / f"checkpoint_{name}.pth" for name in ("final", "latest", "best"))
    file = next((file for file in files if file.is_file()), None)
    try:
        return file is None or not read_checkpoint(str(file))
    except (OSError, MemoryError):
        return False
    except ValueError:
        return True
