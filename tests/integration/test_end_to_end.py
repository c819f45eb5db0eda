"""Stock commands from raw images to predictions, in processes of their own, without a variable that names a trainer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from toy_trainer import case

NAME, CONFIGURATION, TRAINER = "Dataset997_Toy", "3d_fullres_semisam", "nnUNetTrainerSemiSAM"


def write_raw(raw):
    """Five labeled cases, three unlabeled ones in imagesUn, one to predict."""
    for folder in ("imagesTr", "labelsTr", "imagesUn", "imagesTs"):
        (raw / folder).mkdir(parents=True)
    for seed in range(9):
        image, seg = case(seed)
        folder = "imagesTr" if seed < 5 else "imagesUn" if seed < 8 else "imagesTs"
        sitk.WriteImage(sitk.GetImageFromArray(image[0]), str(raw / folder / f"case{seed}_0000.nii.gz"))
        if seed < 5:
            label = sitk.GetImageFromArray(seg[0].astype(np.uint8))
            sitk.WriteImage(label, str(raw / "labelsTr" / f"case{seed}.nii.gz"))
    content = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "ball": 1, "shell": 2}}
    (raw / "dataset.json").write_text(json.dumps({**content, "numTraining": 5, "file_ending": ".nii.gz"}))


@pytest.fixture
def run(tmp_path):
    """Runs a console script of this environment; returns its output."""
    environment = {k: v for k, v in os.environ.items() if k != "nnUNet_extTrainer"}
    environment |= {f"nnUNet_{name}": str(tmp_path / name) for name in ("raw", "preprocessed", "results")}
    environment |= {"nnUNet_def_n_proc": "1", "nnUNet_compile": "f"}

    def call(command, *args, **extra):
        script = Path(sys.executable).with_name(command)
        done = subprocess.run(
            [str(script), *args], env=environment | extra, capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    return call


def dice(prediction, truth, label):
    one, two = prediction == label, truth == label
    return 2 * (one & two).sum() / max(1, one.sum() + two.sum())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_plan_train_resume_predict(run, tmp_path):
    write_raw(tmp_path / "raw" / NAME)
    run("nnUNetv2_plan_and_preprocess", "-d", "997", "-c", "3d_fullres", "-np", "1", "-npfp", "1")
    plans = tmp_path / "preprocessed" / NAME / "nnUNetPlans.json"
    content = json.loads(plans.read_text())
    small = content["configurations"]["3d_fullres"]
    small |= {"patch_size": [16, 16, 16], "batch_size": 2}
    stages = small["architecture"]["arch_kwargs"]["n_stages"]
    small["architecture"]["arch_kwargs"]["features_per_stage"] = [8] * stages
    plans.write_text(json.dumps(content))
    length = ["num_epochs=2", "num_iterations_per_epoch=15", "num_val_iterations_per_epoch=2", "seed=1"]
    length += ["min_labeled_dice=0"]  # else nothing but labels counts in so few iterations
    run("nnUNetv2_semisam_plan", "-d", "997", "-c", "3d_fullres", "--set", *length, "sam.min_voxels=5", "sam.tune=3")
    assert "no problem" in run("nnUNetv2_semisam_check", "-d", "997", "-c", CONFIGURATION).lower()

    training = ("997", CONFIGURATION, "0", "-tr", TRAINER, "-device", "cpu")
    run("nnUNetv2_train", *training, "--npz", nnUNet_n_proc_DA="2")
    folder = tmp_path / "results" / NAME / f"{TRAINER}__nnUNetPlans__{CONFIGURATION}"
    fold = folder / "fold_0"
    assert json.loads((fold / "validation" / "summary.json").read_text())["foreground_mean"]["Dice"] >= 0
    assert list((fold / "validation").glob("*.npz"))
    log = "".join(file.read_text() for file in sorted(fold.glob("training_log_*.txt")))
    for name in ("loss/consistency", "loss/sam", "weight/sam", "sam/agreement", "used_voxels/sam", "sam/seconds"):
        assert f"semisam {name}" in log
    assert (fold / "progress_semisam.png").stat().st_size > 5000
    run("nnUNetv2_train", *training, "--c", nnUNet_n_proc_DA="0")
    run("nnUNetv2_train", *training, "--val", nnUNet_n_proc_DA="0")

    truth = case(8)[1][0]
    predicted = {}
    for checkpoint in ("checkpoint_final.pth", "checkpoint_final_teacher.pth"):
        out = tmp_path / checkpoint
        arguments = ["-d", "997", "-c", CONFIGURATION, "-f", "0", "-chk", checkpoint, "-device", "cpu"]
        folders = ["-i", str(tmp_path / "raw" / NAME / "imagesTs"), "-o", str(out)]
        run("nnUNetv2_predict", *folders, *arguments, "-tr", TRAINER, "-npp", "1", "-nps", "1")
        predicted[checkpoint] = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "case8.nii.gz")))
        assert predicted[checkpoint].shape == truth.shape
    assert dice(predicted["checkpoint_final.pth"] > 0, truth > 0, True) > 0.3
