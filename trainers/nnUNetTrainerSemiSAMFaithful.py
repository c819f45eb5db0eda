"""Where nnU-Net looks for `nnUNetTrainerSemiSAMFaithful` and its lengths; the classes live in `nnunet_semisam`."""

from nnunet_semisam.presets import (
    nnUNetTrainerSemiSAMFaithful,
    nnUNetTrainerSemiSAMFaithful_1epoch,
    nnUNetTrainerSemiSAMFaithful_5epochs,
    nnUNetTrainerSemiSAMFaithful_10epochs,
    nnUNetTrainerSemiSAMFaithful_20epochs,
    nnUNetTrainerSemiSAMFaithful_50epochs,
    nnUNetTrainerSemiSAMFaithful_100epochs,
    nnUNetTrainerSemiSAMFaithful_250epochs,
)

__all__ = [
    "nnUNetTrainerSemiSAMFaithful",
    "nnUNetTrainerSemiSAMFaithful_1epoch",
    "nnUNetTrainerSemiSAMFaithful_5epochs",
    "nnUNetTrainerSemiSAMFaithful_10epochs",
    "nnUNetTrainerSemiSAMFaithful_20epochs",
    "nnUNetTrainerSemiSAMFaithful_50epochs",
    "nnUNetTrainerSemiSAMFaithful_100epochs",
    "nnUNetTrainerSemiSAMFaithful_250epochs",
]
