import json

import pytest

from nnunet_semisam.config import SamConfig, SemiSAMConfig, TermConfig
from nnunet_semisam.methods import build_method, find_method, list_methods
from nnunet_semisam.methods._base import build_perturbation
from nnunet_semisam.ops.outputs import OutputSpace
from nnunet_semisam.resume import changes
from nnunet_semisam.values import require_number


def test_by_default_weights_stay_as_they_are():
    config = SemiSAMConfig()
    assert [config.weights(iteration, 999) for iteration in (0, 333, 998)] == [{"consistency": 1.0, "sam": 2.0}] * 3
    assert config.method_args == {}


def test_section_is_laid_over_the_preset_key_by_key():
    config = SemiSAMConfig(num_epochs=5).with_section(
        {"ema_decay": 0.9, "terms": {"sam": {"weight": 0.7}}, "sam": {"planes": 3, "prompts": ["box"]}}
    )
    assert (config.num_epochs, config.ema_decay) == (5, 0.9)
    assert config.terms["sam"] == TermConfig(weight=0.7)
    assert config.terms["consistency"] == SemiSAMConfig().terms["consistency"]
    assert (config.sam.planes, config.sam.prompts, config.sam.backend) == (3, ("box",), "embedded")


def test_null_switches_sam_off():
    config = SemiSAMConfig().with_section({"sam": None})
    assert config.active_terms() == ("consistency",)


def test_weight_zero_is_no_active_term():
    section = {"terms": {"consistency": {"weight": 0}, "sam": {"weight": 0}}}
    assert SemiSAMConfig().with_section(section).active_terms() == ()


def test_resolved_configuration_survives_json():
    config = SemiSAMConfig().with_section({"sam": {"prompts": ["box", "points"]}, "seed": 3})
    again = SemiSAMConfig().with_section(json.loads(json.dumps(config.as_dict())))
    assert again.as_dict() == config.as_dict() and again.sam == config.sam


@pytest.mark.parametrize(
    "section, named",
    [
        ({"metod": "mean_teacher"}, ["metod", "method"]),
        ({"terms": {"sam": {"wieght": 1}}}, ["wieght", "weight"]),
        ({"terms": {"sam": {"schedule": "ramp"}}}, ["ramp", "sigmoid_rampdown"]),
        ({"terms": {"other": {"schedule": "constant"}}}, ["weight"]),
        ({"terms": {"sam": 3}}, ["terms.sam", "dictionary"]),
        ({"sam": {"plane": 2}}, ["plane", "planes"]),
        ({"sam": {"prompts": ["box", "pints"]}}, ["semisam: sam.prompts[1] is 'pints'; known are points, "]),
        ({"sam": "embedded"}, ["sam is 'embedded'", "dictionary", 'for instance {"backend": "embedded"}']),
        ({"sam": {"prompts": []}}, ["prompts"]),
        ({"sam": {"planes": 0}}, ["planes", "0"]),
        ({"sam": {"min_stability": 0.5}}, ["sam.min_stability", "0.5", "sam.jitters"]),
        ({"sam": {"axis": 4}}, ["axis", "alternate"]),
        ({"ema_decay": 1.0}, ["ema_decay is 1.0; it must be a number of at least 0 and below 1"]),
        ({"num_epochs": 0}, ["num_epochs"]),
        ({"unlabeled_batch_size": "two"}, ["unlabeled_batch_size", "two"]),
        ({"sam": {"weigh_by": ["iou", "iou"]}}, ["sam.weigh_by", "name each once"]),
        ({"sam": {"prompts": ["box", "mask", "box"]}}, ["sam.prompts", "name each once"]),
        ({"sam": {"prompts": ["foo", "foo"]}}, ["sam.prompts[0] is 'foo'", "known are points"]),
        ({"sam": {"weigh_by": [{}, {}]}}, ["sam.weigh_by[0] is {}", "known are iou"]),
    ],
)
def test_bad_values_are_named_with_what_is_known(section, named):
    with pytest.raises(ValueError) as error:
        SemiSAMConfig().with_section(section)
    assert all(word in str(error.value) for word in named)


WRONG_TYPES = [
    (key, value, wanted)
    for keys, values, wanted in [
        (["allow_unlabeled_val"], [1, "true", None], "true or false"),
        (["num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch", "unlabeled_batch_size"],
         [5.0, True, "5", 0, float("nan")], "an integer of at least 1, or null"),
        (["terms.sam.iterations"], [2.0, True, 0], "an integer of at least 1, or null"),
        (["terms.sam.delay"], [2.0, True, -1, None], "an integer of at least 0"),
        (["terms.sam.every"], [2.0, True, 0, None], "an integer of at least 1"),
        (["seed"], [1.0, False, "1"], "an integer, or null"),
        (["sam.planes", "sam.num_points", "sam.min_voxels"], [3.0, True, None, 0], "an integer of at least 1"),
        (["sam.num_negative_points", "sam.jitters"], [1.0, False, -1, None], "an integer of at least 0"),
        (["sam.rounds"], [0, 1.0, True, None], "an integer of at least 1"),
        (["sam.components"], [-1, 1.0, True, "all"], "an integer of at least 0, or null"),
        (["sam.points_from"], ["centre", 0, None], "known are center, certain"),
        (["sam.box_margin"], [-0.1, True, "0", None, float("inf")], "a number of at least 0"),
        (["sam.min_stability"], [-0.1, 1.1, True, None, float("nan")], "a number from 0 to 1"),
        (["sam.axis"], [True, False, 1.0, "Alternate", [0]], "known are 0, 1, 2, alternate"),
        (["sam.tune"], [-1, 1.5, True, "3", [600]], 'an integer of at least 0, null, or "auto"'),
        (["sam.min_agreement"], [-0.1, 1.1, True, "0.5", None, float("nan")], "a number from 0 to 1"),
        (["terms.sam.weight"], [float("nan"), float("inf"), -1, True, "1", None], "a number of at least 0"),
        (["terms.sam.schedule"], [["constant"], None], "known are"),
        (["ema_decay"], [float("nan"), -0.1, 1, 1.5, "0.9", True, None], "a number of at least 0 and below 1"),
        (["sam.checkpoint", "sam.backend", "method"], [3, ["a"], False], "a string"),
        (["sam.backend", "method"], [None], "a string"),
        (["terms", "method_args", "sam.backend_args"], [None, [], "x", 3], "a dictionary"),
        (["sam"], [False, "embedded"], "a dictionary"),
        (["sam.prompts"], ["box", 5, None, {"box": 1}], "a list out of points"),
    ]
    for key in keys
    for value in values
]  # fmt: skip


@pytest.mark.parametrize("key, value, wanted", WRONG_TYPES, ids=str)
def test_a_value_of_the_wrong_type_is_refused_with_key_value_and_what_is_wanted(key, value, wanted):
    section = value
    for part in reversed(key.split(".")):
        section = {part: section}
    with pytest.raises(ValueError) as error:
        SemiSAMConfig().with_section(section)
    message = str(error.value)
    assert message.startswith(f"semisam: {key} is {value!r}; ") and wanted in message
    assert message.count("semisam:") == 1


def test_whatever_is_no_dictionary_is_no_section():
    for section in ([], "mean_teacher", None, 3):
        with pytest.raises(ValueError, match="semisam: the section is .* must be a dictionary"):
            SemiSAMConfig().with_section(section)


def test_null_and_right_types_are_taken():
    section = {
        "unlabeled_batch_size": None, "num_epochs": None, "seed": -3, "ema_decay": 0, "allow_unlabeled_val": True,
        "terms": {"sam": {"weight": 1, "iterations": 7}},
        "sam": {"checkpoint": None, "axis": 2, "min_agreement": 1, "num_negative_points": 0, "prompts": ("box",),
                "components": None, "jitters": 3, "min_stability": 0.7, "box_margin": 0, "points_from": "certain"},
    }  # fmt: skip
    config = SemiSAMConfig().with_section(section)
    assert (config.seed, config.terms["sam"].iterations, config.sam.axis) == (-3, 7, 2)


def test_sam_on_top_of_a_preset_without_sam():
    config = SemiSAMConfig(sam=None).with_section({"sam": {"planes": 2}})
    assert config.sam == SamConfig(planes=2)


def test_strangers_are_told_what_exists():
    with pytest.raises(ValueError, match="mean_teacher"):
        find_method("meanteacher")
    with pytest.raises(ValueError, match="threshold"):
        build_method("fixmatch", {"treshold": 0.9}, OutputSpace(2))
    told = "semisam: terms has no term named 'consistancy'; known are consistency, sam"
    with pytest.raises(ValueError, match=told):
        SemiSAMConfig().with_section({"terms": {"consistancy": {"weight": 1}}}).require_terms(("consistency", "sam"))


@pytest.mark.parametrize(
    "method, args, words",
    [
        (
            "mean_teacher",
            {"perturbation": {"noise": 0.1}},
            ["perturbation 'noise'", "noise_std, contrast, brightness, cutout, remap"],
        ),
        ("mean_teacher", {"perturbation": {"noise_std": -0.1}}, ["perturbation.noise_std is -0.1", "at least 0"]),
        ("mean_teacher", {"perturbation": {"contrast": "much"}}, ["perturbation.contrast is 'much'", "number"]),
        ("mean_teacher", {"perturbation": {"brightness": float("nan")}}, ["brightness is nan", "number"]),
        ("mean_teacher", {"perturbation": {"cutout": 1.5}}, ["perturbation.cutout is 1.5", "from 0 to 1"]),
        ("fixmatch", {"perturbation": {"cutout": True}}, ["perturbation.cutout is True", "number"]),
        ("fixmatch", {"threshold": 1.5}, ["threshold is 1.5", "from 0 to 1"]),
        ("fixmatch", {"threshold": -0.5}, ["threshold is -0.5", "from 0 to 1"]),
        ("fixmatch", {"threshold": True}, ["threshold is True", "number"]),
        ("fixmatch", {"view": "cuda"}, ["view is 'cuda'", "device, nnunet"]),
        ("mean_teacher", {"cutmix": 1.5}, ["method_args.cutmix is 1.5", "from 0 to 1"]),
        ("mean_teacher", {"paste": 2}, ["method_args.paste is 2", "from 0 to 1"]),
        (
            "mean_teacher",
            {"center_sigma": 0},
            ["method_args.center_sigma is 0; it must be a number of at least 0.05, or null"],
        ),
        ("mean_teacher", {"center_sigma": float("inf")}, ["method_args.center_sigma is inf", "number"]),
        ("mean_teacher", {"center_sigma": True}, ["method_args.center_sigma is True", "number"]),
        ("fixmatch", {"loss": "mae"}, ["method_args.loss is 'mae'", "mse, dice"]),
        ("mean_teacher", {"loss": {"consistency": "mae"}}, ["method_args.loss.consistency is 'mae'", "mse, dice"]),
        ("mean_teacher", {"loss": {"entropy": "mse"}}, ["no term named 'entropy'", "consistency, sam"]),
    ],
)
def test_bad_method_args_are_named(method, args, words):
    with pytest.raises(ValueError) as error:
        build_method(method, args, OutputSpace(2))
    assert [word for word in words if word not in str(error.value)] == []


def test_method_args_of_another_type_are_named():
    """Past the shape checks of the test suite, which would refuse them first."""
    for value in ("high", None, [0.5], float("nan")):
        with pytest.raises(ValueError, match="threshold is .* it must be a number from 0 to 1"):
            require_number("threshold", value, 0, 1)
    for value in (3, None, "noise_std", ["noise_std"]):
        with pytest.raises(ValueError, match="perturbation is .* dictionary with keys out of noise_std, contrast"):
            build_perturbation(value)


def test_a_dotted_method_that_cannot_be_imported_is_told(tmp_path, monkeypatch):
    for name, lost in (("no_such_lab.method", "no_such_lab"), ("json.nothing", "json.nothing")):
        told = f"unknown method '{name}'.*fixmatch.*dotted name means.*none named '{lost}' was found on the Python path"
        with pytest.raises(ValueError, match=told):
            find_method(name)
    with pytest.raises(ValueError, match="unknown method '[.]relative'"):
        find_method(".relative")
    (tmp_path / "lab_with_a_hole.py").write_text("import not_installed_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_installed_at_all"):
        find_method("lab_with_a_hole.method")


def test_changes_name_the_path_and_both_values_and_nothing_else():
    was = SemiSAMConfig().as_dict()
    section = {"ema_decay": 0.9, "terms": {"sam": {"weight": 0.7}, "mine": {"weight": 1}}, "sam": {"prompts": ["box"]}}
    now = SemiSAMConfig().with_section(section).as_dict()
    assert changes(was, now) == [
        "ema_decay was 0.99, is 0.9",
        "terms.sam.weight was 2.0, is 0.7",
        f"terms.mine was not set, is {now['terms']['mine']!r}",
        "sam.prompts was ['mask', 'box', 'points', 'negative_points'], is ['box']",
    ]
    assert changes(was, was) == []
    assert changes({"a": 1, "b": {"c": 2}}, {"b": None}) == ["a was 1, is not set", "b was {'c': 2}, is None"]


def test_methods_are_found_by_file_name():
    assert {"mean_teacher", "fixmatch"} <= set(list_methods())
    assert not any(name.startswith("_") for name in list_methods())


@pytest.mark.parametrize(("iterations", "length"), [(None, 75), (10, 10)], ids=str)
def test_a_delayed_term_begins_its_schedule_when_the_delay_is_over(iterations, length):
    late = TermConfig(weight=2.0, schedule="linear_rampdown", iterations=iterations, delay=25)
    plain = TermConfig(weight=2.0, schedule="linear_rampdown", iterations=length)
    assert [late.at(iteration, 100) for iteration in range(25)] == [0.0] * 25
    assert [late.at(iteration + 25, 100) for iteration in range(75)] == [plain.at(i, 100) for i in range(75)]


def test_a_term_of_every_third_iteration_has_its_weight_there_and_none_between():
    rare = TermConfig(weight=2.0, schedule="linear_rampdown", delay=1, every=3)
    full = TermConfig(weight=2.0, schedule="linear_rampdown", delay=1)
    counts = [1, 4, 7]
    assert [rare.at(i, 10) for i in range(10)] == [full.at(i, 10) if i in counts else 0.0 for i in range(10)]


@pytest.mark.parametrize(
    "term, key",
    [
        ({"delay": 20}, "delay is 20"),
        ({"every": 20, "schedule": "linear_rampup"}, "every is 20"),
        ({"delay": 10, "every": 15, "schedule": "linear_rampup"}, "every is 15"),
        ({"every": 20, "schedule": "constant"}, None),
        ({"delay": 19, "schedule": "sigmoid_rise_and_fall"}, None),
        ({"delay": 1, "every": 2, "schedule": "constant"}, None),
    ],
)
def test_a_term_that_never_counts_is_refused(term, key):
    config = SemiSAMConfig().with_section({"terms": {"sam": {"weight": 1.0, **term}}})
    if key is None:
        config.refuse_late_terms(20)
        return
    with pytest.raises(ValueError, match=f"terms.sam.{key}, but the training has 20 iterations"):
        config.refuse_late_terms(20)


def test_a_schedule_that_is_0_all_the_time_is_named():
    config = SemiSAMConfig().with_section({"terms": {"sam": {"weight": 1.0, "schedule": "linear_rampup"}}})
    with pytest.raises(ValueError, match="terms.sam.schedule is linear_rampup, .* choose another one"):
        config.refuse_late_terms(1)


def test_another_method_starts_from_its_own_defaults():
    base = SemiSAMConfig().with_section({"method": "fixmatch", "method_args": {"threshold": 0.9, "cutmix": 0.5}})
    assert base.with_section({"method": "mean_teacher"}).method_args == {}
    assert base.with_section({"method": "mean_teacher", "method_args": {"paste": 1}}).method_args == {"paste": 1}
    assert base.with_section({"method": "fixmatch"}).method_args == {"threshold": 0.9, "cutmix": 0.5}


@pytest.mark.parametrize("key", ["semi_sam", "SemiSAM", "semisam "])
def test_a_section_with_a_misspelt_name_is_refused(key):
    with pytest.raises(ValueError, match=f"a section is named '{key}', which is not read; .* \\(3d of plans.json\\)"):
        SemiSAMConfig().of_configuration({"patch_size": [1], key: {"num_epochs": 3}}, "3d of plans.json")
    assert SemiSAMConfig().of_configuration({"semisam": {"num_epochs": 3}}, "").num_epochs == 3


def test_an_integer_that_is_too_large_for_a_float_is_refused():
    with pytest.raises(ValueError, match="terms.sam.weight is 1000.* must be a number of at least 0"):
        SemiSAMConfig().with_section({"terms": {"sam": {"weight": 10**400}}})
    with pytest.raises(ValueError, match="center_sigma is 1000.*at least 0.05, or null"):
        build_method("mean_teacher", {"center_sigma": 10**400}, OutputSpace(2))


@pytest.mark.parametrize(
    ("section", "weight"),
    [
        ({}, 1.0),
        ({"sam": None}, 2.0),
        ({"terms": {"sam": {"weight": 0}}}, 2.0),
        ({"sam": None, "terms": {"consistency": {"schedule": "sigmoid_rampup"}}}, 2.0),
        ({"sam": None, "terms": {"consistency": {"weight": 1.0}}}, 1.0),
        ({"sam": None, "terms": {"consistency": {"weight": 0}}}, 0),
        ({"sam": {"planes": 4}}, 1.0),
    ],
)
def test_without_sam_the_teacher_has_more_weight_unless_told(section, weight):
    given = section.get("terms", {}).get("consistency", {})
    for config in (SemiSAMConfig().with_section(section), SemiSAMConfig(sam=None).with_section({"sam": {}} | section)):
        term = config.resolved_terms()["consistency"]
        assert (term.weight, term.schedule) == (weight, given.get("schedule", "constant"))
        assert config.as_dict()["terms"]["consistency"]["weight"] == weight
        assert SemiSAMConfig().with_section(config.as_dict()).as_dict() == config.as_dict()


def test_with_sam_that_is_trusted_with_no_class_the_teacher_is_alone():
    config = SemiSAMConfig()
    assert config.weights(0, 9) == {"consistency": 1.0, "sam": 2.0}
    assert config.weights(0, 9, with_sam=False) == {"consistency": 2.0}


@pytest.mark.parametrize("weight", [0.05, 1.0])
def test_a_preset_with_a_weight_of_its_own_keeps_it_without_sam(weight):
    preset = SemiSAMConfig().with_section({"terms": {"consistency": {"weight": weight}}})
    assert preset.with_section({"sam": None}).resolved_terms()["consistency"].weight == weight
    assert preset.with_section({}, uses_sam=False).weights(0, 9) == {"consistency": weight}


def test_a_method_of_other_terms_needs_no_term_called_consistency():
    config = SemiSAMConfig(terms={"mine": TermConfig(weight=0.3), "sam": TermConfig(weight=1.0)})
    assert config.with_section({}).active_terms() == ("mine", "sam")
    assert config.with_section({"sam": None}).weights(0, 9) == {"mine": 0.3}


@pytest.mark.parametrize("name", ["sam", "mine"])
def test_no_other_weight_may_be_left_open(name):
    with pytest.raises(ValueError, match=rf"terms\.{name}\.weight is None; it must be a number"):
        SemiSAMConfig().with_section({"terms": {name: {"weight": None}}})


def test_a_trainer_without_sam_has_none_whatever_the_section_says():
    assert SemiSAMConfig().with_section({"sam": {"planes": 4}}, uses_sam=False).sam is None
    with pytest.raises(ValueError, match="sam.planes"):
        SemiSAMConfig().with_section({"sam": {"planes": 0}}, uses_sam=False)


def test_method_args_are_merged_while_the_method_stays_the_same():
    base = SemiSAMConfig(method_args={"cutmix": 0.5, "view": "nnunet"})
    assert base.with_section({"method_args": {"view": "device"}}).method_args == {"cutmix": 0.5, "view": "device"}
    assert base.with_section({"method": "mean_teacher", "method_args": {}}).method_args == base.method_args
    assert base.with_section({"method": "fixmatch", "method_args": {}}).method_args == {}
