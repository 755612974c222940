"""The extrapolation by itself: its steps, when it starts again, and what each side of a boundary moves."""

from __future__ import annotations

import math

import pytest
import torch

from pdadmm import PDADMMG, InputError
from pdadmm.admm.acceleration import ACCELERATIONS, Momentum

F64 = torch.float64


def fista_betas(count: int) -> list[float]:
    t, betas = 1.0, []
    for _ in range(count):
        following = (1 + math.sqrt(1 + 4 * t * t)) / 2
        betas.append((t - 1) / following)
        t = following
    return betas


def at_distance(gap: float, q: torch.Tensor) -> torch.Tensor:
    """A p so that |p - q| = gap."""
    p = q.clone()
    p[0, 0] += gap
    return p


def steps(gaps: list[float], restarts: tuple[int, ...] = ()) -> list[float]:
    """The betas of a boundary whose q rests and whose p is at these distances."""
    h = torch.zeros(3, 2, dtype=F64)
    momentum, found = Momentum(h, coded=False), []
    for number, gap in enumerate(gaps):
        momentum.step(at_distance(gap, h), h, torch.zeros_like(h), restart=number in restarts)
        found.append(momentum.beta)
    return found


def test_betas_are_those_of_fista_while_the_measure_falls():
    found = steps([2.0**-k for k in range(30)])
    assert found == fista_betas(30)
    assert found[:4] == pytest.approx([0.0, 0.281753, 0.434043, 0.531064], abs=1e-6)
    assert found[-1] > 0.9


@pytest.mark.parametrize("risen", [0.25, 0.3, math.nan])
def test_it_starts_again_where_the_measure_does_not_fall(risen):
    fallen = [0.2 if math.isnan(risen) else 0.9 * risen, 0.1, 0.05]
    found = steps([1.0, 0.5, 0.25, risen, *fallen])
    if math.isnan(risen):  # the next is compared with nan
        assert found == [*fista_betas(3), 0.0, *fista_betas(3)]
    else:
        assert found == [*fista_betas(3), *fista_betas(4)]


def test_it_starts_again_when_told_and_forgets_the_measure():
    """After a value was sent whole the sides may have had different measures: none is compared with."""
    found = steps([1.0, 0.5, 0.25, 0.125, 7.0, 0.1], restarts=(3,))
    assert found[:3] == fista_betas(3)
    assert found[3] == 0.0
    assert found[4:] == fista_betas(3)[1:]


def test_the_measure_has_both_squares():
    h = torch.zeros(2, 2, dtype=F64)
    momentum = Momentum(h, coded=False)
    q = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=F64)
    p = torch.tensor([[1.0, 3.0], [0.0, 2.0]], dtype=F64)
    momentum.step(p, q, torch.zeros_like(h))
    assert momentum.measure == 9.0 + 5.0
    used = momentum.q.clone()
    momentum.step(p, 2 * q, torch.zeros_like(h))
    assert momentum.measure == pytest.approx(float((p - 2 * q).square().sum() + (2 * q - used).square().sum()))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("coded", [False, True])
def test_every_array_moves_by_beta_times_its_last_change(dtype, coded):
    random = torch.Generator().manual_seed(4)

    def draw():
        return torch.randn(7, 5, generator=random, dtype=F64).to(dtype)

    h = draw()
    momentum = Momentum(h, coded)
    q_last, u_last, z_last = h.clone(), torch.zeros_like(h), None
    seen = []
    for number in range(12):
        size = 0.7 ** (number % 6)  # the measure falls for a while, then rises
        q, u, z, a = (size * draw() for _ in range(4))
        own_q = q + 0.01 * draw() if coded else q
        p = q + size * draw()
        given = [x.clone() for x in (p, q, own_q)]
        new_u, new_z, r = u.clone(), z.clone(), z - a
        momentum.step(p, q, new_u)
        momentum.step_lower(own_q, q, new_z, r)
        beta = momentum.beta
        seen.append(beta)
        assert all(torch.equal(x, y) for x, y in zip((p, q, own_q), given))  # inputs stay
        close = {"rtol": 1e-5 if dtype == torch.float32 else 1e-12, "atol": 2e-6 if dtype == torch.float32 else 1e-12}
        torch.testing.assert_close(momentum.q, q + beta * (q - q_last), **close)
        torch.testing.assert_close(new_u, u + beta * (u - u_last), **close)
        torch.testing.assert_close(new_z, z + beta * (z - (z if z_last is None else z_last)), **close)
        torch.testing.assert_close(r, new_z - a, **close)
        torch.testing.assert_close(momentum.own_q - own_q, momentum.q - q, **close)
        if not coded:
            assert momentum.own_q is momentum.q
        if beta == 0.0:
            assert torch.equal(momentum.q, q)
            assert torch.equal(new_u, u)
            assert torch.equal(new_z, z)
        q_last, u_last, z_last = q.clone(), u.clone(), z.clone()
    assert seen[0] == 0.0
    assert max(seen) > 0.2
    assert seen.count(0.0) > 1


def test_the_two_sides_find_the_same_bits():
    """Each is given its own copies; the lower side's own steps change nothing that the upper one has."""
    random = torch.Generator().manual_seed(7)
    h = torch.rand(9, 4, generator=random)
    lower, upper = Momentum(h, coded=True), Momentum(h, coded=True)
    for _ in range(20):
        p, q, u, z = (torch.rand(9, 4, generator=random) for _ in range(4))
        ours, theirs = u.clone(), u.clone()
        lower.step(p.clone(), q.clone(), ours)
        lower.step_lower(q + 0.1, q, z, torch.zeros_like(z))
        upper.step(p.clone(), q.clone(), theirs)
        assert torch.equal(ours, theirs)
        assert torch.equal(lower.q, upper.q)
        assert (lower.t, lower.beta, lower.measure) == (upper.t, upper.beta, upper.measure)


def test_stages_by_name():
    assert {name: [bool(rule(stage)) for stage in range(3)] for name, rule in ACCELERATIONS.items()} == {
        "none": [False, False, False],
        "first-stage": [True, False, False],
        "all-stages": [True, True, True],
    }
    with pytest.raises(InputError, match="acceleration = fast: must be one of none, first-stage, all-stages"):
        PDADMMG(acceleration="fast").checked()
