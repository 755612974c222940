"""csbm and digits."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse as sp

from pdadmm.data import csbm, digits
from pdadmm.errors import InputError


def edge_ends(graph):
    return np.repeat(np.arange(graph.num_nodes), np.diff(graph.indptr)), graph.indices


@pytest.mark.parametrize("homophily", [0.0, 0.3, 0.9, 1.0])
def test_csbm_has_the_statistics_asked_for(homophily):
    graph = csbm(20_000, num_classes=4, num_features=8, avg_degree=12, homophily=homophily, seed=3)
    assert graph.is_undirected
    assert np.bincount(graph.labels).tolist() == [5000] * 4
    assert 2 * graph.num_edges / graph.num_nodes == pytest.approx(12, rel=0.04)
    rows, columns = edge_ends(graph)
    assert (graph.labels[rows] == graph.labels[columns]).mean() == pytest.approx(homophily, abs=0.01)
    assert [graph.splits[name].size for name in ("train", "val", "test")] == [12_000, 4000, 4000]


def test_csbm_degrees_follow_the_exponent():
    tails = [np.diff(csbm(20_000, degree_exponent=exponent).indptr).max() for exponent in (2.2, 4.0, None)]
    assert tails[0] > 2 * tails[1] > 4 * tails[2]


def test_csbm_features_carry_the_signal():
    graph = csbm(5000, num_classes=3, num_features=20, feature_signal=3.0)
    means = np.stack([graph.features[graph.labels == label].mean(axis=0) for label in range(3)])
    np.testing.assert_allclose(np.linalg.norm(means, axis=1), 3.0, atol=0.2)
    noise = graph.features - means[graph.labels]
    assert noise.std() == pytest.approx(1.0, abs=0.02)


def test_csbm_sparse_features():
    graph = csbm(3000, num_classes=3, num_features=100, feature_signal=4.0, sparse_features=True)
    assert isinstance(graph.features, sp.csr_array)
    assert set(graph.features.data) == {1.0}
    assert 4 <= graph.features.nnz / 3000 <= 5
    own = graph.features.indices % 3 == np.repeat(graph.labels, np.diff(graph.features.indptr))
    assert own.mean() == pytest.approx(0.8 + 0.2 / 3, abs=0.03)
    csbm(50, num_classes=10, num_features=7, sparse_features=True)  # fewer words than classes


def test_csbm_is_seeded():
    first, second, third = (csbm(300, seed=seed).fingerprint() for seed in (0, 0, 1))
    assert first == second != third


def test_csbm_at_its_edges():
    assert csbm(2, num_classes=1, num_features=1, avg_degree=1).num_nodes == 2
    assert csbm(50, avg_degree=0).num_edges == 0
    assert csbm(50, num_classes=50, avg_degree=49).num_nodes == 50


@pytest.mark.parametrize(
    "bad",
    [{"num_nodes": 1}, {"num_nodes": 10.0}, {"num_nodes": True}, {"num_classes": 0}, {"num_classes": 11},
     {"num_features": 0}, {"avg_degree": -1}, {"avg_degree": 10}, {"avg_degree": float("nan")},
     {"homophily": 1.1}, {"homophily": "high"}, {"feature_signal": -1}, {"degree_exponent": 1.5},
     {"seed": -1}],
    ids=str,
)  # fmt: skip
def test_csbm_refuses_bad_parameters(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        csbm(**({"num_nodes": 10, "num_classes": 2, "avg_degree": 2} | bad))


def test_digits_by_brute_force():
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    pixels, labels = datasets.load_digits(return_X_y=True)
    graph = digits(k=4)
    assert graph.labels.tolist() == labels.tolist()
    np.testing.assert_array_equal(graph.features, (pixels / 16).astype(np.float32))
    dense = graph.adjacency.toarray() > 0
    chosen = []
    for node in range(0, 1797, 59):
        distances = ((pixels - pixels[node]) ** 2).sum(axis=1)
        order = sorted((distance, other) for other, distance in enumerate(distances) if other != node)
        nearest = {other for _, other in order[:4]}
        assert dense[node, list(nearest)].all()
        assert dense[list(nearest), node].all()
        chosen.append(len(nearest))
    assert graph.num_edges < 4 * 1797
    assert [graph.splits[name].size for name in ("train", "val", "test")] == [200, 500, 1097]
    assert np.bincount(labels[graph.splits["train"]]).tolist() == [20] * 10
    with pytest.raises(InputError, match="k = 0"):
        digits(k=0)


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match="scikit-learn is not installed"):
        digits()


def test_import_is_light():
    heavy = "{'torch', 'sklearn', 'matplotlib', 'cupy'}"
    code = f"import sys, pdadmm.data; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
