"""Products in TF32, in bf16 and in two bf16 parts: their definition, their errors, and training with them."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdadmm import PDADMMG, PDADMMGQ, InputError, digits
from pdadmm.admm import products as formats
from pdadmm.admm.first_layer import gram_matrix
from pdadmm.admm.products import (
    FULL,
    PRODUCTS,
    CastProducts,
    Products,
    SetProducts,
    make_products,
    nearest_tf32,
    transposed,
)
from pdadmm.admm.updates import Moments, update_W_b_exact
from pdadmm.quantize import make_grid

DIGITS = digits()
MANY = settings(max_examples=60, deadline=None)
SHAPES = st.tuples(*[st.integers(1, 40)] * 3)
EPS = 2.0**-24
ROUNDED = {name: row.terms for name, row in PRODUCTS.items() if row.terms}
CPU_SETTING = torch.backends.mkldnn.matmul


def nearest_bf16(x: np.ndarray) -> np.ndarray:
    """Round float32 to 8 significant bits, ties to even, by its bits."""
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return bits.astype(np.uint32).view(np.float32)


def drawn(seed: int, *shape: int) -> torch.Tensor:
    """Numbers of many magnitudes."""
    random = np.random.default_rng(seed)
    return torch.from_numpy((random.normal(size=shape) * 10.0 ** random.integers(-4, 5, size=shape)).astype(np.float32))


# What the formats are


@MANY
@given(seed=st.integers(0, 2**32 - 1))
def test_parts_are_the_nearest_bf16(seed):
    x = drawn(seed, 50)
    assert FULL.parts(x)[0] is x
    (first,) = Products("bf16").parts(x)
    assert first.numpy().tobytes() == nearest_bf16(x.numpy()).tobytes()
    again, second = Products("bf16x3").parts(x)
    assert torch.equal(again, first)
    assert second.numpy().tobytes() == nearest_bf16((x - first).numpy()).tobytes()
    assert bool(((x.double() - first - second).abs() <= 2.0**-16 * x.abs().double() + 1e-45).all())
    cast = CastProducts("bf16x3").parts(x)
    assert [part.dtype for part in cast] == [torch.bfloat16] * 2
    assert torch.equal(cast[0].float(), first)
    assert torch.equal(cast[1].float(), second)


def exactly_tf32(x: float) -> float:
    """Round a finite float32 to 11 significant bits, ties to even, in rational numbers; infinity from 2^128 on."""
    size = abs(Fraction(x))
    exponent = -126  # of the leading bit; subnormal numbers keep the places of the least normal one
    while exponent < 127 and size >= Fraction(2) ** (exponent + 1):
        exponent += 1
    place = Fraction(2) ** (exponent - 10)
    rounded = round(size / place) * place  # Python's round takes ties to even
    return math.copysign(math.inf if rounded >= 2**128 else float(rounded), x)


FLOATS = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(width=32, min_value=-(2.0**-125), max_value=2.0**-125),
    # between two numbers of TF32, and one place of float32 beside
    st.builds(
        lambda top, low, sign: int(np.uint32((top << 13) + low | sign << 31).view(np.int32)),
        st.integers(0, (255 << 10) - 1), st.sampled_from([0, 1, 0xFFF, 0x1000, 0x1001, 0x1FFF]), st.integers(0, 1),
    ).map(lambda bits: float(np.int32(bits).view(np.float32))),
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(x=FLOATS)
def test_tf32_is_the_nearest_number_of_eleven_bits(x):
    found, due = nearest_tf32(torch.tensor([x])), np.float32(exactly_tf32(x))
    assert found.numpy().tobytes() == due.tobytes()


def test_tf32_of_what_is_not_finite_and_of_the_largest_numbers():
    inf, largest = float("inf"), float(np.finfo(np.float32).max)
    kept = torch.tensor([inf, -inf, 0.0, -0.0, (2 - 2.0**-10) * 2.0**127, 2.0**-136])
    assert nearest_tf32(kept).numpy().tobytes() == kept.numpy().tobytes()
    assert nearest_tf32(torch.tensor([largest, -largest])).tolist() == [inf, -inf]
    patterns = np.array([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000, 0xFF801000], np.uint32)
    assert bool(nearest_tf32(torch.from_numpy(patterns.view(np.float32))).isnan().all())


@MANY
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(0, 9), columns=st.integers(1, 9))
def test_tf32_of_arrays_in_any_order(seed, rows, columns):
    x = drawn(seed, columns, 2 * rows)[:, ::2].mT
    before = x.clone()
    found = nearest_tf32(x)
    assert found.tolist() == [[exactly_tf32(value) for value in row] for row in before.tolist()]
    assert torch.equal(x, before)
    assert Products("tf32").parts(x)[0].tolist() == found.tolist()


@MANY
@given(
    seed=st.integers(0, 2**32 - 1), shape=SHAPES, alpha=st.sampled_from([1.0, -0.3]), beta=st.sampled_from([0.5, -2.0])
)
def test_products_keep_their_bounds(seed, shape, alpha, beta):
    """One part: exact products of rounded operands, sums in float32. Two: 3 2^-16 of |A| |B| beside these sums."""
    m, k, n = shape
    A, B, C = drawn(seed, m, k), drawn(seed + 1, k, n), drawn(seed + 2, m, n)
    size = A.double().abs() @ B.double().abs()
    total = (abs(alpha) * size + abs(beta) * C.double().abs()) * 1.02
    tf32, bf16 = (form.parts(A)[0].double() @ form.parts(B)[0].double() for form in map(Products, ("tf32", "bf16")))
    for name, exact, own in [
        ("full", A.double() @ B.double(), 0.0),
        ("tf32", tf32, 0.0),
        ("bf16", bf16, 0.0),
        ("bf16x3", A.double() @ B.double(), 3 * 2.0**-16),
    ]:
        products, sums = Products(name), (3 * k + 4) * EPS
        out = torch.empty(m, n)
        assert products.mm(A, B, out=out) is out
        assert bool(((out - exact).abs() <= (own + sums) * size * 1.02 + 1e-40).all())
        found = products.addmm(C, A, B, beta=beta, alpha=alpha)
        right = beta * C.double() + alpha * exact
        assert bool(((found - right).abs() <= (own + sums) * total + 1e-40).all())
        kept = products.addmm(C, A.mT.contiguous().mT, B, beta=beta, alpha=alpha, out=C.clone())
        assert bool(((kept - right).abs() <= (own + sums) * total + 1e-40).all())


def test_codes_of_eight_bits_are_exact():
    random = np.random.default_rng(0)
    codes = torch.from_numpy(random.integers(0, 257, size=(300, 20)).astype(np.float32))
    assert torch.equal(Products("bf16").mm(codes.mT, codes), codes.mT @ codes)


def test_points_of_the_paper_s_grid_are_exact():
    p = make_grid("paper", 8).project(torch.linspace(-2.0, 25.0, 300))
    assert torch.equal(Products("bf16").parts(p)[0], p)


def test_gram_matrix_of_parts():
    p = drawn(3, 60, 9)
    parts = Products("bf16x3").parts(p)
    found = gram_matrix(parts, block=4, products=Products("bf16x3"))
    expected = Products("bf16x3").mm_parts(transposed(parts), parts)
    assert torch.allclose(found, expected, rtol=1e-6)
    assert torch.equal(found, found.mT)


def test_names_give_formats(monkeypatch):
    assert make_products("full") is FULL
    assert isinstance(formats.has_bf16(), bool)
    for has in (False, True):
        monkeypatch.setattr(formats, "has_bf16", lambda has=has: has)
        for name, row in PRODUCTS.items():
            found = make_products(name)
            assert (found.terms, found.native) == (row.terms, has and row.kind == "bf16")


@pytest.mark.parametrize(("name", "has"), [("bf16", False), ("bf16", True), ("tf32", True), ("full", False)])
def test_a_log_says_where_a_format_is_missing(name, has, monkeypatch, caplog):
    monkeypatch.setattr(formats, "has_bf16", lambda: has)
    with caplog.at_level("INFO", "pdadmm"):
        solver = PDADMMG(layers=3, hidden=16, iterations=6, first_layer="gram", products=name).fit(DIGITS)
    told = {("bf16", False): "without bf16 in this processor", ("tf32", True): "without TF32 in this processor"}
    assert told.get((name, has), "") in caplog.text
    assert ("take longer than full" in caplog.text) == ((name, has) in told)
    assert solver.score(DIGITS) > 0.9


# W and b


@pytest.mark.parametrize(
    "products", [*map(Products, ROUNDED), SetProducts("bf16", CPU_SETTING)], ids=[*ROUNDED, "native"]
)
def test_W_is_exact_for_rounded_data_whatever_its_condition(products):
    """Columns that vary by a tenth of their mean: Gram and sums must see the same p."""
    random = np.random.default_rng(0)
    p = torch.from_numpy((5.0 + 0.5 * random.normal(size=(400, 6))).astype(np.float32))
    z = torch.from_numpy(random.normal(size=(400, 3)).astype(np.float32)) + 3.0 * p[:, :3]
    W, b = update_W_b_exact(Moments.of(p, z, products), torch.zeros(3, 6), mu_over_nu=1.0)
    P, Z = (sum(part.double() for part in products.parts(x)) for x in (p, z))
    centred = P - P.mean(0)
    exact = torch.linalg.solve(centred.mT @ centred + torch.eye(6), centred.mT @ (Z - Z.mean(0))).mT
    assert float((W - exact).abs().max()) < 3e-3 * float(exact.abs().max())
    assert float((Z - P @ W.mT.double() - b).mean(0).abs().max()) < 1e-3


@pytest.mark.parametrize("cut", [False, True], ids=["nearest", "cut off"])
def test_W_in_tf32_is_exact_near_the_mean_though_sums_see_no_rounding(cut, monkeypatch):
    """As on a GPU, which rounds in the product or cuts off: its sums are of p as it is, less a mean of before."""
    monkeypatch.setitem(formats.NEAREST, "TF32", cut_off if cut else nearest_tf32)
    random = np.random.default_rng(0)
    # columns that vary by a hundredth of their mean, two of them nearly the same
    p = torch.from_numpy((5.0 + 0.05 * random.normal(size=(4000, 6))).astype(np.float32))
    p[:, 1] = p[:, 0] + 0.005 * torch.from_numpy(random.normal(size=4000).astype(np.float32))
    z = torch.from_numpy(0.01 * random.normal(size=(4000, 3)).astype(np.float32)) + 3.0 * (p[:, :3] - 5.0) + 1.0
    P, Z = p.double() - p.double().mean(0), z.double() - z.double().mean(0)
    exact = torch.linalg.solve(P.mT @ P + 1e-3 * torch.eye(6), P.mT @ Z).mT
    centre = p.mean(0) + 0.01
    moments = Moments.about(centre, p, z, Products("tf32"))
    W, b = update_W_b_exact(moments, torch.zeros(3, 6), mu_over_nu=1e-3)
    assert float((W - exact).abs().max()) < 2e-2 * float(exact.abs().max())
    assert float((z.double() - p.double() @ W.mT.double() - b).mean(0).abs().max()) < 1e-4
    assert torch.equal(moments.p_sum, (p - centre).sum(0))


def cut_off(x: torch.Tensor) -> torch.Tensor:
    """Return the first 11 bits of float32 numbers."""
    return (x.view(torch.int32) & -(1 << 13)).view(torch.float32)


# Training


FORMS = [{}, {"first_layer": "gram"}, {"first_layer": "gradient"}, {"form": "gradient"}, {"acceleration": "none"}]


@pytest.mark.parametrize("more", FORMS, ids=str)
def test_training_in_every_form(more):
    own = {"layers": 4, "hidden": 24, "iterations": 8} | more
    full, tf32, bf16, split = (PDADMMG(**own, products=name).fit(DIGITS) for name in PRODUCTS)
    for other, tolerance in ((bf16, 2e-2), (tf32, 5e-3), (split, 5e-3)):
        assert other.summary_["test_accuracy"] == pytest.approx(full.summary_["test_accuracy"], abs=tolerance)
    first, last = (row for row in (full.history_[0], full.history_[-1]))
    for near in (split, tf32):
        assert near.history_[0]["objective"] == pytest.approx(first["objective"], rel=1e-3)
        assert near.history_[-1]["objective"] == pytest.approx(last["objective"], rel=2e-2)
    for rounded in (bf16, tf32):
        assert rounded.history_[-1]["objective"] < first["objective"]
        assert rounded.history_[0]["objective"] != first["objective"]


@pytest.mark.parametrize("coding", ["difference", "constrained"])
def test_training_with_quantized_messages(coding):
    own = {"layers": 3, "hidden": 24, "iterations": 8, "bits": 8, "coding": coding}
    full, *others = (PDADMMGQ(**own, products=name).fit(DIGITS) for name in ("full", "bf16", "tf32"))
    for other in others:
        assert other.summary_["test_accuracy"] == pytest.approx(full.summary_["test_accuracy"], abs=2e-2)


@pytest.mark.parametrize("name", ROUNDED)
@pytest.mark.parametrize("more", [{}, {"form": "gradient", "first_layer": "gradient"}], ids=["exact", "gradient"])
def test_training_from_disk_takes_the_same_products(name, more, tmp_path):
    random = np.random.default_rng(0)
    X, y = random.normal(size=(300, 20)).astype(np.float32), np.arange(300) % 3
    own = {"layers": 3, "hidden": 9, "iterations": 1, "stages": (3,), "first_layer": "gram", "products": name} | more
    memory, disk = PDADMMG(**own).fit(X, y), PDADMMG(**own).fit(X, y, memory="200MiB", scratch=tmp_path)
    for one, other in zip(memory.model_.parameters(), disk.model_.parameters()):
        one, other = one.detach(), other.detach()
        tolerance = {"bf16": 2e-2, "tf32": 4e-3, "bf16x3": 1e-4}[name]
        assert float((one - other).abs().max()) <= tolerance * (1 + float(one.abs().max()))
    full = PDADMMG(**own | {"products": "full"}).fit(X, y, memory="200MiB", scratch=tmp_path / "full")
    assert any(not torch.equal(a, b) for a, b in zip(full.model_.parameters(), disk.model_.parameters()))


def test_parts_take_memory_of_the_blocks(tmp_path):
    """A block is smaller where a number stands in two parts; the limit holds."""
    random = np.random.default_rng(0)
    X, y = random.normal(size=(4000, 30)).astype(np.float32), np.arange(4000) % 3
    own = {"layers": 3, "hidden": 40, "iterations": 2, "first_layer": "gram"}
    blocks = []
    for name in PRODUCTS:
        run = PDADMMG(**own, products=name).fit(X, y, memory="68MiB", scratch=tmp_path / name)
        assert run.summary_["memory_peak_bytes"] <= 68 << 20
        blocks.append(run.summary_["block_nodes"])
    assert blocks[0] > blocks[1] == blocks[2] > blocks[3]


def test_formats_of_fewer_bits_need_float32():
    for name in ROUNDED:
        with pytest.raises(InputError, match=f"products = {name}.*full with dtype float64"):
            PDADMMG(products=name, dtype="float64").checked()
    with pytest.raises(InputError, match="products = half"):
        PDADMMG(products="half").checked()
