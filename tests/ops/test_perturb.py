import pytest
import torch

from nnunet_semisam.ops.perturb import Perturbation

IDENTITY = {"noise_std": 0.0, "contrast": 0.0, "brightness": 0.0, "cutout": 0.0}


@pytest.fixture(params=[(2, 2, 12, 14), (2, 1, 8, 10, 12)])
def image(request):
    return torch.randn(request.param, generator=torch.Generator().manual_seed(0))


def test_all_strengths_zero_is_the_identity(image):
    assert torch.allclose(Perturbation(**IDENTITY)(image), image, atol=1e-6)


@pytest.mark.parametrize("name, value", [("noise_std", 0.1), ("contrast", 0.5), ("brightness", 0.5), ("cutout", 0.5)])
def test_each_strength_alone_changes_the_image(image, name, value):
    assert not torch.allclose(Perturbation(**{**IDENTITY, name: value})(image), image, atol=1e-3)


def test_never_in_place(image):
    before = image.clone()
    Perturbation()(image)
    assert torch.equal(image, before)


def test_zero_background_stays_zero(image):
    image[..., :4] = 0
    changed = Perturbation()(image)
    assert (changed[..., :4] == 0).all()
    assert (changed[..., 4:] != 0).any()


def test_noise_is_clipped_at_twice_its_standard_deviation(image):
    difference = Perturbation(**{**IDENTITY, "noise_std": 0.1})(image) - image
    assert difference.abs().max() <= 0.2 + 1e-5
    assert difference.std() > 0.05


def test_same_seed_same_result(image):
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(Perturbation()(image))
    assert torch.equal(*results)
