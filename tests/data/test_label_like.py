"""A label that was saved under the name of an image."""

from __future__ import annotations

import numpy as np

from nnunet_semisam.data.label_like import label_like_files

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
