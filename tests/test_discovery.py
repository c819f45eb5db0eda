"""nnU-Net's own search finds every public trainer, with nothing but the package installed."""

import os
import pickle
import shutil
import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path

import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

import nnunet_semisam
from nnunet_semisam import _discovery

LENGTHS = ["1epoch", "5epochs", "10epochs", "20epochs", "50epochs", "100epochs", "250epochs"]
BASES = ["nnUNetTrainerSemiSAM", "nnUNetTrainerSemiSAMFaithful", "nnUNetTrainerMeanTeacher"]
TRAINERS = [*BASES, *(f"{base}_{length}" for base in BASES for length in LENGTHS)]
SHOW = f"import os; print(os.environ.get({_discovery.VARIABLE!r}, ''))"


@pytest.fixture
def announced(monkeypatch):
    monkeypatch.setenv(_discovery.VARIABLE, _discovery.shim_folder())


@pytest.mark.parametrize("name", TRAINERS)
def test_found_and_the_very_class_of_the_package(name, announced):
    found = recursive_find_trainer_class_by_name(name)
    home = "nnunet_semisam.presets" if "_" in name or "Faithful" in name else "nnunet_semisam.trainer"
    assert found is getattr(import_module(home), name)
    assert found.__name__ == name and issubclass(found, nnUNetTrainer)
    assert pickle.loads(pickle.dumps(found)) is found


def test_the_shim_folder_holds_re_exports_only(announced):
    files = {path.stem: path.read_text() for path in Path(_discovery.shim_folder()).glob("*.py")}
    assert sorted(files) == sorted(BASES)
    assert not any("class " in line for text in files.values() for line in text.splitlines() if line[:1] not in '"')


def test_public_names_are_loaded_when_asked_for():
    from nnunet_semisam.trainer import nnUNetTrainerSemiSAM

    assert nnunet_semisam.nnUNetTrainerSemiSAM is nnUNetTrainerSemiSAM
    assert set(nnunet_semisam.__all__) <= set(dir(nnunet_semisam))
    assert all(hasattr(nnunet_semisam, name) for name in nnunet_semisam.__all__)
    assert not hasattr(nnunet_semisam, "nnUNetTrainerSemiSAMM")


def test_appended_once_after_what_the_user_has_set():
    environ = {_discovery.VARIABLE: os.pathsep.join(["/mine", "/yours"])}
    _discovery.announce(environ)
    _discovery.announce(environ)
    assert environ[_discovery.VARIABLE].split(os.pathsep) == ["/mine", "/yours", _discovery.shim_folder()]


@pytest.mark.parametrize("value, announced", [("1", False), ("yes", False), ("0", True), ("", True)])
def test_opt_out(value, announced):
    environ = {_discovery.OPT_OUT: value}
    _discovery.announce(environ)
    assert (_discovery.VARIABLE in environ) is announced


def python(code, folder, *options, **environ):
    """Output of a fresh Python that starts outside the checkout with a bare environment."""
    base = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "SYSTEMROOT", "LD_LIBRARY_PATH")}
    return subprocess.run(
        [sys.executable, *options, "-c", code],
        cwd=folder,
        env=base | environ,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def installed():
    """The start-up line of the installed package."""
    try:
        files = metadata.files("nnunet_semisam") or []
    except metadata.PackageNotFoundError:
        pytest.skip("nnunet_semisam is not installed (pip install -e .)")
    lines = [Path(file.locate()) for file in files if file.name == "nnunet_semisam.pth"]
    assert len(lines) == 1, "the installed package has no start-up line"
    return lines[0]


def test_every_python_of_the_environment_knows_the_folder(installed, tmp_path):
    run = python(SHOW, tmp_path)
    assert (run.stdout.strip(), run.stderr) == (_discovery.shim_folder(), "")


def test_the_start_up_line_honours_the_opt_out(installed, tmp_path):
    run = python(SHOW, tmp_path, **{_discovery.OPT_OUT: "1"})
    assert (run.stdout.strip(), run.stderr) == ("", "")


def test_starting_python_loads_nothing_heavy(installed, tmp_path):
    before, after = (set(python("import sys; print(*sys.modules)", tmp_path, *o).stdout.split()) for o in (["-S"], []))
    assert "nnunet_semisam._discovery" in after - before
    assert not {"torch", "numpy", "nnunetv2", "argparse", "dataclasses"} & after


@pytest.mark.parametrize("state", ["gone", "empty", "broken", "whole"])
def test_a_half_removed_package_is_silent(installed, tmp_path, state):
    """The start-up line alone, beside a package in every state of decay; "whole" shows that the set-up itself works."""
    site, package = tmp_path / "site", tmp_path / "site" / "nnunet_semisam"
    (package if state != "gone" else site).mkdir(parents=True)
    shutil.copy(installed, site)
    if state == "broken":
        (package / "__init__.py").write_text("syntax error(")
    if state == "whole":
        source = Path(_discovery.__file__).parent
        shutil.copytree(_discovery.shim_folder(), package / "trainers")
        for name in ("__init__.py", "_discovery.py"):
            shutil.copy(source / name, package)
    code = f"import site, sys; sys.path.insert(0, {str(site)!r}); site.addsitedir({str(site)!r}); {SHOW}"
    run = python(code, tmp_path, "-S")
    assert (run.stdout.strip(), run.stderr) == (str(package / "trainers") if state == "whole" else "", "")
