"""Downloads from a server that cuts, lies, dawdles and refuses: the right file in its place, or nothing."""

from __future__ import annotations

import errno
import hashlib
import os
import time

import pytest
from local_server import CONTENT, SUM, only, server  # noqa: F401 (a fixture)

from nnunet_semisam.sam import fetch as module
from nnunet_semisam.sam.fetch import Download, FetchError, fetch


@pytest.fixture
def bring(server, tmp_path):  # noqa: F811
    """Downloads in the manner of the server that is named; returns the file."""

    def call(manner: str, **settings):
        given = {"size": len(CONTENT), "sha256": SUM, "pause": 0.01, "timeout": 5.0, "tries": 3} | settings
        url = f"http://127.0.0.1:{server.server_address[1]}/{manner}"
        download = Download(url, tmp_path / "folder" / "sam.pth", **given)
        fetch(download, say=lambda text: None)
        return download.target

    return call


@pytest.mark.parametrize("manner", ["good", "cut", "ranges_unknown", "no_length", "moved", "busy"])
def test_a_file_arrives_whole_and_alone(bring, manner):
    assert only(bring(manner))


def test_a_cut_download_goes_on_where_it_was(bring, server):  # noqa: F811
    bring("cut")
    third = len(CONTENT) // 3
    assert server.asked[:2] == [None, f"bytes={third}-"] and len(server.asked) == 3


def test_a_part_of_an_earlier_call_is_continued(bring, server, tmp_path):  # noqa: F811
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "sam.pth.part").write_bytes(CONTENT[:5000])
    assert only(bring("good")) and server.asked == ["bytes=5000-"]


@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_a_complete_part_is_only_checked(bring, server, tmp_path, size):  # noqa: F811
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "sam.pth.part").write_bytes(CONTENT)
    assert only(bring("good", size=size)) and len(server.asked) == (0 if size else 1)


@pytest.mark.parametrize("manner", ["good", "ranges_unknown"])
def test_a_part_that_is_too_long_is_begun_again(bring, tmp_path, manner):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "sam.pth.part").write_bytes(CONTENT + b"more")
    assert only(bring(manner))


def test_without_a_sum_no_part_is_continued(bring, server, tmp_path):  # noqa: F811
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "sam.pth.part").write_bytes(b"of another file")
    assert only(bring("good", sha256=None, size=None)) and server.asked == [None]


def test_a_wrong_content_is_thrown_away_and_both_sums_are_told(bring, tmp_path):
    with pytest.raises(FetchError, match=f"{hashlib.sha256(CONTENT[::-1]).hexdigest()}, expected {SUM}"):
        bring("wrong")
    assert not list((tmp_path / "folder").iterdir())


def test_a_part_of_another_file_is_thrown_away(bring, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "sam.pth.part").write_bytes(b"x" * 5000)
    with pytest.raises(FetchError, match=f"expected {SUM}"):
        bring("good")
    assert only(bring("good"))


def test_another_size_is_told_before_it_is_downloaded(bring, tmp_path):
    with pytest.raises(FetchError, match=f"offers 20 bytes, but the file has {len(CONTENT)}"):
        bring("page")
    assert not list((tmp_path / "folder").iterdir())


def test_a_size_that_nobody_announced_is_checked_too(bring):
    with pytest.raises(FetchError, match=f"has {len(CONTENT)} bytes, expected 7"):
        bring("no_length", size=7)


def test_silence_is_given_up_and_tried_again(bring, server):  # noqa: F811
    begin = time.perf_counter()
    assert only(bring("slow", timeout=0.2))
    assert time.perf_counter() - begin < 1.4 and server.asked == [None, "bytes=1000-"]


def test_a_server_that_sends_nothing_is_given_up(bring, server):  # noqa: F811
    with pytest.raises(FetchError, match="after 3 tries in a row: the connection ended after 0 of"):
        bring("dead")
    assert len(server.asked) == 3


def test_a_refusal_is_not_tried_again(bring, server, tmp_path):  # noqa: F811
    with pytest.raises(FetchError, match="answers 404"):
        bring("missing")
    assert len(server.asked) == 1 and not list((tmp_path / "folder").iterdir())


@pytest.mark.parametrize("url", ["ftp://localhost/x", "file:///etc/hostname", "sam.pth"])
def test_only_web_addresses(tmp_path, url):
    with pytest.raises(FetchError, match="no address that starts with https"):
        fetch(Download(url, tmp_path / "sam.pth"))


def test_redirections_stay_in_the_web(bring):
    with pytest.raises(FetchError, match="redirects to ftp://localhost/x"):
        bring("ftp")


def test_a_proxy_of_the_environment_is_used(server, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("no_proxy", "")
    download = Download("http://elsewhere.invalid/good", tmp_path / "sam.pth", sha256=SUM, tries=1)
    assert fetch(download) == SUM and len(server.asked) == 1


def test_no_room(bring, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda place: usage)
    with pytest.raises(FetchError, match=f"folder has 1000 bytes left, {len(CONTENT)} are needed"):
        bring("good")


def test_a_disk_that_fills_up_meanwhile(bring, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_copy", full)
    with pytest.raises(FetchError, match=r"sam.pth.part cannot be written: No space left on device"):
        bring("good")


def test_a_folder_that_cannot_be_written_to(bring, server, monkeypatch, tmp_path):  # noqa: F811
    (tmp_path / "folder").mkdir()
    if os.geteuid() == 0:  # root may write anywhere

        def refuse(file, mode="r", *_, **__):
            raise PermissionError(errno.EACCES, "Permission denied", str(file))

        monkeypatch.setattr(module, "open", refuse, raising=False)
    else:
        (tmp_path / "folder").chmod(0o500)
    with pytest.raises(FetchError, match="sam.pth.part cannot be written: Permission denied"):
        bring("good")
    assert server.asked == []


def test_the_folder_is_a_file(bring, tmp_path):
    (tmp_path / "folder").write_text("")
    with pytest.raises(FetchError, match="folder.* cannot be written"):
        bring("good")
