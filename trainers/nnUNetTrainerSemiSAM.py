"""Where nnU-Net looks for `nnUNetTrainerSemiSAM` and its length variants; the classes live in `nnunet_semisam`."""

from nnunet_semisam.presets import (
    nnUNetTrainerSemiSAM,
    nnUNetTrainerSemiSAM_1epoch,
    nnUNetTrainerSemiSAM_5epochs,
    nnUNetTrainerSemiSAM_10epochs,
    nnUNetTrainerSemiSAM_20epochs,
    nnUNetTrainerSemiSAM_50epochs,
    nnUNetTrainerSemiSAM_100epochs,
    nnUNetTrainerSemiSAM_250epochs,
)

__all__ = [
    "nnUNetTrainerSemiSAM",
    "nnUNetTrainerSemiSAM_1epoch",
    "nnUNetTrainerSemiSAM_5epochs",
    "nnUNetTrainerSemiSAM_10epochs",
    "nnUNetTrainerSemiSAM_20epochs",
    "nnUNetTrainerSemiSAM_50epochs",
    "nnUNetTrainerSemiSAM_100epochs",
    "nnUNetTrainerSemiSAM_250epochs",
]
