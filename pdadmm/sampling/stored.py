"""Neighbour sampling among all neighbours of a graph on the disk: the batches of the run in memory, read as needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from torch import Tensor

from pdadmm.disk.blocks import read_ahead
from pdadmm.disk.graph import row_blocks
from pdadmm.disk.scattered import ScatteredRows, stretches
from pdadmm.models.gnn import Aggregation
from pdadmm.recording import Breakdown
from pdadmm.sampling.batch import Batch
from pdadmm.sampling.buffered import BufferFeatures, DiskNeighbourhoods, OperatorRows
from pdadmm.sampling.neighbours import shuffled
from pdadmm.sampling.network import Dropout, Features, StreamedRows

__all__ = ["StoredFeatures", "StoredSampler", "most_read"]

Item = TypeVar("Item")
Part = tuple[int, np.ndarray, np.ndarray]  # which half, or 2 for the cache, nodes, and where a batch has them


class StoredSampler(DiskNeighbourhoods):
    """The batches of NeighbourSampler, bit for bit, from the disk.

    ``window`` steps are drawn together, layer L first: the adjacency's rows of all their nodes are read in one rising
    pass, in blocks, and of each block every step draws its own, while the next block is read.
    """

    def __init__(
        self, rows: OperatorRows, halves: Sequence[ScatteredRows], entries: int, train: np.ndarray,
        fanouts: Sequence[int], batch_size: int | None, seed: int, window: int,
    ) -> None:  # fmt: skip
        super().__init__(rows, halves[0], train, fanouts, batch_size, seed)
        self.halves, self.entries, self.train, self.window = halves, entries, train, window
        self.steps = -(-len(train) // self.size)
        self.iteration, self.ahead = 0, dict[int, Batch]()  # batches of steps to come

    def begin(self, iteration: int) -> None:
        """Begin an iteration."""
        self.iteration, self.ahead = iteration, {}

    def drawn(self, step: int) -> Iterator[Batch]:
        """Yield the batch of a step."""
        if step not in self.ahead:
            steps = range(step, min(step + self.window, self.steps))
            self.ahead = dict(zip(steps, self.sampled(self.iteration, steps)))
        yield self.ahead.pop(step)

    def sampled(self, iteration: int, steps: Sequence[int]) -> list[Batch]:
        """Return the batches of these steps."""
        order = shuffled(self.train, self.seed, iteration)
        own = [order[step * self.size : (step + 1) * self.size] for step in steps]
        batches = [Batch([], [], np.arange(len(nodes)), nodes, float(len(nodes))) for nodes in own]
        for layer in range(len(self.fanouts) - 1, -1, -1):
            targets = [batch.sources[0] if batch.sources else batch.nodes for batch in batches]
            keys = [self._key(iteration, step, layer) for step in steps]
            picked = self._picked_of(targets, self.fanouts[layer], keys)
            with self.times("sampling"):
                for batch, rows, found in zip(batches, targets, picked):
                    self._extend(batch, *self._joined(rows, *found))
        return batches

    def _picked_of(
        self, targets: Sequence[np.ndarray], fanout: int, keys: Sequence[tuple[int, ...]]
    ) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Return what ``_picked`` does for the targets of several steps, from one pass over the adjacency."""
        with self.times("sampling"):
            union = np.unique(np.concatenate(targets))
            orders = [np.argsort(own) for own in targets]
            rising = [own[order] for own, order in zip(targets, orders)]
            blocks = row_blocks(np.append(0, np.cumsum(self._counts(union))), self.entries)
        parts: list[list[tuple[np.ndarray, ...]]] = [[] for _ in targets]

        def read(block: tuple[int, int], half: int) -> ScatteredRows:
            self.halves[half].hold(union[slice(*block)])
            return self.halves[half]

        for held in waited(read_ahead(blocks, read), self.times):
            self.buffer = held
            with self.times("sampling"):
                for own, part, key in zip(rising, parts, keys):
                    a, b = np.searchsorted(own, (held.nodes[0], held.nodes[-1] + 1))
                    if a < b:
                        part.append(self._picked(own[a:b], fanout, key))
        with self.times("sampling"):
            return [_put_back(part, order) for part, order in zip(parts, orders)]

    def _chances(self, nodes: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return np.ones(len(columns))


def _put_back(parts: Sequence[tuple[np.ndarray, ...]], order: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the joined parts (entries of each row, columns, values), whose row k is to be row order[k]."""
    counts, columns, data = (np.concatenate(part) for part in zip(*parts))
    place = np.argsort(order)
    found = stretches((np.cumsum(counts) - counts)[place], counts[place])
    return counts[place], columns[found], data[found]


def waited(items: Iterable[Item], times: Breakdown) -> Iterator[Item]:
    """Yield the items, the seconds until each counted as waiting."""
    items = iter(items)
    while True:
        with times("waiting"):
            item = next(items, None)
        if item is None:
            return
        yield item


class StoredFeatures(Features):
    """Features on the disk, read for each batch, in order and back again for its gradient.

    ``cache`` keeps the features of the nodes ``kept``, which are read at once and stay; those of a batch's other nodes
    are read in rising blocks of at most ``rows`` nodes and ``numbers`` numbers into ``halves`` in turn, the next while
    one is in use. The way back begins with the blocks that are still there. ``chunk`` nodes are multiplied together,
    ``chunk_numbers`` numbers where features are sparse.
    """

    def __init__(
        self, cache: ScatteredRows, kept: np.ndarray, halves: Sequence[ScatteredRows], width: int,
        indptr: np.ndarray | None, numbers: int, chunk: int,
    ) -> None:  # fmt: skip
        self.times = None
        self.width, self.sparse, self.indptr = width, indptr, indptr
        self.numbers, self.chunk = numbers, chunk
        cache.hold(kept)
        self.kept, self.halves = kept, halves
        self.features = [BufferFeatures(rows, width, indptr) for rows in (*halves, cache)]

    def rows(self, nodes: np.ndarray, dropout: Dropout | None = None) -> StreamedRows:
        """Return x (nodes, n_0) in chunks, with dropout where given."""
        order, times = np.argsort(nodes), self.times or Breakdown()
        rising = nodes[order]
        there = np.isin(rising, self.kept)
        others, place = rising[~there], order[~there]
        parts = [(2, rising[there], order[there])]  # the cache is read already: meanwhile the first block is
        parts += [(k % 2, others[a:b], place[a:b]) for k, (a, b) in enumerate(self._cut(others, self.numbers))]

        def chunks(back: bool) -> Iterator[tuple[np.ndarray, Tensor | Aggregation]]:
            for number, own, positions in waited(read_ahead(parts[::-1] if back else parts, self._read), times):
                self.features[number].times = times
                for a, b in self._cut(own, self.chunk):
                    yield positions[a:b], self.features[number].held(own[a:b], dropout)

        return StreamedRows(len(nodes), chunks)

    def _read(self, part: Part, _: int) -> Part:
        if part[0] < 2:
            self.halves[part[0]].hold(part[1])
        return part

    def _cut(self, nodes: np.ndarray, numbers: int) -> Iterator[tuple[int, int]]:
        """Yield ranges of nodes that have so many rows of the files together, or of one node that has more."""
        return row_blocks(row_edges(nodes, self.indptr), numbers)


def row_edges(nodes: np.ndarray, starts: np.ndarray | None) -> np.ndarray:
    """Return how many rows of a file all nodes before each of these have: one each, or those of ``starts`` (V + 1,)."""
    if starts is None:
        return np.arange(len(nodes) + 1)
    return np.append(0, np.cumsum(starts[nodes + 1] - starts[nodes]))


def most_read(indptr: np.ndarray, starts: np.ndarray | None, numbers: int) -> np.ndarray:
    """Return the nodes with the most neighbours, rising, whose features are at most ``numbers`` rows of their files."""
    degrees = np.diff(indptr)
    order = np.argsort(np.negative(degrees, out=degrees), kind="stable")
    del degrees  # 8 bytes a node
    return np.sort(order[:numbers] if starts is None else order[: _count(order, starts, numbers)])


def _count(nodes: np.ndarray, starts: np.ndarray, numbers: int) -> int:
    """Return how many of these nodes, in order, have at most so many rows together."""
    return int(np.searchsorted(row_edges(nodes, starts), numbers, side="right")) - 1
