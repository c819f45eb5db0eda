"""Downloads against a server in this process that cuts, lies, dawdles and refuses; and the command around them."""

from __future__ import annotations

import errno
import hashlib
import http.server
import os
import re
import threading
import time

import pytest

from nnunet_semisam.cli import sam as command
from nnunet_semisam.sam import fetch as module
from nnunet_semisam.sam import registry
from nnunet_semisam.sam.fetch import Download, FetchError, fetch
from nnunet_semisam.sam.registry import CHECKPOINTS, Checkpoint, find_known

CONTENT = bytes(range(256)) * 4000
SUM = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT in the manner that the path names; notes the Range of every request."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        manner, asked = self.path.strip("/"), self.headers.get("Range")
        self.server.asked.append(asked)
        if manner == "missing":
            return self.send_error(404)
        if manner == "busy" and len(self.server.asked) < 3:
            return self.send_error(503)
        if manner in ("ftp", "moved"):
            self.send_response(302)
            self.send_header("Location", "ftp://localhost/x" if manner == "ftp" else "/good")
            return self.end_headers()
        body = CONTENT[::-1] if manner == "wrong" else b"<html>sign in</html>" if manner == "page" else CONTENT
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and manner != "ranges_unknown" else 0
        if start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if manner != "no_length":
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.send(body[start:], manner)

    def send(self, body, manner):
        if manner in ("cut", "ranges_unknown") and len(self.server.asked) < 3:
            self.wfile.write(body[: len(body) // 3])
        elif manner == "dead":
            return
        elif manner == "slow" and len(self.server.asked) < 2:
            self.wfile.write(body[:1000])
            self.wfile.flush()
            time.sleep(1.5)
        else:
            self.wfile.write(body)


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.asked, running.daemon_threads = [], True
    running.handle_error = lambda *_: None  # a client that hangs up is what some tests are about
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture
def bring(server, tmp_path):
    """Downloads in the manner of the server that is named; returns the file."""

    def call(manner: str, **settings):
        given = {"size": len(CONTENT), "sha256": SUM, "pause": 0.01, "timeout": 5.0, "tries": 3} | settings
        url = f"http://127.0.0.1:{server.server_address[1]}/{manner}"
        download = Download(url, tmp_path / "folder" / "sam.pth", **given)
        fetch(download, say=lambda text: None)
        return download.target

    return call


def only(file):
    return file.read_bytes() == CONTENT and [f.name for f in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("manner", ["good", "cut", "ranges_unknown", "no_length", "moved", "busy"])
def test_a_file_arrives_whole_and_alone(bring, manner):
    assert only(bring(manner))


def test_a_cut_download_goes_on_where_it_was(bring, server):
    bring("cut")
    third = len(CONTENT) // 3
    assert server.asked[:2] == [None, f"bytes={third}-"] and len(server.asked) == 3


def test_a_part_of_an_earlier_call_is_continued(bring, server, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "sam.pth.part").write_bytes(CONTENT[:5000])
    assert only(bring("good")) and server.asked == ["bytes=5000-"]


@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_a_complete_part_is_only_checked(bring, server, tmp_path, size):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "sam.pth.part").write_bytes(CONTENT)
    assert only(bring("good", size=size)) and len(server.asked) == (0 if size else 1)


@pytest.mark.parametrize("manner", ["good", "ranges_unknown"])
def test_a_part_that_is_too_long_is_begun_again(bring, tmp_path, manner):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "sam.pth.part").write_bytes(CONTENT + b"more")
    assert only(bring(manner))


def test_without_a_sum_no_part_is_continued(bring, server, tmp_path):
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


def test_silence_is_given_up_and_tried_again(bring, server):
    begin = time.perf_counter()
    assert only(bring("slow", timeout=0.2))
    assert time.perf_counter() - begin < 1.4 and server.asked == [None, "bytes=1000-"]


def test_a_server_that_sends_nothing_is_given_up(bring, server):
    with pytest.raises(FetchError, match="after 3 tries in a row: the connection ended after 0 of"):
        bring("dead")
    assert len(server.asked) == 3


def test_a_refusal_is_not_tried_again(bring, server, tmp_path):
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


def test_a_proxy_of_the_environment_is_used(server, monkeypatch, tmp_path):
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


def test_a_folder_that_cannot_be_written_to(bring, server, monkeypatch, tmp_path):
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


# --- the command ------------------------------------------------------------------------------------------------


@pytest.fixture
def shelf(server, monkeypatch, tmp_path):
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


def test_fetch_from_an_address_of_the_user(shelf, server, capsys):
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
