"""Neighbour sampling from a buffer of partitions (Waleffe et al. 2023, MariusGNN): what is not in it is not read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from pdadmm.disk.buffer import PartitionBuffer
from pdadmm.disk.scattered import ScatteredRows, stretches
from pdadmm.recording import Breakdown
from pdadmm.sampling.batch import Batch, csr
from pdadmm.sampling.neighbours import Neighbourhoods
from pdadmm.sampling.network import Features
from pdadmm.sampling.states import BufferStates

__all__ = ["BufferFeatures", "BufferSampler", "DiskNeighbourhoods", "OperatorRows"]


class OperatorRows:
    """Rows of the operator_of an ``architecture``, made from rows of the adjacency, with its bits.

        gcn    S_ij = ((deg_i + 1)(deg_j + 1))^-1/2, the diagonal included        sage   M_ij = 1 / deg_i

    ``indptr`` (V + 1,) is the adjacency's; degrees are those of the whole graph.
    """

    def __init__(self, indptr: np.ndarray, architecture: str, dtype: str) -> None:
        self.indptr, self.dtype = indptr, np.dtype(dtype)
        self.diagonal = architecture == "gcn"
        self.root = (np.diff(indptr) + 1.0) ** -0.5 if self.diagonal else None

    def degrees(self, nodes: np.ndarray) -> np.ndarray:
        """Return how many neighbours these nodes have."""
        return self.indptr[nodes + 1] - self.indptr[nodes]

    def entries(self, nodes: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the numbers of these rows' entries in S, which of ``nodes`` each is in, and their columns.

        ``columns`` are those of the adjacency, row after row.
        """
        counts = self.degrees(nodes)
        rows, starts = np.repeat(np.arange(len(nodes)), counts), self.indptr[nodes]
        if self.diagonal:
            rows = np.concatenate([rows, np.arange(len(nodes))])
            columns = np.concatenate([columns, nodes.astype(columns.dtype)])
            order = np.lexsort((columns, rows))
            rows, columns, counts, starts = rows[order], columns[order], counts + 1, starts + nodes
        return stretches(starts, counts), rows, columns

    def values(self, nodes: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Return the entries in rows ``nodes`` and ``columns``."""
        found = 1.0 / self.degrees(nodes) if self.root is None else self.root[nodes] * self.root[columns]
        return found.astype(self.dtype)

    def block(self, start: int, stop: int, columns: np.ndarray) -> sp.csr_array:
        """Return rows ``start`` to ``stop`` of S; ``columns`` are those of the adjacency."""
        nodes = np.arange(start, stop)
        _, rows, columns = self.entries(nodes, columns)
        counts = np.bincount(rows, minlength=len(nodes))
        return csr(self.values(nodes[rows], columns), columns, np.append(0, np.cumsum(counts)), len(self.indptr) - 1)


class DiskNeighbourhoods(Neighbourhoods):
    """Neighbourhoods in a graph on the disk, out of those rows of the adjacency that are in memory, pool "columns".

    ``begin`` draws an iteration's steps, ``drawn`` gives each step's batches in turn; seconds are counted in ``times``.
    """

    def __init__(
        self, rows: OperatorRows, buffer: PartitionBuffer | ScatteredRows, train: np.ndarray, fanouts: Sequence[int],
        batch_size: int | None, seed: int,
    ) -> None:  # fmt: skip
        super().__init__(len(rows.indptr) - 1, fanouts, seed)
        self.rows, self.buffer, self.times = rows, buffer, Breakdown()
        self.size = min(batch_size or len(train), len(train))

    def begin(self, iteration: int) -> None:
        """Draw what an iteration's steps are."""
        raise NotImplementedError

    def drawn(self, step: int) -> Iterator[Batch]:
        """Yield the batches of a step, each with what it reads in memory; steps come in order."""
        raise NotImplementedError

    def _counts(self, targets: np.ndarray) -> np.ndarray:
        return self.rows.degrees(targets)

    def _entries(self, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        found = stretches(self.buffer.places("columns", targets), self.rows.degrees(targets))
        return self.rows.entries(targets, self.buffer.pools["columns"].numbers[found])

    def _values(self, found: np.ndarray, nodes: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return self.rows.values(nodes, columns)


class BufferSampler(DiskNeighbourhoods):
    """Batches of training nodes with neighbours out of those in the buffer.

    ``begin`` draws an iteration's states and steps. A step has as many training nodes as in memory; where their
    partitions are in several states of the buffer, it has a batch in each. A node's neighbours are drawn among those in
    the buffer; those of its own partition are always there, and count less than those of others (see Neighbourhoods).
    Where none is there, the diagonal is all. With the whole graph in the buffer the batches are those of
    NeighbourSampler, bit for bit.
    """

    def __init__(
        self, rows: OperatorRows, buffer: PartitionBuffer, states: BufferStates, fanouts: Sequence[int],
        batch_size: int | None, seed: int,
    ) -> None:  # fmt: skip
        super().__init__(rows, buffer, states.train, fanouts, batch_size, seed)
        self.buffer: PartitionBuffer
        self.states = states
        self.iteration, self.steps = 0, 0  # of the iteration that was begun
        self.plan: list[list[tuple[int, np.ndarray]]] = []
        self.entered: tuple[int, int] | None = None  # iteration and state that the buffer is in

    def begin(self, iteration: int) -> None:
        """Draw the states and steps of an iteration."""
        if iteration != self.iteration:
            self.iteration, self.plan = iteration, self.states.steps_of(iteration, self.size)
            self.steps = len(self.plan)

    def drawn(self, step: int) -> Iterator[Batch]:
        """Yield the batches of a step, each while its state is in the buffer."""
        for state, nodes in self.pieces(step):
            with self.times("waiting"):
                self.enter(state)
            with self.times("sampling"):
                batches = self.batch(step, nodes)
            yield from batches

    def pieces(self, step: int) -> list[tuple[int, np.ndarray]]:
        """Return (state, training nodes) of a step's batches, in turn."""
        return self.plan[step]

    def enter(self, state: int) -> None:
        """Hold the partitions of a state, and begin to read what the next state has beyond them."""
        if self.entered == (self.iteration, state):
            return
        later = [other for step in self.plan for other, _ in step if other > state]
        then = self.states.partitions(self.iteration, min(later)) if later else np.empty(0, np.int64)
        self.buffer.hold(self.states.partitions(self.iteration, state).tolist(), then.tolist())
        self.entered = self.iteration, state

    def batch(self, step: int, nodes: np.ndarray) -> list[Batch]:
        """Return the batch of some of a step's training nodes, in the state that was entered."""
        return self._sampled(nodes, self.iteration, step)

    def _chances(self, nodes: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """1 in a node's own partition; two partitions are in one state with probability (c - 1) / (P - 1)."""
        cut = self.buffer.cut
        together = (self.states.held - 1) / max(1, cut.count - 1)
        chances = np.where(cut.of(nodes) == cut.of(columns), 1.0, together)
        return chances * self.buffer.holds(columns)


class BufferFeatures(Features):
    """The features of the nodes in memory: a buffer's pools "features", and "feature columns" where they are sparse."""

    def __init__(self, buffer: PartitionBuffer | ScatteredRows, width: int, indptr: np.ndarray | None) -> None:
        self.times = None
        self.buffer, self.width, self.sparse, self.indptr = buffer, width, indptr, indptr

    def _dense(self, nodes: np.ndarray) -> Tensor:
        found = self.buffer.places("features", nodes)
        return torch.from_numpy(self.buffer.pools["features"].numbers[found])

    def _entries(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        assert self.indptr is not None  # they are sparse
        counts = self.indptr[nodes + 1] - self.indptr[nodes]
        found = stretches(self.buffer.places("features", nodes), counts)
        pools = self.buffer.pools
        return pools["features"].numbers[found], pools["feature columns"].numbers[found], counts
