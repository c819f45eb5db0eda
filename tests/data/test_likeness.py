"""Unlabeled images unlike the labeled ones: told by the check, and only then."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from toy_dataset import toy  # noqa: F401 (a fixture)

from nnunet_semisam.cli import check
from nnunet_semisam.data.likeness import starts_at_zero, unlike_labeled


@pytest.fixture
def files(toy):  # noqa: F811
    """Makes image files: name, spacing, direction."""

    def make(case, spacing=1.0, direction=(1, 0, 0, 0, 1, 0, 0, 0, 1), folder="imagesUn"):
        file = toy.image(case, folder, spacing=spacing)
        image = sitk.ReadImage(str(file))
        image.SetDirection(direction)
        sitk.WriteImage(image, str(file))
        return {case: [str(file)]}

    return make


RAI = (1, 0, 0, 0, 1, 0, 0, 0, -1)
A_LITTLE = (0.99, 0.14106735979665885, 0, -0.14106735979665885, 0.99, 0, 0, 0, 1)


def test_images_that_are_turned_otherwise_are_named(files):
    labeled = files("a", folder="imagesTr")
    (text,) = unlike_labeled(files("x") | files("y", direction=RAI), labeled, "SimpleITKIO")
    assert text.startswith("'y' is turned otherwise (LPI) than the labeled images (LPS)")
    assert unlike_labeled(files("x", direction=A_LITTLE), labeled, "SimpleITKIO") == []
    assert unlike_labeled(files("y", direction=RAI), labeled, "SimpleITKIOWithReorient") == []
    assert unlike_labeled(files("y", direction=RAI), labeled | files("b", direction=RAI), "SimpleITKIO") == []


@pytest.mark.parametrize("spacing, told", [(4.9, 0), (5.1, 1), (0.21, 0), (0.19, 1), (0.001, 1)])
def test_images_of_another_scale_are_named(files, spacing, told):
    labeled = files("a", folder="imagesTr")
    texts = unlike_labeled(files("x", spacing=spacing), labeled, "SimpleITKIO")
    assert len(texts) == told and all("'x' is of a spacing" in text and f"{spacing:g}" in text for text in texts)


def test_what_has_no_header_says_nothing(tmp_path):
    (tmp_path / "x_0000.nii.gz").write_bytes(b"no image")
    broken = {"x": [str(tmp_path / "x_0000.nii.gz")]}
    assert unlike_labeled({"x": ["x_0000.png"]}, {"a": ["a_0000.png"]}, "NaturalImage2DIO") == []
    assert unlike_labeled(broken, broken, "SimpleITKIO") == []


def test_ct_values_with_an_offset_are_known_by_their_lowest():
    plans = {"foreground_intensity_properties_per_channel": {"0": {"percentile_00_5": -17.0}}}
    ct, mr = {"channel_names": {"0": "CT"}}, {"channel_names": {"0": "T1"}}
    whole, offset = np.full((1, 2, 2, 2), 40.0), np.full((1, 2, 2, 2), 1064.0)
    whole[0, 0, 0, 0], offset[0, 0, 0, 0] = -1000, 24
    assert starts_at_zero(offset, plans, ct) and not starts_at_zero(whole, plans, ct)
    assert not starts_at_zero(offset, plans, mr)
    bone = {"foreground_intensity_properties_per_channel": {"0": {"percentile_00_5": 120.0}}}
    assert not starts_at_zero(offset, bone, ct) and not starts_at_zero(offset, {}, ct)


def test_the_check_warns(toy, files, capsys):  # noqa: F811
    for case in "abc":
        toy.preprocessed_case(case), files(case, folder="imagesTr")
    toy.splits({"train": ["a", "b"], "val": ["c"]})
    files("x", direction=RAI), files("y", spacing=6)
    (toy.raw / "imagesTr" / "a_of_another_name.nii.gz").touch()
    for folder in (toy.raw, toy.preprocessed):
        content = json.loads((folder / "dataset.json").read_text())
        toy.write(folder / "dataset.json", content | {"channel_names": {"0": "CT"}})
    plans = json.loads((toy.preprocessed / "nnUNetPlans.json").read_text())
    plans["foreground_intensity_properties_per_channel"]["0"]["percentile_00_5"] = -10
    toy.write(toy.preprocessed / "nnUNetPlans.json", plans)
    assert check.main(["-d", "901", "-c", "3d_fullres"]) == 0
    told = capsys.readouterr().out
    assert "'x' is turned otherwise (LPI)" in told and "'y' is of a spacing" in told
    assert "'x_0000.nii.gz', 'y_0000.nii.gz' are without any negative value" in told


def test_channels_in_the_fourth_axis_and_readers_that_reorient(tmp_path):
    def volume(name, spacing, flip=1):
        image = nibabel.Nifti1Image(np.zeros((4, 5, 6, 2), np.float32), np.diag([*spacing[:2], flip * spacing[2], 1]))
        nibabel.save(image, tmp_path / name)
        return {name: [str(tmp_path / name)]}

    labeled = volume("a.nii.gz", (0.5, 0.5, 5))
    (text,) = unlike_labeled(volume("x.nii.gz", (0.5, 0.5, 5), flip=-1), labeled, "SimpleITKIO")
    assert "turned otherwise" in text
    across = volume("y.nii.gz", (5, 0.5, 0.5))
    (text,) = unlike_labeled(across, labeled, "SimpleITKIO")
    assert "of a spacing" in text
    assert unlike_labeled(across, labeled, "SimpleITKIOWithReorient") == []
