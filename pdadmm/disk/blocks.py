"""Arrays in plain .npy files, read and written by blocks of rows, each block with a checksum.

Blocks are read with preadv into memory of the caller's, and the pages they came through are given back: unlike a memory
map, a file ten times as large as memory neither grows the process nor pushes other files out.
"""

from __future__ import annotations

import io
import os
import threading
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pdadmm.data.npz import npy_header
from pdadmm.errors import InputError, reason_of
from pdadmm.files import flush_folder

__all__ = [
    "DiskArray",
    "NewArray",
    "RawArray",
    "Traffic",
    "block_rows",
    "checked_blocks",
    "checked_rows",
    "copy_array",
    "fetch",
    "forget",
    "raw",
    "read_ahead",
    "read_into",
    "write_from",
]

HEADER_BYTES = 65536  # far more than an .npy header has
BLOCK_BYTES = 16 << 20  # about what one checksum covers

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass
class Traffic:
    """Bytes read from and written to files, counted from any thread."""

    read: int = 0
    written: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, read: int = 0, written: int = 0) -> None:
        """Count more bytes."""
        with self._lock:
            self.read += read
            self.written += written


def raw(array: np.ndarray) -> memoryview:
    """Return the bytes of a C-contiguous array."""
    return array.reshape(-1).view(np.uint8).data


def read_into(file: int, array: np.ndarray, offset: int, traffic: Traffic | None = None) -> None:
    """Fill a C-contiguous array from byte ``offset`` of an open file; OSError where it ends before."""
    view, filled = raw(array), 0
    while filled < len(view):
        count = os.preadv(file, [view[filled:]], offset + filled)
        if count == 0:
            raise OSError(None, "the file ends too early")
        filled += count
    if traffic is not None:
        traffic.add(read=filled)


def write_from(file: int, array: np.ndarray, offset: int, traffic: Traffic | None = None) -> None:
    """Write a C-contiguous array at byte ``offset`` of an open file; OSError where the disk takes no more."""
    view, done = raw(array), 0
    while done < len(view):
        done += os.pwritev(file, [view[done:]], offset + done)
    if traffic is not None:
        traffic.add(written=done)


def forget(file: int, offset: int = 0, size: int = 0) -> None:
    """Let the system drop the pages of a part of a file, 0 bytes for all that follows, where it can."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, offset, size, os.POSIX_FADV_DONTNEED)


def fetch(file: int, offset: int, size: int) -> None:
    """Let the system read a part of a file ahead, where it can."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, offset, size, os.POSIX_FADV_WILLNEED)


def block_rows(shape: tuple[int, ...], itemsize: int) -> int:
    """Rows that one checksum of an array covers: about 16 MiB.

    >>> block_rows((1000, 2), 4), block_rows((10**9, 128), 4)
    (1000, 32768)
    """
    row = max(1, int(np.prod(shape[1:], dtype=np.int64)) * itemsize)
    return max(1, min(shape[0], BLOCK_BYTES // row))


def read_ahead(jobs: Iterable[Job], read: Callable[[Job, int], Result]) -> Generator[Result, None, None]:
    """Yield read(job, 0), read(job, 1), read(job, 0), ..: each while the one before it is in use.

    The second argument numbers one of two pieces of memory that ``read`` may fill.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="pdadmm-read") as pool:
        pending = None
        for number, job in enumerate(jobs):
            coming = pool.submit(read, job, number % 2)
            if pending is not None:
                yield pending.result()
            pending = coming
        if pending is not None:
            yield pending.result()


class DiskArray:
    """An .npy file of plain numbers in C order, opened for reading by rows; use it as a context or ``close`` it.

    ``shape``, ``dtype`` and ``data_start`` (the byte of the first number) come from its header, which must fit the
    file's size. Raises InputError for anything else: nothing is read before that is known.

    >>> with DiskArray("features.npy") as X:  # doctest: +SKIP
    ...     first = X.rows(0, 100)
    """

    def __init__(self, path: str | os.PathLike, traffic: Traffic | None = None) -> None:
        self.path, self.traffic = Path(path), traffic or Traffic()
        if not self.path.is_file():
            raise InputError("file", str(path), "an .npy file that exists")
        try:
            self.file = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise InputError("file", str(path), "a file that can be read", error.strerror or "") from None
        try:
            size = os.fstat(self.file).st_size
            self.shape, fortran, self.dtype, self.data_start = npy_header(os.pread(self.file, HEADER_BYTES, 0), size)
            if not self.shape or not self.dtype.isnative or (fortran and len(self.shape) > 1):
                raise ValueError("not an array in C order and this machine's byte order, of one axis or more")
        except Exception as problem:  # numpy's header reader raises a dozen kinds
            os.close(self.file)
            remedy = "write it with numpy.save(file, numpy.ascontiguousarray(array))"
            value = f"{path} ({reason_of(problem)})"
            raise InputError("file", value, "an .npy file of plain numbers", remedy) from None

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    def rows(self, start: int, stop: int, out: np.ndarray | None = None, again: bool = False) -> np.ndarray:
        """Return rows ``start`` to ``stop`` in memory of their own, or in ``out`` of that shape and type.

        ``again``: they will be read again, so that the system may keep them.
        """
        assert 0 <= start <= stop <= self.shape[0]
        if out is None:
            out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        assert out.shape == (stop - start, *self.shape[1:])
        assert out.dtype == self.dtype
        offset = self.data_start + start * self.row_bytes
        with self.reading():
            read_into(self.file, out, offset, self.traffic)
        if not again:
            forget(self.file, offset, out.nbytes)
        return out

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn what the system says of the file into an InputError."""
        try:
            yield
        except OSError as error:
            raise InputError("file", str(self.path), "a file that can be read", error.strerror or "") from None

    def fetch(self, start: int, stop: int) -> None:
        """Let the system read these rows ahead."""
        fetch(self.file, self.data_start + start * self.row_bytes, (stop - start) * self.row_bytes)

    def close(self) -> None:
        """Close the file."""
        if self.file >= 0:
            os.close(self.file)
            self.file = -1

    def __enter__(self) -> DiskArray:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


NPY = b"\x93NUMPY"  # how an .npy file begins


class RawArray(DiskArray):
    """A file of bare numbers, ``columns`` a row and no header, read as DiskArray is. Raises InputError alike."""

    def __init__(self, path: str | os.PathLike, columns: int, kind: str, traffic: Traffic | None = None) -> None:
        self.path, self.traffic, self.dtype, self.data_start = Path(path), traffic or Traffic(), np.dtype(kind), 0
        try:
            self.file = os.open(self.path, os.O_RDONLY)
            size, head = os.fstat(self.file).st_size, os.pread(self.file, len(NPY), 0)
        except OSError as error:
            raise InputError("file", str(path), "a file that can be read", error.strerror or "") from None
        if head == NPY:
            self.close()
            remedy = "leave --raw-features out"
            raise InputError("file", f"{path}, an .npy file", "bare numbers without a header", remedy)
        rows, rest = divmod(size, columns * self.dtype.itemsize)
        self.shape = (rows, columns)
        if rest:
            self.close()
            raise InputError("file", f"{path} of {size} bytes", f"rows of {columns} numbers of {kind}")


class NewArray:
    """An .npy file being written by rows; ``commit`` brings it to the disk and gives it its name.

    Until then it is ``NAME.partial``; with ``resume`` one of the same size is kept, rows and all. Rows come in order,
    or in whole blocks of ``block`` rows in any order; ``crcs`` has the CRC-32 of each block as far as it is written.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        shape: tuple[int, ...],
        dtype: Any,
        traffic: Traffic | None = None,
        resume: bool = False,
    ) -> None:
        self.path, self.shape, self.dtype = Path(path), shape, np.dtype(dtype)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self.traffic = traffic or Traffic()
        self.block = block_rows(shape, self.dtype.itemsize)
        self.row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * self.dtype.itemsize
        self.crcs: dict[int, int] = {}
        self._filled: dict[int, int] = {}
        header = self._header()
        self.data_start, size = len(header), len(header) + shape[0] * self.row_bytes
        kept = resume and self.partial.is_file() and self.partial.stat().st_size == size
        self.file = os.open(self.partial, os.O_RDWR | os.O_CREAT | (0 if kept else os.O_TRUNC), 0o666)
        os.ftruncate(self.file, size)
        os.pwrite(self.file, header, 0)

    def _header(self) -> bytes:
        stream = io.BytesIO()
        plain = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(stream, plain)
        return stream.getvalue()

    def write(self, start: int, rows: np.ndarray) -> None:
        """Write rows from number ``start`` on."""
        rows = np.ascontiguousarray(rows, self.dtype)
        assert rows.shape[1:] == self.shape[1:]
        assert start + len(rows) <= self.shape[0]
        write_from(self.file, rows, self.data_start + start * self.row_bytes, self.traffic)
        done = 0
        while done < len(rows):
            number, place = divmod(start + done, self.block)
            assert place == self._filled.get(number, 0), "blocks are filled from their start"
            part = rows[done : done + self.block - place]
            self.crcs[number] = zlib.crc32(raw(part), self.crcs.get(number, 0))
            self._filled[number] = place + len(part)
            done += len(part)

    def entry(self) -> dict[str, Any]:
        """Return what a folder's JSON says about this file."""
        return entry_of(self.shape, self.dtype, self.block, [self.crcs[number] for number in sorted(self.crcs)])

    def sync(self) -> None:
        """Bring to the disk what has been written, and give back its pages."""
        os.fsync(self.file)
        forget(self.file)

    def commit(self, rows: int | None = None) -> None:
        """Finish the file, shortened to ``rows`` rows where given: a reader of its folder sees all of it or nothing."""
        if rows is not None and rows != self.shape[0]:
            self.shape = (rows, *self.shape[1:])
            header = self._header()
            assert len(header) == self.data_start, "numpy leaves room for the number of rows"
            os.pwrite(self.file, header, 0)
            os.ftruncate(self.file, self.data_start + rows * self.row_bytes)
        self.sync()
        self.close()
        self.partial.rename(self.path)
        flush_folder(self.path.parent)

    def close(self) -> None:
        """Close the file and leave the partial one where it is."""
        if self.file >= 0:
            os.close(self.file)
            self.file = -1


def entry_of(shape: tuple[int, ...], dtype: Any, block: int, crcs: list[int]) -> dict[str, Any]:
    """Return what a folder's JSON says about a file: a CRC-32 of every ``block`` rows."""
    return {"shape": list(shape), "dtype": np.dtype(dtype).name, "block": block, "crc32": crcs}


def checked_rows(array: DiskArray, entry: dict[str, Any], start: int, out: np.ndarray) -> np.ndarray:
    """Fill ``out`` with one block of a file and return it; InputError where it differs from its checksum."""
    stop = start + len(out)
    assert start % entry["block"] == 0
    assert stop == min(start + entry["block"], array.shape[0])
    if zlib.crc32(raw(array.rows(start, stop, out))) != entry["crc32"][start // entry["block"]]:
        value = f"{array.path}, rows {start} to {stop - 1}"
        raise InputError("file", value, "what its checksum says", "it was damaged or changed: make it again")
    return out


def checked_blocks(array: DiskArray, entry: dict[str, Any]) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield (start, stop, rows) of every block of a file, checked; the memory is used again for the next but one."""
    block, V = entry["block"], array.shape[0]
    memory = [np.empty((min(block, V), *array.shape[1:]), array.dtype) for _ in range(2)]

    def read(start: int, number: int) -> tuple[int, int, np.ndarray]:
        stop = min(start + block, V)
        return start, stop, checked_rows(array, entry, start, memory[number][: stop - start])

    yield from read_ahead(range(0, V, block), read)


def copy_array(array: np.ndarray, path: Path, traffic: Traffic | None = None) -> dict[str, Any]:
    """Write an array in memory to a file and return its entry."""
    new = NewArray(path, array.shape, array.dtype, traffic)
    try:
        for start in range(0, len(array), new.block):
            new.write(start, array[start : start + new.block])
        new.commit()
    finally:
        new.close()
    return new.entry()
