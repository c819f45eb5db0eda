"""nnU-Net's modes: each is planned, preprocessed, trained for a few iterations, validated and predicted.

The table is in `docs/modes.md`. The commands are nnU-Net's own, called in this process, or run as processes with
NNUNET_SEMISAM_LONG=1 (`toy_modes`).
"""

import json
import os

import numpy as np
import pytest
import torch
from nnunetv2.training.logging.nnunet_logger import LocalLogger
from toy_modes import (
    HIDDEN,
    LABELED,
    NAME,
    NUMBER,
    TRAINER,
    UNLABELED,
    Mode,
    add_section,
    command,
    in_threads,
    log,
    predict,
    prepare,
    preprocess,
    read,
    results,
    train,
)

from nnunet_semisam.curves import Curves

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    # nnU-Net does not close a text file of the best configuration
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
PRIMUS = """
from nnunetv2.training.nnUNetTrainer.primus.primus_trainers import nnUNet_Primus_S_Trainer
from nnunet_semisam import SemiSAM

class nnUNetTrainerSemiSAMPrimus(SemiSAM, nnUNet_Primus_S_Trainer):
    max_gradient_norm = 1.0
"""
REGIONS = {"background": 0, "whole": [1, 2], "ball": 1}

MODES = {
    "2d": Mode("2d"),
    "regions": Mode(labels=REGIONS, regions=[2, 1]),
    "ignore": Mode(labels={"background": 0, "ball": 1, "shell": 2, "ignore": 3}),
    "regions and ignore": Mode(labels={**REGIONS, "ignore": 3}, regions=[2, 1]),
    "CT and MRI within a mask": Mode(channels=("CT", "MRI"), shape=(24, 30, 26), border=5),
    "PNG, RGB": Mode("2d", channels=("R", "G", "B"), shape=(1, 48, 40), png=True),
    "anisotropic": Mode(shape=(10, 40, 40), spacing=(5.0, 1.0, 1.0)),
    "patch larger than the case": Mode(patch=[32, 32, 32], shape=(18, 20, 17)),
    "residual encoder": Mode(planner="nnUNetPlannerResEncM", plans="nnUNetResEncUNetMPlans"),
    "Primus": Mode(patch=[16, 16, 16], trainer="nnUNetTrainerSemiSAMPrimus"),
    "fold all": Mode(fold="all"),
}  # fmt: skip


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty place for raw data, preprocessed data and results; loaders and pools stay in this process."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / f"nnUNet_{name}"))
        (tmp_path / f"nnUNet_{name}").mkdir()
    monkeypatch.setenv("nnUNet_compile", "f")
    monkeypatch.setattr("nnunet_semisam.data.preprocess.default_num_processes", 1)
    in_threads(monkeypatch)
    monkeypatch.setattr(torch, "set_num_interop_threads", lambda number: None)  # may be called once per process
    yield tmp_path
    torch.set_num_threads(1)


@pytest.fixture
def in_process(monkeypatch):
    """Called after planning, which fails with this setting: batches are loaded in this process, nothing is drawn."""

    def switch(pictures=False):
        monkeypatch.setenv("nnUNet_n_proc_DA", "0")
        if not pictures:
            monkeypatch.setattr(LocalLogger, "plot_progress_png", lambda self, folder: None)
            monkeypatch.setattr(Curves, "plot", lambda self, file: None)

    return switch


def assert_learning(fold):
    """Every term was computed, and is a number."""
    written = log(fold)
    for curve in ("loss/consistency", "loss/sam", "loss/supervised", "used_voxels/sam", "sam/seconds"):
        assert f"semisam {curve}: " in written and f"semisam {curve}: nan" not in written


def values(mode):
    """Labels that a prediction may have."""
    given = (np.atleast_1d(value).tolist() for name, value in mode.labels.items() if name != "ignore")
    return {label for labels in given for label in labels}


@pytest.mark.parametrize("name", MODES)
def test_mode(name, root, in_process, monkeypatch):
    mode = MODES[name]
    folder = prepare(mode, root)
    preprocess(mode, mode.configuration)
    add_section(mode, mode.configuration)
    own_trainer(root, monkeypatch)
    in_process()
    fold = train(mode)
    assert json.loads((fold / "validation" / "summary.json").read_text())["foreground_mean"]["Dice"] >= 0
    wanted = {*UNLABELED, *(() if mode.fold == "all" else HIDDEN)}
    assert set(json.loads((fold / "semisam_unlabeled.json").read_text())) == wanted
    assert_learning(fold)
    for checkpoint in ("checkpoint_final.pth", "checkpoint_final_teacher.pth"):
        prediction = predict(mode, root, root / checkpoint, None, "-chk", checkpoint)
        assert prediction.size == np.prod(mode.shape) and set(np.unique(prediction)) <= values(mode)
    CHECKS.get(name, lambda *_: None)(mode, folder, fold)


def own_trainer(root, monkeypatch):
    """A trainer of the user's own, beside those of the package: a transformer of nnU-Net with SemiSAM."""
    (root / "trainers").mkdir()
    (root / "trainers" / "nnUNetTrainerSemiSAMPrimus.py").write_text(PRIMUS)
    found = os.environ["nnUNet_extTrainer"].split(os.pathsep)  # noqa: SIM112 (nnU-Net's name)
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join([*found, str(root / "trainers")]))


def plan_of(mode, folder):
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    return PlansManager(str(folder / f"{mode.plans}.json")).get_configuration(mode.configuration)


def masked(mode, folder, fold):
    """CT is normalised with the plan's statistics, MRI within the mask; hidden cases without their labels."""
    plan = plan_of(mode, folder)
    assert plan.normalization_schemes == ["CTNormalization", "ZScoreNormalization"]
    assert list(plan.use_mask_for_norm) == [False, True]
    assert json.loads((fold / "semisam_unlabeled.json").read_text())["d"].endswith("_unlabeled")


def flat(mode, folder, fold):
    """nnU-Net augments planes, and pools the coarse axis less."""
    patch, strides = plan_of(mode, folder).patch_size, np.array(plan_of(mode, folder).pool_op_kernel_sizes)
    assert max(patch) / patch[0] > 3 and strides.prod(0)[0] < strides.prod(0)[1]
    assert "do_dummy_2d_data_aug: True" in log(fold)


def residual(mode, folder, fold):
    assert plan_of(mode, folder).network_arch_class_name.endswith("ResidualEncoderUNet")


def rgb(mode, folder, fold):
    weights = torch.load(fold / "checkpoint_final.pth", weights_only=False)["network_weights"]
    assert next(iter(weights.values())).shape[1] == 3


CHECKS = {
    "CT and MRI within a mask": masked,
    "anisotropic": flat,
    "residual encoder": residual,
    "PNG, RGB": rgb,
}  # fmt: skip


def test_lowres_and_cascade(root, in_process):
    """All labeled cases get nnU-Net's own predictions of the lowres stage, all unlabeled ones get ours."""
    mode = Mode("3d_cascade_fullres")
    plain = Mode()
    folds = [
        {"train": ["a", "b"], "unlabeled": ["d"], "val": ["c"]},
        {"train": ["c"], "unlabeled": ["d"], "val": ["a", "b"]},
    ]
    folder = prepare(plain, root, folds=folds)
    file = folder / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    lowres = {"data_identifier": "nnUNetPlans_3d_lowres", "inherits_from": "3d_fullres", "patch_size": [12, 12, 12]}
    lowres |= {"spacing": [1.6] * 3, "next_stage": "3d_cascade_fullres"}
    architecture = json.loads(json.dumps(plans["configurations"]["3d_fullres"]["architecture"]))
    architecture["arch_kwargs"] |= {
        "n_stages": 3, "features_per_stage": [4] * 3, "strides": [[1] * 3, [2] * 3, [2] * 3],
        "kernel_sizes": [[3] * 3] * 3, "n_conv_per_stage": [1] * 3, "n_conv_per_stage_decoder": [1] * 2,
    }  # fmt: skip
    plans["configurations"]["3d_lowres"] = {**lowres, "architecture": architecture}
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    file.write_text(json.dumps(plans))
    preprocess(mode, "3d_fullres", "3d_lowres")
    for configuration in ("3d_lowres", "3d_cascade_fullres"):
        add_section(mode, configuration)
    in_process()
    for number in ("0", "1"):
        assert_learning(train(mode, "3d_lowres", fold=number))
    model = results(mode, "3d_lowres")
    nnunets = model / "predicted_next_stage" / "3d_cascade_fullres"
    assert {file.stem for file in nnunets.iterdir()} == set(LABELED)

    arguments = ("-d", NUMBER, "-c", "3d_cascade_fullres", "-f", "0", "-device", "cpu", "-np", "1")
    command("nnUNetv2_semisam_preprocess", *arguments)
    ours = model / "semisam_predicted_next_stage" / "nnUNetPlans_3d_fullres" / "fold_0"
    made = {file.stem: file.stat().st_mtime_ns for file in ours.glob("*.b2nd")}
    assert set(made) == {*HIDDEN, *UNLABELED}
    fold = train(mode)
    assert {file.stem: file.stat().st_mtime_ns for file in ours.glob("*.b2nd")} == made
    assert json.loads((fold / "validation" / "summary.json").read_text())["foreground_mean"]["Dice"] >= 0
    assert_learning(fold)

    before = predict(mode, root, root / "lowres", "3d_lowres")
    assert before.shape == mode.shape
    prediction = predict(mode, root, root / "cascade", None, "-prev_stage_predictions", root / "lowres")
    assert prediction.shape == mode.shape and set(np.unique(prediction)) <= {0, 1, 2}


def test_the_commands_around_a_training(root, in_process):
    """--npz, --c, --val, pretrained weights, no checkpoints; best configuration, ensemble, export, install, Python."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    mode = Mode()
    folds = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "val": ["a", "b"]}]
    prepare(mode, root, folds=folds)
    preprocess(mode, "3d_fullres", "2d")
    for configuration in ("3d_fullres", "2d"):
        add_section(mode, configuration)
    in_process(pictures=True)
    fold = train(mode, "3d_fullres", "--npz")
    assert list((fold / "validation").glob("*.npz"))
    train(mode, "2d", "--npz")

    summary = fold / "validation" / "summary.json"
    for flag in ("--val", "--c"):
        summary.unlink()
        train(mode, "3d_fullres", flag)
        assert summary.is_file()

    other = train(
        mode, "3d_fullres", "-pretrained_weights", fold / "checkpoint_final.pth", "--disable_checkpointing", fold="1"
    )
    assert not list(other.glob("*.pth")) and (other / "validation" / "summary.json").is_file()

    best = ("-d", NUMBER, "-c", "2d", "3d_fullres", "-tr", TRAINER, "-f", "0")
    command("nnUNetv2_find_best_configuration", NUMBER, *best[2:], "-np", 1)
    instructions = (root / "nnUNet_results" / NAME / "inference_instructions.txt").read_text()
    assert TRAINER in instructions and list((root / "nnUNet_results" / NAME / "ensembles").iterdir())

    prediction = predict(mode, root, root / "full", None, "--save_probabilities")
    predict(mode, root, root / "flat", "2d", "--save_probabilities")
    command("nnUNetv2_ensemble", "-i", root / "full", root / "flat", "-o", root / "both", "-np", 1)
    assert read(root / "both" / "n.nii.gz").shape == mode.shape

    exported = ("-d", NUMBER, "-c", "3d_fullres", "-tr", TRAINER, "-f", "0", "-p", "nnUNetPlans")
    command("nnUNetv2_export_model_to_zip", *exported, "-o", root / "model.zip")
    (root / "nnUNet_results" / NAME).rename(root / "moved")
    command("nnUNetv2_install_pretrained_model_from_zip", root / "model.zip")
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(results(mode, "3d_fullres")), (0,), "checkpoint_final.pth")
    reader = predictor.plans_manager.image_reader_writer_class()
    image, properties = reader.read_images([str(root / "nnUNet_raw" / NAME / "imagesTs" / "n_0000.nii.gz")])
    assert np.array_equal(predictor.predict_single_npy_array(image, properties), prediction)
