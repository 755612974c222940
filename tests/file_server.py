"""A server of files on this machine for the download tests, with the faults that servers have."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest import mock


@dataclass
class Served:
    """One file, how it is served, and the headers of the requests that came for it."""

    content: bytes
    etag: str = '"one"'
    date: str = ""
    ranges: bool = True
    cut: int | None = None  # bytes after which the connection ends, once
    status: int = 200
    location: str = ""
    length: bool = True
    headers: dict[str, str] = field(default_factory=dict)
    content_range: str = ""
    requests: list[dict[str, str]] = field(default_factory=list)


class Files(dict):
    """Path -> Served; ``url`` is the server's address."""

    url = ""


@contextlib.contextmanager
def serving() -> Iterator[Files]:
    """Serve what is put into the dict that this yields."""
    files = Files()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_) -> None:
            pass

        def do_GET(self) -> None:
            answer(self, files)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    files.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        with mock.patch.dict(os.environ, {"no_proxy": "*"}):
            yield files
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answer(handler: BaseHTTPRequestHandler, files: Files) -> None:
    served: Served = files.get(handler.path.lstrip("/"), Served(b"", status=404))
    served.requests.append(dict(handler.headers))
    handler.close_connection = True
    if served.location:
        return respond(handler, 302, {"Location": served.location, "Content-Length": "0"}, b"")
    if served.status != 200:
        return respond(handler, served.status, {"Content-Length": "0"}, b"")
    status, body, headers = 200, served.content, dict(served.headers)
    headers |= {"ETag": served.etag} if served.etag else {}
    headers |= {"Last-Modified": served.date} if served.date else {}
    wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    named = handler.headers.get("If-Range")
    if wanted and served.ranges and named in (None, served.etag, served.date):
        start, total = int(wanted[1]), len(served.content)
        if start >= total:
            return respond(handler, 416, {"Content-Range": f"bytes */{total}", "Content-Length": "0"}, b"")
        status, body = 206, served.content[start:]
        headers["Content-Range"] = served.content_range or f"bytes {start}-{total - 1}/{total}"
    if served.length:
        headers["Content-Length"] = str(len(body))
    if served.cut is not None:
        body, served.cut = body[: served.cut], None
    return respond(handler, status, headers, body)


def respond(handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes) -> None:
    handler.send_response(status)
    for key, value in headers.items():
        handler.send_header(key, value)
    handler.send_header("Connection", "close")
    handler.end_headers()
    with contextlib.suppress(ConnectionError):  # the other side may have seen enough
        handler.wfile.write(body)
