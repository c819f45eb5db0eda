"""The commands nnUNetv2_semisam_preprocess and nnUNetv2_semisam_check."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from toy_dataset import NAME, SHAPE, ToyDataset, toy  # noqa: F401 (a fixture)

from nnunet_semisam.cli import check, preprocess


@pytest.fixture
def ready(toy):  # noqa: F811
    """A data set on which everything is right."""
    for seed, case in enumerate("abcd"):
        toy.preprocessed_case(case, seed=seed)
    toy.splits({"train": ["a"], "unlabeled": ["b"], "val": ["c"]}, {"train": ["a", "b"], "val": ["c"]})
    toy.image("x")
    return toy


@pytest.mark.parametrize("command", ["preprocess", "check", "sam"])
def test_help_is_quick_and_imports_nothing_heavy(command):
    code = (
        f"import sys; from nnunet_semisam.cli.{command} import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as exit: assert exit.code == 0\n"
        "assert not {'torch', 'nnunetv2', 'numpy', 'blosc2'} & set(sys.modules)"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    took = time.perf_counter() - start
    assert done.returncode == 0, done.stderr
    assert f"nnUNetv2_semisam_{command}" in done.stdout and ("-d ID" in done.stdout or command == "sam")
    assert took < 3  # half a second on an idle machine


def test_preprocess_by_number_and_by_name(ready, capsys):
    assert preprocess.main(["-d", "901", "-c", "3d_fullres", "2d", "-np", "1"]) == 0
    told = capsys.readouterr().out
    assert "nnUNetPlans_3d_fullres_unlabeled: 1" in told and "nnUNetPlans_2d_unlabeled: 1" in told
    assert (ready.preprocessed / "nnUNetPlans_2d_unlabeled" / "x.b2nd").is_file()
    assert preprocess.main(["-d", NAME, "-np", "1"]) == 0
    assert "nnUNetPlans_2d_unlabeled: 1" in capsys.readouterr().out  # the default takes what is planned


def test_preprocess_tells_what_is_wrong_and_returns_1(ready, capsys):
    ready.image("bad").write_bytes(b"")
    assert preprocess.main(["-d", "901", "-c", "3d_fullres", "-np", "1"]) == 1
    told = capsys.readouterr().err
    assert "bad_0000" in told and "1 of 2 unlabeled cases could not be" in told
    assert preprocess.main(["-d", "901", "-c", "3d_fullres", "-np", "1"]) == 1
    assert "1 of 2 unlabeled cases could not be" in capsys.readouterr().err  # the good one is done
    assert preprocess.main(["-d", "901", "-p", "other"]) == 1
    assert "nnUNetv2_plan_and_preprocess" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        preprocess.main(["-d", "901", "-np", "0"])


def test_check_of_a_good_set_up(ready, capsys):
    assert check.main(["-d", "901"]) == 0
    told = capsys.readouterr().out
    assert "no problem found" in told and "2d: not preprocessed" in told
    assert "3d_fullres, fold 0: 1 labeled, 1 hidden + 1 from imagesUn unlabeled, 1 validation" in told
    assert "3d_fullres, fold 1: 2 labeled, 0 hidden" in told
    assert not (ready.preprocessed / "nnUNetPlans_3d_fullres_unlabeled").exists()  # nothing is changed


def test_check_of_one_fold_and_of_all(ready, capsys):
    assert check.main(["-d", "901", "-c", "3d_fullres", "-f", "1"]) == 0
    told = capsys.readouterr().out
    assert "fold 1" in told and "fold 0" not in told
    assert check.main(["-d", "901", "-c", "3d_fullres", "-f", "all"]) == 1
    assert "fold all is not in this file" in capsys.readouterr().out  # fold 0 hides a label
    ready.splits({"train": ["a"], "val": ["c"]})
    assert check.main(["-d", "901", "-c", "3d_fullres", "-f", "all"]) == 0
    assert "fold all: all labeled, 0 hidden + 1" in capsys.readouterr().out


def test_check_lists_all_problems_and_returns_1(ready, capsys):
    shutil.copy(ready.image("a"), ready.raw / "imagesTr")
    ready.image("bad").write_bytes(b"")
    (ready.raw / "imagesUn" / "label.nii.gz").touch()
    ready.splits({"train": ["a", "b"], "unlabeled": ["b"], "val": ["zebra"]})
    ready.edit_plans("3d_semisam", inherits_from="3d_fullres", semisam={"ema_dekay": 0.9})
    ready.edit_plans("3d_sam", inherits_from="3d_fullres", semisam={"sam": {"checkpoint": "no_such_file.pth"}})
    assert check.main(["-d", "901"]) == 1
    told = capsys.readouterr().out
    for word in (
        "'a' is also the name",
        "bad_0000.nii.gz: SimpleITKIO cannot open it",
        "label.nii.gz has no channel number",
        '\'b\' is in "train" and in "unlabeled"',
        "'zebra' is in \"val\"",
        "configuration 3d_semisam: semisam: unknown key 'ema_dekay'",
        "configuration 3d_sam: semisam: sam.checkpoint is 'no_such_file.pth'",
    ):
        assert told.count(word) == 1, word
    assert "7 problem(s)" in told


def test_check_warns_of_validation_on_training_cases(ready, capsys):
    ready.splits({"train": ["a"], "unlabeled": ["b"], "val": ["a", "c"]})
    assert check.main(["-d", "901"]) == 0
    told = capsys.readouterr().out
    assert told.count("WARNING") == 1 and '\'a\' is in "train" and in "val"' in told


def test_check_respects_allow_unlabeled_val(ready, capsys):
    ready.splits({"train": ["a"], "unlabeled": ["c"], "val": ["c"]})
    assert check.main(["-d", "901"]) == 1
    assert "allow_unlabeled_val" in capsys.readouterr().out
    ready.edit_plans(semisam={"allow_unlabeled_val": True})
    assert check.main(["-d", "901", "-c", "3d_fullres"]) == 0


@pytest.mark.parametrize(
    ("sam", "told"),
    [
        ({"checkpoint": "DAMAGED"}, "does not hold the weights of the embedded generalist"),
        ({"backend": "segment_anything"}, "ships no weights"),
        ({"backend_args": {"round": 2}}, "unknown key 'round' in sam.backend_args"),
        ({"backend_args": {"rounds": 0}}, "sam.backend_args.rounds is 0"),
        ({"trust": {"heart": 0}}, "unknown class 'heart' in sam.trust; known are thing"),
    ],
)
def test_check_builds_the_backend(ready, capsys, tmp_path, sam, told):
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(b"cos\xff\n")
    sam = {key: str(damaged) if value == "DAMAGED" else value for key, value in sam.items()}
    if sam.get("backend") == "segment_anything":
        pytest.importorskip("segment_anything")
    ready.edit_plans("3d_sam", inherits_from="3d_fullres", semisam={"sam": sam})
    assert check.main(["-d", "901"]) == 1
    report = capsys.readouterr().out
    assert "1 problem(s)" in report and "configuration 3d_sam: " in report and told in report
    weight = {"terms": {"sam": {"weight": 0}}}  # nobody asks SAM, so its weights need not be there
    if "backend_args" not in sam:
        ready.edit_plans("3d_sam", inherits_from="3d_fullres", semisam={"sam": sam, **weight})
        assert check.main(["-d", "901"]) == 0


def test_check_knows_terms_that_never_count(ready, capsys):
    terms = {"terms": {"sam": {"delay": 20}}, "num_iterations_per_epoch": 10}
    ready.edit_plans("3d_late", inherits_from="3d_fullres", semisam={**terms, "num_epochs": 3})
    assert check.main(["-d", "901"]) == 0
    ready.edit_plans("3d_late", inherits_from="3d_fullres", semisam={**terms, "num_epochs": 2})
    capsys.readouterr()
    assert check.main(["-d", "901"]) == 1
    assert "3d_late: semisam: terms.sam.delay is 20, but the training has 20 iterations" in capsys.readouterr().out


@pytest.mark.parametrize(
    "trainer, told",
    [
        ("nnUNetTrainerSemiSAM", "unknown class 'heart' in sam.trust"),
        ("nnUNetTrainerMeanTeacher", None),
        ("nnUNetTrainerSemiSAM_5epochs", "terms.consistency.delay is 2000, but the training has 1250 iterations"),
        ("nnUNetTrainer", "none of this package"),
        ("nnUNetTrainerSemSAM", "nnU-Net finds no such trainer; did you mean nnUNetTrainerSemiSAM"),
        ("nnUNetTrainerSemiSAM_5epoch", "did you mean nnUNetTrainerSemiSAM_5epochs"),
        ("join", "-tr join: "),
    ],
)
def test_check_knows_what_the_trainer_makes_of_a_section(ready, capsys, trainer, told):
    section = {"sam": {"trust": {"heart": 0}}, "terms": {"consistency": {"delay": 2000}}}
    ready.edit_plans("3d_own", inherits_from="3d_fullres", semisam=section)
    assert check.main(["-d", "901", "-c", "3d_own", "-tr", trainer]) == (1 if told else 0)
    output = capsys.readouterr()
    assert (told or "no problem") in output.out + output.err and "Searching" not in output.out


@pytest.mark.parametrize("key", ["semi_sam", "SemiSAM"])
def test_check_of_a_section_with_a_misspelt_name(ready, capsys, key):
    ready.edit_plans("3d_odd", inherits_from="3d_fullres", **{key: {"num_epochs": 3}})
    assert check.main(["-d", "901"]) == 1
    assert f"configuration 3d_odd: semisam: a section is named {key!r}, which is not read" in capsys.readouterr().out


def test_check_knows_that_a_preset_skips_bad_images(ready, capsys, monkeypatch):
    from nnunet_semisam.trainer import nnUNetTrainerSemiSAM

    ready.image("bad").write_bytes(b"")
    preset = nnUNetTrainerSemiSAM.preset.with_section({"skip_bad": True})
    own = type("nnUNetTrainerOwn", (nnUNetTrainerSemiSAM,), {"preset": preset})
    monkeypatch.setattr("nnunetv2.utilities.find_objects.recursive_find_trainer_class_by_name", lambda name: own)
    assert check.main(["-d", "901", "-c", "3d_fullres"]) == 1
    assert check.main(["-d", "901", "-c", "3d_fullres", "-tr", "nnUNetTrainerOwn"]) == 0


def test_check_looks_at_what_a_class_of_the_users_presets(ready, capsys, monkeypatch):
    from nnunet_semisam.trainer import nnUNetTrainerSemiSAM

    assert check.main(["-d", "901", "-c", "3d_fullres"]) == 0
    preset = nnUNetTrainerSemiSAM.preset.with_section({"method": "no_such_method"})
    own = type("nnUNetTrainerOwn", (nnUNetTrainerSemiSAM,), {"preset": preset})
    monkeypatch.setattr("nnunetv2.utilities.find_objects.recursive_find_trainer_class_by_name", lambda name: own)
    assert check.main(["-d", "901", "-c", "3d_fullres", "-tr", "nnUNetTrainerOwn"]) == 1
    assert "no_such_method" in capsys.readouterr().out


def test_check_warns_of_alignment_beside_an_ignore_label(ready, capsys, tmp_path):
    ready.edit_plans("3d_fullres", semisam={"distribution_alignment": 1.0})
    assert check.main(["-d", "901"]) == 0
    assert "no effect" not in capsys.readouterr().out
    for file in tmp_path.rglob("dataset.json"):
        content = json.loads(file.read_text())
        content["labels"]["ignore"] = len(content["labels"])
        file.write_text(json.dumps(content))
    check.main(["-d", "901"])
    assert "3d_fullres: distribution_alignment has no effect" in capsys.readouterr().out


@pytest.mark.parametrize("section", [["x"], "x", {"allow_unlabeled_val": "yes"}])
def test_check_of_a_section_that_is_none(ready, capsys, section):
    ready.edit_plans("3d_odd", inherits_from="3d_fullres", semisam=section)
    assert check.main(["-d", "901"]) == 1
    assert "configuration 3d_odd: semisam: " in capsys.readouterr().out


def test_check_finds_hidden_cases_that_need_their_raw_images(ready, capsys):
    ready.edit_plans(use_mask_for_norm=[True])
    assert check.main(["-d", "901", "-c", "3d_fullres"]) == 1
    assert "'b' is hidden" in capsys.readouterr().out
    ready.image("b", "imagesTr")
    assert check.main(["-d", "901", "-c", "3d_fullres"]) == 0


def test_check_without_any_unlabeled_case(ready, capsys):
    (ready.raw / "imagesUn" / "x_0000.nii.gz").unlink()
    assert check.main(["-d", "901"]) == 0  # fold 0 hides a case
    assert check.main(["-d", "901", "-f", "1"]) == 1
    assert "no unlabeled case found for fold 1" in capsys.readouterr().out


def test_check_and_training_say_the_same_of_images_that_are_gone(ready, capsys):
    preprocess.main(["-d", "901", "-c", "3d_fullres", "-np", "1"])
    (ready.raw / "imagesUn" / "x_0000.nii.gz").unlink()
    for fold in ("0", "1"):
        capsys.readouterr()
        assert check.main(["-d", "901", "-c", "3d_fullres", "-f", fold]) == 1
        told = capsys.readouterr().out
        assert "1 unlabeled cases were preprocessed from there. Is it mounted" in told and "no unlabeled" not in told
    assert preprocess.main(["-d", "901", "--forget"]) == 0
    assert check.main(["-d", "901", "-c", "3d_fullres", "-f", "0"]) == 0


def test_check_names_labels_that_dataset_json_does_not_know(ready, capsys):
    """nnU-Net preprocesses them, and its loss fails in the first epoch with an index that is out of bounds."""
    ready.preprocessed_case("c", labels=4)
    ready.preprocessed_case("b", labels=4)  # hidden by fold 0: nobody reads it
    assert check.main(["-d", "901", "-c", "3d_fullres"]) == 1
    told = capsys.readouterr().out
    assert "1 problem(s)" in told and "the label of the case c holds 2, 3, but dataset.json names 0, 1 only" in told


def test_check_says_when_nnunet_can_find_no_trainer(ready, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)  # an import of it fails now
    for more in ([], ["-tr", "nnUNetTrainerSemiSAM"]):
        assert check.main(["-d", "901", "-c", "3d_fullres", *more]) == 1
        told = capsys.readouterr().out
        assert "torchvision cannot be imported" in told and "torch 2" in told and "pip install --force-reinst" in told


def test_check_names_a_label_that_cannot_be_read(ready, capsys):
    folder = ready.preprocessed / "nnUNetPlans_3d_fullres"
    (folder / "c.pkl").write_bytes(b"\x80\x04")
    (folder / "a_seg.b2nd").write_bytes(b"no")
    assert check.main(["-d", "901", "-c", "3d_fullres"]) == 1
    told = capsys.readouterr().out
    assert "2 problem(s)" in told and told.count("run nnUNetv2_preprocess again") == 2


def test_check_does_not_send_for_images_that_it_cannot_see(ready, monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_raw")
    assert check.main(["-d", "901", "-f", "1"]) == 1
    assert "nnUNet_raw is not set or holds no Dataset901" in capsys.readouterr().out


def test_check_counts_what_was_preprocessed_where_the_raw_folder_was(ready, monkeypatch, capsys):
    preprocess.main(["-d", "901", "-c", "3d_fullres"])
    monkeypatch.delenv("nnUNet_raw")
    capsys.readouterr()
    assert check.main(["-d", "901", "-c", "3d_fullres", "-f", "1"]) == 0
    told = capsys.readouterr().out
    assert "1 case(s) of imagesUn preprocessed before" in told and "0 hidden + 1 from imagesUn" in told
    ready.edit_plans(normalization_schemes=["CTNormalization"])  # training would stop, too
    assert check.main(["-d", "901", "-c", "3d_fullres", "-f", "1"]) == 1
    assert "--forget" in capsys.readouterr().out


def test_check_of_an_unknown_data_set_or_an_unpreprocessed_configuration(ready, capsys):
    assert check.main(["-d", "902"]) == 1
    assert "902" in capsys.readouterr().err
    assert check.main(["-d", "901", "-c", "2d"]) == 1
    assert "no preprocessed case" in capsys.readouterr().out
    (ready.preprocessed / "nnUNetPlans_3d_fullres_unlabeled.json").write_text("{}")  # what was preprocessed: no plans
    assert check.main(["-d", "901", "-p", "other"]) == 1
    assert "(found: nnUNetPlans)" in capsys.readouterr().err


def without_splits(ready):
    (ready.preprocessed / "splits_final.json").unlink()


def test_check_warns_where_nnunet_cannot_split(ready, capsys):
    without_splits(ready)  # with four labeled cases
    assert check.main(["-d", "901"]) == 0
    told = capsys.readouterr().out
    assert "3d_fullres: folds 0 to 4 not checked, there is no splits_final.json yet" in told
    assert "no problem found, but 1 warning(s):\n  - WARNING: " in told and "fails with 4 labeled case(s)" in told
    assert "only fold all can be trained" in told
    cure = '[{"train": ["a", "b", "c"], "val": ["d"]}]'
    assert f"for instance {cure}, or train fold all" in told
    assert check.main(["-d", "901", "-c", "3d_fullres", "-f", "all"]) == 0
    assert "WARNING" not in capsys.readouterr().out
    assert check.main(["-d", "901", "-c", "3d_fullres", "-f", "0"]) == 1  # this fold cannot be trained
    assert "fails with 4 labeled case(s)" in capsys.readouterr().out
    ready.write(ready.preprocessed / "splits_final.json", json.loads(cure))
    assert check.main(["-d", "901", "-c", "3d_fullres", "-f", "0"]) == 0  # the cure cures


def test_check_says_what_nnunet_will_split_itself(ready, capsys):
    without_splits(ready)
    ready.preprocessed_case("e", seed=5)
    assert check.main(["-d", "901"]) == 0
    told = capsys.readouterr().out
    assert "WARNING" not in told and "folds 0 to 4 not checked" in told
    assert check.main(["-d", "901", "-c", "3d_fullres", "-f", "2"]) == 0
    told = capsys.readouterr().out
    assert "fold 2: labeled and validation cases chosen by nnU-Net, 0 hidden + 1 from imagesUn" in told
    assert "not checked" not in told


def test_check_reports_a_missing_channel_once(tmp_path, monkeypatch, capsys):
    for variable in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{variable}", str(tmp_path / variable))
    two = ToyDataset(tmp_path, channels=2)
    two.splits({"train": ["a"], "val": ["c"]})
    for case in "ac":
        two.preprocessed_case(case)
    for channel in (0, 1):
        two.image("a", "imagesTr", channel=channel)
    two.image("x")
    assert check.main(["-d", "901", "-c", "3d_fullres"]) == 1
    told = capsys.readouterr().out
    assert "1 problem(s):" in told and "case 'x' has the channel(s) 0000" in told


def test_check_warns_of_a_copy_of_a_labeled_image(ready, capsys):
    ready.image("c", "imagesTr", seed=5)
    ready.image("scan_x", seed=5)
    ready.image("other", seed=6)
    assert check.main(["-d", "901"]) == 0
    told = capsys.readouterr().out
    assert told.count("WARNING") == 1 and "scan_x_0000.nii.gz is a copy of c_0000.nii.gz, a labeled image" in told


def test_check_counts_what_can_be_used_and_what_cannot(ready, capsys):
    ready.image("empty").write_bytes(b"")
    ready.image("a")  # the name of a labeled case
    ready.image("a", "imagesTr")
    (ready.raw / "imagesUn" / "label.nii.gz").touch()  # no case
    only = ["-d", "901", "-c", "3d_fullres", "-f", "1"]
    assert check.main(only) == 1
    told = capsys.readouterr().out
    assert "imagesUn: 1 usable case(s), 2 that cannot be used\n" in told and "0 hidden + 1 from imagesUn" in told
    ready.edit_plans("3d_fullres", semisam={"skip_bad": True})
    assert check.main(only) == 0
    told = capsys.readouterr().out
    assert "imagesUn: 1 usable case(s), 2 that cannot be used\n" in told and "0 hidden + 1 from imagesUn" in told
    for case in ("x", "empty", "a"):
        ready.image(case).write_bytes(b"")
    assert check.main(only) == 1  # as in training: nothing is left
    told = capsys.readouterr().out
    assert "imagesUn: 0 usable case(s), 3 that cannot be used\n" in told and "no unlabeled case found" in told


def test_skip_bad_in_the_section_counts_for_the_commands_too(ready, capsys):
    ready.image("bad").write_bytes(b"")
    (ready.raw / "imagesUn" / "label.nii.gz").touch()
    only = ["-d", "901", "-c", "3d_fullres"]
    assert check.main(only) == 1 and preprocess.main([*only, "-np", "1"]) == 1
    capsys.readouterr()
    ready.edit_plans("3d_fullres", semisam={"skip_bad": True})
    assert check.main(only) == 0
    told = capsys.readouterr().out
    assert "no problem found" in told and told.count("WARNING: left out, since skip_bad is true: ") == 2
    assert check.main(["-d", "901", "-c", "3d_fullres", "2d"]) == 1  # the other configuration would stop
    assert preprocess.main([*only, "-np", "1"]) == 0
    told = capsys.readouterr().out
    assert "skipped" in told and "bad_0000.nii.gz" in told and "label.nii.gz" in told


def test_without_images_preprocessing_has_nothing_to_do_where_labeled_ones_serve(ready, capsys):
    (ready.raw / "imagesUn" / "x_0000.nii.gz").unlink()
    only = ["-d", "901", "-c", "3d_fullres"]
    assert preprocess.main(only) == 0 and "hidden or labeled cases serve" in capsys.readouterr().out
    ready.splits({"train": ["a"], "val": ["b"]})
    assert preprocess.main(only) == 1 and "put unlabeled images there" in capsys.readouterr().err
    ready.edit_plans("3d_fullres", semisam={"labeled_as_unlabeled": True})
    assert preprocess.main(only) == 0 and "0 unlabeled case(s) ready" in capsys.readouterr().out
    assert check.main([*only, "-f", "1"]) == 0
    assert "0 hidden + 0 from imagesUn (and the images of the labeled cases) unlabeled" in capsys.readouterr().out


def test_check_warns_of_a_label_under_the_name_of_an_image(ready, capsys):
    import SimpleITK as sitk

    # of another data set: this one has 0 and 1
    label = np.random.default_rng(0).integers(0, 3, (10, 14, 12)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(label), str(ready.raw / "imagesUn" / "oops_0000.nii.gz"))
    assert check.main(["-d", "901"]) == 0
    told = capsys.readouterr().out
    assert told.count("WARNING") == 1
    assert "imagesUn: 'oops_0000.nii.gz' is made of integers, of at most 16 different ones, as labels are" in told
    sitk.WriteImage(sitk.GetImageFromArray(label % 2), str(ready.raw / "imagesUn" / "oops_0000.nii.gz"))
    assert check.main(["-d", "901"]) == 1
    told = capsys.readouterr().out
    assert "oops_0000.nii.gz: holds nothing but 0, 1, which are values of labels" in told and "WARNING" not in told


def test_check_tells_of_labeled_cases_older_than_the_plans(ready, capsys):
    """And not of hidden ones, whose properties are nobody's business; 2D plans say nothing of slices."""
    for case in "ad":
        file = ready.preprocessed / "nnUNetPlans_3d_fullres" / f"{case}.pkl"
        properties = pickle.loads(file.read_bytes())
        file.write_bytes(pickle.dumps(properties | {"shape_after_cropping_and_before_resampling": SHAPE}))
    assert check.main(["-d", "901", "-c", "3d_fullres"]) == 0
    capsys.readouterr()
    ready.edit_plans(spacing=[2.0, 1.0, 1.0])
    assert check.main(["-d", "901", "-c", "3d_fullres"]) == 1
    told = capsys.readouterr().out
    half = [SHAPE[0] // 2, *SHAPE[1:]]
    assert "'a', 'd' are older than the plans" in told
    assert f"a has the shape {list(SHAPE)}, and the plans make {half} of its image" in told
    assert f"nnUNetv2_preprocess -d {NAME} -plans_name nnUNetPlans again" in told
    ready.edit_plans(resampling_fn_data="no_resampling_hack")
    assert check.main(["-d", "901", "-c", "3d_fullres"]) == 0


def test_check_tells_of_a_record_that_cannot_be_read(ready, capsys):
    file = ready.preprocessed / "nnUNetPlans_3d_fullres_unlabeled.json"
    file.mkdir()  # an OSError for everybody, root too
    assert check.main(["-d", "901", "-c", "3d_fullres"]) == 1
    assert f"{file} cannot be read" in capsys.readouterr().out


def test_check_names_the_preprocessed_cases_that_a_fold_does_not_use(ready, capsys):
    assert check.main(["-d", "901", "-c", "3d_fullres"]) == 0
    told = capsys.readouterr().out
    assert "fold 0: 1 labeled, 1 hidden + 1 from imagesUn unlabeled, 1 validation case(s); 'd' is in none" in told
    ready.splits({"train": ["a", "d"], "unlabeled": ["b"], "val": ["c"]})
    assert check.main(["-d", "901", "-c", "3d_fullres"]) == 0
    assert "in none of its lists" not in capsys.readouterr().out
