"""Every closed form against autograd and brute force; every majorised step against its majoriser."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import newton_z, scan_z

from pdadmm.admm import losses
from pdadmm.admm.activations import ACTIVATIONS, PiecewiseLinear, get_activation
from pdadmm.admm.first_layer import FIRST_LAYERS, GradientFirst, GramFirst, KernelFirst, choose_first_layer
from pdadmm.admm.losses import LOSSES, get_loss, softmax_newton
from pdadmm.admm.updates import (
    Moments,
    cholesky,
    dual,
    inverse_p,
    prepare_p_exact,
    spd_inverse,
    update_b_,
    update_p_exact_,
    update_p_gradient_,
    update_q_,
    update_q_u_,
    update_u_,
    update_W_b_exact,
    update_W_b_gradient,
    update_W_gradient_,
)
from pdadmm.errors import InputError

EPS = torch.finfo(torch.float64).eps
SEEDS = st.integers(0, 2**32 - 1)
PENALTIES = st.floats(-4, 3).map(lambda exponent: 10.0**exponent)
SHAPES = st.tuples(  # V, n, m: V=1, n=1, V < n and V >> n all occur
    st.sampled_from([1, 2, 3, 7, 20, 60]), st.sampled_from([1, 2, 5, 12]), st.sampled_from([1, 2, 5, 12])
)
# the library's activations, and two of a user's
FUNCTIONS = ACTIVATIONS | {"abs": PiecewiseLinear("abs", -1.0), "steep": PiecewiseLinear("steep", 1.5)}


class Layer:
    """Random p W b z q u r of one layer in float64; some columns of p dead, some equal."""

    def __init__(self, seed: int, shape: tuple[int, int, int]) -> None:
        V, n, m = shape
        random = torch.Generator().manual_seed(seed)

        def draw(*size: int) -> torch.Tensor:
            return torch.randn(*size, generator=random, dtype=torch.float64)

        self.p, self.W, self.b, self.z = draw(V, m), draw(n, m), draw(n), draw(V, n)
        self.q, self.u = draw(V, m), 0.3 * draw(V, m)
        if m > 1 and seed % 3 == 0:
            self.p[:, seed % m] = 0.0
        if m > 2 and seed % 3 == 1:
            self.p[:, 0] = self.p[:, 1]
        if seed % 5 == 0:
            self.W[seed % n] = 0.0

    @property
    def r(self) -> torch.Tensor:
        return self.z - self.p @ self.W.mT - self.b

    def phi_p(self, p: torch.Tensor, nu: float, rho: float) -> torch.Tensor:
        """The p-subproblem, one value a node."""
        gap = p - self.q
        linear = (self.z - p @ self.W.mT - self.b).square().sum(1)
        return nu / 2 * linear + (self.u * gap).sum(1) + rho / 2 * gap.square().sum(1)


def gradient_of(function, *arguments):
    arguments = [x.clone().requires_grad_() for x in arguments]
    return torch.autograd.grad(function(*arguments).sum(), arguments)


def assert_minimum(function, point: list[torch.Tensor], slack: float, seed: int) -> None:
    """No perturbation of ``point``, of any size, goes below its value."""
    random = torch.Generator().manual_seed(seed)
    least = function(*point)
    for scale in (1e-6, 1e-3, 0.1, 1.0, 10.0):
        for _ in range(4):
            other = [x + scale * torch.randn(x.shape, generator=random, dtype=x.dtype) for x in point]
            assert bool((function(*other) >= least - slack).all())


# p


@given(seed=SEEDS, shape=SHAPES, nu=PENALTIES, rho=PENALTIES)
@settings(max_examples=80, deadline=None)
def test_exact_p_is_the_minimum(seed, shape, nu, rho):
    s = Layer(seed, shape)
    p = torch.empty_like(s.p)
    prepared = prepare_p_exact(s.z, s.W, s.b, nu, rho)
    update_p_exact_(p, prepared, s.q, s.u, rho)
    (g,) = gradient_of(lambda p: s.phi_p(p, nu, rho), p)
    size = float(s.W.square().sum())
    condition = 1 + nu * size / rho
    unit = nu * size**0.5 * float((s.z - s.b).abs().max() + 1) + rho * float(s.q.abs().max()) + float(s.u.abs().max())
    assert float(g.abs().max()) <= 1e-13 * condition * (unit + 1)
    assert_minimum(lambda p: s.phi_p(p, nu, rho), [p], 1e-12 * condition * float(s.phi_p(p, nu, rho).abs().max()), seed)


@given(seed=SEEDS, shape=SHAPES, nu=PENALTIES, rho=PENALTIES)
@settings(max_examples=80, deadline=None)
def test_a_gradient_step_of_p_meets_its_majoriser_and_carries_r(seed, shape, nu, rho):
    s = Layer(seed, shape)
    old, r, p = s.phi_p(s.p, nu, rho), s.r, s.p.clone()
    (g,) = gradient_of(lambda p: s.phi_p(p, nu, rho), s.p)
    update_p_gradient_(p, r, s.W, s.q, s.u, nu, rho)
    moved = (s.p - p).square().sum(1).sqrt()
    tau = g.square().sum(1).sqrt() / moved
    new = s.phi_p(p, nu, rho)
    size = 1 + old.abs() + new.abs()
    promised = old - g.square().sum(1) / (2 * tau)
    assert bool((new <= promised + 1e-11 * size).all())
    assert bool((new >= promised - 1e-11 * size).all())  # the curvature along g is met with equality
    assert bool((tau >= rho * (1 - 1e-9)).all())
    torch.testing.assert_close(s.p - p, g / tau[:, None], rtol=1e-9, atol=1e-12)  # along -g, one tau a node
    torch.testing.assert_close(r, s.z - p @ s.W.mT - s.b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_zero_gradient_leaves_p_alone(dtype):
    s = Layer(4, (5, 3, 2))
    p, W = s.p.to(dtype), s.W.to(dtype)
    r, q, u = torch.zeros(5, 3, dtype=dtype), p.clone(), torch.zeros_like(p)
    before = p.clone()
    update_p_gradient_(p, r, W, q, u, 0.3, 0.3)
    assert torch.equal(p, before)
    assert not r.any()


def test_tau_is_rho_where_W_is_zero():
    s = Layer(1, (4, 3, 2))
    s.W.zero_()
    p, r = s.p.clone(), s.r
    update_p_gradient_(p, r, s.W, s.q, s.u, 0.7, 0.2)
    torch.testing.assert_close(p, s.q - s.u / 0.2)  # the minimum of the rest, in one step


def test_a_gradient_step_of_p_sees_each_node_alone():
    s = Layer(7, (6, 4, 3))
    whole, r = s.p.clone(), s.r
    update_p_gradient_(whole, r, s.W, s.q, s.u, 0.5, 0.1)
    for i in range(6):
        one = slice(i, i + 1)
        p, r_i = s.p[one].clone(), s.r[one].clone()
        update_p_gradient_(p, r_i, s.W, s.q[one], s.u[one], 0.5, 0.1)
        torch.testing.assert_close(p, whole[one])


# W and b


@given(
    seed=SEEDS, shape=SHAPES, mu_over_nu=st.sampled_from([0.0, 1e-3, 1.0]),
    prox=st.sampled_from([0.0, 1e-2, 5.0]), kappa=st.sampled_from([0.0, 1e-2, 5.0]), aimed=st.booleans(),
)  # fmt: skip
@settings(max_examples=120, deadline=None)
def test_exact_W_and_b_are_the_minimum(seed, shape, mu_over_nu, prox, kappa, aimed):
    s = Layer(seed, shape)
    target = torch.eye(*s.W.shape, dtype=s.W.dtype) if aimed else None
    aim = torch.zeros_like(s.W) if target is None else target

    def objective(W, b):
        fit = (s.z - s.p @ W.mT - b).square().sum()
        pulls = prox * (W - s.W).square().sum() + kappa * (W - aim).square().sum()
        return fit + mu_over_nu * W.square().sum() + pulls

    W, b = update_W_b_exact(Moments.of(s.p, s.z), s.W, mu_over_nu, prox, kappa, target)
    assert W.is_contiguous()
    assert W.shape == s.W.shape
    dW, db = gradient_of(objective, W, b)
    scale = float(s.p.square().sum()) + 1 + mu_over_nu + prox + kappa
    size = scale * (1 + float(W.abs().max()) + float(s.W.abs().max()) + float(s.z.abs().max()))
    # the proximal weight at rounding level counts as rounding
    assert float(dW.abs().max()) <= 300 * EPS * size
    assert float(db.abs().max()) <= 300 * EPS * size
    assert_minimum(objective, [W, b], 1e-12 * size, seed)


@given(seed=SEEDS, shape=SHAPES)
@settings(max_examples=40, deadline=None)
def test_exact_W_stays_where_nothing_decides_it(seed, shape):
    """With dead inputs the W-subproblem has many minima; the step takes the one nearest to the last W."""
    s = Layer(seed, shape)
    s.p.zero_()
    W, b = update_W_b_exact(Moments.of(s.p, s.z), s.W)
    torch.testing.assert_close(W, s.W, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(b, s.z.mean(0), rtol=1e-12, atol=1e-12)


@given(
    seed=SEEDS, shape=SHAPES, nu=PENALTIES, mu=st.sampled_from([0.0, 1e-2, 3.0]),
    kappa=st.sampled_from([0.0, 1e-2, 5.0]), aimed=st.booleans(),
)  # fmt: skip
@settings(max_examples=120, deadline=None)
def test_a_gradient_step_of_W_meets_its_majoriser_and_carries_r(seed, shape, nu, mu, kappa, aimed):
    s = Layer(seed, shape)
    target = torch.eye(*s.W.shape, dtype=s.W.dtype) if aimed else None
    aim = torch.zeros_like(s.W) if target is None else target

    def phi(W):
        fit = nu / 2 * (s.z - s.p @ W.mT - s.b).square().sum()
        return fit + mu / 2 * W.square().sum() + nu * kappa / 2 * (W - aim).square().sum()

    (G,) = gradient_of(phi, s.W)
    W, r = s.W.clone(), s.r
    update_W_gradient_(W, r, s.p, nu, mu, kappa, target)
    old, new = float(phi(s.W)), float(phi(W))
    theta = float(G.norm() / (s.W - W).norm()) if float((s.W - W).norm()) else math.inf
    assert new == pytest.approx(old - float(G.square().sum()) / (2 * theta), rel=1e-10, abs=1e-11 * (1 + old))
    assert theta >= (mu + nu * kappa) * (1 - 1e-9)
    torch.testing.assert_close(r, s.z - s.p @ W.mT - s.b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_zero_gradient_leaves_W_alone(dtype):
    s = Layer(4, (5, 3, 2))
    W, p = s.W.to(dtype), s.p.to(dtype)
    before, r = W.clone(), torch.zeros(5, 3, dtype=dtype)
    update_W_gradient_(W, r, p, 0.3, 0.0)
    assert torch.equal(W, before)
    update_W_gradient_(W, r, torch.zeros_like(p), 0.3, 0.0)
    assert torch.equal(W, before)
    assert not r.any()


@given(seed=SEEDS, shape=SHAPES)
@settings(max_examples=30, deadline=None)
def test_b_is_the_minimum_and_carries_r(seed, shape):
    s = Layer(seed, shape)
    b, r = s.b.clone(), s.r
    update_b_(b, r)
    (g,) = gradient_of(lambda b: (s.z - s.p @ s.W.mT - b).square(), b)
    assert float(g.abs().max()) <= 1e-12 * (1 + len(s.p) * float(s.r.abs().max()))
    torch.testing.assert_close(r, s.z - s.p @ s.W.mT - b, rtol=1e-12, atol=1e-12)


@given(seed=SEEDS, shape=SHAPES, cuts=st.lists(st.integers(0, 60), max_size=4))
@settings(max_examples=40, deadline=None)
def test_moments_add_over_blocks_of_nodes(seed, shape, cuts):
    s = Layer(seed, shape)
    V = shape[0]
    ends = sorted({0, V, *(min(cut, V) for cut in cuts)})
    blocks = [Moments.of(s.p[i:j], s.z[i:j]) for i, j in itertools.pairwise(ends)]
    total = blocks[0]
    for block in blocks[1:]:
        total = total + block
    whole = Moments.of(s.p, s.z)
    assert total.count == whole.count == V
    for name in ("pp", "zp", "p_sum", "z_sum"):
        torch.testing.assert_close(getattr(total, name), getattr(whole, name), rtol=1e-12, atol=1e-11)
    ours, theirs = (update_W_b_exact(moments, s.W, prox=1.0) for moments in (total, whole))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_cholesky_of_an_indefinite_matrix_is_nan_and_no_exception():
    A = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    assert cholesky(A).isnan().all()
    assert spd_inverse(A).isnan().all()
    assert cholesky(torch.full((2, 2), math.nan)).isnan().any()


@given(seed=SEEDS, n=st.integers(1, 8))
@settings(max_examples=20, deadline=None)
def test_spd_inverse_inverts(seed, n):
    B = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    A = B @ B.mT + torch.eye(n, dtype=torch.float64)
    torch.testing.assert_close(spd_inverse(A) @ A, torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-11)


# q and u


@given(seed=SEEDS, shape=SHAPES, nu=PENALTIES, rho=PENALTIES, name=st.sampled_from(list(FUNCTIONS)))
@settings(max_examples=60, deadline=None)
def test_q_is_the_minimum_and_u_follows(seed, shape, nu, rho, name):
    s = Layer(seed, shape)
    f_z = FUNCTIONS[name](s.q + 0.5)

    def objective(q):
        gap = s.p - q
        return nu / 2 * (q - f_z).square() - s.u * q + rho / 2 * gap.square()

    q, u = torch.full_like(s.p, math.nan), s.u.clone()
    update_q_(q, s.p, s.u, f_z, nu, rho)
    (g,) = gradient_of(objective, q)
    size = (nu + rho) * (1 + float(q.abs().max()) + float(s.p.abs().max())) + float(s.u.abs().max())
    assert float(g.abs().max()) <= 1e-13 * size
    assert_minimum(objective, [q], 1e-13 * size * (1 + float(q.abs().max())), seed)
    update_u_(u, s.p, q, rho)
    torch.testing.assert_close(u, s.u + rho * (s.p - q), rtol=1e-12, atol=1e-12)
    # without a quantizer u_l = nu (q_l - f(z_l))
    assert float((u - nu * (q - f_z)).abs().max()) <= 1e-12 * size


# z, hidden

ELEMENTS = st.one_of(st.floats(-5, 5), st.sampled_from([0.0, -0.0, 1e-8, -1e-8, 300.0, -300.0]))


@pytest.mark.parametrize("name", FUNCTIONS)
@given(a=ELEMENTS, q=ELEMENTS, z_old=ELEMENTS, prox_z=st.sampled_from([0.0, 0.1, 1.0, 7.0]))
@settings(max_examples=150, deadline=None)
def test_z_beats_every_point_of_a_grid(name, a, q, z_old, prox_z):
    f = FUNCTIONS[name]

    def objective(z):
        return (z - a).square() + (q - f(z)).square() + prox_z * (z - z_old).square()

    one = [torch.tensor([[x]], dtype=torch.float64) for x in (a, q, z_old)]
    z = f.minimise(*one, prox_z)
    reach = 1 + max(abs(a), abs(q), abs(z_old))
    grid = torch.linspace(-2 * reach, 2 * reach, 4001, dtype=torch.float64)
    near = float(z) + torch.linspace(-1e-3, 1e-3, 201, dtype=torch.float64) * reach
    least = float(objective(z))
    assert least <= float(objective(grid).min()) + 1e-12 * reach**2
    assert least <= float(objective(near).min()) + 1e-12 * reach**2
    assert least <= float(objective(torch.zeros(1, dtype=torch.float64))) + 1e-12 * reach**2
    slope = f.negative_slope
    plain = torch.tensor([[scan_z(a, q, z_old, prox_z, slope)]], dtype=torch.float64)
    assert least <= float(objective(plain)) + 1e-12 * reach**2


def test_the_proximal_term_takes_part_in_the_comparison():
    """Without it, as in the authors' code, the other piece of relu would win here."""
    relu = get_activation("relu")
    a, q, z_old = (torch.tensor([[x]], dtype=torch.float64) for x in (-1.0, 1.1, 2.0))
    right, left = (-1.0 + 1.1 + 2.0) / 3, (-1.0 + 2.0) / 2
    assert (right + 1) ** 2 + (1.1 - right) ** 2 > 1.1**2 + 1.0  # the comparison without the proximal term
    assert left > 0  # so the left candidate is 0
    assert float(relu.minimise(a, q, z_old, 1.0)) == pytest.approx(right)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_activations_are_what_torch_says(name):
    z = torch.linspace(-3, 3, 61)
    plain = {"relu": torch.relu, "leaky_relu": torch.nn.LeakyReLU(0.01), "identity": torch.nn.Identity()}
    f = FUNCTIONS[name]
    if name in plain:
        torch.testing.assert_close(f(z), plain[name](z))
    assert f.idempotent == torch.equal(f(f(z)), f(z))
    kept = z.clone()
    f(z).add_(1.0)  # the result is never the argument itself
    assert torch.equal(z, kept)


@pytest.mark.parametrize(("get", "table"), [(get_activation, ACTIVATIONS), (get_loss, LOSSES)])
def test_unknown_rows_are_named(get, table):
    with pytest.raises(InputError, match="nonsense") as caught:
        get("nonsense")
    for name in table:
        assert name in str(caught.value)
        assert get(name) is table[name]


# z, last layer


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


# The first layer


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


@given(seed=SEEDS, V=st.integers(1, 15), n0=st.integers(1, 15), kappa=st.sampled_from([0.0, 0.2, 2.0]))
@settings(max_examples=50, deadline=None)
def test_the_gradient_form_descends(seed, V, n0, kappa):
    X, z = first_problem(seed, V, V, n0, 3)
    form = GradientFirst(X, V, kappa)
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


def test_the_gradient_form_converges_to_the_direct_solution():
    X, z = first_problem(1, 20, 20, 4, 3)
    form = GradientFirst(X, 20, 0.2)
    form.set_weights(torch.ones(3, 4, dtype=X.dtype), torch.zeros(3, dtype=X.dtype))
    form.start()
    for _ in range(300):
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


@settings(deadline=None)
@given(seed=SEEDS, shape=SHAPES, nu=PENALTIES, mu=st.sampled_from([0.0, 0.3]), kappa=st.sampled_from([0.0, 0.2]))
def test_gradient_W_b_from_sums_is_the_step_over_all_nodes(seed, shape, nu, mu, kappa):
    s = Layer(seed, shape)
    target = torch.eye(len(s.W), dtype=s.W.dtype) if s.W.shape[0] == s.W.shape[1] else None
    r = s.z - s.p @ s.W.mT - s.b
    moments = Moments.of(s.p, r)
    W, b = update_W_b_gradient(moments, s.W, s.b, nu, mu, kappa, target)
    old = s.W.clone(), s.b.clone()
    update_W_gradient_(old[0], r, s.p, nu, mu, kappa, target)
    update_b_(old[1], r)
    torch.testing.assert_close(W, old[0], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(b, old[1], rtol=1e-8, atol=1e-8)


@settings(deadline=None)
@given(seed=SEEDS, shape=SHAPES, nu=PENALTIES, rho=PENALTIES, name=st.sampled_from(sorted(ACTIVATIONS)))
def test_u_follows_from_q_and_z(seed, shape, nu, rho, name):
    """Whatever p and u were, u after an iteration is nu (q - f(z))."""
    s, f = Layer(seed, shape), get_activation(name)
    p, u, z, q = s.p, s.u.clone(), s.q.clone(), torch.empty_like(s.q)
    update_q_u_(q, u, p, z, f, nu, rho)
    size = (nu + rho) * float(q.abs().max() + z.abs().max() + p.abs().max()) + float(s.u.abs().max())
    torch.testing.assert_close(dual(q, z, f, nu, torch.empty_like(q)), u, rtol=0, atol=1e3 * EPS * size)


@settings(deadline=None)
@given(seed=SEEDS, shape=SHAPES, nu=PENALTIES, rho=PENALTIES)
def test_blocks_of_nodes_share_one_inverse(seed, shape, nu, rho):
    s = Layer(seed, shape)
    whole, inverse = prepare_p_exact(s.z, s.W, s.b, nu, rho)
    assert torch.equal(inverse, inverse_p(s.W, nu, rho))
    right, same = prepare_p_exact(s.z[:1], s.W, s.b, nu, rho, inverse=inverse)
    assert same is inverse
    torch.testing.assert_close(right, whole[:1])
