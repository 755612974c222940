"""Small and odd networks, absurd numbers, and the sentence about divergence."""

from __future__ import annotations

import numpy as np
import pytest
from admm_small import fit, small_graph

from pdadmm import PDADMMG
from pdadmm.admm.activations import ACTIVATIONS
from pdadmm.admm.first_layer import FIRST_LAYERS
from pdadmm.admm.settings import default_stages
from pdadmm.data import Graph
from pdadmm.errors import DivergenceError, InputError


@pytest.fixture(scope="module")
def graph() -> Graph:
    return small_graph()


# Small and odd networks


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("hidden", [1, 4])
def test_shallow_and_narrow_networks(graph, activation, layers, hidden):
    trained = fit(graph, layers=layers, hidden=hidden, activation=activation, loss="cross_entropy")
    assert len(trained.model_.layers) == layers
    assert [stage["layers"] for stage in trained.stages_] == list(default_stages(layers))
    assert np.isfinite(trained.history_.column("objective")).all()
    assert trained.predict(graph).shape == (90,)


def test_one_layer_is_ridge_regression_for_the_squared_error(graph):
    """With L = 1 and z eliminated the problem is a ridge regression; its solution is known."""
    random = np.random.default_rng(0)
    X, y = random.normal(size=(40, 3)), random.integers(3, size=40)
    trained = PDADMMG(
        layers=1, loss="squared_error", nu=1.0, iterations=300, dtype="float64", kappa_first=0.2
    ).fit(X, y)  # fmt: skip
    centred, target = X - X.mean(0), np.eye(3)[y]
    kappa = 0.2 * (centred**2).sum(1).mean()
    # min_z 1/2 |z - t|^2 + 1/2 |z - a|^2 = 1/4 |a - t|^2: the ridge 1/2 kappa counts twice
    W = np.linalg.solve(centred.T @ centred + 2 * kappa * np.eye(3), centred.T @ target).T
    np.testing.assert_allclose(trained.model_.layers[0].weight.detach().numpy(), W, rtol=1e-6, atol=1e-8)
    b = target.mean(0) - W @ X.mean(0)
    np.testing.assert_allclose(trained.model_.layers[0].bias.detach().numpy(), b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("form", ["exact", "gradient"])
@pytest.mark.parametrize("first_layer", FIRST_LAYERS)
def test_one_class(form, first_layer):
    random = np.random.default_rng(0)
    trained = PDADMMG(layers=3, hidden=4, iterations=3, form=form, first_layer=first_layer)
    trained.fit(random.normal(size=(6, 3)), np.full(6, 7))
    assert trained.predict(np.zeros((2, 3))).tolist() == [7, 7]
    np.testing.assert_allclose(trained.predict_proba(np.zeros((2, 3))), np.ones((2, 1)))


@pytest.mark.parametrize("form", ["exact", "gradient"])
@pytest.mark.parametrize("first_layer", FIRST_LAYERS)
def test_one_training_node(form, first_layer):
    X = np.array([[1.0, -2.0, 0.5]])
    trained = PDADMMG(layers=3, hidden=4, iterations=3, form=form, first_layer=first_layer).fit(X, [5])
    assert trained.predict(X).tolist() == [5]


@pytest.mark.parametrize("first_layer", FIRST_LAYERS)
def test_features_that_are_all_alike(first_layer):
    X, y = np.ones((6, 3)), [0, 0, 0, 0, 1, 1]
    trained = PDADMMG(layers=2, hidden=3, iterations=30, first_layer=first_layer).fit(X, y)
    assert trained.predict(X).tolist() == [0] * 6  # the larger class is all there is to learn


@pytest.mark.parametrize("form", ["exact", "gradient"])
def test_more_neurons_than_nodes_and_dead_columns(form):
    random = np.random.default_rng(1)
    X = random.normal(size=(7, 40))
    X[:, ::3] = 0.0
    X[:, 1] = X[:, 2]
    trained = PDADMMG(layers=5, hidden=30, iterations=6, form=form).fit(X, random.integers(3, size=7))
    assert np.isfinite(trained.history_.column("lagrangian")).all()


# Divergence


def fit_or_complain(X, y, **parameters) -> str | None:
    """Train; None where it ends well, else what the error says. Only these two kinds of error may come."""
    try:
        PDADMMG(**parameters).fit(X, y)
    except (DivergenceError, InputError) as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    "parameters",
    [
        {"X": 1e30},
        {"X": 1e30, "first_layer": "gradient"},
        {"X": 1e30, "form": "gradient", "first_layer": "kernel"},
        {"nu": 1e38},
        {"nu": 1e300},
        {"nu": 1e300, "form": "gradient"},
        {"rho": 1e300},
        {"nu": 1e-300},
        {"nu": 1e308, "dtype": "float64"},
        {"mu": 1e300},
        {"prox_W": 1e300},
        {"prox_z": 1e300},
        {"kappa_first": 1e300},
        {"kappa_identity": 1e300},
    ],
    ids=lambda p: ",".join(f"{k}={v}" for k, v in p.items()),
)
def test_absurd_numbers_train_or_diverge_with_a_sentence(parameters):
    """Either the run ends well, or DivergenceError names a layer; no exception of another type."""
    given = {"layers": 3, "hidden": 4, "iterations": 5} | parameters
    random = np.random.default_rng(0)
    X = random.normal(size=(20, 6)) * given.pop("X", 1.0)
    said = fit_or_complain(X, random.integers(3, size=20), **given)
    assert said is None or "layer" in said or any(said.startswith(f"{name} = ") for name in parameters), said


def test_divergence_names_iteration_and_layer():
    random = np.random.default_rng(0)
    X = random.normal(size=(20, 6)) * 1e30
    with pytest.raises(DivergenceError, match=r"iteration 1: layer \d of 2 is not finite .*dtype float64"):
        PDADMMG(layers=3, hidden=4).fit(X, random.integers(3, size=20))


def test_a_sum_that_overflows_is_divergence_too():
    """Every layer's share is finite and their weighted sum is not."""
    random = np.random.default_rng(0)
    X, y = random.normal(size=(30, 6)), random.integers(3, size=30)
    for nu in (1e304, 1e306, 1e307, 1.7e308):
        given = {"layers": 3, "hidden": 4, "iterations": 3, "rho": 1.0, "dtype": "float64", "form": "gradient"}
        said = fit_or_complain(X, y, nu=nu, **given)
        assert said is None or "nu = 1" in said
