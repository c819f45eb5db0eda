"""`nnUNetv2_semisam_sam list` and `fetch`: what is known, what is brought, and what is said when it cannot be."""

from __future__ import annotations

import re

import pytest
from local_server import CONTENT, SUM, only, server  # noqa: F401 (a fixture)

from nnunet_semisam.cli import sam as command
from nnunet_semisam.sam import fetch as module
from nnunet_semisam.sam import registry
from nnunet_semisam.sam.registry import CHECKPOINTS, Checkpoint, find_known


@pytest.fixture
def shelf(server, monkeypatch, tmp_path):  # noqa: F811
    """One known checkpoint with a sum, one without, on the local server; returns the folder."""
    address = f"http://127.0.0.1:{server.server_address[1]}"
    known = (
        Checkpoint("good", "good.pth", "segment_anything", "2D", "MIT", "a page", f"{address}/good", len(CONTENT), SUM),
        Checkpoint("bare", "bare.pth", "none_yet", "3D", "CC0", "a page", f"{address}/good", note="mind the gap"),
        Checkpoint("manual", "manual.pth", "none_yet", "3D", "CC0", "https://a.page", sha256=SUM, size=len(CONTENT)),
    )
    monkeypatch.setattr(registry, "CHECKPOINTS", known)
    monkeypatch.setenv("nnUNet_sam_checkpoints", str(tmp_path / "shelf"))
    return tmp_path / "shelf"


def test_list_tells_what_is_known_and_what_is_there(shelf, capsys):
    assert command.main(["list"]) == 0
    told = capsys.readouterr().out
    for words in ("sam.backend segment_anything", "no backend of this version (none_yet)", SUM, "sha256: unknown"):
        assert words in told
    assert f"belongs to: {shelf / 'good.pth'} (not there)" in told and "licence of the weights: MIT" in told
    shelf.mkdir()
    (shelf / "good.pth").write_bytes(CONTENT)
    (shelf / "manual.pth").write_bytes(b"short")
    command.main(["list"])
    told = capsys.readouterr().out
    assert "good.pth (there)" in told and "manual.pth (ANOTHER SIZE, 5 bytes" in told


def test_fetch_checks_and_tells_the_licence(shelf, capsys):
    assert command.main(["fetch", "good"]) == 0
    told = capsys.readouterr().out
    assert "licence of the weights MIT" in told and f"{SUM}, as expected" in told
    assert only(shelf / "good.pth")
    assert command.main(["fetch", "good.pth"]) == 0
    assert "is there already" in capsys.readouterr().out


def test_fetch_without_a_known_sum_says_that_nothing_vouches(shelf, capsys):
    assert command.main(["fetch", "bare"]) == 0
    told = capsys.readouterr().out
    assert f"its sha256 is {SUM}; no sum is known" in told and "nothing vouches" in told and "mind the gap" in told


def test_a_sum_of_the_user_is_checked(shelf, capsys):
    assert command.main(["fetch", "bare", "--sha256", "0" * 64]) == 1
    assert f"{SUM}, expected {'0' * 64}" in capsys.readouterr().err and not (shelf / "bare.pth").exists()
    with pytest.raises(SystemExit):
        command.main(["fetch", "bare", "--sha256", "abc"])


def test_fetch_from_an_address_of_the_user(shelf, server, capsys):  # noqa: F811
    assert command.main(["fetch", "manual", "--url", f"http://127.0.0.1:{server.server_address[1]}/good"]) == 0
    assert only(shelf / "manual.pth")


def test_a_wrong_file_that_is_there_is_named(shelf, capsys):
    shelf.mkdir()
    (shelf / "good.pth").write_bytes(b"old")
    assert command.main(["fetch", "good"]) == 1
    assert "remove it first" in capsys.readouterr().err and (shelf / "good.pth").read_bytes() == b"old"


def test_offline_the_file_to_bring_is_told_exactly(shelf, capsys, monkeypatch):
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    known = registry.find_known("good").url
    assert command.main(["fetch", "good", "--url", "http://127.0.0.1:9/sam.pth"]) == 1
    told = capsys.readouterr().err
    for words in ("http://127.0.0.1:9/sam.pth cannot be reached", f"from: {known}", f"size: {len(CONTENT)} bytes", SUM):
        assert words in told
    assert f"to: {shelf / 'good.pth'}" in told and not list(shelf.iterdir())
    assert command.main(["fetch", "manual"]) == 1
    assert "no direct address" in capsys.readouterr().err


def test_unknown_names_are_told_the_known_ones(shelf, capsys):
    assert command.main(["fetch", "sam9"]) == 1
    assert "unknown checkpoint 'sam9'; known are good, bare, manual" in capsys.readouterr().err


def test_the_registry_is_plausible():
    assert len({c.name for c in CHECKPOINTS} | {c.file for c in CHECKPOINTS}) >= 2 * len(CHECKPOINTS) - 1
    for checkpoint in CHECKPOINTS:
        assert find_known(checkpoint.name) is find_known(checkpoint.file) is checkpoint
        assert checkpoint.sha256 is None or re.fullmatch("[0-9a-f]{64}", checkpoint.sha256)
        assert checkpoint.url is None or checkpoint.url.startswith("https://")
        assert checkpoint.licence and checkpoint.page.startswith("https://")
