"""What the kernels of the sums and of the extrapolation must do, whatever runs them; beside cases.py."""

from __future__ import annotations

import math

import pytest
import torch

from pdadmm.admm.activations import PiecewiseLinear
from pdadmm.kernels import gpu

from .cases import FLOATS, SLOPES, Arrays, case, random, same_bits

SHAPES = ((0, 5), (1, 1), (3, 7), (5, 100), (130, 257), (1, 4097))


def expected_sums(p: torch.Tensor, q: torch.Tensor, u: torch.Tensor, z: torch.Tensor, slope: float) -> list[float]:
    """|q|^2, |q - f(z)|^2, |p - q|^2, <u, p - q>, |q|^2 and |p - q|^2 + |q - z|^2 in float64."""
    f_z = PiecewiseLinear("", slope)(z).double()  # f as the state's format has it
    p, q, u, z = (x.double() for x in (p, q, u, z))
    square, link, dual = q.square().sum(), (p - q).square().sum(), (u * (p - q)).sum()
    sums = square, (q - f_z).square().sum(), link, dual, square, link + (q - z).square().sum()
    return [float(x) for x in sums]


def found_sums(p: torch.Tensor, q: torch.Tensor, u: torch.Tensor, z: torch.Tensor, slope: float) -> list[float]:
    """What the kernels find for ``expected_sums``."""
    return [gpu.square(q), gpu.distance(q, z, slope), *gpu.link_sums(p, q, u), gpu.movement(p, q, z)]


def sums(device: str, dtype, shape, slope: float, offset: int, scale: float = 1.0) -> None:
    """The sums, with the same bits again and for arrays that start elsewhere."""
    given = [random(shape, dtype, seed, scale) for seed in (31, 32, 33, 34)]
    expected = expected_sums(*given, slope)
    arrays = Arrays(device, offset)
    here = [arrays(x) for x in given]
    found = found_sums(*here, slope)
    size = max(expected)  # <u, p - q> may cancel
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-13 * size)
    assert found_sums(*here, slope) == found
    assert found_sums(*[x.to(device) for x in given], slope) == found
    assert all(same_bits(x, y) for x, y in zip(here, given, strict=True))
    arrays.close()


def sums_not_finite(device: str, dtype, bad: float) -> None:
    """NaN and infinity show in every sum that has the array."""
    fine = torch.ones(37, 111, dtype=dtype)
    for row, column in ((0, 0), (20, 3), (36, 110)):
        q = fine.clone()
        q[row, column] = bad
        for total in found_sums(*(x.to(device) for x in (2 * fine, q, fine, fine)), 0.01):
            assert math.isnan(total) if math.isnan(bad) else math.isinf(total)


def extrapolation(device: str, dtype, shape, offset: int, beta: float) -> None:
    """Each form with the bits of plain torch, which rounds after every operation."""
    x, last, r = (random(shape, dtype, seed) for seed in (35, 36, 37))
    moved = (x - last).mul(beta).add(x)
    arrays = Arrays(device, offset)
    x_, last_ = arrays(x), arrays(last)
    gpu.extrapolate_(x_, last_, beta)
    assert same_bits(x_, moved)
    assert same_bits(last_, x)
    q_, last_, used_ = arrays(x), arrays(last), arrays(torch.full_like(x, torch.nan))
    gpu.extrapolate_q_(used_, q_, last_, beta)
    assert same_bits(used_, moved)
    assert same_bits(last_, x)
    assert same_bits(q_, x)
    z_, last_, r_ = arrays(x), arrays(last), arrays(r)
    gpu.extrapolate_z_(z_, last_, r_, beta)
    assert same_bits(z_, moved)
    assert same_bits(last_, x)
    assert same_bits(r_, r.sub(x).add(moved))
    arrays.close()


def extrapolation_not_finite(device: str, dtype, bad: float) -> None:
    """NaN and infinity stay in their elements."""
    x = torch.ones(37, 11, dtype=dtype)
    x[20, 3] = bad
    new, last, used, r = (y.to(device) for y in (x, torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(x)))
    gpu.extrapolate_q_(used, new, last, 0.5)
    gpu.extrapolate_z_(new, torch.zeros_like(new), r, 0.5)
    gpu.extrapolate_(last, torch.zeros_like(new), 0.5)
    for found in (new, used, last, r):
        assert torch.equal(found.cpu().isfinite(), x.isfinite())
    assert bool((used.cpu()[x.isfinite()] == 1.5).all())


NOT_FINITE = (math.nan, math.inf, -math.inf)
ALL = [
    *(case(sums, dtype, shape, SLOPES[i % 3], offset)
      for dtype in FLOATS for offset in (0, 1) for i, shape in enumerate(SHAPES)),
    *(case(sums, dtype, (13, 50), slope, 0) for dtype in FLOATS for slope in (*SLOPES, -1.0)),
    *(case(sums, torch.float32, (13, 50), 0.01, offset, scale)  # whose squares float32 does not hold
      for offset in (0, 1) for scale in (1e30, 1e-30)),
    *(case(sums_not_finite, dtype, bad) for dtype in FLOATS for bad in NOT_FINITE),
    *(case(extrapolation, dtype, shape, offset, beta)
      for dtype in FLOATS for offset in (0, 1) for shape in SHAPES for beta in (0.0, 0.43)),
    *(case(extrapolation_not_finite, dtype, bad) for dtype in FLOATS for bad in NOT_FINITE),
]  # fmt: skip
