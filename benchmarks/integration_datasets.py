"""nnU-Net's integration data sets 996 to 999 (plain, ignore, regions, regions and ignore), trained with SemiSAM.

    python benchmarks/integration_datasets.py HIPPOCAMPUS_RAW_FOLDER WORK_FOLDER [--datasets 999 998 997 996]

The first cases of a Hippocampus data set in nnU-Net's raw format become its Dataset004; nnU-Net's own scripts make the
four data sets of it and add a lowres stage and a cascade, as its integration tests do. Networks are shrunk for a CPU.
Every data set has two folds, in which the same cases are hidden. Trained for a few iterations: 3d_fullres and 2d on
fold 0, 3d_lowres on both folds, and 3d_cascade_fullres on fold 0. Dice is that of nnU-Net's validation.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

SUFFIX = {999: "", 998: "_ignore", 997: "_regions", 996: "_regions_ignore"}
TRAINER = "nnUNetTrainerSemiSAM"
RUNS = (("3d_fullres", 0), ("2d", 0), ("3d_lowres", 0), ("3d_lowres", 1), ("3d_cascade_fullres", 0))


def module(name: str, *arguments: object) -> None:
    """`python -m nnunetv2.NAME`, in this process."""
    before, sys.argv = sys.argv, [name, *map(str, arguments)]
    try:
        runpy.run_module(f"nnunetv2.{name}", run_name="__main__")
    finally:
        sys.argv = before


def write_source(source: Path, raw: Path, number: int) -> list[str]:
    """Dataset004 out of the first cases of the source; returns their names."""
    target = raw / "Dataset004_Hippocampus"
    cases = [file.name.removesuffix(".nii.gz") for file in sorted((source / "labelsTr").glob("*.nii.gz"))[:number]]
    for folder, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (target / folder).mkdir(parents=True, exist_ok=True)
        for case in cases:
            shutil.copy(source / folder / f"{case}{ending}", target / folder)
    content = json.loads((source / "dataset.json").read_text())
    labels = {"background": 0, "Anterior": 1, "Posterior": 2}  # nnU-Net's scripts know them by these names
    (target / "dataset.json").write_text(json.dumps(content | {"labels": labels, "numTraining": len(cases)}))
    return cases


def folds(cases: list[str]) -> list[dict[str, list[str]]]:
    """A third labeled, a sixth for validation and the other way round; half of the cases are hidden in both folds."""
    third, half = len(cases) // 3, len(cases) // 2
    labeled, val, hidden = cases[:third], cases[third:half], cases[half:]
    return [
        {"train": labeled, "unlabeled": hidden, "val": val},
        {"train": val, "unlabeled": hidden, "val": labeled},
    ]


def shrink(file: Path) -> None:
    """8, 16 and 32 features, batches of two."""
    plans = json.loads(file.read_text())
    for configuration in plans["configurations"].values():
        if "architecture" in configuration:
            network = configuration["architecture"]["arch_kwargs"]
            network["features_per_stage"] = [8 * 2 ** min(stage, 2) for stage in range(network["n_stages"])]
            configuration["batch_size"] = 2
    file.write_text(json.dumps(plans))


def prepare(number: int, cases: list[str], args: argparse.Namespace) -> Path:
    """Data set, plans with lowres and cascade, preprocessed cases, folds and sections; the folder in the results."""
    from toy_modes import command

    name = f"Dataset{number}_IntegrationTest_Hippocampus{SUFFIX[number]}"
    module(f"dataset_conversion.datasets_for_integration_tests.{name}")
    command("nnUNetv2_plan_and_preprocess", "-d", number, "--no_pp", "-npfp", 1, "--verify_dataset_integrity")
    module("tests.integration_tests.add_lowres_and_cascade", "-d", number)
    folder = args.work / "nnUNet_preprocessed" / name
    shrink(folder / "nnUNetPlans.json")
    command("nnUNetv2_preprocess", "-d", number, "-c", "2d", "3d_fullres", "3d_lowres", "-np", 1)
    (folder / "splits_final.json").write_text(json.dumps(folds(cases)))
    length = ("num_epochs=1", f"num_iterations_per_epoch={args.iterations}", "num_val_iterations_per_epoch=2")
    length += ("min_labeled_dice=0",)  # all terms from the first iteration on
    for configuration in dict(RUNS):
        where = ("-d", number, "-c", configuration, "--name", configuration)
        command("nnUNetv2_semisam_plan", *where, "--set", *length, "seed=0", f"sam.tune={args.tune}")
    return args.work / "nnUNet_results" / name


def main() -> None:
    """Trains everything and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--datasets", type=int, nargs="+", default=list(SUFFIX), choices=SUFFIX)
    parser.add_argument("--configurations", nargs="+", default=list(dict(RUNS)), choices=dict(RUNS))
    parser.add_argument("--cases", type=int, default=18)
    parser.add_argument("--iterations", type=int, default=30)
    parser.add_argument("--tune", default='"auto"', metavar="STEPS", help="of the generalist (default: training's own)")
    args = parser.parse_args()
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(args.work / f"nnUNet_{name}")
        (args.work / f"nnUNet_{name}").mkdir(parents=True, exist_ok=True)
    os.environ |= {"nnUNet_compile": "f"}
    import pytest
    from toy_modes import command, in_threads

    in_threads(pytest.MonkeyPatch())
    cases = write_source(args.source, args.work / "nnUNet_raw", args.cases)
    lines = []
    for number in args.datasets:
        os.environ.pop("nnUNet_n_proc_DA", None)
        results = prepare(number, cases, args)
        os.environ |= {"nnUNet_n_proc_DA": "0"}  # planning fails with it
        for configuration, fold in (run for run in RUNS if run[0] in args.configurations):
            begin = time.perf_counter()
            command("nnUNetv2_train", number, configuration, fold, "-tr", TRAINER, "-device", "cpu")
            seconds = time.perf_counter() - begin
            validation = results / f"{TRAINER}__nnUNetPlans__{configuration}" / f"fold_{fold}" / "validation"
            dice = json.loads((validation / "summary.json").read_text())["foreground_mean"]["Dice"]
            lines.append(f"| {results.name} | {configuration} | {fold} | {dice:.3f} | {seconds:.0f} |")
            print(lines[-1], flush=True)
    print("\n| data set | configuration | fold | Dice | seconds |\n|---|---|---|---|---|", *lines, sep="\n")


if __name__ == "__main__":
    main()
