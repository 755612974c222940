"""Graph: construction, validation, fingerprint."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import edge_lists, graphs

from pdadmm.data import Graph
from pdadmm.errors import InputError


def path_graph(**changes) -> Graph:
    """0 - 1 - 2 - 3 with two classes."""
    parts = {"edge_index": [[0, 1, 2], [1, 2, 3]], "features": np.eye(4, 2), "labels": [0, 1, 0, -1],
                 "splits": {"train": [0], "val": [1], "test": [2]}, "name": "path"}  # fmt: skip
    return Graph.from_edges(**(parts | changes))


def test_path_by_hand():
    graph = path_graph()
    assert graph.indptr.tolist() == [0, 1, 3, 5, 6]
    assert graph.indices.tolist() == [1, 0, 2, 1, 3, 2]
    assert graph.weights is None
    assert (graph.indptr.dtype, graph.indices.dtype, graph.labels.dtype) == (np.int64, np.int32, np.int64)
    assert (graph.num_nodes, graph.num_edges, graph.num_features, graph.num_classes) == (4, 3, 2, 2)
    assert graph.features.dtype == np.float32
    assert graph.adjacency.dtype == np.float32
    assert graph.adjacency.toarray().tolist() == [[0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0]]
    assert repr(graph) == "Graph(path: 4 nodes, 3 edges, 2 dense features, 2 classes, splits 1/1/1)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        graph.name = "other"


def test_masks_are_splits():
    graph = path_graph()
    masks = {"train": [True, False, False, False], "val": np.arange(4) == 1, "test": [2]}
    assert graph.with_splits(masks).fingerprint() == path_graph(splits=masks).fingerprint() == graph.fingerprint()


@pytest.mark.parametrize("labels", [(), (None,)])
def test_without_labels_no_class_is_known(labels):
    features, none = sp.csr_array(np.eye(3)), sp.csr_array((3, 3))
    for graph in (Graph.from_edges([[0], [1]], features, *labels), Graph.from_adjacency(none, features, *labels)):
        assert (graph.labels.tolist(), graph.num_classes) == ([-1] * 3, 0)


def test_weights_are_told_of():
    assert "3 weighted edges" in repr(path_graph(weights=[1, 2, 1]))


def test_directed_edges_keep_their_direction():
    graph = Graph.from_edges([[0, 2, 0], [1, 0, 1]], np.ones((3, 1)), [0, 0, 0], undirected=False)
    assert graph.adjacency.toarray().tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]
    assert not graph.is_undirected
    assert graph.num_edges == 2


@given(edge_lists(), st.booleans(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_from_edges_equals_dense_reference(edges, undirected, weighted):
    num_nodes, pairs, weights = edges
    dense = np.zeros((num_nodes, num_nodes), dtype=np.float32)
    for source, target, weight in zip(*pairs, weights if weighted else np.ones(pairs.shape[1])):
        if source != target:
            dense[source, target] = max(dense[source, target], weight)
            if undirected:
                dense[target, source] = max(dense[target, source], weight)
    features, labels = np.ones((num_nodes, 1)), np.zeros(num_nodes, dtype=int)
    graph = Graph.from_edges(
        pairs, features, labels, weights=weights if weighted else None, undirected=undirected
    )
    np.testing.assert_array_equal(graph.adjacency.toarray(), dense)
    symmetric = bool((dense == dense.T).all())
    assert graph.is_undirected == symmetric
    assert graph.num_edges == np.count_nonzero(dense) // (2 if symmetric else 1)
    again = Graph(graph.indptr, graph.indices, graph.weights, features, labels)
    assert again.is_undirected == symmetric
    assert again.fingerprint() == graph.fingerprint()


FORMATS = ("csr_array", "csc_array", "coo_array", "csr_matrix", "lil_matrix", "dia_array")


@given(graphs(), st.sampled_from(FORMATS), st.booleans())
@settings(max_examples=80, deadline=None)
def test_from_adjacency_is_the_graph_again(graph, form, truth):
    """In any format of scipy, with the diagonal and one triangle alone; truth values are edges without weights."""
    adjacency = (sp.triu(graph.adjacency) + sp.eye_array(graph.num_nodes)).astype(bool if truth else np.float64)
    again = Graph.from_adjacency(getattr(sp, form)(adjacency), graph.features, graph.labels, graph.splits)
    bare = truth or graph.weights is None or bool((graph.weights == 1).all())
    expected = dataclasses.replace(graph, weights=None if bare else graph.weights)
    assert again.fingerprint() == expected.fingerprint()


def test_from_adjacency_by_hand():
    stored = sp.csr_array((np.array([0, 2, 1]), np.array([1, 2, 0]), np.array([0, 2, 2, 3])), shape=(3, 3))
    features, labels = np.ones((3, 1)), [0, 1, 0]
    both = Graph.from_adjacency(stored, features, labels, num_classes=4, name="mine")
    assert both.adjacency.toarray().tolist() == [[0, 0, 2], [0, 0, 0], [2, 0, 0]]  # the stored 0 is no edge
    assert (both.num_classes, both.name) == (4, "mine")
    one_way = Graph.from_adjacency(stored, features, labels, undirected=False)
    assert one_way.adjacency.toarray().tolist() == [[0, 0, 2], [0, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize("loop", [2.0, -1.0, np.nan])
def test_a_diagonal_decides_nothing(loop):
    loops = sp.csr_array(np.array([[loop, 1.0], [1.0, 0.0]]))
    assert Graph.from_adjacency(loops, np.ones((2, 1)), [0, 1]).weights is None


def test_what_is_stored_twice_adds_up_in_every_format():
    twice = np.array([1.0, 1.0]), (np.array([0, 0]), np.array([1, 1]))
    rows = sp.csr_array((np.array([1.0, 1.0]), np.array([1, 1]), np.array([0, 2, 2])), shape=(2, 2))
    for matrix in (sp.coo_array(twice, shape=(2, 2)), rows):
        graph = Graph.from_adjacency(matrix, np.ones((2, 1)), [0, 1])
        assert graph.adjacency.toarray().tolist() == [[0, 2], [2, 0]]
    assert rows.nnz == 2  # the user's own is as it was


@given(graphs(), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_fingerprint_ignores_the_order_of_edges_and_the_name(graph, random):
    rows = np.repeat(np.arange(graph.num_nodes), np.diff(graph.indptr))
    order = list(range(rows.size))
    random.shuffle(order)
    order = np.array(order, dtype=int)
    weights = None if graph.weights is None else graph.weights[order]
    pairs = np.stack([rows[order], graph.indices[order]])
    again = Graph.from_edges(pairs, graph.features, graph.labels, graph.splits, name="other", weights=weights)
    assert again.fingerprint() == graph.fingerprint()


def test_fingerprint_is_stable_and_sees_every_part():
    graph = path_graph()
    assert graph.fingerprint() == path_graph().fingerprint() == "7f057e222b5821000fea3424c7cd5f12"
    others = [
        path_graph(edge_index=[[0, 1, 1], [1, 2, 3]]),
        path_graph(features=np.eye(4, 3)),
        path_graph(features=2 * np.eye(4, 2)),
        path_graph(features=sp.csr_array(np.eye(4, 2))),
        path_graph(labels=[0, 1, 1, -1]),
        path_graph(splits=None),
        path_graph(splits={"train": [0], "val": [2], "test": [1]}),
        path_graph(weights=[1.0, 1.0, 1.0]),
        path_graph(weights=[1.0, 2.0, 1.0]),
        path_graph(num_classes=3),
    ]
    digests = {other.fingerprint() for other in [graph, *others]}
    assert len(digests) == len(others) + 1


def test_arrays_are_not_copied_where_they_fit():
    features, labels = np.ones((3, 2), dtype=np.float32), np.zeros(3, dtype=np.int64)
    graph = Graph.from_edges([[0], [1]], features, labels)
    assert np.shares_memory(graph.features, features)
    assert np.shares_memory(graph.labels, labels)
    other = graph.with_splits({"train": [0], "val": [1], "test": [2]})
    assert np.shares_memory(other.indices, graph.indices)
    assert graph.splits is None
    assert other.splits["train"].dtype == np.int64


def test_sparse_features_become_canonical_float32():
    messy = sp.csr_array((np.array([1, 2, 3]), np.array([1, 0, 1]), np.array([0, 3, 3])), shape=(2, 2))
    graph = Graph.from_edges([[0], [1]], messy, [0, 1])
    assert graph.features.dtype == np.float32
    assert graph.features.indices.tolist() == [0, 1]
    assert graph.features.data.tolist() == [2.0, 4.0]
    assert messy.indices.tolist() == [1, 0, 1], "the caller's matrix was changed"


def test_no_edges_and_no_labels():
    graph = Graph.from_edges(np.empty((2, 0)), [[1.0]], [-1])
    assert (graph.num_edges, graph.num_classes) == (0, 0)
    assert dataclasses.replace(graph, name="copy").num_classes == 0  # a copy passes the 0 on


BAD_CHANGES = {
    "edge range": ({"edge_index": [[0, 1, 2], [1, 2, 4]]}, "edge_index = 4 .*node numbers, 0 to 3"),
    "edge negative": ({"edge_index": [[0, -1], [1, 2]]}, "edge_index = -1"),
    "edge fraction": ({"edge_index": [[0, 0.5], [1, 2]]}, "edge_index = 0.5 at position 0, 1"),
    "edge shape": ({"edge_index": [[0, 1], [1, 2], [2, 3]]}, "edge_index .*transpose"),
    "edge text": ({"edge_index": [["a"], ["b"]]}, "edge_index"),
    "edge ragged": ({"edge_index": [[0, 1], [1]]}, "edge_index"),
    "weights shape": ({"weights": [1.0]}, r"weights .*\(3,\)"),
    "weights zero": ({"weights": [1, 0, 1]}, r"weights = 0.0 \(position 1"),
    "weights nan": ({"weights": [1, 1, np.nan]}, r"weights = nan \(position 2"),
    "features nan": (
        {"features": [[0, 1], [np.nan, 1], [0, np.inf], [0, 0]]},
        r"features = 2 values that are NaN or infinite \(first: node 1, column 0\)",
    ),
    "features sparse nan": (
        {"features": sp.csr_array([[0, 1], [0, 1], [0, np.inf], [0, 0]])},
        r"1 values that are NaN or infinite \(first: node 2, column 1\)",
    ),
    "features overflow": ({"features": np.full((4, 1), 1e300)}, "features = 4 values"),
    "features axes": ({"features": [0.0, 1.0]}, "features"),
    "features none": ({"features": np.empty((4, 0))}, "features"),
    "features complex": ({"features": np.ones((4, 1), complex)}, "features = an array of complex128"),
    "num_nodes": ({"num_nodes": 5}, "num_nodes = 5: must be 4"),
    "labels count": ({"labels": [0, 1]}, "labels = 2 labels: must be one per node, 4"),
    "labels fraction": ({"labels": [0, 1, 0.5, -1]}, "labels = 0.5 at position 2"),
    "labels nan": ({"labels": [0, 1, np.nan, -1]}, "labels = nan"),
    "labels below": ({"labels": [0, 1, -2, -1]}, "labels = -2"),
    "labels identifier": ({"labels": [0, 1, 31_337, -1]}, "labels = 31337"),
    "labels bool": ({"labels": [True, False, True, False]}, r"labels = an array of bool.*astype\(int\)"),
    "labels huge": ({"labels": np.array([2**63, 0, 0, 0], dtype=np.uint64)}, "labels"),
    "labels above": ({"num_classes": 1}, "labels = 1 .*raise num_classes"),
    "num_classes": ({"num_classes": 0}, "num_classes = 0"),
    "splits keys": ({"splits": {"train": [0]}}, "splits = .*train, val and test"),
    "splits type": ({"splits": [0]}, "splits"),
    "splits range": ({"splits": {"train": [0], "val": [1], "test": [4]}}, r"splits\['test'\] = 4"),
    "splits mask": (
        {"splits": {"train": np.ones(3, bool), "val": [], "test": []}},
        r"splits\['train'\] = a mask of 3 truth values: must be of 4, one per node",
    ),
    "splits ragged": ({"splits": {"train": [[0], [1, 2]], "val": [], "test": []}}, "a rectangular array"),
    "splits mask axes": ({"splits": {"train": np.ones((4, 1), bool), "val": [], "test": []}}, r"\(4, 1\)"),
    "splits mask bare": ({"splits": {"train": [True] * 4, "val": [], "test": []}}, "1 unlabelled nodes"),
    "splits twice": ({"splits": {"train": [0, 1, 0], "val": [], "test": []}}, "node 0 more than once"),
    "splits shared": ({"splits": {"train": [0, 1], "val": [2], "test": [1]}}, "of train .first: node 1"),
    "splits empty": ({"splits": {"train": [], "val": [1], "test": [2]}}, r"splits\['train'\] = no nodes"),
    "splits bare": (
        {"splits": {"train": [0], "val": [1], "test": [2, 3]}},
        r"splits\['test'\] = 1 unlabelled nodes \(first: node 3\).*leave out",
    ),
    "train bare": ({"splits": {"train": [3], "val": [1], "test": [2]}}, r"splits\['train'\] = 1 unlabelled"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), BAD_CHANGES.values(), ids=BAD_CHANGES)
def test_bad_input_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        path_graph(**changes)


BROKEN = sp.csr_array(np.eye(4)[::-1])
BROKEN.indices[0] = 9
BAD_ADJACENCY = {
    "dense": (np.eye(4), r"adjacency = a ndarray: must be a scipy.sparse matrix; scipy\.sparse\.csr_array"),
    "not square": (sp.csr_array((4, 5)), r"adjacency = a matrix of shape \(4, 5\): must be square with 4 rows"),
    "other nodes": (sp.csr_array((5, 5)), r"shape \(5, 5\): must be square with 4 rows, as many as the features"),
    "one axis": (sp.coo_array(np.ones(4)), r"shape \(4,\)"),
    "negative": (sp.csr_array(-np.eye(4)[::-1]), "weights = -1.0"),
    "nan": (sp.csr_array(np.full((4, 4), np.nan)), "weights = nan"),
    "complex": (sp.csr_array(1j * np.eye(4)), "adjacency = a matrix of complex128"),
    "broken": (BROKEN, "adjacency indices = 9"),
}


@pytest.mark.parametrize(("adjacency", "message"), BAD_ADJACENCY.values(), ids=BAD_ADJACENCY)
def test_bad_scipy_adjacency_is_refused(adjacency, message):
    with pytest.raises(InputError, match=message):
        Graph.from_adjacency(adjacency, np.ones((4, 1)), [0, 0, 0, 0])


def test_pairs_that_are_an_adjacency_are_told_so():
    with pytest.raises(InputError, match=r"edge_index = a csr_array: must be node pairs .*Graph\.from_adjacency"):
        path_graph(edge_index=sp.csr_array(np.eye(4)))


BAD_CSR = {
    "length": ([0, 1, 2], [1, 0], "shape"),
    "start": ([1, 1, 2, 2], [1, 0], "from 1 to 2"),
    "end": ([0, 1, 2, 3], [1, 0], "from 0 to 3"),
    "falls": ([0, 2, 1, 2], [1, 2], "2 then 1 at row 1"),
    "range": ([0, 1, 2, 2], [1, 3], "3 "),
    "unsorted": ([0, 2, 2, 2], [2, 1], "1 after 2 in row 0.*from_edges"),
    "duplicate": ([0, 1, 3, 3], [1, 0, 0], "0 after 0 in row 1"),
    "loop": ([0, 1, 2, 2], [1, 1], "self-loop at node 1"),
    "fraction": ([0, 1, 1.5, 2], [1, 0], "1.5"),
}


@pytest.mark.parametrize(("indptr", "indices", "message"), BAD_CSR.values(), ids=BAD_CSR)
def test_bad_adjacency_is_refused(indptr, indices, message):
    with pytest.raises(InputError, match=message):
        Graph(indptr, indices, None, np.ones((3, 1)), [0, 0, 0])


def test_rows_that_rise_across_their_border_are_fine():
    graph = Graph([0, 1, 1, 2], [2, 0], None, np.ones((3, 1)), [0, 0, 0])
    assert graph.num_edges == 1


def test_invalid_sparse_features_are_refused_before_use():
    features = sp.csr_array(np.eye(3))
    features.indices[1] = 9
    with pytest.raises(InputError, match="features indices = 9"):
        Graph.from_edges([[0], [1]], features, [0, 0, 0])


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["a", "b", "a", "b"], r"labels = a and other names: must be class numbers.*numpy\.unique"),
        (np.array(["a", None, "b", "c"], dtype=object), r"labels = a and other names"),
        ([0, 1, float("nan"), 1], r"labels = nan at node 2 \(1 such nodes\): .*-1 where the class is not known"),
        ([[0], [1], [1], [0]], r"labels = an array of shape \(4, 1\): .*; labels\.ravel\(\)$"),
        (np.eye(4, 3), r"labels = an array of shape \(4, 3\): .*; labels\.argmax\(1\)"),
        (np.eye(4, 3, dtype=bool), r"labels\.argmax\(1\)"),
        ([0, 1, 0.5, 1], r"labels = 0\.5 at position 2: must be whole numbers"),
    ],
)
def test_labels_that_are_no_numbers_of_classes(labels, words):
    with pytest.raises(InputError, match=words):
        path_graph(labels=labels, splits=None)
