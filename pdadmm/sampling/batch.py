"""What every sampler gives: a batch, and what they share to cut one out of a sparse operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy.sparse as sp

from pdadmm.disk.scattered import stretches
from pdadmm.models.gnn import Aggregation
from pdadmm.recording import Breakdown

__all__ = ["Batch", "Sampler", "csr", "entries_of", "induced", "joined"]


@dataclass
class Batch:
    """A piece of the graph to train on.

    ``operators`` has an Aggregation a layer, the rows of one the columns of the next; ``sources`` names the nodes of
    each one's columns, each node once. ``outputs`` are the rows of the last one that the loss counts, the nodes
    ``nodes``. A step's loss is the sum of the nodes' losses, times ``shares`` where given, over the sum of the
    batches' ``count``.
    """

    sources: list[np.ndarray]
    operators: list[Aggregation]
    outputs: np.ndarray
    nodes: np.ndarray
    count: float
    shares: np.ndarray | None = None

    def count_times(self, times: Breakdown) -> Batch:
        """Have the seconds of its sparse products counted; return itself."""
        for operator in self.operators:
            operator.times = times
        return self


class Sampler(Protocol):
    """Cuts the training nodes of an iteration into steps, and each step's batches out of the graph."""

    steps: int

    def draw(self, iteration: int, step: int, rank: int, ranks: int) -> list[Batch]:
        """Return this rank's batches of a step, maybe none; all ranks' together do not depend on ``ranks``."""


def entries_of(S: sp.csr_array, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where the entries of ``rows`` stand in S's arrays, row after row, and how many each row has.

    >>> S = sp.csr_array([[1.0, 2.0], [0.0, 3.0]])
    >>> [part.tolist() for part in entries_of(S, np.array([1, 0]))]
    [[2, 0, 1], [1, 2]]
    """
    starts = S.indptr[rows].astype(np.int64)
    counts = S.indptr[rows + 1] - starts
    return stretches(starts, counts), counts


def induced(S: sp.csr_array, nodes: np.ndarray, place: np.ndarray) -> tuple[sp.csr_array, np.ndarray]:
    """Return S[nodes][:, nodes], and where its entries stand in S's arrays; ``nodes`` are distinct.

    ``place`` (V,) is scratch, -1 everywhere, and is so again afterwards.
    """
    place[nodes] = np.arange(len(nodes))
    found, counts = entries_of(S, nodes)
    columns = place[S.indices[found]]
    place[nodes] = -1
    inside = columns >= 0
    rows = np.repeat(np.arange(len(nodes)), counts)[inside]
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(nodes)))])
    return csr(S.data[found[inside]], columns[inside], indptr, len(nodes)), found[inside]


def joined(targets: np.ndarray, columns: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the columns renumbered, and which node has each number: the targets first, then the others, rising.

    ``place`` (V,) is scratch, -1 everywhere, and is so again afterwards.

    >>> [part.tolist() for part in joined(np.array([4, 1]), np.array([3, 1, 0, 3]), np.full(5, -1))]
    [[3, 1, 2, 3], [4, 1, 0, 3]]
    """
    place[targets] = np.arange(len(targets))
    new = np.unique(columns[place[columns] < 0])
    place[new] = np.arange(len(targets), len(targets) + len(new))
    local, sources = place[columns], np.concatenate([targets, new])
    place[sources] = -1
    return local, sources


def csr(data: np.ndarray, columns: np.ndarray, indptr: np.ndarray, width: int) -> sp.csr_array:
    """Return the matrix of these arrays, (len(indptr) - 1, width); narrow indices, where they do, are read faster."""
    index = np.int32 if len(data) <= np.iinfo(np.int32).max else np.int64
    parts = data, columns.astype(index), indptr.astype(index)
    return sp.csr_array(parts, shape=(len(indptr) - 1, width))
