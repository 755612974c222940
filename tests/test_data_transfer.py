"""Fetching one file: going on, starting over, limits, checksums and redirects, against a server on this machine."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import socket
import ssl
import subprocess
import threading
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler

import pytest
from file_server import Served, serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pdadmm.data import transfer as module
from pdadmm.data.transfer import transfer
from pdadmm.errors import InputError

CONTENT = bytes(range(256)) * 40
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(scope="module")
def server():
    with serving() as files:
        yield files


@pytest.fixture
def fetch(server, tmp_path):
    """Fetch ``name`` of the server into the test's folder."""

    def call(name: str = "f", limit: int = 10**6, sha256: str = "", **more) -> str:
        return transfer(f"{server.url}/{name}", tmp_path / "f", limit, sha256, allow_local_http=True, **more)

    return call


def left(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_arrives_whole_and_alone(server, fetch, tmp_path):
    server["f"] = Served(CONTENT)
    seen = []
    assert fetch(watch=lambda *row: seen.append(row)) == DIGEST
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert left(tmp_path) == ["f"]
    assert seen[-1] == ("f", len(CONTENT), len(CONTENT))
    assert server["f"].requests[0]["Accept-Encoding"] == "identity"


@given(cut=st.integers(1, len(CONTENT) - 1), etag=st.booleans())
@settings(max_examples=15, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_goes_on_where_it_stopped(server, fetch, tmp_path, cut, etag):
    (tmp_path / "f").unlink(missing_ok=True)
    date = "" if etag else "Sat, 01 Jan 2022 00:00:00 GMT"
    server["f"] = Served(CONTENT, etag='"one"' if etag else "", date=date, cut=cut)
    with pytest.raises(InputError, match=rf"{cut} bytes of {len(CONTENT)}.*run the same command again"):
        fetch()
    assert (tmp_path / "f.partial").stat().st_size == cut
    assert not (tmp_path / "f").exists()
    assert fetch(sha256=DIGEST) == DIGEST
    assert server["f"].requests[1]["Range"] == f"bytes={cut}-"
    assert server["f"].requests[1]["If-Range"] == (date or '"one"')
    assert left(tmp_path) == ["f"]


CHANGES = {
    "no ranges": {"ranges": False},
    "another file": {"etag": '"two"'},
    "weak tag": {"etag": 'W/"one"'},
    "another length, shorter": {"content": CONTENT[:50]},
    "another length, longer": {"content": CONTENT + b"more"},
    "wrong part": {"content_range": f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}"},
    "no numbers": {"content_range": "bytes */*"},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_it_starts_over_where_it_cannot_go_on(server, fetch, tmp_path, changes):
    server["f"] = Served(CONTENT, cut=100)
    with pytest.raises(InputError, match="100 bytes of"):
        fetch()
    server["f"] = served = Served(**({"content": CONTENT} | changes))
    assert fetch() == hashlib.sha256(served.content).hexdigest()
    assert (tmp_path / "f").read_bytes() == served.content
    assert left(tmp_path) == ["f"]


def test_a_part_without_a_name_is_not_gone_on_with(server, fetch, tmp_path):
    """No ETag, no date; facts that are damaged or of another address."""
    server["f"] = server["other"] = Served(CONTENT, etag="", cut=100)
    with pytest.raises(InputError):
        fetch()
    assert fetch() == DIGEST
    assert "Range" not in server["f"].requests[1]
    for text in ("", "[", '{"url": 3}', '{"url": "https://x", "validator": "\\"one\\"", "bytes": 5}'):
        (tmp_path / "f.partial").write_bytes(b"wrong")
        (tmp_path / "f.partial.json").write_text(text)
        assert fetch() == DIGEST
        assert "Range" not in server["f"].requests[-1]


def test_a_whole_part_needs_no_server(server, fetch, tmp_path):
    server["f"] = Served(CONTENT, cut=9000)
    with pytest.raises(InputError):
        fetch()
    with (tmp_path / "f.partial").open("ab") as file:
        file.write(CONTENT[9000:])
    assert fetch(sha256=DIGEST) == DIGEST
    assert len(server["f"].requests) == 1


def test_a_wrong_checksum_removes_the_file(server, fetch, tmp_path):
    server["f"] = Served(CONTENT)
    with pytest.raises(InputError, match=f"SHA-256 {DIGEST}: must be {'0' * 64}; it was removed"):
        fetch(sha256="0" * 64)
    assert left(tmp_path) == []


@pytest.mark.parametrize("length", [True, False])
def test_a_file_above_its_limit_is_refused(server, fetch, tmp_path, length):
    server["f"] = Served(CONTENT, length=length)
    assert fetch(limit=len(CONTENT)) == DIGEST
    (tmp_path / "f").unlink()
    with pytest.raises(InputError, match=f"must be at most {len(CONTENT) - 1} bytes"):
        fetch(limit=len(CONTENT) - 1)
    assert left(tmp_path) == []


@pytest.mark.parametrize("url", ["http://example.org/f", "ftp://example.org/f", "file:///etc/passwd", "f", ""])
def test_only_https(url, tmp_path):
    for local in (True, False):
        with pytest.raises(InputError, match="an https address"):
            transfer(url, tmp_path / "f", 10, allow_local_http=local)
    assert left(tmp_path) == []


def test_plain_http_to_this_machine_is_for_tests(server, tmp_path):
    with pytest.raises(InputError, match="an https address"):
        transfer(f"{server.url}/f", tmp_path / "f", 10)


def test_redirects(server, fetch, tmp_path):
    server["f"] = Served(CONTENT)
    server["here"] = Served(b"", location=f"{server.url}/f")
    server["loop"] = Served(b"", location=f"{server.url}/loop")
    assert fetch("here") == DIGEST
    for name, target in {"a": "http://example.org/f", "b": "ftp://example.org/f", "c": "file:///etc/passwd"}.items():
        server[name] = Served(b"", location=target)
        (tmp_path / "f").unlink(missing_ok=True)
        with pytest.raises(InputError, match=r"an https address, redirects included|to url 'file.* is not allowed"):
            fetch(name)
    with pytest.raises(InputError, match=r"status 302"):
        fetch("loop")
    assert left(tmp_path) == []


def test_what_servers_refuse(server, fetch, tmp_path):
    server["gone"], server["busy"] = Served(b"", status=404), Served(b"", status=503)
    server["packed"], server["odd"] = Served(CONTENT, headers={"Content-Encoding": "gzip"}), Served(b"", status=204)
    for name, words in {"gone": "status 404", "busy": "status 503", "packed": "packed as gzip", "odd": "204"}.items():
        with pytest.raises(InputError, match=words):
            fetch(name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/f"
        with pytest.raises(InputError, match=r"refused.*run the same command again"):
            transfer(url, tmp_path / "f", 10, allow_local_http=True)
    assert left(tmp_path) == []


def test_two_at_once(server, fetch, tmp_path):
    with (tmp_path / "f.partial").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="one process at a time"):
            fetch()
        assert left(tmp_path) == ["f.partial"]


def test_no_room(server, fetch, tmp_path, monkeypatch):
    server["f"] = Served(CONTENT)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 100))
    with pytest.raises(InputError, match="at most the 100 that are free"):
        fetch()
    assert left(tmp_path) == []


def test_https_checks_the_certificate(tmp_path, monkeypatch):
    """The same server is believed once its certificate is, and not before."""
    monkeypatch.setenv("no_proxy", "*")
    if not shutil.which("openssl"):
        pytest.skip("openssl makes the certificate")
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    command = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "cert.pem")
    subprocess.run([*command, *names], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "f").write_bytes(CONTENT)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with HTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "served")) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"https://localhost:{server.server_address[1]}/f"
        try:
            with pytest.raises(InputError, match=r"(?i)certificate"):
                transfer(url, tmp_path / "f", 10**6)
            monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
            assert transfer(url, tmp_path / "f", 10**6) == DIGEST
        finally:
            server.shutdown()
            thread.join()
