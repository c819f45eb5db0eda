"""Supervised, mean teacher and SemiSAM on the same few labeled cases, with a network small enough for a CPU.

    python benchmarks/few_labels_cpu.py RAW_DATASET_FOLDER SPLITS_JSON WORK_FOLDER --labels 4 --draw list

Plans and preprocesses with nnU-Net's commands, writes the split, shrinks patch and network of `3d_fullres`, adds one
configuration per arm and trains every arm with the same seed and number of iterations. The supervised arm is
`nnUNetTrainerSemiSAM` with every term at weight 0: the stock trainer step for step (`tests/test_train_step.py`).
Dice is that of the final checkpoint on all validation cases of the split, predicted without mirroring (nnU-Net's own
validation after training, with mirroring, sees one of them only: it takes eight times as long). What is done already is
not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

NO_TERMS = {"consistency": {"weight": 0}, "sam": {"weight": 0}}
ARMS = {"supervised": {"terms": NO_TERMS}, "meanteacher": {"sam": None}, "semisam": {}}
TRAINER = "nnUNetTrainerSemiSAM"


def run(command: list[str], environment: dict[str, str], log: Path) -> None:
    """Runs a console script of this interpreter; its output goes to `log`."""
    script = Path(sys.executable).with_name(command[0])
    with open(log, "a") as file:
        code = subprocess.run([str(script), *command[1:]], env=environment, stdout=file, stderr=file).returncode
    if code:
        raise SystemExit(f"{' '.join(command)} failed; see {log}")


def prepare(args: argparse.Namespace, environment: dict[str, str]) -> Path:
    """Raw data, plans, preprocessed cases and the split; returns the preprocessed folder."""
    name = args.dataset.name
    raw, preprocessed = args.work / "raw" / name, args.work / "preprocessed" / name
    if not raw.exists():
        raw.parent.mkdir(parents=True, exist_ok=True)
        raw.symlink_to(args.dataset.resolve())
    if not (preprocessed / "nnUNetPlans_3d_fullres").is_dir():
        number = name[7:10]
        command = ["nnUNetv2_plan_and_preprocess", "-d", number, "-c", "3d_fullres", "-np", "2", "-npfp", "2"]
        run(command, environment, args.work / "plan.log")
        shutil.copy(preprocessed / "nnUNetPlans.json", preprocessed / "nnUNetPlans.stock.json")
    draw = json.loads(args.splits.read_text())[name][str(args.labels)][args.draw]
    fold = {"train": draw["labeled"], "unlabeled": draw["unlabeled"], "val": draw["val"][:1]}
    (preprocessed / "splits_final.json").write_text(json.dumps([fold]))
    return preprocessed


def write_arms(args: argparse.Namespace, preprocessed: Path) -> None:
    """Shrinks 3d_fullres and adds one configuration per arm."""
    plans = json.loads((preprocessed / "nnUNetPlans.stock.json").read_text())
    small = plans["configurations"]["3d_fullres"]
    network = small["architecture"]["arch_kwargs"]
    stages = len(args.features)
    small |= {"patch_size": args.patch, "batch_size": 2}
    network |= {"n_stages": stages, "features_per_stage": args.features}
    network |= {"strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1), "kernel_sizes": [[3, 3, 3]] * stages}
    network |= {"n_conv_per_stage": [2] * stages, "n_conv_per_stage_decoder": [2] * (stages - 1)}
    length = {"num_epochs": args.epochs, "num_iterations_per_epoch": args.iterations}
    for arm, section in ARMS.items():
        section = section | length | {"num_val_iterations_per_epoch": 5, "seed": args.seed} | json.loads(args.section)
        if arm == "supervised":
            section["terms"] = NO_TERMS
        entry = {"inherits_from": "3d_fullres", "semisam": section}
        plans["configurations"][configuration(args, arm)] = entry
    (preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans, indent=1))


def configuration(args: argparse.Namespace, arm: str) -> str:
    """Name of an arm's configuration: names the run, so that runs of different settings lie side by side."""
    return f"{arm}_{args.labels}{args.draw}_seed{args.seed}_{args.epochs}x{args.iterations}{args.tag}"


def dice(summary: Path) -> list[float]:
    """Mean Dice of every class in nnU-Net's summary.json."""
    means = json.loads(summary.read_text())["mean"]
    return [means[key]["Dice"] for key in sorted(means)]


def train(args: argparse.Namespace, arm: str, environment: dict[str, str]) -> dict[str, object]:
    """Trains one arm; Dice of its final checkpoint, and of its teacher where it has one."""
    name = configuration(args, arm)
    fold = args.work / "results" / args.dataset.name / f"{TRAINER}__nnUNetPlans__{name}" / "fold_0"
    summary, seconds = fold / "validation" / "summary.json", fold / "seconds.txt"
    if not summary.is_file():
        shutil.rmtree(fold, ignore_errors=True)
        start = time.time()
        command = ["nnUNetv2_train", args.dataset.name[7:10], name, "0", "-tr", TRAINER, "-device", "cpu"]
        run(command, environment, args.work / f"{args.dataset.name}_{name}.log")
        seconds.write_text(f"{time.time() - start:.0f}")
    row: dict[str, object] = {"arm": arm, "seconds": int(seconds.read_text())}
    for checkpoint in ("checkpoint_final.pth", "checkpoint_final_teacher.pth"):
        if (fold / checkpoint).is_file():
            row[checkpoint.removesuffix(".pth")] = predicted_dice(args, name, fold / checkpoint, environment)
    return row


def predicted_dice(args: argparse.Namespace, name: str, checkpoint: Path, environment: dict[str, str]) -> list[float]:
    """Mean Dice per class on all validation cases, by nnUNetv2_predict (no mirroring) and nnUNetv2_evaluate_folder."""
    inputs, output = args.work / f"{args.dataset.name}_val", checkpoint.with_name(f"predicted_{checkpoint.stem}")
    if not (output / "summary.json").is_file():
        inputs.mkdir(exist_ok=True)
        for case in validation_cases(args):
            link = inputs / f"{case}_0000.nii.gz"
            if not link.exists():
                link.symlink_to((args.dataset / "imagesTr" / link.name).resolve())
        log = args.work / f"{args.dataset.name}_{name}.log"
        command = ["nnUNetv2_predict", "-i", str(inputs), "-o", str(output), "-d", args.dataset.name[7:10], "-c", name]
        command += ["-tr", TRAINER, "-f", "0", "-chk", checkpoint.name, "-device", "cpu", "-npp", "1", "-nps", "1"]
        run([*command, "--disable_tta"], environment, log)
        truth = args.work / "preprocessed" / args.dataset.name / "gt_segmentations"
        command = ["nnUNetv2_evaluate_folder", str(truth), str(output), "-np", "1", "--chill"]
        command += ["-djfile", str(output / "dataset.json"), "-pfile", str(output / "plans.json")]
        run(command, environment, log)
    return dice(output / "summary.json")


def validation_cases(args: argparse.Namespace) -> list[str]:
    return json.loads(args.splits.read_text())[args.dataset.name][str(args.labels)][args.draw]["val"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("splits", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--labels", type=int, default=4)
    parser.add_argument("--draw", default="list")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--patch", type=int, nargs=3, default=[40, 40, 40])
    parser.add_argument("--features", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--section", default="{}", help="JSON laid over the semisam section of every arm")
    parser.add_argument("--tag", default="", help="appended to the configuration names")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    folders = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "preprocessed", "nnUNet_results": "results"}
    environment = dict(os.environ) | {key: str(args.work / folder) for key, folder in folders.items()}
    # nnU-Net lets torch take every core; threads that wait must not spin while another process needs the core
    environment |= {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "OMP_WAIT_POLICY": "passive"}
    preprocessed = prepare(args, environment | {"nnUNet_n_proc_DA": "2"})
    write_arms(args, preprocessed)
    for arm in args.arms:
        row = train(args, arm, environment)
        print(json.dumps({"dataset": args.dataset.name, "labels": args.labels, "draw": args.draw, **row}), flush=True)


if __name__ == "__main__":
    main()
