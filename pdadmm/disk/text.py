"""Whole numbers from text files of any size, plain or gzipped, and from .npy files: a block at a time."""

from __future__ import annotations

import contextlib
import gzip
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from pdadmm.disk.blocks import DiskArray, Traffic
from pdadmm.errors import InputError, reason_of

__all__ = ["number_blocks"]

NUMBERS = re.compile(rb"[0-9+-]")


def number_blocks(path: Path, columns: int, size: int, traffic: Traffic | None = None) -> Iterator[np.ndarray]:
    """Yield the rows of a file, int64 (rows, ``columns``), in blocks of about ``size`` bytes.

    .npy: whole numbers of shape (rows, columns), or (rows,) for one column. Anything else is text, gzipped where the
    name ends in .gz: one row a line, separated by one comma, semicolon, tab or space; lines that begin with # or % and
    one line of headings may stand before the first row. Raises InputError with the line of what cannot be read.
    """
    if path.suffix == ".npy":
        yield from _from_npy(path, columns, size, traffic)
        return
    try:
        with open(path, "rb") as file, gzip.open(file) if path.suffix == ".gz" else file as stream:
            yield from _from_text(cast(BinaryIO, stream), path, columns, size, traffic)
    except (OSError, EOFError) as error:  # a damaged gzip is one of both
        raise InputError("file", str(path), "a file that can be read", reason_of(error)) from None


def _from_npy(path: Path, columns: int, size: int, traffic: Traffic | None) -> Iterator[np.ndarray]:
    with DiskArray(path, traffic) as array:
        shapes = [(array.shape[0], columns)] + ([(array.shape[0],)] if columns == 1 else [])
        if array.shape not in shapes or array.dtype.kind not in "iu" or array.dtype == np.uint64:
            value = f"{path} of shape {array.shape} and type {array.dtype}"
            remedy = "transpose it" if array.shape[0] == columns else ""
            raise InputError("file", value, f"whole numbers of shape (rows, {columns})", remedy)
        step = max(1, size // (16 * columns))
        for start in range(0, array.shape[0], step):
            yield array.rows(start, min(start + step, array.shape[0])).reshape(-1, columns).astype(np.int64)


def _from_text(stream: BinaryIO, path: Path, columns: int, size: int, traffic: Traffic | None) -> Iterator[np.ndarray]:
    line, rest, started = 1, b"", False
    while True:
        read = stream.read(max(1024, size // 8))
        if traffic is not None:
            traffic.add(read=len(read))
        text = rest + read
        end = text.rfind(b"\n") + 1 if read else len(text)
        text, rest = text[:end], text[end:]
        if len(rest) > 1 << 20:
            raise InputError("file", f"{path}, line {line}", "lines of numbers", "this one is longer than a megabyte")
        if not started:
            text, skipped, started = _without_heading(text)
            line += skipped
        if text.strip():
            started = True
            yield _parse(text, path, columns, line)
        line += text.count(b"\n")
        if not read:
            return


def _without_heading(text: bytes) -> tuple[bytes, int, bool]:
    """Return the text behind comments and headings, how many lines they are, and whether rows have begun."""
    skipped = 0
    while text:
        first, _, later = text.partition(b"\n")
        comment = first.lstrip()[:1] in (b"#", b"%", b"")
        if not comment:
            return (text, skipped, True) if NUMBERS.match(first.lstrip()) else (later, skipped + 1, True)
        text, skipped = later, skipped + 1
    return text, skipped, False


def _parse(text: bytes, path: Path, columns: int, line: int) -> np.ndarray:
    text = text.replace(b"\r\n", b"\n").rstrip() + b"\n"
    marks = np.frombuffer(text, np.uint8)
    marks = marks[(marks < ord("0")) & (marks != ord("-")) & (marks != ord("+")) | (marks == ord(";"))]
    ends = marks == ord("\n")
    numbers = None
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # numpy warns where it cannot read on
        with contextlib.suppress(ValueError, DeprecationWarning):
            numbers = np.fromstring(text.translate(bytes.maketrans(b",;\t\n", b"    ")), np.int64, sep=" ")
    shaped = len(marks) % columns == 0 and (ends.reshape(-1, columns) == (np.arange(columns) == columns - 1)).all()
    small = numbers is not None and max(-numbers.min(initial=0), numbers.max(initial=0)) < 10**18  # else cut at 2^63
    if numbers is None or not shaped or not small or len(numbers) != len(marks):
        raise _bad_line(text, path, columns, line)
    return numbers.reshape(-1, columns)


def _bad_line(text: bytes, path: Path, columns: int, line: int) -> InputError:
    pattern = re.compile(rb"[,;\t ]".join([rb"[+-]?[0-9]{1,18}"] * columns))
    bad = next((n, row) for n, row in enumerate(text.split(b"\n")) if not pattern.fullmatch(row))
    number, shown = bad[0], bad[1][:60].decode("utf-8", "replace")
    several = f"{columns} whole numbers with one comma, semicolon, tab or space between"
    allowed = "one whole number" if columns == 1 else several
    return InputError("file", f"{path}, line {line + number}: {shown}", f"lines of {allowed}")
