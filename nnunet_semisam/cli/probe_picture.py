"""One picture of one trial: the plane that shows most of the object, with truth, prompt and answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from nnunet_semisam.sam.probe import Asked
from nnunet_semisam.types import LabeledCase

COLORS = {"truth": "#2a9d4f", "prompt": "#f4a259", "answer": "#d62828"}


def draw(patch: LabeledCase, head: int, asked: Asked, file: Path) -> None:
    """Writes `file` (PNG): the plain slice, and the slice with the three outlines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    cut = plane_of(asked.voxels, patch.truth[head] & asked.voxels)
    image = patch.image[0][cut].float().numpy()
    masks = {"truth": patch.truth[head], "prompt": asked.prompt, "answer": asked.answer}
    figure = Figure(figsize=(8, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    low, high = np.percentile(image, (0.5, 99.5))
    for axis in figure.subplots(1, 2):
        axis.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
        axis.set_axis_off()
    for name, mask in masks.items():
        if (flat := mask[cut].numpy()).any() and not flat.all():
            axis.contour(flat.astype(float), levels=[0.5], colors=COLORS[name], linewidths=1.2)
    trial = asked.trial
    figure.suptitle(
        f"{trial.case}: Dice of the prompt {trial.prompt:.3f}, of the answer {trial.answer:.3f}", fontsize=10
    )
    lines = [Line2D([], [], color=color) for color in COLORS.values()]
    figure.legend(lines, list(COLORS), loc="outside lower center", ncols=3, fontsize=9)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=90)


def plane_of(voxels: torch.Tensor, truth: torch.Tensor) -> tuple[slice | int, ...]:
    """Index of a plane: across the axis along which planes were asked about (else the first), with most truth on it."""
    if truth.ndim == 2:
        return slice(None), slice(None)
    along = 0
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        if not voxels.any(dim=others).all():
            along = axis
            break
    others = tuple(other for other in range(3) if other != along)
    index: list[slice | int] = [slice(None)] * 3
    index[along] = int(truth.sum(dim=others).argmax())
    return tuple(index)
