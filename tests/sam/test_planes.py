"""Planes are chosen where there is something to ask, and come back to where they were taken from."""

from __future__ import annotations

import pytest
import torch

from nnunet_semisam.sam.planes import Planes, choose_planes, sensible_axes
from nnunet_semisam.types import PseudoLabel


def objects(shape=(2, 1, 20, 32, 44)) -> torch.Tensor:
    """Two patches: one object at 4..16 x 8..24 x 10..30 in the first, none in the second."""
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[0, 0, 4:16, 8:24, 10:30] = True
    return mask


def choose(mask, **settings) -> Planes:
    return choose_planes(mask, **({"axis": 0, "budget": 4, "iteration": 0, "min_voxels": 20} | settings))


@pytest.mark.parametrize("axis, extent", [(0, (4, 16)), (1, (8, 24)), (2, (10, 30))])
def test_planes_show_the_object_and_keep_the_budget(axis, extent):
    planes = choose(objects(), axis=axis)
    assert planes.axis == axis and planes.image.tolist() == [0] * 4
    positions = planes.position.tolist()
    assert all(extent[0] <= p < extent[1] for p in positions)
    assert max(positions) - min(positions) > (extent[1] - extent[0]) / 2  # spread over the object


def test_few_planes_are_all_taken_and_small_pieces_skipped():
    mask = torch.zeros(1, 2, 20, 20, 20, dtype=torch.bool)
    mask[0, 0, 5, :4, :4] = mask[0, 1, 5, 6:10, :4] = True  # 16 voxels of each of two objects
    mask[0, 1, 9:11, :5, :5] = True
    assert choose(mask, budget=8).position.tolist() == [9, 10]


def test_the_spread_moves_with_the_iteration():
    seen = {p for i in range(20) for p in choose(objects(), iteration=i).position.tolist()}
    assert seen == set(range(4, 16))
    assert choose(objects(), iteration=3).position.tolist() == choose(objects(), iteration=3).position.tolist()


@pytest.mark.parametrize(
    "shape, axes",
    [
        ((64, 64, 64), [0, 1, 2]),
        ((14, 256, 256), [0]),
        ((40, 256, 256), [0]),
        ((96, 160, 160), [0, 1, 2]),
        ((6, 8, 40), [0]),
        ((16, 48, 200), [2]),
    ],
)
def test_sensible_axes_avoid_strips(shape, axes):
    assert sensible_axes(shape) == axes


def test_alternate_takes_every_sensible_axis_in_turn_and_a_fixed_axis_is_obeyed():
    assert [choose(objects(), axis="alternate", iteration=i).axis for i in range(4)] == [0, 1, 2, 0]
    flat = torch.zeros(1, 1, 14, 64, 64, dtype=torch.bool)
    assert [choose(flat, axis="alternate", iteration=i).axis for i in range(3)] == [0, 0, 0]
    assert choose(flat, axis=2).axis == 2


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_taking_and_scattering_are_inverse(axis):
    volume = torch.rand(2, 3, 20, 32, 44)
    planes = choose(objects(), axis=axis)
    taken = planes.take(volume)
    for plane, image, position in zip(taken, planes.image, planes.position, strict=True):
        assert torch.equal(plane, volume[image].select(axis + 1, int(position)))
    back = planes.scatter(PseudoLabel(taken + 1, torch.ones_like(taken[:, :1])), elsewhere=volume)
    asked = torch.zeros(2, 1, 20, 32, 44)
    asked[0].movedim(axis + 1, 0)[planes.position] = 1
    assert torch.equal(back.confidence, asked)
    assert torch.equal(back.prob, volume + asked)


def test_without_objects_nothing_is_asked():
    planes = choose(torch.zeros_like(objects()))
    volume = torch.rand(2, 3, 20, 32, 44)
    taken = planes.take(volume)
    assert taken.shape == (0, 3, 32, 44)
    back = planes.scatter(PseudoLabel(taken, taken[:, :1]), elsewhere=volume)
    assert torch.equal(back.prob, volume) and back.confidence.sum() == 0


def test_identity_without_an_axis():
    volume = torch.rand(2, 3, 8, 9)
    pseudo = PseudoLabel(volume, volume[:, :1])
    assert Planes().take(volume) is volume and Planes().scatter(pseudo, elsewhere=volume) is pseudo


@pytest.mark.parametrize("budget, stand_for", [(4, 3.0), (12, 1.0), (20, 1.0)])
def test_chosen_planes_stand_for_the_others(budget, stand_for):
    planes = choose(objects(), budget=budget)  # 12 planes show the object
    assert (planes.stand_for[planes.image.unique()] == stand_for).all()
    pseudo = PseudoLabel(planes.take(torch.rand(2, 1, 20, 32, 44)), planes.take(torch.ones(2, 1, 20, 32, 44)))
    scale = planes.scatter(pseudo, torch.rand(2, 1, 20, 32, 44)).scale
    assert scale.shape == (2, 1, 1, 1, 1) and torch.equal(scale.flatten(), planes.stand_for)
    assert (choose(torch.zeros_like(objects())).stand_for == 1.0).all()


def test_each_patch_stands_for_its_own_planes():
    """A patch that shows an object on 2 planes must not get the weight of one that shows it on 12."""
    seen = objects()[:1].repeat(2, 1, 1, 1, 1)
    shown = seen[0].any(0).flatten(1).any(1).nonzero()[:, 0]
    seen[1, :, shown[2:]] = False
    planes = choose(seen, budget=4)
    counted = [(planes.stand_for[image] * (planes.image == image).sum()).item() for image in (0, 1)]
    assert counted == [len(shown), 2]


def test_masks_are_taken_as_masks():
    planes = choose(objects())
    assert planes.take(objects()).dtype == torch.bool and planes.take(objects()).flatten(1).any(1).all()
