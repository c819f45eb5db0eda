import json

import pytest
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from toy_dataset import NAME, toy  # noqa: F401 (a fixture)

from nnunet_semisam.cli import plan
from nnunet_semisam.cli.plan import main, set_key, write_configuration
from nnunet_semisam.config import SemiSAMConfig


@pytest.fixture
def plans_file(tmp_path):
    file = tmp_path / "nnUNetPlans.json"
    file.write_text(json.dumps({"configurations": {"3d_fullres": {"batch_size": 2}}}))
    return file


def configurations(file):
    return json.loads(file.read_text())["configurations"]


def test_written_section_is_what_the_trainer_reads(plans_file):
    section = {"method": "fixmatch", "sam": {"planes": 4}, "num_epochs": 7}
    write_configuration(plans_file, base="3d_fullres", name="3d_fullres_semisam", section=section)
    entry = configurations(plans_file)["3d_fullres_semisam"]
    assert entry["inherits_from"] == "3d_fullres"
    config = SemiSAMConfig().with_section(entry["semisam"])
    assert (config.method, config.sam.planes, config.num_epochs) == ("fixmatch", 4, 7)
    assert configurations(plans_file)["3d_fullres"] == {"batch_size": 2}


def test_second_call_edits_and_replace_forgets(plans_file):
    where = {"base": "3d_fullres", "name": "x"}
    write_configuration(plans_file, **where, section={"sam": {"planes": 4}})
    assert write_configuration(plans_file, **where, section={"sam": {"axis": 0}}) == {"sam": {"planes": 4, "axis": 0}}
    assert write_configuration(plans_file, **where, section={"seed": 1}, replace=True) == {"seed": 1}


def test_what_another_command_writes_in_the_meantime_stays(plans_file, monkeypatch):
    check = plan.check_section

    def slow(section):
        monkeypatch.setattr(plan, "check_section", check)
        write_configuration(plans_file, base="3d_fullres", name="other", section={"seed": 2})

    monkeypatch.setattr(plan, "check_section", slow)
    write_configuration(plans_file, base="3d_fullres", name="mine", section={"seed": 1})
    assert {name: entry.get("semisam") for name, entry in configurations(plans_file).items()} == {
        "3d_fullres": None, "mine": {"seed": 1}, "other": {"seed": 2},
    }  # fmt: skip
    assert [file.name for file in plans_file.parent.iterdir()] == [plans_file.name]


NEVER_LOOKS = {"backend": "embedded", "backend_args": {"rounds": 0}}


@pytest.mark.parametrize(
    "section, word",
    [
        ({"methd": "x"}, "unknown key 'methd' in the section; did you mean method. known keys are method,"),
        ({"method": "x"}, "mean_teacher"),
        ({"sam": {"backend": "sam9"}}, "embedded"),
        ({"sam": {"backend_args": {"round": 2}}}, "unknown key 'round' in sam.backend_args"),
        ({"num_epochs": 5.0}, "num_epochs is 5.0; it must be an integer"),
        ({"method_args": {"perturbation": {"noise": 1}}}, "noise_std"),
        ({"method": "no_such_lab.method"}, "none named 'no_such_lab' was found on the Python path"),
        ({"sam": {"backend": "no_such_lab.sam"}}, "none named 'no_such_lab' was found on the Python path"),
        ({"sam": {"backend_args": {"rounds": "many"}}}, "sam.backend_args.rounds is 'many'; it must be an integer"),
        (
            {"sam": {"backend_args": {"grow": -1}}},
            "sam.backend_args.grow is -1; .* at least 0 .configuration x of .*json",
        ),
        (
            {"sam": {"backend": "ensemble", "backend_args": {"members": [NEVER_LOOKS]}}},
            "rounds is 0",
        ),
        ({"method_args": {"x": 1}}, "view"),
        ({"terms": {"foo": {"weight": 1}}}, "consistency"),
    ],
)
def test_bad_section_is_refused_and_nothing_is_written(plans_file, section, word):
    before = plans_file.read_text()
    with pytest.raises(ValueError, match=word):
        write_configuration(plans_file, base="3d_fullres", name="x", section=section)
    assert plans_file.read_text() == before


def test_a_misspelt_section_beside_it_is_told(plans_file):
    plans = json.loads(plans_file.read_text())
    plans["configurations"]["3d_fullres"]["semi_sam"] = {}
    plans_file.write_text(json.dumps(plans))
    with pytest.raises(ValueError, match="'semi_sam', which is not read"):
        write_configuration(plans_file, base="3d_fullres", name="x", section={})


def test_unknown_base_is_told_what_exists(plans_file):
    with pytest.raises(ValueError, match="3d_fullres"):
        write_configuration(plans_file, base="3d_full", name="x", section={})


def test_set_reads_nested_json_and_strings():
    section: dict = {"sam": {"planes": 3}}
    for assignment in ("sam.axis=alternate", "terms.sam.weight=0.5", 'sam.prompts=["box"]', "seed=4"):
        set_key(section, assignment)
    assert section == {
        "sam": {"planes": 3, "axis": "alternate", "prompts": ["box"]},
        "terms": {"sam": {"weight": 0.5}},
        "seed": 4,
    }
    with pytest.raises(ValueError, match="key=value"):
        set_key(section, "seed")


@pytest.mark.parametrize(
    "text, value",
    [
        ("True", True), ("true", True), ("TRUE", True), ("False", False), ("false", False), ("None", None),
        ("none", None), ("null", None), ("Null", None), ('"None"', "None"), ("Nonesuch", "Nonesuch"), ("1.5", 1.5),
    ],
)  # fmt: skip
def test_set_reads_the_words_of_python_in_any_capitalisation(text, value):
    section: dict = {}
    set_key(section, f"sam.checkpoint={text}")
    assert section["sam"]["checkpoint"] is value or section["sam"]["checkpoint"] == value != bool(value)


@pytest.mark.parametrize(
    "dataset, word", [("999", "999"), ("Dataset999_No", "plan the data set first"), ("x", "'x'|: x")]
)
def test_an_unknown_data_set_is_told(tmp_path, monkeypatch, dataset, word):
    for variable in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{variable}", str(tmp_path))
    with pytest.raises(SystemExit, match=f"(?s)^nnUNetv2_semisam_plan: .*({word})"):
        main(["-d", dataset, "-c", "2d"])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of a planned data set."""
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    folder = tmp_path / "Dataset555_Toy"
    folder.mkdir()
    (folder / "nnUNetPlans.json").write_text(json.dumps({"configurations": {"2d": {}}}))
    return folder


def test_keys_of_a_sam_that_is_off_are_refused(folder):
    off = ["-d", "Dataset555_Toy", "-c", "2d", "--sam", "none"]
    with pytest.raises(SystemExit, match="sam is off"):
        main([*off, "--set", "sam.tune=0"])
    main(off)
    with pytest.raises(SystemExit, match="sam is off"):
        main([*off[:4], "--set", "sam.hard=true"])
    assert configurations(folder / "nnUNetPlans.json")["2d_semisam"]["semisam"] == {"sam": None}
    main([*off[:4], "--sam", "embedded", "--set", "sam.hard=true"])
    written = configurations(folder / "nnUNetPlans.json")["2d_semisam"]["semisam"]
    assert written == {"sam": {"backend": "embedded", "hard": True}}


@pytest.mark.parametrize("length", [["num_epochs=1", "num_iterations_per_epoch=3"], []], ids=["short", "nnunet"])
def test_a_term_that_would_never_count_is_refused(folder, length):
    last = 2 if length else 249_999
    command = ["-d", "Dataset555_Toy", "-c", "2d", "--set", *length]
    main([*command, f"terms.sam.delay={last}"])
    with pytest.raises(SystemExit, match=f"terms.sam.delay is {last + 1}, but the training has {last + 1} iterations"):
        main([*command, f"terms.sam.delay={last + 1}"])


def test_a_checkpoint_that_is_not_there_yet_is_a_warning(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_sam_checkpoints", str(tmp_path))
    command = ["-d", "Dataset555_Toy", "-c", "2d", "--set", "sam.checkpoint=late.pth"]
    main(command)
    assert configurations(folder / "nnUNetPlans.json")["2d_semisam"]["semisam"] == {"sam": {"checkpoint": "late.pth"}}
    told = capsys.readouterr().err
    assert told.startswith("WARNING: ") and f"sam.checkpoint is 'late.pth', looked for in {tmp_path}" in told
    main([*command, "terms.sam.weight=0"])  # SAM will not be asked
    (tmp_path / "late.pth").touch()
    main([*command, "terms.sam.weight=1"])
    main(["-d", "Dataset555_Toy", "-c", "2d", "--set", "sam.checkpoint=null"])
    assert capsys.readouterr().err == ""


def test_command_writes_the_configuration(folder, capsys):
    main(["-d", "Dataset555_Toy", "-c", "2d", "--sam", "none", "--set", "num_epochs=3"])
    assert configurations(folder / "nnUNetPlans.json")["2d_semisam"]["semisam"] == {"sam": None, "num_epochs": 3}
    assert "nnUNetv2_train Dataset555_Toy 2d_semisam" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="num_epoch"):
        main(["-d", "Dataset555_Toy", "-c", "2d", "--set", "num_epoch=3"])


def test_a_class_in_trust_can_be_taken_out_again(plans_file):
    written = []
    for text in ('sam.trust={"hart":0}', 'sam.trust={"heart":0}'):
        section: dict = {}
        set_key(section, text)
        written.append(write_configuration(plans_file, base="3d_fullres", name="x", section=section)["sam"]["trust"])
    assert written == [{"hart": 0}, {"heart": 0}]


def test_trust_in_a_class_that_is_none_is_refused(toy):  # noqa: F811
    with pytest.raises(SystemExit, match="unknown class 'liver' in sam.trust; known are thing"):
        main(["-d", "901", "--set", 'sam.trust={"liver": 1}'])
    assert "3d_fullres_semisam" not in configurations(toy.preprocessed / "nnUNetPlans.json")
    main(["-d", "901", "--set", 'sam.trust={"thing": 0.5}'])
    assert configurations(toy.preprocessed / "nnUNetPlans.json")["3d_fullres_semisam"]["semisam"]["sam"]["trust"]


def test_editing_what_was_trained_already_is_warned_of(toy, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    main(["-d", "901"])
    assert "trained already" not in capsys.readouterr().err
    for name in ("3d_fullres_semisam", "3d_fullres"):
        fold = tmp_path / "results" / NAME / f"nnUNetTrainerSemiSAM__nnUNetPlans__{name}" / "fold_0"
        fold.mkdir(parents=True)
        (fold / "checkpoint_latest.pth").touch()
        fold.with_name("fold_1").mkdir()  # stopped before anything was saved
    main(["-d", "901", "--set", "num_epochs=3"])
    told = capsys.readouterr().err
    assert (
        "WARNING: trained already: nnUNetTrainerSemiSAM__nnUNetPlans__3d_fullres_semisam/fold_0. " in told
        and "fold_1" not in told
    )


def test_a_smaller_network_is_written_and_can_be_edited(plans_file, monkeypatch, tmp_path, capsys):
    arguments = {
        "n_stages": 4,
        "features_per_stage": [32, 64, 128, 256],
        "strides": [[1] * 3, [2] * 3, [2] * 3, [2] * 3],
    }
    planned = {"batch_size": 2, "patch_size": [64] * 3, "architecture": {"arch_kwargs": arguments}}
    plans_file = tmp_path / "Dataset901_Toy" / plans_file.name
    plans_file.parent.mkdir()
    content = {
        "plans_name": "nnUNetPlans",
        "configurations": {"full": planned, "3d_fullres": {"inherits_from": "full"}},
    }
    plans_file.write_text(json.dumps(content))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    command = ["-d", "901", "--name", "small", "--set", "seed=1"]
    main([*command, "--patch-size", "16", "24", "16", "--features", "8", "16", "32", "--batch-size", "3"])
    assert "patch_size [16, 24, 16], features [8, 16, 32], batch_size 3" in capsys.readouterr().out
    small = PlansManager(str(plans_file)).get_configuration("small")
    assert (small.patch_size, small.batch_size, small.configuration["semisam"]) == ([16, 24, 16], 3, {"seed": 1})
    assert small.configuration["architecture"]["arch_kwargs"]["features_per_stage"] == [8, 16, 32]
    main([*command, "--patch-size", "20", "20", "20"])  # what its three stages divide, and four would not
    assert configurations(plans_file)["small"]["patch_size"] == [20] * 3
    main([*command, "--patch-size", "24", "24", "24", "--features", "8", "8", "8", "8"])
    assert len(configurations(plans_file)["small"]["architecture"]["arch_kwargs"]["strides"]) == 4
    main([*command, "--patch-size", "20", "20", "20", "--features", "8", "8", "8"])
    with pytest.raises(SystemExit, match="must be divisible by"):  # its own patch, not that of the base
        main([*command, "--features", "8", "8", "8", "8"])
    with pytest.raises(SystemExit, match="3d_fullres itself stay as planned"):
        main(["-d", "901", "--name", "3d_fullres", "--batch-size", "1"])
    assert configurations(plans_file)["full"] == planned


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--patch-size", "16", "16", "12"], "must be divisible by"),
        (["--patch-size", "16", "16"], "has 3 axes"),
        (["--features", "8", "16"], "there must be 3 to 4"),
        (["--batch-size", "0"], "--batch-size 0: must be at least 1"),
        (["--set", "patch_size=[16,16,16]"], "no key of the semisam section; use --patch-size 32 32 32"),
    ],
    ids=str,
)
def test_a_network_that_does_not_fit_is_refused(tmp_path, monkeypatch, flags, told):
    arguments = {"n_stages": 4, "features_per_stage": [8] * 4, "strides": [[1] * 3, [2] * 3, [2] * 3, [2] * 3]}
    planned = {"batch_size": 2, "patch_size": [64] * 3, "architecture": {"arch_kwargs": arguments}}
    file = tmp_path / "Dataset901_Toy" / "nnUNetPlans.json"
    file.parent.mkdir()
    file.write_text(before := json.dumps({"plans_name": "nnUNetPlans", "configurations": {"3d_fullres": planned}}))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    with pytest.raises(SystemExit, match=told):
        main(["-d", "901", *flags])
    assert file.read_text() == before


def test_a_configuration_built_on_one_with_a_section_begins_with_it(plans_file):
    write_configuration(plans_file, base="3d_fullres", name="first", section={"sam": {"planes": 4}, "seed": 1})
    written = write_configuration(plans_file, base="first", name="second", section={"sam": {"axis": 0}})
    assert written == {"sam": {"planes": 4, "axis": 0}, "seed": 1}
    assert configurations(plans_file)["first"]["semisam"] == {"sam": {"planes": 4}, "seed": 1}
    fresh = write_configuration(plans_file, base="first", name="third", section={"seed": 2}, replace=True)
    assert fresh == {"seed": 2}


@pytest.mark.parametrize("cuda", [True, False])
def test_the_command_to_train_with_is_one_for_this_machine(folder, capsys, monkeypatch, cuda):
    monkeypatch.setattr(plan, "_has_cuda", lambda: cuda)
    main(["-d", "Dataset555_Toy", "-c", "2d", "--set", "seed=1"])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("train with: "))
    stock = "nnUNetv2_train Dataset555_Toy 2d_semisam FOLD -tr nnUNetTrainerSemiSAM -p nnUNetPlans"
    slow = f"nnUNet_n_proc_DA=0 nnUNet_def_n_proc=1 {stock} -device cpu"
    assert line == f"train with: {stock if cuda else slow}"


def test_another_method_begins_without_the_arguments_of_the_first(plans_file):
    arguments = {"method": "ua_mt", "method_args": {"passes": 4}}
    write_configuration(plans_file, base="3d_fullres", name="first", section=arguments)
    write = {"base": "first", "name": "second"}
    assert write_configuration(plans_file, **write, section={"method": "fixmatch"}) == {"method": "fixmatch"}
    same = write_configuration(plans_file, base="first", name="third", section={"method": "ua_mt", "seed": 1})
    assert same == {**arguments, "seed": 1}
    write_configuration(plans_file, base="3d_fullres", name="plain", section={"method_args": {"cutmix": 0.5}})
    named = write_configuration(plans_file, base="plain", name="named", section={"method": "mean_teacher"})
    assert named == {"method": "mean_teacher", "method_args": {"cutmix": 0.5}}


@pytest.mark.parametrize("section", [None, 5, ["seed"]], ids=str)
def test_a_base_whose_section_is_none_is_told(plans_file, section):
    plans = json.loads(plans_file.read_text())
    plans["configurations"]["3d_fullres"]["semisam"] = section
    plans_file.write_text(json.dumps(plans))
    with pytest.raises(ValueError, match="must be a dictionary"):
        write_configuration(plans_file, base="3d_fullres", name="x", section={"seed": 1})
