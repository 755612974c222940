"""Whole iterations against the plain reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from admm_small import Recorder, fit, small_graph
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import Extrapolation, Setting, State, iterate, lagrangian

from pdadmm import PDADMMG
from pdadmm.admm.acceleration import ACCELERATIONS
from pdadmm.admm.activations import ACTIVATIONS, get_activation
from pdadmm.admm.first_layer import FIRST_LAYERS
from pdadmm.admm.losses import LOSSES
from pdadmm.admm.network import Network
from pdadmm.admm.problem import Problem
from pdadmm.admm.solver import ADMMSolver
from pdadmm.data import Graph
from pdadmm.parallel.transport import LocalTransport

SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return small_graph()


def reference_state(found: dict, X: np.ndarray) -> State:
    depth = 1 + max(int(name.partition(".")[0]) for name in found)
    layers = range(depth)
    return State(
        p=[X] + [found[f"{l}.below.p"] for l in layers[1:]],
        W=[found[f"{l}.W"] for l in layers],
        b=[found[f"{l}.b"] for l in layers],
        z=[found[f"{l}.z"] for l in layers],
        q=[found.get(f"{l}.above.q") for l in layers],
        u=[found.get(f"{l}.above.u") for l in layers],
        last_step=found.get("0.direction"),
    )


def reference_setting(network: Network, estimator, y) -> Setting:
    """The penalties of each layer as the documentation of the hyper-parameters defines them."""
    s, depth = estimator, len(network.layers)
    unit = [None] + [layer.unit for layer in network.layers[1:]]
    hidden = range(1, depth - 1)
    first = network.layers[0].solver
    gradient = s.form == "gradient"
    return Setting(
        nu=s.nu, rho=s.rho, mu=s.mu, prox_z=s.prox_z,
        kappa=[first.kappa] + [s.kappa_identity * unit[l] if l in hidden else 0.0 for l in range(1, depth)],
        prox=[0.0] + [s.prox_W * unit[l] for l in range(1, depth)],
        target=[None] + [np.eye(s.hidden) if l in hidden else None for l in range(1, depth)],
        slope=get_activation(s.activation).negative_slope,
        exact=["cg" if first.name == "cg" else first.name != "gradient"] + [not gradient] * (depth - 1),
        y=y, loss=s.loss,
        floor=16 * np.finfo(np.float64).eps,  # the proximal weight at rounding level: felt where p is tiny
    )  # fmt: skip


@given(
    seed=SEEDS,
    V=st.integers(2, 9),
    n0=st.integers(1, 8),
    hidden=st.integers(1, 5),
    classes=st.integers(1, 4),
    layers=st.integers(2, 5),
    form=st.sampled_from(["exact", "gradient"]),
    first_layer=st.sampled_from(list(FIRST_LAYERS)),
    activation=st.sampled_from(list(ACTIVATIONS)),
    loss=st.sampled_from(list(LOSSES)),
    nu=st.sampled_from([0.03, 0.3, 2.0]),
    rho=st.sampled_from([0.05, 0.3, 4.0]),
    mu=st.sampled_from([0.0, 0.1]),
    prox_z=st.sampled_from([0.0, 0.1, 1.0]),
    kappa_identity=st.sampled_from([0.0, 0.01, 0.3]),
    acceleration=st.sampled_from(list(ACCELERATIONS)),
    first_scale=st.sampled_from([0.1, 1.0]),
)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_iterations_equal_the_reference(V, n0, classes, **parameters):
    compare_with_reference(V, n0, classes, iterations=4, **parameters)


@pytest.mark.parametrize("form", ["exact", "gradient"])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_extrapolation_equals_the_reference_through_restarts(form, activation):
    more = {"form": form, "activation": activation, "acceleration": "all-stages"}
    stages = compare_with_reference(9, 6, 3, iterations=25, layers=4, hidden=4, rho=0.3, seed=5, **more)
    assert len(stages) == 2
    assert all(stage.restarts > 0 and not stage.ties for stage in stages)
    assert all(len(betas) == 25 for stage in stages for betas in stage.betas)
    assert all(max(betas) > 0.5 and betas[0] == 0.0 for stage in stages for betas in stage.betas)


def condition(state: State, setting: Setting) -> float:
    """By how much the exact W-updates amplify rounding: |p|^2 over the least eigenvalue of their systems.

    Small random data may give a p that is large and all but the same for every node.
    """
    found = 1.0
    for l in range(1, len(state.W)):
        if setting.exact[l]:
            p, weight = state.p[l], setting.mu / setting.nu + setting.prox[l] + setting.kappa[l]
            total = (p**2).sum()
            spread = np.linalg.svd(p - p.mean(0), compute_uv=False).min() ** 2 if len(p) > p.shape[1] else 0.0
            found = max(found, total / (spread + weight + setting.floor * (total + 1)))
    return float(found)


def compare_with_reference(V, n0, classes, seed, **parameters) -> list[Extrapolation]:
    """Train on random data and compare every iteration; return the reference's momentum of each stage."""
    random = np.random.default_rng(seed)
    X = random.normal(size=(V, n0))
    X[0, 0] += 1.0
    X = torch.from_numpy(X - X.mean(0))
    y = random.integers(classes, size=V)
    more = {"kappa_first": 0.2, "prox_W": 0.1, "dtype": "float64", "seed": seed}
    estimator = PDADMMG(**parameters, **more).checked()
    parts = {"train": slice(0, V), "val": slice(V, V), "test": slice(V, V)}
    with pytest.MonkeyPatch.context() as monkeypatch:
        seen = Recorder(monkeypatch)
        problem = Problem(X.clone(), torch.from_numpy(y), n0, classes, parts)
        solver = ADMMSolver(problem, estimator, LocalTransport()).run()
    assert len(seen.before) == len(solver.history) == estimator.iterations * len(estimator.stages)
    accelerated = {"none": 0, "first-stage": 1, "all-stages": len(estimator.stages)}[estimator.acceleration]
    stages: list[Extrapolation] = []
    for network, before, after, row in zip(seen.networks, seen.before, seen.after, solver.history):
        setting = reference_setting(network, estimator, y)
        start = reference_state(before, X.numpy())
        if row["stage"] == len(stages):
            stages.append(Extrapolation(start))
        expected, found = iterate(start, setting), reference_state(after, X.numpy())
        if row["stage"] < accelerated:
            expected = stages[-1].extrapolate(start, expected)
            if stages[-1].ties:  # rounding decides whether the library started again
                break
        slack = 1e-8 + 100 * np.finfo(np.float64).eps * condition(expected, setting)
        for name in ("p", "W", "b", "z", "q", "u"):
            for layer, (ours, theirs) in enumerate(zip(getattr(found, name), getattr(expected, name))):
                assert (ours is None) == (theirs is None)
                if ours is not None:
                    size = slack * (1 + np.abs(theirs).max())
                    np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=size, err_msg=f"{name} of layer {layer}")
        for layer, (p, W, b, z) in enumerate(zip(found.p, found.W, found.b, found.z)):
            size = 1e-8 * (1 + np.abs(z).max())
            np.testing.assert_allclose(after[f"{layer}.r"], z - p @ W.T - b, rtol=1e-6, atol=size)
        value = lagrangian(found, setting)
        assert row["lagrangian"] == pytest.approx(value, rel=1e-8, abs=1e-8)
    return stages[:accelerated]


def test_a_stage_starts_at_a_feasible_point(graph, monkeypatch):
    seen = Recorder(monkeypatch)
    fit(graph, activation="leaky_relu", dtype="float64")
    f = get_activation("leaky_relu")
    for state in seen.before[::4]:
        assert not any(x.any() for name, x in state.items() if name.endswith((".r", ".u")))
        for name, p in state.items():
            if name.endswith("below.p"):
                below = int(name.partition(".")[0]) - 1
                assert np.array_equal(p, state[f"{below}.above.q"])
                np.testing.assert_array_equal(p, f(torch.from_numpy(state[f"{below}.z"])).numpy())
