"""Too much or too little: precision and recall of predictions, and Dice if nothing outside the truth were predicted.

    python benchmarks/over_under.py LABELS PREDICTIONS [PREDICTIONS …]

LABELS and PREDICTIONS are folders with files of the same names, the latter for instance WORK/runs/…/predicted_final of
`nnUNetv2_semisam_benchmark`. Means over cases, all labels above 0 as one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import SimpleITK as sitk


def read(file: Path) -> np.ndarray:
    """True where there is any label."""
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file))) > 0


def row(truth: np.ndarray, found: np.ndarray) -> tuple[float, float, float, float]:
    """Dice, precision, recall, and Dice without false positives; NaN where there is nothing to divide by."""
    both, all_found, all_true = (float(mask.sum()) for mask in (truth & found, found, truth))
    precision = both / all_found if all_found else np.nan
    return 2 * both / (all_found + all_true), precision, both / all_true, 2 * both / (both + all_true)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", type=Path)
    parser.add_argument("predictions", type=Path, nargs="+")
    args = parser.parse_args()
    print("| predictions | Dice | precision | recall | Dice without false positives |\n|---|---|---|---|---|")
    for folder in args.predictions:
        rows = [row(read(args.labels / file.name), read(file)) for file in sorted(folder.glob("*.nii.gz"))]
        print(f"| {folder.parent.name}/{folder.name} | {' | '.join(f'{v:.3f}' for v in np.nanmean(rows, 0))} |")


if __name__ == "__main__":
    main()
