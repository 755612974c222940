"""z of the last layer: the minimiser of each loss against scipy, differences and the zero of its gradient."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from admm_layer import EPS, SEEDS
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import newton_z

from pdadmm.admm import losses
from pdadmm.admm.losses import LOSSES, get_loss, softmax_newton


def newton_problem(seed: int, V: int, C: int, spread: float, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    a = spread * torch.randn(V, C, generator=random, dtype=torch.float64)
    return a.to(dtype), torch.randint(C, (V,), generator=random)


def softmax_gradient(z, a, y, nu):
    z, a = z.double(), a.double()
    return torch.softmax(z, 1) - torch.nn.functional.one_hot(y, z.shape[1]) + nu * (z - a)


def start_of(kind: str, a, y, nu):
    if kind == "warm":
        return softmax_newton(a + 0.01, y, nu, a)
    random = torch.Generator().manual_seed(1)
    draw = torch.randn(a.shape, generator=random, dtype=torch.float64).to(a.dtype)
    return {"cold": a, "zero": torch.zeros_like(a), "far": 100 * draw}[kind]


def assert_newton_converges(monkeypatch, C: int, nu: float, spread: float, start: str) -> None:
    """The gradient ends at rounding level, and the iteration notices it before its last step."""
    a, y = newton_problem(C, 50, C, spread)
    z0 = start_of(start, a, y, nu)
    steps, softmax = [], torch.softmax
    monkeypatch.setattr(torch, "softmax", lambda *args, **more: steps.append(1) or softmax(*args, **more))
    given, kept = z0.clone(), a.clone()
    z = softmax_newton(a, y, nu, z0)
    monkeypatch.undo()
    assert torch.equal(z0, given)
    assert torch.equal(a, kept)
    g = softmax_gradient(z, a, y, nu).abs().amax(1)
    rounding = EPS * (1 + (1 + nu) * (z.abs() + a.abs()).amax(1))
    where = f"C = {C}, nu = {nu}, spread {spread}, {start} start"
    assert bool((g <= 8 * rounding).all()), f"gradient {float(g.max()):.2g} with {where}"
    assert len(steps) < losses.MAX_NEWTON_STEPS, f"no end after {len(steps)} steps with {where}"


@pytest.mark.parametrize("nu", [1e-3, 1e-2, 0.1, 0.3, 1.0, 10.0])
@pytest.mark.parametrize("start", ["cold", "zero", "warm", "far"])
def test_newton_reaches_a_zero_gradient(monkeypatch, nu, start):
    for C in (1, 2, 7, 40):
        for spread in (0.0, 1.0, 30.0):
            assert_newton_converges(monkeypatch, C, nu, spread, start)


@pytest.mark.parametrize("nu", [1e-3, 1e-2, 0.1, 0.3, 1.0, 10.0])
@pytest.mark.parametrize("start", ["cold", "zero"])
def test_newton_reaches_a_zero_gradient_for_extreme_logits(monkeypatch, nu, start):
    """A layer whose output has run away must still get the z that its subproblem asks for."""
    for C in (2, 7):
        for spread in (1e3, 1e6):
            assert_newton_converges(monkeypatch, C, nu, spread, start)


@pytest.mark.parametrize("solve", [softmax_newton, get_loss("cross_entropy").minimise], ids=["torch", "as used"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("start", ["cold", "zero", "warm", "far"])
def test_newton_in_every_number_format(solve, dtype, start):
    """The C form, where it was built, ends at a zero gradient like the torch form."""
    for nu in (1e-3, 0.1, 0.3, 10.0):
        for C in (1, 2, 7, 300):
            for spread in (0.0, 1.0, 30.0, 1e3):
                a, y = newton_problem(C, 30, C, spread, dtype)
                z0 = start_of(start, a, y, nu)
                given = z0.clone(), a.clone()
                z = solve(a, y, nu, z0)
                assert torch.equal(z0, given[0])
                assert torch.equal(a, given[1])
                assert z.dtype == dtype
                g = softmax_gradient(z, a, y, nu).abs().amax(1)
                size = 1 + C / 8 + (1 + nu) * (z.abs() + a.abs()).amax(1)  # C terms are summed
                rounding = torch.finfo(dtype).eps * size.double()
                where = f"C = {C}, nu = {nu}, spread {spread}"
                assert bool((g <= 8 * rounding).all()), f"gradient {float(g.max()):.2g} with {where}"


@given(seed=SEEDS, C=st.integers(1, 5), log_nu=st.floats(-3, 1), spread=st.sampled_from([0.5, 3.0, 20.0]))
@settings(max_examples=25, deadline=None)
def test_newton_against_scipy(seed, C, log_nu, spread):
    nu = 10.0**log_nu
    a, y = newton_problem(seed, 2, C, spread)
    z = softmax_newton(a, y, nu, a).numpy()

    for i in range(len(a)):
        anchor, label = a[i].numpy(), int(y[i])

        def value(x, anchor=anchor, label=label):
            return scipy.special.logsumexp(x) - x[label] + nu / 2 * ((x - anchor) ** 2).sum()

        def gradient(x, anchor=anchor, label=label):
            return scipy.special.softmax(x) - np.eye(C)[label] + nu * (x - anchor)

        found = scipy.optimize.minimize(value, anchor, jac=gradient, method="BFGS", options={"gtol": 1e-9})
        assert value(z[i]) <= found.fun + 1e-9 * (1 + abs(found.fun))
        np.testing.assert_allclose(z[i], newton_z(anchor, label, nu), rtol=1e-9, atol=1e-9 / min(nu, 1))


@pytest.mark.parametrize("name", LOSSES)
@given(seed=SEEDS, V=st.integers(1, 6), C=st.integers(1, 5), log_nu=st.floats(-2, 1))
@settings(max_examples=25, deadline=None)
def test_every_loss_is_minimised(name, seed, V, C, log_nu):
    loss, nu = get_loss(name), 10.0**log_nu
    a, y = newton_problem(seed, V, C, 3.0)
    z = loss.minimise(a, y, nu, torch.zeros_like(a))

    def objective(z):  # the loss itself returns a float, so the proximal gradient is taken by differences
        return loss.value(z, y) + nu / 2 * float((z - a).square().sum())

    least = objective(z)
    random = torch.Generator().manual_seed(seed)
    for scale in (1e-4, 1e-2, 1.0):
        step = scale * torch.randn(V, C, generator=random, dtype=torch.float64)
        for sign in (-1, 1):
            assert objective(z + sign * step) >= least - 1e-12 * (1 + abs(least))


def test_losses_are_sums_over_nodes():
    z, y = torch.tensor([[2.0, -1.0], [0.5, 0.0]]), torch.tensor([0, 1])
    by_hand = sum(math.log(math.exp(row[0]) + math.exp(row[1])) - row[k] for row, k in zip(z.tolist(), (0, 1)))
    assert get_loss("cross_entropy").value(z, y) == pytest.approx(by_hand)
    assert get_loss("squared_error").value(z, y) == pytest.approx(0.5 * (1 + 1 + 0.25 + 1))


def test_squared_error_in_closed_form():
    a, y = newton_problem(0, 4, 3, 2.0)
    z = get_loss("squared_error").minimise(a, y, 0.7, a)
    torch.testing.assert_close(z - torch.nn.functional.one_hot(y, 3) + 0.7 * (z - a), torch.zeros_like(a))
