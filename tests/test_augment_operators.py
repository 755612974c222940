"""Operators against the dense formula, and on graphs small enough to do by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from pdadmm.augment import OPERATORS, propagation_matrix
from pdadmm.errors import InputError

SEEDS = st.integers(0, 2**32 - 1)


def random_adjacency(seed: int, weighted: bool, directed: bool, loops: bool) -> np.ndarray:
    """A dense [V, V] of 1 to 12 nodes, some of them isolated."""
    rng = np.random.default_rng(seed)
    V = int(rng.integers(1, 13))
    A = (rng.random((V, V)) < rng.random()) * (rng.uniform(0.01, 5, (V, V)) if weighted else 1.0)
    A[rng.random(V) < 0.2] = 0
    if not loops:
        np.fill_diagonal(A, 0)
    if not directed:
        A = np.triu(A) + np.triu(A, 1).T
    return A.astype(np.float32)


def dense_operator(A: np.ndarray, operator: str) -> np.ndarray:
    B = A.astype(np.float64) + np.eye(len(A))
    rows, columns = np.diag(B.sum(1)), np.diag(B.sum(0))
    return {
        "sym": lambda: np.linalg.inv(np.sqrt(rows)) @ B @ np.linalg.inv(np.sqrt(columns)),
        "rw": lambda: np.linalg.inv(rows) @ B,
        "col": lambda: B @ np.linalg.inv(columns),
    }[operator]()


def graph_of(A, features=None) -> SimpleNamespace:
    return SimpleNamespace(adjacency=sp.csr_array(A), features=features)


@pytest.mark.parametrize("operator", OPERATORS)
@given(seed=SEEDS, weighted=st.booleans(), directed=st.booleans(), loops=st.booleans())
@settings(max_examples=40, deadline=None)
def test_every_operator_equals_the_dense_formula(operator, seed, weighted, directed, loops):
    A = random_adjacency(seed, weighted, directed, loops)
    for dtype, tolerance in (("float32", 1e-6), ("float64", 1e-12)):
        S = propagation_matrix(graph_of(A), operator, dtype)
        assert S.dtype == dtype
        assert S.has_sorted_indices
        np.testing.assert_allclose(S.toarray(), dense_operator(A, operator), rtol=tolerance, atol=0)


@given(seed=SEEDS, weighted=st.booleans(), directed=st.booleans())
@settings(max_examples=30, deadline=None)
def test_what_each_operator_preserves(seed, weighted, directed):
    graph = graph_of(random_adjacency(seed, weighted, directed, True))
    S = {name: propagation_matrix(graph, name, "float64").toarray() for name in OPERATORS}
    np.testing.assert_allclose(S["rw"].sum(1), 1)
    np.testing.assert_allclose(S["col"].sum(0), 1)
    assert np.linalg.norm(S["sym"], 2) <= 1 + 1e-12


def test_path_of_three_nodes_by_hand():
    path = graph_of([[0, 1, 0], [1, 0, 1], [0, 1, 0]])
    r = 6**-0.5  # degrees with self-loops: 2, 3, 2
    expected = {
        "sym": [[1 / 2, r, 0], [r, 1 / 3, r], [0, r, 1 / 2]],
        "rw": [[1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3], [0, 1 / 2, 1 / 2]],
        "col": [[1 / 2, 1 / 3, 0], [1 / 2, 1 / 3, 1 / 2], [0, 1 / 3, 1 / 2]],
    }
    assert expected.keys() == OPERATORS.keys()
    for operator, S in expected.items():
        np.testing.assert_array_equal(propagation_matrix(path, operator).toarray(), np.float32(S))


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("V", [0, 1, 3])
def test_isolated_nodes_keep_their_own_features(operator, V):
    S = propagation_matrix(graph_of(np.zeros((V, V))), operator)
    np.testing.assert_array_equal(S.toarray(), np.eye(V))


def test_directed_graph_reads_along_its_rows():
    S = propagation_matrix(graph_of([[0, 3], [0, 0]]), "sym", "float64").toarray()
    np.testing.assert_allclose(S, [[1 / 2, 3 / 4], [0, 1 / 2]])  # row sums 4, 1; column sums 1, 4


def test_unsorted_and_duplicate_entries_are_summed_and_the_input_is_left_alone():
    A = sp.csr_array((np.ones(4, np.float32), [2, 1, 1, 0], [0, 3, 3, 4]), shape=(3, 3))
    before = A.data.copy(), A.indices.copy()
    S = propagation_matrix(SimpleNamespace(adjacency=A), "rw")
    np.testing.assert_allclose(S.toarray(), [[1 / 4, 1 / 2, 1 / 4], [0, 1, 0], [1 / 2, 0, 1 / 2]])
    np.testing.assert_array_equal(A.data, before[0])
    np.testing.assert_array_equal(A.indices, before[1])


def test_blocks_of_rows_give_the_bits_of_one_pass(monkeypatch):
    A = random_adjacency(5, True, True, True)
    whole = propagation_matrix(graph_of(A))
    monkeypatch.setattr("pdadmm.augment.operators._BLOCK", 1)
    blocked = propagation_matrix(graph_of(A))
    np.testing.assert_array_equal(whole.data, blocked.data)


def test_indices_stay_narrow_and_float32_degrees_do_not_drift():
    V, weight = 20_000, np.float32(0.1)
    hub = sp.csr_array((np.full(V, weight), (np.zeros(V, int), np.arange(V))), shape=(V, V))
    S = propagation_matrix(SimpleNamespace(adjacency=hub), "rw")
    assert S.indices.dtype == np.int32
    assert S[0, 1] == np.float32(float(weight) / (V * float(weight) + 1))


@pytest.mark.parametrize(
    ("adjacency", "message"),
    [
        (sp.csr_array([[0.0, -1.0], [1.0, 0.0]]), "weights = -1.0"),
        (sp.csr_array([[0.0, np.nan], [1.0, 0.0]]), "weights = nan"),
        (sp.csr_array([[0.0, np.inf], [1.0, 0.0]]), "weights = inf"),
        (sp.csr_array(np.ones((2, 3))), r"shape \(2, 3\)"),
        (np.eye(2), "ndarray"),
    ],
)
def test_bad_adjacency_is_refused(adjacency, message):
    with pytest.raises(InputError, match=message):
        propagation_matrix(SimpleNamespace(adjacency=adjacency))


@pytest.mark.parametrize("operator", ["gcn", None, 3])
def test_unknown_operator_is_refused(operator):
    with pytest.raises(InputError, match="one of sym, rw, col"):
        propagation_matrix(graph_of([[0.0]]), operator)
