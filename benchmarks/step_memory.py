"""Peak memory of a training step, and the time to the first one, each trainer in a process of its own.

On CUDA what torch has allocated at most during the steps. On a CPU the largest resident size of the process during the
steps less its size before the trainer was built: with the loader's arrays, and with memory that the allocator keeps, so
it is a little more than what is in use, and differs by some MiB from run to run. Linux only on a CPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import os
import re
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

MIB = 2**20


def start_and_peak(arm: Any, task: Any, *, steps: int = 2) -> tuple[float, float]:
    """Seconds from the trainer's construction to the end of its first step, imports done; and MiB. In a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, arm, task, steps).result()


def _measure(arm: Any, task: Any, steps: int) -> tuple[float, float]:
    from step_arms import good_teachers, started, stopped
    from step_parts import clock

    before = resident("VmRSS")
    cache = tempfile.TemporaryDirectory()  # of compiled code: else who comes second would start sooner
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache.name
    with cache, open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), good_teachers(task):
        start = time.perf_counter()
        trainer = started(arm, task)
        trainer.train_step(next(trainer.dataloader_train))
        first = clock(trainer.device)() - start
        _forget_peak(trainer.device)
        for _ in range(steps):
            trainer.train_step(next(trainer.dataloader_train))
        stopped(trainer)
    if trainer.device.type == "cuda":
        return first, torch.cuda.max_memory_allocated(trainer.device) / MIB
    return first, resident("VmHWM") - before


def _forget_peak(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library has no `malloc_trim`
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # from here on VmHWM counts anew (proc(5))


def resident(key: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"^{key}:\s+(\d+) kB", status, re.MULTILINE)[1]) / 1024
