"""Tables of numbers in text files, plain or packed by gzip, parsed by numpy with bounds on the memory."""

from __future__ import annotations

import gzip
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pdadmm.errors import InputError, reason_of
from pdadmm.files import memory_bytes, regular_file

__all__ = ["Table", "find_table", "numbered_lines", "read_named_table", "read_table"]

_LONGEST_LINE = 1 << 24
_UNKNOWN = {"", "na", "n/a", "<na>", "nan", "null", "none"}  # what programs write for a value that is not known


class Table(NamedTuple):
    """A file's ``values`` [rows, columns], and the ``names`` of the columns where its first line holds such.

    ``counting``: the first row reads 0, 1, 2 and so on, as names that nobody gave do. ``open_rows``: empty lines at
    the end that stand for rows.
    """

    path: Path
    values: np.ndarray
    names: list[str] | None = None
    counting: bool = False
    open_rows: int = 0

    def headed(self) -> Table:
        """Return the table with its first row taken for names."""
        names = [str(k) for k in range(self.values.shape[1])]
        return self._replace(values=self.values[1:], names=names, counting=False)


class _Words(ValueError):
    """What is wrong with a file, in words of this module."""


def find_table(folder: Path, stem: str) -> Path | None:
    """The file ``stem``.csv or ``stem``.csv.gz in ``folder``, or None."""
    return next((path for end in (".csv", ".csv.gz") if (path := folder / (stem + end)).is_file()), None)


def read_table(folder: Path, stem: str, dtype: str, rows: int | None = None) -> np.ndarray:
    """The numbers in ``stem``.csv or ``stem``.csv.gz, an array [rows, columns]; an empty file is [0, 0].

    Commas, semicolons, tabs or spaces stand between numbers (the first line tells which). ``rows``: how many there
    must be, which bounds the memory.

    Raises InputError for a file that is missing, damaged, too large, or holds anything but numbers.

    >>> read_table(Path("raw"), "edge", "i4")[:1]  # doctest: +SKIP
    array([[104447, 13091]], dtype=int32)
    """
    table = _read(folder, stem, dtype, rows)
    found = table.values.shape[0]
    if rows is not None and found != rows:
        count = f"more than {rows}" if found > rows else str(found)
        raise InputError("dataset", f"{table.path} with {count} rows", f"a table of {rows} rows")
    return table.values


def read_named_table(folder: Path, stem: str, dtype: str, remedy: str, blanks: bool = False) -> Table:
    """As ``read_table``, of a file whose first line may hold names of columns; ``remedy``: for what is no number.

    ``blanks``: in a file of one column an empty line, NA and the like are rows, nan.

    >>> read_named_table(Path("folder"), "edges", "f8", "number the nodes from 0").names  # doctest: +SKIP
    ['source', 'target']
    """
    return _read(folder, stem, dtype, None, True, remedy, blanks)


def _read(
    folder: Path, stem: str, dtype: str, rows: int | None, named: bool = False, remedy: str = "", blanks: bool = False
) -> Table:
    path = find_table(folder, stem)
    if path is None:
        raise InputError("dataset", str(folder / f"{stem}.csv"), "a file that exists, or as .csv.gz", "add the file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # numpy only warns of 1.5 among whole numbers
            return _parsed(path, np.dtype(dtype), rows, named, remedy, blanks)
    except InputError:
        raise
    except Exception as problem:
        # A damaged gzip surfaces as zlib.error, EOFError, BadGzipFile and more.
        kind = "whole numbers" if np.dtype(dtype).kind == "i" else "numbers"
        remedy = "correct the file, or fetch it again"
        raise InputError("dataset", f"{path} ({reason_of(problem)})", f"a table of {kind}", remedy) from None


def _parsed(path: Path, dtype: np.dtype, rows: int | None, named: bool, remedy: str, blanks: bool) -> Table:
    with _opened(path) as stream:
        first = _line(stream)
        while first and not blanks and not first.strip():
            first = _line(stream)
        separator = next((mark for mark in ",;\t" if mark in first), None)
        cells = [cell.strip().strip("\"'") for cell in first.split(separator)]
        names = None
        if named and not all(_is_number(cell, blanks) for cell in cells):
            names = cells
            _refuse_index(path, names)
            first = _line(stream)
            while first and not blanks and not first.strip():
                first = _line(stream)
        if not first:
            return Table(path, np.empty((0, 0), dtype), names)
        blanks = blanks and separator is None and len(cells) <= 1
        width = max(1, len(first.split(separator)))
        if rows is not None and rows * width * dtype.itemsize > memory_bytes():
            raise _Words(f"{rows} rows of {width} numbers, more than this machine's memory holds")
        lines = _Lines(first, stream, memory_bytes() // dtype.itemsize if rows is None else None, blanks)
        limit = None if rows is None else rows + 1
        try:
            values = np.loadtxt(lines, dtype, comments=None, delimiter=separator, ndmin=2, max_rows=limit)
        except (ValueError, TypeError, OverflowError, Warning) as problem:
            if isinstance(problem, _Words):
                raise
            found = _first_wrong(path, dtype, separator, width, names, blanks)
            raise InputError("dataset", *found, remedy) from None
        counting = names is None and cells == [str(k) for k in range(width)]
        return Table(path, values, names, counting, lines.open_rows)


@contextmanager
def _opened(path: Path) -> Iterator[io.TextIOWrapper]:
    """The text of a file, without the mark that some programs put at the start of UTF-8."""
    regular_file(path)
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        yield io.TextIOWrapper(file, encoding="utf-8-sig", errors="backslashreplace")


def _refuse_index(path: Path, names: list[str]) -> None:
    """Raise InputError where the first name is empty, as it is over pandas' column of row numbers."""
    if names[0] in ("", "Unnamed: 0"):
        value, allowed = f"{path}, whose first column has no name", "without a column of row numbers"
        raise InputError("dataset", value, allowed, "write it by to_csv(index=False), if with pandas")


def _line(stream: io.TextIOWrapper) -> str:
    line = stream.readline(_LONGEST_LINE)
    if len(line) == _LONGEST_LINE:
        raise _Words(f"a line of more than {_LONGEST_LINE} characters")
    return line


class _Lines:
    """The lines of a table; _Words once they are longer than ``most`` characters, which gzip can make of few bytes.

    ``blanks``: what stands for an unknown value is replaced by nan.
    """

    def __init__(self, first: str, stream: io.TextIOWrapper, most: int | None, blanks: bool) -> None:
        self.first, self.stream, self.most, self.blanks, self.open_rows = first, stream, most, blanks, 0

    def __iter__(self) -> Iterator[str]:
        line, total = self.first, 0
        while line:
            total += len(line)
            if self.most is not None and total > self.most:
                raise _Words("more numbers than this machine's memory holds")
            if self.blanks and _unknown(line):
                self.open_rows = self.open_rows + 1 if not line.strip() else 0
                line = "nan\n"
            else:
                self.open_rows = 0
            yield line
            line = _line(self.stream)


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a table that are not empty, with their numbers as an editor shows them."""
    with _opened(path) as stream:
        for number, line in enumerate(iter(lambda: _line(stream), ""), start=1):
            if line.strip():
                yield number, line


def _first_wrong(
    path: Path, dtype: np.dtype, separator: str | None, width: int, names: list[str] | None, blanks: bool
) -> tuple[str, str]:
    """Say what of a file numpy could not read, and what it must be; numpy's own words are about its own arguments."""
    kind = "a whole number" if dtype.kind == "i" else "a number"
    lines = numbered_lines(path)
    if names is not None:
        next(lines)
    for number, line in lines:
        cells = [cell.strip() for cell in line.split(separator)]
        if len(cells) != width:
            return f"{path}, line {number}, with {len(cells)} columns", f"of {width} columns, as the lines before it"
        for k, cell in enumerate(cells):
            if not _is_number(cell, blanks, dtype):
                column = f" {names[k]}" if names is not None and k < len(names) else f" {k + 1}"
                place = f", column{column}" if width > 1 or names is not None else ""
                return f"{cell or 'nothing'} in {path}, line {number}{place}", kind
    return str(path), f"a table of {kind[2:]}s"


def _unknown(text: str) -> bool:
    return text.strip().strip("\"'").lower() in _UNKNOWN


def _is_number(text: str, blanks: bool, dtype: np.dtype | None = None) -> bool:
    """Whether numpy takes ``text`` for a number of ``dtype`` (default: of any)."""
    if blanks and _unknown(text):
        return True
    try:
        number = float(text) if dtype is None or dtype.kind != "i" else int(text)
    except ValueError:
        return False
    if dtype is not None and dtype.kind == "i" and not np.iinfo(dtype).min <= number <= np.iinfo(dtype).max:
        return False
    return "_" not in text
