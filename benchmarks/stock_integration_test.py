"""nnU-Net's `run_integration_test.sh`, line by line, on a CPU: with this package found and, to compare, not found.

    python benchmarks/stock_integration_test.py HIPPOCAMPUS_RAW_FOLDER NNUNET_REPOSITORY WORK_FOLDER [--dataset 999]
    NNUNET_SEMISAM_NO_DISCOVERY=1 python benchmarks/stock_integration_test.py …  # nnU-Net finds nothing of ours

The lines are read from the script in a clone of nnU-Net: stock trainers, four configurations, five folds each, then the
best configuration, prediction, ensembling and postprocessing. Cut down for a CPU: ten cases, networks as in
`integration_datasets.py`, five epochs of few iterations, and `-device cpu` where nnU-Net would take CUDA. The random
numbers are seeded before each line, so both runs shall print the same Dice, digit by digit.

nnU-Net's script predicts with whatever is best as if it were no cascade, and nnU-Net refuses a cascade without its
previous stage: where a cascade is the best, alone or in an ensemble, the script ends with that refusal, with and
without this package. `--seed` makes other trainings.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import runpy
import shlex
import shutil
import sys
import time
from pathlib import Path

import integration_datasets as datasets
import numpy as np

from nnunet_semisam._discovery import VARIABLE

CASES = 10


def prepare(number: int, source: Path, work: Path) -> Path:
    """Data set, plans with lowres and cascade, preprocessed cases, one case to predict; the folder in the results."""
    from toy_modes import command

    name = f"Dataset{number}_IntegrationTest_Hippocampus{datasets.SUFFIX[number]}"
    first = datasets.write_source(source, work / "nnUNet_raw", CASES)[0]
    datasets.module(f"dataset_conversion.datasets_for_integration_tests.{name}")
    raw = work / "nnUNet_raw" / name
    (raw / "imagesTs").mkdir(exist_ok=True)
    shutil.copy(raw / "imagesTr" / f"{first}_0000.nii.gz", raw / "imagesTs" / "new_0000.nii.gz")
    command("nnUNetv2_plan_and_preprocess", "-d", number, "--no_pp", "-npfp", 1)
    datasets.module("tests.integration_tests.add_lowres_and_cascade", "-d", number)
    datasets.shrink(work / "nnUNet_preprocessed" / name / "nnUNetPlans.json")
    command("nnUNetv2_preprocess", "-d", number, "-c", "2d", "3d_lowres", "3d_fullres", "-np", 1, 1, 1)
    return work / "nnUNet_results" / name


def cut_down(iterations: int) -> None:
    """Few iterations per epoch, prediction on the CPU, no pictures, no kernels chosen by stopwatch."""
    import torch
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.training.logging.nnunet_logger import LocalLogger
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    predictor, start = nnUNetPredictor.__init__, nnUNetTrainer.on_train_start

    def short(self):
        self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = iterations, 1
        start(self)

    blur = GaussianBlurTransform.__init__
    GaussianBlurTransform.__init__ = lambda self, *given, **more: blur(self, *given, **{**more, "benchmark": False})
    nnUNetTrainer.on_train_start = short
    nnUNetPredictor.__init__ = lambda self, *given, **more: predictor(
        self, *given, **{"device": torch.device("cpu"), **more}
    )
    LocalLogger.plot_progress_png = lambda self, folder: None
    torch.set_num_interop_threads = lambda number: None  # once per process is all that torch allows


def run_lines(repository: Path, number: int, seed: int) -> None:
    """Every line of nnU-Net's script."""
    import torch
    from toy_modes import command

    script, begin = repository / "nnunetv2/tests/integration_tests/run_integration_test.sh", time.perf_counter()
    for line in filter(None, script.read_text().replace("$1", str(number)).splitlines()):
        print(f"== {time.perf_counter() - begin:.0f} s: {line}", flush=True)
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        words = shlex.split(line)
        if words[0] == "nnUNetv2_train":
            command(*words, "-device", "cpu")
        else:
            sys.argv = words[1:]
            runpy.run_path(str(repository / words[1]), run_name="__main__")
    print(f"== {time.perf_counter() - begin:.0f} s: done")


def main() -> None:
    """Runs the script and prints the mean Dice of each configuration and ensemble."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("repository", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--dataset", type=int, default=999, choices=datasets.SUFFIX)
    parser.add_argument("--iterations", type=int, default=20, help="per epoch (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print("outside of nnU-Net, trainers are looked for in:", os.environ.get(VARIABLE, "nothing"), flush=True)
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(args.work / f"nnUNet_{name}")
        (args.work / f"nnUNet_{name}").mkdir(parents=True, exist_ok=True)
    os.environ |= {"nnUNet_compile": "f", "MPLBACKEND": "Agg"}
    import pytest
    from toy_modes import in_threads

    in_threads(pytest.MonkeyPatch())
    results = prepare(args.dataset, args.source, args.work)
    os.environ |= {"nnUNet_n_proc_DA": "0"}  # planning fails with it
    cut_down(args.iterations)
    outcome = results / "inference_information.json"
    outcome.unlink(missing_ok=True)
    try:
        run_lines(args.repository, args.dataset, args.seed)
    finally:
        found = json.loads(outcome.read_text())["all_results"] if outcome.is_file() else {}
        print(*(f"{dice:.6f} {name}" for name, dice in found.items()), sep="\n")
    print("postprocessed:", *(file.name for file in (results / "ensemble_predictions_postprocessed").iterdir()))


if __name__ == "__main__":
    main()
