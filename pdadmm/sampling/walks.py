"""Random-walk subgraphs with GraphSAINT's normalisation (Zeng et al. 2020)."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from pdadmm.baselines.shards import run_of
from pdadmm.data.splits import generator
from pdadmm.models.gnn import Aggregation
from pdadmm.sampling.batch import Batch, csr, induced

__all__ = ["WalkSampler"]

COVERAGE = 50  # passes over the training nodes that the normalisation is counted from


class WalkSampler:
    """Subgraphs induced by random walks of ``length`` steps from ``roots`` training nodes; ``batches`` of them a step.

    An iteration takes every training node as a root once, in an order drawn anew; a step of a walk goes to any
    neighbour with the same probability and stays where there is none. Bias is taken out as GraphSAINT does, with the
    counts C of 50 iterations drawn beforehand: S_ij is divided by C_ij / C_i, so that (S h)_i keeps its
    expectation, and a training node's loss by C_i / N, its share of the N subgraphs drawn.
    """

    def __init__(
        self, S: sp.csr_array, train: np.ndarray, length: int, roots: int | None, layers: int,
        batches: int = 1, seed: int = 0,
    ) -> None:  # fmt: skip
        self.S, self.train, self.length, self.layers = S, train, length, layers
        self.batches, self.seed = batches, seed
        self.roots = min(roots or len(train), len(train))
        self.subgraphs = -(-len(train) // self.roots)
        self.steps = -(-self.subgraphs // batches)
        V = S.shape[0]
        self.place = np.full(V, -1, np.int64)
        self.trains = np.zeros(V, dtype=bool)
        self.trains[train] = True
        rows = np.repeat(np.arange(V), np.diff(S.indptr))
        proper = S.indices != rows
        ends = np.cumsum(np.bincount(rows[proper], minlength=V))
        self.neighbours = csr(S.data[proper], S.indices[proper], np.append(0, ends), V)
        self._count()

    def _count(self) -> None:
        """Count how often nodes and entries of S come into a subgraph; what never came counts as once."""
        visits, entries = np.zeros(self.S.shape[0]), np.zeros(self.S.nnz)
        for iteration in range(COVERAGE):
            for subgraph in range(self.subgraphs):
                nodes = self._walk(f"count {iteration}", subgraph)
                _, found = induced(self.S, nodes, self.place)
                visits[nodes] += 1.0
                entries[found] += 1.0
        np.maximum(visits, 1.0, out=visits)
        np.maximum(entries, 1.0, out=entries)
        rows = np.repeat(np.arange(self.S.shape[0]), np.diff(self.S.indptr))
        data = (self.S.data * visits[rows] / entries).astype(self.S.dtype)
        self.corrected = csr(data, self.S.indices, self.S.indptr, self.S.shape[1])
        self.shares = COVERAGE * self.subgraphs / visits

    def draw(self, iteration: int, step: int, rank: int, ranks: int) -> list[Batch]:
        first = step * self.batches
        own = (first + number for number in run_of(min(self.batches, self.subgraphs - first), rank, ranks))
        return [self._batch(self._walk(str(iteration), subgraph)) for subgraph in own]

    def _walk(self, iteration: str, subgraph: int) -> np.ndarray:
        """Return the nodes that one subgraph's walks visit, in rising order."""
        order = generator(self.seed, f"roots {iteration}").permutation(len(self.train))
        current = self.train[order[subgraph * self.roots : (subgraph + 1) * self.roots]]
        draws = generator(self.seed, f"walks {iteration} {subgraph}").random((self.length, len(current)))
        visited = [current]
        indptr, indices = self.neighbours.indptr, self.neighbours.indices
        for draw in draws:
            start, degree = indptr[current], indptr[current + 1] - indptr[current]
            moves = degree > 0
            current = current.copy()
            current[moves] = indices[start[moves] + (draw[moves] * degree[moves]).astype(np.int64)]
            visited.append(current)
        return np.unique(np.concatenate(visited))

    def _batch(self, nodes: np.ndarray) -> Batch:
        block, _ = induced(self.corrected, nodes, self.place)
        S = Aggregation(block)
        outputs = np.flatnonzero(self.trains[nodes])
        own = nodes[outputs]
        return Batch(
            [nodes] * self.layers, [S] * self.layers, outputs, own, float(len(self.train)), self.shares[own]
        )
