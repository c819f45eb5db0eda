"""Windows of a volumetric generalist: places go there and come back, on anisotropic patches without equal sides."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nnunet_semisam.sam.volume import VolumeSpace, object_boxes, whole_boxes
from nnunet_semisam.types import Prompts

SPACE = VolumeSpace(spacing=(3.0, 1.0, 1.2), axes=(2, 1, 0), voxel=1.5, side=32)


def prompts(**more) -> Prompts:
    index = torch.zeros(2, dtype=torch.int64)
    coords = torch.tensor([[[4.0, 10.0, 20.0], [1.0, 2.0, 3.0]], [[8.0, 30.0, 6.0], [9.0, 31.0, 8.0]]])
    return Prompts(index, index + 1, coords, torch.tensor([[1, 0], [1, 1]]), **more)


def test_axes_turn_and_turn_back():
    volume = torch.rand(2, 1, 4, 5, 6)
    space = replace(SPACE, axes=(2, 0, 1))
    assert space.turned(volume).shape == (2, 1, 6, 4, 5)
    assert torch.equal(space.turned_back(space.turned(volume)), volume)


def test_prompts_turn_with_the_volume():
    boxes = torch.tensor([[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]] * 2)
    masks = torch.rand(2, 12, 40, 30)
    turned = SPACE.turned_prompts(prompts(boxes=boxes, mask_logits=masks))
    assert turned.point_coords[0, 0].tolist() == [20, 10, 4] and turned.boxes[0, 1].tolist() == [5, 4, 3]
    assert turned.mask_logits[0, 20, 10, 4] == masks[0, 4, 10, 20]


def test_windows_have_the_voxels_and_the_side_of_the_generalist_and_the_box_in_the_middle():
    box = torch.tensor([[[10.0, 20.0, 4.0], [14.0, 24.0, 6.0]]])  # turned: x, y, z
    frame = SPACE.windows(box)
    assert torch.allclose(frame.size, torch.tensor([[48 / 1.2, 48.0, 16.0]]))
    middle = torch.full((1, 1, 3), 15.5)
    assert torch.allclose(frame.to_patch(middle), torch.tensor([[[11.5, 21.5, 4.5]]]))
    step = frame.to_patch(middle + 1) - frame.to_patch(middle)
    assert torch.allclose(step * torch.tensor([1.2, 1.0, 3.0]), torch.full((1, 1, 3), 1.5))


def test_what_does_not_fit_is_shown_with_larger_voxels_of_equal_sides():
    frame = SPACE.windows(torch.tensor([[[0.0, 0.0, 0.0], [10.0, 96.0, 10.0]]]))  # 96 mm along y, windows of 48 mm
    assert torch.allclose(frame.size * torch.tensor([1.2, 1.0, 3.0]), torch.full((1, 3), 96.0))
    corners = frame.to_grid(torch.tensor([[[0.0, -0.5, 0.0], [9.0, 95.5, 9.0]]]))
    assert torch.allclose(corners[0, :, 1], torch.tensor([-0.5, 31.5]), atol=1e-4)


def test_clicks_come_back():
    turned = SPACE.turned_prompts(prompts())
    frame = SPACE.windows(object_boxes(turned, (30, 40, 12)))
    back = frame.to_patch(frame.to_grid(turned.point_coords))
    assert torch.allclose(back, turned.point_coords, atol=1e-4)


def test_an_object_is_where_its_box_is_or_its_mask_or_its_inner_clicks_or_anywhere():
    shape = (12, 40, 30)
    box = torch.tensor([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]] * 2)
    masks = torch.full((2, *shape), -5.0)
    masks[0, 2:5, 10:20, 7:9] = 5.0
    clicked = torch.tensor([[[4.5, 10.5, 20.5]] * 2, [[8.5, 30.5, 6.5], [9.5, 31.5, 8.5]]])
    assert torch.equal(object_boxes(prompts(boxes=box, mask_logits=masks), shape), box)
    masked = object_boxes(prompts(mask_logits=masks), shape)
    assert masked[0].tolist() == [[2, 10, 7], [5, 20, 9]] and torch.equal(masked[1], clicked[1])  # an empty mask
    assert torch.equal(object_boxes(prompts(), shape), clicked)
    nowhere = replace(prompts(), point_labels=torch.tensor([[-1, 0], [1, -1]]))
    assert torch.equal(object_boxes(nowhere, shape)[0], whole_boxes(1, shape, torch.device("cpu"))[0])
    none = replace(prompts(), point_coords=torch.zeros(2, 0, 3), point_labels=torch.zeros(2, 0, dtype=torch.int64))
    assert torch.equal(object_boxes(none, shape), whole_boxes(2, shape, torch.device("cpu")))


@pytest.mark.parametrize("spacing", [(3.0, 1.0, 1.0), (1.5, 1.5, 1.5), (0.5, 2.0, 1.0)])
def test_masks_come_back_within_half_a_voxel(spacing, kit):
    space, shape = replace(SPACE, spacing=spacing, side=64), (20, 44, 32)
    place = torch.tensor([8.0, 25.0, 14.0])
    away = ((kit.voxels(shape) - place) * torch.tensor(spacing)).square().sum(-1).sqrt()
    masks = 7 - away[None, None] * 7 / (min(s * n for s, n in zip(spacing, shape, strict=True)) * 0.3)
    turned = space.turned(masks)
    frame = space.windows(object_boxes(space.turned_prompts(prompts_of(place)), turned.shape[2:]))
    back = space.turned_back(frame.paste(frame.crop(turned)[:, 0], turned.shape[2:])[:, None])
    inside = (back[0, 0] > 0).nonzero().float().mean(0)
    assert (inside - place).abs().max() < 0.5
    assert kit.dice(back > 0, masks > 0) > 0.8


def prompts_of(place) -> Prompts:
    index = torch.zeros(1, dtype=torch.int64)
    return Prompts(index, index + 1, place.view(1, 1, 3), torch.ones(1, 1, dtype=torch.int64))
