"""Named variants of the public trainers: the published recipe, and lengths as nnU-Net has them.

Each is a class of this module (so that it can be pickled) whose name is the experiment.
"""

from __future__ import annotations

from dataclasses import replace

from nnunet_semisam.trainer import SemiSAM, nnUNetTrainerMeanTeacher, nnUNetTrainerSemiSAM

LENGTHS = (1, 5, 10, 20, 50, 100, 250)
FAITHFUL = {
    "method_args": {"loss": "mse", "perturbation": {"contrast": 0.0, "brightness": 0.0, "cutout": 0.0, "remap": 0.0}},
    "min_labeled_dice": 0.0,
    "terms": {
        "consistency": {"weight": 0.05, "schedule": "sigmoid_rampup"},
        "sam": {"weight": 0.05, "schedule": "sigmoid_rampdown"},
    },
    "sam": {
        **{"prompts": ["points"], "num_negative_points": 0, "rounds": 10, "components": None},
        **{"weigh_by": [], "hard": True, "min_agreement": 0.0, "trust": None, "tune": 0},
    },
}


class nnUNetTrainerSemiSAMFaithful(nnUNetTrainerSemiSAM):  # noqa: N801 (nnU-Net's naming)
    """SemiSAM by its published formulas, prompted by the teacher where the published code clicks by the truth.

    Loss: nnU-Net's + 0.05 up(t) mean((p - q)^2) + 0.05 down(t) mean((p - s)^2) on unlabeled patches, with the student's
    p, the teacher's q and SAM's hard masks s; up and down are exp(-5 (1 - t/T)^2) and its mirror image over the whole
    training; EMA decay 0.99; up to ten answers of SAM, clicked where the one before is in error; noise of 0.1, clipped
    at 0.2.

    What differs from the code of arXiv 2312.06316: prompts (see above, and none where the teacher has no object of 20
    voxels; a missing and a surplus place are clicked per answer, not one of them, earlier clicks stay, and only where
    the teacher is sure), voxels of objects that SAM was not asked about count less or not (with several classes), no
    mask prompt in between, consistency on unlabeled patches only, the noise on the student's
    view, SAM's own threshold (logit 0, not 0.5), and everything that is nnU-Net's: network, loss, optimiser,
    augmentation, sampling.
    """

    preset = nnUNetTrainerSemiSAM.preset.with_section(FAITHFUL)


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


def find_trainer(name: str) -> type[SemiSAM] | None:
    """The trainer of this package with that name."""
    return next((trainer for trainer in (*_TRAINERS, *_VARIANTS) if trainer.__name__ == name), None)


def trainer_names() -> list[str]:
    """All trainers of this package, as `-tr` takes them."""
    return [trainer.__name__ for trainer in (*_TRAINERS, *_VARIANTS)]


_TRAINERS = (nnUNetTrainerSemiSAM, nnUNetTrainerSemiSAMFaithful, nnUNetTrainerMeanTeacher)
_VARIANTS = [_with_epochs(t, n) for t in _TRAINERS for n in LENGTHS]
globals().update({variant.__name__: variant for variant in _VARIANTS})
__all__ = ["nnUNetTrainerSemiSAMFaithful", *(variant.__name__ for variant in _VARIANTS)]  # noqa: PLE0605
