"""Checkpoints of published generalists: read as tensors only, and refused with a cure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from nnunet_semisam.sam.checkpoints import load_tensors


def read_weights(checkpoint: str | None, *, backend: str, example: str, key: str | None = None) -> dict[str, Tensor]:
    """The state dictionary in a file, or under `key` of the dictionary in it. Nothing but tensors is unpickled.

    Args:
        backend, example: name of the backend and of a file that it takes, for the messages.

    Raises:
        ValueError: no file was named, it cannot be read, or it holds something else.
        FileNotFoundError: no such file.
    """
    if checkpoint is None:
        raise ValueError(
            f"semisam: sam.backend {backend!r} ships no weights; set sam.checkpoint to a file such as {example}"
        )
    if not Path(checkpoint).is_file():
        raise FileNotFoundError(f"semisam: sam.checkpoint {checkpoint}: no such file; download it or correct the path")
    content = load_tensors(checkpoint)
    if key is not None and isinstance(content, Mapping) and key in content:
        content = content[key]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise ValueError(
            f"semisam: sam.checkpoint {checkpoint} is no plain state dictionary; give a published one, {example}"
        )
    return dict(content)
