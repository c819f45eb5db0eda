"""What is prompted: whole classes, or their largest connected pieces."""

from __future__ import annotations

import pytest
import torch

from nnunet_semisam.config import SamConfig
from nnunet_semisam.ops.outputs import OutputSpace
from nnunet_semisam.sam.objects import find_objects, tight_boxes


def probabilities(labels: torch.Tensor, heads: int = 3, p: float = 0.9) -> torch.Tensor:
    hot = torch.nn.functional.one_hot(labels, heads).movedim(-1, 1).float()
    return hot * p + (1 - hot) * (1 - p) / (heads - 1)


def pieces() -> torch.Tensor:
    """One image: class 1 in pieces of 100, 64, 36 and 4 voxels, class 2 in one piece."""
    labels = torch.zeros(1, 40, 56, dtype=torch.long)
    labels[0, 30:36, 2:8], labels[0, 2:10, 2:10], labels[0, 2:12, 20:30], labels[0, 0:2, 50:52] = 1, 1, 1, 1
    labels[0, 20:30, 30:50] = 2
    return labels


def objects_of(labels, prob=None, heads=(1, 2), **settings):
    prob = probabilities(labels) if prob is None else prob
    return find_objects(prob, OutputSpace(3).harden(prob) > 0, heads=heads, config=SamConfig(**settings))


@pytest.mark.parametrize("count, sizes", [(1, [100, 200]), (2, [100, 64, 200]), (9, [100, 64, 36, 200])])
def test_the_largest_components_come_first_and_small_ones_never(count, sizes):
    found = objects_of(pieces(), components=count)
    assert found.masks.flatten(1).sum(1).tolist() == sizes
    assert found.head.tolist() == [1] * (len(sizes) - 1) + [2] and found.image.tolist() == [0] * len(sizes)
    assert (pieces() == 1)[0][found.masks[0]].all()


@pytest.mark.parametrize("none", [None, 0])
def test_without_components_a_class_is_one_object(none):
    found = objects_of(pieces(), components=none)
    assert found.masks.flatten(1).sum(1).tolist() == [204, 200] and found.head.tolist() == [1, 2]


def test_probability_decides_which_component_is_larger():
    prob = probabilities(pieces())
    prob[:, :, 2:12, 20:30] = torch.tensor([0.3, 0.4, 0.3])[:, None, None]  # 100 voxels that weigh 40
    assert objects_of(None, prob, heads=(1,), components=1).masks.sum() == 64


def test_voxels_that_touch_at_a_corner_belong_together():
    labels = torch.zeros(1, 6, 12, 12, dtype=torch.long)
    labels[0, 0:3, 0:4, 0:4] = labels[0, 3:6, 4:8, 4:8] = 1
    assert objects_of(labels, components=2).masks.flatten(1).sum(1).tolist() == [96]
    labels = torch.zeros(1, 20, 20, dtype=torch.long)
    labels[0, 0:5, 0:5] = labels[0, 5:10, 5:10] = 1
    assert objects_of(labels, components=2).masks.flatten(1).sum(1).tolist() == [50]


def test_a_class_of_specks_is_no_object():
    labels = torch.zeros(1, 40, 40, dtype=torch.long)
    labels[0, ::4, ::4] = 1
    assert len(objects_of(labels, components=2).head) == 0
    assert len(objects_of(labels, components=None).head) == 1
    assert objects_of(labels, components=2).masks.shape == (0, 40, 40)


def test_only_the_heads_asked_for_are_objects():
    assert objects_of(pieces(), heads=(2,)).head.tolist() == [2]
    assert len(objects_of(pieces(), heads=()).head) == 0


def test_boxes_are_half_open():
    mask = torch.zeros(1, 20, 30, 200, dtype=torch.bool)
    mask[0, 1:10, 12:19, 30:130] = True
    assert tight_boxes(mask).tolist() == [[[1, 12, 30], [10, 19, 130]]]
