"""Rows that lie scattered in a file, read in one rising pass: neighbours together, small gaps read through."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pdadmm.disk.blocks import DiskArray
from pdadmm.kernels import scattered as kernel

__all__ = ["GAP_BYTES", "ScatteredPool", "ScatteredReader", "ScatteredRows", "stretches"]

GAP_BYTES = 8 << 10  # a gap that is read through: as long as another read takes


def stretches(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the numbers of stretches of ``counts`` numbers from ``starts`` on, one behind the other.

    >>> stretches(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - (ends - counts), counts)


class ScatteredReader:
    """Reads ranges of rows of files by way of ``nbytes`` of memory, its own, for what has gaps.

    They are read again and again, in other choices, so the system may keep what it has memory for.
    """

    def __init__(self, nbytes: int) -> None:
        self.stage = np.empty(nbytes, np.uint8)

    def read(self, array: DiskArray, starts: np.ndarray, counts: np.ndarray, out: np.ndarray) -> None:
        """Fill ``out`` with ``counts`` rows from each of ``starts`` on; these rise and do not overlap.

        A gap of at most GAP_BYTES between two ranges is read through, if both fit the memory for it.
        """
        full = np.flatnonzero(counts > 0)
        starts, stops = starts[full], starts[full] + counts[full]
        new = np.flatnonzero(starts[1:] != stops[:-1])
        starts, stops = starts[np.append(0, new + 1)[: len(full)]], stops[np.append(new, len(stops) - 1)[: len(full)]]
        if kernel.available():
            self._read_compiled(array, starts, stops, out)
        else:
            self._read_plain(array, starts, stops, out)

    def _read_compiled(self, array: DiskArray, starts: np.ndarray, stops: np.ndarray, out: np.ndarray) -> None:
        with array.reading():
            file, first = array.file, array.data_start
            read = kernel.read_ranges(file, first, array.row_bytes, starts, stops, GAP_BYTES, self.stage, out)
        array.traffic.add(read=read)

    def _read_plain(self, array: DiskArray, starts: np.ndarray, stops: np.ndarray, out: np.ndarray) -> None:
        places = np.append(0, np.cumsum(stops - starts))
        for a, b in self._spans(starts, stops, array.row_bytes):
            target = out[places[a] : places[b]]
            if b - a == 1:
                array.rows(int(starts[a]), int(stops[a]), target, again=True)
            else:
                first, last = int(starts[a]), int(stops[b - 1])
                stage = self.stage[: (last - first) * array.row_bytes].view(array.dtype)
                rows = array.rows(first, last, stage.reshape(last - first, *array.shape[1:]), again=True)
                np.take(rows, stretches(starts[a:b] - first, stops[a:b] - starts[a:b]), axis=0, out=target)

    def _spans(self, starts: np.ndarray, stops: np.ndarray, row_bytes: int) -> Iterator[tuple[int, int]]:
        """Yield which ranges are read together."""
        wide = np.flatnonzero((starts[1:] - stops[:-1]) * row_bytes > GAP_BYTES) + 1  # ranges behind a wide gap
        wide, room = np.append(wide, len(starts)), len(self.stage) // max(1, row_bytes)
        a = 0
        while a < len(starts):
            b = min(
                int(wide[np.searchsorted(wide, a, side="right")]),
                int(np.searchsorted(stops, starts[a] + room, side="right")),
            )
            b = max(b, a + 1)
            yield a, b
            a = b


class ScatteredPool:
    """Room in memory for ``numbers`` rows of a file, those of some nodes.

    A node has one row of the file, or with ``starts`` (V + 1,) those from starts[node] to starts[node + 1].
    """

    def __init__(self, array: DiskArray, starts: np.ndarray | None, numbers: int) -> None:
        self.array, self.starts = array, starts
        self.numbers = np.empty((numbers, *array.shape[1:]), array.dtype)
        self.places = np.empty(0, np.int64)  # where the rows of each node begin

    def read(self, nodes: np.ndarray, reader: ScatteredReader) -> None:
        """Fill it with the rows of these nodes, which rise."""
        first = nodes if self.starts is None else self.starts[nodes]
        counts = np.ones(len(nodes), np.int64) if self.starts is None else self.starts[nodes + 1] - first
        ends = np.cumsum(counts)
        reader.read(self.array, first, counts, self.numbers[: ends[-1] if len(ends) else 0])
        self.places = ends - counts


class ScatteredRows:
    """The rows that some nodes have in several files, in memory: ``numbers`` of each file at the most.

    It answers as a PartitionBuffer does: ``pools`` name the files, ``places`` says where a node's rows begin.
    """

    def __init__(
        self, files: dict[str, tuple[DiskArray, np.ndarray | None]], numbers: int, reader: ScatteredReader
    ) -> None:
        self.pools = {name: ScatteredPool(array, starts, numbers) for name, (array, starts) in files.items()}
        self.reader, self.nodes = reader, np.empty(0, np.int64)
        self.nbytes = sum(pool.numbers.nbytes for pool in self.pools.values())

    def hold(self, nodes: np.ndarray) -> None:
        """Hold the rows of these nodes, which rise; the same array as before is not read again."""
        if nodes is not self.nodes:
            self.nodes = np.empty(0, np.int64)
            for pool in self.pools.values():
                pool.read(nodes, self.reader)
            self.nodes = nodes

    def places(self, name: str, nodes: np.ndarray) -> np.ndarray:
        """Return where the rows of these nodes, which are held, begin in the pool of this name."""
        return self.pools[name].places[np.searchsorted(self.nodes, nodes)]

    def close(self) -> None:
        """Give the memory back."""
        self.pools = {}
