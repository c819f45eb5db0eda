"""The promise: training reads no label of an unlabeled case. Poisoned or deleted, the labels change nothing."""

from __future__ import annotations

import builtins
import dataclasses
import pickle

import blosc2
import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform

from nnunet_semisam.data.loader import build_unlabeled_loader
from nnunet_semisam.data.pool import unlabeled_pool
from nnunet_semisam.data.transforms import TwoViewTransform
from nnunet_semisam.data.unlabeled import UnlabeledDataset
from nnunet_semisam.types import UnlabeledBatch


@pytest.fixture
def hidden(toy):
    """A fold that hides the labels of b, c and d, plus one image of imagesUn."""
    for seed, case in enumerate("abcde"):
        toy.preprocessed_case(case, seed=seed)
        (toy.raw / "labelsTr" / f"{case}.nii.gz").write_bytes(b"a label")
    toy.splits({"train": ["a"], "unlabeled": ["b", "c", "d"], "val": ["e"]})
    toy.image("x")
    return toy


def batches(toy, count: int = 6) -> list[dict]:
    """What training would see: pool, data set, nnU-Net's training transforms and loader, from a seed."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    manager, configuration, dataset_json = toy.managers()
    pool = unlabeled_pool(manager, configuration, dataset_json, 0, num_processes=1)
    assert list(pool) == ["b", "c", "d", "x"]
    transforms = nnUNetTrainer.get_training_transforms((8, 8, 8), (-0.5, 0.5), None, (0, 1, 2), False)
    for child in transforms.transforms:
        if isinstance(inner := getattr(child, "transform", None), GaussianBlurTransform):
            inner.benchmark = False  # it chooses a kernel by timing, which is not repeatable
    stream = build_unlabeled_loader(
        UnlabeledDataset(pool), TwoViewTransform(transforms), batch_size=2, initial_patch_size=(12, 12, 12),
        patch_size=(8, 8, 8), label_manager=manager.get_label_manager(dataset_json), num_processes=0,
    )  # fmt: skip
    np.random.seed(0), torch.manual_seed(0)
    return [next(stream) for _ in range(count)]


def assert_identical(before: list[dict], after: list[dict]) -> None:
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one["data"], other["data"]) and list(one["keys"]) == list(other["keys"])


def label_files(toy) -> list:
    """Every file that knows a label of an unlabeled case."""
    folders = [toy.preprocessed / f"nnUNetPlans_3d_fullres{kind}" for kind in ("", "_unlabeled")]
    found = [folder / f"{case}{ending}" for folder in folders for case in "bcdx" for ending in ("_seg.b2nd", ".pkl")]
    found += [toy.raw / "labelsTr" / f"{case}.nii.gz" for case in "bcd"]
    return [file for file in found if file.exists()]


def poison(file) -> None:
    rng = np.random.default_rng(99)
    if file.name.endswith("_seg.b2nd"):
        shape = blosc2.open(str(file)).shape
        file.unlink()
        blosc2.asarray(rng.integers(0, 2, shape).astype(np.int16), urlpath=str(file))
    elif file.suffix == ".pkl":
        noise = {1: np.zeros((50, 4), dtype=int), (-1, 0, 1): np.zeros((50, 4), dtype=int)}
        file.write_bytes(pickle.dumps({"class_locations": noise}))
    else:
        file.write_bytes(rng.bytes(100))


def test_poisoned_and_deleted_labels_change_no_batch(hidden):
    before = batches(hidden)
    files = label_files(hidden)
    assert len(files) == 3 * 3 + 2
    for file in files:
        poison(file)
    assert_identical(before, batches(hidden))
    for file in files:
        file.unlink()
    assert_identical(before, batches(hidden))


def test_the_images_do_change_the_batches(hidden):
    """The comparison above can fail."""
    before = batches(hidden)
    hidden.preprocessed_case("b", seed=77)
    with pytest.raises(AssertionError):
        assert_identical(before, batches(hidden))


def test_no_label_file_is_opened(hidden, monkeypatch):
    batches(hidden, 1)  # preprocesses the image of imagesUn
    opened = []
    for owner, name in ((builtins, "open"), (blosc2, "open"), (np, "load")):
        original = getattr(owner, name)

        def watch(*args, _original=original, **kwargs):
            opened.append(str(kwargs.get("urlpath") or args[0]))
            return _original(*args, **kwargs)

        monkeypatch.setattr(owner, name, watch)
    batches(hidden)
    assert any(name.endswith("b.b2nd") for name in opened)
    assert not [name for name in opened if "_seg" in name or name.endswith(".pkl") or "labelsTr" in name]


def test_an_unlabeled_batch_has_no_place_for_a_target():
    assert {field.name for field in dataclasses.fields(UnlabeledBatch)} & {"target", "label", "segmentation"} == set()
