import pytest
import torch

from nnunet_semisam.ops.perturb import Perturbation, remapped

IDENTITY = {"noise_std": 0.0, "contrast": 0.0, "brightness": 0.0, "cutout": 0.0, "remap": 0.0}


@pytest.fixture(params=[(2, 2, 12, 14), (2, 1, 8, 10, 12)])
def image(request):
    return torch.randn(request.param, generator=torch.Generator().manual_seed(0))


def test_all_strengths_zero_is_the_identity(image):
    assert torch.allclose(Perturbation(**IDENTITY)(image), image, atol=1e-6)


@pytest.mark.parametrize(
    "name, value", [("noise_std", 0.1), ("contrast", 0.5), ("brightness", 0.5), ("cutout", 0.5), ("remap", 1)]
)
def test_each_strength_alone_changes_the_image(image, name, value):
    assert not torch.allclose(Perturbation(**{**IDENTITY, name: value})(image), image, atol=1e-3)


def test_never_in_place(image):
    before = image.clone()
    Perturbation(remap=1.0)(image)
    assert torch.equal(image, before)


def test_zero_background_stays_zero(image):
    image[..., :4] = 0
    changed = Perturbation(remap=1.0)(image)
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
        results.append(Perturbation(remap=1.0)(image))
    assert torch.equal(*results)


def test_remap_is_by_patch_and_keeps_mean_and_spread():
    torch.manual_seed(0)
    image = 3 * torch.randn(60, 2, 8, 8, 8) + 5
    changed = Perturbation(**{**IDENTITY, "remap": 0.5})(image)
    kept = [torch.allclose(new, old, atol=1e-4) for new, old in zip(changed, image, strict=True)]
    assert 15 < sum(kept) < 45
    for new, old in zip(changed.flatten(2).unbind(1), image.flatten(2).unbind(1), strict=True):  # channel by channel
        assert torch.allclose(new.mean(1), old.mean(1), atol=1e-3)
        assert torch.allclose(new.std(1), old.std(1), rtol=1e-3)


def test_remap_can_turn_bright_and_dark_around():
    torch.manual_seed(0)
    image = torch.zeros(200, 1, 12, 12, 12)
    image[..., 4:8, 4:8, 4:8] = 1
    image = image + 0.01 * torch.randn_like(image)
    inside, all_of_it = (remapped(image)[..., a:b, a:b, a:b].mean((1, 2, 3, 4)) for a, b in ((5, 7), (0, 12)))
    assert 5 < (inside < all_of_it).sum() < 100
    assert len({round(float(value), 3) for value in inside}) > 150  # another one for each patch


def test_patches_and_channels_are_remapped_apart():
    """Nothing of one patch or channel gets into another."""
    image = torch.randn(2, 2, 8, 8)
    other = image.clone()
    other[0, 0] = torch.randn(8, 8)
    results = []
    for given in (image, other):
        torch.manual_seed(0)
        results.append(remapped(given))
    differs = (results[0] != results[1]).flatten(2).any(2)
    assert differs.tolist() == [[True, False], [False, False]]


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_remap_of_a_constant_patch_is_finite(value):
    changed = remapped(torch.full((1, 1, 6, 6, 6), value))
    assert torch.allclose(changed, torch.full_like(changed, value), atol=1e-4)


def test_mixed_precision_does_not_reach_into_a_remap(image):
    results = []
    for on in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            results.append(Perturbation(**{**IDENTITY, "remap": 1.0})(image))
    assert torch.equal(*results)


def test_contrast_and_brightness_go_both_ways_and_no_further():
    torch.manual_seed(0)
    image = torch.randn(200, 1, 12, 12) + 4
    spread = image.std((2, 3), keepdim=True)
    gains = (Perturbation(**{**IDENTITY, "contrast": 0.25})(image).std((2, 3), keepdim=True) / spread).flatten()
    assert gains.min() > 0.7499 and gains.max() < 1.2501 and gains.min() < 0.8 and gains.max() > 1.2
    shifts = (Perturbation(**{**IDENTITY, "brightness": 0.1})(image) - image).mean((2, 3), keepdim=True) / spread
    assert shifts.abs().max() < 0.1001 and shifts.min() < -0.08 and shifts.max() > 0.08


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_the_erased_box_is_no_longer_than_its_share_of_each_side(share):
    torch.manual_seed(0)
    image = torch.randn(200, 1, 12, 20, 16)
    mean = image.mean((2, 3, 4), keepdim=True)
    erased = (Perturbation(**{**IDENTITY, "cutout": share})(image) == mean) & ~torch.isclose(image, mean)
    for axis, size in enumerate(image.shape[2:], start=2):
        others = tuple(a for a in range(1, 5) if a != axis)
        lengths = erased.any(dim=others[0], keepdim=True).any(others[1], keepdim=True).any(others[2]).flatten(1).sum(1)
        assert lengths.max() <= share * size + 1 and lengths.max() > 0.6 * share * size
