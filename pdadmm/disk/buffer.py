"""A buffer of partitions: runs of consecutive nodes whose numbers are in memory, read ahead by a thread."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from pdadmm.disk.blocks import DiskArray

__all__ = ["Cut", "PartitionBuffer", "Pool", "longest_stretch"]


class Cut:
    """V nodes cut into ``count`` partitions of ``rows`` consecutive nodes each, the last maybe of fewer.

    >>> cut = Cut(10, 4)
    >>> cut.count, cut.bounds(2), cut.of(np.array([3, 4])).tolist()
    (3, (8, 10), [0, 1])
    """

    def __init__(self, nodes: int, rows: int) -> None:
        self.nodes, self.rows, self.count = nodes, rows, -(-nodes // rows)

    def of(self, nodes: np.ndarray) -> np.ndarray:
        """Return each node's partition."""
        return nodes // self.rows

    def bounds(self, partition: int) -> tuple[int, int]:
        """Return the first node of a partition, and the one behind its last."""
        return partition * self.rows, min((partition + 1) * self.rows, self.nodes)

    def sizes(self, starts: np.ndarray | None) -> np.ndarray:
        """Return how many rows of a file each partition has: its nodes, or with ``starts`` (V + 1,) their entries."""
        edges = np.minimum(np.arange(self.count + 1) * self.rows, self.nodes)
        return np.diff(edges if starts is None else starts[edges])


def longest_stretch(cut: Cut, starts: np.ndarray | None) -> int:
    """Return the rows of a file that the largest partition has."""
    return int(cut.sizes(starts).max())


class Pool:
    """Room in memory for one file's numbers of ``slots`` partitions.

    A node has one row of the file, or with ``starts`` (V + 1,) those from starts[node] to starts[node + 1].
    """

    def __init__(self, array: DiskArray, starts: np.ndarray | None, cut: Cut, slots: int) -> None:
        self.array, self.starts, self.cut = array, starts, cut
        self.longest = longest_stretch(cut, starts)
        self.numbers = np.empty((slots * self.longest, *array.shape[1:]), array.dtype)

    def read(self, partition: int, slot: int) -> None:
        """Fill a slot from the file."""
        start, stop = self.cut.bounds(partition)
        if self.starts is not None:
            start, stop = int(self.starts[start]), int(self.starts[stop])
        first = slot * self.longest
        self.array.rows(start, stop, self.numbers[first : first + stop - start])

    def places(self, nodes: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """Return where the numbers of these nodes begin in ``numbers``; ``slots`` are those of their partitions."""
        first = self.cut.of(nodes) * self.cut.rows
        within = nodes - first if self.starts is None else self.starts[nodes] - self.starts[first]
        return slots * self.longest + within


class PartitionBuffer:
    """``slots`` partitions of several files in memory, and no more: those that are held, and those on their way.

    ``pools`` name the files, ``nbytes`` are theirs; ``most`` is the largest number of slots that were ever in use.
    """

    def __init__(self, cut: Cut, slots: int, files: dict[str, tuple[DiskArray, np.ndarray | None]]) -> None:
        self.cut, self.slots = cut, slots
        self.pools = {name: Pool(array, starts, cut, slots) for name, (array, starts) in files.items()}
        self.slot_of = np.full(cut.count, -1, np.int64)  # of what is held
        self.most, self.nbytes = 0, sum(pool.numbers.nbytes for pool in self.pools.values())
        self._free = list(range(slots))
        self._coming: dict[int, int] = {}  # partition -> slot that it is being read into
        self._reading: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pdadmm-read")

    def hold(self, now: Sequence[int], then: Sequence[int] = ()) -> None:
        """Hold the partitions ``now``, reading what is missing; begin to read what ``then`` has beyond them."""
        if self._reading is not None:
            self._reading.result()
            self._reading = None
        wanted = set(now)
        for partition in np.flatnonzero(self.slot_of >= 0).tolist():
            if partition not in wanted:
                self._free.append(int(self.slot_of[partition]))
                self.slot_of[partition] = -1
        for partition, slot in self._coming.items():
            if partition in wanted:
                self.slot_of[partition] = slot
            else:
                self._free.append(slot)
        missing = self._take([p for p in wanted if self.slot_of[p] < 0])
        self._read(missing)
        for partition, slot in missing.items():
            self.slot_of[partition] = slot
        ahead = [p for p in then if p not in wanted]
        self._coming = self._take(ahead[: len(self._free)])
        self.most = max(self.most, self.slots - len(self._free))
        if self._coming:
            self._reading = self._thread.submit(self._read, dict(self._coming))

    def _take(self, partitions: Sequence[int]) -> dict[int, int]:
        """Give each of these partitions a free slot; they are read in the order of the file."""
        return {partition: self._free.pop() for partition in sorted(partitions)}

    def _read(self, places: dict[int, int]) -> None:
        for partition, slot in places.items():
            for pool in self.pools.values():
                pool.read(partition, slot)

    def holds(self, nodes: np.ndarray) -> np.ndarray:
        """Return which of these nodes are of a partition that is held."""
        return self.slot_of[self.cut.of(nodes)] >= 0

    def places(self, name: str, nodes: np.ndarray) -> np.ndarray:
        """Return where the numbers of these nodes, which are held, begin in the pool of this name."""
        return self.pools[name].places(nodes, self.slot_of[self.cut.of(nodes)])

    def close(self) -> None:
        """Wait for what is being read, and give the memory back."""
        self._thread.shutdown()
        self.pools = {}
