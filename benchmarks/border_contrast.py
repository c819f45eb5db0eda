"""How well can targets be seen: real ones of labeled cases against those of the synthetic images.

    python benchmarks/border_contrast.py --data FOLDER [--data FOLDER …] [--limit 10]

FOLDER is a data set in nnU-Net raw format. Of every object the shell of two voxels inside its border is compared with
the two voxels outside: the step between the two means in standard deviations of a shell, and the share of the border
where the step between the means over 5^3 voxels is below half a standard deviation ("not to be seen"). The first cases
by name are taken; the validation lists have the last ones.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import embedded_on_real
import numpy as np
import torch
from scipy import ndimage

from nnunet_semisam.sam.embedded.shapes import random_label_map
from nnunet_semisam.sam.embedded.synthesis import CLEAR, FAINT, draw_sample

WINDOW, HIDDEN, RARE = 5, 0.5, 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, action="append", default=[])
    parser.add_argument("--limit", type=int, default=10)
    parser.add_argument("--synthetic", type=int, default=80, help="images per kind of contrast")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| targets | objects | step, mean | step, median | share of the border not to be seen |")
    print("|---|---|---|---|---|")
    for folder in args.data:
        for name, value in json.loads((folder / "dataset.json").read_text())["labels"].items():
            if name != "background":
                cases = embedded_on_real.cases_of(folder, None)[: args.limit]
                pairs = (
                    (image, labels == value) for image, labels in (embedded_on_real.load(folder, c) for c in cases)
                )
                report(f"{folder.name}, {name}", [visibility(image, mask) for image, mask in pairs if mask.any()])
    rng = torch.Generator().manual_seed(5)
    maps = [random_label_map(40, 3, rng) for _ in range(40)]
    for name, contrast in (("synthetic, CLEAR", CLEAR), ("synthetic, FAINT", FAINT)):
        rng = torch.Generator().manual_seed(1)
        report(name, [visibility(*draw_sample(maps, rng, contrast)) for _ in range(args.synthetic)])


def visibility(image: torch.Tensor, mask: torch.Tensor) -> tuple[float, float]:
    """The step in grey value across the border, and the share of the border without one."""
    grey, inside = image.numpy().astype(float), mask.numpy()
    inner = inside & ~ndimage.binary_erosion(inside, iterations=2)
    outer = ndimage.binary_dilation(inside, iterations=2) & ~inside
    spread = np.sqrt((grey[inner].var() + grey[outer].var()) / 2)
    means, counts = zip(*(local_mean(grey, shell) for shell in (inner, outer)), strict=True)
    border = inside & ~ndimage.binary_erosion(inside) & (counts[0] > RARE) & (counts[1] > RARE)
    hidden = np.abs(means[0] - means[1])[border] < HIDDEN * spread
    return abs(grey[inner].mean() - grey[outer].mean()) / spread, hidden.mean()


def local_mean(grey: np.ndarray, shell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the voxels of the shell in a window, and their share of it."""
    share = ndimage.uniform_filter(shell.astype(float), WINDOW)
    return ndimage.uniform_filter(grey * shell, WINDOW) / np.maximum(share, 1e-6), share


def report(name: str, found: list[tuple[float, float]]) -> None:
    steps, hidden = np.array(found).T
    print(f"| {name} | {len(found)} | {steps.mean():.2f} | {np.median(steps):.2f} | {hidden.mean():.2f} |", flush=True)


if __name__ == "__main__":
    main()
