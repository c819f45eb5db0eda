"""Phantoms are repeatable, have both organs at low contrast, and unlabeled cases have no label anywhere."""

from __future__ import annotations

import json

import numpy as np
import pytest

from nnunet_semisam.demo.dataset import NAME, QUICK, read_nifti, write_data_set
from nnunet_semisam.demo.phantom import FAULTS, NOISES, ORGANS, SHAPE, degrade, draw_anatomy, make_phantom

SEEDS = range(6)


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_same_seed_same_phantom_other_seed_another():
    first, second, other = make_phantom(rng(1)), make_phantom(rng(1)), make_phantom(rng(2))
    assert np.array_equal(first.image, second.image) and np.array_equal(first.labels, second.labels)
    assert first.kinds == second.kinds
    assert not np.array_equal(first.labels, other.labels)


@pytest.mark.parametrize("seed", SEEDS)
def test_both_organs_are_there_in_their_places(seed):
    phantom = make_phantom(rng(seed))
    assert phantom.image.shape == phantom.labels.shape == SHAPE
    assert np.isfinite(phantom.image).all()
    assert set(np.unique(phantom.labels)) == {0, *ORGANS.values()}
    centres = [np.argwhere(phantom.labels == label).mean(0) for label in ORGANS.values()]
    assert centres[0][2] < centres[1][2] - 8  # organ 1 always lies left of organ 2
    assert all((phantom.labels == label).sum() > 300 for label in ORGANS.values())


@pytest.mark.parametrize("seed", SEEDS)
def test_contrast_is_low_but_not_zero(seed):
    image, labels = draw_anatomy(rng(seed))
    tissue = np.median(image[(labels == 0) & (image > 0.4) & (image < 0.5)])
    span = np.percentile(image, 99.5) - np.percentile(image, 0.5)
    for label in ORGANS.values():
        contrast = abs(np.median(image[labels == label]) - tissue) / span
        assert 0.05 < contrast < 0.3


def test_every_kind_of_degradation_occurs_and_changes_the_image():
    clean, _ = draw_anatomy(rng(0))
    seen = set()
    for seed in range(40):
        image, kinds = degrade(clean, rng(seed))
        assert sum(kind in NOISES for kind in kinds) == 1
        assert not np.allclose(image, clean)
        seen.update(kinds)
    assert seen == {*NOISES, *FAULTS}


def test_data_set_has_no_label_of_an_unlabeled_case(tmp_path):
    settings = QUICK
    kinds = write_data_set(tmp_path, settings)
    raw = tmp_path / NAME
    labels = {path.name for path in raw.rglob("*.nii.gz") if not path.name.endswith("_0000.nii.gz")}
    assert labels == {f"{case}.nii.gz" for split in ("labeled", "held_out") for case in settings.cases(split)}
    assert len(list((raw / "imagesUn").iterdir())) == settings.unlabeled
    assert {path.name for path in raw.iterdir() if path.is_dir()} == {
        "imagesTr", "labelsTr", "imagesUn", "imagesTs", "labelsTs",
    }  # fmt: skip
    assert set(kinds) == {case for split in ("labeled", "unlabeled", "held_out") for case in settings.cases(split)}
    assert json.loads((raw / "dataset.json").read_text())["numTraining"] == settings.labeled
    assert read_nifti(raw / "imagesUn" / "unlabeled_00_0000.nii.gz").shape == SHAPE


def test_splits_are_different_phantoms(tmp_path):
    write_data_set(tmp_path, QUICK)
    images = [read_nifti(path) for path in sorted((tmp_path / NAME).rglob("*_0000.nii.gz"))]
    assert all(not np.array_equal(a, b) for i, a in enumerate(images) for b in images[:i])
