"""The graph operator S applied to slices in memory, its adjacency in memory or streamed from the disk."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp

from pdadmm.augment.operators import OPERATORS
from pdadmm.augment.product import spmm
from pdadmm.disk.blocks import read_ahead
from pdadmm.disk.graph import DiskGraph, row_blocks
from pdadmm.errors import InputError
from pdadmm.kernels import operator as kernel

__all__ = ["BLOCK_ENTRIES", "STREAM_ENTRIES", "DiskOperator", "plain_rows"]

BLOCK_ENTRIES = 1 << 17  # entries of S that are made and used together: they stay in cache
STREAM_ENTRIES = 1 << 22  # entries of A that are read together


class DiskOperator:
    """S = D^-left (A + I) D^-right of a graph on the disk, for the ``operator`` and ``dtype`` of propagation_matrix.

    The values are made row block by row block as S is applied, with the bits of propagation_matrix. ``resident``: keep
    the columns of A in memory, else read them again for every product. Memory: 16 bytes a node, and the columns, or two
    blocks of them. Building it checks the adjacency; raises InputError where it is damaged.
    """

    def __init__(self, graph: DiskGraph, indptr: np.ndarray, operator: str, dtype: str, resident: bool) -> None:
        self.graph, self.indptr, self.dtype = graph, indptr, np.dtype(dtype)
        family = OPERATORS[operator]
        degrees = np.diff(indptr) + 1.0
        self.left = degrees**-family.left if family.left else None
        self.right = self.left if family.right == family.left else degrees**-family.right if family.right else None
        self.columns = np.empty(graph.num_edges, graph.indices.dtype) if resident else None
        graph.check_adjacency(indptr, self.columns)
        widest = int(degrees.max(initial=1))
        room = 2 * BLOCK_ENTRIES + widest
        self._offsets = np.empty(BLOCK_ENTRIES + 1, np.int32)
        self._into, self._values = np.empty(room, graph.indices.dtype), np.empty(room, self.dtype)
        streamed = 0 if resident else min(graph.num_edges, max(STREAM_ENTRIES, widest))
        self._read = [np.empty(streamed, graph.indices.dtype) for _ in range(2)]

    def apply(self, X: np.ndarray, out: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """Set out [V, w] to S X, or out [len(rows), w] to those rows of it; ``rows`` rise strictly."""
        for first, last, columns in self._stretches(rows):
            for a, b in row_blocks(self.indptr, BLOCK_ENTRIES, first, last):
                if rows is None:
                    spmm(self._rows(first, columns, a, b), X, out[a:b])
                    continue
                start, stop = np.searchsorted(rows, (a, b))
                if start < stop:
                    part = self._rows(first, columns, a, b)[rows[start:stop] - a]
                    spmm(part, X, out[start:stop])
        return out

    def _stretches(self, rows: np.ndarray | None) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yield (first row, last row + 1, the columns of their entries): all at once, or as they are read."""
        if self.columns is not None:
            yield 0, len(self.indptr) - 1, self.columns
            return

        def read(stretch: tuple[int, int], memory: int) -> tuple[int, int, np.ndarray]:
            a, b = stretch
            start, stop = int(self.indptr[a]), int(self.indptr[b])
            return a, b, self.graph.indices.rows(start, stop, self._read[memory][: stop - start], again=True)

        cuts = row_blocks(self.indptr, STREAM_ENTRIES)
        wanted = (cut for cut in cuts if rows is None or np.diff(np.searchsorted(rows, cut))[0])
        yield from read_ahead(wanted, read)

    def _rows(self, first: int, columns: np.ndarray, a: int, b: int) -> sp.csr_array:
        """Return rows a to b of S; ``columns`` begins with the entries of row ``first``."""
        start, stop = (int(self.indptr[row] - self.indptr[first]) for row in (a, b))
        part = columns[start:stop]
        if kernel.available() and part.dtype == np.int32:
            offsets = self._offsets[: b - a + 1]
            count = kernel.operator_rows(
                self.indptr, part, a, b, self.left, self.right, offsets, self._into, self._values
            )
            if count >= 0:
                found = self._values[:count], self._into[:count], offsets
                return sp.csr_array(found, shape=(b - a, len(self.indptr) - 1))
        return plain_rows(self.indptr, part, a, b, self.left, self.right, self.dtype)


def plain_rows(indptr, columns, a: int, b: int, left, right, dtype) -> sp.csr_array:
    """Return rows a to b of S in plain numpy; ``columns`` are the entries of these rows of A.

    Raises InputError for a column outside the nodes.
    """
    V = len(indptr) - 1
    if len(columns) and not (columns.min() >= 0 and columns.max() < V):
        raise InputError("dataset", f"columns from {columns.min()} to {columns.max()}", f"columns 0 to {V - 1}")
    own = np.arange(a, b)
    rows = np.concatenate([np.repeat(own, np.diff(indptr[a : b + 1])), own])
    columns = np.concatenate([columns, own.astype(columns.dtype)])
    order = np.lexsort((columns, rows))
    rows, columns = rows[order], columns[order]
    values = np.ones(len(rows))
    values *= 1.0 if left is None else left[rows]
    values *= 1.0 if right is None else right[columns]
    offsets = np.searchsorted(rows, np.arange(a, b + 1)).astype(columns.dtype)
    return sp.csr_array((values.astype(dtype), columns, offsets), shape=(b - a, V))
