"""The first two steps of an augmentation from disk: slices of columns are cut, each is taken through all hops."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pdadmm.augment.hops import add_hop, cache_lines
from pdadmm.disk.blocks import (
    Traffic,
    block_rows,
    checked_blocks,
    checked_rows,
    forget,
    raw,
    read_ahead,
    read_into,
    write_from,
)
from pdadmm.disk.graph import DiskGraph
from pdadmm.disk.manifest import Manifest
from pdadmm.disk.operator import DiskOperator
from pdadmm.disk.plan import Plan
from pdadmm.errors import InputError
from pdadmm.files import flush_folder

__all__ = ["SliceFiles", "chain_slices", "check_finite", "damaged", "feature_blocks", "split_features"]

CHUNK_BLOCKS = 8  # blocks of rows, each with a checksum in the graph's folder, in one file of the split


@dataclass
class SliceFiles:
    """Where the slices of one job are and what is in them.

    ``split-CHUNK.bin`` has some rows of X, slice after slice; ``slice-S.bin`` one slice of the result, hop after hop,
    [blocks, kept, w], and behind it [blocks, fit_rows, w] where these rows are kept apart. ``columns[s]`` is the range
    of slice s; ``kept_block`` rows share a checksum. ``own`` are the slices that ``work`` has files of: all, or this
    rank's where every rank has a folder to itself.
    """

    work: Path
    graph: DiskGraph
    plan: Plan
    dtype: np.dtype
    manifest: Manifest
    traffic: Traffic
    own: range

    @property
    def columns(self) -> list[tuple[int, int]]:
        """The range of columns of every slice."""
        F, w = self.plan.shape.features, self.plan.width
        return [(a, min(a + w, F)) for a in range(0, F, w)]

    @property
    def kept_block(self) -> int:
        """Rows of the result that share a checksum."""
        return block_rows(self.result_shape, self.dtype.itemsize)

    @property
    def result_shape(self) -> tuple[int, int]:
        """The shape of the augmented features (V_keep, n_0)."""
        return self.plan.shape.kept, self.plan.shape.blocks * self.plan.shape.features

    def hop_offset(self, number: int, hop: int, row: int) -> int:
        """Return the byte in slice-``number``.bin where a row of a hop begins; hops from H on: the rows kept apart."""
        (a, b), x = self.columns[number], self.plan.shape
        rows = hop * x.kept if hop <= x.blocks else x.blocks * x.kept + (hop - x.blocks) * x.fit_rows
        return (rows + row) * (b - a) * self.dtype.itemsize

    @property
    def own_width(self) -> int:
        """How many columns the own slices have."""
        return sum(b - a for a, b in self.columns[self.own.start : self.own.stop : self.own.step])

    def chunk_offset(self, number: int, first: int, last: int, row: int) -> int:
        """Return the byte in the split's file of rows ``first`` to ``last`` where a row of slice ``number`` begins."""
        columns = self.columns
        before = sum(columns[s][1] - columns[s][0] for s in self.own[: self.own.index(number)])
        width = columns[number][1] - columns[number][0]
        return ((last - first) * before + (row - first) * width) * self.graph.features.dtype.itemsize

    @property
    def needed_bytes(self) -> int:
        """Bytes of all files of the own slices."""
        split = 0 if self.plan.slices == 1 else self.plan.shape.nodes * self.own_width * self.plan.shape.feature_bytes
        return split + sum(map(self.slice_bytes, self.own))

    def chunk_done(self, name: str, first: int, last: int) -> bool:
        """Whether a file of the split is finished, with these rows of the own slices."""
        return self.done(name, (last - first) * self.own_width * self.graph.features.dtype.itemsize)

    def chunks(self) -> list[tuple[str, int, int]]:
        """Return (file, first row, last row + 1) of the split; no file where one slice holds all columns."""
        if self.plan.slices == 1:
            return []
        V, rows = self.graph.num_nodes, CHUNK_BLOCKS * self.graph.header["files"]["features"]["block"]
        return [(f"split-{k:06d}.bin", a, min(a + rows, V)) for k, a in enumerate(range(0, V, rows))]

    def done(self, name: str, size: int) -> bool:
        """Whether a file is finished: listed, there, and as long as it must be."""
        path = self.work / name
        return name in self.manifest.done and path.is_file() and path.stat().st_size == size

    def slice_bytes(self, number: int) -> int:
        """Return the bytes of slice-``number``.bin."""
        x = self.plan.shape
        return self.hop_offset(number, 2 * x.blocks if x.fit_apart else x.blocks, 0)

    def finish(self, name: str, file: int, sums: Any) -> None:
        """Bring a file to the disk, give it its name and list it."""
        os.fsync(file)
        forget(file)
        os.close(file)
        (self.work / (name + ".partial")).rename(self.work / name)
        flush_folder(self.work)
        self.manifest.add({name: sums})

    def begin(self, name: str) -> int:
        """Open a new file beside its name."""
        return os.open(self.work / (name + ".partial"), os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)


def damaged(path: Path) -> InputError:
    """Take a damaged file away and return the error that says so."""
    path.unlink(missing_ok=True)
    return InputError("file", str(path), "what its checksum says", "run the command again: it makes the file again")


def split_features(files: SliceFiles, rank: int, size: int) -> Iterator[int]:
    """Cut the features into slices of columns, a file for each chunk of rows; yield the bytes of each that is done."""
    for name, first, last in files.chunks()[rank::size]:
        if not files.chunk_done(name, first, last):
            file, sums = files.begin(name), [0] * files.plan.slices
            for start, block in feature_blocks(files, first, last):
                for number, (a, b) in enumerate(files.columns):
                    piece = np.ascontiguousarray(block[:, a:b])
                    check_finite(piece, start, a, files.dtype)
                    offset = files.chunk_offset(number, first, last, start)
                    write_from(file, piece, offset, files.traffic)
                    sums[number] = zlib.crc32(raw(piece), sums[number])
            files.finish(name, file, sums)
        yield (last - first) * files.graph.features.row_bytes


def feature_blocks(files: SliceFiles, first: int, last: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, rows) of the blocks of the features from row ``first`` to ``last``, checked."""
    X, entry = files.graph.features, files.graph.header["files"]["features"]
    step = entry["block"]
    memory = [np.empty((step, X.shape[1]), X.dtype) for _ in range(2)]

    def read(start: int, number: int) -> tuple[int, np.ndarray]:
        stop = min(start + step, last)
        return start, checked_rows(X, entry, start, memory[number][: stop - start])

    yield from read_ahead(range(first, last, step), read)


def check_finite(piece: np.ndarray, row: int, column: int, dtype: np.dtype) -> None:
    """Raise InputError for a value that is not finite, in rows from ``row`` on and columns from ``column`` on."""
    if not np.isfinite(piece).all():
        i, j = np.argwhere(~np.isfinite(piece))[0]
        value = f"{piece[i, j]} at node {row + i}, column {column + j}"
        raise InputError("graph.features", value, f"finite in {dtype}", "clean or rescale the features")


def chain_slices(
    files: SliceFiles,
    make_operator: Callable[[], DiskOperator | None],
    weights: list[float] | None,
    rows: np.ndarray | None,
    fit_rows: np.ndarray | None,
    rank: int,
    size: int,
) -> Iterator[int]:
    """Take slices through all hops, each alone, and write what is kept; yield the bytes of each that is done.

    ``make_operator`` is called where a slice is left to do; None stands for no hops. ``weights`` and ``rows`` as in
    propagate; ``fit_rows``: nodes to write apart, or None. Hops are written while the next is computed.
    """
    mine = range(rank, files.plan.slices, size)
    todo = [number for number in mine if not files.done(f"slice-{number:04d}.bin", files.slice_bytes(number))]
    yield sum(files.slice_bytes(number) for number in mine if number not in todo)
    if not todo:
        return
    operator = make_operator()
    V, width = files.graph.num_nodes, files.plan.width
    buffers = [cache_lines(V * width, files.dtype) for _ in range(2)]
    unique = None if rows is None else np.unique(rows, return_inverse=True)
    with ThreadPoolExecutor(1, thread_name_prefix="pdadmm-write") as pool:
        writer = _Writer(files, fit_rows, pool)
        for number in todo:
            w = files.columns[number][1] - files.columns[number][0]
            slices = [buffer[: V * w].reshape(V, w) for buffer in buffers]
            _chain(files, operator, weights, rows, unique, number, slices, writer)
            writer.close()
            yield files.slice_bytes(number)
        writer.wait()


class _Writer:
    """Writes hops of a slice on a thread of its own; memory that is being written must be waited for."""

    def __init__(self, files: SliceFiles, fit_rows: np.ndarray | None, pool: ThreadPoolExecutor) -> None:
        self.files, self.fit_rows, self.pool = files, fit_rows, pool
        self.under_way: list[Future] = []
        self.sums: dict[str, list[int]] = {}

    def open(self, number: int) -> None:
        """Begin the file of a slice."""
        self.number, self.name = number, f"slice-{number:04d}.bin"
        self.file, self.sums = self.files.begin(self.name), {}

    def put(self, hop: int, block: np.ndarray, index: np.ndarray | None) -> None:
        """Write block[index], or all of block, as a hop."""
        self.under_way.append(self.pool.submit(self._write, self.file, self.number, self.sums, hop, block, index))

    def close(self) -> None:
        """Finish the file once all of it is written; one whose writing failed must not be listed."""
        writes, name, file, sums = list(self.under_way), self.name, self.file, self.sums

        def finish() -> None:
            for write in writes:
                write.result()
            self.files.finish(name, file, sums)

        self.under_way.append(self.pool.submit(finish))

    def wait(self, left: int = 0) -> None:
        """Return once all but the last ``left`` writes are done."""
        while len(self.under_way) > left:
            self.under_way.pop(0).result()

    def _write(
        self, file: int, number: int, sums: dict, hop: int, block: np.ndarray, index: np.ndarray | None
    ) -> None:
        self._write_rows(file, number, sums, hop, block, index, self.files.plan.shape.kept)
        if self.fit_rows is not None:
            apart = hop + self.files.plan.shape.blocks
            self._write_rows(file, number, sums, apart, block, self.fit_rows, len(self.fit_rows))

    def _write_rows(
        self, file: int, number: int, sums: dict, hop: int, block: np.ndarray, index: np.ndarray | None, count: int
    ) -> None:
        files, found = self.files, []
        for a in range(0, count, files.kept_block):
            part = slice(a, min(a + files.kept_block, count))
            piece = np.ascontiguousarray(block[part] if index is None else block[index[part]])
            found.append(zlib.crc32(raw(piece)))
            write_from(file, piece, files.hop_offset(number, hop, a), files.traffic)
        sums[str(hop)] = found


def _chain(files: SliceFiles, operator, weights, rows, unique, number: int, slices: list, writer: _Writer) -> None:
    """Compute the hops of one slice; a hop is overwritten by the next but one, so at most one write is under way."""
    hops, averaged = files.plan.shape.hops, None
    now, free = slices
    writer.wait()  # of the slice before: both pieces of memory
    writer.open(number)
    _load(files, number, now)
    if weights is not None:
        averaged = np.empty((files.plan.shape.kept, now.shape[1]), files.dtype)
    with np.errstate(over="ignore", invalid="ignore"):  # found in the result, where its place can be told
        for hop in range(hops + 1):
            index = rows
            if hop:
                writer.wait(1)  # the hop before is still being written, from `now`
                last = None
                if hop == hops and unique is not None:  # the last hop is needed on the kept rows alone
                    last, index = unique
                    free = free[: len(last)]
                operator.apply(now, free, last)
                now, free = free, now
            if averaged is None:
                writer.put(hop, now, index)
            else:
                # a numpy scalar would turn float32 work into float64
                add_hop(averaged, now, index, float(weights[hop]), add=hop > 0)
    if averaged is not None:
        writer.put(0, averaged, None)


def _load(files: SliceFiles, number: int, out: np.ndarray) -> None:
    """Fill ``out`` with the columns of a slice, checked."""
    X, (a, b) = files.graph.features, files.columns[number]
    if files.plan.slices == 1:
        for start, stop, block in checked_blocks(X, files.graph.header["files"]["features"]):
            check_finite(block, start, a, files.dtype)
            out[start:stop] = block
        return
    step = block_rows((files.graph.num_nodes, b - a), X.dtype.itemsize)
    memory = [np.empty((step, b - a), X.dtype) for _ in range(2)]
    pieces = [
        (name, first, last, start, min(start + step, last))
        for name, first, last in files.chunks()
        for start in range(first, last, step)
    ]

    def read(piece: tuple[str, int, int, int, int], which: int) -> np.ndarray:
        name, first, last, start, stop = piece
        found = memory[which][: stop - start]
        offset = files.chunk_offset(number, first, last, start)
        file = os.open(files.work / name, os.O_RDONLY)
        try:
            read_into(file, found, offset, files.traffic)
            forget(file, offset, found.nbytes)
        finally:
            os.close(file)
        return found

    sums = 0
    for (name, first, last, start, stop), found in zip(pieces, read_ahead(pieces, read)):
        out[start:stop] = found
        sums = zlib.crc32(raw(found), sums if start > first else 0)
        if stop == last and sums != files.manifest.done[name][files.own.index(number)]:
            raise damaged(files.work / name)
