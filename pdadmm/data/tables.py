"""Tables of numbers in text files, plain or packed by gzip, parsed by numpy with bounds on the memory."""

from __future__ import annotations

import gzip
import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pdadmm.errors import InputError
from pdadmm.files import memory_bytes, regular_file

__all__ = ["find_table", "read_table"]

_LONGEST_LINE = 1 << 24


def find_table(folder: Path, stem: str) -> Path | None:
    """The file ``stem``.csv or ``stem``.csv.gz in ``folder``, or None."""
    return next((path for end in (".csv", ".csv.gz") if (path := folder / (stem + end)).is_file()), None)


def read_table(folder: Path, stem: str, dtype: str, rows: int | None = None, names: bool = False) -> np.ndarray:
    """The numbers in ``stem``.csv or ``stem``.csv.gz, an array [rows, columns]; an empty file is [0, 0].

    Commas, semicolons, tabs or spaces stand between numbers (the first line tells which). With ``names`` the
    first line may hold names of columns. ``rows``: how many there must be, which bounds the memory.

    Raises InputError for a file that is missing, damaged, too large, or holds anything but numbers.

    >>> read_table(Path("raw"), "edge", "i4")[:1]  # doctest: +SKIP
    array([[104447, 13091]], dtype=int32)
    """
    path = find_table(folder, stem)
    if path is None:
        raise InputError("dataset", str(folder / f"{stem}.csv"), "a file that exists, or as .csv.gz", "add the file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # numpy only warns of 1.5 among whole numbers
            table = _parsed(path, np.dtype(dtype), rows, names)
    except Exception as problem:
        # A damaged gzip surfaces as zlib.error, EOFError, BadGzipFile and more.
        value = f"{path} ({problem or type(problem).__name__})"
        kind = "whole numbers" if np.dtype(dtype).kind == "i" else "numbers"
        raise InputError("dataset", value, f"a table of {kind}", "correct the file, or fetch it again") from None
    if rows is not None and table.shape[0] != rows:
        found = f"more than {rows}" if table.shape[0] > rows else str(table.shape[0])
        raise InputError("dataset", f"{path} with {found} rows", f"a table of {rows} rows")
    return table


def _parsed(path: Path, dtype: np.dtype, rows: int | None, names: bool) -> np.ndarray:
    regular_file(path)
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        stream = io.TextIOWrapper(file, encoding="latin-1")
        first = _line(stream)
        separator = next((mark for mark in ",;\t" if mark in first), None)
        if names and first.strip() and not all(map(_is_number, first.split(separator))):
            first = _line(stream)
        if not first.strip():
            return np.empty((0, 0), dtype)
        width = len(first.split(separator))
        if rows is not None and rows * width * dtype.itemsize > memory_bytes():
            raise ValueError(f"{rows} rows of {width} numbers, more than this machine's memory holds")
        lines = _bounded(first, stream, memory_bytes() // dtype.itemsize if rows is None else None)
        limit = None if rows is None else rows + 1
        return np.loadtxt(lines, dtype, comments=None, delimiter=separator, ndmin=2, max_rows=limit)


def _line(stream: io.TextIOWrapper) -> str:
    line = stream.readline(_LONGEST_LINE)
    if len(line) == _LONGEST_LINE:
        raise ValueError(f"a line of more than {_LONGEST_LINE} characters")
    return line


def _bounded(first: str, stream: io.TextIOWrapper, most: int | None) -> Iterator[str]:
    """Yield the lines; ValueError once they are longer than ``most`` characters, which gzip can make of few bytes."""
    line, total = first, 0
    while line:
        total += len(line)
        if most is not None and total > most:
            raise ValueError("more numbers than this machine's memory holds")
        yield line
        line = _line(stream)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
