"""Ground rules of the tests: array shapes in signatures are checked, seeds are fixed, torch keeps to one thread."""

import os
import pkgutil
import random

os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np  # noqa: E402 (matplotlib's backend is chosen first)
import pytest  # noqa: E402
import torch  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

import nnunet_semisam  # noqa: E402

# signatures are checked but where user input arrives: `config` and `cli` refuse wrong types with words of their own
DOORS = {"cli", "config"}
MODULES = [f"nnunet_semisam.{m.name}" for m in pkgutil.iter_modules(nnunet_semisam.__path__) if m.name not in DOORS]
install_import_hook(MODULES, "typecheck.typecheck")
torch.set_num_threads(1)


def _declare_torchvision_operators():
    """Lets a CUDA build of torchvision be imported beside a CPU build of torch: nnU-Net's trainer search imports it."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None


_TORCHVISION = _declare_torchvision_operators()  # the operators live as long as this object


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _seeds():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
