"""A web server in this process that cuts, lies, dawdles and refuses, each at a path of that name."""

from __future__ import annotations

import hashlib
import http.server
import re
import threading
import time

import pytest

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


def only(file):
    """Whether the file holds CONTENT and nothing else lies beside it."""
    return file.read_bytes() == CONTENT and [f.name for f in file.parent.iterdir()] == [file.name]
