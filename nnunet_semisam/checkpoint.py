"""Checkpoint files: nnU-Net's dictionary plus one key, written so that a kill at any moment leaves a loadable file."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch

from nnunet_semisam.data.disk import writing

KEY = "semisam"


def read_checkpoint(filename: str) -> dict[str, Any]:
    """A checkpoint of this package or of nnU-Net, on the CPU. A file that would run code is refused, not run.

    Beside what `weights_only=True` takes, NumPy's numbers and arrays are let through, which nnU-Net's log may hold.

    Raises:
        ValueError: the file holds other Python objects, or it is damaged.
        OSError: it cannot be opened.
    """
    try:
        with torch.serialization.safe_globals(_parts_of_numpy()):
            return torch.load(filename, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged file makes the unpickler fail in any way
        raise ValueError(
            f"semisam: {filename} is refused: it is damaged, or holds Python objects beside tensors and numbers, "
            f"and reading those would run code from the file ({type(error).__name__}). Use a checkpoint that training "
            "has written, checkpoint_best.pth for instance, or train anew"
        ) from error


def _parts_of_numpy() -> list[Any]:
    """What pickled numbers and arrays of NumPy are made of."""
    kinds = {type(np.dtype(code)) for code in np.typecodes["All"] if code not in "OV"}
    scalar: Any = np.float64(0).__reduce__()[0]
    array: Any = np.zeros(0).__reduce__()[0]
    spelled = [_spelled(part, f"numpy.{core}.multiarray") for part in (scalar, array) for core in ("core", "_core")]
    return [np.dtype, np.ndarray, *kinds, *spelled]


def _spelled(part: Callable[..., Any], module: str) -> Callable[..., Any]:
    """The same under the name that one of NumPy 1 and 2 writes into files."""

    def call(*args: Any) -> Any:
        return part(*args)

    call.__module__, call.__name__, call.__qualname__ = module, part.__name__, part.__name__
    return call


def plain(value: Any) -> Any:
    """The same with Python's numbers in the place of NumPy's, down through dictionaries, lists and tuples."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    return {key: plain(entry) for key, entry in value.items()} if type(value) is dict else value


def write_atomically(checkpoint: dict[str, Any], filename: str) -> None:
    """Writes beside `filename`, then renames: `filename` holds the old or the new checkpoint, never a part of one.

    Raises:
        DiskTrouble: there is no space, or no permission.
    """
    temporary = f"{filename}.tmp"  # one name: what a kill leaves behind, the next write replaces
    try:
        with writing(filename), open(temporary, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        with writing(filename):
            os.replace(temporary, filename)
    except BaseException:
        with contextlib.suppress(OSError):  # it may not have come into being
            os.unlink(temporary)
        raise


def reopen(folder: str) -> bool:
    """Makes the final checkpoint of a training that goes on, for it has become longer, the latest one.

    nnU-Net continues from a final checkpoint before any later one: killed, the run would begin at the old end again.
    """
    final = os.path.join(folder, "checkpoint_final.pth")
    if not os.path.isfile(final):
        return False
    with writing(final):
        os.replace(final, os.path.join(folder, "checkpoint_latest.pth"))
    return True


def stock_trainer_name(trainer: type) -> str:
    """The nearest nnU-Net class with the architecture of `trainer`.

    Under this name a checkpoint can be predicted with where this package is not installed.
    """
    builder = getattr(trainer, "build_network_architecture", None)
    for parent in trainer.__mro__:
        same = getattr(parent, "build_network_architecture", None) is builder
        if same and parent.__module__.startswith("nnunetv2."):
            return parent.__name__
    return trainer.__name__


def write_teacher_checkpoint(folder: str) -> None:
    """`checkpoint_final_teacher.pth` in `folder`: the final checkpoint with the teacher's weights."""
    checkpoint = read_checkpoint(os.path.join(folder, "checkpoint_final.pth"))
    checkpoint["network_weights"] = checkpoint[KEY].pop("teacher")
    write_atomically(checkpoint, os.path.join(folder, "checkpoint_final_teacher.pth"))


def random_state() -> dict[str, Any]:
    """State of every random number generator that a training draws from, as plain tensors and numbers."""
    name, keys, position, has_gauss, cached = cast(tuple, np.random.get_state())
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
        "python": random.getstate(),
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """The opposite of `random_state`. CUDA generators are restored where the number of devices is the same."""
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
