import pytest
import torch

from nnunet_semisam.ops.mix import SHARE, cutmix


@pytest.mark.parametrize("size", [(16, 12, 20), (24, 18)], ids=str)
def test_each_patch_gets_a_box_of_its_neighbour_at_the_same_place(size):
    torch.manual_seed(0)
    batch = torch.arange(3.0).view(3, *[1] * (len(size) + 1)).expand(3, 2, *size)
    mixed = cutmix(batch.shape, batch.device)(batch)
    taken = mixed != batch
    assert torch.equal(mixed[taken], batch.roll(1, 0)[taken])
    for patch in taken[:, 0]:
        places = patch.nonzero()
        sides = places.amax(0) - places.amin(0) + 1
        assert sides.prod() == patch.sum()  # one box
        assert patch.float().mean().item() == pytest.approx(SHARE, abs=0.1)
    assert not torch.equal(taken[0], taken[1])  # each at a place of its own


def test_one_mixing_serves_image_labels_and_confidence():
    """What is mixed together stays together."""
    image = torch.randn(4, 1, 8, 8, 8)
    mix = cutmix(image.shape, image.device)
    assert torch.equal(mix(image) > 0, mix(image > 0))
    assert torch.equal(mix(torch.cat([image, 2 * image], 1))[:, 1:], 2 * mix(image))


def test_every_voxel_can_be_in_the_box():
    torch.manual_seed(0)
    batch = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 6, 6)
    ever = torch.stack([cutmix(batch.shape, batch.device)(batch) != batch for _ in range(200)]).any(0)
    assert ever.all()


def test_a_single_patch_stays_as_it_is():
    image = torch.randn(1, 1, 8, 8)
    assert torch.equal(cutmix(image.shape, image.device)(image), image)
