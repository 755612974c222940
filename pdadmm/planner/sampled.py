"""Bytes and memory of an epoch of sample-based training (docs/plan.md), from expected sizes of its batches."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from pdadmm.parallel.ledger import ring_bytes

__all__ = [
    "Piece", "SampledJob", "batch_memory", "cluster_pieces", "epoch_bytes", "epoch_memory", "neighbour_pieces",
    "walk_pieces", "whole_memory", "whole_pieces",
]  # fmt: skip

INDEX = 4  # bytes of a column number of S
ENTRY_BYTES, ENTRIES = 80, 1 << 18  # of an entry while it is looked at, and how many are at a time


@dataclass(frozen=True)
class Piece:
    """What a layer of a batch has, as expected: rows of S, its columns, its entries, and those that were looked at."""

    targets: float
    sources: float
    entries: float
    looked: float = 0.0


@dataclass(frozen=True)
class SampledJob:
    """A GNN of ``widths`` [n_0, .., n_L], ``copies`` matrices of its input's width side by side, ``steps`` an epoch.

    ``nodes``, ``nonzeros``: V and the entries of S; ``filled``: the features of a node that are not 0, n_0 where they
    are kept dense; ``pieces``: the layers of one batch of the rank that has most, of which it takes ``batches`` a step.
    """

    nodes: int
    nonzeros: int
    widths: tuple[int, ...]
    copies: int
    steps: int
    pieces: Sequence[Piece]
    filled: float
    batches: int = 1
    dropout: bool = False
    itemsize: int = 4

    @property
    def sparse(self) -> bool:
        """Whether features are kept sparse."""
        return self.filled < self.widths[0]

    def weights(self) -> int:
        """Return the numbers of all W and b."""
        return sum(n * (self.copies * m + 1) for m, n in itertools.pairwise(self.widths))

    def layers(self) -> list[tuple[int, int, bool]]:
        """Return (m, n, whether S is applied before W) of every layer, as ``pdadmm.sampling.network.layer`` decides."""
        shapes = enumerate(itertools.pairwise(self.widths))
        return [(m, n, m <= n and not (number == 0 and self.sparse)) for number, (m, n) in shapes]


# What batches are expected to be


def neighbour_pieces(
    adjacency: sp.csr_array, train: np.ndarray, fanouts: Sequence[int], batch: float, diagonal: bool
) -> list[Piece]:
    """Return the layers of a batch of ``batch`` training nodes with sampled neighbours, as expected.

    With pi_u the probability that node u is among a layer's rows, node v is among its columns with probability

        1 - (1 - pi_v) prod_u (1 - pi_u min(1, fanout / degree_u)),        u the nodes with v as a neighbour

    were the rows independent. ``diagonal``: whether S has one, as a GCN's.
    """
    V = adjacency.shape[0]
    degree = np.diff(adjacency.indptr).astype(np.float64)
    pattern = sp.csr_array((np.ones(adjacency.nnz), adjacency.indices, adjacency.indptr), shape=adjacency.shape).T
    there, found = np.zeros(V), list[Piece]()
    there[train] = min(1.0, batch / len(train))
    for fanout in reversed(fanouts):
        drawn = np.minimum(degree, fanout)
        share = np.divide(drawn, degree, out=np.zeros(V), where=degree > 0)
        missed = pattern @ np.log1p(-np.minimum(there * share, 1.0 - 1e-12))
        sources = 1.0 - (1.0 - there) * np.exp(missed)
        looked, targets = float(there @ degree), float(there.sum())
        entries = float(there @ drawn) + diagonal * targets
        found.insert(0, Piece(targets, float(sources.sum()), entries, looked))
        there = sources
    return found


def whole_pieces(nodes: int, nonzeros: int, layers: int) -> list[Piece]:
    """Return the layers of the batch of all nodes."""
    return [Piece(nodes, nodes, nonzeros)] * layers


def cluster_pieces(nodes: int, edges: int, clusters: int, joined: int, layers: int, diagonal: bool) -> list[Piece]:
    """Return the layers of a batch of ``joined`` out of ``clusters`` parts; edges between parts count as within."""
    share = min(1.0, joined / clusters)
    own = share * nodes
    looked = share * edges if joined < clusters else 0.0  # the batch of all parts is cut once
    entries = share * edges + diagonal * own
    return [Piece(own, own, entries, looked), *[Piece(own, own, entries)] * (layers - 1)]


def walk_pieces(
    adjacency: sp.csr_array, train: np.ndarray, length: int, roots: float, layers: int, diagonal: bool
) -> list[Piece]:
    """Return the layers of the subgraph of walks of ``length`` steps from ``roots`` training nodes, as expected.

    A walk's steps are those of its chain of Markov; walks are taken as independent, and an edge as there where both
    of its ends are.
    """
    V = adjacency.shape[0]
    degree = np.diff(adjacency.indptr).astype(np.float64)
    pattern = sp.csr_array((np.ones(adjacency.nnz), adjacency.indices, adjacency.indptr), shape=adjacency.shape)
    at, visits = np.zeros(V), np.zeros(V)
    at[train] = min(roots, len(train)) / len(train)
    absent = 1.0 - at
    for _ in range(length):
        left = np.divide(at, degree, out=np.zeros(V), where=degree > 0)
        at = pattern.T @ left + np.where(degree > 0, 0.0, at)
        visits += at
    there = 1.0 - absent * np.exp(-visits)
    own = float(there.sum())
    entries = float(there @ (pattern @ there)) + diagonal * own
    looked = float(there @ degree)
    return [Piece(own, own, entries, looked), *[Piece(own, own, entries)] * (layers - 1)]


# Bytes, memory


def epoch_bytes(job: SampledJob, ranks: int) -> int:
    """Return the bytes that all ranks send in an epoch: in each step the sum of gradients, the loss and the count."""
    return job.steps * ranks * ring_bytes(job.itemsize * (job.weights() + 2), ranks)


def batch_memory(job: SampledJob) -> float:
    """Return the bytes of a batch at the height of its step: its blocks of S, what the way back needs, and what passes.

    Behind layer 1 that is f(z), its mask and h with dropout, or the input of W where S comes first.
    """
    s, kept, passing = job.itemsize, 0.0, 0.0
    for number, ((m, n, before), piece) in enumerate(zip(job.layers(), job.pieces)):
        T, N = piece.targets, piece.sources
        kept += 2 * (s + INDEX) * piece.entries + 8 * N
        h = N * m * (1 + job.dropout) if number else 0.0
        if number == 0 and job.sparse:
            kept += 2 * (s + INDEX) * N * job.filled
        else:
            kept += s * (h + (T * job.copies * m if before else N * m if job.dropout or not number else 0.0))
        forth = N * m * (1 + job.dropout) + T * n if before else n * (job.copies * N + 2 * T) + N * m * bool(number)
        passing = max(passing, s * forth, s * (T * n + (N * m if number else 0.0) + before * T * job.copies * m))
    looked = max(piece.looked for piece in job.pieces)
    return max(kept + passing, kept / 2 + ENTRY_BYTES * min(looked, ENTRIES))


def whole_memory(job: SampledJob) -> float:
    """Return the bytes that exact inference on the whole graph has at its height, beside S and the features."""
    s, most = job.itemsize, 0.0
    for number, (m, n, before) in enumerate(job.layers()):
        h = (s + INDEX) * job.filled if number == 0 and job.sparse else s * m * (1 + (number > 0))  # z, and h of it
        copied = job.copies * m * (job.copies > 1)
        mixed = max(m + copied, job.copies * m + n) if before else n * (job.copies + 2)
        most = max(most, h + s * mixed, s * (m * (number > 0) + 2 * n))
    return job.nodes * most


def epoch_memory(job: SampledJob, batch: float | None = None, evaluation: float | None = None) -> float:
    """Return the bytes of rank 0 above a process that does nothing and has the graph.

    ``batch``, ``evaluation``: bytes of a step and of exact inference, where they are not ``batch_memory`` and
    ``whole_memory``.
    """
    s, V = job.itemsize, job.nodes
    S = (s + INDEX) * job.nonzeros
    X = V * ((s + INDEX) * job.filled if job.sparse else s * job.widths[0])
    held = S + X + 16 * V + 6 * s * job.weights()
    most = max(batch_memory(job) if batch is None else batch, whole_memory(job) if evaluation is None else evaluation)
    return max(S + 3 * s * V * job.widths[0], S + 28 * job.nonzeros, held + most)  # as features are scaled, S is made
