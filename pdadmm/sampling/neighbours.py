"""Neighbour sampling (Hamilton et al. 2017): of each layer's nodes a few neighbours each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from pdadmm.baselines.dropout import node_bits
from pdadmm.baselines.shards import run_of
from pdadmm.data.splits import generator
from pdadmm.disk.graph import row_blocks
from pdadmm.models.gnn import Aggregation
from pdadmm.sampling.batch import Batch, csr, entries_of, joined

__all__ = ["NeighbourSampler", "Neighbourhoods", "shuffled"]

ENTRIES = 1 << 18  # of S that are looked at together
NEIGHBOURS = 16  # second word of the draws' key, apart from those of pdadmm.baselines.initial


def shuffled(train: np.ndarray, seed: int, iteration: int) -> np.ndarray:
    """Return the training nodes in the order in which an iteration's steps have them."""
    return train[generator(seed, f"batches {iteration}").permutation(len(train))]


class Neighbourhoods:
    """Batches of given training nodes, each layer with at most ``fanout`` neighbours of every node.

    A node's neighbours are drawn without replacement; their entries of S are multiplied by degree / (neighbours
    drawn), so that the sum's expectation is (S h)_i. Where a neighbour is at hand only with a probability, it counts by
    the inverse: the factor is degree (1 / probability) / (sum of 1 / probability of those drawn), Hajek's ratio. The
    diagonal of S is kept as it is. Every node is computed once a layer, whoever reads it. A draw is keyed by
    (seed, iteration, step, layer, edge). ``fanouts`` are of layers 1 to L; layer L is drawn first. A sampler says what
    the rows of S are, and which nodes are at hand.
    """

    def __init__(self, nodes: int, fanouts: Sequence[int], seed: int) -> None:
        self.fanouts, self.seed = fanouts, seed
        self.place = np.full(nodes, -1, np.int64)

    def _counts(self, targets: np.ndarray) -> np.ndarray:
        """Return how many entries these rows of S have, but for the diagonal's."""
        raise NotImplementedError

    def _entries(self, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the numbers of these rows' entries in S, which of ``targets`` each is in, and their columns."""
        raise NotImplementedError

    def _values(self, found: np.ndarray, nodes: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Return the entries of these numbers, rows ``nodes`` and ``columns``."""
        raise NotImplementedError

    def _chances(self, nodes: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Return with which probability the nodes ``columns`` can be read for these nodes; 0 where they cannot now."""
        raise NotImplementedError

    def _sampled(self, nodes: np.ndarray, iteration: int, step: int) -> list[Batch]:
        """Return the batch of these training nodes, none of no nodes."""
        if not len(nodes):
            return []
        batch = Batch([], [], np.arange(len(nodes)), nodes, float(len(nodes)))
        for layer in range(len(self.fanouts) - 1, -1, -1):
            targets = batch.sources[0] if batch.sources else nodes
            self._extend(batch, *self._block(targets, self.fanouts[layer], self._key(iteration, step, layer)))
        return [batch]

    def _key(self, iteration: int, step: int, layer: int) -> tuple[int, ...]:
        """Return what the draws of a layer are keyed by, beside the edge."""
        return self.seed, NEIGHBOURS, iteration, step, layer

    @staticmethod
    def _extend(batch: Batch, block: sp.csr_array, sources: np.ndarray) -> None:
        """Put the layer below under a batch's layers so far."""
        batch.operators.insert(0, Aggregation(block))
        batch.sources.insert(0, sources)

    def _block(self, targets: np.ndarray, fanout: int, key: tuple[int, ...]) -> tuple[sp.csr_array, np.ndarray]:
        """Return the sampled rows ``targets`` of S, and the nodes of its columns, the targets first."""
        edges = np.append(0, np.cumsum(self._counts(targets), dtype=np.int64))
        parts = [self._picked(targets[a:b], fanout, key) for a, b in row_blocks(edges, ENTRIES)]
        counts, columns, data = (np.concatenate(part) for part in zip(*parts))
        return self._joined(targets, counts, columns, data)

    def _joined(
        self, targets: np.ndarray, counts: np.ndarray, columns: np.ndarray, data: np.ndarray
    ) -> tuple[sp.csr_array, np.ndarray]:
        """Return the block of the rows ``targets`` with these entries, and the nodes of its columns."""
        local, sources = joined(targets, columns, self.place)
        return csr(data, local, np.append(0, np.cumsum(counts)), len(sources)), sources

    def _picked(self, targets: np.ndarray, fanout: int, key: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        """Return how many entries of each of these rows stay, and the columns and values of those."""
        found, rows, columns = self._entries(targets)
        proper = columns != targets[rows]
        chances = self._chances(targets[rows], columns)
        there = chances > 0.0
        degree = np.bincount(rows[proper], minlength=len(targets))
        choice = np.bincount(rows[proper & there], minlength=len(targets))
        kept = there & self._kept(found, rows, proper & there & (choice[rows] > fanout), fanout, key)
        found, rows, columns, proper = found[kept], rows[kept], columns[kept], proper[kept]
        data, weights = self._values(found, targets[rows], columns), 1.0 / chances[kept][proper]
        sums = np.bincount(rows[proper], weights, minlength=len(targets))
        scale = degree / np.where(sums > 0.0, sums, 1.0)
        data[proper] *= (scale[rows[proper]] * weights).astype(data.dtype)
        return np.bincount(rows, minlength=len(targets)), columns, data

    @staticmethod
    def _kept(
        found: np.ndarray, rows: np.ndarray, crowded: np.ndarray, fanout: int, key: tuple[int, ...]
    ) -> np.ndarray:
        """Return which entries stay: of each row's ``crowded`` ones the ``fanout`` with the lowest draws."""
        kept = ~crowded
        candidates = np.flatnonzero(crowded)
        if len(candidates):
            draws = node_bits(key, found[candidates], 1, 32)[:, 0]
            # rows ascend already, so one sort by (row, draw) ranks the draws within each row
            order = candidates[np.lexsort((draws, rows[candidates]))]
            first = np.flatnonzero(np.diff(rows[order], prepend=-1))
            lengths = np.diff(first, append=len(order))
            place_in_row = np.arange(len(order)) - np.repeat(first, lengths)
            kept[order[place_in_row < fanout]] = True
        return kept


class NeighbourSampler(Neighbourhoods):
    """Steps of ``batch_size`` training nodes with sampled neighbours; ranks share a step's training nodes and draw for
    them what one process would.
    """

    def __init__(
        self, S: sp.csr_array, train: np.ndarray, fanouts: Sequence[int], batch_size: int | None, seed: int
    ) -> None:
        super().__init__(S.shape[0], fanouts, seed)
        self.S, self.train = S, train
        self.size = min(batch_size or len(train), len(train))
        self.steps = -(-len(train) // self.size)

    def draw(self, iteration: int, step: int, rank: int, ranks: int) -> list[Batch]:
        batch = shuffled(self.train, self.seed, iteration)[step * self.size : (step + 1) * self.size]
        own = run_of(len(batch), rank, ranks)
        return self._sampled(batch[own.start : own.stop], iteration, step)

    def _counts(self, targets: np.ndarray) -> np.ndarray:
        return self.S.indptr[targets + 1] - self.S.indptr[targets]

    def _entries(self, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        found, counts = entries_of(self.S, targets)
        return found, np.repeat(np.arange(len(targets)), counts), self.S.indices[found]

    def _values(self, found: np.ndarray, nodes: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return self.S.data[found]

    def _chances(self, nodes: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return np.ones(len(columns))
