"""A GNN trained on samples from disk: the buffer, what is read when, and the run in memory where all fits."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import graphs
from test_sampling import with_training

from pdadmm import Graph, InputError, SampledGNN, csbm
from pdadmm.augment import Augmenter
from pdadmm.augment.scaling import SCALINGS
from pdadmm.baselines.shards import scores, tally
from pdadmm.cli import main
from pdadmm.disk.blocks import DiskArray, Traffic
from pdadmm.disk.buffer import Cut, PartitionBuffer
from pdadmm.disk.dataset import GraphFolder
from pdadmm.disk.features import ScaledFeatures, fit_scaler
from pdadmm.disk.graph import DiskGraph, write_graph
from pdadmm.history import History
from pdadmm.models.gnn import ARCHITECTURES, Aggregation, infer, init_weights, operator_of
from pdadmm.sampling import inference
from pdadmm.sampling.buffered import BufferFeatures, BufferSampler, OperatorRows
from pdadmm.sampling.neighbours import NeighbourSampler
from pdadmm.sampling.network import DENSE, Dropout, Features
from pdadmm.sampling.states import BufferStates

MEMORY = "300MiB"
GRAPH = csbm(150, num_classes=3, num_features=6, seed=2)
SMALL = {"hidden": 8, "iterations": 4, "batch_size": 30, "fanouts": (3, 2)}
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


# Features and evaluation


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("density", [0.1, 0.9])
def test_stored_features_are_the_scaled_ones(tmp_path, scaling, density):
    random = np.random.default_rng(0)
    X = sp.random_array((60, 7), density=density, rng=random, dtype=np.float32).toarray()
    graph = Graph.from_edges([[0], [1]], X, np.arange(60) % 3).with_splits(
        {"train": np.arange(0, 60, 3), "val": [], "test": []}
    )
    kind, train = np.dtype("float64"), graph.splits["train"]
    expected = Augmenter(hops=0, scaling=scaling, dtype="float64").fit_transform(graph, train)
    with opened(graph, tmp_path / "g") as disk:
        scaler = fit_scaler(disk, scaling, train, kind)
        stored = ScaledFeatures(disk, scaler, kind, tmp_path, DENSE, Traffic())
        with pytest.raises(InputError, match=r"scratch = .* with .* free"):
            ScaledFeatures(disk, scaler, kind, tmp_path, DENSE, Traffic(), 1 << 60)
    sparse = np.count_nonzero(expected) < DENSE * expected.size
    assert (stored.indptr is not None) == sparse
    rows = stored.rows(3, 50)
    np.testing.assert_array_equal(rows.toarray() if sparse else rows, expected[3:50])


@pytest.mark.parametrize("width", [1, 3, 8, 16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_evaluation_from_disk_is_that_of_memory(tmp_path, monkeypatch, architecture, width):
    """For every width of the slices, in small blocks; bytes are those of the formula."""
    monkeypatch.setattr(inference, "BLOCK_NUMBERS", 100)
    write_graph(GRAPH, tmp_path / "g")
    traffic, kind = Traffic(), np.dtype("float64")
    with DiskGraph(tmp_path / "g") as disk:
        scaler = fit_scaler(disk, "none", GRAPH.splits["train"], kind)
        stored = ScaledFeatures(disk, scaler, kind, tmp_path, DENSE, Traffic())
        stored.values.traffic = traffic
        rows, columns = OperatorRows(disk.indptr(), architecture, "float64"), DiskArray(disk.indices.path, traffic)
        found = inference.DiskInference(tmp_path, stored, columns, rows, architecture, "relu", width, traffic)
        weights, y = init_weights(architecture, [6, 8, 8, 3], 0, torch.float64), torch.from_numpy(GRAPH.labels)
        ours, finite = found.scores(weights, y, GRAPH.splits)
    X = torch.from_numpy(GRAPH.features.astype(np.float64))
    logits = infer(architecture, Aggregation(operator_of(GRAPH, architecture, "float64")), X, weights)
    theirs = scores([tally(logits, y, GRAPH.splits)], {part: len(own) for part, own in GRAPH.splits.items()})
    assert finite
    assert ours == pytest.approx(theirs, rel=1e-12)
    V, copies, entries = 150, ARCHITECTURES[architecture].copies, 4 * GRAPH.indices.size
    read = written = 0
    for m, n in ((6, 8), (8, 8), (8, 3)):
        slices = -(-n // width)
        products = copies * 8 * V * n if copies * n > width else 0
        read += 8 * V * m + slices * entries + products
        written += products + 8 * V * n
    assert (traffic.read, traffic.written) == (read + 8 * V * 3, written)
    assert not [path for path in tmp_path.iterdir() if path.name not in ("g", "features.npy")]


# Whole runs


def outcome(trained: SampledGNN) -> tuple:
    rows = [row["objective"] for row in trained.history_]
    return {name: value.numpy().tobytes() for name, value in trained.model_.state_dict().items()}, rows


@pytest.mark.parametrize("more", [{}, {"architecture": "gcn", "layers": 3, "fanouts": None, "scaling": "hop-std"}])
def test_where_all_fits_the_run_is_that_of_memory(tmp_path, more):
    """From a folder and from a graph in memory alike."""
    memory = SampledGNN(**SMALL | more).fit(GRAPH)
    write_graph(GRAPH, tmp_path / "g")
    with GraphFolder(tmp_path / "g") as folder:
        disk = SampledGNN(**SMALL | more).fit(folder, memory=MEMORY, scratch=tmp_path / "run")
    again = SampledGNN(**SMALL | more).fit(GRAPH, memory=MEMORY, scratch=tmp_path / "other")
    assert outcome(disk) == outcome(memory) == outcome(again)
    for name in ("val_accuracy", "test_accuracy", "val_loss"):
        assert disk.history_.column(name) == pytest.approx(memory.history_.column(name), rel=1e-6)
    np.testing.assert_array_equal(disk.predict_proba(GRAPH), memory.predict_proba(GRAPH))
    for run in ("run", "other"):  # what is large has gone, checkpoints stay
        assert {path.name[:9] for path in (tmp_path / run).iterdir()} == {"iteration"}


def test_a_small_buffer_reads_what_the_formula_says_and_holds_no_more(tmp_path):
    share, cut_off = 0.25, SMALL | {"iterations": 5, "eval_every": 5}
    write_graph(GRAPH, tmp_path / "g")
    with GraphFolder(tmp_path / "g") as folder:
        run = SampledGNN(**cut_off, buffer_share=share).fit(folder, memory=MEMORY, scratch=tmp_path / "run")
    told, rows = run.summary_, run.summary_["block_nodes"]
    total = 4 * (GRAPH.features.size + GRAPH.indices.size)
    assert told["buffer_bytes"] <= share * total
    assert told["buffer_partitions"] * rows <= share * 150
    assert told["memory_peak_bytes"] < told["memory_bytes"] == 300 << 20
    slots = told["buffer_partitions"]
    swapped = max(1, slots // 8)
    states = BufferStates(GRAPH.splits["train"], rows, told["partitions"], slots - swapped, swapped, 0)
    cut, held, read = Cut(150, rows), set(), 0
    sizes = 4 * (6 * cut.sizes(None) + cut.sizes(GRAPH.indptr))
    for iteration in range(1, 6):
        for state in dict.fromkeys(state for step in states.steps_of(iteration, 30) for state, _ in step):
            now = set(states.partitions(iteration, state).tolist())
            read, held = read + sizes[sorted(now - held)].sum(), now
    assert told["bytes_read_training"] == read < 5 * total
    hidden = 4 * 150 * (8 + 3)
    evaluation = 4 * 150 * (6 + 8 + 3) + 2 * 4 * GRAPH.indices.size
    assert told["bytes_read_evaluation"] == 2 * evaluation
    setup = 8 * 151 + 4 * GRAPH.indices.size + 2 * 4 * GRAPH.features.size
    assert told["bytes_read"] == setup + read + 2 * evaluation
    assert told["bytes_written"] == 4 * GRAPH.features.size + 2 * hidden


def test_a_run_that_was_cut_off_goes_on_with_the_same_bits(tmp_path):
    solver = SampledGNN(**SMALL, buffer_share=0.3)
    expected = outcome(solver.fit(GRAPH, memory=MEMORY, scratch=tmp_path / "whole"))
    assert outcome(solver.fit(GRAPH, memory=MEMORY, scratch=tmp_path / "again")) == expected
    other = SampledGNN(**SMALL, buffer_share=0.3, seed=1)
    assert outcome(other.fit(GRAPH, memory=MEMORY, scratch=tmp_path / "seed")) != expected

    def cut_off(row) -> None:
        if row["iteration"] == 3:
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        solver.fit(GRAPH, memory=MEMORY, scratch=tmp_path / "cut", watch=cut_off)
    again = solver.fit(GRAPH, memory=MEMORY, scratch=tmp_path / "cut", resume=True)
    assert outcome(again) == expected
    with pytest.raises(InputError, match=r"scratch = .*a folder without checkpoints"):
        solver.fit(GRAPH, memory=MEMORY, scratch=tmp_path / "cut")
    another = csbm(150, num_classes=3, num_features=6, seed=3)
    with pytest.raises(InputError, match="fingerprint was"):
        solver.fit(another, memory=MEMORY, scratch=tmp_path / "cut", resume=True)


def test_a_small_buffer_learns(tmp_path):
    graph = csbm(200, num_classes=3, num_features=8, avg_degree=12, seed=0)
    disk = SampledGNN(iterations=12, batch_size=60, hidden=16, buffer_share=0.5)
    disk.fit(graph, memory=MEMORY, scratch=tmp_path)
    majority = np.bincount(graph.labels[graph.splits["test"]]).max() / len(graph.splits["test"])
    assert disk.score(graph) > majority + 0.2
    assert disk.summary_["test_accuracy"] == pytest.approx(disk.score(graph), abs=1e-9)


@pytest.mark.parametrize(
    ("more", "limits", "words"),
    [
        ({"sampler": "walk"}, {"memory": MEMORY}, "sampler = walk: must be neighbour with memory"),
        ({"sampler": "cluster"}, {"memory": MEMORY}, "sampler = cluster: must be neighbour with memory"),
        ({"buffer_share": 0.5}, None, "buffer_share = 0.5: must be left out without memory"),
        ({"buffer_share": 0.001}, {"memory": MEMORY}, r"buffer_share = 0.001: must be enough for two partitions"),
        ({}, {"memory": "40MiB"}, r"memory = 40MiB: .*; give at least (\d+)MiB"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, more, limits, words):
    given = {} if limits is None else limits | {"scratch": tmp_path}
    with pytest.raises(InputError, match=words) as caught:
        SampledGNN(**SMALL | more).fit(GRAPH, **given)
    assert not list(tmp_path.iterdir())
    if "at least" in caught.value.remedy:  # and that much does
        least = caught.value.remedy.split()[3].rstrip(",")
        assert SampledGNN(**SMALL).fit(GRAPH, memory=least, scratch=tmp_path).summary_["partitions"] > 1


def test_a_folder_needs_memory_and_a_split(tmp_path):
    write_graph(GRAPH.with_splits(None), tmp_path / "g")
    with pytest.raises(InputError, match="split = not given"):
        GraphFolder(tmp_path / "g")
    with GraphFolder(tmp_path / "g", "random:5") as folder:
        with pytest.raises(InputError, match="memory, scratch = None: must be given with a GraphFolder"):
            SampledGNN(**SMALL).fit(folder)
        with pytest.raises(InputError, match="must be left out with a graph"):
            SampledGNN(**SMALL).fit(folder, GRAPH.labels, memory=MEMORY, scratch=tmp_path / "run")


def test_a_file_that_is_cut_off_while_it_is_read_is_named(tmp_path):
    write_graph(GRAPH, tmp_path / "g")
    with GraphFolder(tmp_path / "g") as folder:

        def shorten(row) -> None:
            os.truncate(tmp_path / "g" / "indices.npy", 200)

        with pytest.raises(InputError, match=r"file = .*indices.npy: must be a file that can be read"):
            SampledGNN(**SMALL, buffer_share=0.25).fit(folder, memory=MEMORY, scratch=tmp_path / "r", watch=shorten)


def test_the_command_line_trains_from_a_folder(tmp_path, capsys):
    write_graph(GRAPH, tmp_path / "g")
    common = ["train", "--dataset", str(tmp_path / "g"), "--solver", "sage", "--hidden", "8", "--iterations", "3"]
    disk = ["--memory", MEMORY, "--scratch", str(tmp_path / "run"), "--quiet"]
    history = ["--history", str(tmp_path / "disk.jsonl")]
    assert main([*common, *disk, *history, "--buffer-share", "0.25", "--split", "random:9", "--split-seed", "1"]) == 0
    assert "sage on" in capsys.readouterr().out
    assert len(History.from_jsonl(tmp_path / "disk.jsonl")) == 3
    assert main([*common, *disk, "--sampler", "walk"]) == 2
    assert "sampler = walk" in capsys.readouterr().err
