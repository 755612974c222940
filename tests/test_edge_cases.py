"""Graphs at the edge: every solver stays finite, and every update of pdADMM-G keeps its optimality condition."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdadmm import PDADMMG, PDADMMGQ, DivergenceError, Graph
from pdadmm.admm import layer as layer_module
from pdadmm.admm.activations import ACTIVATIONS, PiecewiseLinear
from pdadmm.admm.link import Link
from pdadmm.admm.losses import LOSSES
from pdadmm.parameters import parameters
from pdadmm.solvers import SOLVERS, solver_class

V, F, C = 12, 4, 3


def graph_of(X, pairs=None, labels=None, splits="thirds", num_classes=None) -> Graph:
    nodes = len(X)
    labels = np.arange(nodes) % C if labels is None else labels
    ring = np.stack([np.arange(nodes), (np.arange(nodes) + 1) % nodes])
    if splits == "thirds":
        cut = max(1, nodes // 2), max(1, 3 * nodes // 4)
        splits = dict(zip(("train", "val", "test"), np.split(np.arange(nodes), cut)))
    return Graph.from_edges(ring if pairs is None else pairs, X, labels, splits, num_classes=num_classes)


def normal(*shape, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


NONE = np.zeros((2, 0), int)
LOOPS = np.stack([np.arange(V)] * 2)
GRAPHS = {
    "one node": lambda: graph_of(normal(1, F), NONE, [0]),
    "two nodes": lambda: graph_of(normal(2, F), labels=[0, 1]),
    "one class": lambda: graph_of(normal(V, F), labels=[0] * V),
    "one training node": lambda: graph_of(normal(V, F), splits={"train": [3], "val": [4], "test": [5]}),
    "classes nobody has": lambda: graph_of(normal(V, F), labels=[2, 5] * (V // 2), num_classes=9),
    "one feature": lambda: graph_of(normal(V, 1)),
    "constant features": lambda: graph_of(np.ones((V, F))),
    "zero features": lambda: graph_of(np.zeros((V, F))),
    "one feature constant": lambda: graph_of(np.concatenate([normal(V, F), np.full((V, 1), 7.0)], axis=1)),
    "duplicated nodes": lambda: graph_of(np.repeat(normal(2, F), V // 2, axis=0), labels=[0] * 6 + [1] * 6),
    "duplicates that disagree": lambda: graph_of(np.repeat(normal(1, F), V, axis=0)),
    "duplicated features": lambda: graph_of(np.repeat(normal(V, 1), F, axis=1)),
    "no edges": lambda: graph_of(normal(V, F), NONE),
    "self-loops only": lambda: graph_of(normal(V, F), LOOPS),
    "isolated nodes": lambda: graph_of(normal(V, F), np.array([[0, 1], [1, 2]])),
    "disconnected": lambda: graph_of(normal(V, F), np.array([[0, 1, 6, 7], [1, 2, 7, 8]])),
    "complete": lambda: graph_of(normal(V, F), np.argwhere(np.ones((V, V))).T),
    "huge": lambda: graph_of(1e15 * normal(V, F)),
    "tiny": lambda: graph_of(1e-15 * normal(V, F)),
    "huge and tiny": lambda: graph_of(normal(V, F) * [1e12, 1.0, 1e-6, 1e-12]),
    "one outlier": lambda: graph_of(np.concatenate([normal(V - 1, F), np.full((1, F), 1e12)])),
    "fewer nodes than features": lambda: graph_of(normal(6, 80)),
    "many nodes": lambda: graph_of(normal(400, 2)),
}
SMALL = {"layers": 3, "hidden": 5, "iterations": 4, "hops": 2, "threads": 1}
VARIANTS = {
    "default": {},
    "gradient": {"form": "gradient", "first_layer": "gradient", "acceleration": "none"},
    "exact": {"form": "exact", "first_layer": "gram", "acceleration": "all-stages", "activation": "leaky_relu"},
    "wide": {"hidden": 40, "form": "exact", "first_layer": "kernel", "loss": "squared_error"},  # V < n
    "paper": {"nu": 1e-4, "rho": 1e-4, "prox_z": 1.0},
}


def make(name: str, **more):
    solver = solver_class(name)
    known = {field.name for field in parameters(solver)}
    return solver(**{key: value for key, value in (SMALL | more).items() if key in known})


def assert_finite(estimator, graph: Graph) -> None:
    proba = estimator.predict_proba(graph)
    assert proba.shape == (graph.num_nodes, graph.num_classes)
    np.testing.assert_allclose(proba.sum(1), 1, rtol=1e-4)
    assert all(bool(torch.isfinite(x).all()) for x in estimator.model_.state_dict().values())
    for row in estimator.history_:
        for key, value in row.items():
            assert value is None or math.isfinite(value), (key, row)


@pytest.mark.parametrize("case", GRAPHS)
@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_stays_finite(name, case):
    graph = GRAPHS[case]()
    assert_finite(make(name).fit(graph), graph)


@pytest.mark.parametrize("case", ["huge", "tiny", "huge and tiny", "one outlier", "zero features", "constant features"])
@pytest.mark.parametrize("name", SOLVERS)
def test_without_scaling_it_is_finite_or_says_that_it_diverged(name, case):
    graph = GRAPHS[case]()
    may_diverge = "huge" in case or "outlier" in case
    with contextlib.suppress(*[DivergenceError] if may_diverge else []):
        assert_finite(make(name, scaling="none").fit(graph), graph)


@pytest.mark.parametrize("name", SOLVERS)
def test_duplicated_nodes_are_treated_alike(name):
    graph = GRAPHS["duplicated nodes"]()
    pairs = np.array([[0, 1, 6, 7], [1, 0, 7, 6]])
    alike = Graph.from_edges(pairs, graph.features, graph.labels, graph.splits)
    proba = make(name).fit(alike).predict_proba(alike)
    np.testing.assert_allclose(proba[:2], proba[[1, 0]], rtol=1e-5)
    np.testing.assert_allclose(proba[2:6], proba[[3, 4, 5, 2]], rtol=1e-5)


@pytest.mark.parametrize("name", SOLVERS)
def test_self_loops_change_nothing(name):
    ring = np.stack([np.arange(V), (np.arange(V) + 1) % V])
    plain, looped = (graph_of(normal(V, F), pairs) for pairs in (ring, np.concatenate([ring, LOOPS], axis=1)))
    assert plain.fingerprint() == looped.fingerprint()
    ours, theirs = (make(name).fit(graph).predict_proba(graph) for graph in (plain, looped))
    np.testing.assert_array_equal(ours, theirs)


# Every update against its own condition, wherever training takes it


def assert_zero(parts: list[torch.Tensor], tolerance: float, least: float = 1e-300) -> None:
    """The terms of a gradient are finite and cancel, to ``tolerance`` of the largest, or to ``least``."""
    parts = [part.double() for part in parts]
    assert all(bool(torch.isfinite(part).all()) for part in parts)
    size = max(float(part.abs().max()) for part in parts)
    gap = float(sum(parts).abs().max())
    assert gap <= tolerance * size + least, (gap, size)


class Watched:
    """Puts a check behind each update of a run in float64; counts how often each was made."""

    def __init__(self, monkeypatch) -> None:
        self.counts: dict[str, int] = {}
        self.patch = monkeypatch.setattr
        self.watch_exact_p()
        self.watch_gradient_p()
        self.watch_W()
        self.watch_z()
        self.watch_q_u()
        for loss in LOSSES.values():
            self.watch_loss(loss)

    def watch_exact_p(self) -> None:
        prepare, exact_p, told = layer_module.prepare_p_exact, layer_module.update_p_exact_, {}

        def prepared(z, W, b, nu, rho, out, products):
            given = prepare(z, W, b, nu, rho, out, products=products)
            told[given[0].data_ptr()] = z, W, b, nu
            return given

        def update(p, given, q, u, rho, products):
            z, W, b, nu = told[given[0].data_ptr()]
            exact_p(p, given, q, u, rho, products)
            condition = 1 + nu * float(torch.linalg.matrix_norm(W)) ** 2 / rho
            parts = [-nu * z @ W, nu * (p @ W.mT) @ W, (nu * b @ W).expand_as(p), u, rho * p, -rho * q]
            assert_zero(parts, 1e-12 * condition)
            self.count("exact p")

        self.patch(layer_module, "prepare_p_exact", prepared)
        self.patch(layer_module, "update_p_exact_", update)

    def watch_gradient_p(self) -> None:
        gradient_p = layer_module.update_p_gradient_

        def update(p, r, W, q, u, nu, rho, products):
            def value(p, r):
                gap = p - q
                return nu / 2 * r.square().sum(1) + (u * gap).sum(1) + rho / 2 * gap.square().sum(1)

            a, before = p @ W.mT + r, value(p, r)
            gradient_p(p, r, W, q, u, nu, rho, products)
            assert bool((value(p, r) <= before + 1e-9 * (before.abs() + value(p, r).abs() + 1e-300)).all())
            assert_zero([a, -r, -(p @ W.mT)], 1e-10)
            self.count("gradient p")

        self.patch(layer_module, "update_p_gradient_", update)

    def watch_W(self) -> None:
        exact_W = layer_module.update_W_b_exact

        def update(moments, W_old, mu=0.0, prox=0.0, kappa=0.0, target=None):
            W, b = exact_W(moments, W_old, mu, prox, kappa, target)
            aim = torch.zeros_like(W) if target is None else target
            floor = 16 * torch.finfo(W.dtype).eps * (moments.pp.diagonal().sum() + 1.0)
            above = b if moments.centre is None else b + W @ moments.centre  # the intercept over p less its centre
            parts = [W @ moments.pp, torch.outer(above, moments.p_sum), -moments.zp]
            parts += [mu * W, (prox + floor) * (W - W_old), kappa * (W - aim)]
            assert_zero(parts, 1e-6, least=1e-12)
            assert_zero([moments.z_sum, -(W @ moments.p_sum), -moments.count * above], 1e-10, least=1e-12)
            self.count("exact W")
            return W, b

        self.patch(layer_module, "update_W_b_exact", update)

    def watch_z(self) -> None:
        update_z = PiecewiseLinear.update_z_

        def update(activation, z, r, q, prox_z):
            def value(z):
                return (z - a).square() + (q - activation(z)).square() + prox_z * (z - old).square()

            old, a = z.clone(), r.clone()
            update_z(activation, z, r, q, prox_z)
            unit = 1e-12 * (a.square() + q.square() + old.square())
            for other in (old, a, q, torch.zeros_like(z), z + 1e-3, z - 1e-3, 1.01 * z, 0.5 * z):
                assert bool((value(z) <= value(other) + unit).all())
            assert torch.equal(r, z - a)
            self.count("z")

        self.patch(PiecewiseLinear, "update_z_", update)

    def watch_q_u(self) -> None:
        update_q_u = Link.update_q_u

        def update(link, z, r, activation, nu, rho):
            before, f_z = link.u.clone(), activation(z)
            update_q_u(link, z, r, activation, nu, rho)
            if link.momentum is None and link.p_channel.coder is None:  # as it was updated, not extrapolated
                assert_zero([nu * link.q, -nu * f_z, -before, -rho * link.p, rho * link.q], 1e-12)
                assert_zero([link.u, -before, -rho * link.p, rho * link.q], 1e-12)
            assert bool(torch.isfinite(link.q).all() & torch.isfinite(link.u).all())
            self.count("q, u")

        self.patch(Link, "update_q_u", update)

    def watch_loss(self, loss) -> None:
        minimise = loss.minimise

        def minimised(a, y, nu, start):
            z = minimise(a, y, nu, start)
            onehot = torch.nn.functional.one_hot(y, z.shape[1]).double()
            pull = torch.softmax(z, 1) if loss.name == "cross_entropy" else z
            assert_zero([pull - onehot, nu * z, -nu * a, torch.full_like(z, 1e-3), torch.full_like(z, -1e-3)], 1e-9)
            self.count("z of L")
            return z

        self.patch(loss, "minimise", minimised, raising=False)

    def count(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_update_of_pdadmm_g_keeps_its_condition(variant, monkeypatch):
    watched = Watched(monkeypatch)
    for case, build in GRAPHS.items():
        graph = build()
        given = SMALL | {"dtype": "float64"} | VARIANTS[variant]
        assert_finite(PDADMMG(**given).fit(graph), graph), case
    iterations = len(GRAPHS) * SMALL["iterations"]
    expected = {"z": 3, "q, u": 3, "z of L": 2}  # boundaries, or last layers, of the stages of 2 and 3 layers
    expected |= {"gradient p": 3} if variant == "gradient" else {"exact p": 3, "exact W": 3}
    assert {name: iterations * times for name, times in expected.items()} == watched.counts


@given(
    seed=st.integers(0, 2**31), nodes=st.integers(1, 9), features=st.integers(1, 6), classes=st.integers(1, 4),
    hidden=st.integers(1, 12), log_scale=st.integers(-12, 12), log_nu=st.integers(-4, 2),
    bits=st.sampled_from([0, 1, 4, 16, 32]), activation=st.sampled_from(list(ACTIVATIONS)),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_any_small_problem_trains_to_finite_weights(
    seed, nodes, features, classes, hidden, log_scale, log_nu, bits, activation
):
    """Random arrays of any scale, duplicated rows and constant columns among them, coded or not."""
    random = np.random.default_rng(seed)
    X = random.normal(size=(nodes, features)) * 10.0**log_scale
    X[random.random(nodes) < 0.3] = X[0]
    X[:, random.random(features) < 0.3] = 10.0**log_scale
    y = random.integers(classes, size=nodes)
    given = SMALL | {"hidden": hidden, "nu": 10.0**log_nu, "activation": activation, "dtype": "float64"}
    solver = PDADMMG(**given) if bits == 32 else PDADMMGQ(bits=bits, **given)
    proba = solver.fit(X, y).predict_proba(X)
    assert np.isfinite(proba).all()
    assert all(math.isfinite(row["lagrangian"]) for row in solver.history_)
