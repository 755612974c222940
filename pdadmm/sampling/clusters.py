"""Cluster-GCN (Chiang et al. 2019): a batch is a few clusters of the graph with all edges within and between them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from pdadmm.baselines.shards import run_of
from pdadmm.data.splits import generator
from pdadmm.models.gnn import Aggregation, operator_of
from pdadmm.sampling.batch import Batch, induced

__all__ = ["ClusterSampler"]


class ClusterSampler:
    """Batches of ``per_batch`` clusters, in an order drawn anew each iteration; ``batches`` of them a step.

    ``clusters`` (V,) names each node's cluster. A batch's operator is that of its own subgraph, degrees included, as
    Cluster-GCN has it: one batch of all clusters is the whole graph. The loss counts the batch's training nodes; a
    batch without any is drawn all the same and counts nothing.
    """

    def __init__(
        self, graph, architecture: str, dtype: str, layers: int, clusters: np.ndarray,
        per_batch: int = 1, batches: int = 1, seed: int = 0,
    ) -> None:  # fmt: skip
        self.adjacency, self.architecture, self.dtype = graph.adjacency, architecture, dtype
        self.layers, self.batches, self.seed = layers, batches, seed
        members = np.split(np.argsort(clusters, kind="stable"), np.cumsum(np.bincount(clusters))[:-1])
        self.members = [nodes for nodes in members if len(nodes)]
        self.trains = np.zeros(graph.num_nodes, dtype=bool)
        self.trains[graph.splits["train"]] = True
        self.per_batch = min(per_batch, len(self.members))
        self.steps = -(-len(self.members) // (self.per_batch * batches))
        self.place = np.full(graph.num_nodes, -1, np.int64)
        self.whole: Batch | None = None  # the one batch of all clusters, which is the same each time

    def draw(self, iteration: int, step: int, rank: int, ranks: int) -> list[Batch]:
        order = generator(self.seed, f"clusters {iteration}").permutation(len(self.members))
        own = run_of(self.batches, rank, ranks)
        first = [(step * self.batches + number) * self.per_batch for number in own]
        drawn = [order[start : start + self.per_batch] for start in first]
        return [self._batch(clusters) for clusters in drawn if len(clusters)]

    def _batch(self, clusters: np.ndarray) -> Batch:
        if len(clusters) < len(self.members):
            return self._cut(np.sort(np.concatenate([self.members[cluster] for cluster in clusters])))
        if self.whole is None:
            self.whole = self._cut(np.arange(len(self.place)))
        return self.whole

    def _cut(self, nodes: np.ndarray) -> Batch:
        adjacency, _ = induced(self.adjacency, nodes, self.place)
        S = Aggregation(operator_of(SimpleNamespace(adjacency=adjacency), self.architecture, self.dtype))
        outputs = np.flatnonzero(self.trains[nodes])
        return Batch([nodes] * self.layers, [S] * self.layers, outputs, nodes[outputs], float(len(outputs)))
