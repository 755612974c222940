"""Files that nobody vouches for: what they are, how large they are, and what their JSON holds."""

from __future__ import annotations

import errno
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

__all__ = [
    "file_within",
    "flush_folder",
    "is_number",
    "memory_bytes",
    "parse_json",
    "peak_rss_bytes",
    "regular_file",
    "replace_file",
    "resident_bytes",
    "write_to_disk",
]


def memory_bytes() -> int:
    """Return the main memory of this machine, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_rss_bytes() -> int:
    """Return the largest resident set this process has had, in bytes."""
    try:  # what getrusage says may be of the process that started this one
        words = Path("/proc/self/status").read_text("ascii").partition("VmHWM:")[2].split()
    except OSError:
        words = []
    if words:
        return int(words[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes() -> int:
    """Return what of this process is in memory now, in bytes; where the system does not say, the most that ever was."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except OSError:
        return peak_rss_bytes()
    return pages * os.sysconf("SC_PAGE_SIZE")


def regular_file(path: str | os.PathLike) -> Path:
    """Return the path of a file that fits in memory; OSError for a pipe, a device, or more than memory holds."""
    path = Path(path)
    if path.stat().st_size > memory_bytes():
        raise OSError(errno.EFBIG, "larger than this machine's memory")
    if not path.is_file():  # reading a pipe would wait for ever
        raise OSError(errno.EINVAL, "not a regular file")
    return path


def file_within(path: str | os.PathLike, name: str) -> str:
    """Return the remedy where a folder was given in place of its file ``name``; "" where it has none."""
    inner = os.path.join(str(path), name)
    return f"that is a folder: give {inner}" if os.path.isfile(inner) else ""  # False where it cannot be looked at


def parse_json(text: str) -> dict[str, Any]:
    """Return the JSON object in ``text``; ValueError for anything else, however deep or long.

    >>> parse_json('{"a": [1, null]}')
    {'a': [1, None]}
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def is_number(value: Any) -> bool:
    """Whether a value out of JSON is a number that float holds, and finite.

    >>> is_number(3), is_number(True), is_number(float("nan")), is_number(10**400)
    (True, False, False, False)
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < 1e300


def write_to_disk(path: Path, content: bytes) -> None:
    """Write a file and bring it to the disk."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def replace_file(path: Path, content: bytes) -> None:
    """Put a file in place of another, or of none: whoever reads it, after a crash too, sees the old or the new."""
    partial = path.with_name(path.name + ".partial")
    write_to_disk(partial, content)
    partial.rename(path)
    flush_folder(path.parent)
