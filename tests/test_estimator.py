"""PDADMMG as scikit-learn, torch and a user see it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from estimator_small import LONGER, SMALL, small_graph, three_clouds
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score

import pdadmm
from pdadmm import PDADMMG, PDADMMGQ, Augmenter, Graph, InputError, csbm, digits
from pdadmm.admm.presets import PRESETS
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


@pytest.mark.parametrize("y", [[0, 1], [-5, 7], [True, False], [1.0, 2.0], ["a", "b"]])
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
