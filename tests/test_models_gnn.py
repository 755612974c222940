"""GCN and GraphSAGE as functions: against dense algebra, on blocks and on narrower networks; keyed dropout."""

from __future__ import annotations

import doctest
import types

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import graphs

from pdadmm.baselines import dropout
from pdadmm.baselines.dropout import drop_nodes, node_bits
from pdadmm.models import gnn
from pdadmm.models.gnn import ARCHITECTURES, GNN, Aggregation, forward, infer, init_weights, operator_of

KINDS = tuple(ARCHITECTURES)


def dense_logits(kind: str, A: np.ndarray, X: torch.Tensor, weights) -> torch.Tensor:
    """The network by dense algebra from the adjacency alone: the plain form of everything fast."""
    A = torch.from_numpy(A).double()
    if kind == "gcn":
        A = A + torch.eye(len(A), dtype=A.dtype)
        S = A.sum(1).rsqrt()[:, None] * A * A.sum(0).rsqrt()
    else:
        S = A / torch.where(A.sum(1) > 0, A.sum(1), 1.0)[:, None]
    for l, (W, b) in enumerate(weights):
        mixed = S @ X
        z = (mixed if kind == "gcn" else torch.cat([X, mixed], 1)) @ W.T + b
        X = z if l == len(weights) - 1 else z.relu()
    return X


@settings(max_examples=30, deadline=None)
@given(graphs(), st.sampled_from(KINDS), st.integers(1, 3))
def test_inference_is_the_dense_algebra(graph, kind, layers):
    widths = [graph.num_features, *[5] * (layers - 1), 3]
    weights = init_weights(kind, widths, 1, torch.float64)
    X = graph.features.toarray() if sp.issparse(graph.features) else graph.features
    X = torch.from_numpy(X).double()
    expected = dense_logits(kind, graph.adjacency.toarray(), X, weights)
    S = operator_of(graph, kind, "float64")
    torch.testing.assert_close(infer(kind, Aggregation(S), X, weights), expected)
    torch.testing.assert_close(GNN.from_weights(kind, weights, "relu")(S, X), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_dense_algebra(kind):
    random = np.random.default_rng(0)
    A = (random.random((9, 9)) < 0.3) * random.random((9, 9))  # directed and weighted
    np.fill_diagonal(A, 0.0)
    A[3] = A[:, 3] = 0.0  # an isolated node
    graph = type("Graph", (), {"adjacency": sp.csr_array(A)})
    X = torch.from_numpy(random.normal(size=(9, 4))).requires_grad_()
    weights = [(W.requires_grad_(), b.requires_grad_()) for W, b in init_weights(kind, [4, 6, 3], 0, torch.float64)]
    flat = [X, *(array for layer in weights for array in layer)]
    target = torch.from_numpy(random.integers(3, size=9))
    S = Aggregation(operator_of(graph, kind, "float64"))
    ours = torch.nn.functional.cross_entropy(forward(kind, [S, S], X, weights), target)
    theirs = torch.nn.functional.cross_entropy(dense_logits(kind, A, X, weights), target)
    for one, other in zip(torch.autograd.grad(ours, flat), torch.autograd.grad(theirs, flat)):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_give_the_rows_of_the_whole_graph(kind):
    """Operators of fewer rows, each with its targets first, as sampling makes them; all neighbours kept."""
    random = np.random.default_rng(1)
    A = sp.csr_array((random.random((12, 12)) < 0.25).astype(float))
    A.setdiag(0)
    A.eliminate_zeros()
    S = operator_of(type("Graph", (), {"adjacency": A}), kind, "float64")
    X = torch.from_numpy(random.normal(size=(12, 3)))
    weights = init_weights(kind, [3, 5, 2], 0, torch.float64)
    blocks, nodes = [], np.array([7, 2])
    for _ in weights:
        sources = np.concatenate([nodes, np.setdiff1d(S[nodes].indices, nodes)])
        blocks.insert(0, Aggregation(sp.csr_array(S[nodes][:, sources])))
        nodes = sources
    whole = infer(kind, Aggregation(S), X, weights)
    torch.testing.assert_close(forward(kind, blocks, X[nodes], weights), whole[[7, 2]])


def test_start_weights_depend_on_seed_and_layer_alone():
    long, short = (init_weights("sage", widths, 3, torch.float32) for widths in ([4, 5, 5, 2], [4, 5]))
    assert torch.equal(long[0][0], short[0][0])
    assert not torch.equal(long[0][0], init_weights("sage", [4, 5], 4, torch.float32)[0][0])
    bound = (6 / (200 + 100)) ** 0.5
    W = init_weights("gcn", [200, 100], 0, torch.float64)[0][0]
    assert W.abs().max() <= bound
    assert W.std() == pytest.approx(bound / 3**0.5, rel=0.02)


# Dropout keyed by global node


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2**40), max_size=20), st.integers(1, 9), st.sampled_from([16, 32]))
def test_bits_of_a_node_do_not_depend_on_the_others(nodes, width, bits):
    nodes = np.array(nodes, dtype=np.int64)
    found = node_bits((5, 1), nodes, width, bits)
    assert found.shape == (len(nodes), width)
    for node, row in zip(nodes, found):
        np.testing.assert_array_equal(node_bits((5, 1), np.array([node]), width, bits)[0], row)


@pytest.mark.parametrize("bits", [16, 32])
def test_bits_are_uniform_and_uncorrelated(bits):
    found = node_bits((0, 7), np.arange(20_000), 6, bits) / 2.0**bits
    assert found.mean() == pytest.approx(0.5, abs=0.005)
    assert found.var() == pytest.approx(1 / 12, abs=0.002)
    columns = np.concatenate([found[:-1].T, found[1:].T])  # each number against its neighbours' too
    assert np.abs(np.corrcoef(columns) - np.eye(12)).max() < 0.03
    assert not np.array_equal(found, node_bits((1, 7), np.arange(20_000), 6, bits) / 2.0**bits)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.999999])
def test_dropout_keeps_the_mean(share):
    h = drop_nodes(torch.ones(30_000, 8, dtype=torch.float64), 0, 1, 2, np.arange(30_000), share)
    kept = h[h != 0]
    if share < 0.9:
        assert float(h.mean()) == pytest.approx(1.0, abs=0.02)
        assert len(kept) / h.numel() == pytest.approx(1 - share, abs=0.01)
    assert bool((kept == kept[:1]).all())


@pytest.mark.parametrize("module", [gnn, dropout])
def test_the_examples_in_the_docstrings_run(module):
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("architecture", ["gcn", "sage"])
def test_an_operator_leaves_the_adjacency_as_it_is(architecture, dtype):
    given = sp.csr_array(np.array([[0, 2, 1], [2, 0, 0], [1, 0, 0]], dtype))
    before = given.copy()
    found = operator_of(types.SimpleNamespace(adjacency=given), architecture, "float64")
    assert (given != before).nnz == 0
    assert not np.shares_memory(found.data, given.data)
