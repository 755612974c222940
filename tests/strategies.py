"""Hypothesis strategies of small graphs, shared by the tests."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from hypothesis import strategies as st

from pdadmm.data import Graph


@st.composite
def edge_lists(draw, max_nodes: int = 12, max_edges: int = 30):
    """(num_nodes, edge_index [2, E], weights [E]), self-loops and duplicates included."""
    num_nodes = draw(st.integers(1, max_nodes))
    node = st.integers(0, num_nodes - 1)
    weight = st.sampled_from([0.25, 0.5, 1.0, 2.0, 3.0])
    edges = draw(st.lists(st.tuples(node, node, weight), max_size=max_edges))
    pairs = np.array([edge[:2] for edge in edges], dtype=np.int64).reshape(-1, 2).T
    return num_nodes, pairs, np.array([edge[2] for edge in edges], dtype=np.float32)


@st.composite
def graphs(draw, max_nodes: int = 12, weighted: bool | None = None, sparse: bool | None = None) -> Graph:
    """Small undirected graphs, weighted or not, dense or sparse, some with splits and unlabelled nodes."""
    num_nodes, pairs, weights = draw(edge_lists(max_nodes))
    num_features = draw(st.integers(1, 5))
    value = st.sampled_from([0.0, 0.0, 1.0, -2.5, 0.1])
    flat = draw(st.lists(value, min_size=num_nodes * num_features, max_size=num_nodes * num_features))
    features = np.array(flat, dtype=np.float32).reshape(num_nodes, num_features)
    labels = np.array(draw(st.lists(st.integers(-1, 3), min_size=num_nodes, max_size=num_nodes)))
    labelled = draw(st.permutations(np.flatnonzero(labels >= 0).tolist()))
    splits = None
    if labelled and draw(st.booleans()):
        first, second = sorted(draw(st.tuples(*[st.integers(1, len(labelled))] * 2)))
        splits = {"train": labelled[:first], "val": labelled[first:second], "test": labelled[second:]}
    keep_weights = draw(st.booleans()) if weighted is None else weighted
    make_sparse = draw(st.booleans()) if sparse is None else sparse
    return Graph.from_edges(
        pairs,
        sp.csr_array(features) if make_sparse else features,
        labels,
        splits,
        weights=weights if keep_weights else None,
    )
