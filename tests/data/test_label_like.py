"""A label that was saved under the name of an image."""

from __future__ import annotations

import numpy as np

from nnunet_semisam.data.label_like import label_like_files, label_problems

SHAPE = (1, 20, 30, 40)  # more voxels than the sample


def image(values):
    """One channel in which the values take turns."""
    return np.resize(np.asarray(values, dtype=np.float32), SHAPE)


def test_few_integers_are_a_label_and_anything_else_is_an_image():
    for values in ([0, 1], [0], range(16), [-1, 2, 1000]):
        assert label_like_files(["x"], image(values)) == ["x"], values
    for values in ([0, 0.5], range(17), [0, np.nan]):
        assert label_like_files(["x"], image(values)) == [], values


def test_one_voxel_that_the_sample_misses_decides():
    almost = image([0])
    almost[0, 0, 0, 1] = 0.25
    assert label_like_files(["x"], almost) == []


def test_the_channel_is_named_and_a_colour_image_is_one_file():
    scan = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    assert label_like_files(["a", "b"], np.concatenate([scan, image([0, 1])])) == ["b"]
    assert label_like_files(["rgb"], np.concatenate([image([0, 1])] * 3)) == ["rgb"]
    assert label_like_files(["rgb"], np.concatenate([scan, image([0, 1]), image([0])])) == []


DATASET = {"labels": {"background": 0, "whole": [1, 3], "core": 3, "ignore": 4}}


def plans(*seen):
    names = ("min", "median", "max")
    return {"foreground_intensity_properties_per_channel": {"0": dict(zip(names, seen, strict=True)) | {"mean": 0.3}}}


def test_the_labels_of_the_data_set_are_refused_and_other_images_are_not():
    scan = plans(0.0, 5.0, 9.0)
    for values in ([0, 1], [0, 3, 4], [1, 3]):
        (problem,) = label_problems(["dir/x_0000.nii.gz"], image(values), DATASET, scan)
        assert problem.startswith("dir/x_0000.nii.gz: holds nothing but ") and "remove it" in problem
    for values in ([0, 2], [0, 1.5], [0, 1, 5], [0, np.nan], [1]):  # what is constant has a sentence of its own
        assert label_problems(["x"], image(values), DATASET, scan) == [], values


def test_one_other_voxel_or_channel_makes_it_an_image():
    almost = image([0, 1])
    almost[0, 0, 0, 1] = 2
    scan = plans(0.0, 5.0, 9.0)
    assert label_problems(["x"], almost, DATASET, scan) == []
    assert label_problems(["x"], np.concatenate([image([0, 1]), image([7, 8])]), DATASET, scan) == []
    assert label_problems(["x"], np.concatenate([image([0, 1]), image([0, 3])]), DATASET, scan) != []


def test_many_values_or_none_are_no_label():
    many = {"labels": {"background": 0, **{str(number): number for number in range(1, 40)}}}
    assert label_problems(["x"], image(range(16)), many, plans(0.0, 50.0, 90.0)) != []
    assert label_problems(["x"], image(range(17)), many, plans(0.0, 50.0, 90.0)) == []
    assert label_problems(["x"], np.zeros((1, 0, 4, 4)), many, plans(0.0, 50.0, 90.0)) == []


def test_images_of_a_data_set_whose_labeled_images_are_masks_are_kept():
    assert label_problems(["x"], image([0, 1]), DATASET, plans(0.0, 1.0, 1.0)) == []
