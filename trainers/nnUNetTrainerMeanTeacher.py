"""Where nnU-Net looks for `nnUNetTrainerMeanTeacher` and its length variants; the classes live in `nnunet_semisam`."""

from nnunet_semisam.presets import (
    nnUNetTrainerMeanTeacher,
    nnUNetTrainerMeanTeacher_1epoch,
    nnUNetTrainerMeanTeacher_5epochs,
    nnUNetTrainerMeanTeacher_10epochs,
    nnUNetTrainerMeanTeacher_20epochs,
    nnUNetTrainerMeanTeacher_50epochs,
    nnUNetTrainerMeanTeacher_100epochs,
    nnUNetTrainerMeanTeacher_250epochs,
)

__all__ = [
    "nnUNetTrainerMeanTeacher",
    "nnUNetTrainerMeanTeacher_1epoch",
    "nnUNetTrainerMeanTeacher_5epochs",
    "nnUNetTrainerMeanTeacher_10epochs",
    "nnUNetTrainerMeanTeacher_20epochs",
    "nnUNetTrainerMeanTeacher_50epochs",
    "nnUNetTrainerMeanTeacher_100epochs",
    "nnUNetTrainerMeanTeacher_250epochs",
]
