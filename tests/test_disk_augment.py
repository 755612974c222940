"""Augmentation from disk gives the bits of Augmenter, whatever the memory, the slices, the ranks and the kills."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from disk_small import AUGMENTATIONS, cut_small, in_memory, least, request_
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mpi_launch import NEEDS_MPI, mpiexec
from strategies import graphs

import pdadmm
from pdadmm import PDADMMG, Augmenter, Graph, InputError, csbm, make_splits
from pdadmm.augment import OPERATORS, SCALINGS, propagation_matrix, spmm
from pdadmm.cli import main
from pdadmm.data.checks import SPLIT_NAMES
from pdadmm.disk import blocks, operator, plan
from pdadmm.disk.augment import ROWS, augment_folder
from pdadmm.disk.augmented import AugmentedFolder
from pdadmm.disk.graph import DiskGraph, write_graph
from pdadmm.disk.operator import DiskOperator
from pdadmm.disk.plan import Shape, make_plan, memory_needed
from pdadmm.kernels import operator as kernel

SETTINGS = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def no_flush(monkeypatch):
    """What a loss of power would need, and no test can see, is left out: it takes most of the time."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def small(monkeypatch):
    """Blocks of a few rows and entries, no allowance for Python: a tiny graph is cut as a huge one is."""
    cut_small(monkeypatch)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return csbm(200, num_features=40, seed=3)


# The same bits


@given(data=st.data())
@SETTINGS
def test_the_folder_holds_the_bits_of_the_augmenter(tmp_path_factory, small, graph, data):
    folder = tmp_path_factory.mktemp("a")
    write_graph(graph, folder / "g")
    parameters = data.draw(AUGMENTATIONS)
    rows, split = data.draw(st.sampled_from(ROWS)), data.draw(st.sampled_from([None, "random:3", "fraction:30/20/10"]))
    request = request_(rows=rows, split=split, **parameters)
    with DiskGraph(folder / "g") as disk:
        enough = least(disk, request, folder / "out")
        limit = data.draw(st.sampled_from([enough, enough + 20000, enough + 60000, 1 << 30]))
        done = augment_folder(disk, request_(limit, rows, split, **parameters), folder / "out")
    splits = graph.splits if split is None else make_splits(graph, split, 1)
    reference = Augmenter(**parameters)
    expected = in_memory(graph, reference, rows, splits)
    with AugmentedFolder(folder / "out") as found:
        assert found.read().tobytes() == expected.tobytes()
        made = found.same_augmenter(Augmenter(**parameters))
        assert made.transform(graph).tobytes() == reference.transform(graph).tobytes()
        nodes = found.nodes
        np.testing.assert_array_equal(found.labels, graph.labels[nodes])
        assert all((nodes[found.splits[name]] == splits[name]).all() for name in SPLIT_NAMES)
    assert memory_needed(done.shape, done.width, done.resident) <= limit
    assert sorted(path.name for path in (folder / "out").iterdir() if path.suffix != ".npy") == ["augmented.json"]


@given(graph=graphs(weighted=False), name=st.sampled_from(sorted(OPERATORS)), resident=st.booleans(), data=st.data())
@SETTINGS
def test_the_operator_on_disk_has_the_bits_of_the_matrix(tmp_path_factory, small, graph, name, resident, data):
    folder = tmp_path_factory.mktemp("o") / "g"
    write_graph(graph, folder)
    if data.draw(st.booleans()):  # the wide form of the columns
        indices, header = folder / "indices.npy", json.loads((folder / "graph.json").read_text())
        header["files"]["indices"] = blocks.copy_array(np.load(indices).astype(np.int64), indices)
        (folder / "graph.json").write_text(json.dumps(header))
    V, dtype = graph.num_nodes, data.draw(st.sampled_from(["float32", "float64"]))
    X = np.linspace(-1, 2, V * 3).reshape(V, 3).astype(dtype)
    S = propagation_matrix(graph, name, dtype)
    expected = spmm(S, X, np.empty_like(X))
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, V - 1)))), dtype=np.int64)
    with DiskGraph(folder) as disk:
        found = DiskOperator(disk, disk.indptr(), name, dtype, resident)
        assert found.apply(X, np.empty_like(X)).tobytes() == expected.tobytes()
        assert found.apply(X, np.empty((len(rows), 3), dtype), rows).tobytes() == expected[rows].tobytes()
        plain = operator.plain_rows(disk.indptr(), graph.indices, 0, V, found.left, found.right, dtype)
        assert (plain.data.tobytes(), plain.indices.tolist()) == (S.data.tobytes(), S.indices.tolist())


def test_a_column_outside_the_nodes_is_refused_by_both_forms():
    indptr, left = np.array([0, 1, 2]), np.ones(2)
    for column in (-1, 2):
        columns = np.array([column, 0], np.int32)
        with pytest.raises(InputError, match="columns 0 to 1"):
            operator.plain_rows(indptr, columns, 0, 2, left, left, "float32")
        if kernel.available():
            room = np.empty(9, np.int32), np.empty(9, np.int32), np.empty(9, np.float32)
            assert kernel.operator_rows(indptr, columns, 0, 2, left, left, *room) == -1


def test_a_graph_without_a_split_learns_from_every_row(tmp_path, small, graph):
    bare = graph.with_splits(None)
    write_graph(bare, tmp_path / "g")
    with DiskGraph(tmp_path / "g") as disk:
        with pytest.raises(InputError, match="split = not given"):
            augment_folder(disk, request_(), tmp_path / "out")
        augment_folder(disk, request_(rows="all"), tmp_path / "out")
    with AugmentedFolder(tmp_path / "out") as found:
        assert found.read().tobytes() == Augmenter().fit_transform(bare).tobytes()
        assert found.splits is None


# Plans


SHAPES = st.builds(
    Shape, nodes=st.integers(1, 10**8), entries=st.integers(0, 10**9), widest=st.integers(0, 10**5),
    index_bytes=st.just(4), features=st.integers(1, 300), feature_bytes=st.sampled_from([2, 4]), hops=st.integers(0, 5),
    blocks=st.integers(1, 6), averaged=st.booleans(), kept=st.integers(1, 10**6), fit_rows=st.integers(1, 10**5),
    fit_apart=st.booleans(), number_bytes=st.sampled_from([4, 8]), scaling=st.sampled_from(sorted(SCALINGS)),
)  # fmt: skip


@given(SHAPES, st.integers(1, 1 << 38))
def test_a_plan_keeps_to_its_memory_or_says_what_would_do(shape, memory):
    try:
        found = make_plan(shape, memory)
    except InputError as error:
        enough = int(error.allowed.split()[2])
        assert enough > memory
        assert make_plan(shape, enough).memory == enough
        return
    assert found.memory == memory_needed(shape, found.width, found.resident) <= memory
    assert found.width == shape.features or found.width % 16 == 0
    assert (found.slices - 1) * found.width < shape.features <= found.slices * found.width
    assert make_plan(shape, memory, found.width) == found


@pytest.mark.parametrize(("limit", "resident"), [(1 << 30, True), (0, True), (0, False)])
def test_bytes_are_those_of_the_formula(tmp_path, monkeypatch, limit, resident):
    """In the form of large graphs: several slices, more than one block of everything."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1 << 14)
    for module in (operator, plan):
        monkeypatch.setattr(module, "BLOCK_ENTRIES", 1 << 10)
        monkeypatch.setattr(module, "STREAM_ENTRIES", 1 << 10)
    monkeypatch.setattr(plan, "WORK_BYTES", 0)
    write_graph(csbm(3000, num_features=64), tmp_path / "g")
    with DiskGraph(tmp_path / "g") as disk:
        if not limit:
            enough = least(disk, request_(rows="all", hops=3), tmp_path / "out")
            limit = enough + (8 * disk.num_edges if resident else 0)
        disk.traffic.read = disk.traffic.written = 0
        done = augment_folder(disk, request_(limit, rows="all", hops=3), tmp_path / "out")
        read, written = disk.traffic.read, disk.traffic.written
    assert done.resident == resident
    assert 1 <= read / done.read_bytes < 1.05
    assert 1 <= written / done.written_bytes < 1.05


# Kills, damage, other folders


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(pdadmm.__file__).parents[1])}


@pytest.mark.timeout(120)
def test_runs_killed_at_any_step_go_on_to_the_same_files(tmp_path, graph):
    """The process ends itself, as kill -9 would, at the n-th file that is flushed or renamed, for several n."""
    write_graph(graph, tmp_path / "g")
    killer = tmp_path / "killer.py"
    killer.write_text(
        "import os, sys\n"
        "from pdadmm.disk import blocks, slices, operator, plan, assemble\n"
        "blocks.BLOCK_BYTES, slices.CHUNK_BLOCKS, assemble.SYNC_BLOCKS, plan.WORK_BYTES = 1 << 12, 2, 2, 0\n"
        "operator.BLOCK_ENTRIES = operator.STREAM_ENTRIES = plan.BLOCK_ENTRIES = plan.STREAM_ENTRIES = 500\n"
        "from pdadmm.augment import Augmenter\n"
        "from pdadmm.disk.augment import Request, augment_folder\n"
        "from pdadmm.disk.graph import DiskGraph\n"
        "left = [int(sys.argv[2])]\n"
        "def sync(file):\n"
        "    left[0] -= 1\n"
        "    if left[0] == 0:\n"
        "        os.kill(os.getpid(), 9)\n"
        "os.fsync = sync\n"
        "with DiskGraph(sys.argv[1] + '/g') as graph:\n"
        "    augment_folder(graph, Request(Augmenter(2), 'all', None, 0, 70000), sys.argv[3])\n"
        "print(-left[0])\n"
    )

    def run(count: int, out: Path) -> subprocess.CompletedProcess:
        words = [sys.executable, killer, tmp_path, str(count), out]
        return subprocess.run(list(map(str, words)), capture_output=True, text=True, env=environment())

    whole = run(0, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    syncs, rng = int(whole.stdout), random.Random(1)
    assert syncs > 30
    expected = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert np.load(tmp_path / "whole" / "features.npy").tobytes() == in_memory(
        graph, Augmenter(2), "all", graph.splits).tobytes()  # fmt: skip
    out = tmp_path / "killed"
    for count in (rng.randrange(2, 12), rng.randrange(2, 15), syncs // 3):  # one run, killed three times
        assert run(count, out).returncode == -9
    assert run(0, out).returncode == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == expected
    late = tmp_path / "late"
    assert run(syncs - 2, late).returncode == -9  # features.npy is there, the JSON is not
    assert run(0, late).returncode == 0
    assert {path.name: path.read_bytes() for path in late.iterdir()} == expected


class Stop(Exception):
    """Ends a run in this process."""


def stopped(folder: Path, out: Path, step: str, **more) -> None:
    """Begin a run and end it after the first unit of a step."""

    def watch(now: str, done: int, total: int) -> None:
        if now == step and done:
            raise Stop

    with DiskGraph(folder) as disk, pytest.raises(Stop):
        augment_folder(disk, request_(**more), out, watch=watch)


@pytest.fixture
def begun(tmp_path, small, graph):
    """A run that ended after its slices; its limit cuts the features into several."""
    write_graph(graph, tmp_path / "g")
    with DiskGraph(tmp_path / "g") as disk:
        limit = least(disk, request_(), tmp_path / "out")
    stopped(tmp_path / "g", tmp_path / "out", "scaling", memory=limit)
    return tmp_path, limit


@pytest.mark.parametrize("name", ["slice-0001.bin", "split-000000.bin"])
def test_a_damaged_slice_is_refused_and_made_again(begun, graph, name):
    folder, limit = begun
    path = folder / "out" / "work" / name
    if name.startswith("split"):  # read again for slices that are gone
        for lost in path.parent.glob("slice-*.bin"):
            lost.unlink()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # of the last slice, or hop
    path.write_bytes(content)
    with DiskGraph(folder / "g") as disk:
        with pytest.raises(InputError, match="what its checksum says; run the command again"):
            augment_folder(disk, request_(limit), folder / "out")
        augment_folder(disk, request_(limit), folder / "out")
    with AugmentedFolder(folder / "out") as found:
        assert found.read().tobytes() == in_memory(graph, Augmenter(), "labelled", graph.splits).tobytes()


def test_only_the_same_job_goes_on(begun):
    folder, limit = begun
    out = folder / "out"
    with DiskGraph(folder / "g") as disk:
        for other in (request_(limit, hops=2), request_(limit, "all"), request_(limit, split="random:3")):
            with pytest.raises(InputError, match="a new or empty folder, or one that this very command began"):
                augment_folder(disk, other, out)
        with pytest.raises(InputError, match="as the run in this folder has slices of 16 columns"):
            augment_folder(disk, request_(limit - 1), out)
        assert augment_folder(disk, request_(1 << 30), out).width == 16
        assert augment_folder(disk, request_(1 << 30), out) is None  # finished before
        with pytest.raises(InputError, match="a new or empty folder"):
            augment_folder(disk, request_(hops=2), out)
    (folder / "full").mkdir()
    (folder / "full" / "letter.txt").write_text("Dear")
    with DiskGraph(folder / "g") as disk, pytest.raises(InputError, match="a new or empty folder"):
        augment_folder(disk, request_(), folder / "full")


def test_features_that_are_not_finite_are_refused(tmp_path, small, graph):
    write_graph(graph, tmp_path / "g")
    X = np.load(tmp_path / "g" / "features.npy")
    X[7, 3] = np.nan
    header = json.loads((tmp_path / "g" / "graph.json").read_text())
    header["files"]["features"] = blocks.copy_array(X, tmp_path / "g" / "features.npy")
    (tmp_path / "g" / "graph.json").write_text(json.dumps(header))
    with DiskGraph(tmp_path / "g") as disk, pytest.raises(InputError, match="node 7, column 3"):
        augment_folder(disk, request_(), tmp_path / "out")


# Training on the folder, the command line, ranks


@pytest.mark.parametrize("rows", ROWS)
def test_training_on_the_folder_has_the_bits_of_training_on_the_graph(tmp_path, graph, rows):
    write_graph(graph, tmp_path / "g")
    with DiskGraph(tmp_path / "g") as disk:
        augment_folder(disk, request_(rows=rows, hops=2), tmp_path / "out")
    kwargs = {"layers": 3, "hidden": 8, "iterations": 4}
    with AugmentedFolder(tmp_path / "out") as folder:
        one, two = PDADMMG(hops=2, **kwargs).fit(folder), PDADMMG(hops=2, **kwargs).fit(graph)
        assert one.history_.column("objective") == two.history_.column("objective")
        assert one.predict_proba(graph).tobytes() == two.predict_proba(graph).tobytes()
        assert one.score(folder) == two.score(graph)
        for name, value in (("hops", 3), ("scaling", "none"), ("dtype", "float64")):
            with pytest.raises(InputError, match=f"{name} = {value}, and .* in the folder"):
                PDADMMG(**kwargs, **({"hops": 2} | {name: value})).fit(folder)
        with pytest.raises(InputError, match="must be a Graph"):
            pdadmm.GCN(iterations=1).fit(folder)


def test_the_commands_lead_from_a_data_set_to_a_trained_network(tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--dataset", "csbm:150", "--memory", "100MiB", "--hops", "1", "--out", str(out)]
    assert main(["augment", *words]) == 0
    told = capsys.readouterr().out
    assert "peak memory" in told
    assert re.search(r"^1 slice of \d+ columns", told, re.MULTILINE)
    assert main(["augment", *words]) == 0
    assert "was finished before" in capsys.readouterr().out
    train = ["train", "--dataset", str(out), "--hops", "1", "--layers", "2", "--iterations", "2", "--quiet"]
    assert main(train) == 0
    assert main([*train, "--split", "random:5"]) == 2
    assert "give --split to pdadmm augment" in capsys.readouterr().err
    assert main(["tune", "--dataset", str(out)]) == 2
    assert "must be a graph" in capsys.readouterr().err
    bad = (["--memory", "12"], ["--memory", "lots"], ["--rows", "none"], ["--hops", "-1"], ["--out", "no/such/d"])
    for more in bad:
        assert main(["augment", *words[:-2], "--out", str(tmp_path / "other"), *more]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.skipif(any(mark.args[0] for mark in NEEDS_MPI), reason="needs MPI")
def test_ranks_share_the_slices_and_give_the_same_bits(tmp_path, graph):
    write_graph(graph, tmp_path / "g")
    script = tmp_path / "ranks.py"
    script.write_text(
        "import os, sys\n"
        "os.fsync = lambda file: None\n"
        "from pdadmm.disk import blocks, slices, operator, plan, assemble\n"
        "blocks.BLOCK_BYTES, slices.CHUNK_BLOCKS, assemble.SYNC_BLOCKS, plan.WORK_BYTES = 1 << 11, 2, 1, 0\n"
        "operator.BLOCK_ENTRIES = operator.STREAM_ENTRIES = plan.BLOCK_ENTRIES = plan.STREAM_ENTRIES = 300\n"
        "from pdadmm.augment import Augmenter\n"
        "from pdadmm.disk.augment import Request, augment_folder\n"
        "from pdadmm.disk.graph import DiskGraph\n"
        "from pdadmm.parallel.launch import make_transport\n"
        "transport = make_transport()\n"
        "for rows in ('labelled', 'all'):\n"
        "    folder, asked = sys.argv[1], Request(Augmenter(2), rows, None, 0, 60000)\n"
        "    with DiskGraph(folder + '/g') as graph:\n"
        "        done = augment_folder(graph, asked, folder + '/' + rows, transport)\n"
        "        assert done.slices == 3\n"
        "        assert transport.size == 2 and graph.traffic.written > 0\n"
    )
    done = mpiexec(2, script, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for rows in ROWS:
        with AugmentedFolder(tmp_path / rows) as found:
            assert found.read().tobytes() == in_memory(graph, Augmenter(2), rows, graph.splits).tobytes()
