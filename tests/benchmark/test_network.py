"""Smaller networks keep the beginning of the planned one."""

import pytest

from nnunet_semisam.benchmark.network import smaller

PLANNED = {
    "patch_size": [16, 64, 64],
    "batch_size": 2,
    "architecture": {
        "network_class_name": "PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 5,
            "features_per_stage": [32, 64, 128, 256, 320],
            "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
            "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
            "n_conv_per_stage": [2, 2, 2, 2, 2],
            "n_conv_per_stage_decoder": [2, 2, 2, 2],
            "conv_bias": True,
        },
    },
}


def test_strides_and_kernels_of_the_first_stages_stay():
    changed = smaller(PLANNED, {"features": [8, 16, 24], "patch_size": [6, 12, 12], "batch_size": 4})
    arguments = changed["architecture"]["arch_kwargs"]
    assert (arguments["n_stages"], arguments["features_per_stage"]) == (3, [8, 16, 24])
    assert arguments["strides"] == [[1, 1, 1], [1, 2, 2], [2, 2, 2]] and arguments["kernel_sizes"][0] == [1, 3, 3]
    assert (len(arguments["n_conv_per_stage"]), len(arguments["n_conv_per_stage_decoder"])) == (3, 2)
    assert changed["architecture"]["network_class_name"] == "PlainConvUNet" and arguments["conv_bias"] is True
    assert (changed["patch_size"], changed["batch_size"]) == ([6, 12, 12], 4)
    assert PLANNED["architecture"]["arch_kwargs"]["n_stages"] == 5


def test_nothing_wanted_changes_nothing():
    assert smaller(PLANNED, {}) == {}


@pytest.mark.parametrize(
    "wanted, message",
    [
        ({"features": [8, 16]}, "there must be 3 to 5"),
        ({"features": [8] * 6}, "there must be 3 to 5"),
        ({"patch_size": [16, 60, 64]}, r"divisible by \[8, 16, 16\]"),
        ({"patch_size": [64, 64]}, "has 3 axes"),
    ],
)
def test_what_does_not_fit_is_refused(wanted, message):
    with pytest.raises(ValueError, match=message):
        smaller(PLANNED, wanted)
