"""Semi-supervised nnU-Net with SAM as a second teacher. Importing this module loads nothing heavy."""

__version__ = "0.1.0"
__all__ = ["SemiSAM", "SemiSAMConfig", "nnUNetTrainerMeanTeacher", "nnUNetTrainerSemiSAM"]

_HOMES = {
    "SemiSAM": "nnunet_semisam.trainer",
    "SemiSAMConfig": "nnunet_semisam.config",
    "nnUNetTrainerMeanTeacher": "nnunet_semisam.trainer",
    "nnUNetTrainerSemiSAM": "nnunet_semisam.trainer",
}


def __getattr__(name):
    """Load a public name when it is first asked for: this file runs at every start of Python (see `_discovery`)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__():
    return [*globals(), *__all__]
