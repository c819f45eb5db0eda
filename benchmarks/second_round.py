"""Does a second round help? What a trained model says of the unlabeled cases becomes their label, and stock nnU-Net
trains on all of them from the beginning: self-training offline.

    python benchmarks/second_round.py WORK --arm semisam

WORK is the work folder of a benchmark (one data set, one seed). For every finished run of the arm, in turn, the
unlabeled cases are predicted with its final weights, and a supervised training of the same network and length learns
these masks beside the true labels. Everything goes into WORK/second_round. Prints Markdown: mean Dice on the evaluation
cases before and after. No hidden label is read.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

from nnunet_semisam.benchmark.arms import parse_arms
from nnunet_semisam.benchmark.home import Home
from nnunet_semisam.benchmark.launch import Launcher, Slot
from nnunet_semisam.benchmark.planning import plan_steps
from nnunet_semisam.benchmark.protocol import Protocol, read_protocol, read_protocol_file
from nnunet_semisam.benchmark.run import run_benchmark
from nnunet_semisam.benchmark.runs import Run, write_json
from nnunet_semisam.benchmark.scores import FINAL, SCORES_FILE, read_csv
from nnunet_semisam.benchmark.steps import Steps

ROUND = "second"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--arm", required=True)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    work, slot = args.work.resolve(), Slot(args.device)
    protocol = read_protocol(read_protocol_file(work / "protocol.json"))
    steps = plan_steps(work, protocol, Launcher())
    lines = ["| labels | draw | before | after |", "|---|---|---|---|"]
    for run in steps.runs:
        if run.arm.name == args.arm and steps.done(run):
            after = second_round(run, steps, slot)
            lines.append(f"| {run.fold.labels} | {run.fold.draw} | {dice(run, steps):.1f} | {after:.1f} |")
    print("\n".join(lines))


def second_round(run: Run, steps: Steps, slot: Slot) -> float:
    """Mean Dice in percent of a training on the predictions of `run`."""
    folder = steps.work / "second_round" / run.name
    predicted = predict(run, steps.home(run), slot, folder)
    write_raw(run, predicted, folder / "raw" / run.dataset.name)
    everything = sorted({*run.fold.labeled, *run.fold.unlabeled})
    lists = {"labeled": everything, "unlabeled": [], "val": list(run.fold.val)}
    write_json(folder / "splits.json", {run.dataset.name: {str(len(everything)): {ROUND: lists}}})
    protocol = _protocol(run.protocol, folder, run, len(everything))
    if errors := run_benchmark(folder / "work", protocol, [slot]):
        raise SystemExit("\n".join(errors.values()))
    second = plan_steps(folder / "work", protocol, Launcher())
    return dice(second.runs[0], second)


def _protocol(protocol: Protocol, folder: Path, run: Run, labels: int) -> Protocol:
    (supervised,) = parse_arms(["supervised"])
    return replace(
        protocol,
        datasets=(str(folder / "raw" / run.dataset.name),),
        splits=str(folder / "splits.json"),
        budgets=(labels,),
        draws=(ROUND,),
        seeds=(run.seed,),
        arms=(supervised,),
        baseline="supervised",
    )


def predict(run: Run, home: Home, slot: Slot, folder: Path) -> Path:
    """Masks of the unlabeled cases, as the benchmark predicts evaluation cases."""
    everything = replace(run.protocol, max_cases=None)
    unlabeled = replace(run, fold=replace(run.fold, val=run.fold.unlabeled), protocol=everything)
    steps = Steps(folder, [unlabeled], Launcher())
    # the fold's number and weights are looked up by its labeled and unlabeled cases, which are the same
    steps.predict(unlabeled, home, slot, None, FINAL)
    return steps.folder(unlabeled) / f"predicted_{FINAL}"


def write_raw(run: Run, predicted: Path, target: Path) -> None:
    """The data set once more: the masks in place of the hidden labels."""
    shutil.rmtree(target, ignore_errors=True)
    for name in ("imagesTr", "labelsTr"):
        (target / name).mkdir(parents=True)
    for case in (*run.fold.labeled, *run.fold.unlabeled, *run.fold.val):
        for file in run.dataset.images(case):
            (target / "imagesTr" / file.name).symlink_to(file)
        label = run.dataset.label(case)
        source = predicted / label.name if case in run.fold.unlabeled else label
        (target / "labelsTr" / label.name).symlink_to(source)
    cases = len(os.listdir(target / "labelsTr"))
    (target / "dataset.json").write_text(json.dumps({**run.dataset.description, "numTraining": cases}))


def dice(run: Run, steps: Steps) -> float:
    """Of the final weights: mean over cases and classes, in percent."""
    rows = read_csv(steps.folder(run) / SCORES_FILE)
    return 100 * statistics.fmean(float(row["dice"]) for row in rows if row["weights"] == FINAL)


if __name__ == "__main__":
    main()
