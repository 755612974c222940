"""What an estimator refuses: hyper-parameters, arrays and graphs that cannot be."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import scipy.sparse as sp
from estimator_small import SMALL, small_graph, three_clouds
from sklearn.base import clone

from pdadmm import GCN, PDADMMG, Adam, Graph, InputError
from pdadmm.parameters import parameters


@pytest.fixture(scope="module")
def graph() -> Graph:
    return small_graph()


@pytest.fixture(scope="module")
def trained(graph) -> PDADMMG:
    return PDADMMG(**SMALL).fit(graph)


@pytest.fixture(scope="module")
def arrays() -> tuple[np.ndarray, np.ndarray]:
    return three_clouds()


BAD = (
    None,
    "koala",
    -1,
    0,
    2.5,
    float("nan"),
    float("inf"),
    True,
    [],
    [3, 2],
    "9,10",
    b"x",
    {"a": 1},
    object(),
    np.zeros(2),
)


def accepted(field, value) -> bool:
    try:
        field.metadata["check"].accept(value)
    except (ValueError, TypeError, KeyError, OverflowError):
        return False
    return True


@pytest.mark.parametrize("name", [field.name for field in parameters(PDADMMG)])
def test_bad_hyper_parameters_are_named(graph, name):
    field = next(field for field in parameters(PDADMMG) if field.name == name)
    refused = [value for value in BAD if not accepted(field, value)]
    assert len(refused) >= 8
    for value in refused:
        with pytest.raises(InputError) as caught:
            PDADMMG(**(SMALL | {name: value})).fit(graph)
        assert str(caught.value).startswith(f"{name} = ")
        assert field.metadata["check"].allowed in str(caught.value)
        assert caught.value.argument == name


@pytest.mark.parametrize(
    "name", ["layers", "hidden", "iterations", "hops", "eval_every", "patience", "threads", "seed"]
)
@pytest.mark.parametrize("value", [-1, 2.5, "2.5", True, "1e3", float("nan"), ""])
def test_whole_numbers(graph, name, value):
    with pytest.raises(InputError, match=name):
        PDADMMG(**(SMALL | {name: value})).fit(graph)


@pytest.mark.parametrize("name", ["nu", "rho", "max_seconds"])
@pytest.mark.parametrize("value", [0, -0.0, -1, "nan", "inf", "x", True])
def test_positive_numbers(graph, name, value):
    with pytest.raises(InputError, match=name):
        PDADMMG(**(SMALL | {name: value})).fit(graph)


@pytest.mark.parametrize("name", ["mu", "kappa_first", "kappa_identity", "prox_W", "prox_z", "tol"])
def test_numbers_that_may_be_zero(graph, name):
    estimator = PDADMMG(**(SMALL | {name: 0}))
    assert np.isfinite(estimator.fit(graph).history_.column("objective")).all()
    with pytest.raises(InputError, match=name):
        PDADMMG(**(SMALL | {name: -1e-9})).fit(graph)


def test_numbers_as_text_are_refused(graph):
    """Text is what the command line has; in Python it is a slip."""
    for wrong in ({"hidden": "8"}, {"nu": "0.3"}, {"patience": "3"}):
        ((name, value),) = wrong.items()
        with pytest.raises(InputError, match=rf"{name} = '{value}': must be .*; write it without quotes"):
            PDADMMG(**(SMALL | wrong)).fit(graph)


def test_names_that_are_no_hyper_parameters(graph):
    with pytest.raises(TypeError, match=r"PDADMMG has no hyper-parameter lyers: did you mean layers\?"):
        PDADMMG(lyers=3)
    with pytest.raises(TypeError, match=r"Adam has no hyper-parameter zzz: it has .*layers"):
        Adam(zzz=3)
    assert clone(PDADMMG(layers=3)).layers == 3


def test_a_score_needs_nodes_of_its_part(graph, trained):
    with pytest.raises(InputError, match=r"graph = without splits: .*make_splits"):
        trained.score(graph.with_splits(None))
    bare = graph.with_splits({**graph.splits, "test": []})
    with pytest.raises(InputError, match="graph = without nodes for test: must be one with nodes for test"):
        trained.score(bare)


def test_bad_arrays(arrays):
    X, y = arrays
    holed = X.copy()
    holed[3, 2] = np.nan
    huge = X.copy()
    huge[0, 0] = 1e300  # infinite in float32
    for bad_X, bad_y in (
        (X, None), (X, y[:-1]), (X[:0], y[:0]), (X[:, 0], y), (X, np.stack([y, y])), (holed, y), (huge, y),
        (X[None], y), (3.0, y), (X, "red"),
    ):  # fmt: skip
        with pytest.raises(InputError):
            PDADMMG(**SMALL).fit(bad_X, bad_y)


@pytest.mark.parametrize(
    "X", [[["a", "b"]] * 2, [[1.0, 2.0], [3.0]], [[None, 1.0], [2.0, 3.0]], [[1 + 1j, 2], [3, 4]]], ids=str
)
def test_features_that_are_no_numbers(X):
    with pytest.raises(InputError, match="X"):
        PDADMMG(**SMALL).fit(X, [0, 1])


def test_bad_graphs(graph, trained):
    with pytest.raises(InputError, match="splits"):
        PDADMMG(**SMALL).fit(graph.with_splits(None))
    with pytest.raises(InputError, match="y"):
        PDADMMG(**SMALL).fit(graph, graph.labels)
    with pytest.raises(InputError, match="split"):
        trained.score(graph, split="koala")
    with pytest.raises(InputError, match=r'left out with a Graph; score\(graph, split="train"\)'):
        trained.score(graph, "train")
    with pytest.raises(InputError, match="left out with a Graph; it holds its labels"):
        trained.score(graph, graph.labels)
    with pytest.raises(InputError, match="split"):
        trained.score(graph.with_splits(None))
    empty = graph.with_splits(graph.splits | {"test": np.array([], dtype=np.int64)})
    with pytest.raises(InputError, match="split"):
        trained.score(empty)
    with pytest.raises(InputError, match=r"X = shape \(3, 5\): .*augmented features: give the graph instead"):
        trained.predict(np.zeros((3, 5)))
    with pytest.raises(InputError, match="X"):
        trained.predict(np.zeros(18))
    assert PDADMMG(**SMALL).fit(empty).summary_["test_accuracy"] is None


@pytest.mark.parametrize("form", [sp.csr_matrix, sp.coo_array])
def test_sparse_arrays_are_no_augmented_features(trained, form):
    X, y = form(np.eye(4)), [0, 1, 0, 1]
    for call in (lambda: PDADMMG(**SMALL).fit(X, y), lambda: trained.predict(X), lambda: trained.score(X, y)):
        with pytest.raises(InputError, match=r"X = a scipy.sparse matrix: .*X\.toarray\(\), or a pdadmm\.Graph"):
            call()


@pytest.mark.parametrize(
    ("comm", "words"),
    [(np.zeros(300, int), r"comm = a ndarray of shape \(300,\): .*such as Graph\.from_adjacency\(A, X, y\)"),
     ([0, 1] * 90, "comm = .{,40}: .*Graph.from_adjacency"), ("world", "comm = 'world': .*; None is the world's$")],
)  # fmt: skip
def test_what_is_no_communicator(graph, comm, words):
    with pytest.raises(InputError, match=words):
        PDADMMG(**SMALL).fit(graph.adjacency, graph.features, comm)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("method", ["predict", "predict_proba", "score"])
def test_arrays_that_are_not_finite_are_not_judged(arrays, method, bad):
    X, y = arrays
    estimator = PDADMMG(layers=2, hidden=4, iterations=2).fit(X, y)
    X = X.copy()
    X[3, 0] = bad
    with pytest.raises(InputError, match="X = an array with NaN or infinity: must be finite"):
        getattr(estimator, method)(*((X, y) if method == "score" else (X,)))


def test_every_row_has_a_class(arrays):
    X, y = arrays
    some, numbers = y.astype(object), np.unique(y, return_inverse=True)[1].astype(float)
    for unknown, named in ((np.where(y == y[0], np.nan, numbers), "nan"), (np.where(y == y[0], None, some), "None")):
        with pytest.raises(InputError, match=f"y = {named} in row 0: must be a class for every row"):
            PDADMMG().fit(X, unknown)
    some[0] = 7 if isinstance(some[0], str) else "a"
    with pytest.raises(InputError, match="y = an array of several types"):
        PDADMMG().fit(X, some)


@pytest.mark.parametrize(
    ("targets", "told"),
    [([1, 2, 0.5], "0.5 in row 2"), ([0.5, 1.7, 0.5], "0.5 in row 0"), ([0, 1, np.inf], "inf in row 2"),
     (np.array([1, 0.25, 1], dtype=object), "0.25 in row 1"), (np.array([1, 0.25, 1], np.float16), "0.25 in row 1"),
     ([1j, 0, 1], "1j in row 0"), (np.array([1j, 0, 1], dtype=object), "1j in row 0"),
     ([Decimal("0.5"), Decimal(1), Decimal(1)], "0.5 in row 0"), ([1, Fraction(1, 2), 1], "1/2 in row 1")],
)  # fmt: skip
def test_continuous_targets_are_no_classes(targets, told):
    X = np.eye(3)
    with pytest.raises(InputError, match=f"y = {told}: must be whole numbers or names.*this is a classifier"):
        PDADMMG(**SMALL).fit(X, targets)
    for fine in ([1.0, 0.0, 1.0], [True, False, True], np.array([3.0, 1.0, 3.0], dtype=object), [Decimal(2), 1, 1]):
        np.testing.assert_array_equal(PDADMMG(**SMALL).fit(X, fine).classes_, np.unique(fine))


@pytest.mark.parametrize("path", [".", "nowhere/model.safetensors"])
def test_a_model_is_saved_to_a_file_in_a_folder_that_exists(trained, tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="must be a file in a folder that exists"):
        trained.save(path)
    assert not list(tmp_path.iterdir())


def test_a_score_compares_like_with_like(arrays):
    X, y = arrays
    solver = PDADMMG(layers=2, hidden=4, iterations=2).fit(X, y)
    for bad in (y[:, None], y[:3], y[0], [y[0]]):
        with pytest.raises(InputError, match=rf"y = shape .* of shape \({len(y)},\)"):
            solver.score(X, bad)
    with pytest.raises(InputError, match="y = of type int64: must be classes as in fit, of type <U5"):
        solver.score(X, np.arange(len(y)))
    for bad in (np.zeros(len(y)), np.ones(3), -np.ones(len(y)), ["a"] * len(y)):
        with pytest.raises(InputError, match=f"sample_weight = .*: must be {len(y)} numbers of at least 0"):
            solver.score(X, y, sample_weight=bad)
    assert solver.score(X, y, sample_weight=np.ones(len(y))) == solver.score(X, list(y))


def test_what_watches_is_checked_first(graph):
    solver = PDADMMG(**SMALL)
    with pytest.raises(InputError, match="watch = 3: must be a function"):
        solver.fit(graph, watch=3)
    with pytest.raises(InputError, match=r"trace = t\.json: must be a pdadmm\.Trace"):
        solver.fit(graph, trace="t.json")
    with pytest.raises(InputError, match="checkpoint_every = 3: must be left out without checkpoint"):
        solver.fit(graph, checkpoint_every=3)
    with pytest.raises(InputError, match="threads = 100000: must be a whole number of at least 1 and at most 1024"):
        PDADMMG(threads=100_000).fit(graph)


def test_nothing_of_an_earlier_fit_stays(graph, tmp_path):
    solver = PDADMMG(**SMALL).fit(graph)
    solver.save(tmp_path / "m")
    fitted = PDADMMG(**SMALL | {"hidden": 3}).fit(graph).load(tmp_path / "m")
    assert not any(hasattr(fitted, name) for name in ("history_", "stages_", "summary_"))
    with pytest.raises(InputError):
        solver.fit(graph, checkpoint_every=3)
    assert not any(name.endswith("_") and not name.startswith("_") for name in vars(solver))


def test_classes_without_training_nodes_are_warned_of_once(graph, caplog, monkeypatch):
    monkeypatch.setattr("pdadmm.estimator._TOLD", set())
    labels = np.where(graph.labels == 1, 3, graph.labels)
    gap = Graph(graph.indptr, graph.indices, None, graph.features, labels, graph.splits, num_classes=6)
    short = gap.with_splits({**graph.splits, "train": np.flatnonzero(labels == 2)[:3], "val": [], "test": []})
    words = "no training node has the class {}, which is never learned: classes go from 0 to 5".format
    for bare, told in ((graph, []), (gap, [words("1 (3 such classes)")]), (short, [words("0 (5 such classes)")])):
        caplog.clear()
        for solver in (PDADMMG(**SMALL), Adam(layers=2, hidden=4, iterations=2), GCN(iterations=2)):
            solver.fit(bare)
        assert [record.getMessage() for record in caplog.records] == told


def test_augmentation_of_arrays_is_warned_of(arrays, caplog):
    X, y = arrays
    PDADMMG(layers=2, hidden=4, iterations=2).fit(X, y)
    assert not caplog.records
    PDADMMG(layers=2, hidden=4, iterations=2, hops=7, operator="rw").fit(X, y)
    assert [record.getMessage() for record in caplog.records] == [
        "hops, operator: no part in fit(X, y), where X is augmented already: they are of Augmenter"
    ]
