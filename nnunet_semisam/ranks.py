"""Work of one process of several (DDP), which the others wait for."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

PATIENCE = timedelta(days=2)

Result = TypeVar("Result")


def on_first_rank(trainer: nnUNetTrainer, work: Callable[[], Result], what: str) -> Result:
    """What `work` returns on rank 0, on all ranks; without DDP it is just called.

    The others wait in a process group of their own: in nnU-Net's (NCCL) they would be ended after 10 minutes.

    Args:
        what: for the message of the other ranks, where rank 0 fails.

    Raises:
        RuntimeError: on the other ranks, if rank 0 has failed, with its message: only one rank's may be seen.
    """
    if not trainer.is_ddp:
        return work()
    found: list[Any] = [None, False]
    waiting: Any = dist.new_group(backend="gloo", timeout=PATIENCE)
    try:
        if trainer.local_rank == 0:
            found = [work(), True]
    except BaseException as error:
        found = [f"{type(error).__name__}: {error}", False]
        raise
    finally:
        dist.broadcast_object_list(found, src=0, group=waiting)
        dist.destroy_process_group(waiting)
    result, done = found
    if not done:
        raise RuntimeError(f"semisam: {what} failed on rank 0: {result}")
    return result
