"""Matrices that are read by rows: arrays, files, rows of a folder of augmented features; and their centred form."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pdadmm.disk.augmented import AugmentedFolder
from pdadmm.disk.blocks import block_rows, checked_blocks
from pdadmm.disk.graph import DiskGraph
from pdadmm.errors import InputError

__all__ = ["Centred", "FolderRows", "Rows", "by_rows", "is_read_by_rows", "row_ranges"]

NUMBERS_AT_ONCE = 1 << 20


class Rows(Protocol):
    """A matrix that is read by rows, such as pdadmm.disk.blocks.DiskArray."""

    shape: tuple[int, ...]

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return rows ``start`` to ``stop``."""


class _InMemory:
    """An array in memory, as something that is read by rows."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape = array, array.shape

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return rows ``start`` to ``stop``."""
        return self.array[start:stop]


def is_read_by_rows(X: Any) -> bool:
    """Whether X is Rows and no array: such as a file, which need not fit in memory."""
    return hasattr(X, "rows") and not hasattr(X, "__array__")


def by_rows(X: Any) -> Rows:
    """Return X as something that is read by rows: itself, or around an array."""
    return X if is_read_by_rows(X) else _InMemory(np.asarray(X))


def row_ranges(X: Rows, stop: int) -> Iterator[tuple[int, int]]:
    """Yield (first, end) of the rows up to ``stop``, a few MiB at a time."""
    step = max(1, NUMBERS_AT_ONCE // max(1, X.shape[1]))
    yield from ((start, min(start + step, stop)) for start in range(0, stop, step))


class FolderRows:
    """Some rows of the features of a folder, in any order, best in ascending runs; every block is checked once.

    The file is read in sequence from the first row of a run to its last: rows that lie apart are not looked for alone.
    """

    def __init__(self, folder: AugmentedFolder | DiskGraph, numbers: np.ndarray) -> None:
        self.features, self.numbers = folder.features, numbers
        self.shape: tuple[int, ...] = (len(numbers), self.features.shape[1])
        for _ in checked_blocks(self.features, folder.header["files"]["features"]):
            pass

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return rows ``start`` to ``stop``."""
        own = self.numbers[start:stop]
        out = np.empty((len(own), self.shape[1]), self.features.dtype)
        runs = [0, *(np.flatnonzero(np.diff(own) < 0) + 1).tolist(), len(own)]
        step = block_rows(self.features.shape, self.features.dtype.itemsize)
        for first, last in itertools.pairwise(runs):
            run = own[first:last]
            for low in range(int(run[0]), int(run[-1]) + 1, step):
                high = min(low + step, int(run[-1]) + 1)
                inside = slice(*np.searchsorted(run, (low, high)).tolist())
                if inside.stop > inside.start:
                    out[first:last][inside] = self.features.rows(low, high)[run[inside] - low]
        return out


class Centred:
    """The rows of a matrix as torch arrays of ``dtype``, less ``shift``, the mean of its first ``nodes`` rows.

    Raises InputError where a number is not finite.
    """

    def __init__(self, source: Rows, nodes: int, dtype: torch.dtype) -> None:
        self.source, self.shape, self.dtype = source, source.shape, dtype
        self.shift = torch.zeros(self.shape[1], dtype=torch.float64)
        for start, stop in row_ranges(source, self.shape[0]):
            rows = torch.tensor(source.rows(start, stop), dtype=dtype)
            if not bool(torch.isfinite(rows).all()):
                raise InputError("X", f"NaN or infinity in rows {start} to {stop - 1}", "finite")
            self.shift += rows[: max(0, nodes - start)].double().sum(0) / nodes

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Yield the number of the first row, and rows, until all are through."""
        for start, stop in row_ranges(self.source, self.shape[0]):
            rows = torch.tensor(self.source.rows(start, stop), dtype=self.dtype)
            yield start, rows.sub_(self.shift.to(self.dtype))
