"""Samplers: batches are pieces of the graph, unbiased, and the same however many ranks share them."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import graphs

from pdadmm import Graph, csbm
from pdadmm.models.gnn import ARCHITECTURES, Aggregation, forward, init_weights, operator_of
from pdadmm.sampling.clusters import ClusterSampler
from pdadmm.sampling.neighbours import NeighbourSampler
from pdadmm.sampling.walks import WalkSampler

LAYERS = 2


def with_training(graph: Graph) -> Graph:
    """The graph with a training node at least."""
    if graph.splits is not None:
        return graph
    labels = graph.labels.copy()
    labels[0] = max(labels[0], 0)
    other = Graph(graph.indptr, graph.indices, graph.weights, graph.features, labels)
    return other.with_splits({"train": [0], "val": [], "test": []})


@st.composite
def samplers(draw, kinds=("neighbour", "cluster", "walk")):
    """(graph, sampler, S): a sampler of each kind on any small graph, directed or not, weighted or not."""
    graph = draw(graphs())
    if draw(st.booleans()):  # a directed one
        upper = sp.triu(graph.adjacency).tocsr()
        weights = None if graph.weights is None else upper.data
        graph = Graph(upper.indptr, upper.indices, weights, graph.features, graph.labels, graph.splits)
    graph = with_training(graph)
    architecture, seed = draw(st.sampled_from(list(ARCHITECTURES))), draw(st.integers(0, 5))
    S, train = operator_of(graph, architecture, "float64"), graph.splits["train"]
    kind, size, batches = draw(st.sampled_from(kinds)), draw(st.integers(1, 5)), draw(st.integers(1, 3))
    if kind == "neighbour":
        return graph, NeighbourSampler(S, train, draw(st.tuples(*[st.integers(1, 3)] * LAYERS)), size, seed), S
    if kind == "walk":
        return graph, WalkSampler(S, train, draw(st.integers(0, 3)), size, LAYERS, batches, seed), S
    clusters = np.array(draw(st.lists(st.integers(0, 4), min_size=graph.num_nodes, max_size=graph.num_nodes)))
    return graph, ClusterSampler(graph, architecture, "float64", LAYERS, clusters, size, batches, seed), S


def iteration_of(sampler, iteration: int, ranks: int = 1) -> list:
    """All batches of an iteration, of all ranks."""
    return [
        batch
        for step in range(sampler.steps)
        for rank in range(ranks)
        for batch in sampler.draw(iteration, step, rank, ranks)
    ]


@settings(max_examples=80, deadline=None)
@given(samplers())
def test_a_batch_is_a_piece_of_the_graph(case):
    """Shapes fit, each node stands once among the columns, the rows are the first of them, entries are S's."""
    _, sampler, S = case
    dense = S.toarray()
    for batch in iteration_of(sampler, 3):
        assert len(batch.operators) == len(batch.sources) == LAYERS
        after = [*batch.sources[1:], None]
        for operator, sources, rows in zip(batch.operators, batch.sources, after):
            block = operator.S
            assert block.shape[1] == len(sources) == len(np.unique(sources))
            rows = sources[: block.shape[0]] if rows is None else rows
            assert block.shape[0] == len(rows)
            np.testing.assert_array_equal(sources[: len(rows)], rows)
            assert not (block.toarray() != 0)[dense[np.ix_(rows, sources)] == 0].any()
        np.testing.assert_array_equal(batch.sources[-1][batch.outputs], batch.nodes)


@settings(max_examples=60, deadline=None)
@given(samplers())
def test_every_training_node_has_its_turn(case):
    graph, sampler, _ = case
    seen = [batch.nodes for batch in iteration_of(sampler, 1)]
    counted = np.sort(np.concatenate(seen))
    if isinstance(sampler, WalkSampler):  # as a root once; a walk may come by again
        assert set(counted) == set(graph.splits["train"])
    else:
        np.testing.assert_array_equal(counted, np.sort(graph.splits["train"]))


@settings(max_examples=60, deadline=None)
@given(samplers(), st.integers(2, 5))
def test_ranks_share_what_one_process_would_draw(case, ranks):
    """Clusters and walks are dealt whole; of sampled neighbours each rank draws its nodes' share of one process's."""
    _, sampler, _ = case
    for step in range(sampler.steps):
        alone = sampler.draw(2, step, 0, 1)
        shared = [batch for rank in range(ranks) for batch in sampler.draw(2, step, rank, ranks)]
        assert sum(batch.count for batch in shared) == sum(batch.count for batch in alone)
        if isinstance(sampler, NeighbourSampler):
            (whole,) = alone
            np.testing.assert_array_equal(np.concatenate([batch.nodes for batch in shared]), whole.nodes)
            rows = [as_rows(batch, layer) for batch in [whole, *shared] for layer in range(LAYERS)]
            for layer in range(LAYERS):
                expected, *parts = rows[layer::LAYERS]
                for part in parts:
                    assert part.items() <= expected.items()
        else:
            for one, other in zip(alone, shared, strict=True):
                np.testing.assert_array_equal(one.sources[0], other.sources[0])
                assert (one.operators[0].S != other.operators[0].S).nnz == 0


def as_rows(batch, layer: int) -> dict:
    """The rows of one layer by node, each a set of (node, entry)."""
    block, sources = batch.operators[layer].S, batch.sources[layer]
    split = np.split(np.arange(block.nnz), block.indptr[1:-1])
    return {
        int(node): frozenset(zip(sources[block.indices[own]].tolist(), block.data[own].tolist()))
        for node, own in zip(sources, split)
    }


@settings(max_examples=40, deadline=None)
@given(samplers(("neighbour",)))
def test_at_most_fanout_neighbours_and_all_where_there_are_few(case):
    _, sampler, S = case
    proper = (S - sp.diags_array(S.diagonal())).tocsr()
    proper.eliminate_zeros()
    degree = np.diff(proper.indptr)
    for batch in iteration_of(sampler, 0):
        for layer, fanout in enumerate(sampler.fanouts):
            for node, row in as_rows(batch, layer).items():
                others = {source for source, _ in row if source != node}
                assert len(others) == min(fanout, degree[node])
                if degree[node] <= fanout:
                    assert row == frozenset((int(j), float(S[node, j])) for j in S[[node]].indices)


def test_draws_change_with_step_and_iteration_and_seed():
    graph = csbm(200, num_classes=3, num_features=4, avg_degree=12, seed=0)
    S, train = operator_of(graph, "gcn"), graph.splits["train"]
    makers = [
        lambda seed: NeighbourSampler(S, train, (2, 2), 20, seed),
        lambda seed: WalkSampler(S, train, 3, 20, 2, 1, seed),
        lambda seed: ClusterSampler(graph, "gcn", "float32", 2, np.arange(200) % 10, 2, 1, seed),
    ]
    for make in makers:
        sampler, again = make(0), make(0)
        first = sampler.draw(1, 0, 0, 1)[0].sources[0]
        sampler.draw(5, 1, 0, 1)  # no state is left behind
        np.testing.assert_array_equal(first, sampler.draw(1, 0, 0, 1)[0].sources[0])
        np.testing.assert_array_equal(first, again.draw(1, 0, 0, 1)[0].sources[0])
        others = sampler.draw(1, 1, 0, 1), sampler.draw(2, 0, 0, 1), make(1).draw(1, 0, 0, 1)
        assert not any(np.array_equal(first, other[0].sources[0]) for other in others)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_batches_of_everything_are_the_whole_graph(architecture):
    """Unlimited neighbours and all clusters at once give the full-graph logits."""
    graph = csbm(60, num_classes=3, num_features=4, seed=1)
    S, train = operator_of(graph, architecture, "float64"), graph.splits["train"]
    X = torch.from_numpy(graph.features.astype(np.float64))
    weights = init_weights(architecture, [4, 5, 3], 0, torch.float64)
    expected = forward(architecture, [Aggregation(S)] * 2, X, weights)
    samplers = [
        NeighbourSampler(S, train, (1000, 1000), 7, 0),
        ClusterSampler(graph, architecture, "float64", 2, np.arange(60) % 7, 9),
    ]
    for sampler in samplers:
        for batch in iteration_of(sampler, 0):
            logits = forward(architecture, batch.operators, X[batch.sources[0]], weights)[batch.outputs]
            torch.testing.assert_close(logits, expected[batch.nodes], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["neighbour", "walk"])
def test_sampled_sums_have_the_right_mean(kind):
    """(S h)_i of a sampled row is unbiased, and so is a walk's weighted mean of the training nodes' losses."""
    graph = csbm(40, num_classes=2, num_features=3, avg_degree=8, seed=3)
    S, train = operator_of(graph, "gcn", "float64"), graph.splits["train"]
    h = np.random.default_rng(0).normal(size=(40, 2)) + 1.0
    exact, loss = S @ h, h[:, 0]
    total, visits, losses, draws = np.zeros((40, 2)), np.zeros(40), [], 1500
    size = 5 if kind == "walk" else None
    sampler = NeighbourSampler(S, train, (3,), size, 0) if kind == "neighbour" else WalkSampler(S, train, 2, size, 1)
    for iteration in range(draws // sampler.steps):
        for batch in iteration_of(sampler, iteration):
            total[batch.nodes] += (batch.operators[0].S @ h[batch.sources[0]])[batch.outputs]
            visits[batch.nodes] += 1
            shares = np.ones(len(batch.nodes)) if batch.shares is None else batch.shares
            losses.append((shares * loss[batch.nodes]).sum() / batch.count)
    mean = total[train] / visits[train, None]
    assert np.abs(mean - exact[train]).max() < (0.1 if kind == "neighbour" else 0.2) * np.abs(exact).max()
    assert np.mean(losses) == pytest.approx(loss[train].mean(), rel=0.05)
