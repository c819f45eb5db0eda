"""Too much or too little: precision and recall of predictions, Dice if nothing outside the truth were predicted, and
the share of what is predicted that lies more than 10 mm off the truth.

    python benchmarks/over_under.py LABELS PREDICTIONS [PREDICTIONS …]

LABELS and PREDICTIONS are folders with files of the same names, the latter for instance WORK/runs/…/predicted_final of
`nnUNetv2_semisam_benchmark`. Means over cases, all labels above 0 as one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import distance_transform_edt

FAR = 10.0  # mm


def read(file: Path) -> tuple[np.ndarray, tuple[float, ...]]:
    """True where there is any label, and the spacing of the axes."""
    image = sitk.ReadImage(str(file))
    return sitk.GetArrayFromImage(image) > 0, image.GetSpacing()[::-1]


def row(truth: np.ndarray, found: np.ndarray, spacing: tuple[float, ...]) -> tuple[float, ...]:
    """Dice, precision, recall, Dice without false positives, share far off; NaN where there is nothing to divide by."""
    both, all_found, all_true = (float(mask.sum()) for mask in (truth & found, found, truth))
    precision = both / all_found if all_found else np.nan
    far = (distance_transform_edt(~truth, spacing) > FAR)[found].mean() if all_found else np.nan
    return 2 * both / (all_found + all_true), precision, both / all_true, 2 * both / (both + all_true), float(far)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", type=Path)
    parser.add_argument("predictions", type=Path, nargs="+")
    args = parser.parse_args()
    columns = ("predictions", "Dice", "precision", "recall", "Dice without false positives", "far off")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for folder in args.predictions:
        pairs = ((read(args.labels / file.name), read(file)[0]) for file in sorted(folder.glob("*.nii.gz")))
        rows = [row(truth, found, spacing) for (truth, spacing), found in pairs]
        print(f"| {folder.parent.name}/{folder.name} | {' | '.join(f'{v:.3f}' for v in np.nanmean(rows, 0))} |")


if __name__ == "__main__":
    main()
