"""Seconds per case: `nnUNetv2_preprocess`, and `nnUNetv2_semisam_preprocess` on the same images without labels.

    python benchmarks/preprocess_time.py RAW_DATASET_FOLDER WORK_FOLDER [--cases 12] [--rounds 3] [--processes 1]

Each command takes turns with the other on data sets of one and of so many cases; the seconds of a case are what the
larger one takes longer, divided by its further cases, so that starting Python does not count. The median of the rounds
is printed. Nothing is left over from one round to the next.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

CONFIGURATION = "3d_fullres"
COMMANDS = {
    "nnUNetv2_preprocess": f"nnUNetPlans_{CONFIGURATION}",
    "nnUNetv2_semisam_preprocess": f"nnUNetPlans_{CONFIGURATION}_unlabeled",
}


def prepare(source: Path, work: Path, number: int, count: int) -> str:
    """A planned data set with `count` labeled cases, and their images once more in `imagesUn`; its name."""
    name = f"Dataset{number}_Timed"
    raw = work / "nnUNet_raw" / name
    shutil.rmtree(raw, ignore_errors=True)
    for folder in ("imagesTr", "labelsTr", "imagesUn"):
        (raw / folder).mkdir(parents=True)
    content = json.loads((source / "dataset.json").read_text()) | {"numTraining": count}
    content.pop("dataset", None)
    (raw / "dataset.json").write_text(json.dumps(content))
    labels = sorted((source / "labelsTr").glob(f"*{content['file_ending']}"))[:count]
    for label in labels:
        shutil.copy(label, raw / "labelsTr")
        case = label.name.removesuffix(content["file_ending"])
        for image in (source / "imagesTr").glob(f"{case}_[0-9][0-9][0-9][0-9]{content['file_ending']}"):
            shutil.copy(image, raw / "imagesTr")
            shutil.copy(image, raw / "imagesUn" / f"un_{image.name}")
    run("nnUNetv2_plan_and_preprocess", "-d", str(number), "--no_pp", "-npfp", "1")
    return name


def run(command: str, *words: str) -> float:
    """Seconds that a command takes."""
    start = time.perf_counter()
    done = subprocess.run([str(Path(sys.executable).with_name(command)), *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command} {' '.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return time.perf_counter() - start


def timed(command: str, work: Path, name: str, processes: int) -> float:
    """Seconds of a command on a data set that nothing was made of yet."""
    folder = work / "nnUNet_preprocessed" / name
    shutil.rmtree(folder / COMMANDS[command], ignore_errors=True)
    (folder / f"{COMMANDS[command]}.json").unlink(missing_ok=True)
    return run(command, "-d", name[7:10], "-c", CONFIGURATION, "-np", str(processes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--cases", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args()
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(args.work.resolve() / f"nnUNet_{name}")
    one, many = (prepare(args.dataset, args.work, number, count) for number, count in ((901, 1), (902, args.cases)))
    rounds: dict[str, list[tuple[float, ...]]] = {command: [] for command in COMMANDS}
    for _ in range(args.rounds):
        for command, found in rounds.items():
            found.append(
                (timed(command, args.work, one, args.processes), timed(command, args.work, many, args.processes))
            )
    print(f"| command | one case, s | {args.cases} cases, s | s per further case (every round) |\n|---|---|---|---|")
    for command, found in rounds.items():
        single, several = (statistics.median(column) for column in zip(*found, strict=True))
        each = [(more - first) / (args.cases - 1) for first, more in found]
        print(
            f"| {command} | {single:.1f} | {several:.1f} | {statistics.median(each):.2f} "
            f"({', '.join(f'{seconds:.2f}' for seconds in each)}) |"
        )


if __name__ == "__main__":
    main()
