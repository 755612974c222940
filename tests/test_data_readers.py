"""What each reader of a folder refuses, and forms that the contract does not write."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
import scipy.sparse as sp
from graph_writers import (
    write_csv,
    write_graphbolt,
    write_graphsaint,
    write_ogb,
    write_ogb_binary,
    write_pyg,
    write_scipy,
)

from pdadmm.cli import main
from pdadmm.data import Graph, load_dataset, read_csv, read_graphsaint, read_npz, read_ogb, read_path, read_scipy
from pdadmm.data import tables as module
from pdadmm.errors import InputError

GRAPH = Graph.from_edges([[0, 1, 2, 3], [1, 2, 3, 0]], np.arange(8.0).reshape(4, 2), [0, 1, -1, 1],
                         {"train": [0], "val": [1], "test": [3]})  # fmt: skip


def put(path, content: str | bytes):
    raw = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


OGB = {
    "edge range": ("raw/edge.csv.gz", "0,1\n1,2\n2,3\n3,9\n", r"edge_index in .* = 9"),
    "edge count": ("raw/edge.csv.gz", "0,1\n", r"edge.csv.gz with 1 rows: must be a table of 4 rows"),
    "more edges": ("raw/edge.csv.gz", "0,1\n" * 9, "with more than 4 rows"),
    "edge columns": ("raw/edge.csv.gz", "0,1,2\n" * 4, "with 3 columns: must be two columns"),
    "edge fraction": ("raw/edge.csv.gz", "0,1.5\n" * 4, r"1\.5 in .*gz, line 1, column 2: must be a whole number"),
    "edge text": ("raw/edge.csv.gz", "source,target\n" * 4, "source in .*line 1, column 1: must be a whole number"),
    "edge large": ("raw/edge.csv.gz", "0,99999999999\n" * 4, "99999999999 in .*must be a whole number"),
    "ragged": ("raw/node-feat.csv.gz", "1,2\n1\n1,2\n1,2\n", "line 2, with 1 columns: must be of 2 columns"),
    "feature rows": ("raw/node-feat.csv.gz", "1,2\n", "a table of 4 rows"),
    "nan": ("raw/node-feat.csv.gz", "nan,2\n" * 4, "features in .*NaN"),
    "two labels": ("raw/node-label.csv.gz", "0,1\n" * 4, r"node-label in .*of shape \(4, 2\).*choose one column"),
    "label fraction": ("raw/node-label.csv.gz", "0\n1\n0.5\n1\n", "node-label in .*= 0.5"),
    "two graphs": ("raw/num-node-list.csv.gz", "2\n2\n", "one number, that of one graph"),
    "nodes lie": ("raw/num-node-list.csv.gz", "5\n", "a table of 5 rows"),
    "nodes negative": ("raw/num-node-list.csv.gz", "-4\n", "one number"),
    "nodes many": ("raw/num-node-list.csv.gz", "1000000000000\n", "more than this machine's memory holds"),
    "split range": ("split/time/test.csv.gz", "17\n", r"splits\['test'\] in .*= 17"),
    "split columns": ("split/time/test.csv.gz", "1,2\n", "one node number a line"),
    "bad gzip": ("raw/edge.csv.gz", None, "a table of whole numbers; correct the file"),
}


@pytest.mark.parametrize(("file", "content", "words"), OGB.values(), ids=OGB)
def test_ogb_refuses(tmp_path, file, content, words):
    write_ogb(GRAPH, tmp_path)
    if content is None:
        (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:-6])
    else:
        put(tmp_path / file, content)
    with pytest.raises(InputError, match=words):
        read_ogb(tmp_path)


def test_ogb_in_other_forms(tmp_path):
    """Plain files, no split, two splits, an empty part, no edges, Windows' ends of lines."""
    write_ogb(GRAPH, tmp_path)
    for file in tmp_path.rglob("*.gz"):
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()).replace(b"\n", b"\r\n"))
        file.unlink()
    assert read_ogb(tmp_path).fingerprint() == GRAPH.fingerprint()
    put(tmp_path / "split" / "time" / "valid.csv", "")
    assert read_ogb(tmp_path).splits["val"].size == 0
    (tmp_path / "split" / "time").rename(tmp_path / "split" / "sales_ranking")
    assert read_ogb(tmp_path, own_split="sales rank").own_split == "sales rank"
    (tmp_path / "split" / "random").mkdir()
    put(tmp_path / "split" / "random" / "train.csv", "0\n")
    with pytest.raises(InputError, match="with the splits random, sales_ranking: must be a folder of one split"):
        read_ogb(tmp_path)
    for path in (tmp_path / "split").iterdir():
        path.rename(tmp_path / path.name)
    (tmp_path / "split").rmdir()
    put(tmp_path / "raw" / "edge.csv", "")
    put(tmp_path / "raw" / "num-edge-list.csv", "0\n")
    graph = read_ogb(tmp_path)
    assert graph.splits is None
    assert graph.num_edges == 0


def test_binary_ogb_refuses(tmp_path):
    write_ogb_binary(GRAPH, tmp_path)
    np.savez(tmp_path / "raw" / "node-label.npz", node_label=np.zeros((3, 1)))
    with pytest.raises(InputError, match=r"labels in .*one per node, 4"):
        read_ogb(tmp_path)
    np.savez(tmp_path / "raw" / "data.npz", edge_index=np.zeros((2, 1), int))
    with pytest.raises(InputError, match="without the key node_feat"):
        read_ogb(tmp_path)


SAINT = {
    "node": ("class_map.json", '{"4": 0}', "with the node 4: must be node numbers, 0 to 3"),
    "node text": ("class_map.json", '{"x": 0}', "with the node x"),
    "several": ("class_map.json", '{"0": [0, 1]}', "nodes have several classes cannot be read"),
    "fraction": ("class_map.json", '{"0": 0.5}', "with the class 0.5"),
    "true": ("class_map.json", '{"0": true}', "with the class True"),
    "list": ("class_map.json", "[0, 1]", r"class_map.json \(not a JSON object\)"),
    "deep": ("class_map.json", "[" * 100000, "nested too deeply"),
    "role": ("role.json", '{"tr": [0], "va": [1]}', "role.json, te: must be a list of node numbers"),
    "role range": ("role.json", '{"tr": [0], "va": [1], "te": [9]}', r"splits\['test'\] in .*= 9"),
    "role text": ("role.json", '{"tr": ["0"], "va": [1], "te": [3]}', "role.json, tr"),
    "feats": ("feats.npy", b"\x93NUMPY", "a complete .npy file of plain numbers"),
}


@pytest.mark.parametrize(("file", "content", "words"), SAINT.values(), ids=SAINT)
def test_graphsaint_refuses(tmp_path, file, content, words):
    write_graphsaint(GRAPH, tmp_path)
    put(tmp_path / file, content)
    with pytest.raises(InputError, match=words):
        read_graphsaint(tmp_path)


def test_graphsaint_arrays_that_do_not_fit(tmp_path):
    write_graphsaint(GRAPH, tmp_path)
    for array in (np.zeros(4), np.zeros((3, 2)), np.zeros((4, 2), dtype=object), np.array(["a", "b", "c", "d"])):
        np.save(tmp_path / "feats.npy", array)
        with pytest.raises(InputError):
            read_graphsaint(tmp_path)
    write_graphsaint(GRAPH, tmp_path)
    sp.save_npz(tmp_path / "adj_full.npz", sp.csr_matrix((4, 5)))
    with pytest.raises(InputError, match="square"):
        read_graphsaint(tmp_path)
    assert json.loads((tmp_path / "role.json").read_text())["tr"] == [0]


def test_scipy_refuses(tmp_path):
    write_scipy(GRAPH, tmp_path)
    good = GRAPH.adjacency
    for matrix, words in (
        (sp.csr_array((5, 4)), "the first 4, the number of nodes"),
        (sp.csr_array((4, 5)), "square"),
        (sp.dia_array(good), "with dia: must be a matrix in csr, csc or coo"),
        (good * -1.0, r"weights in .* = -1.0"),
    ):
        sp.save_npz(tmp_path / "adjacency.npz", matrix)
        with pytest.raises(InputError, match=words):
            read_scipy(tmp_path)
    parts = {"data": np.ones(1), "row": np.array([0]), "col": np.array([7]), "shape": np.array([4, 4])}
    for changes, words in (
        ({}, "matrix col in .* = 7"), ({"col": np.array([1, 2])}, "of one length"), ({"col": np.array([0.5])}, "0.5"),
        ({"shape": np.array([2**40, 2**40])}, "the first 4"), ({"format": "coo" * 999}, "longer than a name"),
        ({"shape": np.array([4, 2**40])}, "at most 2147483647"), ({"format": np.ones(3)}, "not a text"),
    ):  # fmt: skip
        np.savez(tmp_path / "adjacency.npz", **{"format": "coo"} | parts | changes)
        with pytest.raises(InputError, match=words):
            read_scipy(tmp_path)


def test_a_lone_scipy_matrix_says_what_it_lacks(tmp_path):
    sp.save_npz(tmp_path / "a.npz", GRAPH.adjacency)
    with pytest.raises(InputError, match=r"name it adjacency\.npz, in a folder with features and labels"):
        load_dataset(tmp_path / "a.npz")


def test_scipy_truth_values_and_sums(tmp_path):
    """False is no edge; two values at one place of a COO matrix are added."""
    write_scipy(GRAPH, tmp_path)
    rows, columns = np.array([0, 0, 1]), np.array([1, 2, 2])
    np.savez(tmp_path / "adjacency.npz", format="coo", data=np.array([True, False, True]), row=rows, col=columns,
             shape=(4, 4))  # fmt: skip
    assert read_scipy(tmp_path).num_edges == 2
    np.savez(tmp_path / "adjacency.npz", format="coo", data=[2.0, 3.0], row=[0, 0], col=[1, 1], shape=(4, 4))
    assert read_scipy(tmp_path).weights.tolist() == [5.0, 5.0]


CSV = {
    "columns": ("edges.csv", "0\n1\n", "with 1 columns: must be two columns"),
    "fraction": ("edges.csv", "0,1.5\n", "0,1.5 in .*edges.csv, line 1 .*between two nodes, 0 to 3"),
    "weight": ("edges.csv", "0,1,0\n", "weights in .*= 0.0"),
    "text": ("edges.csv", "a,b\nc,d\n", "c in .*csv, line 2, column a: must be a number; number the nodes"),
    "names later": ("edges.csv", "0,1\n\na,b\n", "a in .*edges.csv, line 3, column 1: must be a number"),
    "few features": ("features.csv", "1,2\n", "1 rows in .*features.csv and 4 rows in .*labels.csv: must be"),
    "two labels": ("labels.csv", "0,1\n" * 4, "one number a line"),
    "split": ("train.csv", "9\n", r"splits\['train'\] in .*= 9"),
    "underscores": ("labels.csv", "0\n1_0\n0\n1\n", "1_0 in .*labels.csv, line 2: must be a number"),
    "edge range": ("edges.csv", "from,to\n0,1\n\n2,4\n4,4\n", r"2,4 in .*csv, line 4 \(2 such lines\): must be an"),
    "class names": ("labels.csv", "kind\ncat\ndog\ncat\ndog\n", "cat in .*csv, line 2, column kind: .*factorize"),
    "empty value": ("features.csv", "1,2\n1,\n1,2\n1,2\n", "nothing in .*csv, line 2, column 2: must be a number"),
    "index of features": ("features.csv", ",a,b\n" + "0,1,2\n" * 4, r"no name: .*to_csv\(index=False\)"),
    "index of labels": ("labels.csv", ",label\n0,0\n1,1\n2,0\n3,1\n", r"labels.csv, .*to_csv\(index=False\)"),
    "index of edges": ("edges.csv", ",0,1\n0,0,1\n1,1,2\n", r"edges.csv, .*to_csv\(index=False\)"),
    "comment": ("labels.csv", "0\n# 1\n0\n1\n", "line 2, with 2 columns: must be of 1 columns"),
}


@pytest.mark.parametrize(("file", "content", "words"), CSV.values(), ids=CSV)
def test_csv_refuses(tmp_path, file, content, words):
    write_csv(GRAPH, tmp_path)
    put(tmp_path / file, content)
    with pytest.raises(InputError, match=words):
        read_csv(tmp_path)


@pytest.mark.parametrize("mark", [",", ";", "\t", " ", ", ", "  "])
def test_csv_separators_and_names(tmp_path, mark):
    write_csv(GRAPH, tmp_path)
    put(tmp_path / "edges.csv", f"from{mark}to\n" + "".join(f"{i}{mark}{(i + 1) % 4}\n" for i in range(4)))
    assert read_csv(tmp_path).fingerprint() == GRAPH.fingerprint()


def test_tables_do_not_outgrow_memory(tmp_path, monkeypatch):
    """Some kB of gzip hold any number of lines."""
    write_csv(GRAPH, tmp_path)
    (tmp_path / "edges.csv").unlink()
    put(tmp_path / "edges.csv.gz", "0 1\n" * 10**5)
    monkeypatch.setattr(module, "memory_bytes", lambda: 10**6)
    with pytest.raises(InputError, match="more numbers than this machine's memory holds"):
        read_csv(tmp_path)
    monkeypatch.setattr(module, "_LONGEST_LINE", 100)
    put(tmp_path / "edges.csv.gz", "0" * 101)
    with pytest.raises(InputError, match="a line of more than 100 characters"):
        read_csv(tmp_path)


def test_npz_under_other_names_refuses(tmp_path):
    write_pyg(GRAPH, tmp_path)
    good = dict(np.load(tmp_path / "g.npz"))
    for changes, words in (
        ({"val_mask": None}, "without the key val_mask"), ({"y": np.zeros((4, 3))}, "choose one column"),
        ({"test_mask": np.ones((4, 5), bool)}, "keep one column of each mask"),
        ({"test_mask": np.array([0, 0, 0, 2])}, "4 truth values"), ({"x": None}, "without the key x_shape"),
    ):  # fmt: skip
        parts = {key: value for key, value in (good | changes).items() if value is not None}
        np.savez(tmp_path / "g.npz", **parts)
        with pytest.raises(InputError, match=words):
            read_npz(tmp_path / "g.npz")
    write_graphbolt(GRAPH, tmp_path)
    good = dict(np.load(tmp_path / "g.npz"))
    for changes, words in (
        ({"csc_indptr": np.array([0, 1, 2, 3])}, r"csc indptr in .*of shape \(5,\)"),
        ({"indices": np.full(8, 9)}, "csc indices in .* = 9"), ({"indices": None}, "without the key indices"),
    ):  # fmt: skip
        np.savez(tmp_path / "g.npz", **{key: value for key, value in (good | changes).items() if value is not None})
        with pytest.raises(InputError, match=words):
            read_npz(tmp_path / "g.npz")


def test_paths(tmp_path, capsys):
    """A folder is read by the command line as a name is; a name is never a path."""
    with pytest.raises(InputError, match="a file or folder that exists"):
        read_path(tmp_path / "none")
    assert main(["train", "--dataset", str(tmp_path / "none")]) == 2
    assert "none: must be a file or folder that exists" in capsys.readouterr().err
    empty = tmp_path / "empty"
    empty.mkdir()
    for place, words in (
        (empty, "one of the formats npz, planetoid"),
        (put(tmp_path / "edge.csv", "0,1\n"), "give the folder, which has edges.csv"),
        (put(tmp_path / "labels.csv.gz", "0\n"), "give the folder, which has edges.csv"),
        (tmp_path, "it has edge.csv, empty, labels.csv.gz, and lacks edges.csv, features.csv"),
        ("grph", "grph, of which there is no file or folder here: must be a path that exists, or one of cora"),
    ):
        with pytest.raises(InputError, match=words):
            load_dataset(place)
    big = Graph.from_edges([range(29), range(1, 30)], np.eye(30), np.arange(30) % 2)
    (tmp_path / "cora").mkdir()
    write_csv(big, tmp_path / "cora")
    flags = ["--layers", "2", "--hidden", "4", "--iterations", "2", "--quiet", "--split", "random:3"]
    assert main(["train", "--dataset", str(tmp_path / "cora"), *flags]) == 0


def test_two_planetoid_sets_in_a_folder(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"ind.{name}.allx").touch()
    with pytest.raises(InputError, match="with a, b: must be a folder of one Planetoid set; name the set"):
        read_path(tmp_path)
