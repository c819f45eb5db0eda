"""Protocols: what is refused and how, arms, flags over files, and names that settings decide."""

import json
from dataclasses import replace

import pytest
from made_up import protocol, raw_dataset

from nnunet_semisam import presets
from nnunet_semisam.benchmark.arms import BUILT_IN, parse_arms
from nnunet_semisam.benchmark.dataset import find_dataset
from nnunet_semisam.benchmark.draws import Fold
from nnunet_semisam.benchmark.launch import Launcher
from nnunet_semisam.benchmark.planning import plan_steps
from nnunet_semisam.benchmark.protocol import read_protocol, read_protocol_file
from nnunet_semisam.benchmark.runs import digest, expand, needs
from nnunet_semisam.cli.benchmark import _changed, _parser, protocol_values
from nnunet_semisam.cli.plan import check_section

FOLD = Fold("Dataset901_Toy", "2", "0", ("c0", "c1"), ("c2",), ("c3",))


@pytest.mark.parametrize(
    "values, message",
    [
        ({"epoch": 3}, "unknown key 'epoch'; known are datasets"),
        ({"epochs": 0}, "epochs is 0; it must be an integer of at least 1"),
        ({"epochs": True}, "epochs is True"),
        ({"budgets": [1, 0]}, "budgets has 0"),
        ({"budgets": [2, 2]}, "something is in it twice"),
        ({"draws": "list"}, "draws is 'list'; it must be a list"),
        ({"datasets": []}, "no data sets"),
        ({"tolerance": "1"}, "tolerance is '1'"),
        ({"mirroring": 1}, "mirroring is 1; it must be true or false"),
        ({"fingerprint_from": "val"}, "fingerprint_from is 'val'"),
        ({"network": {"patch": [8]}}, "it must be null or a dictionary of patch_size, features, batch_size"),
        ({"network": {"features": [8, 0, 8]}}, "network.features"),
        ({"network": {"features": [8, 16]}}, "must have at least 3 stages"),
        ({"network": {"patch_size": [8, 8]}}, "this configuration has 3 axes"),
        ({"network": {"patch_size": [8, 8, 8]}, "configuration": "2d"}, "this configuration has 2 axes"),
        ({"network": {"spacing": [2, 0, 2]}}, "network.spacing is [2, 0, 2]; it must be made of positive numbers"),
        ({"network": {"spacing": [2, float("inf"), 2]}}, "it must be made of positive numbers"),
        ({"network": {"spacing": [2, 2]}}, "wants three numbers"),
        ({"network": {"spacing": [2, 2, 2]}, "configuration": "3d_lowres"}, "for 3d_fullres only"),
        ({"baseline": "full", "arms": ["supervised", "full"]}, "must be one of the arms supervised"),
        ({"arms": ["semisma"]}, "'semisma' is unknown; built in are supervised"),
        ({"arms": ["supervised", {"name": "a__b"}]}, "a name of letters, digits"),
        ({"arms": ["supervised", {"name": "a", "sections": {}}]}, "unknown key 'sections'"),
        ({"arms": ["supervised", {"name": "a", "section": {"seed": 1}}]}, "the protocol sets it for all arms alike"),
        ({"arms": ["supervised", "supervised"]}, "supervised twice"),
        ({"arms": ["supervised", "supervised_time"]}, "needs the arm semisam"),
        (
            {"arms": ["supervised", "full", {"name": "a", "time_of": "full", "like": "supervised"}]},
            "both need the same labels",
        ),
    ],
)
def test_a_wrong_protocol_names_key_and_value(values, message):
    with pytest.raises(ValueError, match="(?s)protocol|arms") as error:
        read_protocol({"datasets": ["x"], **values})
    assert message in str(error.value)


def test_a_protocol_survives_its_own_file(tmp_path):
    one = protocol(raw_dataset(tmp_path), arms=["supervised", {"name": "x", "section": {"sam": {"planes": 4}}}])
    file = tmp_path / "protocol.json"
    file.write_text(json.dumps(one.as_dict()))
    assert read_protocol(read_protocol_file(file)) == one


def test_every_built_in_arm_has_a_section_that_the_trainer_takes_and_supervised_ones_no_term():
    for arm in BUILT_IN.values():
        check_section(arm.section)
        terms = getattr(presets, arm.trainer).preset.with_section(arm.section).active_terms()
        assert bool(terms) == (arm.name in ("mean_teacher", "semisam", "faithful", "random_sam"))


def test_flags_are_laid_over_the_file_and_the_file_over_what_the_folder_remembers(tmp_path):
    (tmp_path / "protocol.json").write_text(json.dumps({"datasets": ["remembered"], "epochs": 7}))
    remembered = protocol_values(_parser().parse_args([str(tmp_path), "--epochs", "9"]))
    assert (remembered["datasets"], remembered["epochs"]) == (["remembered"], 9)
    file = tmp_path / "other.json"
    own = {"name": "mine", "section": {"method": "fixmatch"}}
    file.write_text(json.dumps({"datasets": ["file"], "network": {"batch_size": 2}, "arms": ["supervised", own]}))
    flags = [
        "--protocol",
        str(file),
        "--patch-size",
        "8",
        "8",
        "--arms",
        "mine",
        "supervised",
        "--arm",
        'b={"sam": null}',
    ]
    values = protocol_values(_parser().parse_args([str(tmp_path), *flags]))
    assert values["datasets"] == ["file"] and "epochs" not in values
    assert values["network"] == {"batch_size": 2, "patch_size": [8, 8]}
    assert values["arms"] == [own, "supervised", {"name": "b", "section": {"sam": None}}]
    with pytest.raises(ValueError, match="write NAME=JSON"):
        protocol_values(_parser().parse_args([str(tmp_path), "--arm", "b"]))


def test_other_settings_have_other_folders_and_what_only_scoring_needs_has_not(tmp_path):
    dataset = raw_dataset(tmp_path)
    arm = BUILT_IN["semisam"]
    digests = {
        digest(protocol(dataset, **values), arm, FOLD)
        for values in ({}, {"epochs": 3}, {"iterations": 3}, {"network": {"batch_size": 4}}, {"configuration": "2d"})
    }
    assert len(digests) == 5
    changed = parse_arms([{"name": "semisam", "section": {"ema_decay": 0.9}}])[0]
    assert digest(protocol(dataset), changed, FOLD) not in digests
    for values in ({"tolerance": 2.0}, {"max_cases": 1}, {"budgets": [1, 2]}, {"seeds": [0, 1]}):
        assert digest(protocol(dataset, **values), arm, FOLD) == digest(protocol(dataset), arm, FOLD)


def test_paths_are_remembered_as_they_are_from_anywhere_and_a_change_is_told(tmp_path, monkeypatch):
    raw_dataset(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Dataset902_Named").mkdir()  # results, not the data set of that name
    flags = [str(tmp_path / "work"), "--datasets", "Dataset901_Toy", "Dataset902_Named", "--splits", "splits.json"]
    values = protocol_values(_parser().parse_args(flags))
    assert values["datasets"] == [str(tmp_path / "Dataset901_Toy"), "Dataset902_Named"]
    assert values["splits"] == str(tmp_path / "splits.json")
    remembered = tmp_path / "protocol.json"
    assert _changed({"epochs": 3}, remembered) == ""
    remembered.write_text(json.dumps({"epochs": 3, "draws": ["0"]}))
    assert _changed({"epochs": 3, "draws": ["1"]}, remembered) == f"{remembered} changes: draws ['0'] -> ['1']"


@pytest.mark.parametrize(
    "arm, message",
    [
        ({"name": "x", "trainer": "nnUNetTrainerSemiSAN"}, "arm x: nnU-Net finds no trainer 'nnUNetTrainerSemiSAN'"),
        ({"name": "x", "labels": "all"}, "arm x: .*all labels.* has no unlabeled case left; lower budgets"),
        ({"name": "x", "section": {"sam": {"backend": "sam_med3d"}}}, "arm x: .*nnUNetv2_semisam_sam"),
        ({"name": "x", "section": {"terms": {"sam": 0}}}, "arm x: .*terms.sam"),
        ({"name": "x", "section": {"sam": {"trust": {"side": 0}}}}, "arm x: .*unknown class 'side'.*front, back"),
    ],
)
def test_an_arm_that_would_fail_when_its_turn_comes_is_refused_before_anything_starts(tmp_path, arm, message):
    dataset = raw_dataset(tmp_path)
    with pytest.raises(ValueError, match=message):
        plan_steps(tmp_path / "work", protocol(dataset, arms=["supervised", arm]), Launcher())
    used = protocol(dataset, arms=["supervised", "full", {"name": "own", "trainer": "nnUNetTrainer_5epochs"}])
    assert len(plan_steps(tmp_path / "work", used, Launcher()).runs) == 5
    with_own = {"name": "x", "labels": "all", "section": {"labeled_as_unlabeled": True}}
    assert plan_steps(tmp_path / "work", protocol(dataset, arms=["supervised", with_own]), Launcher()).runs


def test_only_an_arm_of_equal_time_has_another_configuration_for_every_draw(tmp_path):
    """Its length is another: two workers would write it under one name."""
    here = protocol(raw_dataset(tmp_path), arms=["supervised", "semisam", "supervised_time"])
    for name, count in (("semisam", 1), ("supervised_time", 3)):
        folds = (FOLD, replace(FOLD, draw="1"), replace(FOLD, labels="4"))
        assert len({digest(here, BUILT_IN[name], fold) for fold in folds}) == count


def test_other_defaults_have_other_folders_but_for_stock_training(tmp_path, monkeypatch):
    """Results of an older version are not taken for those of today."""
    from nnunet_semisam import trainer

    here = protocol(raw_dataset(tmp_path))

    def digests():
        return {
            name: digest(here, BUILT_IN[name], FOLD) for name in ("supervised", "mean_teacher", "semisam", "faithful")
        }

    before = digests()
    for kind in (trainer.nnUNetTrainerSemiSAM, trainer.nnUNetTrainerMeanTeacher):
        monkeypatch.setattr(kind, "preset", replace(kind.preset, ema_decay=0.9))
    assert [name for name, other in digests().items() if other != before[name]] == ["mean_teacher", "semisam"]


def test_a_default_that_is_spelled_out_changes_nothing(tmp_path):
    here, names = protocol(raw_dataset(tmp_path)), set()
    for perturbation in ({}, {"cutout": 0.25}, {"cutout": 0.3}):
        (arm,) = parse_arms([{"name": "x", "section": {"method_args": {"perturbation": perturbation}}}])
        names.add(digest(here, arm, FOLD))
    assert len(names) == 2


def test_whole_millimetres_are_the_same_spacing(tmp_path):
    dataset, (arm, *_) = raw_dataset(tmp_path), parse_arms(["semisam"])
    spacings = ([2, 2, 2], [2.0, 2.0, 2.0], [2.0, 2.0, 2.5])
    assert len({digest(protocol(dataset, network={"spacing": spacing}), arm, FOLD) for spacing in spacings}) == 2


def test_one_ceiling_serves_all_budgets_and_draws_and_equal_time_comes_last(tmp_path):
    dataset = raw_dataset(tmp_path)
    arms = ["supervised_time", "full", "supervised", "semisam"]
    runs = expand(protocol(dataset, arms=arms, budgets=[1, 2], seeds=[0, 1]), [dataset])
    by_arm = {name: [run for run in runs if run.arm.name == name] for name in arms}
    assert {name: len(found) for name, found in by_arm.items()} == {
        "supervised_time": 8, "full": 2, "supervised": 8, "semisam": 8,
    }  # fmt: skip
    full = by_arm["full"][0].fold
    assert (full.labels, full.draw, len(full.labeled), full.unlabeled) == ("all", "all", 5, ())
    for run in by_arm["supervised_time"]:
        needed = needs(run, runs)
        assert {other.arm.name for other in needed} == {"supervised", "semisam"}
        assert all((other.fold, other.seed) == (run.fold, run.seed) for other in needed)
        assert all(runs.index(other) < runs.index(run) for other in needed)


def test_every_run_has_a_name_and_a_configuration_of_its_own(tmp_path):
    dataset = raw_dataset(tmp_path)
    runs = expand(protocol(dataset, seeds=[0, 1]), [dataset])
    assert len({run.name for run in runs}) == len(runs) == 8
    assert not any("__" in run.configuration for run in runs)
    assert runs[0].section(5)["num_epochs"] == 5 and runs[0].section(5)["seed"] == 0


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda folder: (folder / "dataset.json").unlink(), "no file"),
        (lambda folder: folder.rename(folder.with_name("Toy")), "no file"),
        (lambda folder: (folder / "imagesTr" / "c1_0000.nii.gz").unlink(), "c1_0000.nii.gz is missing"),
        (lambda folder: [file.unlink() for file in (folder / "labelsTr").iterdir()], "no labels"),
    ],
)
def test_a_wrong_data_set_says_what_is_missing(tmp_path, change, message):
    folder = raw_dataset(tmp_path).folder
    change(folder)
    with pytest.raises(ValueError, match=message):
        find_dataset(str(folder))


def test_a_data_set_is_looked_for_here_and_in_nnunet_raw(tmp_path, monkeypatch):
    folder = raw_dataset(tmp_path / "raw").folder
    monkeypatch.setenv("nnUNet_raw", str(folder.parent))
    monkeypatch.chdir(tmp_path)
    assert find_dataset(folder.name).folder == folder
    (tmp_path / folder.name).mkdir()  # results of it, for instance
    assert find_dataset(folder.name).folder == folder
    with pytest.raises(ValueError) as error:
        find_dataset("raw/Dataset999_None")
    for place in (tmp_path / "raw", folder.parent / "raw"):
        assert str(place / "Dataset999_None" / "dataset.json") in str(error.value)
