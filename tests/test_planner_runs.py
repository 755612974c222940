"""Predicted beside measured for every solver: bytes are the ledger's, or the disk's; memory and seconds grow."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mpi_gnn import graph_of
from thread_transport import run_ranks

import pdadmm
from pdadmm.cli import main
from pdadmm.disk.blocks import DiskArray
from pdadmm.files import resident_bytes
from pdadmm.gist.homes import Homes
from pdadmm.history import bytes_of_iteration
from pdadmm.models.gnn import operator_of
from pdadmm.planner import backprop, disk, sampled
from pdadmm.planner.gist import gist_bytes, gist_memory
from pdadmm.planner.job import Job
from pdadmm.planner.machine import load_machine
from pdadmm.planner.report import sentence
from pdadmm.planner.runs import backprop_run, gist_run, sampled_run
from pdadmm.planner.simulate import Link
from pdadmm.sampling.neighbours import NeighbourSampler
from pdadmm.sampling.walks import WalkSampler
from pdadmm.solvers import SOLVERS

ROOT = Path(__file__).parent.parent
LINK = Link(1e-4, 1e9)


def trained(solver, graph, ranks):
    """Train on so many ranks; return the checked settings, the history and the summary."""

    def work(transport):
        own = type(solver)(**solver.get_params())
        checked = own._checked(transport)
        problem = own._problem(checked, graph, None, transport)[0]
        outcome = own._train(problem, checked, transport, lambda row: None)
        return own.checked(), outcome.history, outcome.summary | {"ranks": ranks}

    return run_ranks(ranks, work)[0]


def steps_of(history) -> set[int]:
    sent = [0, *(row["bytes"] for row in history)]
    return {later - earlier for earlier, later in itertools.pairwise(sent)}


# Bytes: the ledger is the judge


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from([pdadmm.GD, pdadmm.Adam, pdadmm.Adagrad, pdadmm.Adadelta]), st.integers(1, 4), st.integers(1, 7),
    st.integers(1, 3), st.sampled_from([None, 1, 5, 7, 1000]), st.sampled_from(["float32", "float64"]),
)  # fmt: skip
def test_bytes_of_backpropagation_are_the_ledgers(solver, layers, hidden, ranks, batch, dtype):
    graph = graph_of("csbm")
    estimator = solver(layers=layers, hidden=hidden, hops=1, iterations=2, batch_size=batch, dtype=dtype)
    checked, history, _ = trained(estimator, graph, ranks)
    runs = ({"ranks": ranks, "device": device} for device in ("cpu", "cuda"))
    assert steps_of(history) == {backprop_run(checked, graph, run, None).sent for run in runs}


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(["neighbour", "cluster", "walk"]), st.sampled_from(["gcn", "sage"]), st.integers(1, 3),
    st.integers(1, 7), st.integers(1, 3), st.sampled_from([None, 1, 5, 1000]), st.integers(1, 3),
    st.sampled_from([1, 7, 30]),
)  # fmt: skip
def test_bytes_of_samples_are_the_ledgers(sampler, architecture, layers, hidden, ranks, batch, batches, clusters):
    graph = graph_of("csbm")
    own = {
        "neighbour": {"batch_size": batch},
        "cluster": {"batches": batches, "clusters": clusters, "clusters_per_batch": 2},
        "walk": {"batches": batches, "batch_size": batch},
    }[sampler]
    estimator = pdadmm.SampledGNN(
        sampler=sampler, architecture=architecture, layers=layers, hidden=hidden, iterations=2, **own
    )
    checked, history, summary = trained(estimator, graph, ranks)
    assert steps_of(history) == {sampled_run(checked, graph, summary, None).sent}


@pytest.mark.parametrize("architecture", ["gcn", "sage"])
@pytest.mark.parametrize("widths", [[4, 3, 2], [2, 3, 4, 3]])
def test_bytes_of_a_round_of_gist_are_the_mean_over_all_draws(architecture, widths):
    class Ranks:
        rank = 0

        def __init__(self, size):
            self.size = size

    orders = [list(itertools.permutations(range(n))) for n in widths[1:-1]]
    for parts, ranks in itertools.product((1, 2, 3), (1, 2, 3, 4)):
        homes = Homes(architecture, widths, parts, torch.float32, Ranks(ranks))
        found = []
        for drawn in itertools.product(*orders):
            groups = [[np.sort(part) for part in np.array_split(np.array(order), parts)] for order in drawn]
            found.append(2 * homes.scatter_bytes(groups) + homes.output_bytes())
        assert homes.round_bytes() == pytest.approx(np.mean(found), rel=1e-12)


@pytest.mark.parametrize(("ranks", "parts"), [(1, 2), (2, 2), (3, 4)])
def test_bytes_of_gist_are_the_ledgers_where_nothing_is_drawn(ranks, parts):
    # one hidden layer: whole rows travel, as many whichever are drawn, but for how many stay at home
    graph = graph_of("csbm")
    estimator = pdadmm.GIST(layers=2, hidden=24, parts=parts, local_steps=2, clusters=4, iterations=10)
    checked, history, summary = trained(estimator, graph, ranks)
    told = gist_run(checked, graph, summary, None).sent
    assert bytes_of_iteration("gist", history.column("bytes")) == pytest.approx(told, rel=0.15)
    assert (told == 0) == (ranks == 1)
    drawn = summary["bytes_per_iteration"]
    assert drawn == told


@settings(max_examples=8, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 6), st.integers(2, 300), st.sampled_from(["exact", "gradient"]),
    st.sampled_from(["none", "first-stage", "all-stages"]), st.sampled_from(["float32", "float64"]),
)  # fmt: skip
def test_bytes_from_disk_are_those_of_the_files(tmp_path_factory, layers, hidden, nodes, form, acceleration, dtype):
    folder = tmp_path_factory.mktemp("disk")
    np.save(folder / "X.npy", np.random.default_rng(0).standard_normal((nodes, 5)))
    solver = pdadmm.PDADMMG(
        layers=layers, hidden=hidden, stages=(layers,), iterations=3, form=form, acceleration=acceleration,
        dtype=dtype, threads=1,
    ).fit(DiskArray(folder / "X.npy"), np.arange(nodes) % 2, memory="65MiB", scratch=folder / "scratch")  # fmt: skip
    job = disk.from_disk(Job(
        nodes, nodes, (5, *[hidden] * (layers - 1), 2), 8 if dtype == "float64" else 4, form=form,
        accelerated=acceleration != "none",
    ))  # fmt: skip
    block = disk.block_nodes(job, 65 << 20)
    assert block == solver.summary_["block_nodes"]
    assert solver.summary_["disk_bytes_per_iteration"] == disk.disk_bytes(job, block)


def test_bytes_from_disk_count_every_block():
    job = disk.from_disk(Job(1000, 1000, (5, 4, 3)))
    header, X = 64, 4 * 1000 * 5
    # z_1 and q_1 take 16,000 bytes each, z_2 12,000, and of the file the next multiple of 64
    assert disk.disk_bytes(job, 1000) == 2 * (header + 2 * 16000 + 12032) + X
    # 300 nodes: z_2 takes 3,600 bytes, 3,648 of the file; 100 nodes: 1,200 and 1,216
    assert disk.disk_bytes(job, 300) == 2 * (3 * (header + 2 * 4800 + 3648) + header + 2 * 1600 + 1216) + X


# Batches as expected


@pytest.mark.parametrize("architecture", ["gcn", "sage"])
def test_expected_batches_are_near_the_drawn_ones(architecture):
    graph = pdadmm.csbm(2000, num_classes=4, num_features=3, avg_degree=12, seed=0)
    S, train = operator_of(graph, architecture), graph.splits["train"]
    diagonal = architecture == "gcn"

    def mean(sampler, steps):
        drawn = [sampler.draw(1, step, 0, 1)[0] for step in range(steps)]
        return [
            [np.mean([getter(batch, layer) for batch in drawn]) for getter in (
                lambda batch, layer: batch.operators[layer].S.shape[0],
                lambda batch, layer: batch.operators[layer].S.shape[1],
                lambda batch, layer: batch.operators[layer].S.nnz,
            )]
            for layer in (0, 1)
        ]  # fmt: skip

    sampler = NeighbourSampler(S, train, (4, 7), 50, 0)
    told = sampled.neighbour_pieces(graph.adjacency, train, (4, 7), 50, diagonal)
    for piece, found in zip(told, mean(sampler, 8)):
        np.testing.assert_allclose([piece.targets, piece.sources, piece.entries], found, rtol=0.15)
    walks = WalkSampler(S, train, 3, 100, 2, 1, 0)
    told = sampled.walk_pieces(graph.adjacency, train, 3, 100, 2, diagonal)
    for piece, found in zip(told, mean(walks, 8)):
        np.testing.assert_allclose([piece.targets, piece.sources], found[:2], rtol=0.15)


def test_every_neighbour_drawn_is_the_neighbourhood():
    star = sp.csr_array(np.array([[0, 1, 1, 1], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]], dtype=float))
    first, last = sampled.neighbour_pieces(star, np.array([0]), (9, 9), 1, False)
    assert (last.targets, last.entries) == (1.0, 3.0)
    assert last.sources == pytest.approx(4.0)
    assert (first.targets, first.entries) == pytest.approx((4.0, 6.0))


# Memory and seconds


@settings(max_examples=30, deadline=None)
@given(st.integers(500, 10**5), st.integers(16, 300), st.integers(2, 8), st.booleans(), st.sampled_from("Vn"))
def test_memory_and_seconds_grow_with_the_network(V, n, L, dropout, what):
    known = load_machine(ROOT / "examples")

    def figures(V, n):
        widths = (32, *[n] * (L - 1), 5)
        job = backprop.BackpropJob(V, 2 * V, widths, V, backprop.OPTIMISERS["Adam"], dropout)
        pieces = sampled.whole_pieces(V, 10 * V, L)
        one = sampled.SampledJob(V, 10 * V, widths, 2, 1, pieces, 32.0, dropout=dropout)
        streamed = disk.from_disk(Job(V, 2 * V, widths))
        return [
            backprop.pass_memory(job, 1), backprop.pass_seconds(job, 1, known, LINK, 1),
            sampled.epoch_memory(one),
            disk.pass_memory(streamed, 500), disk.pass_seconds(streamed, 500, known),
        ]  # fmt: skip

    small, large = figures(V, n), figures(2 * V if what == "V" else V, 2 * n if what == "n" else n)
    assert all(after >= before for before, after in zip(small, large))


def test_memory_of_backpropagation_by_hand():
    job = backprop.BackpropJob(100, 300, (10, 20, 20, 5), 100, backprop.OPTIMISERS["Adam"])
    W = 20 * 11 + 20 * 21 + 5 * 21
    held = 4 * 300 * 10 + 6 * 4 * W + 16 * 300
    assert backprop.pass_memory(job, 1) == held + 4 * 2 * 20 * 200 + 2 * 4 * 300 * 5
    dropped = dataclasses.replace(job, dropout=True, rows=100)
    step = 100 * (3 * 4 * 40 + 2 * 4 * 20 + 3 * 4 * 5)
    assert backprop.pass_memory(dropped, 1) == 4 * 100 * 10 + 6 * 4 * W + 16 * 100 + 100 * 40 + step


def test_gists_workers_share_the_network():
    graph = graph_of("csbm")
    settings_ = pdadmm.GIST(hidden=64, layers=3, parts=4).checked()
    from pdadmm.planner import runs

    pieces = sampled.whole_pieces(graph.num_nodes, len(graph.indices), 3)
    wide = runs._sampled_job(settings_, graph, 1, pieces)
    jobs = [runs.gist.GISTJob(wide, "gcn", parts, 5) for parts in (1, 4)]
    alone, shared = (gist_memory(job, 4) for job in jobs)
    assert shared < alone
    assert gist_bytes(jobs[0], 1) == 0 < gist_bytes(jobs[1], 4)


# Every solver


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_tells_what_it_was_to_need(solver, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PDADMM_MACHINE", str(tmp_path))
    told = tmp_path / "summary.json"
    run = ["--layers", "2", "--hidden", "8", "--iterations", "2", "--quiet", "--summary", str(told)]
    assert main(["train", "--dataset", "csbm:80", "--solver", solver, *run]) == 0
    assert "predicted / measured, an iteration: bytes 0 B / 0 B, memory " in capsys.readouterr().out
    summary = json.loads(told.read_text())
    found = summary["predicted"]
    assert found["bytes_per_iteration"] == 0
    timed = solver not in ("sage", "gist")
    assert found.get("seconds_per_iteration", "no model") == (None if timed else "no model")
    # the peak of this process is that of all tests before
    assert 0.5 * resident_bytes() < found["peak_rss_bytes"] < 2 * resident_bytes()


@pytest.mark.parametrize("more", [[], ["--products", "bf16"], ["--products", "tf32"]])
def test_a_run_from_disk_tells_its_bytes(more, tmp_path, capsys):
    told = tmp_path / "summary.json"
    run = ["--layers", "3", "--hidden", "8", "--hops", "1", "--iterations", "3", "--quiet", "--summary", str(told)]
    disk_ = ["--memory", "80MiB", "--scratch", str(tmp_path / "scratch")]
    assert main(["train", "--dataset", "csbm:80", *run, *disk_, *more]) == 0
    summary = json.loads(told.read_text())
    assert summary["predicted"]["disk_bytes_per_iteration"] == summary["disk_bytes_per_iteration"] > 0
    assert (summary["predicted"]["peak_rss_bytes"] is None) == bool(more)
    assert ", disk " in sentence(summary, 0)
    assert ", disk " in capsys.readouterr().out
