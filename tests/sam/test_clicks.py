"""Clicks fall where they should, and go along when the image is turned."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_cdt, distance_transform_edt, gaussian_filter

from nnunet_semisam.config import SamConfig
from nnunet_semisam.ops.outputs import OutputSpace
from nnunet_semisam.sam.clicks import deepest, find_clicks
from nnunet_semisam.sam.prompts import prompts_from_prob

SHAPES = {2: (30, 44), 3: (18, 26, 34)}
SETTINGS = [
    {"points_from": "center", "components": None},
    {"points_from": "certain", "components": None},
    {"points_from": "center", "components": 3, "box_margin": 0.0},
    {"points_from": "certain", "components": 1, "box_margin": 0.3},
]


def rough(ndim: int, seed: int) -> torch.Tensor:
    """Probabilities (1, 3, *S) of two classes in several pieces, no two voxels alike."""
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randn(3, *SHAPES[ndim], generator=rng, dtype=torch.float64).numpy()
    smooth = torch.stack([torch.from_numpy(gaussian_filter(field, 2.5)) for field in noise])
    scores = 12 * smooth / smooth.std() / 2
    scores[0] += 4
    return scores.softmax(0)[None].float()


def prompts_of(prob, **settings):
    config = SamConfig(num_points=2, num_negative_points=2, min_voxels=8, **settings)
    return prompts_from_prob(prob, outputs=OutputSpace(prob.shape[1]), config=config)


def same(first, second) -> None:
    assert torch.equal(first.head, second.head) and len(first) >= 2
    assert torch.equal(first.point_labels, second.point_labels) and (first.point_labels == 0).any()
    used = first.point_labels >= 0
    assert torch.equal(first.point_coords[used], second.point_coords[used])
    assert torch.allclose(first.boxes, second.boxes, atol=1e-4)
    assert torch.allclose(first.mask_logits, second.mask_logits, atol=1e-4)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_flipped_teacher_gives_the_flipped_prompts(kit, settings, ndim):
    for axis, seed in itertools.product(range(ndim), range(2)):
        prob = rough(ndim, seed)
        same(kit.flip(prompts_of(prob, **settings), axis), prompts_of(prob.flip(axis + 2), **settings))


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_turned_teacher_gives_the_turned_prompts(kit, settings, ndim):
    for axis, seed in itertools.product(range(ndim), range(2)):
        prob, other = rough(ndim, seed), (axis + 1) % ndim
        turned = prompts_of(prob.transpose(axis + 2, other + 2), **settings)
        same(kit.transpose(prompts_of(prob, **settings), axis, other), turned)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("source", ["center", "certain"])
def test_clicks_hit_the_object_that_they_are_for(ndim, source):
    for seed in range(5):
        prob = rough(ndim, seed)
        found = prompts_of(prob, points_from=source)
        hard = prob.argmax(1)[0]
        for head, box, places, labels in zip(
            found.head, found.boxes, found.point_coords.long(), found.point_labels, strict=True
        ):
            for place, label in zip(places, labels, strict=True):
                own = prob[0, head][tuple(place)]
                if label == 1:
                    assert hard[tuple(place)] == head and (place >= box[0]).all() and (place < box[1]).all()
                elif label == 0:
                    assert hard[tuple(place)] != head and own < 0.05


def test_certain_points_lie_where_the_entropy_is_lowest_and_central_ones_deep_inside():
    prob = torch.full((1, 2, 40, 60), 0.0)
    prob[0, 1, 10:30, 10:50] = 0.9
    prob[0, 1, 12:16, 12:16] = 0.999  # near a corner
    prob[0, 0] = 1 - prob[0, 1]
    certain = prompts_of(prob, points_from="certain", prompts=["points"]).point_coords[0].long()
    central = prompts_of(prob, points_from="center", prompts=["points"]).point_coords[0].long()
    assert all(prob[0, 1][tuple(place)] > 0.99 for place in certain)
    assert all(prob[0, 1][tuple(place)] < 0.99 for place in central[:1])
    assert (certain[0] - certain[1]).abs().max() >= 3  # spread apart


def test_where_the_teacher_is_sure_everywhere_certain_points_are_deep():
    prob = torch.zeros(1, 2, 30, 31)
    prob[0, 1, 5:26, 5:26] = 1 - 1e-6 * torch.rand(21, 21, generator=torch.Generator().manual_seed(0))
    prob[0, 0] = 1 - prob[0, 1]
    assert prompts_of(prob, points_from="certain", prompts=["points"]).point_coords[0, 0].tolist() == [15, 15]


def test_a_negative_click_takes_the_nearest_place_of_a_rival():
    prob = torch.zeros(1, 3, 30, 60)
    prob[0, 1, 8:22, 10:24] = prob[0, 2, 2:28, 28:50] = 0.97
    prob[0, 0] = 1 - prob[0, 1:].sum(0)
    found = prompts_of(prob, prompts=["points", "negative_points"])
    first, second = (coords[labels == 0][0].tolist() for coords, labels in zip(*found_points(found), strict=True))
    assert first[1] == 28  # the first column of the second object, 5 voxels from the first one
    assert second[1] == 23 and 8 <= second[0] < 22


def found_points(found):
    return found.point_coords, found.point_labels


@pytest.mark.parametrize("shape", [(40, 9), (8, 20, 31), (6, 100, 100)])
def test_the_deepest_voxel_is_the_maximum_of_the_distance_transform(shape):
    rng = torch.Generator().manual_seed(1)
    mask = torch.from_numpy(gaussian_filter(torch.randn(shape, generator=rng).numpy(), 2.0)) > 0.03
    padded = torch.nn.functional.pad(mask, [1, 1] * mask.ndim).numpy()
    depth = torch.from_numpy(distance_transform_edt(padded))[(slice(1, -1),) * mask.ndim]
    assert depth[deepest(mask)] == depth.max()
    assert deepest(torch.zeros(shape, dtype=torch.bool)) is None


def test_large_objects_are_clicked_deep_inside_too():
    mask = torch.zeros(70, 90, 100, dtype=torch.bool)
    mask[2:69, 4:86, 4:96] = True
    found = torch.tensor(deepest(mask)).float()
    assert (found - torch.tensor([35.0, 45, 50])).abs()[0] <= 1  # 34 planes deep, wherever in the middle
    assert (found[1:] >= 37).all() and found[1] <= 52 and found[2] <= 62


def large():
    """A bent object of 80 x 90 x 100 voxels, one of whose arms touches a rival, and its box."""
    prob = torch.full((3, 100, 110, 120), 0.01)
    prob[1, 10:90, 10:43, 10:110] = prob[1, 10:90, 10:100, 10:30] = 0.99
    prob[2, 20:80, 43:90, 40:100] = 0.95
    prob[0] = (1 - prob[1:].sum(0)).clamp(min=0)
    return prob, [[10, 10, 10], [90, 100, 110]]


@pytest.mark.parametrize("source", ["center", "certain"])
def test_clicks_of_large_objects_lie_where_those_of_small_ones_do(source):
    prob, box = large()
    mask = prob[1] > 0.5
    clicks = find_clicks(mask, prob, box, head=1, rivals=[2], counts=(3, 3), points_from=source)
    assert [label for label, _ in clicks] == [1, 1, 1, 0, 0, 0]
    depth, away = distance_transform_edt(mask.numpy()), distance_transform_cdt(~mask.numpy(), "chessboard")
    assert all(mask[place] for label, place in clicks if label) and depth[clicks[0][1]] >= 0.8 * depth.max()
    assert all(3 <= away[place] <= 8 and prob[1][place] < 0.05 for label, place in clicks if not label)
    assert prob[2][clicks[3][1]] > 0.8  # at the rival first


def test_a_large_object_that_thinning_out_would_miss_is_clicked_all_the_same():
    prob = torch.zeros(2, 100, 100, 100)
    for corner in (1, 97):
        prob[1, corner, corner, corner] = 0.9
    clicks = find_clicks(
        prob[1] > 0.5, prob, [[1, 1, 1], [98, 98, 98]], head=1, rivals=[], counts=(1, 1), points_from="center"
    )
    assert clicks[0] in [(1, (1, 1, 1)), (1, (97, 97, 97))] and clicks[1][0] == 0


@pytest.mark.parametrize("corner", [(5, 30, 30), (4, 30, 30), (6, 31, 32)])
def test_of_thin_large_objects_in_flat_patches_the_short_axis_is_seen_whole(corner):
    """A plate one voxel thick and a small spur, which alone would be seen in every third plane."""
    prob = torch.full((2, 16, 320, 320), 0.001)
    z, y, x = corner
    prob[1, z, y : y + 240, x : x + 240] = prob[1, z : z + 5, y : y + 5, x : x + 5] = 0.99
    mask, box = prob[1] > 0.5, [list(corner), [z + 5, y + 240, x + 240]]
    clicks = find_clicks(mask, prob, box, head=1, rivals=[], counts=(3, 2))
    away = distance_transform_cdt(~mask.numpy(), "chessboard")
    inside = torch.tensor([place for label, place in clicks if label]).float()
    assert all(mask[place] for label, place in clicks if label) and torch.cdist(inside, inside).max() > 100
    assert all(3 <= away[place] <= 12 for label, place in clicks if not label) and len(clicks) == 5


def test_a_large_object_that_nearly_fills_the_patch_keeps_its_negative_click():
    prob = torch.zeros(2, 128, 128, 128)
    prob[1, 4:] = 0.99
    clicks = find_clicks(prob[1] > 0.5, prob, [[4, 0, 0], [128] * 3], head=1, rivals=[], counts=(1, 1))
    assert [label for label, _ in clicks] == [1, 0] and clicks[1][1][0] <= 1


def test_depth_is_counted_in_voxels_where_axes_are_thinned_out_differently():
    prob = torch.zeros(2, 16, 320, 320)
    prob[1, 2:14, 20:260, 20:35] = prob[1, 2:14, 20:25, 20:300] = 0.99  # 12 voxels high, 15 wide: 3 places
    clicks = find_clicks(prob[1] > 0.5, prob, [[2, 20, 20], [14, 260, 300]], head=1, rivals=[], counts=(1, 0))
    assert distance_transform_edt(np.pad(prob[1] > 0.5, 1))[tuple(v + 1 for v in clicks[0][1])] >= 5


def test_little_of_a_large_object_leaves_the_device(monkeypatch):
    prob, box = large()
    sizes, to_cpu = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: (sizes.append(tensor.numel()), to_cpu(tensor))[1])
    find_clicks(prob[1] > 0.5, prob, box, head=1, rivals=[2], counts=(1, 1))
    assert len(sizes) == 1 and sizes[0] <= 3 * 2**16
