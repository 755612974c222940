"""Neighbour sampling (Hamilton et al. 2017): of each layer's nodes a few neighbours each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from pdadmm.baselines.dropout import node_bits
from pdadmm.baselines.shards import run_of
from pdadmm.data.splits import generator
from pdadmm.models.gnn import Aggregation
from pdadmm.sampling.batch import Batch, csr, entries_of

__all__ = ["NeighbourSampler"]

NEIGHBOURS = 16  # second word of the draws' key, apart from those of pdadmm.baselines.initial


class NeighbourSampler:
    """Batches of training nodes, each layer with at most ``fanout`` neighbours of every node.

    A node's neighbours are drawn without replacement; their entries of S are multiplied by degree / fanout, so that the
    sum's expectation is (S h)_i. The diagonal of S is kept as it is. Every node is computed once a layer, whoever
    reads it. A draw is keyed by (seed, iteration, step, layer, edge): ranks share a batch's training nodes and
    draw for them what one process would. ``fanouts`` are of layers 1 to L; layer L is drawn first.
    """

    def __init__(
        self, S: sp.csr_array, train: np.ndarray, fanouts: Sequence[int], batch_size: int | None, seed: int
    ) -> None:
        self.S, self.train, self.fanouts, self.seed = S, train, fanouts, seed
        self.size = min(batch_size or len(train), len(train))
        self.steps = -(-len(train) // self.size)
        self.place = np.full(S.shape[0], -1, np.int64)

    def draw(self, iteration: int, step: int, rank: int, ranks: int) -> list[Batch]:
        order = generator(self.seed, f"batches {iteration}").permutation(len(self.train))
        batch = self.train[order[step * self.size : (step + 1) * self.size]]
        own = run_of(len(batch), rank, ranks)
        nodes = batch[own.start : own.stop]
        if not len(nodes):
            return []
        targets, operators, sources = nodes, list[Aggregation](), list[np.ndarray]()
        for layer in range(len(self.fanouts) - 1, -1, -1):
            key = self.seed, NEIGHBOURS, iteration, step, layer
            block, targets = self._block(targets, self.fanouts[layer], key)
            operators.insert(0, Aggregation(block))
            sources.insert(0, targets)
        return [Batch(sources, operators, np.arange(len(nodes)), nodes, float(len(nodes)))]

    def _block(self, targets: np.ndarray, fanout: int, key: tuple[int, ...]) -> tuple[sp.csr_array, np.ndarray]:
        """Return the sampled rows ``targets`` of S, and the nodes of its columns, the targets first."""
        found, counts = entries_of(self.S, targets)
        rows = np.repeat(np.arange(len(targets)), counts)
        columns = self.S.indices[found]
        proper = columns != targets[rows]
        degree = np.bincount(rows[proper], minlength=len(targets))
        kept = self._kept(found, rows, proper & (degree[rows] > fanout), fanout, key)
        found, rows, columns, proper = found[kept], rows[kept], columns[kept], proper[kept]
        data = self.S.data[found]
        data[proper] *= np.maximum(degree / fanout, 1.0)[rows[proper]].astype(data.dtype)
        self.place[targets] = np.arange(len(targets))
        new = np.unique(columns[self.place[columns] < 0])
        self.place[new] = np.arange(len(targets), len(targets) + len(new))
        local = self.place[columns]
        sources = np.concatenate([targets, new])
        self.place[sources] = -1
        indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(targets)))])
        return csr(data, local, indptr, len(sources)), sources

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
