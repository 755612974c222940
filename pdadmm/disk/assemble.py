"""The last step of an augmentation from disk: slices of columns become scaled rows of all columns."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pdadmm.augment.scaling import Scaler
from pdadmm.disk.blocks import NewArray, entry_of, forget, raw, read_ahead, read_into
from pdadmm.disk.slices import SliceFiles, damaged

__all__ = ["SlicedRows", "finish_rows", "unit_name", "write_rows"]

SYNC_BLOCKS = 16  # blocks between two fsyncs: what a kill loses


def unit_name(block: int | None = None) -> str:
    """Return how the manifest calls a block of the result, or how all such names begin."""
    return "features " + ("" if block is None else f"{block:06d}")


class SlicedRows:
    """The augmented features before scaling, read from the slices: for Scaler, an array that is read by ranges of rows.

    All kept rows, or with ``fit`` those that the scaling is learned from; hop after hop the columns of the own slices.
    ``rows`` reads a range of one block and, once all of it has been read from its start on, compares its checksums;
    ``source[a:b]`` keeps the block it reads, so that rising ranges read each once.
    """

    def __init__(self, files: SliceFiles, fit: bool = False) -> None:
        x = files.plan.shape
        self.files, self.dtype, self.block = files, files.dtype, files.kept_block
        self.stored = x.fit_rows if fit and x.fit_apart else x.kept  # rows of a hop in the files
        self.shape = (x.fit_rows if fit else x.kept, x.blocks * files.own_width)
        self.first_hop = x.blocks if fit and x.fit_apart else 0
        self._sums: dict[tuple[int, int, int], int] = {}  # block, slice, hop: of the rows read so far
        self._open = [os.open(files.work / f"slice-{s:04d}.bin", os.O_RDONLY) for s in files.own]
        self._piece = np.empty(self.block * min(files.plan.width, x.features), self.dtype)
        self._cached, self._cache = -1, np.empty((0, 0), self.dtype)

    def rows(self, start: int, stop: int, out: np.ndarray) -> np.ndarray:
        """Fill ``out`` with rows ``start`` to ``stop``, which are of one block, and return it.

        The rows of a block are read in order; reading may begin again at its first.
        """
        x, files, columns = self.files.plan.shape, self.files, self.files.columns
        block, at = start // self.block, 0
        for number, file in zip(files.own, self._open):
            w = columns[number][1] - columns[number][0]
            piece = self._piece[: (stop - start) * w].reshape(stop - start, w)
            name = f"slice-{number:04d}.bin"
            for hop in range(x.blocks):
                offset = files.hop_offset(number, self.first_hop + hop, start)
                read_into(file, piece, offset, files.traffic)
                forget(file, offset, piece.nbytes)
                key = block, number, hop
                before = self._sums.pop(key) if start % self.block else 0
                self._sums[key] = zlib.crc32(raw(piece), before)
                if stop == min((block + 1) * self.block, self.stored):
                    sums = files.manifest.done[name][str(self.first_hop + hop)]
                    if self._sums.pop(key) != sums[block]:
                        raise damaged(files.work / name)
                first = hop * files.own_width + at
                out[:, first : first + w] = piece
            at += w
        return out

    def __getitem__(self, index: slice) -> np.ndarray:
        start, stop, _ = index.indices(self.shape[0])
        out = np.empty((stop - start, self.shape[1]), self.dtype)
        for number in range(start // self.block, -(-stop // self.block)):
            a, b = max(start, number * self.block), min(stop, (number + 1) * self.block)
            out[a - start : b - start] = self._read(number)[a - number * self.block : b - number * self.block]
        return out

    def _read(self, number: int) -> np.ndarray:
        """Return a block; the last one is kept."""
        if number != self._cached:
            start, stop = number * self.block, min((number + 1) * self.block, self.shape[0])
            if len(self._cache) != stop - start:
                self._cache = np.empty((stop - start, self.shape[1]), self.dtype)
            self._cached = -1  # a failed read leaves nothing behind
            self.rows(start, stop, self._cache)
            self._cached = number
        return self._cache

    def close(self) -> None:
        """Close the files and give back the block that was kept."""
        for file in self._open:
            os.close(file)
        self._open, self._cached, self._cache = [], -1, np.empty((0, 0), self.dtype)


def write_rows(files: SliceFiles, scaler: Scaler, path: Path, rank: int, size: int) -> Iterator[int]:
    """Scale rows and write them to ``path``.partial, which is there; yield the bytes of each stretch that is done.

    Rank r of R takes every R-th stretch of 16 blocks. The manifest lists a block once it is on the disk.
    """
    (kept, n0), source = files.result_shape, SlicedRows(files)
    new = NewArray(path, source.shape, source.dtype, files.traffic, resume=True)
    memory = [np.empty((source.block, n0), source.dtype) for _ in range(2)]
    stretch = SYNC_BLOCKS * source.block

    def read(start: int, number: int) -> tuple[int, np.ndarray]:
        stop = min(start + source.block, kept)
        return start, source.rows(start, stop, memory[number][: stop - start])

    try:
        for first in range(rank * stretch, kept, size * stretch):
            last = min(first + stretch, kept)
            todo = [a for a in range(first, last, new.block) if unit_name(a // new.block) not in files.manifest.done]
            for start, rows in read_ahead(todo, read):
                new.write(start, scaler.transform(rows))
            if todo:
                new.sync()
                files.manifest.add({unit_name(a // new.block): new.crcs[a // new.block] for a in todo})
            yield (last - first) * n0 * source.dtype.itemsize
    finally:
        new.close()
        source.close()


def finish_rows(files: SliceFiles, path: Path, done: dict[str, Any]) -> dict[str, Any]:
    """Give the written rows their name and return their entry; ``done`` are the units that all ranks listed."""
    shape, block = files.result_shape, files.kept_block
    if not path.exists():
        NewArray(path, shape, files.dtype, resume=True).commit()
    return entry_of(shape, files.dtype, block, [done[unit_name(number)] for number in range(-(-shape[0] // block))])
