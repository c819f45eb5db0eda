"""Checkpoints of published generalists: read as tensors only, and refused with a cure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


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
    try:
        content: Any = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the unpickler fail in any way
        raise ValueError(
            f"semisam: sam.checkpoint {checkpoint} cannot be read ({error.__class__.__name__}); the file is damaged or "
            f"no checkpoint of tensors only: download it again, it should be like {example}"
        ) from error
    if key is not None and isinstance(content, Mapping) and key in content:
        content = content[key]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise ValueError(
            f"semisam: sam.checkpoint {checkpoint} is no plain state dictionary; give a published one, {example}"
        )
    return dict(content)
