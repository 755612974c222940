"""Grids: the nearest point, where (lo, step) come from, and the arrays that break careless quantizers."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_quantize_plain import plain_message, plain_noise

from pdadmm.errors import InputError
from pdadmm.kernels import cpu
from pdadmm.quantize import BITS, GRIDS, ROUNDINGS, NotFiniteError, make_grid
from pdadmm.quantize.noise import seed_words, uniform

KEY = (7, 3, 1, 0)
DTYPES = (torch.float32, torch.float64)
ADAPTIVE = [name for name in GRIDS if not GRIDS[name].fixed]


def build(name: str, bits: int):
    ends = {"lo": -2.0, "hi": 2.0} if name == "linspace" else {}
    return make_grid(name, 8 if name == "paper" and bits < 5 else bits, **ends)


def table(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(0, -2) if x.dim() > 1 else x.reshape(-1, 1)


@pytest.fixture(params=["C", "torch"])
def path(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(cpu, "_library", None)
    elif not cpu.available():
        pytest.skip("the C kernels are not built")


shapes = st.one_of(
    st.tuples(st.integers(0, 9), st.integers(0, 9)),
    st.sampled_from([(1,), (0,), (13,), (), (1, 1), (1, 70), (131, 1), (2, 3, 5), (260, 3), (0, 4), (4, 0)]),
)


@st.composite
def arrays(draw, largest: float = 1e4):
    """A tensor of a random shape; small whole numbers now and then, so that values repeat and ties occur."""
    shape, dtype = draw(shapes), draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([1.0, 1e-3, largest]))
    if draw(st.booleans()):
        return torch.randint(-3, 4, shape, generator=generator).to(dtype) * scale
    return torch.randn(shape, generator=generator, dtype=dtype) * scale


def bound(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Half a step of a min/max grid, plus the rounding of x - lo, of the division and of lo + step * code."""
    span = (x.amax(0) - x.amin(0)).double()
    size = x.abs().amax(0).double()
    return span / (2**bits - 1) / 2 + (span + size) * 4 * torch.finfo(x.dtype).eps + 2.0**-148


@settings(deadline=None, max_examples=150)
@given(arrays(), st.sampled_from([2, 4, 8, 16]), st.sampled_from(ADAPTIVE))
def test_error_is_at_most_half_a_step(x, bits, name):
    projected = make_grid(name, bits).project(x)
    assert projected.shape == x.shape
    assert projected.dtype == x.dtype
    if x.numel():
        values, points = table(x), table(projected)
        if name == "message":
            values, points = values.reshape(-1, 1), points.reshape(-1, 1)
        assert ((values.double() - points.double()).abs().amax(0) <= bound(values, bits)).all()


@settings(deadline=None, max_examples=60)
@given(arrays(), st.sampled_from(BITS), st.sampled_from(sorted(GRIDS)), st.booleans())
def test_projection_equals_the_plain_form(x, bits, name, stochastic):
    grid = build(name, bits)
    fixed = (grid.lo, grid.step) if grid.fixed else None
    rounding, key = ("stochastic", KEY) if stochastic else ("nearest", None)
    _, expected = plain_message(table(x).numpy(), grid.bits, grid.levels, grid.columnwise, fixed, key)
    projected = grid.project(x, rounding, KEY)
    assert np.array_equal(table(projected).numpy(), expected)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_contract(path, name, bits, rounding, dtype):
    grid = build(name, bits)
    x = torch.randn(40, 7, dtype=dtype, generator=torch.Generator().manual_seed(1))
    before = x.clone()
    projected = grid.project(x, rounding, KEY)
    assert torch.equal(x, before)
    assert torch.equal(grid.project(x, rounding, KEY), projected)
    columns = projected.T if grid.columnwise else [projected]
    assert all(len(column.unique()) <= grid.levels for column in columns)
    assert torch.equal(grid.project(x.clone(), rounding, KEY, out=x), projected)
    strided = before.T.contiguous().T
    assert not strided.is_contiguous()
    assert torch.equal(grid.project(strided, rounding, KEY), projected)
    assert torch.equal(grid.project(before.clone().requires_grad_(), rounding, KEY), projected)
    for shape in ((0, 5), (5, 0), (0,)):
        assert grid.project(torch.empty(shape, dtype=dtype), rounding, KEY).shape == shape
    if grid.fixed:
        assert torch.equal(grid.project(projected), projected)


def test_ties_go_to_the_even_code(path):
    x = torch.tensor([0.5, 1.5, 2.5, 3.5, 19.5])
    assert make_grid("paper", 8).project(x).tolist() == [1.0, 1.0, 3.0, 3.0, 19.0]  # codes 2, 2, 4, 4, 20
    assert make_grid("linspace", 2, lo=0, hi=3).project(x).tolist() == [0.0, 2.0, 2.0, 3.0, 3.0]


def test_paper_grid_clamps_to_its_22_points(path):
    grid = make_grid("paper", 16)
    x = torch.tensor([-1e30, -1.2, -0.4, 0.6, 20.4, 1e38])
    assert grid.levels == 22
    assert grid.project(x).tolist() == [-1.0, -1.0, 0.0, 1.0, 20.0, 20.0]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", ADAPTIVE)
def test_trap_max_equals_min(path, name, bits):
    for value in (0.0, -0.0, 0.1, -7.3e37, 3.4e38, 1e-45, 1e-38):
        x = torch.full((130, 3), value)
        assert torch.equal(make_grid(name, bits).project(x), x)
        assert torch.equal(make_grid(name, bits).project(x.double()), x.double())


@pytest.mark.parametrize("bits", BITS)
def test_trap_clamp_at_the_top(path, bits):
    grid = make_grid("column", bits)
    x = torch.rand(3000, 11, generator=torch.Generator().manual_seed(0))
    for rounding in ROUNDINGS:  # one code too many would wrap to 0, an error of the whole span
        assert (x - grid.project(x, rounding, KEY)).abs().max() < (1.0 if bits > 1 else 0.6) * 1.01
    assert (x - grid.project(x)).amax() <= (0.51 / (2**bits - 1) if bits > 1 else 0.3)


def test_one_bit_is_mean_and_mean_deviation(path):
    x = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 5.0], [4.0, 5.0]])
    assert make_grid("column", 1).project(x).tolist() == [[-0.5, 1.0], [-0.5, 1.0], [-0.5, 5.0], [2.5, 5.0]]


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize("name", ADAPTIVE)
def test_denormals_do_not_lose_the_grid(path, name, bits):
    x = (torch.arange(60).view(20, 3) * 1e-45).float()
    assert x.max() > 0
    projected = make_grid(name, bits).project(x)
    step = max((x.max() - x.min()) / (2**bits - 1), 1.5e-45) + 1.5e-45
    assert (x - projected).abs().max() <= step
    tiny = torch.rand(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1e-320
    assert (tiny - make_grid(name, bits).project(tiny)).abs().max() <= 1e-320 / (2**bits - 1) + 5e-324


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", ADAPTIVE)
def test_range_beyond_the_largest_number(path, name, bits, dtype):
    top = torch.finfo(dtype).max
    generator = torch.Generator().manual_seed(bits)
    x = torch.rand(40, 3, dtype=dtype, generator=generator).mul_(2).sub_(1).mul_(top)
    x[0], x[1] = top, -top
    projected = make_grid(name, bits).project(x)
    assert torch.isfinite(projected).all()
    if bits > 1:
        half_step = 1 / (2**bits - 1)  # in units of top; the top point is moved in by 4 eps of the span
        assert ((x / top - projected / top).abs() <= half_step + 16 * torch.finfo(dtype).eps).all()
    lopsided = torch.full((10, 1), top, dtype=dtype)
    lopsided[0] = 0.0
    assert torch.isfinite(make_grid(name, bits).project(lopsided)).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite_says_where(path, name, bits, bad):
    x = torch.zeros(9, 2, 5)
    x[3, 1, 4] = bad
    x[4, 0, 0] = math.nan
    out = torch.full_like(x, 5.0)
    with pytest.raises(NotFiniteError, match=r"x\[3, 1, 4\] = -?(nan|inf): must be finite") as caught:
        build(name, bits).project(x, out=out)
    assert (out == 5.0).all()
    assert isinstance(caught.value, ValueError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    with pytest.raises(NotFiniteError, match=r"x\[1\]"):
        build(name, bits).project(torch.tensor([0.0, bad]).double())


def test_trap_random_numbers_depend_on_key_and_position_not_on_the_shard(path):
    grid = make_grid("linspace", 2, lo=-2, hi=2)
    x = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    whole = grid.project(x, "stochastic", KEY)
    shards = [grid.project(part, "stochastic", KEY, first_row=row) for part, row in ((x[:13], 0), (x[13:], 13))]
    assert torch.equal(torch.cat(shards), whole)
    assert not torch.equal(grid.project(x, "stochastic", (7, 4, 1, 0)), whole)


def test_noise_is_the_plain_form_and_uniform():
    first = 2**32 - 3
    numbers = uniform(seed_words(KEY), first, 6)
    assert numbers.tolist() == [plain_noise(KEY, first + i) for i in range(6)]
    many = uniform(seed_words(KEY), 0, 200_000)
    assert abs(many.mean() - 0.5) < 0.003
    assert abs(many.var() - 1 / 12) < 0.001
    assert many.min() >= 0
    assert many.max() < 1
    assert abs(torch.corrcoef(torch.stack([many[:-1], many[1:]]))[0, 1]) < 0.01


def test_stochastic_rounding_is_unbiased_and_leaves_grid_points(path):
    grid = make_grid("linspace", 4, lo=0, hi=15)
    x = torch.full((100_000,), 3.3)
    assert abs(grid.project(x, "stochastic", KEY).mean() - 3.3) < 0.01
    points = torch.arange(16.0).repeat(50)
    assert torch.equal(grid.project(points, "stochastic", KEY), points)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"name": "log"}, "grid"), ({"bits": 3}, "bits"), ({"bits": True}, "bits"), ({"bits": 32}, "bits"),
        ({"name": "paper", "bits": 4}, "bits"), ({"name": "paper", "lo": 0}, "lo, hi"), ({"hi": 1}, "lo, hi"),
        ({"name": "linspace"}, "lo, hi"), ({"name": "linspace", "lo": 1, "hi": 1}, "lo, hi"),
        ({"name": "linspace", "lo": 0, "hi": math.inf}, "lo, hi"),
    ],
)
def test_wrong_grids_are_refused(arguments, named):
    with pytest.raises(InputError) as caught:
        make_grid(**arguments)
    assert caught.value.argument == named


def test_wrong_arrays_are_refused():
    grid, x = make_grid(), torch.zeros(3, 2)
    cases = [
        (lambda: grid.project([1.0]), "x"), (lambda: grid.project(x.int()), "x"),
        (lambda: grid.project(x.bfloat16()), "x"), (lambda: grid.project(x, "up"), "rounding"),
        (lambda: grid.project(x, "stochastic"), "key"), (lambda: grid.project(x, "stochastic", (0.5,)), "key"),
        (lambda: grid.project(x, out=torch.zeros(2, 3)), "out"), (lambda: grid.project(x, out=x.double()), "out"),
        (lambda: grid.project(x, out=torch.zeros(2, 3).T), "out"),
        (lambda: grid.project(x, out=torch.zeros(3, 2, device="meta")), "out"),
    ]
    for call, named in cases:
        with pytest.raises(InputError) as caught:
            call()
        assert caught.value.argument == named
