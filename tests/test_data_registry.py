"""The table of data sets, load_dataset, and the real graphs' statistics."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from pdadmm.data import DATASETS, csbm, load_dataset, make_splits, write_npz
from pdadmm.errors import InputError

FILES = [row for row in DATASETS.values() if row.files]


def real(name: str):
    folder = os.environ.get("PDADMM_DATA")
    if not folder:
        pytest.skip("PDADMM_DATA is not set")
    facts = Path(folder) / f"{name}.json"
    if not facts.is_file() or not (Path(folder) / f"{name}.npz").is_file():
        pytest.skip(f"PDADMM_DATA holds no {name}")
    return load_dataset(name), json.loads(facts.read_text())


@pytest.mark.parametrize("row", FILES, ids=lambda row: row.name)
def test_real_graphs_have_the_published_statistics(row):
    graph, facts = real(row.name)
    assert graph.num_nodes == row.nodes == facts["nodes"]
    assert graph.num_edges == row.edges == facts["undirected_edges"]
    assert graph.indices.size == facts["directed_pairs_after_symmetrise_dedup_noloops"]
    assert graph.num_features == row.features == facts["features"]
    assert graph.num_classes == row.classes == facts["classes"]
    assert np.bincount(graph.labels[graph.labels >= 0]).tolist() == facts["class_counts"]
    assert np.count_nonzero(graph.labels < 0) == facts["unlabelled_nodes"]
    assert np.count_nonzero(np.diff(graph.indptr) == 0) == facts["isolated_nodes"]
    assert np.count_nonzero(np.diff(graph.features.indptr) == 0) == facts["zero_feature_rows"]
    rows = np.repeat(np.arange(graph.num_nodes), np.diff(graph.indptr))
    ends = np.stack([graph.labels[rows], graph.labels[graph.indices]])
    ends = ends[:, (ends >= 0).all(axis=0)]
    assert (ends[0] == ends[1]).mean() == pytest.approx(facts["edge_homophily"], abs=2e-4)
    for part, nodes in graph.splits.items():
        assert [nodes.size] == facts["splits"][f"{part}_idx"]
    assert graph.own_split == row.split
    assert graph.name == row.name
    if row.split == "public":
        assert np.bincount(graph.labels[graph.splits["train"]]).tolist() == [20] * row.classes
        assert np.array_equal(make_splits(graph, "public")["train"], graph.splits["train"])


@pytest.mark.parametrize("name", ["digits", "csbm"])
def test_built_graphs_match_their_row(name):
    if name == "digits":
        pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    row, graph = DATASETS[name], load_dataset(name)
    assert (graph.num_nodes, graph.num_features, graph.num_classes) == (row.nodes, row.features, row.classes)
    assert graph.num_edges == pytest.approx(row.edges, rel=0.01 if name == "csbm" else 0)
    assert graph.own_split == row.split
    assert make_splits(graph, "file")["train"].size == graph.splits["train"].size


def test_rows_are_complete():
    for name, row in DATASETS.items():
        assert row.name == name
        assert row.description
        assert row.citation
        assert row.licence
        assert bool(row.files) != bool(row.builder)


def test_names_are_looked_up_in_the_folder(tmp_path, monkeypatch):
    graph = csbm(30, num_classes=2)
    write_npz(graph, tmp_path / "cora.npz")
    write_npz(graph, tmp_path / "amazon_electronics_computers.npz")
    assert load_dataset("cora", tmp_path).fingerprint() == graph.fingerprint()
    assert load_dataset("amazon_computers", data_dir=str(tmp_path)).name == "amazon_computers"
    monkeypatch.setenv("PDADMM_DATA", str(tmp_path))
    assert load_dataset("cora").name == "cora"
    monkeypatch.setenv("PDADMM_DATA", str(tmp_path / "other"))
    assert load_dataset("cora", tmp_path).name == "cora", "the argument comes before the variable"


def test_a_path_is_read_as_it_is(tmp_path):
    write_npz(csbm(30, num_classes=2), tmp_path / "mine.npz")
    assert load_dataset(tmp_path / "mine.npz").name == "mine"
    assert load_dataset(str(tmp_path / "mine.npz")).num_nodes == 30


def test_missing_files_say_where_and_how(tmp_path, monkeypatch):
    monkeypatch.delenv("PDADMM_DATA", raising=False)
    with pytest.raises(InputError, match=r"cora\.npz.*--data-dir.*PDADMM_DATA"):
        load_dataset("cora")
    with pytest.raises(InputError, match=r"holds none of cora.npz, ind.cora.allx.*PDADMM_DATA"):
        load_dataset("cora", tmp_path)
    with pytest.raises(InputError, match=r"data_dir = .*a folder that exists"):
        load_dataset("cora", tmp_path / "none")
    with pytest.raises(InputError, match="must be a file that exists"):
        load_dataset(tmp_path / "none.npz")
    monkeypatch.setenv("PDADMM_DATA", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"a folder that exists; PDADMM_DATA names it"):
        load_dataset("cora")


@pytest.mark.parametrize(
    ("name", "message"),
    [("corra", "did you mean cora"), ("Cora", "did you mean cora"), ("amazon", "one of cora, citeseer"),
     ("", "one of cora"), ("cora:3", "one of cora"), ("csbm:x", "csbm:N"), ("csbm:-5", "csbm:N"),
     ("csbm:1", "num_nodes = 1"), ("digits:3", "takes nothing"),
     ("somewhere/graph.txt", "a file or folder that exists")],
)  # fmt: skip
def test_unknown_names(name, message):
    with pytest.raises(InputError, match=message):
        load_dataset(name)
