"""Cutting a graph's nodes into parts, and how much has to travel between them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import reverse_cuthill_mckee

from pdadmm.baselines.dropout import node_bits
from pdadmm.baselines.shards import run_of
from pdadmm.errors import InputError

__all__ = ["PARTITIONS", "boundaries", "cheaper", "halo_rows", "partition"]


def _metis(pattern: sp.csr_array, parts: int, seed: int) -> np.ndarray:
    """METIS, k-way, least communication volume with balanced nodes (Karypis and Kumar 1998)."""
    import pymetis

    options = pymetis.Options(objtype=int(pymetis.ObjType.VOL), seed=seed % 2**31)
    adjacency = pymetis.CSRAdjacency(pattern.indptr, pattern.indices)
    return np.asarray(pymetis.part_graph(parts, adjacency, options=options, recursive=False)[1])


def _bfs(pattern: sp.csr_array, parts: int, seed: int) -> np.ndarray:
    """Runs of equal length of the nodes in breadth-first order (reverse Cuthill-McKee)."""
    part = np.empty(pattern.shape[0], dtype=np.int64)
    order = reverse_cuthill_mckee(pattern, symmetric_mode=True)
    for number in range(parts):
        run = run_of(len(order), number, parts)
        part[order[run.start : run.stop]] = number
    return part


def _hash(pattern: sp.csr_array, parts: int, seed: int) -> np.ndarray:
    """A random part for each node, by its number: the worst that a partition can do."""
    return node_bits((seed,), np.arange(pattern.shape[0]), 1, bits=32)[:, 0] % np.uint32(parts)


PARTITIONS: dict[str, Callable[[sp.csr_array, int, int], np.ndarray]] = {
    "metis": _metis,
    "bfs": _bfs,
    "hash": _hash,
}


def partition(adjacency: sp.csr_array, parts: int, method: str = "auto", seed: int = 0) -> np.ndarray:
    """Return the part of every node, int64 (V,), from 0 to ``parts`` - 1; a part may stay empty.

    ``method`` is a row of PARTITIONS, or "auto": metis where pymetis is installed, else bfs. Directions and weights
    of edges play no part. Raises InputError for metis without pymetis.

    >>> partition(sp.csr_array((4, 4)), 2, "bfs").tolist()
    [1, 1, 0, 0]
    """
    has_metis = importlib.util.find_spec("pymetis") is not None
    if method == "metis" and not has_metis:
        raise InputError("partition", "metis", "auto, bfs or hash without pymetis", "run: pip install pymetis")
    if method == "auto":
        method = "metis" if has_metis else "bfs"
    V = adjacency.shape[0]
    if parts == 1:
        return np.zeros(V, dtype=np.int64)
    pattern = sp.csr_array(adjacency + adjacency.T)
    pattern.setdiag(0)
    pattern.eliminate_zeros()
    pattern.sort_indices()
    # METIS wants at least a node a part
    return PARTITIONS[method](pattern, min(parts, V), seed).astype(np.int64)


def boundaries(S: sp.csr_array, part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (receiver, node): every pair of a part and a node elsewhere that one of its rows of S reads.

    Sorted by receiver, then by the node's own part, then by node: both ends of a message list its rows alike.
    """
    V = S.shape[0]
    receiver, node = np.repeat(part, np.diff(S.indptr)), S.indices.astype(np.int64)
    crossing = receiver != part[node]
    pairs = np.unique(receiver[crossing] * V + node[crossing])
    receiver, node = pairs // V, pairs % V
    order = np.lexsort((node, part[node], receiver))
    return receiver[order], node[order]


def halo_rows(S: sp.csr_array, part: np.ndarray) -> int:
    """Return Vol, the rows that halo exchange moves for one layer one way: sum over parts of their halo's nodes.

    >>> halo_rows(sp.csr_array([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 1.0]]), np.array([0, 1, 1]))
    3
    """
    return len(boundaries(S, part)[1])


def cheaper(volume: int, nodes: int, parts: int) -> str:
    """Return which moves less: "exact", the halo exchange, or "mix", all-to-alls of feature slices.

    Halo exchange moves Vol rows each way, the all-to-alls 2 V (P - 1) / P, whatever the partition.

    >>> cheaper(100, 1000, 4), cheaper(1600, 1000, 4)
    ('exact', 'mix')
    """
    return "mix" if volume > 2 * nodes * (parts - 1) / parts else "exact"
