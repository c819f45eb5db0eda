import json

import pytest

from nnunet_semisam.config import SamConfig, SemiSAMConfig, TermConfig
from nnunet_semisam.methods import build_method, find_method, list_methods
from nnunet_semisam.ops.outputs import OutputSpace


def test_defaults_ramp_consistency_up_and_sam_down():
    config = SemiSAMConfig()
    first, last = config.weights(0, 1000), config.weights(999, 1000)
    assert first["sam"] > last["sam"]
    assert first["consistency"] < last["consistency"]
    assert config.weights(1000, 1000)["sam"] == 0


def test_section_is_laid_over_the_preset_key_by_key():
    config = SemiSAMConfig(num_epochs=5).with_section(
        {"ema_decay": 0.9, "terms": {"sam": {"weight": 0.5}}, "sam": {"planes": 3, "prompts": ["box"]}}
    )
    assert (config.num_epochs, config.ema_decay) == (5, 0.9)
    assert config.terms["sam"] == TermConfig(weight=0.5, schedule="sigmoid_rampdown")
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
    assert SemiSAMConfig().with_section(json.loads(json.dumps(config.as_dict()))) == config


@pytest.mark.parametrize(
    "section, named",
    [
        ({"metod": "mean_teacher"}, ["metod", "method"]),
        ({"terms": {"sam": {"wieght": 1}}}, ["wieght", "weight"]),
        ({"terms": {"sam": {"schedule": "ramp"}}}, ["ramp", "sigmoid_rampdown"]),
        ({"terms": {"other": {"schedule": "constant"}}}, ["weight"]),
        ({"terms": {"sam": 3}}, ["terms.sam", "dictionary"]),
        ({"sam": {"plane": 2}}, ["plane", "planes"]),
        ({"sam": {"prompts": ["clicks"]}}, ["clicks", "points"]),
        ({"sam": {"prompts": []}}, ["prompts"]),
        ({"sam": {"planes": 0}}, ["planes", "0"]),
        ({"sam": {"axis": 4}}, ["axis", "alternate"]),
        ({"ema_decay": 1.0}, ["ema_decay", "1.0"]),
        ({"num_epochs": 0}, ["num_epochs"]),
        ({"unlabeled_batch_size": "two"}, ["unlabeled_batch_size", "two"]),
    ],
)
def test_bad_values_are_named_with_what_is_known(section, named):
    with pytest.raises(ValueError) as error:
        SemiSAMConfig().with_section(section)
    assert all(word in str(error.value) for word in named)


def test_sam_on_top_of_a_preset_without_sam():
    config = SemiSAMConfig(sam=None).with_section({"sam": {"planes": 2}})
    assert config.sam == SamConfig(planes=2)


def test_strangers_are_told_what_exists():
    with pytest.raises(ValueError, match="mean_teacher"):
        find_method("meanteacher")
    with pytest.raises(ValueError, match="threshold"):
        build_method("fixmatch", {"treshold": 0.9}, OutputSpace(2))
    with pytest.raises(ValueError, match="consistency"):
        SemiSAMConfig().with_section({"terms": {"consistancy": {"weight": 1}}}).require_terms(("consistency", "sam"))


def test_methods_are_found_by_file_name():
    assert {"mean_teacher", "fixmatch"} <= set(list_methods())
    assert not any(name.startswith("_") for name in list_methods())
