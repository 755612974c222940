"""Every closed form against autograd and brute force; every majorised step against its majoriser."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from admm_layer import EPS, FUNCTIONS, PENALTIES, SEEDS, SHAPES, Layer, assert_minimum, gradient_of
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import scan_z

from pdadmm.admm.activations import ACTIVATIONS, get_activation
from pdadmm.admm.losses import LOSSES, get_loss
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


@given(seed=SEEDS, shape=SHAPES, cut=st.integers(0, 60), away=st.sampled_from([0.0, 1.0, 100.0]))
@settings(max_examples=40, deadline=None)
def test_moments_about_any_centre_give_the_same_minimum(seed, shape, cut, away):
    s = Layer(seed, shape)
    centre = s.p.mean(0) + away
    parts = [(s.p[rows], s.z[rows]) for rows in (slice(cut), slice(cut, None))]
    one, other = (Moments.about(centre, *part, out=torch.empty_like(part[0])) for part in parts)
    total = one + other
    torch.testing.assert_close(total.mean_p(), s.p.mean(0), rtol=1e-10, atol=1e-10)
    ours, theirs = (update_W_b_exact(moments, s.W, prox=1.0) for moments in (total, Moments.of(s.p, s.z)))
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)


def test_rows_that_are_much_alike_cost_no_digits_near_their_mean():
    random = torch.Generator().manual_seed(0)
    p = 30.0 + torch.randn(500, 6, generator=random)
    z = p @ torch.randn(6, 3, generator=random) + torch.randn(500, 3, generator=random)
    W = torch.zeros(3, 6)
    expected, _ = update_W_b_exact(Moments.of(p.double(), z.double()), W.double())
    plain, centred = (
        float((update_W_b_exact(moments, W)[0] - expected).abs().max())
        for moments in (Moments.of(p, z), Moments.about(p.mean(0), p, z))
    )
    assert centred < 1e-4  # the weight at rounding level that holds W at its last value
    assert plain > 1e-2


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
