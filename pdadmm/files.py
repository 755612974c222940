"""Files that nobody vouches for: what they are, how large they are, and what their JSON holds."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

__all__ = ["is_number", "memory_bytes", "parse_json", "regular_file"]


def memory_bytes() -> int:
    """Return the main memory of this machine, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def regular_file(path: str | os.PathLike) -> Path:
    """Return the path of a file that fits in memory; OSError for a pipe, a device, or more than memory holds."""
    path = Path(path)
    if path.stat().st_size > memory_bytes():
        raise OSError(errno.EFBIG, "larger than this machine's memory")
    if not path.is_file():  # reading a pipe would wait for ever
        raise OSError(errno.EINVAL, "not a regular file")
    return path


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

    >>> is_number(3), is_number(True), is_number(math.nan), is_number(10**400)
    (True, False, False, False)
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < 1e300
