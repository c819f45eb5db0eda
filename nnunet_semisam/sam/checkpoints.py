"""Reading checkpoint files of strangers: tensors only. A file that would run code is refused, not run."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch


def load_tensors(file: str | Path) -> Any:
    """The content of a checkpoint on the CPU, read with `weights_only=True`.

    Raises:
        ValueError: the file holds objects beside tensors, plain containers and numbers, or it is damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols, where the file is not torch's
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the unpickler fail in any way
        if isinstance(error, pickle.UnpicklingError) and "global" in str(error).lower():
            raise ValueError(
                f"semisam: sam.checkpoint {file} is refused: it holds Python objects beside tensors, and reading them "
                "would run code from the file. Give the published file (nnUNetv2_semisam_sam list), or, if you trust "
                "this one, save its state dictionary alone to a new file"
            ) from error
        raise ValueError(
            f"semisam: sam.checkpoint {file} cannot be read ({type(error).__name__}); the file is damaged or "
            "no PyTorch checkpoint: download it again (nnUNetv2_semisam_sam fetch)"
        ) from error
