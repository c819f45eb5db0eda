"""Training curves of the two runs, out of their final checkpoints."""

from __future__ import annotations

from pathlib import Path


def read_curves(checkpoint: Path) -> dict[str, list[float]]:
    """One value per epoch and name: "loss/supervised", and the terms and weights of a SemiSAM run."""
    from nnunet_semisam.checkpoint import KEY, read_checkpoint

    content = read_checkpoint(str(checkpoint))
    losses = [float(value) for value in content["logging"]["train_losses"]]
    return {"loss/supervised": losses, **content[KEY]["curves"]}
