"""A GNN trained on samples from disk: stored features, evaluation, and the run in memory where all fits."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from pdadmm import Graph, InputError, SampledGNN, csbm
from pdadmm.augment import Augmenter
from pdadmm.augment.scaling import SCALINGS
from pdadmm.baselines.shards import scores, tally
from pdadmm.cli import main
from pdadmm.disk.blocks import DiskArray, Traffic
from pdadmm.disk.buffer import Cut
from pdadmm.disk.dataset import GraphFolder
from pdadmm.disk.features import ScaledFeatures, fit_scaler
from pdadmm.disk.graph import DiskGraph, write_graph
from pdadmm.history import History
from pdadmm.models.gnn import ARCHITECTURES, Aggregation, infer, init_weights, operator_of
from pdadmm.sampling import inference
from pdadmm.sampling.buffered import OperatorRows
from pdadmm.sampling.network import DENSE
from pdadmm.sampling.states import BufferStates

MEMORY = "300MiB"
GRAPH = csbm(150, num_classes=3, num_features=6, seed=2)
SMALL = {"hidden": 8, "iterations": 4, "batch_size": 30, "fanouts": (3, 2)}
BUFFER = {"disk_neighbours": "buffer"}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No waiting for the disk: nobody pulls the plug here."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


def opened(graph: Graph, folder: Path) -> DiskGraph:
    write_graph(graph, folder)
    return DiskGraph(folder)


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
    """From a folder and from a graph in memory alike, and whichever way neighbours are drawn."""
    memory = SampledGNN(**SMALL | more).fit(GRAPH)
    write_graph(GRAPH, tmp_path / "g")
    with GraphFolder(tmp_path / "g") as folder:
        disk = SampledGNN(**SMALL | more).fit(folder, memory=MEMORY, scratch=tmp_path / "run")
    again = SampledGNN(**SMALL | more | BUFFER).fit(GRAPH, memory=MEMORY, scratch=tmp_path / "other")
    assert outcome(disk) == outcome(memory) == outcome(again)
    for name in ("val_accuracy", "test_accuracy", "val_loss"):
        assert disk.history_.column(name) == pytest.approx(memory.history_.column(name), rel=1e-6)
    np.testing.assert_array_equal(disk.predict_proba(GRAPH), memory.predict_proba(GRAPH))
    for run in ("run", "other"):  # what is large has gone, checkpoints stay
        assert {path.name[:9] for path in (tmp_path / run).iterdir()} == {"iteration"}


def test_a_small_buffer_reads_what_the_formula_says_and_holds_no_more(tmp_path):
    share, cut_off = 0.25, SMALL | BUFFER | {"iterations": 5, "eval_every": 5}
    write_graph(GRAPH, tmp_path / "g")
    with GraphFolder(tmp_path / "g") as folder:
        run = SampledGNN(**cut_off, buffer_share=share).fit(folder, memory=MEMORY, scratch=tmp_path / "run")
    told, rows = run.summary_, run.summary_["block_nodes"]
    total = 4 * (GRAPH.features.size + GRAPH.indices.size)
    assert told["graph_bytes"] == total
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


def cut_off(solver: SampledGNN, scratch: Path, iteration: int) -> SampledGNN:
    """Fit until an iteration has ended, then go on from the checkpoint."""

    def watch(row) -> None:
        if row["iteration"] == iteration:
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        solver.fit(GRAPH, memory=MEMORY, scratch=scratch, watch=watch)
    return solver.fit(GRAPH, memory=MEMORY, scratch=scratch, resume=True)


def test_a_run_that_was_cut_off_goes_on_with_the_same_bits(tmp_path):
    solver = SampledGNN(**SMALL, **BUFFER, buffer_share=0.3)
    expected = outcome(solver.fit(GRAPH, memory=MEMORY, scratch=tmp_path / "whole"))
    assert outcome(solver.fit(GRAPH, memory=MEMORY, scratch=tmp_path / "again")) == expected
    other = SampledGNN(**SMALL, **BUFFER, buffer_share=0.3, seed=1)
    assert outcome(other.fit(GRAPH, memory=MEMORY, scratch=tmp_path / "seed")) != expected
    assert outcome(cut_off(solver, tmp_path / "cut", iteration=3)) == expected
    with pytest.raises(InputError, match=r"scratch = .*a folder without checkpoints"):
        solver.fit(GRAPH, memory=MEMORY, scratch=tmp_path / "cut")
    another = csbm(150, num_classes=3, num_features=6, seed=3)
    with pytest.raises(InputError, match="fingerprint was"):
        solver.fit(another, memory=MEMORY, scratch=tmp_path / "cut", resume=True)


def test_a_small_buffer_learns(tmp_path):
    graph = csbm(200, num_classes=3, num_features=8, avg_degree=12, seed=0)
    disk = SampledGNN(iterations=12, batch_size=60, hidden=16, buffer_share=0.5, **BUFFER)
    disk.fit(graph, memory=MEMORY, scratch=tmp_path)
    majority = np.bincount(graph.labels[graph.splits["test"]]).max() / len(graph.splits["test"])
    assert disk.score(graph) > majority + 0.2
    assert disk.summary_["test_accuracy"] == pytest.approx(disk.score(graph), abs=1e-9)


@pytest.mark.parametrize(
    ("more", "limits", "words"),
    [
        ({"sampler": "walk", "fanouts": None}, {"memory": MEMORY}, "sampler = walk: must be neighbour with memory"),
        (
            {"sampler": "cluster", "fanouts": None, "batch_size": None}, {"memory": MEMORY},
            "sampler = cluster: must be neighbour with memory",
        ),
        ({"buffer_share": 0.5}, None, "buffer_share = 0.5: must be left out without memory"),
        (BUFFER | {"buffer_share": 0.001}, {"memory": MEMORY}, r"buffer_share = 0.001: must be enough for two parti"),
        (BUFFER, {"memory": "40MiB"}, r"memory = 40MiB: .*; give at least (\d+)MiB"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, more, limits, words):
    given = {} if limits is None else limits | {"scratch": tmp_path}
    with pytest.raises(InputError, match=words) as caught:
        SampledGNN(**SMALL | more).fit(GRAPH, **given)
    assert not list(tmp_path.iterdir())
    if "at least" in caught.value.remedy:  # and that much does
        least = caught.value.remedy.split()[3].rstrip(",")
        assert SampledGNN(**SMALL | more).fit(GRAPH, memory=least, scratch=tmp_path).summary_["partitions"] > 1


def test_a_folder_needs_memory_and_a_split(tmp_path):
    write_graph(GRAPH.with_splits(None), tmp_path / "g")
    with pytest.raises(InputError, match="split = not given"):
        GraphFolder(tmp_path / "g")
    with GraphFolder(tmp_path / "g", "random:5") as folder:
        with pytest.raises(InputError, match="memory, scratch = None: must be given with a GraphFolder"):
            SampledGNN(**SMALL).fit(folder)
        with pytest.raises(InputError, match="must be left out with a graph"):
            SampledGNN(**SMALL).fit(folder, GRAPH.labels, memory=MEMORY, scratch=tmp_path / "run")


@pytest.mark.parametrize("way", ["all", "buffer"])
def test_a_file_that_is_cut_off_while_it_is_read_is_named(tmp_path, way):
    write_graph(GRAPH, tmp_path / "g")
    with GraphFolder(tmp_path / "g") as folder:

        def shorten(row) -> None:
            os.truncate(tmp_path / "g" / "indices.npy", 200)

        solver = SampledGNN(**SMALL, buffer_share=0.25, disk_neighbours=way)
        with pytest.raises(InputError, match=r"file = .*indices.npy: must be a file that can be read"):
            solver.fit(folder, memory=MEMORY, scratch=tmp_path / "r", watch=shorten)


def test_the_command_line_trains_from_a_folder(tmp_path, capsys):
    write_graph(GRAPH, tmp_path / "g")
    common = ["train", "--dataset", str(tmp_path / "g"), "--solver", "sage", "--hidden", "8", "--iterations", "3"]
    disk = ["--memory", MEMORY, "--scratch", str(tmp_path / "run"), "--quiet"]
    history = ["--history", str(tmp_path / "disk.jsonl")]
    share = ["--buffer-share", "0.25", "--disk-neighbours", "all", "--split", "random:9", "--split-seed", "1"]
    assert main([*common, *disk, *history, *share]) == 0
    assert "sage on" in capsys.readouterr().out
    assert len(History.from_jsonl(tmp_path / "disk.jsonl")) == 3
    assert main([*common, *disk, "--sampler", "walk"]) == 2
    assert "sampler = walk" in capsys.readouterr().err
