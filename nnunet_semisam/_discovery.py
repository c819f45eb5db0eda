"""Tells nnU-Net where our trainers are: appends the folder `trainers/` to the environment variable `nnUNet_extTrainer`.

The line in `nnunet_semisam.pth` imports this file at every start of Python, so that `nnUNetv2_train … -tr
nnUNetTrainerSemiSAM` works right after `pip install`. Hence: standard library only, nothing printed, and whatever the
user has set is kept and comes first. `NNUNET_SEMISAM_NO_DISCOVERY=1` switches it off; nnU-Net then finds the trainers
if the user puts `shim_folder()` into the variable.
"""

import os

VARIABLE = "nnUNet_extTrainer"
OPT_OUT = "NNUNET_SEMISAM_NO_DISCOVERY"
_PACKAGE = os.path.dirname(os.path.abspath(__file__))


def shim_folder():
    """The folder nnU-Net has to search: inside an installed package, beside it in a checkout; None if missing."""
    for parent in (_PACKAGE, os.path.dirname(_PACKAGE)):
        folder = os.path.join(parent, "trainers")
        if os.path.isfile(os.path.join(folder, "nnUNetTrainerSemiSAM.py")):
            return folder
    return None


def announce(environ=os.environ):
    """Append the shim folder to the variable, once, unless the user opted out."""
    if environ.get(OPT_OUT, "0") not in ("", "0"):
        return
    folder = shim_folder()
    known = [path for path in environ.get(VARIABLE, "").split(os.pathsep) if path]
    if folder is not None and folder not in known:
        environ[VARIABLE] = os.pathsep.join([*known, folder])


announce()
