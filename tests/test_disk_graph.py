"""Graphs in folders: what is written is read back, by blocks of any size; every damage is refused in one sentence."""

from __future__ import annotations

import itertools
import json
import os
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import graphs

from pdadmm import Graph, InputError, digits, load_dataset
from pdadmm.disk import blocks
from pdadmm.disk.blocks import DiskArray, NewArray, Traffic, block_rows, checked_blocks, copy_array
from pdadmm.disk.graph import DiskGraph, row_blocks, write_graph

SETTINGS = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture(autouse=True)
def no_flush(monkeypatch):
    """What a loss of power would need, and no test can see, is left out: it takes most of the time."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def small_blocks(monkeypatch):
    """Checksums of 64 bytes, so that a small file has many."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 64)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("written") / "digits"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        patch.setattr(blocks, "BLOCK_BYTES", 64)
        write_graph(digits(), path)
    return path


@pytest.fixture
def folder(written, tmp_path, small_blocks):
    return shutil.copytree(written, tmp_path / "digits")


# Arrays


@given(rows=st.integers(0, 40), width=st.integers(1, 5), cuts=st.lists(st.integers(0, 40)), data=st.data())
@SETTINGS
def test_an_array_comes_back_whole_and_in_parts(tmp_path, small_blocks, rows, width, cuts, data):
    array = np.arange(rows * width, dtype=data.draw(st.sampled_from(["int64", "float32", "float16"])))
    array = array.reshape(rows, width)
    path, traffic = tmp_path / "a.npy", Traffic()
    new = NewArray(path, (rows + 3, width), array.dtype, traffic)
    path.unlink(missing_ok=True)
    for a, b in itertools.pairwise([0, *sorted(min(cut, rows) for cut in cuts), rows]):
        new.write(a, array[a:b])
    assert not path.exists()
    new.commit(rows)
    np.testing.assert_array_equal(np.load(path), array)
    assert traffic.written == array.nbytes
    with DiskArray(path, traffic) as disk:
        assert (disk.shape, disk.dtype) == (array.shape, array.dtype)
        a, b = sorted(data.draw(st.tuples(st.integers(0, rows), st.integers(0, rows))))
        np.testing.assert_array_equal(disk.rows(a, b), array[a:b])
        parts = [part.copy() for _, _, part in checked_blocks(disk, new.entry())]
        np.testing.assert_array_equal(np.concatenate([array[:0], *parts]), array)
        assert traffic.read == array.nbytes + array[a:b].nbytes
    assert len(parts) == len(new.entry()["crc32"]) >= rows // max(1, 64 // array.itemsize // width)


def test_whole_blocks_may_come_in_any_order(tmp_path, small_blocks):
    array = np.arange(50.0)
    new = NewArray(tmp_path / "a.npy", array.shape, array.dtype)
    for start in (48, 0, 16, 8, 40, 24, 32):
        new.write(start, array[start : start + new.block])
    new.commit()
    assert new.entry() == copy_array(array, tmp_path / "b.npy")
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


def test_a_partial_file_is_kept_only_where_asked_and_of_the_same_size(tmp_path):
    def begin(rows: int, resume: bool) -> np.ndarray:
        new = NewArray(tmp_path / "a.npy", (rows,), "int64", resume=resume)
        new.commit()
        return np.load(tmp_path / "a.npy")

    for resume, rows, expected in ((True, 4, [7] * 4), (False, 4, [0] * 4), (True, 5, [0] * 5)):
        half = NewArray(tmp_path / "a.npy", (4,), "int64")
        half.write(0, np.full(4, 7))
        half.close()
        assert begin(rows, resume).tolist() == expected


@pytest.mark.parametrize(
    "array", [np.asfortranarray(np.ones((2, 3))), np.ones(3, ">f4"), np.array(1.0), np.array(["a"])],
    ids=["fortran", "big-endian", "no axes", "text"],
)  # fmt: skip
def test_an_array_of_another_kind_is_refused(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(InputError, match=r"must be an \.npy file of plain numbers"):
        DiskArray(tmp_path / "a.npy")


def test_a_cut_file_and_a_missing_one_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.ones(100))
    content = (tmp_path / "a.npy").read_bytes()
    for length in (0, 5, 100, len(content) - 1):
        (tmp_path / "a.npy").write_bytes(content[:length])
        with pytest.raises(InputError, match="must be an"):
            DiskArray(tmp_path / "a.npy")
    with pytest.raises(InputError, match="that exists"):
        DiskArray(tmp_path / "b.npy")


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 12))
def test_row_blocks_cover_every_row_once(lengths, entries):
    indptr = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    cuts = list(row_blocks(indptr, entries))
    assert [row for a, b in cuts for row in range(a, b)] == list(range(len(lengths)))
    assert all(indptr[b] - indptr[a] <= entries or b == a + 1 for a, b in cuts)


def test_block_rows_are_about_the_block_size():
    assert block_rows((10**9, 3, 5), 4) == blocks.BLOCK_BYTES // 60
    assert block_rows((0, 5), 4) == 1


# Graphs


@given(graph=graphs(weighted=False))
@SETTINGS
def test_a_graph_comes_back_equal(tmp_path_factory, graph):
    path = tmp_path_factory.mktemp("graph") / "g"
    write_graph(graph, path)
    with DiskGraph(path) as disk:
        disk.check()
        back = disk.to_graph()
    dense = graph.features if isinstance(graph.features, np.ndarray) else graph.features.toarray()
    twin = Graph(graph.indptr, graph.indices, None, dense, graph.labels, graph.splits)
    assert back.fingerprint() == twin.fingerprint()


def test_a_graph_is_found_by_its_folder(folder):
    graph = load_dataset(folder)
    assert graph.fingerprint() == digits().fingerprint()
    assert (graph.name, graph.own_split) == ("digits", "file")


def test_what_the_format_cannot_hold_is_refused(tmp_path):
    directed = Graph.from_edges([[0], [1]], [[0.0], [1.0]], [0, 1], undirected=False)
    weighted = Graph.from_edges([[0], [1]], [[0.0], [1.0]], [0, 1], weights=[2.0])
    for graph in (directed, weighted):
        with pytest.raises(InputError, match="undirected and without weights"):
            write_graph(graph, tmp_path / "g")
    assert not (tmp_path / "g").exists()


def test_a_folder_with_a_graph_is_not_written_over(folder):
    with pytest.raises(InputError, match=r"out = .*a new or empty folder"):
        write_graph(digits(), folder)


def change(folder, name, edit) -> None:
    """Change an array of a folder, checksum and all."""
    array = np.load(folder / f"{name}.npy")
    array = edit(array)
    entry = copy_array(array, folder / f"{name}.npy")
    header = json.loads((folder / "graph.json").read_text())
    header["files"][name] = entry
    (folder / "graph.json").write_text(json.dumps(header))


def swap(array, a, b):
    array[a], array[b] = array[b], array[a]
    return array


def put(value, place=5):
    def edit(array):
        array[place] = value
        return array

    return edit


BROKEN = {
    "unsorted": ("indices", lambda x: swap(x, 0, 1), "rising order"),
    "out of range": ("indices", put(1797), "columns 0 to 1796"),
    "negative": ("indices", put(-1), "columns 0 to 1796"),
    "one direction only": ("indices", put(1, 0), "must be symmetric"),
    "falling": ("indptr", lambda x: swap(x, 3, 4), "never decreasing"),
    "short": ("labels", lambda x: x[:-1], r"of shape \(1797,\)"),
    "infinite": ("features", put(np.inf, (3, 2)), "node 3, column 2"),
    "class": ("labels", put(99), "class numbers"),
    "another type": ("indices", lambda x: x.astype(np.int16), "of type|and type int32 or int64"),
    "split": ("val", lambda x: np.r_[x[:-1], x[:1]], "more than once"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_arrays_that_break_the_rules_are_refused(folder, case):
    name, edit, words = BROKEN[case]
    change(folder, name, edit)
    with pytest.raises(InputError, match=words), DiskGraph(folder) as graph:
        graph.check()


@pytest.mark.parametrize("name", ["indptr", "indices", "features", "labels", "train"])
def test_a_changed_byte_is_found(folder, name):
    path = folder / f"{name}.npy"
    content = bytearray(path.read_bytes())
    content[len(content) // 2 + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="what its checksum says"), DiskGraph(folder) as graph:
        graph.check()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"format": "pdadmm-graph-9"}', '{"format": "pdadmm-graph-1", "files": []}',
     '{"format": "pdadmm-graph-1", "files": {}}', '{"format": "pdadmm-graph-1", "files": {"indptr": 3}, "nodes": -1}'],
)  # fmt: skip
def test_a_foreign_header_is_refused(folder, text):
    (folder / "graph.json").write_text(text)
    with pytest.raises(InputError, match="dataset = "):
        DiskGraph(folder)


@pytest.mark.parametrize("key", ["nodes", "edges", "features", "classes", "files"])
def test_a_header_that_lies_is_refused(folder, key):
    header = json.loads((folder / "graph.json").read_text())
    for lie in (10**15, True, None, "3"):
        (folder / "graph.json").write_text(json.dumps(header | {key: lie}))
        if (key, lie) != ("classes", 10**15):  # more classes than labels is no lie
            with pytest.raises(InputError, match="dataset = "):
                DiskGraph(folder)


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"one of the formats npz, .* disk, csv; pdadmm datasets lists"):
        load_dataset(tmp_path)
