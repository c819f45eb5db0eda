"""Downloads of checkpoints: resumed after a cut, and put in place only when size and sha256 are right.

What has arrived lies in `FILE.part` until it is complete. Proxies are taken from the usual variables (`https_proxy`).
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tqdm import tqdm

from nnunet_semisam.paths import sha256_of

CHUNK = 1 << 18  # bytes
PASSING = (408, 425, 429, 500, 502, 503, 504)  # answers of a server after which it is worth trying again
INTERRUPTED = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError)


class FetchError(RuntimeError):
    """The file was not put in place. The message has the reason."""


@dataclass(frozen=True)
class Download:
    """One file to be brought.

    Args:
        target: where it belongs.
        size: in bytes, None if unknown.
        sha256: hexadecimal, None if unknown.
        timeout: seconds without a byte after which a connection is given up.
        tries: connections in a row that bring nothing before giving up.
        pause: seconds before the second try; doubled for every further one.
    """

    url: str
    target: Path
    size: int | None = None
    sha256: str | None = None
    timeout: float = 30.0
    tries: int = 4
    pause: float = 1.0

    @property
    def part(self) -> Path:
        return self.target.with_name(f"{self.target.name}.part")


def fetch(download: Download, say: Callable[[str], None] = print) -> str:
    """Brings the file, checks it, and puts it in place in one move; returns its sha256.

    A `.part` of an earlier attempt is continued where a sum is known that tells whether both halves belong together.

    Raises:
        FetchError: no connection, a refusal, no room, no permission, or a content that is not the expected one.
    """
    _require_web(download.url)
    part = download.part
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        if download.sha256 is None:
            part.unlink(missing_ok=True)
        with open(part, "ab"):  # a folder that cannot be written to is told before anything is downloaded
            pass
        _transfer(download, say)
        found = sha256_of(part)
        _verify(download, found)
        os.replace(part, download.target)
    except OSError as error:
        _drop_if_empty(part)
        raise FetchError(f"{error.filename or part} cannot be written: {error.strerror or error}") from error
    except FetchError:
        _drop_if_empty(part)
        raise
    return found


def _transfer(download: Download, say: Callable[[str], None]) -> None:
    """Fills the part file, over as many connections as it takes."""
    part, failures, furthest = download.part, 0, download.part.stat().st_size
    while part.stat().st_size != download.size:
        before = part.stat().st_size
        try:
            _connect(download)
            return
        except urllib.error.HTTPError as error:
            if error.code == 416 and before:  # there is nothing beyond what is here already
                if error.headers.get("Content-Range") == f"bytes */{before}":
                    return
                part.write_bytes(b"")
            elif error.code not in PASSING:
                raise FetchError(f"{download.url} answers {error.code} {error.reason}") from error
            reason = f"{error.code} {error.reason}"
        except INTERRUPTED as error:
            reason = str(getattr(error, "reason", None) or error) or type(error).__name__
        failures = 1 if part.stat().st_size > furthest else failures + 1
        furthest = max(furthest, part.stat().st_size)
        if failures >= download.tries:
            raise FetchError(f"{download.url} cannot be reached after {failures} tries in a row: {reason}")
        wait = download.pause * 2 ** (failures - 1)
        say(f"interrupted ({reason}) at {part.stat().st_size} bytes; trying again in {wait:g} s")
        time.sleep(wait)


def _connect(download: Download) -> None:
    """One connection: continues the part file, or restarts it where the server does not continue.

    Raises:
        ConnectionError: it ended too early.
    """
    offset = download.part.stat().st_size
    headers = {"User-Agent": "nnunet_semisam", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    opener = urllib.request.build_opener(_WebOnly)
    with opener.open(urllib.request.Request(download.url, headers=headers), timeout=download.timeout) as response:
        if response.status != 206 or not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
            offset = 0
        length = response.headers.get("Content-Length")
        total = offset + int(length) if length is not None and length.strip().isdigit() else None
        _require_room(download, total, offset)
        with open(download.part, "r+b") as file:
            file.truncate(offset)
            file.seek(offset)
            _copy(response, file, offset, total)
            file.flush()
            os.fsync(file.fileno())
    arrived = download.part.stat().st_size
    if total is not None and arrived < total:
        raise ConnectionError(f"the connection ended after {arrived} of {total} bytes")


def _copy(response: http.client.HTTPResponse, file: IO[bytes], offset: int, total: int | None) -> None:
    with tqdm(total=total, initial=offset, unit="B", unit_scale=True, unit_divisor=1024, mininterval=1) as bar:
        while block := _read(response, CHUNK if total is None else min(CHUNK, total - bar.n)):
            file.write(block)
            bar.update(len(block))


def _read(response: http.client.HTTPResponse, most: int) -> bytes:
    try:
        return response.read1(most) if most else b""
    except OSError as error:  # of the network: those of the disk are told in other words
        raise ConnectionError(str(error)) from error


def _require_room(download: Download, total: int | None, offset: int) -> None:
    if total is None:
        return
    if download.size not in (None, total):
        download.part.write_bytes(b"")
        raise FetchError(f"{download.url} offers {total} bytes, but the file has {download.size}: it is another file")
    free = shutil.disk_usage(download.part.parent).free
    if total - offset > free:
        raise FetchError(f"{download.part.parent} has {free} bytes left, {total - offset} are needed: make room there")


def _verify(download: Download, found: str) -> None:
    size = download.part.stat().st_size
    wrong = []
    if download.size not in (None, size):
        wrong.append(f"it has {size} bytes, expected {download.size}")
    if download.sha256 is not None and found != download.sha256.lower():
        wrong.append(f"its sha256 is {found}, expected {download.sha256.lower()}")
    if wrong:
        download.part.unlink()
        raise FetchError(f"what {download.url} sent is not the file, and was thrown away: {' and '.join(wrong)}")


def _require_web(url: str) -> None:
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise FetchError(f"{url!r} is no address that starts with https:// or http://")


def _drop_if_empty(part: Path) -> None:
    with contextlib.suppress(OSError):
        if part.stat().st_size == 0:
            part.unlink()


class _WebOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirections within http and https, and never from https down to http."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        target = urllib.parse.urlsplit(newurl).scheme
        if target not in ("http", "https") or (req.type == "https" and target == "http"):
            raise FetchError(f"{req.full_url} redirects to {newurl}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
