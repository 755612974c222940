"""The augmenter as a whole: its parts put together, its state, and what it refuses."""

from __future__ import annotations

import doctest
import importlib
import json
import pkgutil
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp

import pdadmm.augment
from pdadmm.augment import (
    OPERATORS,
    SCALINGS,
    WEIGHTINGS,
    Augmenter,
    Scaler,
    hop_weights,
    propagate,
    propagation_matrix,
)
from pdadmm.data import Graph
from pdadmm.errors import InputError

MODULES = [module.name for module in pkgutil.iter_modules(pdadmm.augment.__path__, "pdadmm.augment.")]


def random_graph(seed=0, V=60, F=9, sparse=False, weighted=False) -> Graph:
    rng = np.random.default_rng(seed)
    pairs = rng.integers(0, V - 2, (2, 3 * V))  # the last two nodes are isolated
    X = rng.normal(size=(V, F)) * (rng.random((V, F)) < 0.5)
    X[-1] = 0
    weights = rng.uniform(0.1, 3, 3 * V) if weighted else None
    features = sp.csr_array(X) if sparse else X
    return Graph.from_edges(pairs, features, rng.integers(0, 3, V), weights=weights)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_parts_in_order(operator, weighting, scaling, dtype):
    graph, fit_rows = random_graph(sparse=True, weighted=True), np.arange(5, 40)
    augmenter = Augmenter(3, operator, weighting, 0.2, 2.0, scaling, dtype)
    out = augmenter.fit_transform(graph, fit_rows)
    S = propagation_matrix(graph, operator, dtype)
    raw = propagate(S, graph.features, 3, hop_weights(weighting, 3, 0.2, 2.0))
    scaler = Scaler(scaling, 4 if weighting == "powers" else 1).fit(raw, fit_rows, graph.labels[fit_rows])
    np.testing.assert_array_equal(augmenter.shift_, scaler.shift)
    np.testing.assert_array_equal(augmenter.scale_, scaler.scale)
    np.testing.assert_array_equal(out, scaler.transform(raw))
    np.testing.assert_array_equal(augmenter.transform(graph), out)
    assert out.shape == (60, augmenter.num_outputs(9))
    assert out.dtype == dtype
    assert out.flags.c_contiguous


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_path_of_three_nodes_by_hand(weighting):
    path = Graph.from_edges([[0, 1], [1, 2]], [[6.0], [0.0], [12.0]], [0, 1, 0])
    out = Augmenter(1, "rw", weighting, alpha=0.25, heat_time=1.0, scaling="none").fit_transform(path)
    hops = np.array([[6.0, 3.0], [0.0, 6.0], [12.0, 6.0]])
    weights = {"powers": np.eye(2), "ppr": np.array([[0.25], [0.75]]), "heat": np.array([[0.5], [0.5]])}
    np.testing.assert_allclose(out, hops @ weights[weighting], rtol=1e-6)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("scaling", SCALINGS)
def test_slices_and_rows_do_not_change_a_bit(weighting, scaling, sparse):
    graph, train = random_graph(1, sparse=sparse), np.array([3, 50, 7, 21])
    settings = {"weighting": weighting, "scaling": scaling}
    full = Augmenter(**settings).fit_transform(graph, train)
    rows = np.random.default_rng(0).permutation(60)[:30]
    rows = np.concatenate([rows, np.setdiff1d(train, rows)])
    mask = np.zeros(60, bool)
    mask[rows] = True
    for width in (1, 4, 9):
        augmenter = Augmenter(**settings, slice_columns=width)
        np.testing.assert_array_equal(augmenter.fit_transform(graph, train, rows), full[rows])
        np.testing.assert_array_equal(augmenter.transform(graph, mask), full[mask])
        np.testing.assert_array_equal(augmenter.transform(graph, []), full[:0])
        np.testing.assert_array_equal(augmenter.transform(graph), full)


def test_fitting_rows_default_to_the_kept_ones():
    graph, rows = random_graph(), np.arange(10, 30)
    a = Augmenter().fit_transform(graph, rows=rows)
    np.testing.assert_array_equal(a, Augmenter().fit_transform(graph, rows, rows))
    np.testing.assert_allclose(a.mean(axis=0), 0, atol=1e-7)


def test_isolated_node_repeats_itself_and_a_single_node_works():
    graph = random_graph()
    out = Augmenter(2, scaling="none").fit_transform(graph).reshape(60, 3, 9)
    np.testing.assert_array_equal(out[58], np.tile(graph.features[58], (3, 1)))
    assert not out[59].any()
    one = Graph.from_edges(np.empty((2, 0), int), [[3.0, 4.0]], [0])
    out = Augmenter(1, scaling="row-l2").fit_transform(one)
    np.testing.assert_allclose(out, [[0.6, 0.8] * 2] / np.sqrt(2), rtol=1e-6)


def test_numpy_numbers_give_the_bits_of_python_numbers():
    plain = Augmenter(3, weighting="ppr", alpha=0.3).fit_transform(random_graph())
    given = Augmenter(np.int32(3), weighting="ppr", alpha=np.float64(0.3)).fit_transform(random_graph())
    np.testing.assert_array_equal(plain, given)


def test_features_are_left_alone():
    graph = random_graph()
    before = graph.features.copy()
    Augmenter(0).fit_transform(graph)
    np.testing.assert_array_equal(graph.features, before)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_state_goes_through_json_and_augments_a_new_graph(scaling):
    augmenter = Augmenter(np.int64(2), weighting="heat", heat_time=np.float32(3), scaling=scaling)
    augmenter.fit_transform(random_graph(), np.arange(20))
    config, arrays = augmenter.state()
    copy = Augmenter.from_state(json.loads(json.dumps(config)), arrays)
    new = random_graph(seed=9, V=33)
    np.testing.assert_array_equal(copy.transform(new), augmenter.transform(new))
    assert repr(copy) == repr(Augmenter.from_state(*copy.state()))
    with pytest.raises(InputError, match="of shape"):
        Augmenter.from_state(config, {**arrays, "shift": arrays["shift"][1:]})


def test_memory_of_scaling_is_a_few_blocks():
    graph = random_graph(V=3000, F=300)
    tracemalloc.start()
    out = Augmenter(slice_columns=16).fit_transform(graph, np.arange(1500), np.arange(2500))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= out.nbytes + (8 << 20)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"hops": -1}, "hops = -1: must be a whole number of at least 0"),
        ({"hops": 1.5}, "hops = 1.5"),
        ({"hops": True}, "hops = True"),
        ({"operator": "gcn"}, "operator = gcn: must be one of sym, rw, col"),
        ({"weighting": "mean"}, "weighting = mean: must be one of powers, ppr, heat"),
        ({"alpha": 1.1}, "alpha = 1.1: must be a number from 0 to 1"),
        ({"alpha": float("nan")}, "alpha = nan"),
        ({"alpha": "0.1"}, "alpha = 0.1"),
        ({"heat_time": -1.0}, "heat_time = -1.0: must be a finite number of at least 0"),
        ({"heat_time": float("inf")}, "heat_time = inf"),
        ({"scaling": None}, "scaling = None: must be one of hop-std, hop-loo, hop-l2, row-l2, standard, none"),
        ({"dtype": "float16"}, "dtype = float16: must be one of float32, float64"),
        ({"slice_columns": 0}, "slice_columns = 0: must be a whole number of at least 1"),
    ],
)
def test_bad_parameters_are_refused(parameters, message):
    with pytest.raises(InputError, match=message):
        Augmenter(**parameters)


@pytest.mark.parametrize(
    ("fit_rows", "rows", "message"),
    [
        ([60], None, "fit_rows = 60: must be node numbers from 0 to 59"),
        ([-1], None, "fit_rows = -1"),
        ([], None, "fit_rows = no rows"),
        ([0.5], None, "fit_rows = array of shape"),
        ([[1]], None, "fit_rows = array of shape"),
        (np.ones(3, bool), None, "mask of length 60"),
        ([1, 2], [0, 1], "fit_rows = node 2: must be among rows"),
        ([1], [1, 99], "rows = 99"),
    ],
)
def test_bad_rows_are_refused(fit_rows, rows, message):
    with pytest.raises(InputError, match=message):
        Augmenter().fit_transform(random_graph(), fit_rows, rows)


def test_misuse_is_refused():
    graph = random_graph()
    with pytest.raises(InputError, match="call fit_transform first"):
        Augmenter().transform(graph)
    with pytest.raises(InputError, match="call fit_transform first"):
        Augmenter().state()
    augmenter = Augmenter()
    augmenter.fit_transform(graph)
    with pytest.raises(InputError, match=r"graph.features = 4 columns: must be 9 columns wide"):
        augmenter.transform(random_graph(F=4))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (None, "without features"),
        (np.ones(2), r"shape \(2,\)"),
        (np.ones((2, 2), complex), "complex128"),
        (np.ones((3, 2)), "3 rows: must be 2 rows"),
        (np.array([[1.0, np.nan], [1.0, 1.0]]), "nan at node 0, column 1"),
        (np.array([[3e38, 3e38], [3e38, 3e38]]), "inf .*overflow"),
    ],
)
def test_bad_features_are_refused(features, message):
    graph = SimpleNamespace(adjacency=sp.csr_array([[0.0, 9.0], [0.0, 0.0]]), features=features)
    with pytest.raises(InputError, match=message):
        Augmenter(operator="col", scaling="none").fit_transform(graph)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
