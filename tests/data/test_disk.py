"""A full or read-only disk while preprocessing: the path is named, finished cases stay, no image is blamed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_semisam.data import disk, preprocess, work
from nnunet_semisam.data.disk import DiskTrouble, writing
from nnunet_semisam.data.manifest import Manifest
from nnunet_semisam.data.preprocess import preprocess_unlabeled


def run(toy, **more):
    manager, configuration, dataset_json = toy.managers()
    return preprocess_unlabeled(
        toy.raw.name, manager, configuration, dataset_json, num_processes=1, show_progress=False, **more
    )


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_the_place_and_a_cure_are_named(tmp_path, number):
    with pytest.raises(DiskTrouble, match=f"cannot write {tmp_path}.*{disk.CURES[number]}") as told, writing(tmp_path):
        raise OSError(number, os.strerror(number))
    assert told.value.errno == number


def test_other_errors_and_files_that_were_read_pass(tmp_path):
    for error in (ValueError("x"), FileNotFoundError(errno.ENOENT, "gone"), PermissionError(errno.EACCES, "no", "/in")):
        with pytest.raises(type(error)) as told, writing(tmp_path):
            raise error
        assert told.value is error


def test_a_library_that_hides_the_cause_is_seen_through(tmp_path, monkeypatch):
    with pytest.raises(DiskTrouble), writing(tmp_path):
        try:
            raise OSError(errno.ENOSPC, "no space")
        except OSError as error:
            raise RuntimeError("writer failed") from error
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 0}))
    with pytest.raises(DiskTrouble), writing(tmp_path / "not" / "yet"):
        raise RuntimeError("writer failed")


def fails_for(monkeypatch, module, name, case, number=errno.ENOSPC):
    call = getattr(module, name)

    def failing(source, target):
        if case in str(source):
            raise OSError(number, os.strerror(number))
        return call(source, target)

    monkeypatch.setattr(module, name, failing)


@pytest.mark.parametrize("skipped", [None, []], ids=["strict", "skip bad"])
def test_a_disk_that_fills_up_is_told_and_what_is_done_stays(toy, monkeypatch, skipped):
    for seed, case in enumerate("xyz"):
        toy.image(case, seed=seed)
    with monkeypatch.context() as patch:
        patch.setattr(preprocess, "shuffled", list)
        fails_for(patch, preprocess.os, "replace", "/y")
        with pytest.raises(DiskTrouble, match="nnUNetPlans_3d_fullres_unlabeled.*free some space"):
            run(toy, skipped=skipped)
    assert not skipped
    folder = toy.preprocessed / "nnUNetPlans_3d_fullres_unlabeled"
    assert [file.name for file in folder.glob("*.b2nd") if "_seg" not in file.name] == ["x.b2nd"]
    assert list(run(toy)) == ["x", "y", "z"]


def test_a_manifest_that_cannot_be_written_stays_as_it_was(toy, monkeypatch):
    toy.image("x")
    folder = run(toy)["x"].parent
    manifest = Manifest.load(folder, "settings")
    before = manifest.file.read_bytes()

    def full(self, text):
        self.write_bytes(text.encode()[:9])
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(DiskTrouble, match="_unlabeled.json"):
        manifest.save({"y": {}})
    assert manifest.file.read_bytes() == before and len(list(folder.parent.glob(".*"))) == 0


def test_the_command_tells_and_returns_1(toy, monkeypatch, capsys):
    from nnunet_semisam.cli.preprocess import main

    toy.image("x")
    fails_for(monkeypatch, preprocess.os, "replace", "/x", errno.EROFS)
    assert main(["-d", "901", "-c", "3d_fullres", "-np", "1"]) == 1
    assert "read-only" in capsys.readouterr().err


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 600 kB."""
    place = tmp_path / "tiny"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(place)]
    if os.name == "nt" or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)  # a memory map may be left


@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_on_a_real_disk(toy, tiny_disk, trouble):
    for seed, case in enumerate("xyz"):
        toy.image(case, seed=seed)
    for file in toy.preprocessed.iterdir():
        (tiny_disk / file.name).write_bytes(file.read_bytes())
        file.unlink()
    toy.preprocessed.rmdir()
    toy.preprocessed.symlink_to(tiny_disk)
    if trouble == "full":
        (tiny_disk / "filler").write_bytes(
            bytes(os.statvfs(tiny_disk).f_bavail * os.statvfs(tiny_disk).f_bsize - 12_000)
        )
    else:
        subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    with pytest.raises(DiskTrouble, match=f"cannot write {toy.preprocessed}"):
        run(toy)
    subprocess.run(["mount", "-o", "remount,rw", str(tiny_disk)], check=True)
    (tiny_disk / "filler").unlink(missing_ok=True)
    assert list(run(toy)) == ["x", "y", "z"]


def test_a_quota_that_the_writing_library_does_not_name_blames_no_image(toy, monkeypatch):
    resource = pytest.importorskip("resource")
    for seed, case in enumerate("xy"):
        toy.image(case, seed=seed)
    first = run(toy)  # whatever is imported for it is compiled now, and not cut off by the limit
    for file in first["x"].parent.iterdir():
        file.unlink()
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    skipped: list[str] = []
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(DiskTrouble, match="cannot write .*_unlabeled.*quota"):
            run(toy, skipped=skipped)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert skipped == [] and list(run(toy)) == ["x", "y"]


def test_other_trouble_in_that_library_is_no_quota(toy, monkeypatch):
    for seed, case in enumerate("xy"):
        toy.image(case, seed=seed)

    def no_memory(file, mode):
        if "/x" in file:
            return work.blosc2.NDArray(shape=())  # whatever it raises, it is no RuntimeError
        return opened(file, mode=mode)

    opened = work.blosc2.open
    monkeypatch.setattr(work.blosc2, "open", no_memory)
    skipped: list[str] = []
    assert list(run(toy, skipped=skipped)) == ["y"] and len(skipped) == 1 and "x_0000" in skipped[0]
