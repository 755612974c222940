"""The .npz readers: round trips, both layouts, and damaged or hostile files."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from strategies import graphs

from pdadmm.data import Graph, read_npz, write_npz
from pdadmm.errors import InputError

OWN = {
    "edge_index": np.array([[0, 1, 1, 2], [1, 0, 2, 2]], dtype=np.int32),
    "x_data": np.array([1, 2, 1], dtype=np.uint8),
    "x_indices": np.array([0, 3, 1], dtype=np.int32),
    "x_indptr": np.array([0, 1, 2, 3], dtype=np.int32),
    "x_shape": np.array([3, 4]),
    "y": np.array([0, 1, -1], dtype=np.int16),
    "train_idx": np.array([0], dtype=np.int32),
    "val_idx": np.array([], dtype=np.int32),
    "test_idx": np.array([1], dtype=np.int32),
}
SHCHUR = {
    "adj_data": np.ones(3, dtype=np.float32),
    "adj_indices": np.array([1, 2, 2], dtype=np.int32),
    "adj_indptr": np.array([0, 1, 3, 3], dtype=np.int32),
    "adj_shape": np.array([3, 3]),
    "attr_data": OWN["x_data"],
    "attr_indices": OWN["x_indices"],
    "attr_indptr": OWN["x_indptr"],
    "attr_shape": OWN["x_shape"],
    "labels": np.array([0, 1, 1]),
    "class_names": np.array(["a", {"pickled": 1}], dtype=object),
}


def written(folder, parts: dict, name: str = "tiny.npz"):
    path = folder / name
    with path.open("wb") as file:
        np.savez_compressed(file, **parts)
    return path


@given(graph=graphs())
@settings(max_examples=60, deadline=None)
def test_round_trip(tmp_path_factory, graph):
    path = tmp_path_factory.mktemp("npz") / "mine.npz"
    write_npz(graph, path)
    again = read_npz(path)
    assert again.name == "mine"
    assert again.fingerprint() == graph.fingerprint()


def test_own_layout_by_hand(tmp_path):
    graph = read_npz(written(tmp_path, OWN), name="tiny", own_split="public")
    assert repr(graph) == "Graph(tiny: 3 nodes, 2 edges, 4 sparse features, 2 classes, splits 1/0/1)"
    assert graph.own_split == "public"
    assert graph.features.toarray().tolist() == [[1, 0, 0, 0], [0, 0, 0, 2], [0, 1, 0, 0]]
    assert graph.indices.tolist() == [1, 0, 2, 1]
    assert graph.labels.flags.writeable


def test_dense_features_and_no_splits(tmp_path):
    dense = np.asfortranarray(np.arange(12.0).reshape(3, 4)).astype(">f8")
    graph = read_npz(written(tmp_path, {"edge_index": OWN["edge_index"], "x": dense, "y": OWN["y"]}))
    np.testing.assert_array_equal(graph.features, dense)
    assert graph.splits is None
    assert graph.own_split == ""


def test_without_labels_no_class_is_known(tmp_path):
    bare = {key: value for key, value in OWN.items() if key != "y" and not key.endswith("_idx")}
    graph = read_npz(written(tmp_path, bare))
    assert graph.labels.tolist() == [-1, -1, -1]
    assert graph.num_classes == 0
    with pytest.raises(InputError, match="unlabelled"):  # a split is of labelled nodes
        read_npz(written(tmp_path, {key: value for key, value in OWN.items() if key != "y"}))


def test_shchur_layout(tmp_path):
    graph = read_npz(written(tmp_path, SHCHUR))
    assert graph.adjacency.toarray().tolist() == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    assert graph.features.toarray()[1].tolist() == [0, 0, 0, 2]
    assert graph.labels.tolist() == [0, 1, 1]
    assert graph.splits is None
    dense = {key: value for key, value in SHCHUR.items() if not key.startswith("attr_")}
    again = read_npz(written(tmp_path, dense | {"attr_matrix": graph.features.toarray()}))
    assert again.adjacency.toarray().tolist() == graph.adjacency.toarray().tolist()


BAD_PARTS = {
    "no features": ({"x_data": None}, "without the key x_data"),
    "one split": ({"val_idx": None}, "without the key val_idx"),
    "no edges": ({"edge_index": None}, "with the keys"),
    "pickled": (
        {"y": np.array([0, 1, None], dtype=object)},
        r"^y in \S*tiny.npz = an array of object: must be plain numbers; number names",
    ),
    "text": ({"y": np.array(["a", "b", "c"])}, "y in .*tiny.npz = an array of <U1: must be plain numbers"),
    "edge range": ({"edge_index": np.array([[0], [3]])}, "edge_index in .*tiny.npz = 3"),
    "edge axes": ({"edge_index": np.array([0, 1])}, "edge_index in"),
    "x_shape": ({"x_shape": np.array([3])}, "x_shape in"),
    "x_shape zero": ({"x_shape": np.array([0, 4])}, "x_shape in"),
    "x_shape huge": ({"x_shape": np.array([3, 2**40])}, "x columns in"),
    "x rows huge": ({"x_shape": np.array([2**40, 4])}, "x indptr in"),
    "x_indptr": ({"x_indptr": np.array([0, 2, 1, 3])}, "x indptr in .* = 2 then 1"),
    "x_indptr negative": ({"x_indptr": np.array([0, -1, 1, 3])}, "x indptr in"),
    "x_indices": ({"x_indices": np.array([0, 4, 1])}, "x indices in .* = 4"),
    "x_data": ({"x_data": np.array([1.0])}, "x_data in"),
    "x nan": ({"x_data": np.array([1, np.nan, 1])}, r"features in .*first: node 1, column 3"),
    "y count": ({"y": np.array([0, 1])}, "labels in .*one per node"),
    "split range": ({"test_idx": np.array([7])}, "test.* in .*= 7"),
    "split bare": ({"test_idx": np.array([2])}, "unlabelled"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_PARTS.values(), ids=BAD_PARTS)
def test_bad_parts_are_refused(tmp_path, changes, message):
    parts = {key: value for key, value in (OWN | changes).items() if value is not None}
    with pytest.raises(InputError, match=message):
        read_npz(written(tmp_path, parts))


def test_bad_shchur_parts_are_refused(tmp_path):
    two_nodes = {"adj_indptr": np.array([0, 1, 3]), "adj_shape": np.array([2, 2])}
    not_square, two_labels = {"adj_shape": np.array([3, 4])}, {"labels": np.array([0, 1])}
    for changes in (two_nodes, not_square, two_labels, {"adj_indices": np.zeros(2)}):
        with pytest.raises(InputError):
            read_npz(written(tmp_path, SHCHUR | changes))


def test_files_that_are_not_npz(tmp_path):
    with pytest.raises(InputError, match="must be a file that exists"):
        read_npz(tmp_path / "none.npz")
    with pytest.raises(InputError, match="must be a file that exists"):
        read_npz(tmp_path)
    text = tmp_path / "text.npz"
    text.write_text("not a zip")
    with pytest.raises(InputError, match=r"complete \.npz"):
        read_npz(text)
    empty = tmp_path / "empty.npz"
    empty.touch()
    with pytest.raises(InputError, match=r"complete \.npz"):
        read_npz(empty)


def npy_header(shape: str, descr: str = "<i8") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": ()})
    return stream.getvalue().replace(b"'shape': ()", f"'shape': {shape}".encode())


@pytest.mark.parametrize("shape", ["(99999999999999,)", "(-3,)", "(True,)", "(3, 1)"])
def test_npy_headers_that_lie(tmp_path, shape):
    path = written(tmp_path, {key: value for key, value in OWN.items() if key != "y"})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("y.npy", npy_header(shape) + bytes(24))
    with pytest.raises(InputError):
        read_npz(path)


def test_a_member_cannot_claim_more_than_the_file_can_hold(tmp_path):
    path = written(tmp_path, OWN)
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")  # the central directory; the size field of its first entry
    content[entry + 24 : entry + 28] = (2**32 - 2).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(InputError, match="claims 4294967294 bytes"):
        read_npz(path)


def check_graph_or_refusal(path) -> None:
    try:
        graph = read_npz(path)
    except InputError as problem:
        refusal = str(problem)
    else:
        refusal = f"none for {path}"
        assert graph.adjacency.nnz == 2 * graph.num_edges
    assert path.name in refusal


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_bytes_never_surprise(tmp_path, save):
    path = tmp_path / "damaged.npz"
    save(path, **OWN)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for trial in range(200):
        content = bytearray(whole)
        if trial % 4 == 0:
            del content[random.integers(len(content)) :]
        else:
            for place in random.integers(len(content), size=random.integers(1, 4)):
                content[place] ^= 1 << random.integers(8)
        path.write_bytes(content)
        check_graph_or_refusal(path)


def test_damaged_arrays_never_surprise(tmp_path):
    """Bytes changed inside intact members: only the checks of contents stand in the way."""
    random = np.random.default_rng(1)
    keys = list(OWN)
    for _ in range(200):
        parts = dict(OWN)
        key = keys[random.integers(len(keys))]
        stream = io.BytesIO()
        np.save(stream, parts[key])
        path = written(tmp_path, {other: value for other, value in parts.items() if other != key})
        content = bytearray(stream.getvalue())
        content[random.integers(len(content))] ^= 1 << random.integers(8)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(f"{key}.npy", bytes(content))
        check_graph_or_refusal(path)


def test_directed_graphs_are_not_written(tmp_path):
    graph = Graph.from_edges([[0], [1]], sp.csr_array(np.eye(2)), [0, 1], undirected=False)
    with pytest.raises(InputError, match="undirected"):
        write_npz(graph, tmp_path / "directed.npz")
