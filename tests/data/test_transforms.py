"""Two views of one patch: bit for bit on the same place, only the strong one with changed intensities."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import OneOfTransform, RandomTransform

from nnunet_semisam.data.transforms import TwoViewTransform, WeakViewTransform, geometry_of

GEOMETRIES = {
    "2d": ((24, 20), (36, 30), (0, 1), False),
    "3d": ((14, 14, 12), (20, 20, 18), (0, 1, 2), False),
    "dummy_2d": ((6, 24, 20), (6, 36, 30), (0, 1, 2), True),
}


def pipeline(trainer: str, geometry: str, **more):
    patch_size, _, mirror_axes, dummy_2d = GEOMETRIES[geometry]
    if trainer == "DA5":
        from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import (
            nnUNetTrainerDA5 as source,
        )
    else:
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as source
    return source.get_training_transforms(patch_size, (-0.5, 0.5), None, mirror_axes, dummy_2d, **more)


def apply(transform, image, seed=0):
    np.random.seed(seed)
    torch.manual_seed(seed)
    blank = torch.zeros((1, *image.shape[1:]), dtype=torch.int16)
    return transform(image=image.clone(), segmentation=blank)["image"].chunk(2)


def patch(geometry, channels=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((channels, *GEOMETRIES[geometry][1]), generator=generator) + 1


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("trainer", ["default", "DA5"])
def test_without_intensity_both_views_are_the_same_bit_for_bit(trainer, geometry):
    two_views = TwoViewTransform(geometry_of(pipeline(trainer, geometry)))
    moved = 0
    for seed in range(25):
        image = patch(geometry, seed=seed)
        strong, weak = apply(two_views, image, seed)
        assert strong.shape == (2, *GEOMETRIES[geometry][0])
        assert torch.equal(strong, weak)
        plain = [
            slice((before - after) // 2, (before - after) // 2 + after)
            for before, after in zip(image.shape[1:], strong.shape[1:], strict=True)
        ]
        moved += not torch.equal(weak, image[(slice(None), *plain)])
    assert moved > 15  # the pipeline is not the identity


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("trainer", ["default", "DA5"])
def test_the_weak_view_keeps_its_intensities(trainer, geometry):
    """With interpolation off, the full pipeline only permutes the voxels of the weak view."""
    transform = pipeline(trainer, geometry)
    for child in transform.transforms:
        if isinstance(child, SpatialTransform):
            child.p_rotation = child.p_scaling = 0
    two_views, changed = TwoViewTransform(transform), 0
    for seed in range(12):
        image = patch(geometry, seed=seed)
        strong, weak = apply(two_views, image, seed)
        assert torch.isin(weak, image).all()
        changed += not torch.equal(strong, weak)
    assert changed > 3  # the strong view is augmented


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("trainer", ["default", "DA5"])
@pytest.mark.parametrize("masked", [None, [True, False]])
def test_the_weak_view_alone_is_that_of_two_bit_for_bit(trainer, geometry, masked):
    plain = geometry_of(pipeline(trainer, geometry, use_mask_for_norm=masked))
    alone, two_views = WeakViewTransform(plain, masked), TwoViewTransform(plain, masked)
    for seed in range(10):
        image = patch(geometry, seed=seed)
        if masked:
            image[..., : image.shape[-1] // 2] = 1e-5
        (_, weak), single = apply(two_views, image, seed), torch.cat(apply(alone, image, seed))
        assert torch.equal(single, weak)


def leaves(transform) -> list[str]:
    """Names of the transforms in a pipeline."""
    if isinstance(transform, RandomTransform):
        return leaves(transform.transform)
    children = getattr(transform, "transforms", getattr(transform, "list_of_transforms", None))
    return [type(transform).__name__] if children is None else [name for child in children for name in leaves(child)]


@pytest.mark.parametrize(
    ("trainer", "kept"),
    [
        ("default", ["SpatialTransform", "MirrorTransform", "RemoveLabelTransform"]),
        (
            "DA5",
            ["SpatialTransform", "Rot90Transform", "TransposeAxesTransform", "MirrorTransform", "RemoveLabelTransform"],
        ),
    ],
)
def test_what_is_geometry(trainer, kept):
    assert sorted(leaves(geometry_of(pipeline(trainer, "3d")))) == sorted(kept)


class Twisted(BasicTransform):
    """May do anything."""


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: t,
        lambda t: ComposeTransforms([t, MirrorTransform((0,))]),
        lambda t: RandomTransform(t, 0.5),
        lambda t: OneOfTransform([PlusOne(), t]),
    ],
)
def test_a_transform_that_may_change_both_is_not_taken_for_geometry(wrap):
    assert geometry_of(wrap(Twisted())) is None
    assert geometry_of(wrap(PlusOne())) is not None


class PlusOne(ImageOnlyTransform):
    """Works in place, as nnU-Net's intensity transforms do."""

    def _apply_to_image(self, img, **params):
        return img.add_(1)


def test_an_intensity_transform_in_place_reaches_the_strong_view_only():
    image = patch("2d")
    strong, weak = TwoViewTransform(PlusOne())(image=image.clone(), segmentation=image[:1])["image"].chunk(2)
    assert torch.equal(weak, image) and torch.equal(strong, image + 1)


def brain(channels=2):
    """A block of tissue in a background of resampling ripples; its first slice has a zero within the second channel."""
    image = torch.full((channels, 12, 12), 1e-5)
    image[:, 3:9, 2:7] = torch.rand((channels, 6, 5)) + 1
    image[1, 3] = 0
    return image


def test_background_of_masked_data_is_zero_in_both_views():
    image = brain()
    inside = torch.zeros((12, 12), dtype=torch.bool)
    inside[3:9, 2:7] = True
    views = TwoViewTransform(ComposeTransforms([MirrorTransform((0, 1)), PlusOne()]), [True, True])
    for seed in range(6):
        strong, weak = apply(views, image, seed)
        (flip,) = [axes for axes in ([], [1], [2], [1, 2]) if torch.equal(weak, (image * inside).flip(axes))]
        body = inside[None].flip(flip)[0]
        assert (strong[:, ~body] == 0).all() and (strong[:, body] >= 1).all()


def test_channels_normalized_without_the_mask_are_left_alone_and_do_not_vote():
    image = brain()
    image[0] = 3.0  # not zero in the background, as a CT channel is
    strong, weak = apply(TwoViewTransform(PlusOne(), [False, True]), image)
    assert torch.equal(weak[0], image[0]) and torch.equal(strong[0], image[0] + 1)
    assert (weak[1, :3] == 0).all() and (strong[1, :3] == 0).all() and (strong[1, 4:9, 2:7] > 2).all()


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_mask_follows_the_geometry(geometry):
    masked = {"use_mask_for_norm": [True, True]}
    two_views = TwoViewTransform(pipeline("default", geometry, **masked), [True, True])
    for seed in range(10):
        image = patch(geometry, seed=seed)
        image[..., : image.shape[-1] // 2] = 0
        strong, weak = apply(two_views, image, seed)
        background = (weak == 0).all(0)
        assert 0.1 < background.float().mean() < 0.9
        assert (strong[:, background] == 0).all()


class Drops(BasicTransform):
    """Forgets the regression target, as a transform without support for it does."""

    def apply(self, data_dict, **params):
        return {key: value for key, value in data_dict.items() if key != "regression_target"}


class AddsChannel(BasicTransform):
    def apply(self, data_dict, **params):
        return data_dict | {"image": data_dict["image"].repeat(2, *[1] * (data_dict["image"].ndim - 1))}


@pytest.mark.parametrize("transform", [Drops(), AddsChannel()])
def test_transforms_that_cannot_give_two_views_are_refused(transform):
    image = patch("2d")
    with pytest.raises(ValueError, match="regression"):
        TwoViewTransform(transform)(image=image, segmentation=image[:1])


@pytest.mark.parametrize("kind", [TwoViewTransform, WeakViewTransform])
def test_the_transform_can_be_pickled(kind):
    views = kind(geometry_of(pipeline("DA5", "3d")), [True])
    first, second = apply(views, patch("3d")), apply(pickle.loads(pickle.dumps(views)), patch("3d"))
    assert torch.equal(first[-1], second[-1])


def test_a_weak_view_of_more_channels_is_refused():
    image = patch("2d")
    with pytest.raises(ValueError, match="4 channel"):
        WeakViewTransform(AddsChannel())(image=image, segmentation=image[:1])


def staged(transform, geometry, seed):
    """Views of a patch of a cascade, whose previous stage has found label 2 in a block, and label 5 in another."""
    image = patch(geometry, seed=seed)
    labels = torch.zeros_like(image[:1], dtype=torch.int16)
    labels[..., :5, :6], labels[..., 6:12, 6:12] = 2, 5
    both = torch.cat([torch.zeros_like(labels), labels])
    np.random.seed(seed)
    torch.manual_seed(seed)
    return image, labels[0], transform(image=image.clone(), segmentation=both)["image"].chunk(2)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("trainer", ["default", "DA5"])
def test_in_a_cascade_both_views_carry_the_previous_stages_labels(trainer, geometry):
    cascade = {"is_cascaded": True, "foreground_labels": [2, 5]}
    plain = TwoViewTransform(geometry_of(pipeline(trainer, geometry, **cascade)), previous_labels=[2, 5])
    for seed in range(10):
        _, _, (strong, weak) = staged(plain, geometry, seed)
        assert strong.shape == (4, *GEOMETRIES[geometry][0])
        assert torch.equal(strong, weak) and set(weak[2:].unique().tolist()) == {0, 1}
    full, rough = TwoViewTransform(pipeline(trainer, geometry, **cascade), previous_labels=[2, 5]), 0
    for seed in range(30):
        _, _, (strong, weak) = staged(full, geometry, seed)
        rough += not torch.equal(strong[2:], weak[2:])
        assert set(weak[2:].unique().tolist()) <= {0, 1}
    assert 3 < rough < 30  # nnU-Net roughens the strong view's labels now and then


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_previous_labels_follow_the_geometry(geometry):
    """With interpolation off, a channel that is the label itself moves with it."""
    transform = pipeline("default", geometry, is_cascaded=True, foreground_labels=[2, 5])
    for child in transform.transforms:
        if isinstance(child, SpatialTransform):
            child.p_rotation = child.p_scaling = 0
    two_views = TwoViewTransform(transform, previous_labels=[2, 5])
    for seed in range(8):
        image = patch(geometry, channels=1, seed=seed)
        labels = (image[0] * 100).to(torch.int16) % 2 * 2  # 0 or 2, everywhere different
        np.random.seed(seed), torch.manual_seed(seed)
        both = torch.stack([torch.zeros_like(labels), labels])
        _, weak = two_views(image=image.clone(), segmentation=both)["image"].chunk(2)
        assert torch.equal(weak[1] == 1, (weak[0] * 100).to(torch.int16) % 2 == 1)
