"""A buffer of partitions: what it holds when, and the batches out of it, bit for bit those of memory where all fits."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import graphs
from test_sampling import with_training

from pdadmm import Graph
from pdadmm.augment import Augmenter
from pdadmm.disk.blocks import DiskArray, Traffic
from pdadmm.disk.buffer import Cut, PartitionBuffer
from pdadmm.disk.features import ScaledFeatures, fit_scaler
from pdadmm.disk.graph import DiskGraph, write_graph
from pdadmm.models.gnn import ARCHITECTURES, Aggregation, operator_of
from pdadmm.sampling.buffered import BufferFeatures, BufferSampler, OperatorRows
from pdadmm.sampling.neighbours import NeighbourSampler
from pdadmm.sampling.network import DENSE, Dropout, Features
from pdadmm.sampling.states import BufferStates

MANY = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No waiting for the disk: nobody pulls the plug here."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@st.composite
def plain_graphs(draw) -> Graph:
    """A small graph such as a folder holds, with a training node at least."""
    return with_training(draw(graphs(max_nodes=14, weighted=False)))


def opened(graph: Graph, folder: Path) -> DiskGraph:
    write_graph(graph, folder)
    return DiskGraph(folder)


def buffer_of(disk: DiskGraph, rows: int, slots: int, features: ScaledFeatures | None = None) -> PartitionBuffer:
    files = {"columns": (DiskArray(disk.indices.path, Traffic()), disk.indptr())}
    if features is not None:
        files["features"] = features.values, features.indptr
        if features.columns is not None:
            files["feature columns"] = features.columns, features.indptr
    return PartitionBuffer(Cut(disk.num_nodes, rows), slots, files)


# The buffer


@MANY
@given(graph=plain_graphs(), rows=st.integers(1, 6), data=st.data())
def test_a_buffer_has_what_it_holds_and_never_more_than_its_slots(tmp_path_factory, graph, rows, data):
    with opened(graph, tmp_path_factory.mktemp("graph") / "g") as disk:
        count = Cut(disk.num_nodes, rows).count
        slots = data.draw(st.integers(1, count))
        buffer = buffer_of(disk, rows, slots)
        assert buffer.nbytes == sum(pool.numbers.nbytes for pool in buffer.pools.values())
        subsets = st.lists(st.integers(0, count - 1), unique=True, max_size=slots)
        for now, then in data.draw(st.lists(st.tuples(subsets, subsets), min_size=1, max_size=5)):
            buffer.hold(now, then)
            assert len(set(now)) <= buffer.most <= slots
            nodes = np.arange(disk.num_nodes)
            np.testing.assert_array_equal(buffer.holds(nodes), np.isin(nodes // rows, now))
            for node in nodes[buffer.holds(nodes)]:
                degree = graph.indptr[node + 1] - graph.indptr[node]
                start = buffer.places("columns", np.array([node]))[0]
                expected = graph.indices[graph.indptr[node] : graph.indptr[node + 1]]
                np.testing.assert_array_equal(buffer.pools["columns"].numbers[start : start + degree], expected)
        buffer.close()


@MANY
@given(
    nodes=st.integers(1, 60), rows=st.integers(1, 7), held=st.integers(1, 9), swapped=st.integers(1, 9),
    size=st.integers(1, 20), seed=st.integers(0, 3),
)  # fmt: skip
def test_an_iteration_visits_every_training_node_once_in_a_state_that_holds_it(nodes, rows, held, swapped, size, seed):
    cut = Cut(nodes, rows)
    held = min(held, cut.count)
    swapped = min(swapped, held)
    train = np.arange(0, nodes, 2)
    states = BufferStates(train, rows, cut.count, held, swapped, seed)
    for iteration in (1, 3, 2):  # a run that goes on draws what the one before would have
        order = states.order(iteration)
        np.testing.assert_array_equal(np.sort(order), np.arange(cut.count))
        fresh = BufferStates(train, rows, cut.count, held, swapped, seed)
        np.testing.assert_array_equal(fresh.order(iteration), order)
        if iteration > 1:  # it begins with what the last one ended with
            before = fresh.partitions(iteration - 1, fresh.number - 1)
            assert set(fresh.partitions(iteration, 0)) == set(before)
        seen = []
        steps = states.steps_of(iteration, size)
        lengths = [sum(len(own) for _, own in step) for step in steps]
        assert lengths[:-1] == [size] * (len(steps) - 1)
        for state, own in (piece for step in steps for piece in step):
            assert set(cut.of(own)) <= set(states.partitions(iteration, state).tolist())
            seen.append((state, own))
        assert [state for state, _ in seen] == sorted(state for state, _ in seen)
        seen = [own for _, own in seen]
        np.testing.assert_array_equal(np.sort(np.concatenate(seen)), train)
    covered = {partition for state in range(states.number) for partition in states.partitions(2, state)}
    assert covered == set(range(cut.count))


def test_every_pair_of_partitions_meets():
    states = BufferStates(np.arange(12), 1, 12, held=3, swapped=1, seed=0)
    met = {
        (a, b)
        for iteration in range(1, 30)
        for state in range(states.number)
        for a in states.partitions(iteration, state)
        for b in states.partitions(iteration, state)
    }
    assert len(met) == 144


# Batches


def entered(sampler: BufferSampler, step: int):
    """A step's batches, each made while its state is in the buffer."""
    for state, nodes in sampler.pieces(step):
        sampler.enter(state)
        yield from sampler.batch(step, nodes)


def batches_of(sampler, iteration: int) -> list:
    if isinstance(sampler, BufferSampler):
        sampler.begin(iteration)
        return [batch for step in range(sampler.steps) for batch in entered(sampler, step)]
    return [batch for step in range(sampler.steps) for batch in sampler.draw(iteration, step, 0, 1)]


@MANY
@given(
    graph=plain_graphs(), architecture=st.sampled_from(list(ARCHITECTURES)), rows=st.integers(1, 6),
    fanouts=st.tuples(st.integers(1, 3), st.integers(1, 3)), size=st.integers(1, 5), seed=st.integers(0, 3),
)  # fmt: skip
def test_a_buffer_of_everything_gives_the_batches_of_memory(
    tmp_path_factory, graph, architecture, rows, fanouts, size, seed
):
    """Nodes, entries and features, bit for bit; features with dropout too."""
    folder, train = tmp_path_factory.mktemp("graph"), graph.splits["train"]
    with opened(graph, folder / "g") as disk:
        count, scaler = Cut(disk.num_nodes, rows).count, fit_scaler(disk, "row-l2", train, np.dtype("float32"))
        stored = ScaledFeatures(disk, scaler, np.dtype("float32"), folder, DENSE, Traffic())
        buffer = buffer_of(disk, rows, count, stored)
        states = BufferStates(train, rows, count, count, 0, seed)
        ours = BufferSampler(OperatorRows(disk.indptr(), architecture, "float32"), buffer, states, fanouts, size, seed)
        theirs = NeighbourSampler(operator_of(graph, architecture), train, fanouts, size, seed)
        X = Augmenter(hops=0, scaling="row-l2").fit_transform(graph, train)
        here, there = BufferFeatures(buffer, X.shape[1], stored.indptr), Features(X)
        for iteration in (1, 4):
            pairs = list(zip(batches_of(ours, iteration), batches_of(theirs, iteration), strict=True))
            for one, other in pairs:
                np.testing.assert_array_equal(one.nodes, other.nodes)
                for layer in range(2):
                    np.testing.assert_array_equal(one.sources[layer], other.sources[layer])
                    for name in ("data", "indices", "indptr"):
                        S, M = one.operators[layer].S, other.operators[layer].S
                        np.testing.assert_array_equal(getattr(S, name), getattr(M, name))
                for dropout in (None, Dropout(seed, iteration, 0.5)):
                    x, y = (found.rows(one.sources[0], dropout) for found in (here, there))
                    assert type(x) is type(y)
                    x, y = (v.S.toarray() if isinstance(v, Aggregation) else v.numpy() for v in (x, y))
                    np.testing.assert_array_equal(x, y)
        buffer.close()


@MANY
@given(
    graph=plain_graphs(), architecture=st.sampled_from(list(ARCHITECTURES)), rows=st.integers(1, 4),
    held=st.integers(1, 4), fanout=st.integers(1, 3), seed=st.integers(0, 3),
)  # fmt: skip
def test_rows_in_a_small_buffer_are_those_of_the_plain_form(
    tmp_path_factory, graph, architecture, rows, held, fanout, seed
):
    """min(fanout, neighbours there) entries of S; the diagonal as it is. An entry counts by the inverse of the
    probability that it is there: 1 in the node's own partition, else (c - 1) / (P - 1)."""
    train = graph.splits["train"]
    with opened(graph, tmp_path_factory.mktemp("graph") / "g") as disk:
        count = Cut(disk.num_nodes, rows).count
        held = min(held, count)
        buffer = buffer_of(disk, rows, count)
        states = BufferStates(train, rows, count, held, 1, seed)
        kind = OperatorRows(disk.indptr(), architecture, "float64")
        sampler = BufferSampler(kind, buffer, states, (fanout,), 3, seed)
        S, degree = operator_of(graph, architecture, "float64").toarray(), np.diff(graph.indptr)
        for iteration in (1, 2):
            sampler.begin(iteration)
            for batch in (batch for step in range(sampler.steps) for batch in entered(sampler, step)):
                there = np.flatnonzero(buffer.holds(np.arange(disk.num_nodes)))
                block, sources = batch.operators[0].S.toarray(), batch.sources[0]
                assert set(sources) <= set(there)
                for row, node in enumerate(batch.nodes):
                    neighbours = np.intersect1d(graph.indices[graph.indptr[node] : graph.indptr[node + 1]], there)
                    own = {int(sources[j]): block[row, j] for j in np.flatnonzero(block[row])}
                    assert own.pop(int(node), 0.0) == S[node, node]
                    drawn = min(fanout, len(neighbours))
                    assert len(own) == drawn
                    weights = {j: 1 if j // rows == node // rows else (count - 1) / (held - 1) for j in own}
                    for j, value in own.items():
                        assert j in neighbours
                        share = weights[j] / sum(weights.values())
                        assert value == pytest.approx(S[node, j] * degree[node] * share, rel=1e-12)
        buffer.close()


def test_a_neighbour_that_is_seldom_there_counts_more(tmp_path):
    """By hand: on the path 0-1-2-3-4-5 in pairs, two of three pairs held, node 1 sees 0 always, 2 every other time."""
    path = np.array([[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]])
    graph = Graph.from_edges(path, np.zeros((6, 1)), np.zeros(6, int), {"train": [1], "val": [], "test": []})
    seen = set()
    with opened(graph, tmp_path / "g") as disk:
        states, kind = BufferStates(np.array([1]), 2, 3, 2, 1, 0), OperatorRows(disk.indptr(), "sage", "float64")
        sampler = BufferSampler(kind, buffer_of(disk, 2, 3), states, (5,), None, 0)
        for iteration in range(1, 20):
            (batch,) = batches_of(sampler, iteration)
            block, sources = batch.operators[0].S.toarray()[0], batch.sources[0].tolist()
            seen.add(tuple((node, round(value, 9)) for node, value in sorted(zip(sources, block.tolist()))))
    assert seen == {((0, 1.0), (1, 0.0)), ((0, round(1 / 3, 9)), (1, 0.0), (2, round(2 / 3, 9)))}
