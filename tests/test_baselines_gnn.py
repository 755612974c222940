"""Full-graph GNNs: one process against dense algebra, ranks against one process, bytes against formulas, odd graphs."""

from __future__ import annotations

import doctest
import importlib
import itertools
import json
import math
from pathlib import Path

import gnn_reference
import mpi_gnn
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mpi_launch import NEEDS_MPI, mpiexec
from strategies import edge_lists, graphs

from pdadmm import GCN, DivergenceError, Graph, InputError, MixGCN, csbm, load_model
from pdadmm.baselines import partition as partition_module
from pdadmm.baselines.dropout import entry_mask, node_mask
from pdadmm.baselines.exchange import cut, draw
from pdadmm.baselines.fullgraph import FirstLayer
from pdadmm.baselines.gcn import HALOS
from pdadmm.baselines.partition import PARTITIONS, boundaries, cheaper, halo_rows, partition
from pdadmm.baselines.shards import run_of
from pdadmm.models.gnn import GNN, init_weights
from pdadmm.parallel.ledger import ring_bytes
from pdadmm.solvers import solver_class

HERE = Path(__file__).parent
MODULES = ("exchange", "fullgraph", "gcn", "gnn", "mixers", "mixgcn", "partition")
NO_METIS = importlib.util.find_spec("pymetis") is None


def estimator(name: str):
    solver, _, more = mpi_gnn.CASES[name]
    return solver_class(solver)(**mpi_gnn.COMMON | more)


def weights_of(trained) -> list[np.ndarray]:
    return [array.detach().numpy() for layer in trained.model_.weights() for array in layer]


# One process


@pytest.mark.parametrize("solver", [GCN, MixGCN])
@pytest.mark.parametrize("graph", ["csbm", "odd", "tiny"])
@pytest.mark.parametrize("architecture", ["gcn", "sage"])
def test_one_process_is_the_dense_algebra(solver, graph, architecture):
    given_ = mpi_gnn.COMMON | {"iterations": 12, "architecture": architecture}
    graph = mpi_gnn.graph_of(graph)
    trained = solver(**given_, eval_every=1000).fit(graph)
    for layer, expected in zip(
        trained.model_.weights(), gnn_reference.train(graph, GCN(**given_), np.zeros(graph.num_nodes, int), 12)
    ):
        for ours, theirs in zip(layer, expected):
            torch.testing.assert_close(ours.detach(), theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("halo", HALOS)
def test_a_single_rank_has_no_halo(halo):
    graph = csbm(80, num_classes=2, num_features=4, seed=1)
    plain, other = (GCN(hidden=5, iterations=5, halo=name).fit(graph) for name in ("exact", halo))
    assert other.summary_["bytes_sent"] == other.summary_["halo_rows"] == 0
    for one, two in zip(weights_of(plain), weights_of(other)):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 9), st.floats(0, 0.9), st.integers(0, 3))
def test_a_sparse_first_layer_is_the_dense_one(rows, columns, share, epoch):
    random = np.random.default_rng(rows)
    x = random.normal(size=(rows, columns)) * (random.random((rows, columns)) < 0.4)
    nodes = random.choice(1000, rows, replace=False)
    chosen = GCN(dropout=share, dtype="float64", seed=3)
    W, b = (array.requires_grad_() for array in init_weights("gcn", [columns, 3], 0, torch.float64)[0])
    results = []
    for form in (torch.from_numpy(x), sp.csr_array(x)):
        z = FirstLayer(form, nodes, chosen)(W, b, epoch or None)
        results.append((z, *torch.autograd.grad(z.square().sum(), (W, b))))
    for dense, sparse in zip(*results):
        torch.testing.assert_close(dense, sparse)
    if epoch and share:
        whole = node_mask((3, epoch, 0), nodes, columns, share, torch.float64).numpy()
        at = np.nonzero(x)
        np.testing.assert_array_equal(entry_mask((3, epoch, 0), nodes[at[0]], at[1], columns, share), whole[at])


def test_an_epoch_of_sparse_features_is_that_of_dense_ones(monkeypatch):
    random = np.random.default_rng(0)
    X = (random.random((90, 60)) < 0.03).astype(np.float32) + 3 * np.eye(90, 60, dtype=np.float32)
    pairs = random.integers(90, size=(2, 60))
    labels = np.arange(90) % 3
    graph = Graph.from_edges(pairs, sp.csr_array(X), labels, {"train": range(40), "val": [60], "test": [61]})
    for architecture in ("gcn", "sage"):
        monkeypatch.setattr("pdadmm.baselines.fullgraph.SPARSE_BELOW", 0.5)
        sparse = GCN(architecture=architecture, hidden=4, iterations=4, dtype="float64").fit(graph)
        monkeypatch.setattr("pdadmm.baselines.fullgraph.SPARSE_BELOW", 0.0)
        dense = GCN(architecture=architecture, hidden=4, iterations=4, dtype="float64").fit(graph)
        for one, two in zip(weights_of(sparse), weights_of(dense)):
            np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-12)


# What the estimators promise beyond the contract


def test_new_nodes_are_inferred_from_their_own_graph():
    graph, other = (csbm(150, num_classes=3, num_features=6, seed=seed) for seed in (2, 2))
    trained = GCN(hidden=8, iterations=30).fit(graph)
    np.testing.assert_array_equal(trained.predict(graph), trained.predict(other))
    bigger = csbm(200, num_classes=3, num_features=6, seed=4)
    assert trained.predict(bigger).shape == (200,)
    with pytest.raises(InputError, match="columns"):
        trained.predict(csbm(50, num_classes=3, num_features=5))


def test_a_file_says_which_network_it_holds(tmp_path):
    graph = csbm(60, num_classes=2, num_features=4, seed=0)
    trained = GCN(architecture="sage", hidden=4, iterations=2).fit(graph)
    trained.save(tmp_path / "m")
    model, augmenter, classes = load_model(tmp_path / "m")
    assert isinstance(model, GNN)
    assert (model.architecture, model.widths, augmenter.hops, classes.tolist()) == ("sage", [4, 4, 2], 0, [0, 1])
    with pytest.raises(InputError, match="a file with a GAMLP; it holds a GNN"):
        solver_class("adam")().load(tmp_path / "m")


def test_settings_that_cannot_be():
    graph = csbm(60, num_classes=2, num_features=4, seed=0)
    for bad in ({"halo": "none"}, {"bits": 3}, {"boundary_share": 1.5}, {"gamma": 1.0}, {"architecture": "gat"}):
        with pytest.raises(InputError) as caught:
            GCN(**bad).fit(graph)
        assert caught.value.argument == next(iter(bad))
    with pytest.raises(InputError, match="chunks"):
        MixGCN(chunks=0).fit(graph)
    with pytest.raises(InputError, match="patience"):
        GCN(patience=3).fit(graph.with_splits({"train": [0, 1], "val": [], "test": []}))
    with pytest.raises(DivergenceError, match="lower learning_rate"):
        GCN(hidden=4, learning_rate=1e20, iterations=20).fit(graph)


@settings(max_examples=15, deadline=None)
@given(graphs(), st.sampled_from(["gcn", "sage"]), st.sampled_from([GCN, MixGCN]))
def test_any_graph_trains(graph, architecture, solver):
    """Isolated and unlabelled nodes, weights, no validation or test nodes; sparse or dense features."""
    if graph.splits is None:
        with pytest.raises(InputError, match=r"graph\.splits"):
            solver().fit(graph)
        return
    trained = solver(architecture=architecture, hidden=3, iterations=2, layers=3).fit(graph)
    assert np.isfinite(trained.predict_proba(graph)).all()


def test_patience_and_time_end_training():
    graph = csbm(150, num_classes=3, num_features=6, seed=2)
    few = GCN(hidden=8, patience=3).fit(graph)
    assert few.summary_["iterations"] == few.stages_[0]["best_iteration"] + 3
    assert GCN(hidden=8, max_seconds=1e-9).fit(graph).summary_["iterations"] == 1


# Partitions and boundaries


@settings(max_examples=40, deadline=None)
@given(edge_lists(), st.integers(1, 6), st.sampled_from([name for name in PARTITIONS if name != "metis"]))
def test_every_node_gets_a_part(edges, parts, method):
    V, pairs, weights = edges
    A = sp.csr_array((weights, tuple(pairs)), shape=(V, V))
    part = partition(A, parts, method)
    assert part.shape == (V,)
    assert ((part >= 0) & (part < parts)).all()
    np.testing.assert_array_equal(part, partition(A, parts, method))
    if method == "bfs":
        counts = np.bincount(part, minlength=min(parts, V))
        assert counts.max() - counts.min() <= 1
    dense = A.toarray() != 0
    by_hand = sum((dense[part == i].any(0) & (part != i)).sum() for i in range(parts))
    assert halo_rows(A, part) == by_hand
    receiver, node = boundaries(A, part)
    assert len({*zip(receiver.tolist(), node.tolist())}) == len(node)


@pytest.mark.skipif(NO_METIS, reason="pymetis is not installed")
def test_metis_cuts_less_than_chance():
    graph = csbm(400, num_classes=4, num_features=3, avg_degree=6, seed=0)
    parts = {method: partition(graph.adjacency, 4, method) for method in PARTITIONS}
    volumes = {method: halo_rows(graph.adjacency, part) for method, part in parts.items()}
    assert volumes["metis"] < volumes["bfs"] < volumes["hash"]
    assert np.bincount(parts["metis"]).max() < 1.1 * 100
    np.testing.assert_array_equal(parts["metis"], partition(graph.adjacency, 4, "auto"))
    assert set(partition(sp.csr_array((3, 3)), 5, "metis").tolist()) <= {0, 1, 2}


def test_metis_missing_is_one_sentence(monkeypatch):
    A = csbm(50, num_classes=2, num_features=3).adjacency
    monkeypatch.setattr(partition_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install pymetis"):
        partition(A, 2, "metis")
    np.testing.assert_array_equal(partition(A, 2, "auto"), partition(A, 2, "bfs"))


@settings(max_examples=40, deadline=None)
@given(edge_lists(), st.integers(1, 4), st.booleans())
def test_cut_rows_are_the_rows_of_the_whole(edges, parts, everything):
    V, pairs, weights = edges
    S = sp.csr_array((weights.astype(float), tuple(pairs.astype(np.int32))), shape=(V, V))
    S.sum_duplicates()
    part = np.random.default_rng(V).integers(parts, size=V)
    halos = [cut(S, part, rank, everything) for rank in range(parts)]
    # what the compiled product takes
    assert all(one.S.indices.dtype == np.int32 for halo in halos for one in (halo.inner, halo.outer))
    for rank, halo in enumerate(halos):
        rebuilt = np.zeros((len(halo.own), V))
        rebuilt[:, halo.own] = halo.inner.S.toarray()
        rebuilt[:, halo.halo] += halo.outer.S.toarray()
        np.testing.assert_array_equal(rebuilt, S.toarray()[halo.own])
        for peer, rows in halo.read.items():  # both ends list the same nodes in the same order
            sent = halos[peer].own[halos[peer].needed[rank].numpy()]
            np.testing.assert_array_equal(halo.halo[rows.numpy()], sent)
        assert set(halo.read) == {peer for peer, other in enumerate(halos) if rank in other.needed}
        if everything and len(halo.own):
            assert len(halo.halo) == V - len(halo.own)
    if not everything:
        assert sum(len(halo.halo) for halo in halos) == halo_rows(S, part)


@settings(max_examples=40, deadline=None)
@given(edge_lists(), st.integers(2, 4), st.floats(0, 1), st.integers(0, 99))
def test_drawn_boundaries_agree_at_both_ends(edges, parts, share, epoch):
    V, pairs, weights = edges
    S = sp.csr_array((weights.astype(float), tuple(pairs)), shape=(V, V))
    S.sum_duplicates()
    part = np.random.default_rng(V).integers(parts, size=V)
    whole = [cut(S, part, rank) for rank in range(parts)]
    drawn = [draw(halo, share, (7, epoch)) for halo in whole]
    for rank, (halo, full) in enumerate(zip(drawn, whole)):
        for peer, rows in halo.read.items():
            sent = drawn[peer].own[drawn[peer].needed[rank].numpy()]
            np.testing.assert_array_equal(halo.halo[rows.numpy()], sent)
            n = len(full.read[peer])
            assert len(rows) == max(1, round(share * n))
            for node in sent:  # a column is kept, scaled
                ours = halo.outer.S.toarray()[:, halo.halo == node]
                theirs = full.outer.S.toarray()[:, full.halo == node]
                np.testing.assert_allclose(ours, theirs * n / len(rows))
        assert set(halo.read) == (set(full.read) if share else set())
        np.testing.assert_array_equal(halo.outer.transposed.toarray(), halo.outer.S.toarray().T)


def test_the_drawn_sum_is_right_on_average():
    graph = csbm(120, num_classes=3, num_features=3, avg_degree=6, seed=0)
    whole = cut(graph.adjacency, np.arange(120) % 2, 0)
    h = torch.from_numpy(np.random.default_rng(0).normal(size=(len(whole.halo), 2)).astype(np.float32))
    total = sum(
        halo.outer(h[torch.from_numpy(np.searchsorted(whole.halo, halo.halo))])
         for halo in (draw(whole, 0.3, (1, epoch)) for epoch in range(300))
    )  # fmt: skip
    torch.testing.assert_close(total / 300, whole.outer(h), rtol=0, atol=1.0)


@given(st.integers(0, 500), st.integers(1, 100), st.integers(1, 16))
def test_the_planner_takes_the_smaller_volume(volume, V, P):
    slices = 2 * V * (P - 1) / P
    assert cheaper(volume, V, P) == ("mix" if slices < volume else "exact")


# Ranks


@pytest.fixture(scope="module")
def alone():
    """The cases that must equal one process, each fitted once in this very process."""
    made, threads = {}, torch.get_num_threads()

    def fit(name: str):
        if name not in made:
            torch.set_num_threads(1)
            chosen = estimator(name).set_params(eval_every=1000)
            made[name] = chosen.fit(mpi_gnn.graph_of(mpi_gnn.CASES[name][1]))
            torch.set_num_threads(threads)
        return made[name]

    return fit


@pytest.fixture(scope="module")
def launched(tmp_path_factory) -> Path:
    """One launch of 4 ranks runs every case on 1 to 4 of them."""
    folder = tmp_path_factory.mktemp("ranks")
    done = mpiexec(4, HERE / "mpi_gnn.py", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def with_mpi(test):
    for mark in NEEDS_MPI:
        test = mark(test)
    return test


def state_and_told(folder: Path, name: str, ranks: int):
    for rank in range(ranks):
        state = dict(np.load(folder / str(ranks) / f"{name}.{rank}.npz"))
        yield state, json.loads((folder / str(ranks) / f"{name}.{rank}.json").read_text())


@with_mpi
@pytest.mark.parametrize(("ranks", "name"), [(r, name) for r, job in mpi_gnn.JOBS.items() for name in job
                                             if name in mpi_gnn.EXACT])  # fmt: skip
def test_ranks_agree_with_one_process(alone, launched, ranks, name):
    expected, history = alone(name).model_.state_dict(), alone(name).history_
    for state, told in state_and_told(launched, name, ranks):
        for key, array in state.items():
            np.testing.assert_allclose(array, expected[key].numpy(), rtol=0, atol=1e-9, err_msg=key)
        assert told["summary"]["ranks"] == ranks
        for one, other in zip(told["history"], history, strict=True):
            assert one["objective"] == pytest.approx(other["objective"], abs=1e-9)
        assert told["summary"]["train_accuracy"] == alone(name).summary_["train_accuracy"]


@with_mpi
@pytest.mark.parametrize("name", mpi_gnn.APPROXIMATE)
def test_other_halos_are_their_plain_form(launched, name):
    graph, chosen = mpi_gnn.graph_of(mpi_gnn.CASES[name][1]), estimator(name)
    part = partition(graph.adjacency, 3, chosen.partition)
    expected = gnn_reference.train(graph, chosen, part, chosen.iterations)
    for state, _ in state_and_told(launched, name, 3):
        for l, layer in enumerate(expected):
            for kind, array in zip(("weight", "bias"), layer):
                np.testing.assert_allclose(state[f"layers.{l}.{kind}"], array.numpy(), rtol=0, atol=1e-9)


def bytes_by_formula(name: str, ranks: int) -> int:
    """Bytes of an iteration, all ranks: halo or slices both ways, and the ring that sums gradients and loss."""
    graph, s = mpi_gnn.graph_of(mpi_gnn.CASES[name][1]), estimator(name)
    V, d, hidden_layers = graph.num_nodes, s.hidden, s.layers - 1
    halo = getattr(s, "halo", "mix")
    if halo == "auto":
        part = partition(graph.adjacency, ranks, s.partition)
        halo = cheaper(halo_rows(graph.adjacency, part), V, ranks)
    if halo == "mix":
        blocks = [len(run_of(V, rank, ranks)) for rank in range(ranks)]
        slices = [len(run_of(d, rank, ranks)) for rank in range(ranks)]
        words = 2 * (V * d - sum(n * w for n, w in zip(blocks, slices)))  # there and back
        layer = 8 * words
    else:
        part = partition(graph.adjacency, ranks, s.partition)
        counts = np.bincount(part, minlength=ranks)
        dense = graph.adjacency.toarray() != 0
        pairs = [
            int((dense[part == i].any(0) & (part == j)).sum()) for i in range(ranks) for j in range(ranks) if i != j
        ]
        if halo == "broadcast":
            pairs = [int(counts[j]) for i in range(ranks) for j in range(ranks) if i != j and counts[i]]
        if halo == "sampled":
            pairs = [min(n, max(1, round(s.boundary_share * n))) if s.boundary_share else 0 for n in pairs]
        layer = sum(8 * n * d for n in pairs)
        if halo == "quantized":
            layer = sum(16 * n + math.ceil(n * d * s.bits / 8) for n in pairs)
    widths = [graph.num_features, *[d] * hidden_layers, graph.num_classes]
    copies = 2 if s.architecture == "sage" else 1
    numbers = 1 + sum((copies * m + 1) * n for m, n in itertools.pairwise(widths))
    return 2 * hidden_layers * layer + ranks * ring_bytes(8 * numbers, ranks)


@with_mpi
@pytest.mark.parametrize(("ranks", "name"), [(r, name) for r, job in mpi_gnn.JOBS.items() for name in job])
def test_bytes_are_those_of_the_formulas(launched, ranks, name):
    for _, told in state_and_told(launched, name, ranks):
        summary = told["summary"]
        assert summary["bytes_per_iteration"] == bytes_by_formula(name, ranks)
        assert summary["bytes_sent"] == summary["iterations"] * summary["bytes_per_iteration"]
        assert told["history"][-1]["bytes"] == summary["bytes_sent"]
        kinds = [summary[f"seconds_{kind}"] for kind in ("sparse", "dense", "communication", "waiting", "sampling")]
        assert min(kinds) >= 0
        assert (summary["seconds_sampling"] > 0) == (getattr(estimator(name), "halo", "mix") == "sampled")
        assert sum(kinds) <= summary["seconds_training"] * (1 + 1e-9)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_the_docstrings_run(name):
    assert doctest.testmod(importlib.import_module(f"pdadmm.baselines.{name}")).failed == 0
