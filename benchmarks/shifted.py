"""Would another threshold do better? Dice of trained models when the foreground's log-odds are shifted before argmax.

    python benchmarks/shifted.py WORK

WORK is the work folder of a benchmark (labels, no regions). Every finished run predicts its evaluation cases again with
its final weights, without mirroring. A shift of 0.5 is a threshold of 0.38 in place of 0.5, which is best for a
calibrated model that reaches a Dice of 0.75 (half of it: Lipton et al. 2014, arXiv 1402.1892); 2.2 is one of 0.1. A
model that gains by a shift finds too little. The truth is looked at: a diagnosis, no way to choose a threshold.
Prints Markdown, mean Dice over cases and classes in percent.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

from nnunet_semisam.benchmark.launch import Launcher
from nnunet_semisam.benchmark.planning import plan_steps
from nnunet_semisam.benchmark.protocol import read_protocol, read_protocol_file
from nnunet_semisam.benchmark.runs import Run
from nnunet_semisam.benchmark.steps import Steps

SHIFTS = (0.0, 0.25, 0.5, 0.85, 1.4, 2.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    work = parser.parse_args().work.resolve()
    torch.set_num_threads(1)
    steps = plan_steps(work, read_protocol(read_protocol_file(work / "protocol.json")), Launcher())
    print("| labels, draw | arm | " + " | ".join(f"{shift:g}" for shift in SHIFTS) + " |")
    print("|---" * (2 + len(SHIFTS)) + "|")
    for run in steps.runs:
        if steps.done(run):
            scores = np.mean([of_case(run, case, prob) for case, prob in probabilities(run, steps)], 0)
            cells = " | ".join(f"{score:.1f}" for score in scores)
            print(f"| {run.fold.labels}, `{run.fold.draw}` | {run.arm.name} | {cells} |", flush=True)


def probabilities(run: Run, steps: Steps):
    """Probabilities (K, z, y, x) of each evaluation case, by stock nnU-Net."""
    home = steps.home(run)
    os.environ |= home.environment()
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    fold = home.fold_folder(run)
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False, verbose=False)
    number = int(fold.name.removeprefix("fold_"))
    predictor.initialize_from_trained_model_folder(str(fold.parent), (number,), "checkpoint_final.pth")
    for case in run.cases:
        image, properties = SimpleITKIO().read_images([str(file) for file in run.dataset.images(case)])
        yield case, predictor.predict_single_npy_array(image, properties, None, None, True)[1]


def of_case(run: Run, case: str, prob: np.ndarray) -> list[float]:
    """Mean Dice over the classes by shift, in percent."""
    truth = sitk.GetArrayFromImage(sitk.ReadImage(str(run.dataset.label(case))))
    score = np.log(np.clip(prob, 1e-8, 1))
    found = []
    for shift in SHIFTS:
        labels = np.concatenate([score[:1], score[1:] + shift]).argmax(0)
        both = [((labels == k) & (truth == k)).sum() for k in range(1, len(prob))]
        size = [(labels == k).sum() + (truth == k).sum() for k in range(1, len(prob))]
        found.append(200 * float(np.mean([b / max(1, s) for b, s in zip(both, size, strict=True)])))
    return found


if __name__ == "__main__":
    main()
