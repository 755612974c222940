"""Tables as pandas and spreadsheets write them: names that are numbers, empty lines, marks at the start."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdadmm.data import read_csv
from pdadmm.errors import InputError

RING = "1,2\n2,3\n3,0\n0,1\n"


def write(folder, features: str, labels: str, edges: str = RING, **splits: str):
    for name, text in {"features": features, "labels": labels, "edges": edges, **splits}.items():
        (folder / f"{name}.csv").write_text(text, encoding="utf-8")
    return folder


@settings(max_examples=25, deadline=None)
@given(
    width=st.integers(3, 5),
    heads=st.tuples(st.booleans(), st.booleans()),
    first=st.lists(st.integers(0, 4), min_size=5, max_size=5),
)
def test_a_header_of_numbers_is_never_a_node(tmp_path_factory, width, heads, first):
    """With a header in any of the three files, names or numbers, the graph is that of the files without."""
    X = np.array([[*first[:width]], *np.eye(3, width) + 5])
    if X[0].tolist() == list(range(width)):
        X[0, 0] = 9  # a node that looks like a header is taken for one
    rows = "".join(",".join(f"{x:g}" for x in row) + "\n" for row in X)
    numbers = ",".join(map(str, range(width))) + "\n"
    folder = write(tmp_path_factory.mktemp("csv"), rows, "0\n1\n0\n1\n")
    plain = read_csv(folder)
    assert plain.num_nodes == 4
    assert np.array_equal(plain.features, X.astype(np.float32))
    write(folder, (numbers if heads[0] else "") + rows, ("0\n" if heads[1] else "") + "0\n1\n0\n1\n")
    assert read_csv(folder).fingerprint() == plain.fingerprint()
    splits = {"train": "0\n0\n", "val": "0\n1\n", "test": "0\n2\n"}
    own = read_csv(write(folder, numbers + rows, "0\n0\n1\n0\n1\n", "0,1\n1,2\n2,3\n3,0\n", **splits))
    assert own.splits["train"].tolist() == [0]
    assert own.num_edges == 3  # 0,1 was the header of the edges


def test_narrow_tables_are_judged_by_the_other_file(tmp_path, caplog):
    two = "0,1\n1,0\n1,1\n0,0\n"
    with caplog.at_level(logging.INFO, "pdadmm"):
        assert read_csv(write(tmp_path, two, "0\n1\n0\n1\n")).num_nodes == 4  # the edges name node 3
        assert "WARNING" not in caplog.text
        assert "features.csv: 4 rows" in caplog.text
        assert read_csv(write(tmp_path, "0,1\n" + two, "0\n1\n0\n1\n", "2,3\n")).num_nodes == 4
        assert "features.csv: 4 rows, first line taken for names" in caplog.text
        assert read_csv(write(tmp_path, "a,b\n" + two, "0\n0\n1\n0\n1\n", "2,3\n")).labels.tolist() == [0, 1, 0, 1]
        assert "WARNING" not in caplog.text
        assert read_csv(write(tmp_path, two, "0\n1\n0\n1\n", "0,1\n")).num_edges == 1
        assert "begin with 0, 1, ..: taken for node 0" in caplog.text


def test_an_edge_that_was_taken_for_names_is_told_unless_it_stands_twice(tmp_path, caplog):
    numbered = "0,1,2\n" + "3,4,5\n" * 4
    assert read_csv(write(tmp_path, numbered, "0\n0\n1\n0\n1\n", "0,1\n1,0\n2,3\n")).num_edges == 2
    assert not caplog.records
    assert read_csv(write(tmp_path, numbered, "0\n0\n1\n0\n1\n", "0,1\n2,3\n")).num_edges == 1
    assert "edges.csv: first line 0,1 taken for names" in caplog.text


@pytest.mark.parametrize("unknown", ["", "NA", "nan", '""', "-1", "<NA>", " "])
@pytest.mark.parametrize("place", [0, 1, 3])
def test_labels_that_are_not_known(tmp_path, unknown, place):
    labels = ["0", "1", "0", "1"]
    labels[place] = unknown
    expected = [int(label) if k != place else -1 for k, label in enumerate(labels)]
    for head in ("", "label\n", "\ufeff"):
        write(tmp_path, "1,2\n" * 4, head + "\n".join(labels) + "\n")
        assert read_csv(tmp_path).labels.tolist() == expected


def test_empty_lines_at_the_end_are_nodes_only_where_nodes_lack(tmp_path):
    write(tmp_path, "\n1,2\n\n1,2\n1,2\n1,2\n\n", "0\n1\n0\n\n\n\n", "\n0,1\n\n2,3\n")
    graph = read_csv(tmp_path)
    assert graph.labels.tolist() == [0, 1, 0, -1]
    assert graph.num_edges == 2
    write(tmp_path, "1,2\n" * 4, "0\n1\n0\n1\n\n")
    assert read_csv(tmp_path).labels.tolist() == [0, 1, 0, 1]
    write(tmp_path, "1,2\n" * 4, "0\n\n")
    with pytest.raises(InputError, match=r"4 rows in .*features.csv and 2 rows in .*labels.csv"):
        read_csv(tmp_path)


def test_the_mark_of_utf8_is_no_text(tmp_path):
    for head in ("", "f0,f1\n"):
        write(tmp_path, "\ufeff" + head + "1,2\n" * 4, "\ufeff0\n1\n0\n1\n", "\ufeff" + RING)
        assert read_csv(tmp_path).features.tolist() == [[1.0, 2.0]] * 4


def test_the_first_lines_of_splits(tmp_path):
    """One part may begin with node 0; all three cannot."""
    write(tmp_path, "1,2\n" * 4, "0\n1\n0\n1\n", train="0\n", val="1\n", test="2\n")
    assert read_csv(tmp_path).splits["train"].tolist() == [0]
    write(tmp_path, "1,2\n" * 4, "0\n1\n0\n1\n", train="0\n0\n", val="0\n1\n", test="")
    assert read_csv(tmp_path).splits["val"].tolist() == [1]


def test_a_folder_that_lacks_a_table(tmp_path):
    write(tmp_path, "1,2\n" * 4, "0\n1\n0\n1\n")
    (tmp_path / "labels.csv").unlink()
    with pytest.raises(InputError, match=r"with edges\.csv, features\.csv: must be a folder with labels\.csv, too"):
        read_csv(tmp_path)
