"""Neighbours among all of a graph on the disk: the batches and weights of the run in memory, within a share of it."""

from __future__ import annotations

import itertools
import math
import os
from unittest import mock

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_disk_buffer import MANY, opened, plain_graphs, quick  # noqa: F401
from test_disk_sampling import GRAPH, MEMORY, SMALL, cut_off, outcome

from pdadmm import Graph, InputError, SampledGNN
from pdadmm.disk import scattered
from pdadmm.disk.blocks import DiskArray, Traffic
from pdadmm.disk.scattered import ScatteredPool, ScatteredReader, ScatteredRows
from pdadmm.kernels import scattered as kernel
from pdadmm.models.gnn import ARCHITECTURES, Aggregation, operator_of
from pdadmm.sampling import holdings
from pdadmm.sampling.buffered import OperatorRows
from pdadmm.sampling.holdings import StreamHolding
from pdadmm.sampling.neighbours import NeighbourSampler
from pdadmm.sampling.network import Dropout, Features, layer
from pdadmm.sampling.stored import StoredFeatures, StoredSampler, most_read
from pdadmm.sampling.streamed import StreamedSolver


def disk_array(folder, array: np.ndarray) -> DiskArray:
    np.save(folder / "a.npy", array)
    return DiskArray(folder / "a.npy", Traffic())


# Scattered rows

WAYS = [False, *([True] if kernel.available() else [])]  # in C, where that was built


@MANY
@given(
    lengths=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=12),
    width=st.sampled_from([None, 1, 3]), stage=st.integers(0, 200), gap=st.integers(0, 40),
)  # fmt: skip
def test_ranges_of_rows_are_read_whatever_lies_between_them(tmp_path_factory, lengths, width, stage, gap):
    skips, counts = np.array(lengths).T
    starts = np.cumsum(skips + counts) - counts
    shape = (int(starts[-1] + counts[-1]) + 2,) + (() if width is None else (width,))
    whole = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    expected = whole[np.concatenate([np.arange(a, a + n) for a, n in zip(starts, counts)])]
    array, read = disk_array(tmp_path_factory.mktemp("rows"), whole), []
    with array, mock.patch.object(scattered, "GAP_BYTES", gap):
        for compiled in WAYS:
            out, before = np.zeros_like(expected), array.traffic.read
            with mock.patch.object(kernel, "available", lambda compiled=compiled: compiled):
                ScatteredReader(stage).read(array, starts, counts, out)
            np.testing.assert_array_equal(out, expected)
            read.append(array.traffic.read - before)
    through = sum(skip for skip, count in lengths[1:])
    assert len(set(read)) == 1
    assert expected.nbytes <= read[0] <= expected.nbytes + through * array.row_bytes


@pytest.mark.parametrize("compiled", WAYS)
def test_neighbouring_rows_come_in_one_read_and_wide_gaps_are_left_out(compiled, tmp_path, monkeypatch):
    monkeypatch.setattr(kernel, "available", lambda: compiled)
    with disk_array(tmp_path, np.arange(20_000.0)) as array:
        starts, out = np.array([5, 6, 10, 15_000]), np.empty(4)
        ScatteredReader(1000).read(array, starts, np.ones(4, np.int64), out)
        np.testing.assert_array_equal(out, starts)
        assert array.traffic.read == 8 * (6 + 1)


@pytest.mark.parametrize("compiled", WAYS)
def test_a_file_that_ends_early_is_named(compiled, tmp_path, monkeypatch):
    monkeypatch.setattr(kernel, "available", lambda: compiled)
    with disk_array(tmp_path, np.arange(5000.0)) as array:
        os.truncate(array.path, array.data_start + 8 * 4000)
        out = np.empty(2)
        with pytest.raises(InputError, match=r"a\.npy.*ends too early"):
            ScatteredReader(1000).read(array, np.array([3, 4500]), np.ones(2, np.int64), out)


# Batches


@MANY
@given(
    graph=plain_graphs(), architecture=st.sampled_from(list(ARCHITECTURES)), entries=st.integers(1, 20),
    fanouts=st.lists(st.integers(1, 3), min_size=1, max_size=3), size=st.integers(1, 5), window=st.integers(1, 3),
    seed=st.integers(0, 3),
)  # fmt: skip
def test_the_batches_are_those_of_memory(tmp_path_factory, graph, architecture, entries, fanouts, size, window, seed):
    """Nodes and entries, bit for bit, out of no more of the adjacency than was asked for."""
    train, most = graph.splits["train"], max(entries, int(np.diff(graph.indptr).max(initial=0)))
    with opened(graph, tmp_path_factory.mktemp("graph") / "g") as disk:
        columns = {"columns": (DiskArray(disk.indices.path, Traffic()), disk.indptr())}
        halves = [ScatteredRows(columns, most, ScatteredReader(64)) for _ in range(2)]
        assert sum(half.nbytes for half in halves) == 2 * most * disk.indices.dtype.itemsize
        rows = OperatorRows(disk.indptr(), architecture, "float32")
        ours = StoredSampler(rows, halves, entries, train, fanouts, size, seed, window)
        theirs = NeighbourSampler(operator_of(graph, architecture), train, fanouts, size, seed)
        assert ours.steps == theirs.steps
        for iteration in (1, 4):
            ours.begin(iteration)
            for step in range(ours.steps):
                (one,), (other,) = ours.drawn(step), theirs.draw(iteration, step, 0, 1)
                assert one.count == other.count
                for name in ("nodes", "outputs"):
                    np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
                assert len(one.sources) == len(other.sources) == len(fanouts)
                for mine, memorys in zip(one.sources, other.sources):
                    np.testing.assert_array_equal(mine, memorys)
                for mine, memorys in zip(one.operators, other.operators):
                    for name in ("data", "indices", "indptr"):
                        np.testing.assert_array_equal(getattr(mine.S, name), getattr(memorys.S, name))
        columns["columns"][0].close()


# Features


def stored_features(folder, X: np.ndarray, sparse: bool, cache: int, numbers: int, chunk: int) -> StoredFeatures:
    """X (V, F) on the disk; ``cache`` numbers of it stay, ``numbers`` are read at once."""
    if sparse:
        rows = sp.csr_array(X)
        starts = rows.indptr.astype(np.int64)
        np.save(folder / "columns.npy", rows.indices)
        files = {"features": (disk_array(folder, rows.data), starts)}
        files["feature columns"] = DiskArray(folder / "columns.npy"), starts
        numbers = max(numbers, int(np.diff(starts).max()))
    else:
        starts, files = None, {"features": (disk_array(folder, X), None)}
    kept = most_read(np.arange(len(X) + 1), starts, cache)
    stay, *halves = (ScatteredRows(files, room, ScatteredReader(30)) for room in (cache, numbers, numbers))
    return StoredFeatures(stay, kept, halves, X.shape[1], starts, numbers, chunk)


@MANY
@given(
    V=st.integers(1, 12), sparse=st.booleans(), cache=st.integers(0, 20), numbers=st.integers(1, 5),
    chunk=st.integers(1, 5), architecture=st.sampled_from(list(ARCHITECTURES)), seed=st.integers(0, 9),
)  # fmt: skip
def test_a_first_layer_in_chunks_is_that_of_memory(
    tmp_path_factory, V, sparse, cache, numbers, chunk, architecture, seed
):
    """z and the gradient of W, with and without dropout, for batch after batch."""
    random = np.random.default_rng(seed)
    X = random.standard_normal((V, 9)) * (random.random((V, 9)) < (0.1 if sparse else 0.9))
    X[0, 0] = 1.0  # not empty
    ours = stored_features(tmp_path_factory.mktemp("features"), X, sparse, cache, numbers, chunk)
    copies = ARCHITECTURES[architecture].copies
    b = torch.zeros(2, dtype=torch.float64)
    for dropout in (None, Dropout(seed, 1, 0.5)):
        nodes = random.permutation(V)[: random.integers(1, V + 1)]
        S = Aggregation(
            sp.random_array((random.integers(1, len(nodes) + 1), len(nodes)), density=0.5, rng=random).tocsr()
        )
        found = []
        for features in (ours, Features(X)):
            W = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 9 * copies))).requires_grad_()
            z = layer(architecture, S, features.rows(nodes, dropout), W, b)
            found += [z, *torch.autograd.grad((z**2).sum(), W)]
        for mine, memorys in zip(found[:2], found[2:]):
            torch.testing.assert_close(mine, memorys, rtol=1e-10, atol=1e-12)


def test_the_way_back_reads_what_is_no_longer_there(tmp_path):
    """Of five blocks the last two still are."""
    X = np.random.default_rng(0).standard_normal((10, 4))
    features = stored_features(tmp_path, X, False, 0, 2, 1)
    traffic = features.halves[0].pools["features"].array.traffic
    rows = features.rows(np.arange(10)[::-1].copy())
    for back, blocks in ((False, 5), (True, 3)):
        before = traffic.read
        seen = np.zeros((10, 4))
        for positions, x in rows.chunks(back):
            seen[positions] = x.numpy()
        np.testing.assert_array_equal(seen, X[::-1])
        assert traffic.read - before == blocks * 2 * 4 * 8


def test_nodes_with_most_neighbours_stay():
    indptr = np.array([0, 2, 7, 8, 12])  # degrees 2, 5, 1, 4
    assert most_read(indptr, None, 2).tolist() == [1, 3]
    assert most_read(indptr, np.array([0, 1, 4, 5, 7]), 5).tolist() == [1, 3]
    assert most_read(indptr, np.array([0, 1, 4, 5, 7]), 4).tolist() == [1]
    assert not most_read(indptr, None, 0).size


# Whole runs


def sparse_graph() -> Graph:
    X = sp.random_array((150, 40), density=0.1, rng=np.random.default_rng(0), dtype=np.float32).toarray()
    return Graph(GRAPH.indptr, GRAPH.indices, None, X, GRAPH.labels, GRAPH.splits)


@pytest.mark.parametrize("graph", [GRAPH, sparse_graph()], ids=["dense", "sparse"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("layers", [2, 3])
def test_the_weights_are_those_of_memory(tmp_path, graph, architecture, layers):
    """To the order of sums, at a quarter of features and edges, with dropout."""
    settings = SMALL | {"architecture": architecture, "layers": layers, "dtype": "float64", "scaling": "none"}
    settings["fanouts"] = (3, 2, 2)[:layers]
    memory = SampledGNN(**settings).fit(graph)
    disk = SampledGNN(**settings, buffer_share=0.25).fit(graph, memory=MEMORY, scratch=tmp_path)
    assert disk.summary_["buffer_bytes"] < disk.summary_["graph_bytes"] / 4
    for mine, memorys in zip(disk.model_.state_dict().values(), memory.model_.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, memorys, rtol=1e-10, atol=1e-10)
    for name in ("objective", "val_loss", "test_accuracy"):
        assert disk.history_.column(name) == pytest.approx(memory.history_.column(name), rel=1e-8)


@pytest.mark.parametrize("graph", [GRAPH, sparse_graph()], ids=["dense", "sparse"])
@pytest.mark.parametrize("share", [0.2, 0.5])
def test_no_more_than_the_share_is_ever_in_memory(tmp_path, graph, share):
    """Every read of a training goes into memory that was made beforehand, all of which is within the share; so are
    the chunks that are copied out of it."""
    rooms, chunks, holdings = [], [], []
    build, hold, read = StreamHolding.__init__, StoredFeatures.rows, DiskArray.rows
    training = False

    def built(self, *given) -> None:
        build(self, *given)
        holdings.append(self)
        pools = [rows.pools.values() for rows in (*self.adjacency, self.cache, *self.halves)]
        rooms.extend(pool.numbers for pool in itertools.chain(*pools))
        rooms.append(self.cache.reader.stage)

    def rows_of(self, nodes, dropout=None):
        found = hold(self, nodes, dropout)
        plain = found.chunks

        def watched(back):
            for positions, x in plain(back):
                chunks.append(x.numel() * 4 if isinstance(x, torch.Tensor) else x.S.data.nbytes + x.S.indices.nbytes)
                yield positions, x

        found.chunks = watched
        return found

    def into(self, start, stop, out=None, again=False):
        if training:
            assert out is not None
            assert any(np.shares_memory(out, room) for room in rooms)
        return read(self, start, stop, out, again)

    def passing(self, iteration):
        nonlocal training
        training = True
        loss = passed(self, iteration)
        training = False
        return loss

    passed = StreamedSolver._pass
    with (
        mock.patch.object(StreamHolding, "__init__", built), mock.patch.object(StoredFeatures, "rows", rows_of),
        mock.patch.object(DiskArray, "rows", into), mock.patch.object(StreamedSolver, "_pass", passing),
    ):  # fmt: skip
        run = SampledGNN(**SMALL, scaling="none", buffer_share=share).fit(graph, memory=MEMORY, scratch=tmp_path)
    dense = graph is GRAPH
    total = 4 * graph.indices.size + (4 * graph.features.size if dense else 8 * np.count_nonzero(graph.features))
    held = sum(room.nbytes for room in rooms) + 2 * max(chunks)
    assert run.summary_["graph_bytes"] == total
    assert held <= run.summary_["buffer_bytes"] <= share * total
    assert run.summary_["kept_nodes"] == len(holdings[0].kept) > 0
    assert run.summary_["memory_peak_bytes"] < run.summary_["memory_bytes"]
    assert run.summary_["bytes_read_training"] > total


@pytest.mark.parametrize("most", [0, 10**6])
def test_many_scattered_rows_are_told(tmp_path, caplog, most):
    with mock.patch.object(holdings, "SCATTERED", most), caplog.at_level("INFO", "pdadmm"):
        run = SampledGNN(**SMALL, buffer_share=0.3).fit(GRAPH, memory=MEMORY, scratch=tmp_path)
    size, train = SMALL["batch_size"], len(GRAPH.splits["train"])
    most_of_a_step = min(size * math.prod(1 + fanout for fanout in SMALL["fanouts"]), 150 - run.summary_["kept_nodes"])
    told = f"up to {2 * -(-train // size) * most_of_a_step} scattered rows an epoch"
    assert (told in caplog.text) == (most == 0)


def test_a_run_that_was_cut_off_goes_on_with_the_same_bits(tmp_path):
    solver = SampledGNN(**SMALL, buffer_share=0.3, disk_neighbours="all")
    expected = outcome(solver.fit(GRAPH, memory=MEMORY, scratch=tmp_path / "whole"))
    assert outcome(SampledGNN(**SMALL, buffer_share=0.3).fit(GRAPH, memory=MEMORY, scratch=tmp_path / "b")) == expected
    assert outcome(cut_off(solver, tmp_path / "cut", iteration=2)) == expected


@pytest.mark.parametrize(
    ("more", "memory", "words"),
    [
        ({"disk_neighbours": "all"}, None, "disk_neighbours = all: must be left out without memory"),
        ({"disk_neighbours": "buffer"}, None, "disk_neighbours = buffer: must be left out without memory"),
        ({"buffer_share": 0.001}, MEMORY, r"buffer_share = 0.001: must be enough for the largest rows"),
        ({"buffer_share": 0.5}, "40MiB", r"memory = 40MiB: .*; give at least (\d+)MiB"),
    ],
)
def test_what_cannot_be_is_refused_with_the_least_that_would_do(tmp_path, more, memory, words):
    given = {} if memory is None else {"memory": memory, "scratch": tmp_path}
    with pytest.raises(InputError, match=words) as caught:
        SampledGNN(**SMALL | more).fit(GRAPH, **given)
    if "at least" in caught.value.remedy:
        least = caught.value.remedy.split()[3].rstrip(",")
        enough = {"memory": least} if memory == "40MiB" else {"memory": memory}
        share = more if memory == "40MiB" else {"buffer_share": float(least)}
        run = SampledGNN(**SMALL | share).fit(GRAPH, **enough, scratch=tmp_path)
        assert run.summary_["steps_together"] >= 1


def test_a_pool_holds_the_rows_of_its_nodes(tmp_path):
    with disk_array(tmp_path, np.arange(10.0)) as array:
        pool = ScatteredPool(array, np.array([0, 2, 2, 5, 10]), 7)
        pool.read(np.array([0, 1, 3]), ScatteredReader(1000))
        assert pool.numbers.tolist() == [0, 1, 5, 6, 7, 8, 9]
        assert pool.places.tolist() == [0, 2, 2]
