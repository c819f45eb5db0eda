"""The data set and the loader of unlabeled cases, in one process and in several."""

from __future__ import annotations

import os
import pickle

import blosc2
import numpy as np
import pytest
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter

from nnunet_semisam.data.loader import build_unlabeled_loader, close_unlabeled_loader
from nnunet_semisam.data.transforms import TwoViewTransform
from nnunet_semisam.data.unlabeled import UnlabeledDataLoader, UnlabeledDataset
from nnunet_semisam.types import UnlabeledBatch


def crop_center(image, segmentation, regression_target):
    """A transform that cuts the loader's crop to the patch of the network."""
    inner = (slice(None), *[slice((n - 8) // 2, (n - 8) // 2 + 8) if n > 8 else slice(None) for n in image.shape[1:]])
    return {"image": image[inner], "segmentation": segmentation[inner], "regression_target": regression_target[inner]}


def torch_noise(image, segmentation, regression_target):
    """Fills a view with torch's random numbers and the process number."""
    image = torch.rand_like(image)
    image[..., 0] = os.getpid()
    return {"image": image, "segmentation": segmentation, "regression_target": regression_target}


@pytest.fixture
def dataset(toy):
    return UnlabeledDataset({case: toy.preprocessed_case(case, seed=seed) for seed, case in enumerate("cab")})


@pytest.fixture
def label_manager(toy):
    manager, _, _ = toy.managers()
    return manager.get_label_manager({"labels": {"background": 0, "thing": 1, "ignore": 2}})


def stream_of(dataset, label_manager, *, transform=crop_center, patch=(8, 8, 8), num_processes=0, batch_size=2):
    return build_unlabeled_loader(
        dataset, TwoViewTransform(transform), batch_size=batch_size, initial_patch_size=patch, patch_size=patch,
        label_manager=label_manager, num_processes=num_processes,
    )  # fmt: skip


def test_a_case_is_its_image_with_a_blank_segmentation(dataset, toy):
    assert dataset.identifiers == ["a", "b", "c"] and len(dataset) == 3
    image, segmentation, previous, properties = dataset["a"]
    assert isinstance(image, blosc2.NDArray)  # not read yet
    np.testing.assert_array_equal(image[:], blosc2.open(dataset.images["a"])[:])
    assert segmentation.shape == (1, *image.shape[1:]) and segmentation.dtype == np.int8
    assert not segmentation.any() and segmentation.strides == (0, 0, 0, 0)
    assert previous is None and properties == {"class_locations": {}}


def test_properties_are_not_shared(dataset):
    dataset["a"][3]["class_locations"]["leak"] = 1
    assert dataset["a"][3] == {"class_locations": {}}


def test_an_empty_pool_and_a_missing_file_are_told(tmp_path):
    with pytest.raises(ValueError, match="empty"):
        UnlabeledDataset({})
    with pytest.raises(ValueError, match="gone.b2nd.*nnUNetv2_semisam_preprocess"):
        UnlabeledDataset({"gone": tmp_path / "gone.b2nd"})


@pytest.mark.parametrize("patch", [(8, 8, 8), (8, 8), (8, 30, 8)])
def test_a_batch_has_two_views_and_no_target(dataset, label_manager, patch):
    """2D and 3D, and patches beyond the image; the label manager has an ignore label, whose locations are not known."""
    batch = next(stream_of(dataset, label_manager, patch=patch))
    assert set(batch) == {"data", "keys"}
    unlabeled = UnlabeledBatch.from_nnunet(batch, torch.device("cpu"))
    assert unlabeled.image.shape == (2, 1, *[min(n, 8) for n in patch]) and set(unlabeled.keys) <= set("abc")
    assert torch.equal(unlabeled.image, unlabeled.strong)


def test_crops_are_taken_anywhere_in_every_case(dataset, label_manager):
    stream = stream_of(dataset, label_manager, batch_size=8)
    batches = [next(stream) for _ in range(10)]
    assert {key for batch in batches for key in batch["keys"]} == set("abc")
    assert len({float(sample[0, 0, 0, 0]) for batch in batches for sample in batch["data"]}) > 40


def test_the_same_seed_gives_the_same_batches(dataset, label_manager):
    stream = stream_of(dataset, label_manager)
    drawn = []
    for _ in range(2):
        np.random.seed(1), torch.manual_seed(1)
        drawn.append([next(stream)["data"] for _ in range(3)])
    assert all(torch.equal(*pair) for pair in zip(*drawn, strict=True))


def test_in_the_building_process_torch_is_not_reseeded(dataset, label_manager):
    loader = UnlabeledDataLoader(
        dataset, 1, (8, 8, 8), (8, 8, 8), label_manager=label_manager, transforms=TwoViewTransform(crop_center)
    )
    torch.manual_seed(5)
    next(loader)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))


# a thread of batchgenerators may be receiving a batch when the loader is closed (seen with Python 3.12)
@pytest.mark.filterwarnings(
    r"ignore:Exception in thread .*\(results_loop\):pytest.PytestUnhandledThreadExceptionWarning"
)
def test_workers_draw_different_torch_numbers(dataset, label_manager):
    stream = stream_of(dataset, label_manager, transform=torch_noise, num_processes=2, batch_size=1)
    try:
        seen: dict[float, list[float]] = {}
        while len(seen) < 2 or min(map(len, seen.values())) < 10:
            first = next(stream)["data"][0, 0]
            seen.setdefault(float(first[0, 0, 0]), []).append(float(first[0, 0, 1]))
    finally:
        close_unlabeled_loader(stream)
    one, other = seen.values()
    assert len(set(one)) == len(one) and not set(one) & set(other)


def test_processes_are_half_of_what_nnunet_allows(dataset, label_manager, monkeypatch):
    import nnunet_semisam.data.loader as loader

    started = []
    monkeypatch.setattr(loader.WatchedAugmenter, "__next__", lambda stream: started.append(stream.num_processes))
    for allowed, kind in (
        (12, NonDetMultiThreadedAugmenter),
        (1, NonDetMultiThreadedAugmenter),
        (0, SingleThreadedAugmenter),
    ):
        monkeypatch.setattr(loader, "get_allowed_n_proc_DA", lambda allowed=allowed: allowed)
        assert isinstance(stream_of(dataset, label_manager, num_processes=None), kind)
    assert started == [6, 1]


def test_a_dying_worker_raises(dataset, label_manager):
    for file in dataset.images.values():
        os.truncate(file, 10)
    with pytest.raises(RuntimeError, match="1 of 1 processes that load unlabeled patches died"):
        stream_of(dataset, label_manager, num_processes=1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # a thread of batchgenerators
def test_a_closed_or_missing_stream_can_be_closed(dataset, label_manager):
    stream = stream_of(dataset, label_manager, num_processes=1)
    workers = list(stream._processes)
    for closing in (stream, stream, None, stream_of(dataset, label_manager)):
        close_unlabeled_loader(closing)
    for worker in workers:
        worker.join(timeout=30)
        assert not worker.is_alive()


def test_loader_and_data_set_can_be_pickled(dataset, label_manager):
    loader = UnlabeledDataLoader(
        dataset, 2, (8, 8, 8), (8, 8, 8), label_manager=label_manager, transforms=TwoViewTransform(crop_center)
    )
    copy = pickle.loads(pickle.dumps(loader))
    np.random.seed(2)
    batch = next(loader)
    np.random.seed(2)
    assert torch.equal(batch["data"], next(copy)["data"])


def test_cases_are_drawn_as_nnunet_draws_them_from_an_array_that_is_there_already(dataset, label_manager):
    loader = stream_of(dataset, label_manager).data_loader
    assert isinstance(loader.indices, np.ndarray)  # of a list, numpy makes an array for every batch
    np.random.seed(5)
    drawn = list(loader.get_indices())
    np.random.seed(5)
    assert drawn == list(np.random.choice(dataset.identifiers, 2))
    assert all(type(case) is str for case in drawn)
