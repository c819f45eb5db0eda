"""The stream of unlabeled batches: nnU-Net's augmenters around `UnlabeledDataLoader`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_semisam.data.unlabeled import UnlabeledDataLoader, UnlabeledDataset


def build_unlabeled_loader(
    dataset: UnlabeledDataset,
    transforms: Callable[..., dict],
    *,
    batch_size: int,
    initial_patch_size: Sequence[int],
    patch_size: Sequence[int],
    label_manager: LabelManager,
    pin_memory: bool = False,
    num_processes: int | None = None,
) -> SingleThreadedAugmenter | NonDetMultiThreadedAugmenter:
    """An endless iterator of batches `{"data": (U, 2C, *S), "keys": ...}`; a first batch is drawn, as in nnU-Net.

    Args:
        transforms: a `TwoViewTransform`.
        initial_patch_size: of the crop before the transforms, from
            `configure_rotation_dummyDA_mirroring_and_inital_patch_size`.
        patch_size: of the configuration.
        pin_memory: whether batches go to a CUDA device.
        num_processes: 0 loads in this process; None takes half of what `nnUNet_n_proc_DA` allows.

    Raises:
        RuntimeError: a worker process died; what it said is printed above.
    """
    loader = UnlabeledDataLoader(
        dataset, batch_size, initial_patch_size, patch_size, label_manager=label_manager, transforms=transforms
    )
    if num_processes is None:
        allowed = get_allowed_n_proc_DA()
        num_processes = max(1, allowed // 2) if allowed > 0 else 0
    if num_processes == 0:
        stream = SingleThreadedAugmenter(loader, None)
    else:
        stream = NonDetMultiThreadedAugmenter(
            loader, None, num_processes,
            num_cached=max(2, num_processes // 2), seeds=None, pin_memory=pin_memory, wait_time=0.002,
        )  # fmt: skip
    next(stream)
    return stream


def close_unlabeled_loader(stream: SingleThreadedAugmenter | NonDetMultiThreadedAugmenter | None) -> None:
    """Ends the worker processes, if there are any; a closed or missing stream is fine."""
    if isinstance(stream, NonDetMultiThreadedAugmenter):
        stream._finish()
