"""Scores of predictions: one row per case and class, in CSV files."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_semisam.benchmark.dataset import RawDataset
from nnunet_semisam.benchmark.metrics import METRICS, measure
from nnunet_semisam.benchmark.runs import Run

FINAL, TEACHER, SCORES_FILE = "final", "teacher", "scores.csv"
COLUMNS = ("dataset", "labels", "draw", "seed", "arm", "weights", "case", "class", *METRICS, "empty")


def score(run: Run, folder: Path, weights: str) -> list[dict[str, Any]]:
    """Rows of the predictions in `folder`, for the evaluation cases of a run.

    Raises:
        FileNotFoundError: a prediction is missing.
    """
    where = {
        "dataset": run.dataset.name, "labels": run.fold.labels, "draw": run.fold.draw,
        "seed": run.seed, "arm": run.arm.name, "weights": weights,
    }  # fmt: skip
    rows = []
    for case in run.cases:
        prediction = folder / f"{case}{run.dataset.ending}"
        if not prediction.is_file():
            raise FileNotFoundError(f"{prediction} is missing: nnUNetv2_predict has not written it")
        for name, measured in score_case(run, case, prediction):
            rows.append({**where, "case": case, "class": name, **measured})
    return rows


def score_case(run: Run, case: str, prediction: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Metrics of every class of one case.

    Raises:
        ValueError: prediction and reference differ in shape.
    """
    found, _ = read_labels(run.dataset, prediction)
    truth, spacing = read_labels(run.dataset, run.dataset.label(case))
    if found.shape != truth.shape:
        raise ValueError(f"{prediction} has shape {found.shape}, its reference {truth.shape}")
    if run.protocol.voxel_units:
        spacing = [1.0] * len(spacing)
    counted = truth != run.dataset.ignored if run.dataset.ignored is not None else np.ones(truth.shape, bool)
    for name, values in run.dataset.classes.items():
        masks = (np.isin(found, values) & counted, np.isin(truth, values) & counted)
        yield name, measure(*masks, spacing, float(run.protocol.tolerance))


def read_labels(dataset: RawDataset, file: Path) -> tuple[np.ndarray, list[float]]:
    """Labels (Z, Y, X) and spacing per axis, as nnU-Net reads them."""
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    reader = determine_reader_writer_from_dataset_json(dataset.description, str(file), verbose=False)()
    labels, properties = reader.read_seg(str(file))
    return labels[0], [float(value) for value in properties["spacing"]]


def write_csv(file: Path, rows: Iterable[dict[str, Any]], columns: Iterable[str] = COLUMNS) -> None:
    """Writes a table in one move."""
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    with temporary.open("w", newline="") as text:
        writer = csv.DictWriter(text, list(columns))
        writer.writeheader()
        writer.writerows({key: _text(value) for key, value in row.items()} for row in rows)
    os.replace(temporary, file)


def read_csv(file: Path) -> list[dict[str, Any]]:
    """Rows of a file of `write_csv` with the columns of scores."""
    with file.open(newline="") as text:
        return [
            {
                key: float(value) if key in METRICS else int(value) if key == "seed" else value
                for key, value in row.items()
            }
            for row in csv.DictReader(text)
        ]


def _text(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
