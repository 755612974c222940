"""Lists of edges become the graph that Graph.from_edges makes, however small the memory; bad files are named."""

from __future__ import annotations

import gzip
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pdadmm import Graph, InputError
from pdadmm.cli import main
from pdadmm.disk import convert
from pdadmm.disk.convert import Sources, convert_graph, least_memory
from pdadmm.disk.graph import WORK, DiskGraph
from pdadmm.disk.text import number_blocks

SETTINGS = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FORMS = ("plain.csv", "tabs.tsv", "packed.csv.gz", "spaces.txt", "array.npy")
MARKS = {"plain.csv": ",", "tabs.tsv": "\t", "packed.csv.gz": ",", "spaces.txt": " "}


def write(path, rows, mark=",", heading="") -> None:
    """Write rows of numbers as a file's name says."""
    if path.suffix == ".npy":
        np.save(path, np.asarray(rows))
        return
    text = heading + "".join(mark.join(map(str, np.atleast_1d(row))) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def blocks_of(path, columns=2, size=64) -> np.ndarray:
    return np.concatenate([np.empty((0, columns), np.int64), *number_blocks(path, columns, size)])


@pytest.fixture(autouse=True)
def no_flush(monkeypatch):
    """What a loss of power would need, and no test can see, is left out: it takes most of the time."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def small(monkeypatch):
    """A sort of a few keys at a time."""
    monkeypatch.setattr(convert, "LEAST_KEYS", 3)


# The converter


@given(data=st.data())
@SETTINGS
def test_the_graph_is_that_of_from_edges(tmp_path_factory, small, data):
    folder, V = tmp_path_factory.mktemp("c"), data.draw(st.integers(1, 9))
    node = st.integers(0, V - 1)
    pairs = data.draw(st.lists(st.tuples(node, node), max_size=40))
    cut = data.draw(st.integers(0, len(pairs)))
    files = [folder / form for form in data.draw(st.lists(st.sampled_from(FORMS), min_size=2, max_size=2, unique=True))]
    for file, part in zip(files, (pairs[:cut], pairs[cut:])):
        write(file, np.array(part, np.int64).reshape(-1, 2), MARKS.get(file.name, ","))
    features = np.arange(V * 3, dtype="float32").reshape(V, 3)
    labels = np.arange(V) % 2
    np.save(folder / "x.npy", features)
    write(folder / "y.csv", labels)
    convert_graph(Sources(files, folder / "x.npy", folder / "y.csv"), folder / "out", least_memory(V))
    with DiskGraph(folder / "out") as graph:
        graph.check()
        back = graph.to_graph()
    expected = Graph.from_edges(np.array(pairs, np.int64).reshape(-1, 2).T, features, labels)
    assert back.fingerprint() == expected.fingerprint()
    assert not (folder / "out" / WORK).exists()


@given(st.lists(st.lists(st.integers(0, 50), max_size=20), max_size=6), st.integers(1, 9))
@SETTINGS
def test_runs_merge_into_one_rising_sequence(tmp_path_factory, lists, room):
    folder, traffic = tmp_path_factory.mktemp("r"), convert.Traffic()
    keys = [np.array(numbers, np.int64) for numbers in lists]
    runs = list(convert._runs(keys, folder, room, traffic))
    merged = np.concatenate([np.empty(0, np.int64), *convert._merged(runs, room, traffic)])
    assert merged.tolist() == sorted({number for numbers in lists for number in numbers})
    assert len(runs) == -(-sum(map(len, lists)) // (2 * room))


def test_raw_features_splits_and_half_precision(tmp_path):
    X = np.linspace(-1, 1, 12).astype("float16").reshape(4, 3)
    (tmp_path / "x.bin").write_bytes(X.tobytes())
    write(tmp_path / "e.csv", [(0, 1), (2, 3)], heading="source,target\n")
    write(tmp_path / "y.csv", [0, 1, 0, -1])
    for name, nodes in (("train", [0]), ("val", [1]), ("test", [2])):
        np.save(tmp_path / f"{name}.npy", np.array(nodes))
    given = [f"--edges={tmp_path / 'e.csv'}", "--features", tmp_path / "x.bin", "--raw-features", 3]
    splits = ["--splits", *(tmp_path / f"{name}.npy" for name in ("train", "val", "test"))]
    words = [*given, "--raw-type", "float16", "--labels", tmp_path / "y.csv", *splits, "--out", tmp_path / "g"]
    assert main(["convert", *map(str, words)]) == 0
    with DiskGraph(tmp_path / "g") as graph:
        graph.check()
        np.testing.assert_array_equal(graph.features.rows(0, 4), X)
        assert {name: rows.tolist() for name, rows in graph.splits().items()} == {"train": [0], "val": [1], "test": [2]}
        assert (graph.num_edges, graph.num_classes, graph.features.dtype) == (4, 2, np.float16)


def test_raw_features_have_no_header(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.ones((6, 2), np.float32))
    (tmp_path / "e.csv").write_text("0,1\n")
    files = ["--edges", str(tmp_path / "e.csv"), "--features", str(tmp_path / "x.npy")]
    assert main(["convert", *files, "--raw-features", "2", "--out", str(tmp_path / "g")]) == 2
    assert "x.npy, an .npy file: must be bare numbers without a header; leave --raw-features" in capsys.readouterr().err


def test_a_conversion_that_was_killed_is_begun_again(tmp_path):
    (tmp_path / "g" / WORK).mkdir(parents=True)
    (tmp_path / "g" / WORK / "run-000000.npy").write_bytes(b"half")
    (tmp_path / "g" / "indices.npy.partial").write_bytes(b"half")
    np.save(tmp_path / "x.npy", np.ones((2, 1)))
    write(tmp_path / "e.csv", [(0, 1)])
    sources = Sources([tmp_path / "e.csv"], tmp_path / "x.npy")
    convert_graph(sources, tmp_path / "g", 1 << 30)
    with DiskGraph(tmp_path / "g") as graph:
        assert graph.to_graph().num_edges == 1
    with pytest.raises(InputError, match="a new or empty folder"):
        convert_graph(sources, tmp_path / "g", 1 << 30)


def test_a_failed_conversion_removes_nothing_of_the_users(tmp_path, monkeypatch):
    out = tmp_path / "g"
    np.save(tmp_path / "x.npy", np.ones((2, 1)))
    write(tmp_path / "e.csv", [(0, 1)])

    def fail(*given) -> None:
        (out / "notes.md").write_text("mine")
        raise OSError("the disk is full")

    monkeypatch.setattr(convert, "_write_features", fail)
    with pytest.raises(OSError, match="the disk is full"):
        convert_graph(Sources([tmp_path / "e.csv"], tmp_path / "x.npy"), out, 1 << 30)
    assert [file.name for file in out.iterdir()] == ["notes.md"]


def test_sources_in_the_folder_of_the_graph_are_refused(tmp_path):
    np.save(tmp_path / "features.npy", np.ones((2, 1)))
    np.save(tmp_path / "train.npy", np.array([[0, 1]]))
    with pytest.raises(InputError, match=r"another folder than that of .*train.npy; its files would be replaced"):
        convert_graph(Sources([tmp_path / "train.npy"], tmp_path / "features.npy"), tmp_path, 1 << 30)
    assert np.load(tmp_path / "features.npy").dtype == np.float64
    assert sorted(file.name for file in tmp_path.iterdir()) == ["features.npy", "train.npy"]


@pytest.mark.parametrize(
    ("change", "words"),
    [({"edges": [(0, 4)]}, "an edge 0, 4"), ({"edges": [(-1, 0)]}, "an edge -1, 0"),
     ({"labels": [0, 1]}, "one for each of 4 nodes"), ({"labels": [0] * 5}, "at most one for each"),
     ({"features": np.ones(4)}, "a matrix of numbers"), ({"features": np.full((4, 1), np.nan)}, "nan at node 0"),
     ({"splits": [[0], [1], [7]]}, "splits.*7"), ({"memory": 1000}, "give at least")],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)  # fmt: skip
def test_what_does_not_fit_together_is_refused_and_leaves_nothing(tmp_path, change, words):
    given = {"edges": [(0, 1)], "features": np.ones((4, 2)), "labels": [0, 1, 0, 1], "memory": 1 << 30} | change
    write(tmp_path / "e.csv", given["edges"])
    write(tmp_path / "y.csv", given["labels"])
    np.save(tmp_path / "x.npy", given["features"])
    splits = [tmp_path / f"{name}.csv" for name in ("train", "val", "test")] if "splits" in given else None
    for path, nodes in zip(splits or (), given.get("splits", ())):
        write(path, nodes)
    sources = Sources([tmp_path / "e.csv"], tmp_path / "x.npy", tmp_path / "y.csv", splits)
    for out in ("empty", "begun"):
        (tmp_path / out).mkdir()
    np.save(tmp_path / "begun" / "train.npy", [1])
    for out in ("new", "empty", "begun"):
        with pytest.raises(InputError, match=words):
            convert_graph(sources, tmp_path / out, given["memory"])
    assert not (tmp_path / "new").exists()
    assert not list((tmp_path / "empty").iterdir())
    assert [path.name for path in (tmp_path / "begun").iterdir()] == ["train.npy"]


# Text


@given(
    rows=st.lists(st.tuples(*[st.integers(-(10**12), 10**12)] * 2), max_size=60), form=st.sampled_from(FORMS),
    heading=st.sampled_from(["", "from,to\n", "# a\n%b\n", "# a\n\nid id\n"]), size=st.integers(1, 200),
)  # fmt: skip
@SETTINGS
def test_numbers_come_back_whatever_the_form(tmp_path, rows, form, heading, size):
    rows = np.array(rows, np.int64).reshape(-1, 2)
    write(tmp_path / form, rows, MARKS.get(form, ","), heading)
    np.testing.assert_array_equal(blocks_of(tmp_path / form, size=size), rows)


def test_line_ends_of_other_systems_and_a_missing_last_one(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"1,2\r\n3,4\r\n5,6")
    assert blocks_of(tmp_path / "a.csv").tolist() == [[1, 2], [3, 4], [5, 6]]


@pytest.mark.parametrize(
    ("text", "line"),
    [("1,2\n3\n", 2), ("1,2\n3,4,5\n", 2), ("1,2,3\n4\n", 1), ("1,2\n3,x\n", 2), ("1,2\n1.5,2\n", 2),
     ("1,2\n\n3,4\n", 2), ("1,2\n3,,4\n", 2), ("1, 2\n", 1), ("a,b\n1,2\nc,d\n", 3),
     ("1,2\n99999999999999999999,1\n", 2), ("1 2,3\n4\n", 1)],
)  # fmt: skip
def test_a_bad_line_is_named(tmp_path, text, line):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=f"line {line}: "):
        blocks_of(tmp_path / "a.csv")


def test_a_bad_line_behind_many_good_ones_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("# heading\n" + "1,2\n" * 5000 + "1;\n")
    with pytest.raises(InputError, match="line 5002: 1;"):
        blocks_of(tmp_path / "a.csv")


def test_damaged_and_missing_files_are_refused(tmp_path):
    packed = gzip.compress(b"1,2\n" * 1000)
    (tmp_path / "a.csv.gz").write_bytes(packed[:-9])
    (tmp_path / "b.csv.gz").write_bytes(b"1,2\n")
    np.save(tmp_path / "c.npy", np.ones((2, 3)))
    np.save(tmp_path / "d.npy", np.ones((2, 5), int))
    for name, words in (("a.csv.gz", "can be read"), ("b.csv.gz", "can be read"), ("c.npy", "whole numbers"),
                        ("d.npy", "transpose it"), ("e.csv", "can be read")):  # fmt: skip
        with pytest.raises(InputError, match=words):
            blocks_of(tmp_path / name)
