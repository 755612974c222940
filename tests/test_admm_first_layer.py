"""The first layer: its forms agree, keep their own word, and have one ridge."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from admm_layer import SEEDS
from hypothesis import given, settings
from hypothesis import strategies as st

from pdadmm.admm.first_layer import (
    FIRST_LAYERS,
    ConjugateFirst,
    GradientFirst,
    GramFirst,
    KernelFirst,
    choose_first_layer,
)


def first_problem(seed: int, N: int, V: int, n0: int, n: int, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    X = torch.randn(N, n0, generator=random, dtype=torch.float64)
    X -= X[:V].mean(0)
    return X.to(dtype), torch.randn(V, n, generator=random, dtype=torch.float64).to(dtype)


def direct_solution(X, z, kappa):
    """W and b of |z - X W^T - b|^2 + kappa |W|^2 by one dense solve, b unpenalised."""
    V, m = X.shape
    A = torch.cat([X, torch.ones(V, 1, dtype=X.dtype)], 1)
    ridge = torch.diag(torch.cat([torch.full((m,), kappa, dtype=X.dtype), torch.zeros(1, dtype=X.dtype)]))
    solution = torch.linalg.solve(A.mT @ A + ridge, A.mT @ z)
    return solution[:m].mT, solution[m]


@given(seed=SEEDS, V=st.integers(2, 20), extra=st.integers(0, 5), n0=st.integers(1, 20), n=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_gram_kernel_and_direct_solution_agree(seed, V, extra, n0, n):
    X, z = first_problem(seed, V + extra, V, n0, n)
    kappa = 0.3 * float(X[:V].square().sum()) / V
    forms = []
    for row in (GramFirst, KernelFirst):
        form = row(X, V, 0.3)
        form.set_weights(torch.zeros(n, n0, dtype=X.dtype), torch.zeros(n, dtype=X.dtype))
        assert form.kappa == pytest.approx(kappa)
        forms.append((form, form.update(z)))
    W, b = direct_solution(X[:V], z, kappa)
    for form, a in forms:
        torch.testing.assert_close(form.weights(), (W, b), rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(a, X[:V] @ W.mT + b, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(form.forward(), X @ W.mT + b, rtol=1e-8, atol=1e-10)
        assert form.penalty() == pytest.approx(kappa * float(W.square().sum()), rel=1e-7, abs=1e-12)
        assert math.isfinite(form.penalty())


@pytest.mark.parametrize("name", FIRST_LAYERS)
@pytest.mark.parametrize("kappa", [0.0, 0.2])
@given(seed=SEEDS, V=st.integers(2, 12), n0=st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_every_first_layer_form_keeps_its_own_word(name, kappa, seed, V, n0):
    """start, forward, weights and update speak of the same W and b, before and after updates and restores."""
    if name == "kernel" and kappa == 0.0:
        n0 += V  # without a ridge a kernel of V > n_0 nodes has no inverse to speak of
    X, z = first_problem(seed, V + 3, V, n0, 4)
    W, b = torch.ones(4, n0, dtype=X.dtype), torch.full((4,), 0.5, dtype=X.dtype)
    form = FIRST_LAYERS[name](X, V, kappa)
    form.set_weights(W.clone(), b.clone())
    torch.testing.assert_close(form.weights(), (W, b))
    torch.testing.assert_close(form.start(), X[:V] @ W.mT + b)
    assert form.penalty() == pytest.approx(form.kappa * float(W.square().sum()), abs=1e-12)

    def consistent(a=None):
        W, b = form.weights()
        size = 1e-8 * (1 + float(W.abs().max()) + float(b.abs().max()))
        torch.testing.assert_close(form.forward(), X @ W.mT + b, rtol=1e-6, atol=size)
        if a is not None:
            torch.testing.assert_close(a, X[:V] @ W.mT + b, rtol=1e-6, atol=size)

    consistent(form.update(z))
    kept = [x.clone() for x in form.weights()]
    snapshot = form.snapshot()
    consistent(form.update(-2.0 * z))
    form.update(z + 1.0)
    form.restore(snapshot)
    torch.testing.assert_close(form.weights(), tuple(kept))
    consistent(form.start())
    consistent(form.update(z))
    form.restore(snapshot)  # a snapshot serves more than once
    torch.testing.assert_close(form.weights(), tuple(kept))


@pytest.mark.parametrize("row", [GradientFirst, ConjugateFirst])
@given(seed=SEEDS, V=st.integers(1, 15), n0=st.integers(1, 15), kappa=st.sampled_from([0.0, 0.2, 2.0]))
@settings(max_examples=50, deadline=None)
def test_the_forms_without_a_factor_descend(row, seed, V, n0, kappa):
    X, z = first_problem(seed, V, V, n0, 3)
    form = row(X, V, kappa)
    form.set_weights(torch.ones(3, n0, dtype=X.dtype), torch.zeros(3, dtype=X.dtype))
    form.start()

    def objective():
        W, b = form.weights()
        return float((z - X @ W.mT - b).square().sum()) + form.penalty()

    values = [objective()]
    for _ in range(8):
        form.update(z)
        values.append(objective())
    assert all(later <= earlier + 1e-11 * (1 + earlier) for earlier, later in itertools.pairwise(values))


@pytest.mark.parametrize(("row", "steps"), [(GradientFirst, 300), (ConjugateFirst, 6)])
def test_the_forms_without_a_factor_converge_to_the_direct_solution(row, steps):
    X, z = first_problem(1, 20, 20, 4, 3)
    form = row(X, 20, 0.2)
    form.set_weights(torch.ones(3, 4, dtype=X.dtype), torch.zeros(3, dtype=X.dtype))
    form.start()
    for _ in range(steps):
        a = form.update(z)
    W, b = direct_solution(X, z, form.kappa)
    torch.testing.assert_close(form.weights(), (W, b), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(a, X @ W.mT + b, rtol=1e-7, atol=1e-9)
    assert form.kappa == pytest.approx(GramFirst(X, 20, 0.2).kappa)


@given(
    seed=SEEDS, V=st.integers(2, 40), extra=st.integers(0, 5), n0=st.integers(1, 40),
    kappa=st.sampled_from([0.1, 0.2, 3.0]), dtype=st.sampled_from([torch.float32, torch.float64]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_all_forms_have_one_ridge_whatever_the_shape(seed, V, extra, n0, kappa, dtype):
    """kappa_1 is kappa_first times the mean squared length of a training row: V < n_0 and V > n_0 alike.

    (Where ``kappa_first`` / V is not below what rounding asks for; the next test is about that.)
    """
    X, _ = first_problem(seed, V + extra, V, n0, 1, dtype)
    expected = kappa * float(X[:V].double().square().sum(1).mean())
    for row in FIRST_LAYERS.values():
        assert row(X, V, kappa).kappa == pytest.approx(expected, rel=1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("V", "n0"), [(30, 4), (4, 30)])
def test_the_ridge_of_a_factor_is_never_below_rounding(V, n0, dtype):
    X, _ = first_problem(3, V, V, n0, 1, dtype)
    least, total = torch.finfo(dtype).eps ** 0.5, float(X.double().square().sum())
    for kappa_first in (0.0, 1e-12):
        assert GramFirst(X, V, kappa_first).kappa == pytest.approx(least * total / n0, rel=1e-5)
        assert KernelFirst(X, V, kappa_first).kappa == pytest.approx(least * total / V, rel=1e-5)


def test_auto_takes_the_smaller_factor():
    assert choose_first_layer("auto", 10, 10) is GramFirst
    assert choose_first_layer("auto", 9, 10) is KernelFirst
    for name, row in FIRST_LAYERS.items():
        assert choose_first_layer(name, 9, 10) is row
        assert row.name == name
        assert row.cost(9, 10, 3) > 0


@pytest.mark.parametrize("name", FIRST_LAYERS)
@pytest.mark.parametrize("V", [1, 4])
def test_features_without_any_spread_leave_the_bias(name, V):
    """One training node, or constant features: after centring p_1 is zero and b_1 = mean of z fits best."""
    form = FIRST_LAYERS[name](torch.zeros(V + 1, 3), V, 0.2)
    form.set_weights(torch.ones(2, 3), torch.zeros(2))
    form.start()
    z = torch.arange(2.0 * V).reshape(V, 2)
    torch.testing.assert_close(form.update(z), z.mean(0).expand(V, 2))
