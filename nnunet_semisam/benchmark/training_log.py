"""What nnU-Net's training logs tell: seconds of every epoch, and how far a training is."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

STAMP = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?): ")
EPOCH = re.compile(r": Epoch (\d+)\s*$")
TIME = re.compile(r": Epoch time: ([\d.]+) s")


def epoch_seconds(fold: Path) -> dict[int, float]:
    """Seconds of every finished epoch, in all logs of a fold folder; of an epoch trained twice the last."""
    seconds: dict[int, float] = {}
    for file in _logs(fold):
        epoch = None
        for line in file.read_text(errors="replace").splitlines():
            if found := EPOCH.search(line):
                epoch = int(found[1])
            elif (found := TIME.search(line)) and epoch is not None:
                seconds[epoch] = float(found[1])
    return seconds


def start_up_seconds(fold: Path) -> float:
    """Seconds from the first dated line to the first epoch: loaders, and the test and tuning of a generalist."""
    for file in _logs(fold):
        lines = file.read_text(errors="replace").splitlines()
        stamps = [found[1] for line in lines if (found := STAMP.match(line))]
        begun = [STAMP.match(line) for line in lines if (found := EPOCH.search(line)) and found[1] == "0"]
        if stamps and begun and begun[0]:
            return (datetime.fromisoformat(begun[0][1]) - datetime.fromisoformat(stamps[0])).total_seconds()
    return 0.0


def training_seconds(fold: Path) -> float:
    """Seconds of a finished training: start-up and epochs, without what a kill has cost and the last validation."""
    return start_up_seconds(fold) + sum(epoch_seconds(fold).values())


def length(fold: Path) -> dict[str, Any]:
    """Epochs and iterations per epoch that the trainer really had, and its GPU if any, from nnU-Net's `debug.json`."""
    debug = json.loads((fold / "debug.json").read_text())
    found = {"epochs": int(debug["num_epochs"]), "iterations": int(debug["num_iterations_per_epoch"])}
    return found | ({"gpu": debug["gpu_name"]} if debug.get("gpu_name") else {})


def _logs(fold: Path) -> list[Path]:
    def number(file: Path) -> list[int]:
        return [int(part) for part in file.stem.split("_") if part.isdigit()]

    return sorted(fold.glob("training_log_*.txt"), key=number)
