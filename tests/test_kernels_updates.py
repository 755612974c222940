"""The fused C updates against the equations in plain torch."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from admm_layer import FUNCTIONS

from pdadmm.admm.layer import link_sums
from pdadmm.admm.losses import get_loss, softmax_newton
from pdadmm.admm.updates import Moments, assemble_W, squared_norm
from pdadmm.kernels import updates as fused

needs_kernels = pytest.mark.skipif(not fused.available(), reason="the C updates are not built")
SIZES = [(1, 1), (3, 5), (17, 7), (64, 32), (900, 300)]  # the last is cut among threads


@contextlib.contextmanager
def two_threads():
    """For what is tested alone: torch's own threads, which would compute the equations, wait busily."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def draws(count: int, shape: tuple[int, int], dtype, seed: int = 0) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype) for _ in range(count)]


def assert_close_in(dtype, ours, theirs) -> None:
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=8 * eps, atol=32 * eps)


@needs_kernels
@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_c_updates_equal_the_equations(name, dtype, shape):
    f, nu, rho = FUNCTIONS[name], 0.3, 0.7
    a, q, z, p, u = draws(5, shape, dtype)
    wide = [x.double() for x in (a, q, z, p, u)]
    for prox_z in (0.0, 0.1, 1.0):
        own, r = z.clone(), torch.full_like(z, math.nan)
        with two_threads():
            fused.update_z_(own, r, a, q, prox_z, f.negative_slope)
        best = f.minimise(wide[0], wide[1], wide[2], prox_z)

        def objective(x, prox_z=prox_z):
            return (x - wide[0]).square() + (wide[1] - f(x)).square() + prox_z * (x - wide[2]).square()

        # where the two pieces tie, rounding may choose either
        assert bool((objective(own.double()) <= objective(best) + 64 * torch.finfo(dtype).eps).all())
        assert torch.equal(r, own - a)
    own_q, own_u = torch.full_like(q, math.nan), u.clone()
    with two_threads():
        fused.update_q_u_(own_q, own_u, p, z, nu, rho, f.negative_slope)
    assert_close_in(dtype, own_q, (rho * wide[3] + wide[4] + nu * f(wide[2])) / (rho + nu))
    assert_close_in(dtype, own_u, wide[4] + rho * (wide[3] - own_q.double()))
    upper_u = u.clone()
    with two_threads():
        fused.update_u_(upper_u, p, own_q, rho)
    assert torch.equal(upper_u, own_u)  # both sides of a boundary hold the same bits of u
    right = a.clone()
    with two_threads():
        fused.assemble_p_(right, q, u, rho)
    assert_close_in(dtype, right, wide[0] + rho * wide[1] - wide[4])


@needs_kernels
@pytest.mark.parametrize("shape", [*SIZES, (700, 1601)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_c_sums_equal_the_equations(name, dtype, shape):
    f = FUNCTIONS[name]
    p, q, u, z = draws(4, shape, dtype)
    before, found = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append([*link_sums(p, q, u), f.squared_distance(q, z), squared_norm(q)])
    torch.set_num_threads(before)
    gap = p.double() - q.double()
    expected = [gap.square().sum(), (u.double() * gap).sum(), q.double().square().sum()]
    expected += [(q.double() - f(z).double()).square().sum(), expected[2]]
    scale = float(u.double().norm() * gap.norm())  # <u, p - q> may cancel
    assert found[0] == pytest.approx([float(x) for x in expected], rel=1e-11, abs=1e-12 * scale)
    assert found[0] == found[1]
    q[-1, -1] = math.nan
    assert all(math.isnan(x) for x in [*link_sums(p, q, u), f.squared_distance(q, z), squared_norm(q)])


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_cut_among_threads_leaves_no_trace(dtype):
    a, q, z = draws(3, (900, 301), dtype)
    found = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        own, r = z.clone(), torch.empty_like(z)
        fused.update_z_(own, r, a, q, 0.1, 0.01)
        found.append(own)
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@needs_kernels
def test_the_c_updates_decline_what_they_cannot_take():
    x = torch.zeros(4, 3)
    assert fused.takes(x, x.clone())
    assert not fused.takes(x.mT)
    assert not fused.takes(x, x.double())
    assert not fused.takes(x.half())
    assert not fused.takes(x.int())


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nan_passes_through_the_c_updates(dtype):
    """Divergence must stay visible."""
    nan = torch.full((3, 4), math.nan, dtype=dtype)
    fine = torch.ones(3, 4, dtype=dtype)
    z, r = fine.clone(), fine.clone()
    fused.update_z_(z, r, nan, fine, 0.1, 0.0)
    assert r.isnan().all()
    q, u = fine.clone(), fine.clone()
    fused.update_q_u_(q, u, nan, fine, 0.3, 0.3, 0.0)
    assert q.isnan().all()
    assert u.isnan().all()
    q, u = fine.clone(), fine.clone()
    fused.update_q_u_(q, u, fine, nan, 0.3, 0.3, 0.0)
    assert q.isnan().all()
    y = torch.zeros(3, dtype=torch.long)
    assert get_loss("cross_entropy").minimise(nan, y, 0.3, fine.clone()).isnan().all()
    assert softmax_newton(nan, y, 0.3, fine.clone()).isnan().all()


@needs_kernels
@pytest.mark.parametrize("shape", [(1, 1, 1), (9, 3, 5), (40, 17, 7), (200, 100, 64)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pulled", [False, True])
def test_the_c_system_of_the_w_update_equals_the_equations(monkeypatch, shape, dtype, pulled):
    V, n, m = shape
    p, z = draws(1, (V, m), dtype)[0], draws(1, (V, n), dtype, seed=1)[0]
    W, target = draws(2, (n, m), dtype, seed=2)
    given = Moments.of(p, z), W, 0.01, 0.3, 0.7 if pulled else 0.0, target if pulled else None
    ours = assemble_W(*given)
    with monkeypatch.context() as patch:
        patch.setattr(fused, "takes", lambda *_: False)
        theirs = assemble_W(*given)
    for one, other in zip(ours, theirs, strict=True):
        scale = float(other.abs().max())
        torch.testing.assert_close(one, other, rtol=0, atol=32 * torch.finfo(dtype).eps * scale)
