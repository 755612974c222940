"""Where the theorem holds the Lagrangian never rises, and residuals vanish."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from admm_small import Recorder, fit, small_graph

from pdadmm import csbm
from pdadmm.admm.acceleration import ACCELERATIONS
from pdadmm.admm.activations import ACTIVATIONS
from pdadmm.admm.first_layer import FIRST_LAYERS
from pdadmm.admm.losses import LOSSES
from pdadmm.data import Graph


@pytest.fixture(scope="module")
def graph() -> Graph:
    return small_graph()


# what the theorem asks for (docs/math.md): rho > 4 nu, the paper's proximal terms, and no extrapolation
DESCENT = {
    "nu": 0.3, "rho": 4.2 * 0.3, "prox_z": 1.0, "prox_W": 0.0, "kappa_identity": 0.0, "acceleration": "none",
    "dtype": "float64",
}  # fmt: skip


@pytest.mark.parametrize("first_layer", FIRST_LAYERS)
@pytest.mark.parametrize("form", ["exact", "gradient"])
def test_the_lagrangian_never_rises_and_the_residual_vanishes(form, first_layer):
    graph = csbm(70, num_classes=3, num_features=5, avg_degree=6, seed=1)
    more = {"form": form, "first_layer": first_layer, "iterations": 200, "eval_every": 200}
    trained = fit(graph, layers=4, hidden=5, **DESCENT, **more)
    for stage in (0, 1):
        rows = [row for row in trained.history_ if row["stage"] == stage]
        assert len(rows) == 200
        values = [row["lagrangian"] for row in rows]
        rises = [later - earlier for earlier, later in itertools.pairwise(values)]
        assert max(rises) <= 1e-12 * (1 + abs(values[0])), f"stage {stage} rises by {max(rises)}"
        assert values[-1] < values[0]
    links = [row["residual_link"] for row in trained.history_ if row["stage"] == 0]
    assert links[-1] < 1e-5 * max(links)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_descent_holds_for_every_activation_and_loss(graph, activation, loss):
    trained = fit(graph, iterations=40, activation=activation, loss=loss, mu=0.01, **DESCENT)
    for _, rows in itertools.groupby(trained.history_, key=lambda row: row["stage"]):
        values = [row["lagrangian"] for row in rows]
        assert all(b <= a + 1e-12 * (1 + abs(a)) for a, b in itertools.pairwise(values))


@pytest.mark.parametrize("form", ["exact", "gradient"])
def test_the_residual_falls_with_extrapolation_too(graph, form):
    """It swings, since nothing is proved of it, but does not stay up."""
    trained = fit(graph, form=form, iterations=300, eval_every=300, **DESCENT | {"acceleration": "all-stages"})
    for stage in (0, 1):
        links = [row["residual_link"] for row in trained.history_ if row["stage"] == stage]
        assert links[-1] < 0.1 * max(links)


@pytest.mark.parametrize("acceleration", ACCELERATIONS)
def test_the_carried_residual_does_not_drift(graph, monkeypatch, acceleration):
    seen = Recorder(monkeypatch)
    more = {"form": "gradient", "first_layer": "gradient", "dtype": "float32", "acceleration": acceleration}
    fit(graph, iterations=150, eval_every=150, **more)
    last = seen.after[-1]
    for layer in (1, 2, 3):
        p, W, b, z = (last[f"{layer}.{name}"].astype(np.float64) for name in ("below.p", "W", "b", "z"))
        fresh = z - p @ W.T - b
        assert np.abs(last[f"{layer}.r"] - fresh).max() < 1e-4 * (1 + np.abs(z).max())
