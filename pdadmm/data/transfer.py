"""One file over https: with a size limit, going on where a transfer stopped, renamed into place when it is whole."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pdadmm
from pdadmm.errors import InputError
from pdadmm.files import parse_json

__all__ = ["Watch", "file_sha256", "transfer"]

Watch = Callable[[str, int, int | None], None]  # file, bytes so far, bytes in all where the server says it

_SECONDS = 30  # without a byte
_PIECE = 1 << 18
_AGAIN = "run the same command again; it goes on where it stopped if the server allows it"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def transfer(
    url: str, target: Path, limit: int, sha256: str = "", watch: Watch | None = None, allow_local_http: bool = False
) -> str:
    """Fetch ``url`` to ``target``, which appears only when it is whole; return its SHA-256.

    At most ``limit`` bytes are taken. What has arrived lies in ``target``.partial; the next call asks for the rest
    if the server's ETag or date still holds, and starts over if it does not. A file whose digest is not ``sha256``
    ("": any) is removed. ``allow_local_http`` permits plain http to this machine, for tests.

    Raises InputError for another scheme (also after a redirect), a failure on the way, a file that is too large,
    and a wrong digest.
    """
    _check_scheme(url, allow_local_http)
    partial, facts = (target.with_name(target.name + end) for end in (".partial", ".partial.json"))
    try:
        with _only_one(partial, facts, target) as lock:
            if not _is_whole(partial, facts, url):
                _receive(url, partial, facts, limit, watch, allow_local_http)
            digest = file_sha256(partial)
            if sha256 and digest != sha256:
                _remove(partial, facts)
                remedy = "it was removed: the file at its source has changed or was altered on the way"
                raise InputError("download", f"{url} with the SHA-256 {digest}", sha256, remedy)
            os.fsync(lock.fileno())
            os.replace(partial, target)
            facts.unlink(missing_ok=True)
    except urllib.error.HTTPError as problem:
        value = f"{url} (status {problem.code} {problem.reason})"
        raise InputError("download", value, "a file the server has") from None
    except (OSError, http.client.HTTPException) as problem:  # URLError, timeouts and TLS among them
        detail = getattr(problem, "reason", None) or str(problem) or type(problem).__name__
        raise InputError("download", f"{url} ({detail})", "a file that can be fetched", _AGAIN) from None
    return digest


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _only_one(partial: Path, facts: Path, target: Path) -> Iterator[Any]:
    """Hold the partial file for this process alone; at the end remove it if it is empty, so not to be gone on from."""
    with partial.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError("download", str(target), "fetched by one process at a time; another is at it") from None
        try:
            yield lock
        finally:
            if partial.is_file() and partial.stat().st_size == 0:
                _remove(partial, facts)


def _check_scheme(url: str, allow_local_http: bool) -> None:
    parts = urllib.parse.urlsplit(url)
    local = parts.scheme == "http" and parts.hostname in ("localhost", "127.0.0.1", "::1")
    if parts.scheme != "https" and not (local and allow_local_http):
        raise InputError("download", url, "an https address, redirects included")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects to https alone."""

    def __init__(self, allow_local_http: bool) -> None:
        self.allow_local_http = allow_local_http

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        _check_scheme(newurl, self.allow_local_http)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _is_whole(partial: Path, facts: Path, url: str) -> bool:
    """Whether all bytes had arrived when the last call ended."""
    known = _known(facts, url)
    return bool(known) and known.get("bytes") == partial.stat().st_size


def _known(facts: Path, url: str) -> dict[str, Any]:
    """What the last call wrote about the partial file of ``url``; {} where that cannot be used."""
    try:
        known = parse_json(facts.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    usable = known.get("url") == url and isinstance(known.get("validator"), str)
    return known if usable else {}


def _validator(headers: Any) -> str:
    """What If-Range may name: a strong ETag, else the date of the last change, else ""."""
    etag = headers.get("ETag") or ""
    return etag if etag.startswith('"') else headers.get("Last-Modified") or ""


def _receive(url: str, partial: Path, facts: Path, limit: int, watch: Watch | None, allow_local_http: bool) -> None:
    with _opened(url, partial, facts, allow_local_http) as (response, start):
        length = response.headers.get("Content-Length") or ""
        total = start + int(length) if re.fullmatch(r"\d{1,15}", length, re.ASCII) else None
        if total is not None and total > limit:
            _too_large(url, f"{total} bytes", limit, partial, facts)
        free = shutil.disk_usage(partial.parent).free
        if total is not None and total - start > free:
            raise InputError("download", f"{url} of {total} bytes", f"at most the {free} that are free")
        written = {"url": url, "validator": _validator(response.headers), "bytes": total}
        with partial.open("r+b") as file:
            file.truncate(start)
            file.seek(start)
            facts.write_text(json.dumps(written), encoding="utf-8")  # after the cut: it describes what lies there
            done = start
            while piece := response.read(_PIECE):
                done += len(piece)
                if done > limit:
                    _too_large(url, "more bytes than that", limit, partial, facts)
                file.write(piece)
                if watch is not None:
                    watch(partial.name.removesuffix(".partial"), done, total)
        if total is not None and done != total:
            raise InputError("download", f"{url} ({done} bytes of {total})", "sent whole", _AGAIN)


def _too_large(url: str, what: str, limit: int, partial: Path, facts: Path) -> None:
    _remove(partial, facts)
    raise InputError("download", f"{url} of {what}", f"at most {limit} bytes", "the file is not what it was")


@contextlib.contextmanager
def _opened(url: str, partial: Path, facts: Path, allow_local_http: bool) -> Iterator[tuple[Any, int]]:
    """Yield the response and how many bytes of the file lie before it; what cannot be gone on with starts over."""
    opener = urllib.request.build_opener(_Redirects(allow_local_http))
    headers = {"User-Agent": f"pdadmm/{pdadmm.__version__}", "Accept-Encoding": "identity"}
    start, known = partial.stat().st_size, _known(facts, url)
    if start and known.get("validator"):
        more = {"Range": f"bytes={start}-", "If-Range": known["validator"]}
        try:
            with opener.open(urllib.request.Request(url, headers=headers | more), timeout=_SECONDS) as response:
                if response.status == 200 or _continues(response, start, known):
                    yield _plain(response, url), 0 if response.status == 200 else start
                    return
        except urllib.error.HTTPError as problem:
            if problem.code != 416:  # the file is no longer as long
                raise
    with opener.open(urllib.request.Request(url, headers=headers), timeout=_SECONDS) as response:
        if response.status != 200:
            raise InputError("download", f"{url} (status {response.status})", "answered with the whole file")
        yield _plain(response, url), 0


def _continues(response: Any, start: int, known: dict[str, Any]) -> bool:
    """Whether a 206 is the rest of the file that we have the start of."""
    found = re.fullmatch(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15})", response.headers.get("Content-Range") or "")
    if response.status != 206 or not found:
        return False
    first, last, total = map(int, found.groups())
    same = _validator(response.headers) in ("", known["validator"])
    return same and first == start and last == total - 1 and known.get("bytes") in (None, total)


def _plain(response: Any, url: str) -> Any:
    if (response.headers.get("Content-Encoding") or "identity") != "identity":
        raise InputError("download", f"{url} packed as {response.headers['Content-Encoding']}", "sent as it is")
    return response
