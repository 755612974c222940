"""``pdadmm predict``: the table is what the estimator predicts, and what does not fit is refused."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from pdadmm import PDADMMG, csbm
from pdadmm.cli import main
from pdadmm.data import Graph, write_npz
from pdadmm.solvers import SOLVERS, solver_class

GRAPH = csbm(60, num_classes=3, num_features=5, seed=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The graph, and the same without labels or splits."""
    path = tmp_path_factory.mktemp("predict")
    write_npz(GRAPH, path / "g.npz")
    pairs = np.stack(GRAPH.adjacency.nonzero())
    write_npz(Graph.from_edges(pairs, GRAPH.features, np.full(60, -1)), path / "bare.npz")
    return path


def table(folder) -> list[list[str]]:
    return list(csv.reader((folder / "t.csv").read_text("utf-8").splitlines()))


def trained(solver: str):
    settings = {"layers": 2, "hidden": 6, "iterations": 3} | ({} if SOLVERS[solver].on_graph else {"hops": 2})
    return solver_class(solver)(**settings).fit(GRAPH)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_table_is_the_prediction(folder, capsys, solver):
    """Of every solver; with the settings of training, which are in the file; labels and splits play no part."""
    estimator = trained(solver)
    estimator.save(folder / "m")
    for name in ("g.npz", "bare.npz"):
        words = [str(folder / "m"), "--dataset", str(folder / name), "-o", str(folder / "t.csv"), "--quiet"]
        assert main(["predict", *words]) == 0
        assert capsys.readouterr().err == ""
        head, *rows = table(folder)
        assert head == ["node", "class", "probability"]
        assert [int(row[0]) for row in rows] == list(range(60))
        assert [int(row[1]) for row in rows] == estimator.predict(GRAPH).tolist()
        found = [float(row[2]) for row in rows]
        np.testing.assert_allclose(found, estimator.predict_proba(GRAPH).max(axis=1), rtol=1e-5)


def test_names_of_classes_are_written(folder, capsys):
    """A model of a graph whose classes were given names afterwards."""
    estimator = trained("adam")
    estimator.classes_ = np.array(["a,b", "ü", 'c"'])
    estimator.save(folder / "named")
    words = [str(folder / "named"), "--dataset", str(folder / "g.npz"), "-o", str(folder / "t.csv")]
    assert main(["predict", *words]) == 0
    told = capsys.readouterr()
    assert told.out.startswith(f"wrote {folder / 't.csv'}: 60 nodes, ")
    assert "g: 60 nodes" in told.err
    rows = table(folder)[1:]
    assert [row[1] for row in rows] == estimator.predict(GRAPH).tolist()


def test_what_does_not_fit_is_refused(folder, capsys, tmp_path):
    trained("adam").save(tmp_path / "m")
    X = np.eye(6, 4)
    PDADMMG(layers=2, hidden=4, iterations=2).fit(X, [0, 1] * 3).save(tmp_path / "arrays")
    write_npz(csbm(30, num_classes=3, num_features=4, seed=0), tmp_path / "narrow.npz")
    (tmp_path / "augmented").mkdir()
    (tmp_path / "augmented" / "augmented.json").write_text("{}")
    (tmp_path / "bad").write_bytes(b"nonsense")
    for model, graph, out, words in (
        ("m", tmp_path / "narrow.npz", "t.csv", "graph.features = 4 columns: must be 5 columns wide"),
        ("m", tmp_path / "none", "t.csv", "none: must be a file or folder that exists"),
        ("m", tmp_path / "augmented", "t.csv", "must be the graph, not its augmented features"),
        ("m", folder / "g.npz", "none/t.csv", "out = "),
        ("arrays", folder / "g.npz", "t.csv", "must be of a training on a graph"),
        ("bad", folder / "g.npz", "t.csv", "must be a file written by save_model"),
        ("none", folder / "g.npz", "t.csv", "must be a file written by save_model; No such file"),
    ):
        words_given = [str(tmp_path / model), "--dataset", str(graph), "-o", str(tmp_path / out), "--quiet"]
        assert main(["predict", *words_given]) == 2
        err = capsys.readouterr().err
        assert words in err
        assert err.count("\n") == 1
        assert "Errno" not in err
    assert not (tmp_path / "t.csv").exists()


def test_other_ranks_write_nothing(folder, monkeypatch):
    monkeypatch.setattr("pdadmm.cli.predict.launched_rank", lambda: 1)
    trained("adam").save(folder / "m")
    words = [str(folder / "m"), "--dataset", str(folder / "g.npz"), "-o", str(folder / "never.csv")]
    assert main(["predict", *words]) == 0
    assert not (folder / "never.csv").exists()
