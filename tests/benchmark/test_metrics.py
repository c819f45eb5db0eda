"""Metrics of shapes whose answers are known."""

import math

import numpy as np
import pytest

pytest.importorskip("monai", reason="pip install 'nnunet_semisam[benchmark]'")

from nnunet_semisam.benchmark.metrics import measure


def box(low, high, shape=(24, 24, 24)):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


def test_equal_masks_are_perfect():
    mask = box((4, 4, 4), (12, 14, 16))
    assert measure(mask, mask, (3.0, 1.0, 1.0), 0.0) == {"dice": 1, "hd95": 0, "assd": 0, "nsd": 1, "empty": ""}


@pytest.mark.parametrize("axis, spacing, far", [(0, (3.0, 1.0, 1.0), 6.0), (2, (3.0, 1.0, 0.5), 1.0)])
def test_a_shifted_box_is_as_far_as_its_shift_in_millimetres(axis, spacing, far):
    low, high = [6, 6, 6], [16, 16, 16]
    truth = box(low, high)
    prediction = np.roll(truth, 2, axis)
    measured = measure(prediction, truth, spacing, 0.1)
    assert measured["dice"] == pytest.approx(0.8)  # 8 of 10 slices overlap
    assert measured["hd95"] == pytest.approx(far)  # 10 of 54 boundary voxels per slice lie that far away
    assert 0 < measured["assd"] < far


def test_one_voxel_beside_another():
    one, two = box((3, 3, 3), (4, 4, 4)), box((3, 3, 8), (4, 4, 9))
    measured = measure(one, two, (1.0, 1.0, 0.5), 1.0)
    assert (measured["dice"], measured["hd95"], measured["assd"], measured["nsd"]) == (0, 2.5, 2.5, 0)


def test_the_tolerance_is_in_the_unit_of_the_spacing():
    truth = box((4, 4, 4), (14, 14, 14))
    prediction = box((4, 4, 4), (15, 14, 14))  # one plane of 2 mm too many
    inside = [measure(prediction, truth, (2.0, 1.0, 1.0), tolerance)["nsd"] for tolerance in (0.5, 2.5)]
    assert inside[0] < 0.95 and inside[1] == 1


def test_a_single_plane_is_a_2d_image():
    truth, prediction = box((0, 4, 4), (1, 10, 10), (1, 20, 20)), box((0, 4, 5), (1, 10, 11), (1, 20, 20))
    plane = measure(prediction, truth, (999.0, 1.0, 2.0), 1.0)
    assert plane == measure(prediction[0], truth[0], (1.0, 2.0), 1.0)
    assert plane["dice"] == pytest.approx(5 / 6) and plane["hd95"] == 2.0


def test_empty_masks_count_as_the_rule_says():
    nothing, thing = box((0, 0, 0), (0, 0, 0)), box((4, 4, 4), (8, 8, 8))
    diagonal = math.hypot(24 * 3, 24, 24)
    for prediction, truth, word in ((nothing, thing, "missed"), (thing, nothing, "invented")):
        measured = measure(prediction, truth, (3.0, 1.0, 1.0), 1.0)
        assert (measured["dice"], measured["nsd"], measured["empty"]) == (0, 0, word)
        assert measured["hd95"] == measured["assd"] == pytest.approx(diagonal)
    absent = measure(nothing, nothing, (1.0, 1.0, 1.0), 1.0)
    assert absent == {"dice": 1, "hd95": 0, "assd": 0, "nsd": 1, "empty": "absent"}  # or inventing would cost nothing
