"""The graph every part of the library reads: adjacency, features, labels and splits."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import scipy.sparse as sp

from pdadmm.data.checks import (
    SPLIT_NAMES,
    check_adjacency,
    check_csr,
    check_features,
    check_labels,
    check_range,
    check_splits,
    check_weights,
    whole_numbers,
)
from pdadmm.data.parts import unlabelled
from pdadmm.errors import InputError

__all__ = ["Graph"]


@dataclass(frozen=True, eq=False, repr=False)
class Graph:
    """A graph with node features, labels and (optionally) splits, checked when it is made.

    Shapes: ``indptr`` int64 [V+1] and ``indices`` int32 [nnz], the adjacency in CSR with sorted, distinct
    columns and no self-loops; ``weights`` float32 [nnz] above 0, or None for all ones; ``features`` float32,
    dense [V, F] or ``scipy.sparse.csr_array``; ``labels`` int64 [V], -1 for unlabelled; ``splits`` a dict
    with "train", "val" and "test" -> int64 node indices (masks [V] become these), or None. ``num_classes`` is
    one more than the largest label unless given. ``own_split`` says where the splits come from ("public" for
    Planetoid's).
    Arrays of the right type are kept, not copied: leave them unchanged.

    Raises InputError for any array that does not fit this description.

    >>> graph = Graph.from_edges([[0, 1], [1, 2]], features=[[1.0], [2.0], [3.0]], labels=[0, 1, -1])
    >>> graph
    Graph(graph: 3 nodes, 2 edges, 1 dense features, 2 classes, no splits)
    """

    indptr: np.ndarray
    indices: np.ndarray
    weights: np.ndarray | None
    features: np.ndarray | sp.csr_array
    labels: np.ndarray
    splits: dict[str, np.ndarray] | None = None
    name: str = "graph"
    num_classes: int | Any = None  # a number once the graph is made
    own_split: str = ""

    def __post_init__(self) -> None:
        features = check_features(self.features)
        num_nodes = features.shape[0]
        indptr, indices = whole_numbers("indptr", self.indptr), whole_numbers("indices", self.indices)
        check_adjacency(indptr, indices, num_nodes)
        labels, num_classes = check_labels(self.labels, num_nodes, self.num_classes)
        self._set(
            indptr=np.ascontiguousarray(indptr, dtype=np.int64),
            indices=np.ascontiguousarray(indices, dtype=np.int32),
            weights=None if self.weights is None else check_weights(self.weights, indices.size),
            features=features,
            labels=labels,
            splits=check_splits(self.splits, labels),
            num_classes=num_classes,
            name=str(self.name),
        )

    def _set(self, **values: object) -> None:
        for field, value in values.items():
            object.__setattr__(self, field, value)  # the frozen dataclass's own way in

    @classmethod
    def from_edges(
        cls,
        edge_index: object,
        features: object,
        labels: Any = None,
        splits: dict | None = None,
        name: str = "graph",
        weights: Any = None,
        undirected: bool = True,
        num_nodes: int | None = None,
        num_classes: int | None = None,
        own_split: str = "",
    ) -> Graph:
        """Build a graph from node pairs ``edge_index`` [2, E]; self-loops and duplicates are dropped.

        ``undirected``: (i, j) and (j, i) are one edge, stored both ways; else row i holds the edges i -> j.
        Among duplicates (both directions of an undirected edge included) the largest of ``weights`` [E] is
        kept, so listing an edge twice changes nothing. Without ``labels`` no node's class is known. ``num_nodes`` is
        checked against the features' rows.

        Raises InputError for pairs outside the nodes and for whatever Graph refuses.

        >>> Graph.from_edges([[0, 1, 1], [1, 0, 1]], [[0.0], [1.0]], [0, 1]).indices.tolist()
        [1, 0]
        """
        features = check_features(features)
        if num_nodes is not None and num_nodes != features.shape[0]:
            raise InputError("num_nodes", num_nodes, f"{features.shape[0]}, the number of feature rows")
        num_nodes = features.shape[0]
        if sp.issparse(edge_index):
            remedy = "Graph.from_adjacency takes an adjacency matrix"
            raise InputError("edge_index", f"a {type(edge_index).__name__}", "node pairs of shape (2, edges)", remedy)
        pairs = whole_numbers("edge_index", edge_index, ndim=2)
        if pairs.shape[0] != 2:
            remedy = "transpose a list of pairs" if pairs.shape[1] == 2 else ""
            raise InputError("edge_index", f"an array of shape {pairs.shape}", "of shape (2, edges)", remedy)
        check_range("edge_index", pairs, 0, num_nodes - 1, "node numbers")
        if weights is not None:
            weights = check_weights(weights, pairs.shape[1])
        indptr, indices, weights = _csr_from_pairs(pairs, weights, num_nodes, undirected)
        labels = unlabelled(features) if labels is None else labels
        graph = cls(indptr, indices, weights, features, labels, splits, name, num_classes, own_split)
        if undirected:
            graph.__dict__["is_undirected"] = True  # known, so never worked out
        return graph

    @classmethod
    def from_adjacency(
        cls,
        adjacency: Any,
        features: object,
        labels: Any = None,
        splits: dict | None = None,
        name: str = "graph",
        undirected: bool = True,
        num_classes: int | None = None,
        own_split: str = "",
    ) -> Graph:
        """Build a graph from a ``scipy.sparse`` adjacency [V, V] of any format, whose row i holds i's neighbours.

        The diagonal is dropped. Values other than 1 are weights, what is stored twice adds up, and a 0 is no edge. The
        rest is as for ``from_edges``: ``undirected`` (i, j) and (j, i) are one edge, of the larger weight where these
        differ.

        Raises InputError for another shape or class of matrix and for whatever Graph refuses.

        >>> Graph.from_adjacency(sp.csr_array([[0, 1], [1, 0]]), [[0.0], [1.0]], [0, 1]).num_edges
        1
        """
        if not sp.issparse(adjacency):
            remedy = "scipy.sparse.csr_array(adjacency) makes one of an array"
            raise InputError("adjacency", f"a {type(adjacency).__name__}", "a scipy.sparse matrix", remedy)
        features = check_features(features)
        num_nodes = features.shape[0]
        if adjacency.shape != (num_nodes, num_nodes):
            allowed = f"square with {num_nodes} rows, as many as the features have"
            raise InputError("adjacency", f"a matrix of shape {adjacency.shape}", allowed)
        if adjacency.dtype.kind not in "fiub":
            raise InputError("adjacency", f"a matrix of {adjacency.dtype}", "one of numbers or truth values")
        matrix = sp.csr_array(adjacency)
        check_csr("adjacency", matrix.indptr, matrix.indices, num_nodes, num_nodes)
        if not matrix.has_canonical_format:
            matrix = matrix.copy()  # of the user's own
            matrix.sum_duplicates()
        rows = np.repeat(np.arange(num_nodes, dtype=np.int32), np.diff(matrix.indptr))
        pairs, values = np.stack([rows, matrix.indices.astype(np.int32, copy=False)]), matrix.data
        kept = (values != 0) & (pairs[0] != pairs[1])
        if not kept.all():
            pairs, values = pairs[:, kept], values[kept]
        weights = None if values.dtype.kind == "b" or bool((values == 1).all()) else values
        return cls.from_edges(pairs, features, labels, splits, name, weights, undirected,
                              num_classes=num_classes, own_split=own_split)  # fmt: skip

    @property
    def num_nodes(self) -> int:
        """Number of nodes, V."""
        return self.indptr.size - 1

    @functools.cached_property
    def is_undirected(self) -> bool:
        """Whether the adjacency equals its transpose, weights included."""
        adjacency = self.adjacency
        mirror = adjacency.T.tocsr()
        return (
            np.array_equal(adjacency.indptr, mirror.indptr)
            and np.array_equal(adjacency.indices, mirror.indices)
            and np.array_equal(adjacency.data, mirror.data)
        )

    @property
    def num_edges(self) -> int:
        """Number of edges: an undirected graph counts each pair once (nnz / 2), a directed one each entry."""
        return self.indices.size // 2 if self.is_undirected else self.indices.size

    @property
    def num_features(self) -> int:
        """Number of features per node, F."""
        return self.features.shape[1]

    @property
    def adjacency(self) -> sp.csr_array:
        """The adjacency, ``csr_array`` float32 [V, V]; row i holds i's neighbours. Built at each call."""
        data = np.ones(self.indices.size, dtype=np.float32) if self.weights is None else self.weights
        # scipy wants one index type for both; the narrow one halves the memory wherever it is enough.
        index = np.int32 if self.indices.size <= np.iinfo(np.int32).max else np.int64
        parts = data, self.indices.astype(index, copy=False), self.indptr.astype(index, copy=False)
        return sp.csr_array(parts, shape=(self.num_nodes, self.num_nodes))

    def with_splits(self, splits: dict | None, own_split: str = "") -> Graph:
        """A copy with other ``splits``, node numbers or masks, sharing every other array.

        Raises InputError as Graph does.

        >>> graph = Graph.from_edges([[0], [1]], [[0.0], [1.0]], [0, 1])
        >>> graph.with_splits({"train": [0], "val": [], "test": [1]})
        Graph(graph: 2 nodes, 1 edges, 1 dense features, 2 classes, splits 1/0/1)
        """
        other = copy.copy(self)
        other._set(splits=check_splits(splits, self.labels), own_split=own_split)
        return other

    def fingerprint(self) -> str:
        """Hex digest (32 digits) of the contents; equal on any machine exactly when the contents are equal.

        The name plays no part. Ranks compare digests to make sure that all loaded the same graph.

        >>> graph = Graph.from_edges([[0], [1]], [[0.0], [1.0]], [0, 1])
        >>> graph.fingerprint() == Graph.from_edges([[1], [0]], [[0.0], [1.0]], [0, 1]).fingerprint()
        True
        """
        parts = {"indptr": self.indptr, "indices": self.indices, "labels": self.labels}
        parts["num_classes"] = np.array([self.num_classes], dtype=np.int64)
        if self.weights is not None:
            parts["weights"] = self.weights
        if sp.issparse(self.features):
            parts["features.shape"] = np.array(self.features.shape, dtype=np.int64)
            for key in ("data", "indices", "indptr"):
                parts[f"features.{key}"] = getattr(self.features, key)
        else:
            parts["features"] = self.features
        if self.splits is not None:
            parts |= {key: self.splits[key] for key in SPLIT_NAMES}
        digest = blake2b(digest_size=16)
        for key, array in parts.items():
            little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
            digest.update(f"{key} {little.dtype.str} {little.shape};".encode())
            digest.update(little.reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    def __repr__(self) -> str:
        kind = "sparse" if sp.issparse(self.features) else "dense"
        weighted = "" if self.weights is None else "weighted "
        splits = "no splits"
        if self.splits is not None:
            splits = "splits " + "/".join(f"{self.splits[key].size:,}" for key in SPLIT_NAMES)
        return (
            f"Graph({self.name}: {self.num_nodes:,} nodes, {self.num_edges:,} {weighted}edges, "
            f"{self.num_features:,} {kind} features, {self.num_classes} classes, {splits})"
        )


def _csr_from_pairs(pairs: np.ndarray, weights: np.ndarray | None, num_nodes: int, undirected: bool):
    """(indptr, indices, weights) of the simple graph with these edges; one int64 key per pair is sorted."""
    source, target = pairs
    if undirected:
        key = np.minimum(source, target).astype(np.int64)
        key *= num_nodes
        key += np.maximum(source, target)
    else:
        key = source.astype(np.int64)
        key *= num_nodes
        key += target
    proper = source != target
    if not proper.all():
        key = key[proper]
        weights = None if weights is None else weights[proper]
    if weights is None:
        key.sort()
    else:
        order = np.argsort(key, kind="stable")
        key, weights = key[order], weights[order]
    first = np.ones(key.size, dtype=bool)  # first entry of each run of equal keys
    np.not_equal(key[1:], key[:-1], out=first[1:])
    if weights is not None and key.size:
        weights = np.maximum.reduceat(weights, np.flatnonzero(first))
    key = key[first]
    indptr = np.searchsorted(key, np.arange(num_nodes + 1, dtype=np.int64) * num_nodes)
    indices = np.remainder(key, num_nodes, out=key).astype(np.int32)
    return _mirror(indptr, indices, weights, num_nodes) if undirected else (indptr, indices, weights)


def _mirror(indptr: np.ndarray, indices: np.ndarray, weights: np.ndarray | None, num_nodes: int):
    """Add the transpose to a strictly upper triangular CSR matrix in O(nnz), with no second sort."""
    index = np.int32 if 2 * indices.size <= np.iinfo(np.int32).max else np.int64
    data = np.ones(indices.size, dtype=np.int8) if weights is None else weights
    upper = sp.csr_array(
        (data, indices.astype(index, copy=False), indptr.astype(index)), shape=(num_nodes, num_nodes)
    )
    both = upper + upper.T.tocsr()
    both.sort_indices()
    assert both.nnz == 2 * indices.size, "the two triangles overlap"
    return both.indptr, both.indices, None if weights is None else both.data
