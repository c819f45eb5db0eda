"""Imports go down only: the floors of the house, kept by reading the source.

Whatever is not listed is a door (commands, demo, reports) on the top floor: it may import anything, and nothing below
may import it.
"""

import ast
import sys
from pathlib import Path

import pytest

import nnunet_semisam

PACKAGE = Path(nnunet_semisam.__file__).parent
DOORS = 5
FLOORS = {
    "__init__": 0, "_discovery": 0, "ops": 0, "values": 0,
    "types": 1, "config": 1, "paths": 1,
    "data": 2, "sam": 2,
    "methods": 3,
    "trainer": 4, "teacher": 4, "checkpoint": 4, "curves": 4, "stream": 4, "presets": 4,
    "trust": 4, "tuning": 4, "guards": 4, "collapse": 4, "readiness": 4, "resume": 4, "cascade": 4,
    "optimization": 4, "step": 4, "ranks": 4,
}  # fmt: skip
BLIND = {"data": {"sam"}, "sam": {"data"}, "methods": {"data", "sam"}}
EXCEPTIONS = {("methods._sam_assisted", "sam")}
WITHOUT_NNUNET = {"__init__", "_discovery", "ops", "values", "types", "config", "paths", "sam", "methods"}
ONLY_TORCH = {"torch", "jaxtyping"}


def imported(source, module):
    """Full names of what a module imports, at any depth of the file; relative imports resolved."""
    here = ["nnunet_semisam", *module.split(".")]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*(here[: -node.level] if node.level else []), *filter(None, [node.module])]
            if base == ["nnunet_semisam"]:
                yield from (f"nnunet_semisam.{alias.name}" for alias in node.names)
            else:
                yield ".".join(base)


def problems(source, module):
    """What a module imports and must not; `module` is its name inside the package, `ops.__init__` for a package."""
    room = module.split(".")[0]
    for name in imported(source, module):
        top, *rest = name.split(".")
        target = rest[0] if rest else "__init__"
        if top == "nnunet_semisam":
            if FLOORS.get(target, DOORS) > FLOORS.get(room, DOORS):
                yield f"{module} imports {name} from a floor above"
            if target in BLIND.get(room, ()) and (module, target) not in EXCEPTIONS:
                yield f"{module} must not see {target}: {name}"
        elif top == "nnunetv2" and room in WITHOUT_NNUNET:
            yield f"{module} must not know nnU-Net: {name}"
        elif FLOORS.get(room, DOORS) == 0 and top not in ONLY_TORCH | sys.stdlib_module_names:
            yield f"{module} imports {name}; this floor knows torch only"


MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module):
    assert list(problems(MODULES[module].read_text(encoding="utf-8"), module)) == []


@pytest.mark.parametrize(
    "module, source",
    [
        ("ops.losses", "import numpy"),
        ("ops.losses", "from nnunet_semisam.types import PseudoLabel"),
        ("ops.losses", "from ..types import PseudoLabel"),
        ("ops.losses", "from .. import types"),
        ("config", "def late():\n    from nnunet_semisam.sam import build_backend"),
        ("types", "import nnunetv2"),
        ("data.pool", "from nnunet_semisam.sam import build_backend"),
        ("sam.labeler", "from nnunet_semisam import data"),
        ("sam.__init__", "from ..data import pool"),
        ("sam.backends.medsam", "from nnunetv2.paths import nnUNet_raw"),
        ("methods.fixmatch", "from nnunet_semisam.sam.labeler import SamLabeler"),
        ("methods.fixmatch", "from nnunet_semisam.data import pool"),
        ("methods._sam_assisted", "import nnunet_semisam.trainer"),
        ("trainer", "from nnunet_semisam.cli import plan"),
        ("stream", "import nnunet_semisam.demo"),
    ],
)
def test_the_rules_bite(module, source):
    assert len(list(problems(source, module))) == 1


@pytest.mark.parametrize(
    "module, source",
    [
        ("ops.losses", "from . import outputs\nfrom .outputs import OutputSpace\nimport math, torch"),
        ("methods._sam_assisted", "from ..sam.labeler import SamLabeler"),
        ("trainer", "import nnunetv2\nfrom nnunet_semisam import stream"),
        ("cli.plan", "from nnunet_semisam.trainer import nnUNetTrainerSemiSAM"),
        ("__init__", "from importlib import import_module"),
    ],
)
def test_what_is_allowed_passes(module, source):
    assert list(problems(source, module)) == []
