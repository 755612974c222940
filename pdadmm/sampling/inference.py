"""Exact inference of a GNN from disk: layer after layer with all neighbours, hidden layers in files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from pdadmm.baselines.shards import scores, tally
from pdadmm.disk.blocks import DiskArray, Traffic, forget, read_ahead, read_into, write_from
from pdadmm.disk.features import ScaledFeatures
from pdadmm.disk.graph import row_blocks
from pdadmm.models.gnn import ARCHITECTURES, activate, product
from pdadmm.sampling.buffered import OperatorRows

__all__ = ["BLOCK_NUMBERS", "ColumnFile", "DiskInference"]

BLOCK_NUMBERS = 1 << 20  # numbers of a layer's input, or entries of S, that are read together


class ColumnFile:
    """A matrix (V, n) in a scratch file, one slice of columns behind the other, each row after row.

    It is written and read by rows, or a slice at a time; nothing of it outlives the run.
    """

    def __init__(self, path: Path, rows: int, slices: Sequence[range], dtype: np.dtype, traffic: Traffic) -> None:
        self.path, self.slices, self.dtype, self.traffic = path, slices, np.dtype(dtype), traffic
        self.shape = (rows, slices[-1].stop)
        self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)

    def _offset(self, columns: range, start: int) -> int:
        return (self.shape[0] * columns.start + start * len(columns)) * self.dtype.itemsize

    def write(self, start: int, rows: np.ndarray) -> None:
        """Write whole rows from number ``start`` on."""
        for columns in self.slices:
            self.write_slice(columns, start, rows[:, columns.start : columns.stop])

    def write_slice(self, columns: range, start: int, rows: np.ndarray) -> None:
        """Write one slice of rows from number ``start`` on."""
        write_from(self.file, np.ascontiguousarray(rows, self.dtype), self._offset(columns, start), self.traffic)

    def read_slice(self, columns: range, start: int, stop: int) -> np.ndarray:
        """Return one slice of rows ``start`` to ``stop``."""
        out = np.empty((stop - start, len(columns)), self.dtype)
        offset = self._offset(columns, start)
        read_into(self.file, out, offset, self.traffic)
        forget(self.file, offset, out.nbytes)
        return out

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return rows ``start`` to ``stop``."""
        return np.concatenate([self.read_slice(columns, start, stop) for columns in self.slices], axis=1)

    def close(self) -> None:
        """Close the file and remove it."""
        os.close(self.file)
        self.path.unlink(missing_ok=True)


class DiskInference:
    """The scores of a GNN on a graph on the disk, ``width`` columns of a layer in memory at a time.

        z = (S (h W^T)) + b          gcn            z = h W_1^T + M (h W_2^T) + b          sage, W = [W_1, W_2]

    h is read in blocks of rows and multiplied with W^T; then S, read in blocks of rows, is applied to slices of
    columns, in memory one at a time. The products go to files where they have more columns than ``width``. A layer's
    output goes to a file, the next one's input. Equal to ``infer`` to rounding.
    """

    def __init__(
        self, folder: Path, features: ScaledFeatures, indices: DiskArray, rows: OperatorRows, architecture: str,
        activation: str, width: int, traffic: Traffic,
    ) -> None:  # fmt: skip
        self.folder, self.features, self.indices, self.rows = folder, features, indices, rows
        self.architecture, self.activation, self.width, self.traffic = architecture, activation, width, traffic
        self.nodes = features.shape[0]

    def scores(
        self, weights: Sequence[tuple[Tensor, Tensor]], y: Tensor, parts: dict[str, np.ndarray]
    ) -> tuple[dict[str, float], bool]:
        """Return the accuracies and losses of ``parts``, and whether all logits of theirs are finite."""
        logits = self._logits(weights)
        member = {part: np.sort(nodes) for part, nodes in parts.items()}
        tallies = []
        try:
            for start, stop, rows in self._blocks(logits):
                inside = {part: own[slice(*np.searchsorted(own, (start, stop)))] for part, own in member.items()}
                nodes = np.concatenate(list(inside.values()))
                if len(nodes):
                    of = np.repeat(np.arange(len(inside)), [len(own) for own in inside.values()])
                    masks = {part: torch.from_numpy(of == number) for number, part in enumerate(inside)}
                    chosen = torch.from_numpy(np.asarray(rows)[nodes - start])
                    tallies.append(tally(chosen, y[torch.from_numpy(nodes)], masks))
        finally:
            logits.close()
        finite = not any(found["bad"] for found in tallies)
        return scores(tallies, {part: len(own) for part, own in parts.items()}), finite

    def _logits(self, weights: Sequence[tuple[Tensor, Tensor]]) -> ColumnFile:
        """Return the file of the last layer's output."""
        source: ScaledFeatures | ColumnFile = self.features
        for number, (W, b) in enumerate(weights):
            out = self._file(f"hidden-{number % 2}", len(b))
            try:
                self._layer(source, W.detach(), b.detach(), out, number + 1 < len(weights))
            finally:
                if isinstance(source, ColumnFile):
                    source.close()
            source = out
        assert isinstance(source, ColumnFile)
        return source

    def _file(self, name: str, columns: int) -> ColumnFile:
        slices = [range(a, min(a + self.width, columns)) for a in range(0, columns, self.width)]
        return ColumnFile(self.folder / name, self.nodes, slices, self.features.dtype, self.traffic)

    def _layer(
        self, source: ScaledFeatures | ColumnFile, W: Tensor, b: Tensor, out: ColumnFile, hidden: bool
    ) -> None:
        """Write f(z), or z itself of the last layer, to ``out``."""
        *first, last = W.chunk(ARCHITECTURES[self.architecture].copies, dim=1)
        kept = out.shape[1] * (1 + len(first)) <= self.width  # then the products need no files
        products: list[_InMemory | ColumnFile] = [
            _InMemory(out.shape, out.dtype) if kept else self._file(name, out.shape[1])
            for name in ("mixed", "own")[: 1 + len(first)]
        ]
        try:
            for start, _, rows in self._blocks(source):
                for target, part in zip(products, [last, *first]):
                    target.write(start, _times(rows, part).numpy())
            for columns in out.slices:
                self._mix(columns, products, b[columns.start : columns.stop], out, hidden)
        finally:
            for target in products:
                target.close()

    def _mix(
        self, columns: range, products: Sequence[_InMemory | ColumnFile], b: Tensor, out: ColumnFile, hidden: bool
    ) -> None:
        mixed = torch.from_numpy(products[0].read_slice(columns, 0, self.nodes))
        for start, stop, S in self._operator():
            z = product(S, mixed) + b
            for own in products[1:]:
                z += torch.from_numpy(own.read_slice(columns, start, stop))
            out.write_slice(columns, start, (activate(self.activation, z) if hidden else z).numpy())

    def _blocks(self, source: ScaledFeatures | ColumnFile) -> Iterator[tuple[int, int, np.ndarray | sp.csr_array]]:
        """Yield ranges of nodes and their rows, each read while the one before it is in use."""
        step = max(1, BLOCK_NUMBERS // max(1, source.shape[1]))

        def read(start: int, _: int) -> tuple[int, int, np.ndarray | sp.csr_array]:
            stop = min(start + step, self.nodes)
            return start, stop, source.rows(start, stop)

        yield from read_ahead(range(0, self.nodes, step), read)

    def _operator(self) -> Iterator[tuple[int, int, sp.csr_array]]:
        """Yield S in blocks of rows, the adjacency's entries of each read while the one before it is in use."""
        indptr = self.rows.indptr

        def read(rows: tuple[int, int], _: int) -> tuple[int, int, np.ndarray]:
            return *rows, self.indices.rows(int(indptr[rows[0]]), int(indptr[rows[1]]))

        for start, stop, columns in read_ahead(row_blocks(indptr, BLOCK_NUMBERS // 4), read):
            yield start, stop, self.rows.block(start, stop, columns)


class _InMemory:
    """A matrix in memory, written and read as a ColumnFile of one slice."""

    def __init__(self, shape: tuple[int, int], dtype: np.dtype) -> None:
        self.array = np.empty(shape, dtype)

    def write(self, start: int, rows: np.ndarray) -> None:
        self.array[start : start + len(rows)] = rows

    def read_slice(self, columns: range, start: int, stop: int) -> np.ndarray:
        return self.array[start:stop]

    def close(self) -> None:
        """There is nothing to close."""


def _times(h: np.ndarray | sp.csr_array, W: Tensor) -> Tensor:
    """Return h W^T."""
    return product(h, W.T) if sp.issparse(h) else torch.from_numpy(h) @ W.T
