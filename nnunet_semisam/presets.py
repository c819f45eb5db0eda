"""Named lengths of the public trainers, as nnU-Net has them: `nnUNetTrainerSemiSAM_5epochs` and so on.

Each is a class of this module (so that it can be pickled) whose name is the experiment.
"""

from __future__ import annotations

from dataclasses import replace

from nnunet_semisam.trainer import nnUNetTrainerMeanTeacher, nnUNetTrainerSemiSAM

LENGTHS = (1, 5, 10, 20, 50, 100, 250)


def _with_epochs(trainer: type, epochs: int) -> type:
    name = f"{trainer.__name__}_{epochs}epoch{'s' if epochs > 1 else ''}"
    return type(
        name,
        (trainer,),
        {
            "__module__": __name__,
            "__doc__": f"`{trainer.__name__}` for {epochs} epochs.",
            "preset": replace(trainer.preset, num_epochs=epochs),  # type: ignore[attr-defined]
        },
    )


_VARIANTS = [_with_epochs(t, n) for t in (nnUNetTrainerSemiSAM, nnUNetTrainerMeanTeacher) for n in LENGTHS]
globals().update({variant.__name__: variant for variant in _VARIANTS})
__all__ = [variant.__name__ for variant in _VARIANTS]  # noqa: PLE0605
