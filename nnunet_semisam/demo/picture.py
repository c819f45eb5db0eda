"""`demo.png`: held-out cases with truth, predictions and SAM's mask; the training; the Dice of every case."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_semisam.demo.curves import read_curves
from nnunet_semisam.demo.dataset import read_nifti
from nnunet_semisam.demo.phantom import ORGANS

COLOURS = {1: "#ff9f1c", 2: "#2ec4f1"}
RUN_COLOURS = ("#444444", "#d62828")


@dataclass(frozen=True)
class Sources:
    """Where the parts of the picture lie.

    Args:
        raw: the raw data set.
        predictions: folders of the supervised baseline, the student and the teacher.
        runs: fold folders of the supervised baseline and of SemiSAM.
    """

    raw: Path
    predictions: tuple[Path, ...]
    runs: tuple[Path, ...]


def draw_picture(sources: Sources, scores: dict[str, Any], file: Path, *, cases: list[str]) -> None:
    """Writes the picture; `cases` are shown, `scores` (row -> case -> organ -> Dice) are plotted for all cases."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(14, 3.1 * len(cases) + 3.4), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(3.1 * len(cases), 3.4))
    images, plots = parts
    axes = images.subplots(len(cases), 5, squeeze=False)
    for row, case in zip(axes, cases, strict=True):
        _draw_case(row, sources, case)
    handles = [plt.Line2D([], [], color=colour, lw=6, alpha=0.6) for colour in COLOURS.values()]
    handles.append(plt.Line2D([], [], color="white", lw=1.2))
    legend = images.legend(handles, [*ORGANS, "outline of the truth"], loc="outside lower center", ncols=3, fontsize=9)
    legend.get_frame().set_facecolor("#b0b0b0")
    losses, terms, dice = plots.subplots(1, 3)
    _draw_training(losses, terms, sources)
    _draw_dice(dice, scores)
    figure.savefig(file, dpi=100)
    plt.close(figure)


def _draw_case(axes: Any, sources: Sources, case: str) -> None:
    image = read_nifti(sources.raw / "imagesTs" / f"{case}_0000.nii.gz")
    truth = read_nifti(sources.raw / "labelsTs" / f"{case}.nii.gz")
    supervised, student, _ = (read_nifti(folder / f"{case}.nii.gz") for folder in sources.predictions)
    panels = {
        "image": None,
        "truth": truth,
        "supervised": supervised,
        "SemiSAM": student,
        "SAM, prompted by the teacher": _sam(image, case, sources),
    }
    plane = _best_plane(truth)
    low, high = np.percentile(image[plane], (1, 99.5))
    for axis, (name, labels) in zip(axes, panels.items(), strict=True):
        axis.imshow(image[plane], cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_title(name, fontsize=11)
        if labels is not None:
            _overlay(axis, labels[plane], truth[plane])
            if labels is not truth:
                dice = (f"{_dice(labels, truth, label):.2f}" for label in ORGANS.values())
                axis.set_xlabel(f"Dice of the case {' / '.join(dice)}", fontsize=10)
    axes[0].set_ylabel(f"{case}, plane {plane}", fontsize=10)


def _overlay(axis: Any, labels: np.ndarray, truth: np.ndarray) -> None:
    from matplotlib.colors import to_rgba

    colours = np.zeros((*labels.shape, 4))
    for label, colour in COLOURS.items():
        colours[labels == label] = to_rgba(colour, 0.5)
        if (truth == label).any():
            axis.contour(truth == label, [0.5], colors="white", linewidths=1.2)
    axis.imshow(colours, interpolation="nearest")


def _sam(image: np.ndarray, case: str, sources: Sources) -> np.ndarray:
    """SAM's labels where it was heard."""
    from nnunet_semisam.demo.sam import sam_labels

    probabilities = np.load(sources.predictions[2] / f"{case}.npz")["probabilities"]
    labels, heard = sam_labels(image, probabilities, sources.runs[1] / "semisam.json")
    return np.where(heard, labels, 0)


def _draw_training(losses: Any, terms: Any, sources: Sources) -> None:
    curves = [read_curves(run / "checkpoint_final.pth") for run in sources.runs]
    for name, run, colour in zip(("supervised", "SemiSAM"), curves, RUN_COLOURS, strict=True):
        losses.plot(run["loss/supervised"], color=colour, label=name)
    losses.set_title("nnU-Net's loss on labeled patches", fontsize=11)
    for name, colour in (("consistency", "#457b9d"), ("sam", "#e07a5f")):
        if f"loss/{name}" in curves[1]:
            weight = max(curves[1].get(f"weight/{name}", [0]))
            terms.plot(curves[1][f"loss/{name}"], color=colour, label=f"{name} (weight up to {weight:.2g})")
    terms.set_title("SemiSAM's losses on unlabeled patches", fontsize=11)
    for axis in (losses, terms):
        axis.set_xlabel("epoch")
        axis.legend(fontsize=9)
        axis.grid(alpha=0.3)


def _draw_dice(axis: Any, scores: dict[str, Any]) -> None:
    """One line per held-out case from row to row, and the means."""
    values = np.array([[np.mean(list(organs.values())) for organs in cases.values()] for cases in scores.values()])
    axis.plot(range(len(values)), values, color="#999999", lw=0.8, marker=".")
    axis.plot(range(len(values)), values.mean(1), color=RUN_COLOURS[1], lw=2.5, marker="o", label="mean")
    axis.set_xticks(range(len(values)), [row.replace(" ", "\n") for row in scores])
    axis.set_title("mean Dice of each held-out case", fontsize=11)
    axis.legend(fontsize=9)
    axis.grid(alpha=0.3)


def _best_plane(truth: np.ndarray) -> int:
    """The plane that shows most of both organs."""
    areas = np.stack([(truth == label).sum((1, 2)) for label in ORGANS.values()])
    return int((areas / areas.max(1, keepdims=True).clip(1)).sum(0).argmax())


def _dice(labels: np.ndarray, truth: np.ndarray, label: int) -> float:
    mask, reference = labels == label, truth == label
    return 2 * float((mask & reference).sum()) / max(1, int(mask.sum() + reference.sum()))
