"""Patches of labeled cases: voxel on voxel, inside the case where it fits, padded where it does not."""

import pytest
import torch

from nnunet_semisam.sam.patches import patch_around
from nnunet_semisam.types import LabeledCase


def case(shape=(12, 20, 16)) -> LabeledCase:
    places = torch.arange(float(torch.tensor(shape).prod())).view(shape)
    truth = torch.zeros(2, *shape, dtype=torch.bool)
    truth[1, 9:11, 15:19, 1:4] = True
    truth[0] = ~truth[1]
    return LabeledCase("case", places[None], truth, torch.ones(shape, dtype=torch.bool))


@pytest.mark.parametrize("patch_size", [(8, 8, 8), (12, 20, 16), (16, 8, 24), (15, 25, 21)])
def test_a_patch_is_a_piece_of_the_case_with_its_truth(patch_size):
    whole, rng = case(), torch.Generator().manual_seed(0)
    for _ in range(5):
        patch = patch_around(whole, 1, patch_size, rng)
        assert patch.image.shape[1:] == patch.truth.shape[1:] == patch.valid.shape == patch_size
        assert patch.truth[1].any()
        places = patch.image[0][patch.valid].long()
        assert len(places) == torch.tensor([min(a, b) for a, b in zip(patch_size, (12, 20, 16), strict=True)]).prod()
        assert torch.equal(whole.truth.flatten(1)[:, places], patch.truth[:, patch.valid])
        assert not patch.truth[:, ~patch.valid].any()


def test_a_2d_patch_of_a_volume_is_a_slice():
    whole = case()
    patch = patch_around(whole, 1, (20, 16), torch.Generator().manual_seed(0))
    slices = [number for number in range(12) if torch.equal(whole.image[:, number], patch.image)]
    assert len(slices) == 1 and whole.truth[1, slices[0]].any()
    assert torch.equal(patch.truth, whole.truth[:, slices[0]])


def test_no_object_no_patch():
    whole = case()
    empty = LabeledCase("empty", whole.image, torch.zeros_like(whole.truth), whole.valid)
    assert patch_around(empty, 1, (8, 8, 8), torch.Generator()) is None
