"""Codecs: every byte of a message, its exact size, and decode(encode(x)) == project(x) bit for bit."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_quantize_grid import KEY, arrays, build, table
from test_quantize_plain import plain_message

from pdadmm.errors import InputError
from pdadmm.quantize import BITS, GRIDS, ROUNDINGS, Codec, NotFiniteError, make_codec


def bits_of(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.int32 if x.dtype == torch.float32 else torch.int64)


@settings(deadline=None, max_examples=200)
@given(arrays(), st.sampled_from(BITS), st.sampled_from(sorted(GRIDS)), st.sampled_from(ROUNDINGS))
def test_trap_decode_of_encode_is_project(x, bits, name, rounding):
    codec = Codec(build(name, bits), rounding)
    buffer = codec.encode(x, KEY)
    assert buffer.dtype == torch.uint8
    assert buffer.dim() == 1
    assert buffer.is_contiguous()
    assert buffer.numel() == codec.nbytes(x.shape, x.dtype)
    decoded = codec.decode(buffer, x.shape, x.dtype)
    assert decoded.shape == x.shape
    assert torch.equal(bits_of(decoded), bits_of(codec.project(x, KEY)))


@settings(deadline=None, max_examples=60)
@given(arrays(), st.sampled_from(BITS), st.sampled_from(sorted(GRIDS)), st.booleans())
def test_every_byte_is_that_of_the_plain_form(x, bits, name, stochastic):
    grid = build(name, bits)
    codec = Codec(grid, "stochastic" if stochastic else "nearest")
    fixed = (grid.lo, grid.step) if grid.fixed else None
    expected, _ = plain_message(
        table(x).numpy(), grid.bits, grid.levels, grid.columnwise, fixed, KEY if stochastic else None, 11,
    )
    assert codec.encode(x, KEY, first_row=11).numpy().tobytes() == expected


@settings(deadline=None, max_examples=60)
@given(arrays(largest=1e30), arrays(largest=1e30), st.sampled_from(BITS), st.sampled_from(["column", "message"]))
def test_reference_and_value_come_from_the_same_sweep(x, other, bits, name):
    reference = torch.zeros_like(x)
    size = min(x.numel(), other.numel())
    reference.view(-1)[:size] = other.flatten()[:size].to(x.dtype)
    codec = make_codec(bits, name)
    apart = torch.empty_like(x)
    buffer = codec.encode(x, reference=reference, value=apart)
    assert torch.equal(buffer, codec.encode(x - reference))
    assert torch.equal(bits_of(apart), bits_of(reference + codec.project(x - reference)))
    receiver = reference.clone()
    codec.decode(buffer, x.shape, x.dtype, out=receiver, add=True)
    codec.encode(x, reference=reference, value=reference)
    assert torch.equal(bits_of(reference), bits_of(apart))
    assert torch.equal(bits_of(receiver), bits_of(apart))


@pytest.mark.parametrize(
    ("bits", "grid", "shape", "dtype", "size"),
    [
        (16, "column", (10, 3), torch.float32, 24 + 60), (8, "column", (10, 3), torch.float32, 24 + 30),
        (4, "column", (11, 3), torch.float32, 24 + 17), (2, "column", (11, 3), torch.float32, 24 + 9),
        (1, "column", (11, 3), torch.float32, 24 + 5), (1, "column", (11, 3), torch.float64, 48 + 5),
        (4, "message", (11, 3), torch.float32, 8 + 17), (8, "paper", (11, 3), torch.float32, 33),
        (2, "message", (7,), torch.float32, 8 + 2), (8, "column", (7,), torch.float64, 16 + 7),
        (8, "column", (2, 3, 5), torch.float32, 40 + 30), (8, "message", (), torch.float32, 8 + 1),
        (4, "column", (0, 3), torch.float32, 0), (4, "message", (3, 0), torch.float32, 0),
    ],
)
def test_sizes(bits, grid, shape, dtype, size):
    codec = make_codec(bits, grid)
    assert codec.nbytes(shape, dtype) == size
    assert codec.encode(torch.zeros(shape, dtype=dtype)).numel() == size


@pytest.mark.parametrize(
    ("bits", "codes", "packed"),
    [
        (16, [0, 3, 258, 65535], [0, 0, 3, 0, 2, 1, 255, 255]), (8, [0, 255, 7], [0, 255, 7]),
        (4, [0, 15, 1], [0xF0, 0x01]), (2, [0, 3, 1, 2, 3], [0b10011100, 0b11]),
        (1, [0, 1, 1, 0, 0, 0, 0, 1, 1], [0b10000110, 0b1]),
    ],
)
def test_trap_packing_two_four_and_eight_to_the_byte(bits, codes, packed):
    codec = make_codec(bits, "linspace", lo=0, hi=2**bits - 1)
    x = torch.tensor(codes, dtype=torch.float32)
    buffer = codec.encode(x)
    assert buffer.tolist() == packed
    assert torch.equal(codec.decode(buffer, x.shape), x)
    assert torch.equal(codec.decode(codec.encode(x.double()), x.shape, torch.float64), x.double())


@pytest.mark.parametrize("bits", [8, 16])
def test_trap_quantized_with_the_transmitted_scale(bits):
    """With the float64 originals of lo and step some codes would differ from the nearest transmitted point."""
    x = torch.rand(20_000, 1, generator=torch.Generator().manual_seed(0)) * 3 + 100
    codec = make_codec(bits)
    buffer = codec.encode(x)
    lo, step = buffer[:8].view(torch.float32).tolist()
    codes = buffer[8:].view(torch.uint16 if bits == 16 else torch.uint8).to(torch.float64)
    expected = ((x[:, 0] - lo) / torch.tensor(step)).round().clamp(0, 2**bits - 1)
    assert lo == x.min()
    assert torch.equal(codes, expected.double())


@pytest.mark.parametrize("name", GRIDS)
def test_outputs_are_written_in_place(name):
    codec = Codec(build(name, 8))
    x = torch.randn(9, 4)
    buffer = torch.full((codec.nbytes(x.shape),), 77, dtype=torch.uint8)
    assert codec.encode(x, out=buffer) is buffer
    assert torch.equal(buffer, codec.encode(x))
    out = torch.empty_like(x)
    assert codec.decode(buffer, x.shape, out=out) is out
    odd = torch.empty(buffer.numel() + 1, dtype=torch.uint8)[1:]  # no alignment is asked for
    assert torch.equal(codec.decode(codec.encode(x, out=odd), x.shape), out)


def test_nothing_is_written_when_a_value_is_not_finite():
    codec, x = make_codec(4), torch.zeros(5, 2)
    x[2, 1] = math.nan
    buffer, value = torch.full((codec.nbytes(x.shape),), 9, dtype=torch.uint8), torch.ones(5, 2)
    with pytest.raises(NotFiniteError, match=r"x\[2, 1\]"):
        codec.encode(x, out=buffer, reference=value, value=value)
    assert (buffer == 9).all()
    assert (value == 1).all()
    top = torch.finfo(torch.float32).max
    with pytest.raises(NotFiniteError, match=r"x\[0\] - reference = inf"):
        codec.encode(torch.tensor([top]), reference=torch.tensor([-top]))


def test_wrong_arguments_are_refused():
    codec, x = make_codec(4), torch.zeros(5, 2)
    buffer = codec.encode(x)
    broken = buffer.clone()
    broken[:4] = 255  # lo becomes NaN
    cases = [
        (lambda: codec.encode(x.half()), "x"), (lambda: codec.encode(x, out=buffer[:-1]), "out"),
        (lambda: codec.encode(x, reference=torch.zeros(2, 5)), "reference"),
        (lambda: codec.encode(x, value=torch.zeros(2, 5).T), "value"),
        (lambda: codec.decode(buffer[:-1], x.shape), "buffer"), (lambda: codec.decode(buffer, (5, 3)), "buffer"),
        (lambda: codec.decode(buffer.int(), x.shape), "buffer"), (lambda: codec.decode(b"12", x.shape), "buffer"),
        (lambda: codec.decode(broken, x.shape), "buffer"), (lambda: codec.decode(buffer, x.shape, add=True), "add"),
        (lambda: codec.decode(buffer, x.shape, torch.float16), "dtype"),
        (lambda: codec.decode(buffer, x.shape, out=torch.zeros(5, 3)), "out"),
        (lambda: Codec(codec.grid, "up"), "rounding"),
    ]
    for call, named in cases:
        with pytest.raises(InputError) as caught:
            call()
        assert caught.value.argument == named
