"""Cascades: unlabeled cases get the previous stage's prediction, made without any label of theirs."""

import json
import os
import shutil
from pathlib import Path

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from test_train_step import toy  # noqa: F401 (a fixture)
from toy_cascade import CASCADE, LOWRES, build_stage, cascade_plans, write_lowres, write_predictions
from toy_trainer import LABELED, NAME, UNLABELED, case, locations, save_case, weights

from nnunet_semisam.cascade import stage_of
from nnunet_semisam.data import fingerprint
from nnunet_semisam.data.previous_stage import FOLDER
from nnunet_semisam.trainer import nnUNetTrainerMeanTeacher, nnUNetTrainerSemiSAM

CASES = Path("nnUNet_preprocessed") / NAME


@pytest.fixture
def lowres(toy, tmp_path):  # noqa: F811
    """A trained lowres stage with nnU-Net's predictions for the labeled cases; returns its model folder."""
    write_lowres(tmp_path / "nnUNet_preprocessed")
    return train_lowres()


def train_lowres(trainer=nnUNetTrainerSemiSAM, **settings):
    built = build_stage(trainer, LOWRES, cascade_plans(), **settings)
    built.run_training()
    folder = Path(built.output_folder_base)
    write_predictions(folder)
    return folder


def cascaded(content=None, **settings):
    return build_stage(nnUNetTrainerSemiSAM, CASCADE, content or cascade_plans(), **settings)


def trained(content=None, **settings):
    built = cascaded(content, **settings)
    built.run_training()
    return built


@pytest.fixture
def predicted(monkeypatch):
    """Images that the previous stage was asked about."""
    asked, original = [], nnUNetPredictor.predict_logits_from_preprocessed_data

    def watch(self, data):
        asked.append(data)
        return original(self, data)

    monkeypatch.setattr(nnUNetPredictor, "predict_logits_from_preprocessed_data", watch)
    return asked


def test_unlabeled_cases_are_predicted_on_the_grid_of_the_cascade(lowres, predicted):
    trainer = trained()
    assert trainer.iteration == 3 and len(predicted) == len(UNLABELED)
    for name in UNLABELED:
        prediction = blosc2.open(str(lowres / FOLDER / "nnUNetPlans_toy" / "fold_0" / f"{name}.b2nd"))[:]
        assert prediction.shape == (20, 22, 18) and set(np.unique(prediction)) <= {0, 1, 2}


def test_the_prediction_is_nnunets_own(lowres, predicted):
    """The fold's validation case goes through nnU-Net's validation and, as if it were unlabeled, through ours."""
    from nnunetv2.inference.export_prediction import resample_and_save

    trainer = cascaded()
    trainer.on_train_start()
    stage, name = stage_of(trainer), UNLABELED[0]
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(lowres), (0,), "checkpoint_final.pth")
    image = torch.from_numpy(np.ascontiguousarray(case(2)[0][:, ::2, ::2, ::2]))
    logits = predictor.predict_logits_from_preprocessed_data(image)
    properties = {"spacing": [1.0] * 3, "shape_after_cropping_and_before_resampling": [20, 22, 18]}
    out = lowres / "own"
    resample_and_save(
        logits, [20, 22, 18], str(out), stage.plans_manager, stage.manager, properties, stage.dataset_json, 1
    )
    made = blosc2.open(str(stage.folder / f"{name}.b2nd"))[:]
    assert np.array_equal(made, blosc2.open(f"{out}.b2nd")[:])


def test_network_and_teacher_see_image_and_labels_and_sam_the_image_only(lowres, toy, monkeypatch):  # noqa: F811
    seen, embed = [], toy.embed
    monkeypatch.setattr(toy, "embed", lambda image: seen.append(image.shape[1]) or embed(image))
    trainer = cascaded()
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    assert next(trainer.network.parameters()).shape[1] == 3 and trainer.previous_channels == 2
    trainer.train_step(next(trainer.dataloader_train))
    assert len(seen) == 2 and set(seen) == {1}  # a first look, and the step
    assert next(trainer.teacher.network.parameters()).shape[1] == 3


def test_a_second_start_predicts_only_what_is_outdated(lowres, predicted):
    first = trained()
    assert len(predicted) == 3
    second = trained()
    assert len(predicted) == 3
    assert torch.equal(weights(first), weights(second))  # whether predictions are made or found
    stage = stage_of(first)
    (stage.folder / f"{UNLABELED[1]}.b2nd").unlink()
    trained()
    assert len(predicted) == 4
    train = build_stage(nnUNetTrainerSemiSAM, LOWRES, cascade_plans(ema_decay=0.5))
    train.run_training()
    trained()
    assert len(predicted) == 7


def test_copied_images_are_read_once_and_not_predicted_again(lowres, predicted, tmp_path, monkeypatch):
    trained()
    for name in UNLABELED:
        os.utime(tmp_path / "nnUNet_preprocessed" / NAME / "nnUNetPlans_low" / f"{name}.b2nd", ns=(1, 1))
    reads, original = [], fingerprint.sha256_of
    monkeypatch.setattr(fingerprint, "sha256_of", lambda path: reads.append(path) or original(path))
    for _ in range(2):
        cascaded().on_train_start()
    assert len(predicted) == len(UNLABELED) == len(reads)


def poison(preprocessed):
    """Noise for every label and class location of the hidden cases, in both resolutions."""
    for folder, step in (("nnUNetPlans_toy", 1), ("nnUNetPlans_low", 2)):
        for seed, name in enumerate((*LABELED, *UNLABELED)):
            if name in UNLABELED:
                image = np.ascontiguousarray(case(seed)[0][:, ::step, ::step, ::step])
                noise = np.random.RandomState(99).randint(0, 3, image.shape).astype(np.int8)
                times = os.stat(preprocessed / folder / f"{name}.b2nd")
                for ending in (".b2nd", "_seg.b2nd"):
                    (preprocessed / folder / f"{name}{ending}").unlink()
                save_case(image, noise, {"class_locations": locations(noise)}, str(preprocessed / folder / name))
                os.utime(preprocessed / folder / f"{name}.b2nd", ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("regions", [False, True], ids=["labels", "regions"])
def test_poisoned_labels_of_hidden_cases_change_neither_stage(toy, tmp_path, regions):  # noqa: F811
    write_lowres(tmp_path / "nnUNet_preprocessed")

    def both_stages():
        shutil.rmtree(tmp_path / "nnUNet_results", ignore_errors=True)
        folder = train_lowres(regions=regions)
        lowres = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=False)["network_weights"]
        return torch.cat([t.flatten() for t in lowres.values()]), weights(trained(regions=regions))

    before = both_stages()
    poison(tmp_path / CASES)
    after = both_stages()
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])


def test_another_prediction_of_the_previous_stage_changes_the_training(lowres):
    """The comparison above can fail."""
    first = trained()
    for name in UNLABELED:
        file = stage_of(first).folder / f"{name}.b2nd"
        blosc2.open(str(file), mode="a")[:] = 1
    assert not torch.equal(weights(first), weights(trained()))


def test_the_stage_of_nnunets_own_trainer_is_taken_where_ours_has_none(toy, tmp_path):  # noqa: F811
    write_lowres(tmp_path / "nnUNet_preprocessed")
    folder = train_lowres(nnUNetTrainer)
    trainer = trained()
    assert Path(trainer.folder_with_segs_from_previous_stage) == folder / "predicted_next_stage" / CASCADE
    assert len(list((folder / FOLDER).rglob("*.b2nd"))) == len(UNLABELED)


def test_a_cascade_with_a_section_of_its_own_uses_the_predictions_of_the_one_it_inherits_from(lowres):
    content = cascade_plans()
    content["configurations"]["own"] = {"inherits_from": CASCADE}
    trainer = build_stage(nnUNetTrainerSemiSAM, "own", content)
    trainer.run_training()
    assert Path(trainer.folder_with_segs_from_previous_stage).name == CASCADE


def test_a_missing_stage_or_prediction_is_named_with_its_cure(toy, tmp_path):  # noqa: F811
    write_lowres(tmp_path / "nnUNet_preprocessed")
    with pytest.raises(ValueError, match=f"nnUNetv2_train {NAME} low 0 -tr nnUNetTrainerSemiSAM"):
        trained()
    folder = train_lowres()
    (folder / "predicted_next_stage" / CASCADE / "l1.b2nd").unlink()
    with pytest.raises(ValueError, match="'l1' is without prediction of low"):
        trained()


def hide(splits, *names):
    """The fold with these cases unlabeled, the others of the toy's labeled."""
    others = [name for name in UNLABELED if name not in names]
    splits.write_text(json.dumps([{"train": [*LABELED, *others], "val": ["v0"], "unlabeled": names}]))


def test_a_model_that_has_seen_a_hidden_label_is_refused(toy, tmp_path):  # noqa: F811
    """Whatever lies beside its checkpoint: a new training writes its list of unlabeled cases before its weights."""
    write_lowres(tmp_path / "nnUNet_preprocessed")
    splits = tmp_path / CASES / "splits_final.json"
    hide(splits, "u0", "u2")
    folder = train_lowres()
    hide(splits, *UNLABELED)
    build_stage(nnUNetTrainerSemiSAM, LOWRES, cascade_plans()).on_train_start()  # begun anew, killed
    assert "u1" in (folder / "fold_0" / "semisam_unlabeled.json").read_text()
    with pytest.raises(ValueError, match="'u1' is hidden .* but not when"):
        trained()


def without_record(checkpoint):
    """As older versions wrote it."""
    content = torch.load(checkpoint, weights_only=False)
    del content["semisam"]["labels_seen"]
    torch.save(content, checkpoint)


def test_a_model_of_which_nobody_knows_what_it_has_seen_is_refused(toy, tmp_path):  # noqa: F811
    write_lowres(tmp_path / "nnUNet_preprocessed")
    splits = tmp_path / CASES / "splits_final.json"
    folder = train_lowres()
    record, checkpoint = (folder / "fold_0" / name for name in ("semisam_unlabeled.json", "checkpoint_final.pth"))
    without_record(checkpoint)
    record.write_text('{"u0": "x", "u2": "x"}')
    with pytest.raises(ValueError, match="'u1' is hidden .* but not when"):
        trained()
    record.write_text("{}")  # it saw every label
    with pytest.raises(ValueError, match="'u0', 'u1', 'u2' are hidden .* but not when"):
        trained()
    record.unlink()
    later = checkpoint.stat().st_mtime + 10
    os.utime(splits, (later, later))
    with pytest.raises(ValueError, match="is newer than"):
        trained()
    os.utime(checkpoint, (later + 1, later + 1))
    assert trained().iteration == 3


def test_labels_hidden_here_but_seen_by_another_folds_stage_are_told(lowres, tmp_path, monkeypatch):
    """Predictions of labeled cases come from other folds, in nnU-Net's way; what these saw is worth a warning."""
    splits, lines = tmp_path / CASES / "splits_final.json", []
    monkeypatch.setattr(nnUNetTrainerSemiSAM, "print_to_log_file", lambda self, *words, **_: lines.append(str(words)))
    folds = json.loads(splits.read_text())
    for seen, told in ((["v0"], 0), (["v0", "u1"], 1)):
        splits.write_text(json.dumps([*folds, {"train": seen, "val": ["l0", "l1"]}]))
        cascaded().on_train_start()
        assert sum("come from fold [1]" in line for line in lines) == told


def write_plans(folder):
    (folder / "nnUNetPlans.json").write_text(json.dumps(cascade_plans()))
    labels = {"background": 0, "ball": 1, "shell": 2}
    content = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": 6, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(content))


def test_check_warns_where_the_previous_stage_is_not_trained(toy, tmp_path):  # noqa: F811
    from nnunet_semisam.cli.check import check_setup

    def told(name, fold, trainer=None):
        report = check_setup(NAME, configurations=[name], fold=fold, trainer=trainer)
        return [text for text in report.warnings if "needs low" in text]

    write_lowres(tmp_path / "nnUNet_preprocessed")
    write_plans(tmp_path / CASES)
    (warning,) = told(CASCADE, 0)
    assert warning.startswith("fold 0: ") and f"nnUNetv2_train {NAME} low 0 -tr nnUNetTrainerSemiSAM" in warning
    assert told(CASCADE, None) == [warning] and told(LOWRES, 0) == []
    (other,) = told(CASCADE, 1)
    assert f"nnUNetv2_train {NAME} low 1" in other
    train_lowres(nnUNetTrainerMeanTeacher)
    assert told(CASCADE, 0) == []
    assert told(CASCADE, 0, "nnUNetTrainerMeanTeacher") == []
    assert "-tr nnUNetTrainerSemiSAM_5epochs" in told(CASCADE, 0, "nnUNetTrainerSemiSAM_5epochs")[0]


def write_image(tmp_path, content):
    raw = tmp_path / "nnUNet_raw" / NAME / "imagesUn"
    raw.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(content), str(raw / f"x{len(list(raw.iterdir()))}_0000.nii.gz"))


def test_bad_images_are_skipped_in_both_stages(lowres, predicted, tmp_path, capsys, monkeypatch):
    from nnunet_semisam.cli.preprocess import main

    monkeypatch.setattr("nnunet_semisam.data.preprocess.default_num_processes", 1)
    for content in (np.zeros((20, 22, 18), np.float32), case(7)[0][0]):
        write_image(tmp_path, content)
    with pytest.raises(ValueError, match="x0_0000.nii.gz: all its values"):
        trained()
    trainer = trained(cascade_plans(skip_bad=True))
    assert trainer.iteration == 3 and len(predicted) == len(UNLABELED) + 1
    assert (stage_of(trainer).folder / "x1.b2nd").is_file() and not (stage_of(trainer).folder / "x0.b2nd").exists()
    assert Path(trainer.log_file).read_text().count("x0_0000.nii.gz") == 1  # told once, not once for each stage
    write_plans(tmp_path / CASES)
    arguments = ["-d", "998", "-c", CASCADE, "-f", "0", "-device", "cpu", "-np", "1"]
    assert main(arguments) == 1
    assert main([*arguments, "--skip-bad"]) == 0
    assert "4 prediction(s)" in capsys.readouterr().out


def test_the_command_predicts_for_the_folds_asked_for(lowres, predicted, tmp_path, capsys):
    from nnunet_semisam.cli.preprocess import main

    write_plans(tmp_path / CASES)
    write_image(tmp_path, case(7)[0][0])
    arguments = ["-d", "998", "-c", CASCADE, "-f", "0", "-device", "cpu", "-np", "1"]
    assert main(arguments) == 0
    assert f"{lowres / FOLDER / 'nnUNetPlans_toy' / 'fold_0'}: 4 prediction(s)" in capsys.readouterr().out
    assert len(predicted) == 4
    assert main(arguments) == 0 and len(predicted) == 4
    assert main(["-d", "998", "-c", LOWRES, "-f", "0", "-device", "cpu"]) == 1
    assert "no configuration of -c has a previous stage" in capsys.readouterr().err
