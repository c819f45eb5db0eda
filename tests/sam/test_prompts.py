"""Prompts lie where they should, and only where the teacher gives reason to ask."""

from __future__ import annotations

import math

import pytest
import torch

from nnunet_semisam.config import SamConfig
from nnunet_semisam.ops.outputs import OutputSpace
from nnunet_semisam.sam.prompts import prompts_from_prob, select


def certain(labels: torch.Tensor, heads: int, p: float = 0.96) -> torch.Tensor:
    """Probabilities (1, K, *S) that give `p` to the label of each voxel."""
    hot = torch.nn.functional.one_hot(labels, heads).movedim(-1, 0).float()
    return (hot * p + (1 - hot) * (1 - p) / (heads - 1))[None]


def c_shape(shape: tuple[int, ...]) -> torch.Tensor:
    """A bent tube whose centre of mass lies outside it."""
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(48.0), indexing="ij")
    radius, right = ((y - 20) ** 2 + (x - 22) ** 2).sqrt(), x - 22 > 6
    plane = ((radius > 10) & (radius < 15) & ~right).long()
    return plane if len(shape) == 2 else plane[None].repeat(12, 1, 1)


def prompts_of(prob: torch.Tensor, regions: bool = False, **settings):
    return prompts_from_prob(prob, outputs=OutputSpace(prob.shape[1], regions), config=SamConfig(**settings))


@pytest.mark.parametrize("shape", [(40, 48), (12, 40, 48)])
def test_clicks_fall_inside_a_curved_object_and_are_spread(shape):
    labels = c_shape(shape)
    found = prompts_of(certain(labels, 2), prompts=["points"], num_points=3)
    places = found.point_coords[0].long()
    centre = labels.nonzero().float().mean(0).round().long()
    assert labels[tuple(centre)] == 0  # the centre of mass would have been wrong
    assert all(labels[tuple(place)] == 1 for place in places)
    assert found.point_labels.tolist() == [[1, 1, 1]]
    assert torch.pdist(places.float()).min() > 8


def test_the_first_click_is_deep_and_where_the_teacher_is_sure():
    labels = torch.zeros(30, 40, dtype=torch.long)
    labels[5:14, 4:36] = 1
    prob = certain(labels, 2)
    prob[:, 1, :, 20:], prob[:, 0, :, 20:] = prob[:, 1, :, 20:] * 0.8, 1 - prob[:, 1, :, 20:] * 0.8
    y, x = prompts_of(prob, prompts=["points"]).point_coords[0, 0].tolist()
    assert y == 9 and 8 <= x < 20


@pytest.mark.parametrize("shape", [(40, 48), (12, 40, 48)])
def test_negative_clicks_lie_in_the_ring_where_the_teacher_is_sure(shape):
    labels = c_shape(shape)
    prob = certain(labels, 2)
    unsure = torch.zeros_like(labels, dtype=torch.bool)
    unsure[..., :20, :] = True
    prob[0, :, unsure & (labels == 0)] = torch.tensor([[0.8], [0.2]])
    found = prompts_of(prob, prompts=["points", "negative_points"], num_points=1, num_negative_points=2)
    assert found.point_labels.tolist() == [[1, 0, 0]]
    for place in found.point_coords[0, 1:].long():
        assert labels[tuple(place)] == 0 and prob[0, 1][tuple(place)] < 0.05
        steps = (labels.nonzero() - place).abs().amax(1).min()  # along the axis of the largest distance
        assert 3 <= steps <= 8


def test_negative_clicks_prefer_another_object():
    labels = torch.zeros(40, 40, dtype=torch.long)
    labels[15:25, 10:18], labels[15:25, 21:30] = 1, 2
    found = prompts_of(certain(labels, 3), prompts=["points", "negative_points"])
    assert [int(labels[tuple(place)]) for place in found.point_coords[:, 1].long()] == [2, 1]


def test_without_a_sure_place_there_is_no_negative_click():
    labels = c_shape((40, 48))
    prob = certain(labels, 2, p=0.9)
    assert prompts_of(prob, prompts=["points", "negative_points"]).point_labels.tolist() == [[1, -1]]


def test_boxes_are_half_open_contain_the_object_and_stay_in_the_patch():
    labels = torch.zeros(20, 30, 200, dtype=torch.long)
    labels[1:10, 12:19, 30:130] = 1
    box = prompts_of(certain(labels, 2), prompts=["box"]).boxes[0]
    assert box.tolist() == [[0, 10, 25], [12, 21, 135]]  # 2 voxels, or 5 % of a long side
    tight, loose = (prompts_of(certain(labels, 2), prompts=["box"], box_margin=m).boxes[0] for m in (0.0, 0.2))
    assert tight.tolist() == [[1, 12, 30], [10, 19, 130]] and loose.tolist() == [[0, 10, 10], [12, 21, 150]]


def test_mask_logits_are_natural_log_odds_within_seven():
    labels = c_shape((40, 48))
    prob = certain(labels, 2, p=0.9)
    prob[0, :, 0, 0] = torch.tensor([1.0, 0.0])
    logits = prompts_of(prob, prompts=["mask"]).mask_logits[0]
    assert logits[0, 0].item() == pytest.approx(-7, abs=1e-3)
    assert logits[labels == 1].unique().tolist() == pytest.approx([math.log(0.9 / 0.1)], abs=1e-4)


@pytest.mark.parametrize("size", [0, 4])
def test_an_empty_or_tiny_object_gives_no_item(size):
    labels = torch.zeros(30, 30, dtype=torch.long)
    labels[:size, :size] = 1
    found = prompts_of(certain(labels, 2))
    assert len(found) == 0
    assert found.mask_logits.shape == (0, 30, 30) and found.boxes.shape == (0, 2, 2)
    assert found.point_coords.shape == (0, 2, 2)


def test_items_are_ordered_by_image_and_head_and_skip_the_background():
    one, two = torch.zeros(2, 30, 40, dtype=torch.long)
    one[2:10, 2:10], one[15:25, 20:35], two[5:20, 5:20] = 1, 2, 2
    found = prompts_of(torch.cat([certain(one, 3), certain(two, 3)]))
    assert list(zip(found.image.tolist(), found.head.tolist(), strict=True)) == [(0, 1), (0, 2), (1, 2)]


def test_regions_overlap_and_head_0_is_one_of_them():
    prob = torch.full((1, 2, 30, 30), 0.02)
    prob[0, 0, 5:25, 5:25], prob[0, 1, 10:20, 10:20] = 0.9, 0.7
    found = prompts_of(prob, regions=True, prompts=["box", "negative_points"])
    assert found.head.tolist() == [0, 1]
    assert found.boxes[:, 0].tolist() == [[3, 3], [8, 8]]
    inner = found.point_coords[1, 0].long()
    assert prob[0, 0][tuple(inner)] > 0.8  # outside the core, inside the whole


def test_negative_clicks_alone_find_no_object():
    with pytest.raises(ValueError, match="prompts is negative_points alone"):
        SamConfig(prompts=["negative_points"])


def test_kinds_not_asked_for_are_empty():
    found = prompts_of(certain(c_shape((40, 48)), 2), prompts=["box"])
    assert found.point_coords.shape == (1, 0, 2) and found.mask_logits is None


def test_an_object_smaller_than_its_clicks_gets_padding():
    labels = torch.zeros(20, 20, dtype=torch.long)
    labels[5, 5] = 1
    found = prompts_of(certain(labels, 2), prompts=["points"], num_points=3, min_voxels=1)
    assert found.point_labels.tolist() == [[1, -1, -1]]


@pytest.mark.parametrize("side", [60, 110])
def test_large_objects_are_clicked_inside_too(side):
    labels = torch.zeros(12, 120, 120, dtype=torch.long)
    far = slice(3 + side, 5 + side)
    labels[3:6, 5 : 5 + side, far] = labels[3:6, far, 5 : 5 + side] = 1  # two thin bars that meet in the far corner
    places = prompts_of(certain(labels, 2), prompts=["points"], num_points=2).point_coords[0].long()
    assert all(labels[tuple(place)] == 1 for place in places)


def test_prompts_are_deterministic_without_gradient_and_take_half_precision(kit):
    prob = kit.scene(3).prob.requires_grad_()
    state = torch.get_rng_state()
    first, second = prompts_of(prob), prompts_of(prob)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first.point_coords, second.point_coords) and not first.mask_logits.requires_grad
    half = prompts_of(prob.detach().half())
    assert half.mask_logits.dtype == torch.float32 and half.mask_logits.isfinite().all()


def test_select_takes_the_same_items_of_every_field(kit):
    prompts = kit.scene(2).prompts
    chosen = select(prompts, torch.tensor([2, 0]))
    assert torch.equal(chosen.head, prompts.head[[2, 0]]) and torch.equal(chosen.boxes, prompts.boxes[[2, 0]])
    assert torch.equal(chosen.mask_logits, prompts.mask_logits[[2, 0]]) and len(chosen) == 2


def test_every_component_has_prompts_of_its_own():
    labels = torch.zeros(20, 60, dtype=torch.long)
    labels[5:15, 4:20], labels[5:15, 40:50] = 1, 1
    found = prompts_of(certain(labels, 2), components=2, box_margin=0.0)
    assert found.boxes.tolist() == [[[5, 4], [15, 20]], [[5, 40], [15, 50]]] and found.head.tolist() == [1, 1]
    for item, (low, high) in enumerate([(4, 20), (40, 50)]):
        assert low <= found.point_coords[item, 0, 1] < high
        inside = found.mask_logits[item] > 0
        assert inside[5:15, low:high].all() and inside.sum() == 10 * (high - low)
        assert found.mask_logits[item].min() == pytest.approx(-7, abs=1e-3)  # the other piece is surely not this one
