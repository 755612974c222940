"""The features of a graph on the disk, scaled for training, in files of their own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from pdadmm.augment.scaling import SCALINGS, Scaler
from pdadmm.console import human_bytes
from pdadmm.disk.blocks import DiskArray, NewArray, Traffic, checked_blocks
from pdadmm.disk.graph import DiskGraph
from pdadmm.disk.rows import FolderRows
from pdadmm.errors import InputError

__all__ = ["ScaledFeatures", "fit_scaler"]


class _CastRows:
    """Rows of a file in the number format of training: for Scaler, an array that is read by ranges of rows."""

    def __init__(self, source: FolderRows, dtype: np.dtype) -> None:
        self.source, self.shape, self.dtype = source, source.shape, dtype

    def __getitem__(self, index: slice) -> np.ndarray:
        start, stop, _ = index.indices(self.shape[0])
        return self.source.rows(start, stop).astype(self.dtype, copy=False)


def fit_scaler(graph: DiskGraph, scaling: str, train: np.ndarray, dtype: np.dtype) -> Scaler:
    """Return the scaling of the features, learned from the training nodes; scalings of rows alone read nothing."""
    scaler, family = Scaler(scaling), SCALINGS[scaling]
    if family.centre or family.divide:
        rows = np.sort(train)
        labels = graph.labels()[rows] if family.labelled else None
        return scaler.fit(_CastRows(FolderRows(graph, rows), dtype), labels=labels)  # type: ignore[arg-type]
    width = graph.num_features
    scaler.shift, scaler.scale = np.zeros(width, dtype), np.ones(width, dtype)
    return scaler


class ScaledFeatures:
    """Scaled features (V, F) in the folder of a run, kept sparse where less than ``dense_from`` of them are not 0.

    Dense: ``values`` (V, F). Sparse: ``values`` and ``columns`` (non-zeros,), row after row, and ``indptr`` (V + 1,)
    in memory; it is None where they are dense. Two passes over the graph's features make them, every block compared
    with its checksum. Raises InputError for a number that is not finite, and for a disk without room for them and
    ``more`` bytes.
    """

    def __init__(
        self, graph: DiskGraph, scaler: Scaler, dtype: np.dtype, folder: Path, dense_from: float, traffic: Traffic,
        more: int = 0,
    ) -> None:  # fmt: skip
        self.folder, self.dtype, self.traffic = folder, np.dtype(dtype), traffic
        self.graph, self.scaler = graph, scaler
        self.shape = V, F = graph.num_nodes, graph.num_features
        counts = np.zeros(V + 1, np.int64)
        for start, rows in self._scaled():
            counts[start + 1 : start + 1 + len(rows)] = np.count_nonzero(rows, axis=1)
        np.cumsum(counts, out=counts)
        self.indptr = counts if counts[-1] < dense_from * V * F else None
        self._check_room(more)
        self._write()
        self.values = DiskArray(folder / "features.npy", traffic)
        self.columns = None if self.indptr is None else DiskArray(folder / "feature-columns.npy", traffic)

    def _scaled(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the number of the first row, and scaled rows, block by block."""
        for start, _, rows in checked_blocks(self.graph.features, self.graph.header["files"]["features"]):
            yield start, self.scaler.transform(rows.astype(self.dtype, copy=False))

    def _check_room(self, more: int) -> None:
        own = self.shape[0] * self.shape[1] * self.dtype.itemsize
        if self.indptr is not None:
            own = int(self.indptr[-1]) * (self.dtype.itemsize + 4)
        free = shutil.disk_usage(self.folder).free
        if free < own + more:
            allowed = f"on a disk with {human_bytes(own + more)} free for features and hidden layers; it has "
            raise InputError("scratch", str(self.folder), allowed + human_bytes(free))

    def _write(self) -> None:
        shape = self.shape if self.indptr is None else (int(self.indptr[-1]),)
        files = [NewArray(self.folder / "features.npy", shape, self.dtype, self.traffic)]
        try:
            if self.indptr is not None:
                files.append(NewArray(self.folder / "feature-columns.npy", shape, np.int32, self.traffic))
            for start, rows in self._scaled():
                if self.indptr is None:
                    files[0].write(start, rows)
                else:
                    places = np.nonzero(rows)
                    files[0].write(int(self.indptr[start]), rows[places])
                    files[1].write(int(self.indptr[start]), places[1])
            for file in files:
                file.commit()
        finally:
            for file in files:
                file.close()

    def rows(self, start: int, stop: int) -> np.ndarray | sp.csr_array:
        """Return the features of nodes ``start`` to ``stop``, read from the files."""
        if self.indptr is None or self.columns is None:
            return self.values.rows(start, stop)
        a, b = int(self.indptr[start]), int(self.indptr[stop])
        offsets = (self.indptr[start : stop + 1] - a).astype(np.int32)
        parts = self.values.rows(a, b), self.columns.rows(a, b), offsets
        return sp.csr_array(parts, shape=(stop - start, self.shape[1]))

    def close(self) -> None:
        """Close the files and remove them."""
        for array in (self.values, self.columns):
            if array is not None:
                array.close()
                array.path.unlink(missing_ok=True)
