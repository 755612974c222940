"""PDADMMG as scikit-learn, torch and a user see it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score

import pdadmm
from pdadmm import PDADMMG, PDADMMGQ, Adam, Augmenter, Graph, InputError, csbm, digits
from pdadmm.admm.presets import PRESETS
from pdadmm.parameters import parameters

SMALL = {"layers": 3, "hidden": 8, "iterations": 4, "hops": 2}
LONGER = SMALL | {"iterations": 10}  # where accuracy is looked at: 4 iterations of 8 neurons are a matter of luck


@pytest.fixture(scope="module")
def graph() -> Graph:
    return csbm(150, num_classes=3, num_features=6, seed=2)


@pytest.fixture(scope="module")
def trained(graph) -> PDADMMG:
    return PDADMMG(**SMALL).fit(graph)


@pytest.fixture(scope="module")
def arrays() -> tuple[np.ndarray, np.ndarray]:
    """Three clouds of points with names."""
    random = np.random.default_rng(0)
    labels = random.integers(3, size=90)
    return random.normal(size=(90, 4)) + 3 * np.eye(3, 4)[labels], np.array(["red", "green", "blue"])[labels]


# scikit-learn


def test_parameters_are_the_constructors():
    estimator = PDADMMG(layers=7, nu=0.5, stages=(2, 7))
    found = estimator.get_params()
    assert list(found) == sorted(field.name for field in parameters(PDADMMG))
    assert (found["layers"], found["nu"], found["stages"]) == (7, 0.5, (2, 7))
    assert estimator.set_params(nu=0.1) is estimator
    assert estimator.nu == 0.1
    with pytest.raises(ValueError, match="koala"):
        estimator.set_params(koala=1)
    with pytest.raises(TypeError, match="koala"):
        PDADMMG(koala=1)
    assert is_classifier(estimator)


def test_clone_copies_parameters_and_nothing_learned(trained):
    copy = clone(trained)
    assert copy.get_params() == trained.get_params()
    assert not hasattr(copy, "model_")
    assert "layers=3" in repr(trained)


def test_the_constructor_keeps_what_it_is_given():
    for field in parameters(PDADMMG):
        odd = object()
        assert getattr(PDADMMG(**{field.name: odd}), field.name) is odd


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("solver", [PDADMMG, PDADMMGQ])
def test_presets_name_parameters_with_values_that_may_be(solver, name):
    row = PRESETS[name]
    assert (row.name, bool(row.description)) == (name, True)
    changed = solver.preset_parameters(name)
    assert changed == row.parameters | (row.quantized if solver is PDADMMGQ else {})
    estimator = solver.preset(name)
    assert type(estimator) is solver
    assert estimator.get_params() == solver().get_params() | changed
    estimator.checked()


def test_the_papers_preset():
    settings = PDADMMG.preset("paper").checked()
    assert (settings.nu, settings.rho, settings.stages, settings.hops) == (1e-4, 1e-4, (2, 5, 10), 3)
    assert PDADMMG.preset("paper", layers=4, nu=0.01).checked().rho == 0.01
    assert PDADMMGQ.preset("paper").checked().quantizer.delta == "paper"
    with pytest.raises(InputError, match="preset = koala"):
        PDADMMG.preset("koala")
    with pytest.raises(TypeError, match="koala"):
        PDADMMG.preset("paper", koala=1)


def test_fit_does_not_touch_parameters(graph):
    estimator = PDADMMG(**SMALL, nu=0.3, stages="2,3")
    before = estimator.get_params()
    assert estimator.fit(graph) is estimator
    assert estimator.get_params() == before


def test_grid_search_over_arrays(arrays):
    X, y = arrays
    search = GridSearchCV(PDADMMG(**LONGER), {"nu": [0.1, 0.3], "layers": [1, 2]}, cv=3).fit(X, y)
    assert search.best_score_ > 0.85
    assert set(search.predict(X)) <= {"red", "green", "blue"}
    assert cross_val_score(PDADMMG(**LONGER), X, y, cv=3).mean() > 0.85


def test_fit_on_arrays(arrays):
    X, y = arrays
    kept = X.copy()
    estimator = PDADMMG(**LONGER).fit(X, y)
    assert np.array_equal(X, kept)
    assert estimator.classes_.tolist() == ["blue", "green", "red"]
    assert estimator.n_features_in_ == 4
    assert estimator.augmenter_ is None
    assert estimator.predict(X).dtype == y.dtype
    assert estimator.score(X, y) == pytest.approx((estimator.predict(X) == y).mean())
    assert estimator.score(X, y) > 0.9
    assert estimator.score(X, y, sample_weight=np.arange(90)) > 0.8
    assert estimator.summary_["test_accuracy"] is None
    assert estimator.summary_["train_accuracy"] == pytest.approx(estimator.score(X, y))


@pytest.mark.parametrize(
    "form", [list, np.asfortranarray, np.float32, torch.from_numpy], ids=["list", "F", "f4", "torch"]
)
def test_arrays_of_any_form(arrays, form):
    X, y = arrays
    same = [row.tolist() for row in X] if form is list else form(X)
    expected = PDADMMG(**SMALL).fit(X, y).predict_proba(X)
    np.testing.assert_allclose(PDADMMG(**SMALL).fit(same, y).predict_proba(same), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("y", [[0, 1], [-5, 7], [True, False], [1.5, 2.5], ["a", "b"]])
def test_classes_of_any_kind(y):
    X = np.array([[0.0, 1.0], [1.0, 0.0]] * 10)
    estimator = PDADMMG(layers=2, hidden=4, iterations=10).fit(X, y * 10)
    assert estimator.classes_.tolist() == sorted(set(y))
    assert estimator.predict(X).tolist() == y * 10


# Predictions


def test_shapes_and_values(graph, trained):
    labels, proba = trained.predict(graph), trained.predict_proba(graph)
    assert labels.shape == (150,)
    assert proba.shape == (150, 3)
    np.testing.assert_allclose(proba.sum(1), 1, rtol=1e-5)
    assert (proba >= 0).all()
    np.testing.assert_array_equal(trained.classes_[proba.argmax(1)], labels)
    for part in ("train", "val", "test"):
        rows = graph.splits[part]
        assert trained.score(graph, split=part) == pytest.approx((labels[rows] == graph.labels[rows]).mean())
        assert trained.summary_[f"{part}_accuracy"] == pytest.approx(trained.score(graph, split=part))
    assert trained.score(graph) == trained.score(graph, split="test")
    assert trained.score(graph) > 0.5


def test_plain_torch_gives_the_same_predictions(graph, trained):
    X = torch.from_numpy(trained.augmenter_.transform(graph))
    plain = torch.nn.Sequential(
        torch.nn.Linear(18, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
    )
    names = {f"layers.{l}.{kind}": f"{2 * l}.{kind}" for l in range(3) for kind in ("weight", "bias")}
    plain.load_state_dict({names[name]: value for name, value in trained.model_.state_dict().items()})
    with torch.no_grad():
        proba = torch.softmax(plain(X), 1).numpy()
    np.testing.assert_array_equal(proba, trained.predict_proba(graph))
    np.testing.assert_array_equal(trained.predict(X), trained.predict(graph))


@pytest.mark.parametrize("scaling", ["hop-std", "hop-l2", "standard"])
def test_the_scaling_is_learned_from_training_nodes_alone(graph, scaling):
    ours = PDADMMG(**SMALL, scaling=scaling).fit(graph).augmenter_
    theirs = Augmenter(hops=2, scaling=scaling)
    theirs.fit_transform(graph, fit_rows=graph.splits["train"])
    np.testing.assert_allclose(ours.shift_, theirs.shift_, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours.scale_, theirs.scale_, rtol=1e-5, atol=1e-6)


def test_the_labels_of_test_nodes_play_no_part(graph, trained):
    labels = graph.labels.copy()
    labels[graph.splits["test"]] = (labels[graph.splits["test"]] + 1) % 3
    other = Graph(graph.indptr, graph.indices, graph.weights, graph.features, labels, graph.splits)
    again = PDADMMG(**SMALL).fit(other)
    for name, value in trained.model_.state_dict().items():
        assert torch.equal(value, again.model_.state_dict()[name])
    assert again.summary_["test_accuracy"] != trained.summary_["test_accuracy"]


def test_a_new_graph(trained):
    other = csbm(80, num_classes=3, num_features=6, seed=9)
    assert trained.predict(other).shape == (80,)
    wrong = csbm(80, num_classes=3, num_features=7, seed=9)
    with pytest.raises(InputError, match="features"):
        trained.predict(wrong)


@pytest.mark.parametrize(
    "parameters",
    [
        {"operator": "rw"},
        {"weighting": "ppr"},
        {"weighting": "heat"},
        {"hops": 0},
        {"scaling": "none"},
        {"scaling": "standard", "dtype": "float64"},
    ],
    ids=str,
)
def test_every_augmentation_can_be_asked_for(graph, parameters):
    estimator = PDADMMG(**(SMALL | parameters)).fit(graph)
    for name, value in parameters.items():
        assert getattr(estimator.augmenter_, name) == value
    assert estimator.predict_proba(graph).dtype == np.dtype(parameters.get("dtype", "float32"))


def test_not_fitted(graph, tmp_path):
    estimator = PDADMMG()
    for call in (lambda: estimator.predict(graph), lambda: estimator.predict_proba(graph),
                 lambda: estimator.score(graph), lambda: estimator.save(tmp_path / "m")):  # fmt: skip
        with pytest.raises(NotFittedError, match="fit first"):
            call()
    assert not list(tmp_path.iterdir())


def test_fitting_again_forgets(graph, arrays):
    estimator = PDADMMG(**SMALL).fit(graph)
    estimator.fit(*arrays)
    assert estimator.augmenter_ is None
    assert estimator.n_features_in_ == 4
    assert len(estimator.history_) == 8
    with pytest.raises(InputError, match="array of augmented features"):
        estimator.predict(graph)


def test_watch_sees_every_row(graph):
    seen = []
    estimator = PDADMMG(**SMALL).fit(graph, watch=seen.append)
    assert seen == list(estimator.history_)


# Save and load


def test_save_and_load(graph, trained, tmp_path):
    trained.save(tmp_path / "m.safetensors")
    back = PDADMMG().load(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(back.predict_proba(graph), trained.predict_proba(graph))
    assert back.classes_.tolist() == trained.classes_.tolist()
    assert back.n_features_in_ == trained.n_features_in_ == 6
    assert back.score(graph) == trained.score(graph)


def test_save_and_load_with_names(arrays, tmp_path):
    X, y = arrays
    estimator = PDADMMG(**SMALL, activation="leaky_relu").fit(X, y)
    estimator.save(str(tmp_path / "m"))
    back = PDADMMG().load(str(tmp_path / "m"))
    np.testing.assert_array_equal(back.predict(X), estimator.predict(X))
    assert back.n_features_in_ == 4


def test_loading_what_is_no_model(tmp_path):
    for content in (None, b"", b"nonsense"):
        path = tmp_path / "m"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError, match="model"):
            PDADMMG().load(path)


def test_load_is_called_on_an_estimator(tmp_path):
    for wrong in (lambda: PDADMMG.load(tmp_path / "m"), lambda: PDADMMG.load(path="m"), PDADMMG().load):
        with pytest.raises(TypeError, match=r"load"):
            wrong()
    with pytest.raises(TypeError, match=r"PDADMMG\(\)\.load\(path\)"):
        PDADMMG.load("m")


# Bad input

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
    with pytest.raises(InputError, match="split"):
        trained.score(graph.with_splits(None))
    empty = graph.with_splits(graph.splits | {"test": np.array([], dtype=np.int64)})
    with pytest.raises(InputError, match="split"):
        trained.score(empty)
    with pytest.raises(InputError, match="X"):
        trained.predict(np.zeros((3, 5)))
    with pytest.raises(InputError, match="X"):
        trained.predict(np.zeros(18))
    assert PDADMMG(**SMALL).fit(empty).summary_["test_accuracy"] is None


# The package


def in_a_new_process(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120,
        cwd=Path(pdadmm.__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_is_light():
    heavy = "('torch', 'sklearn', 'mpi4py', 'cupy', 'matplotlib', 'numpy', 'scipy', 'safetensors', 'tqdm')"
    assert in_a_new_process(f"import sys, pdadmm; print([m for m in {heavy} if m in sys.modules])").strip() == "[]"


def test_training_needs_no_mpi_and_no_gpu():
    code = (
        "import sys\n"
        "for name in ('mpi4py', 'cupy', 'matplotlib'): sys.modules[name] = None\n"
        "import pdadmm\n"
        "graph = pdadmm.csbm(60, num_classes=2, num_features=3)\n"
        "print(pdadmm.PDADMMG(layers=2, hidden=3, iterations=2).fit(graph).predict(graph).shape)"
    )
    assert in_a_new_process(code).strip() == "(60,)"


def test_public_names_resolve():
    assert set(pdadmm.__all__) <= set(dir(pdadmm))
    assert len(set(pdadmm.__all__)) == len(pdadmm.__all__)
    for name in pdadmm.__all__:
        value = getattr(pdadmm, name)
        assert value is not None
        assert name == "__version__" or value.__doc__, f"{name} has no docstring"
    with pytest.raises(AttributeError, match="koala"):
        pdadmm.koala  # noqa: B018


# Accuracy


def test_digits():
    graph = digits()
    assert PDADMMG(layers=4, hidden=50, iterations=10).fit(graph).score(graph) > 0.9


def test_cora(data_dir):
    graph = pdadmm.load_dataset("cora", data_dir)
    trained = PDADMMG().fit(graph)
    assert [stage["layers"] for stage in trained.stages_] == [2, 5, 10]
    assert trained.summary_["test_accuracy"] >= 0.80
    best = max(trained.stages_, key=lambda stage: stage["val_accuracy"])
    assert trained.summary_["test_accuracy"] >= best["test_accuracy"] - 0.03  # depth does not collapse
