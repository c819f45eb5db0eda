"""Are trainings repeatable, blind to hidden labels, resumable, and stock at weight 0? Real scans, stock commands.

    python benchmarks/repeatability.py RAW_DATASET_FOLDER SPLITS_JSON WORK_FOLDER

Trains a shrunk `3d_fullres` with the commands of nnU-Net (CPU, `nnUNet_n_proc_DA=0`, one seed) and compares all weights
in `checkpoint_final.pth` bit for bit: the same training twice; after every label of the unlabeled cases was replaced by
noise in the raw data set and everything was planned and preprocessed again; killed in the last epoch and resumed with
`--c`; and, with every term at weight 0, against stock `nnUNetTrainer` on the same batches.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

TRAINER, CONFIGURATION = "nnUNetTrainerSemiSAM", "3d_fullres"
LENGTH = {"num_epochs": 3, "num_iterations_per_epoch": 5, "num_val_iterations_per_epoch": 2}
SECTION = {"seed": 1, "min_labeled_dice": 0, "sam": {"tune": 6}, **LENGTH}  # all terms from the first iteration on


def script(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def environment(folder: Path) -> dict[str, str]:
    folders = {f"nnUNet_{name}": str(folder / name) for name in ("raw", "preprocessed", "results")}
    quiet = {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "OMP_WAIT_POLICY": "passive"}
    return dict(os.environ) | folders | quiet


def prepare(source: Path, fold: dict[str, list[str]], folder: Path, *, noise: bool) -> None:
    """Raw data (with noise for labels of the unlabeled cases), stock planning and preprocessing, a small network."""
    raw = folder / "raw" / source.name
    shutil.copytree(source, raw)
    random = np.random.default_rng(0)
    for case in fold["unlabeled"] if noise else ():
        file = raw / "labelsTr" / f"{case}.nii.gz"
        file.chmod(0o644)
        label = sitk.ReadImage(str(file))
        values = sitk.GetArrayFromImage(label)
        spoiled = sitk.GetImageFromArray(random.integers(0, values.max() + 1, values.shape).astype(values.dtype))
        spoiled.CopyInformation(label)
        sitk.WriteImage(spoiled, str(file))
    command = [script("nnUNetv2_plan_and_preprocess"), "-d", source.name[7:10], "-c", CONFIGURATION]
    quietly([*command, "-np", "2", "-npfp", "2"], environment(folder) | {"nnUNet_n_proc_DA": "2"})
    preprocessed = folder / "preprocessed" / source.name
    (preprocessed / "splits_final.json").write_text(json.dumps([fold | {"val": fold["val"][:2]}]))
    file = preprocessed / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    small = plans["configurations"][CONFIGURATION]
    small |= {"patch_size": [32, 32, 32], "batch_size": 2, "semisam": SECTION}
    network = small["architecture"]["arch_kwargs"]
    network |= {"n_stages": 3, "features_per_stage": [8, 16, 16], "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]]}
    network |= {"kernel_sizes": [[3, 3, 3]] * 3, "n_conv_per_stage": [2] * 3, "n_conv_per_stage_decoder": [2] * 2}
    file.write_text(json.dumps(plans))


def quietly(command: list[str], env: dict[str, str]) -> None:
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def train(name: str, folder: Path, *, kill: bool = False) -> dict[str, torch.Tensor]:
    """The final weights of a training by the stock command; `kill`: SIGKILL in the last epoch, then `--c`."""
    fold = folder / "results" / name / f"{TRAINER}__nnUNetPlans__{CONFIGURATION}" / "fold_0"
    shutil.rmtree(fold, ignore_errors=True)
    command = [script("nnUNetv2_train"), name[7:10], CONFIGURATION, "0", "-tr", TRAINER, "-device", "cpu"]
    if kill:
        process = subprocess.Popen(command, env=environment(folder), stdout=subprocess.DEVNULL, start_new_session=True)
        while not any("Epoch 2" in log.read_text() for log in fold.glob("training_log*")):
            time.sleep(0.05)
            if process.poll() is not None:
                raise SystemExit(f"the training in {fold} ended before it could be killed")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        command.append("--c")
    quietly(command, environment(folder))
    return torch.load(fold / "checkpoint_final.pth", weights_only=False)["network_weights"]


def zero_weights_against_stock(name: str, folder: Path) -> bool:
    """Five steps of both trainers on the same batches from the same start."""
    os.environ.update(environment(folder))
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunet_semisam.checkpoint import seed_everything
    from nnunet_semisam.trainer import nnUNetTrainerSemiSAM

    preprocessed = folder / "preprocessed" / name
    dataset_json = json.loads((preprocessed / "dataset.json").read_text())
    trainers = []
    for kind in (nnUNetTrainer, nnUNetTrainerSemiSAM):
        plans = json.loads((preprocessed / "nnUNetPlans.json").read_text()) | {"continue_training": False}
        plans["configurations"][CONFIGURATION]["semisam"] = {
            "terms": {t: {"weight": 0} for t in ("consistency", "sam")}
        }
        trainers.append(kind(plans, CONFIGURATION, 0, dataset_json, torch.device("cpu")))
        seed_everything(1)
        trainers[-1].on_train_start()
        trainers[-1].on_train_epoch_start()
    batches = [next(trainers[0].dataloader_train) for _ in range(5)]
    for trainer in trainers:
        for batch in batches:
            trainer.train_step(batch)
    return same(*(trainer.network.state_dict() for trainer in trainers))


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("splits", type=Path)
    parser.add_argument("work", type=Path)
    args = parser.parse_args()
    name = args.dataset.name
    draw = json.loads(args.splits.read_text())[name]["4"]["list"]
    fold = {"train": draw["labeled"], "unlabeled": draw["unlabeled"], "val": draw["val"]}
    clean, noisy = args.work / "clean", args.work / "noisy"
    for folder, noise in ((clean, False), (noisy, True)):
        if not (folder / "preprocessed" / name / "splits_final.json").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            prepare(args.dataset, fold, folder, noise=noise)
    first = train(name, clean)
    results = {"the same training twice": same(first, train(name, clean))}
    results[f"labels of {len(fold['unlabeled'])} unlabeled cases replaced by noise"] = same(first, train(name, noisy))
    results["killed in the last epoch and resumed"] = same(first, train(name, clean, kill=True))
    results["every term at weight 0 against stock nnUNetTrainer"] = zero_weights_against_stock(name, clean)
    for sentence, identical in results.items():
        print(f"{name}: {sentence}: {'identical' if identical else 'DIFFERENT'} weights")
    sys.exit(0 if all(results.values()) else 1)


if __name__ == "__main__":
    main()
