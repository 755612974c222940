"""A start from the labels: conjugate gradients, codes, and the network before its first iteration."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from admm_layer import SEEDS
from admm_small import Recorder, fit, small_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from pdadmm.admm.activations import ACTIVATIONS
from pdadmm.admm.conjugate import best_steps, conjugate_ridge
from pdadmm.admm.first_layer import FIRST_LAYERS
from pdadmm.admm.label_start import OUTPUT_RIDGE, CentredLabels, regress_labels
from pdadmm.admm.products import FULL, make_products
from pdadmm.admm.shard import WHOLE, Shard
from pdadmm.parallel.transport import LocalTransport


def draw(seed: int, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=random, dtype=torch.float64) for shape in shapes]


def ridge(p: torch.Tensor, Y: torch.Tensor, kappa: float) -> torch.Tensor:
    """The minimiser of |Y - p W^T|^2 + kappa |W|^2."""
    return torch.linalg.solve(p.mT @ p + kappa * torch.eye(p.shape[1], dtype=p.dtype), p.mT @ Y).mT


# Conjugate gradients


@given(seed=SEEDS, V=st.sampled_from([1, 5, 127, 128, 129, 300]), n0=st.integers(1, 9), C=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_as_many_steps_as_columns_solve_the_regression(seed, V, n0, C):
    p, Y = draw(seed, (V, n0), (V, C))
    kappa = 0.2 * float(p.square().sum()) / V
    found = conjugate_ridge((p,), Y, kappa, n0 + 1, WHOLE, FULL)
    torch.testing.assert_close(found, ridge(p, Y, kappa), rtol=1e-7, atol=1e-9)


@given(seed=SEEDS, V=st.integers(2, 20), n0=st.integers(1, 12), steps=st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_every_step_comes_nearer(seed, V, n0, steps):
    p, Y = draw(seed, (V, n0), (V, 3))

    def objective(steps: int) -> torch.Tensor:
        W = conjugate_ridge((p,), Y, 0.1, steps, WHOLE, FULL)
        return (Y - p @ W.mT).square().sum(0) + 0.1 * W.square().sum(1)

    before, after = objective(steps), objective(steps + 1)
    assert (after <= before * (1 + 1e-12) + 1e-12).all()


def test_features_and_labels_without_spread_have_the_regression_zero():
    for p, Y in ((torch.zeros(4, 3), torch.ones(4, 2)), (torch.ones(4, 3), torch.zeros(4, 2))):
        assert torch.equal(conjugate_ridge((p,), Y, 0.2, 5, WHOLE, FULL), torch.zeros(2, 3))


def test_the_number_format_of_products_is_obeyed():
    p, Y = (x.float() for x in draw(1, (200, 30), (200, 3)))
    exact, rough = (
        conjugate_ridge(products.operand(p), Y, 5.0, 4, WHOLE, products)
        for products in (FULL, make_products("bf16"))
    )
    assert not torch.equal(exact, rough)
    torch.testing.assert_close(rough, exact, rtol=0.1, atol=0.01)


@given(seed=SEEDS, parallel=st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_best_steps_are_the_least_of_the_plane(seed, parallel):
    A, d, e, y = draw(seed, (7, 5), (5,), (5,), (7,))
    e = -2.0 * d if parallel else e
    D, E = A @ d, A @ e
    slopes = tuple((y @ x).reshape(1) for x in (D, E))
    curvatures = tuple((x @ y).reshape(1) for x, y in ((D, D), (D, E), (E, E)))
    s, t = best_steps(slopes, curvatures)
    least = np.linalg.lstsq(np.stack([D, E], 1), y.numpy(), rcond=1e-6)[0]
    np.testing.assert_allclose(s * D + t * E, np.stack([D, E], 1) @ least, rtol=1e-6, atol=1e-9)
    assert not (parallel and t.any())


def test_no_curvature_is_no_step():
    zero = torch.zeros(2)
    assert [x.tolist() for x in best_steps((zero, zero), (zero, zero, zero))] == [[0.0, 0.0]] * 2


# The two regressions


@given(
    seed=st.integers(0, 2**63 - 1), classes=st.integers(1, 5), width=st.integers(1, 9),
    deviation=st.sampled_from([0.1, 3.0]),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_codes_have_the_deviation_asked_for_and_one_draw_a_seed(seed, classes, width, deviation):
    y = torch.arange(20) % classes
    labels = CentredLabels(y, classes, torch.float64, Shard(LocalTransport(), 20))
    Y = labels.of(y)
    torch.testing.assert_close(Y + labels.mean, torch.nn.functional.one_hot(y, classes).double())
    torch.testing.assert_close(Y.sum(0), torch.zeros(classes, dtype=torch.float64))
    codes = labels.codes(seed, width, deviation)
    assert codes.shape == (width, classes)
    if classes > 1:
        assert float((Y @ codes.mT).square().mean().sqrt()) == pytest.approx(deviation)
    assert torch.equal(codes, labels.codes(seed, width, deviation))
    if width > classes > 1:
        assert not torch.equal(codes, labels.codes(seed ^ 1, width, deviation))


@given(seed=SEEDS, V=st.integers(1, 12), m=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_the_last_layer_is_a_ridge_regression_with_a_free_bias(seed, V, m):
    p, Y = draw(seed, (V, m), (V, 3))
    Y -= Y.mean(0)
    (mean,) = draw(seed + 1, (3,))
    about = p - p.mean(0)
    W, b = regress_labels(about.mT @ about, Y.mT @ about, p.mean(0), mean)
    kappa = OUTPUT_RIDGE * float(about.square().sum()) / m or 1.0
    torch.testing.assert_close(W, ridge(about, Y, kappa), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(b, mean - W @ p.mean(0))


@pytest.mark.parametrize("name", FIRST_LAYERS)
@given(seed=SEEDS, V=st.integers(3, 12), n0=st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_every_form_of_the_first_layer_begins_at_the_labels(name, seed, V, n0):
    X, Y, codes, W = draw(seed, (V + 2, n0), (V, 3), (4, 3), (4, n0))
    X, Y = X - X[:V].mean(0), Y - Y.mean(0)
    b = torch.full((4,), 0.5, dtype=X.dtype)
    form = FIRST_LAYERS[name](X, V, 0.2)
    form.begin_at_labels(W, b, Y, codes)
    if name in ("gram", "kernel"):  # their update is exact, and sees both parts
        expected = ridge(X[:V], X[:V] @ W.mT + Y @ codes.mT, form.kappa)
    else:
        expected = W + codes @ ridge(X[:V], Y, form.kappa)
    torch.testing.assert_close(form.weights()[0], expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(form.weights()[1], b)
    torch.testing.assert_close(form.start(), X[:V] @ expected.mT + b, rtol=1e-5, atol=1e-6)


# Whole networks


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("stages", [(4,), (2, 4), (3, 4)])
@pytest.mark.parametrize("first_layer", FIRST_LAYERS)
def test_the_first_stage_starts_from_the_labels(monkeypatch, first_layer, stages, activation):
    """Hidden layers are the identity, and the last one is the ridge regression of the labels on what arrives."""
    graph, seen = small_graph(), Recorder(monkeypatch)
    more = {"activation": activation, "dtype": "float64", "first_layer": first_layer, "stages": stages}
    fit(graph, initial="labels", **more)
    start, depth = seen.before[0], stages[0]
    for layer in range(1, depth - 1):
        np.testing.assert_array_equal(start[f"{layer}.W"], np.eye(6))
        assert not start[f"{layer}.b"].any()
    train = graph.splits["train"]
    Y = np.eye(3)[graph.labels[train]]
    p = start[f"{depth - 1}.below.p"]
    about = p - p.mean(0)
    W, b = start[f"{depth - 1}.W"], start[f"{depth - 1}.b"]
    expected = ridge(*map(torch.from_numpy, (about, Y - Y.mean(0))), OUTPUT_RIDGE * (about**2).sum() / p.shape[1])
    np.testing.assert_allclose(W, expected, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(b, Y.mean(0) - W @ p.mean(0), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(start[f"{depth - 1}.z"], p @ W.T + b, rtol=1e-6, atol=1e-9)
    assert not any(x.any() for name, x in start.items() if name.endswith((".r", ".u")))


def test_later_stages_and_retreats_do_not_start_anew(monkeypatch, caplog):
    """A divergence goes back to the best weights, not to the labels."""
    fitted = []
    monkeypatch.setattr("pdadmm.admm.layer.regress_labels", lambda *given: fitted.append(1) or regress_labels(*given))
    more = {"form": "exact", "nu": 28.0, "rho": 1e-10, "on_divergence": "backoff", "stages": (3, 4)}
    fit(small_graph(), initial="labels", **more)
    assert "going on from the best weights" in caplog.text
    assert len(fitted) == 1


@pytest.mark.parametrize("layers", [1, 4])
def test_it_is_sooner_than_a_random_start(layers):
    graph = small_graph()
    more = {"layers": layers, "iterations": 1, "stages": (layers,)}
    random, labels = (
        [fit(graph, initial=initial, seed=seed, **more).history_[0]["train_accuracy"] for seed in range(3)]
        for initial in ("random", "labels")
    )
    assert min(labels) > max(random)
