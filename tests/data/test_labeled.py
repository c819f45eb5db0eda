"""Labeled cases in memory: heads as the network has them, ignored voxels marked, no case too many."""

import json
import weakref

import numpy as np
import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_semisam.data.labeled import LabeledCases, StrangeLabel


def write_case(folder, name, label, spoiled=False):
    image = np.random.default_rng(0).normal(size=(1, *label.shape)).astype(np.float32)
    image[0, 0, 0, 0] = np.nan if spoiled else 0
    np.savez(folder / f"{name}.npz", data=image, seg=label[None].astype(np.int8))
    (folder / f"{name}.pkl").write_bytes(b"\x80\x04}\x94.")
    return image


@pytest.fixture
def label():
    label = np.zeros((4, 5, 6), dtype=np.int8)
    label[0], label[1, 0], label[1, 1], label[3, 3] = 1, 2, 3, -1
    return label


def load(folder, names, labels, regions_order=None):
    return LabeledCases(folder, names, LabelManager(json.loads(json.dumps(labels)), regions_order))


def test_labels_become_heads(tmp_path, label):
    image = write_case(tmp_path, "a", label)
    write_case(tmp_path, "b", label)
    (case,) = load(tmp_path, ["a"], {"background": 0, "x": 1, "y": 2, "z": 3})
    assert case.name == "a" and torch.equal(case.image, torch.from_numpy(image))
    background = np.isin(label, [0, -1])
    expected = np.stack([background, label == 1, label == 2, label == 3])
    assert np.array_equal(case.truth.numpy(), expected)
    assert case.valid.all()


def test_ignored_voxels_are_nobodys(tmp_path, label):
    write_case(tmp_path, "a", label)
    (case,) = load(tmp_path, ["a"], {"background": 0, "x": 1, "y": 2, "ignore": 3})
    assert np.array_equal(case.valid.numpy(), label != 3)
    assert len(case.truth) == 3 and not case.truth[:, ~case.valid].any()


def test_regions_overlap(tmp_path, label):
    write_case(tmp_path, "a", label)
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "edge": 3}
    (case,) = load(tmp_path, ["a"], labels, [1, 2, 3])
    assert np.array_equal(case.truth.numpy(), np.stack([label > 0, label > 1, label == 3]))


def test_a_value_that_no_class_has_is_named(tmp_path, label):
    write_case(tmp_path, "a", label)
    cases = load(tmp_path, ["a"], {"background": 0, "x": 1, "y": 2})
    with pytest.raises(StrangeLabel, match="the case a holds 3, but dataset.json names 0, 1, 2 only"):
        list(cases)
    (problem,) = cases.label_problems()
    assert "labelsTr/a" in problem
    assert load(tmp_path, ["a"], {"background": 0, "x": 1, "y": 2, "z": 3}).label_problems() == []
    in_no_region = load(tmp_path, ["a"], {"background": 0, "whole": [1, 2], "x": 1}, [2, 1])
    assert in_no_region.label_problems() == [] and len(list(in_no_region)) == 1  # nnU-Net: background


def test_a_case_that_was_not_preprocessed_is_named(tmp_path, label):
    write_case(tmp_path, "a", label)
    with pytest.raises(ValueError, match="no preprocessed case b in .*nnUNetv2_preprocess"):
        load(tmp_path, ["a", "b"], {"background": 0, "x": 1, "y": 2, "z": 3})


def test_cases_are_read_when_they_are_asked_for_and_not_held(tmp_path, label, monkeypatch):
    for name in "abc":
        write_case(tmp_path, name, label)
    cases = load(tmp_path, list("abc"), {"background": 0, "x": 1, "y": 2, "z": 3})
    dataset, read = cases._dataset, []
    original = dataset.load_case
    monkeypatch.setattr(dataset, "load_case", lambda name: read.append(name) or original(name))
    assert len(cases) == 3 and cases.names == ["a", "b", "c"] and read == []
    assert cases[-1].name == "c" and read == ["c"]
    kept = weakref.ref(cases[0])
    assert kept() is None
    assert cases[:-1].names == ["a", "b"] and cases.only(lambda case: case.name != "b").names == ["a", "c"]
    assert [case.name for case in cases] == ["a", "b", "c"]


def test_a_labeled_image_that_is_not_finite_is_named(tmp_path, label):
    write_case(tmp_path, "a", label, spoiled=True)
    with pytest.raises(ValueError, match="labeled case a holds values that are not finite.*imagesTr"):
        load(tmp_path, ["a"], {"background": 0, "x": 1, "y": 2, "z": 3})[0]
