"""Backends are found by file name, and mistakes in their configuration say what exists."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
import torch

from nnunet_semisam.config import SamConfig
from nnunet_semisam.paths import checkpoint_folder, find_checkpoint
from nnunet_semisam.sam import (
    build_backend,
    check_backend_args,
    find_backend,
    list_backends,
    missing_checkpoints,
)

CPU = torch.device("cpu")
OWN = """
from nnunet_semisam.sam.base import SamBackend

class MySam(SamBackend):
    ndims = (3,)

    def __init__(self, checkpoint, device, *, colour: str = "red"):
        self.given = (checkpoint, device, colour)

    def embed(self, image): ...
    def decode(self, embedding, prompts): ...
    def to(self, device): ...
"""
MEASURING = OWN.replace('*, colour: str = "red"', "*, spacing=None").replace("colour", "spacing")


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A package of somebody else with a backend, and a module without one."""
    (tmp_path / "strange_lab").mkdir()
    for name, text in {
        "__init__": "",
        "my_sam": OWN,
        "my_measuring_sam": MEASURING,
        "empty": "",
        "broken": "import not_installed_at_all",
    }.items():
        (tmp_path / "strange_lab" / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [m for m in sys.modules if m.startswith("strange_lab")]:
        del sys.modules[name]


def test_listing_imports_no_backend():
    code = (
        "import sys; from nnunet_semisam.sam import list_backends; print(list_backends());"
        "assert not any(m.startswith('nnunet_semisam.sam.backends.') or m == 'segment_anything' for m in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "segment_anything" in found.stdout and "embedded" in found.stdout


@pytest.mark.parametrize("name", list_backends())
def test_every_backend_is_found_under_its_name(name):
    assert find_backend(name).__module__.endswith(name)


def test_a_backend_of_somebody_else(own, tmp_path):
    file = tmp_path / "weights.pth"
    file.touch()
    config = SamConfig(backend="strange_lab.my_sam", checkpoint=str(file), backend_args={"colour": "blue"})
    assert build_backend(config, CPU).given == (str(file), CPU, "blue")
    assert build_backend(SamConfig(backend="strange_lab.my_sam"), CPU).given == (None, CPU, "red")


def test_the_voxel_size_reaches_backends_that_ask_for_it(own):
    measuring, other = SamConfig(backend="strange_lab.my_measuring_sam"), SamConfig(backend="strange_lab.my_sam")
    assert build_backend(measuring, CPU, [3, 1, 1]).given == (None, CPU, (3, 1, 1))
    assert build_backend(measuring, CPU).given == (None, CPU, None)
    assert build_backend(other, CPU, [3, 1, 1]).given == (None, CPU, "red")
    chosen = SamConfig(backend="strange_lab.my_measuring_sam", backend_args={"spacing": [2, 2, 2]})
    assert build_backend(chosen, CPU, [3, 1, 1]).given == (None, CPU, [2, 2, 2])
    assert chosen.backend_args == {"spacing": [2, 2, 2]} and measuring.backend_args == {}


def test_strangers(own):
    for name in ("sam_ultra", "strange_lab.nothing", "no_such_lab.sam", ".sam"):
        with pytest.raises(ValueError, match=f"unknown sam.backend '{name}'; known are .*segment_anything"):
            find_backend(name)
    with pytest.raises(ValueError, match="dotted name means .* none named 'no_such_lab' was found on the Python path"):
        find_backend("no_such_lab.sam")
    with pytest.raises(ValueError, match="none named 'strange_lab.nothing' was found"):
        find_backend("strange_lab.nothing")
    with pytest.raises(ValueError, match="strange_lab.empty must define one SamBackend; it defines 0"):
        find_backend("strange_lab.empty")
    with pytest.raises(ModuleNotFoundError, match="not_installed_at_all"):
        find_backend("strange_lab.broken")
    with pytest.raises(ValueError, match="unknown key 'color' .*strange_lab.my_sam.* known keys are colour"):
        build_backend(SamConfig(backend="strange_lab.my_sam", backend_args={"color": 1}), CPU)
    with pytest.raises(ValueError, match="unknown key 'device'"):
        build_backend(SamConfig(backend="strange_lab.my_sam", backend_args={"device": "cpu"}), CPU)


@pytest.mark.parametrize(
    "backend, key, value, wanted",
    [
        ("embedded", "rounds", "many", "it must be an integer"),
        ("embedded", "rounds", True, "it must be an integer"),
        ("embedded", "rounds", 1.0, "it must be an integer"),
        ("embedded", "rounds", None, "it must be an integer"),
        ("embedded", "rounds", 0, "at least once"),
        ("embedded", "channels", "a", "it must be a list of integers"),
        ("embedded", "channels", 0, "it must be a list of integers"),
        ("embedded", "channels", [0, "a"], "it must be a list of integers"),
        ("embedded", "channels", [], "at least one channel"),
        ("embedded", "keep", "1", "it must be a number"),
        ("embedded", "keep", float("nan"), "it must be a number"),
        ("embedded", "grow", -0.5, "it must be a number of at least 0"),
        ("segment_anything", "model", 3, "it must be a string, or null"),
        ("segment_anything", "channels", [0.5], "it must be a list of integers, or null"),
        ("segment_anything", "input_size", "big", "it must be an integer"),
        ("strange_lab.my_sam", "colour", ["red"], "it must be a string"),
    ],
)
def test_a_backend_argument_that_cannot_be_is_named_with_what_is_wanted(own, backend, key, value, wanted):
    with pytest.raises(ValueError) as error:
        build_backend(SamConfig(backend=backend, backend_args={key: value}), CPU)
    assert str(error.value).startswith(f"semisam: sam.backend_args.{key} is {value!r}; ") and wanted in str(error.value)


@pytest.mark.parametrize(
    "backend, prompts",
    [("medsam", ("mask", "points")), ("sam_med3d", ("box",)), ("sam_med3d", ("box", "negative_points"))],
)
@pytest.mark.parametrize("inside", [False, True])
def test_prompts_that_a_backend_does_not_hear_are_refused_before_anything_is_loaded(backend, prompts, inside):
    config = SamConfig(backend=backend, prompts=prompts)
    if inside:  # an ensemble
        members = [{"backend": "embedded"}, {"backend": backend}]
        config = SamConfig(backend="ensemble", backend_args={"members": members}, prompts=prompts)
    with pytest.raises(ValueError, match=f"sam.prompts is {', '.join(prompts)}, but sam.backend '{backend}' hears"):
        check_backend_args(config)


def test_a_mistaken_member_is_found_without_building_it():
    members = [{"backend": "embedded", "backend_args": {"rounds": "many"}}]
    with pytest.raises(ValueError, match="rounds is 'many'; it must be an integer"):
        check_backend_args(SamConfig(backend="ensemble", backend_args={"members": members}))
    with pytest.raises(ValueError, match="members is"):
        check_backend_args(SamConfig(backend="ensemble"))


def test_checkpoints_that_are_missing_are_told_for_every_member(tmp_path):
    there = tmp_path / "there.pth"
    there.touch()
    members = [{"backend": "embedded"}, {"backend": "sam_med3d"}]
    members += [{"backend": "segment_anything", "checkpoint": str(path)} for path in (there, tmp_path / "late.pth")]
    missing = missing_checkpoints(SamConfig(backend="ensemble", backend_args={"members": members}))
    assert len(missing) == 2
    assert "'sam_med3d' needs a checkpoint; set sam.checkpoint" in missing[0] and "late.pth" in missing[1]
    assert not missing_checkpoints(SamConfig())


def test_right_backend_arguments_are_taken():
    for name, args in (
        ("embedded", {"keep": 1, "channels": [1, 0], "rounds": 2}),
        ("segment_anything", {"channels": None, "model": "vit_b", "input_size": 224}),
    ):
        check_backend_args(SamConfig(backend=name, backend_args=args))


DAMAGED = {
    "IndexError": b".",
    "UnicodeDecodeError": b"cos\xff\n",
    "AttributeError": pickle.dumps({"2d": 3, 4: "a"}),
    "UnpicklingError": b"no checkpoint",
    "EOFError": b"",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("name", ["embedded", "segment_anything", "sam_med3d"])
def test_a_damaged_checkpoint_is_named_with_its_cure(name, content, tmp_path):
    if name == "segment_anything":
        pytest.importorskip("segment_anything")
    file = tmp_path / "weights.pth"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="weights.pth.*(give|download)"):
        build_backend(SamConfig(backend=name, checkpoint=str(file)), CPU)


def test_checkpoints_are_found_in_the_folder_of_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_sam_checkpoints", str(tmp_path))
    (tmp_path / "sam.pth").touch()
    assert find_checkpoint("sam.pth") == find_checkpoint(str(tmp_path / "sam.pth")) == tmp_path / "sam.pth"
    with pytest.raises(
        FileNotFoundError, match=f"'other.pth', looked for in {tmp_path} .the variable nnUNet_sam_check"
    ):
        find_checkpoint("other.pth")
    for folder in ("models", str(tmp_path / "models")):
        (tmp_path / "models").mkdir(exist_ok=True)
        with pytest.raises(FileNotFoundError, match=f"is '{folder}', but {tmp_path}/models is a folder; name the file"):
            find_checkpoint(folder)
    with pytest.raises(FileNotFoundError, match="/nowhere/sam.pth: no such file"):
        find_checkpoint("/nowhere/sam.pth")


def test_the_default_folder_is_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("nnUNet_sam_checkpoints", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert checkpoint_folder() == tmp_path / "nnunet_semisam"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert checkpoint_folder() == tmp_path / "home" / ".cache" / "nnunet_semisam"
    with pytest.raises(FileNotFoundError, match="the default; nnUNet_sam_checkpoints is not set"):
        find_checkpoint("sam.pth")
