"""Seconds per training iteration of stock trainer, mean teacher and SemiSAM: same network, patch and batch, one run.

    python benchmarks/step_time.py DATASET_ID CONFIGURATION [--steps 10] [--device cpu]

Reads nnU-Net's three folders from the environment; the fold must have unlabeled cases. Loading is included
(`nnUNet_n_proc_DA=0` loads within the step), tuning of the generalist before training is not. Medians after warm-up;
the arms take turns, so that a change in the machine's load meets them all.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

from nnunet_semisam.trainer import nnUNetTrainerMeanTeacher, nnUNetTrainerSemiSAM

ARMS = {"stock": nnUNetTrainer, "mean teacher": nnUNetTrainerMeanTeacher, "SemiSAM": nnUNetTrainerSemiSAM}


def started(trainer: type, args: argparse.Namespace) -> nnUNetTrainer:
    """A trainer ready for its first step."""
    folder = Path(str(nnUNet_preprocessed)) / maybe_convert_to_dataset_name(args.dataset)
    plans = json.loads((folder / f"{args.plans}.json").read_text()) | {"continue_training": False}
    dataset_json = json.loads((folder / "dataset.json").read_text())
    built = trainer(copy.deepcopy(plans), args.configuration, args.fold, dataset_json, torch.device(args.device))
    if getattr(built, "semisam", None) is not None and built.semisam.sam is not None:
        built.semisam = replace(built.semisam, sam=replace(built.semisam.sam, tune=0))
    built.on_train_start()
    built.on_train_epoch_start()
    return built


def seconds_of_a_step(trainer: nnUNetTrainer) -> float:
    """Wall time of loading and one step."""
    start = time.perf_counter()
    trainer.train_step(next(trainer.dataloader_train))
    if trainer.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=int)
    parser.add_argument("configuration")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--plans", default="nnUNetPlans")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    trainers = {name: started(kind, args) for name, kind in ARMS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ARMS}
    for step in range(args.warm_up + args.steps):
        for name, trainer in trainers.items():
            spent = seconds_of_a_step(trainer)
            if step >= args.warm_up:
                seconds[name].append(spent)
    semisam = trainers["SemiSAM"]
    semisam.curves.end_epoch(0)
    in_sam = semisam.curves.epochs["sam/seconds"][0] / (args.warm_up + args.steps)
    stock = statistics.median(seconds["stock"])
    print("| trainer | median s per iteration | min | max | x stock |\n|---|---|---|---|---|")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"| {name} | {median:.3f} | {min(values):.3f} | {max(values):.3f} | {median / stock:.2f} |")
    share = in_sam / statistics.mean(seconds["SemiSAM"])
    print(f"\nSAM: {in_sam:.3f} s per iteration, {100 * share:.0f} % of SemiSAM's iteration ({args.steps} steps each)")


if __name__ == "__main__":
    main()
