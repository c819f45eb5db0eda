"""The stream of unlabeled batches: nnU-Net's augmenters around `UnlabeledDataLoader`."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from queue import Empty
from typing import Any

from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_semisam.data.unlabeled import UnlabeledDataLoader, UnlabeledDataset

LOOK_EVERY = 0.2  # seconds, for dead workers while no batch comes


class WatchedAugmenter(NonDetMultiThreadedAugmenter):
    """nnU-Net's augmenter; a worker process that dies is an error at once.

    The stock one waits for ever if the process was killed while it was handing over a batch.
    """

    _processes: list[BaseProcess]

    def __next__(self) -> dict[str, Any]:
        if not self.initialized:
            self._start()
        while True:
            self._require_workers()
            try:
                item = self.results_loop_queue.get(timeout=LOOK_EVERY)
            except Empty:
                continue
            self.results_loop_queue.task_done()
            return item

    def _require_workers(self) -> None:
        """Raises RuntimeError if one is dead; the others are ended, since their queue may be damaged."""
        aborted = self.abort_event.is_set()  # looked at first: the thread that sets it has seen a dead process
        dead = self._exit_codes()
        if not dead and not aborted:
            return
        if not dead:  # that thread may be collecting its exit code right now
            time.sleep(LOOK_EVERY)
            dead = self._exit_codes()
        dead = [code for code in dead if code != 0]  # the others have ended because the event is set
        count = len(self._processes)
        self.abort_event.set()
        for process in self._processes:
            process.kill()
        self._processes, self.initialized = [], False
        raise RuntimeError(
            f"semisam: {max(1, len(dead))} of {count} processes that load unlabeled patches died "
            f"({', '.join(map(_manner, dead)) or 'see the error above'}). If nothing is printed above, memory ran out "
            "most often: use fewer processes (nnUNet_n_proc_DA), and continue the training with --c."
        )

    def _exit_codes(self) -> list[int | None]:
        """Of the processes that are dead."""
        return [process.exitcode for process in self._processes if not process.is_alive()]


def _manner(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"killed by {signal.Signals(-exitcode).name}"
    return "see the error above"


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
    """An endless iterator of batches `{"data": (U, 2C or C, *S), "keys": ...}`; a first batch is drawn, as in nnU-Net.

    Args:
        transforms: a `TwoViewTransform` or a `WeakViewTransform`.
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
        stream = WatchedAugmenter(
            loader, None, num_processes,
            num_cached=max(2, num_processes // 2), seeds=None, pin_memory=pin_memory, wait_time=0.002,
        )  # fmt: skip
    next(stream)
    return stream


def close_unlabeled_loader(stream: SingleThreadedAugmenter | NonDetMultiThreadedAugmenter | None) -> None:
    """Ends the worker processes, if there are any; a closed or missing stream is fine."""
    if isinstance(stream, NonDetMultiThreadedAugmenter):
        stream._finish()
