"""What keeps nnU-Net from finding any trainer outside its own package, told before hours are spent."""

from __future__ import annotations

import contextlib
from importlib.metadata import PackageNotFoundError, version


def require_torchvision() -> None:
    """Imports torchvision: nnU-Net's look-up imports all of its own trainers first, and some of them do.

    Raises:
        ImportError: it cannot be imported, most often because it was built for another torch; with the cure.
    """
    try:
        import torchvision  # noqa: F401
    except Exception as error:  # RuntimeError, OSError and ImportError have been seen
        found = []
        for package in ("torch", "torchvision"):
            with contextlib.suppress(PackageNotFoundError):
                found.append(f"{package} {version(package)}")
        raise ImportError(
            f"torchvision cannot be imported ({type(error).__name__}: {error}), so that nnU-Net finds no trainer of "
            f"other packages; installed are {' and '.join(found)}. Install two that belong together, from one place: "
            "pip install --force-reinstall torch torchvision"
        ) from error
