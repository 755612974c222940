"""The C kernels give the bits of the torch path, for every grid, width, rounding and awkward shape."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_quantize_grid import KEY, build

from pdadmm.kernels import cpu
from pdadmm.quantize import BITS, GRIDS, ROUNDINGS, Codec, NotFiniteError, make_coder

built = pytest.mark.skipif(not cpu.available(), reason="the C kernels are not built")


def run(codec: Codec, x, reference, first_row: int, library):
    """Message, the sender's value and the receiver's, with or without the kernels."""
    kept, cpu._library = cpu._library, library
    try:
        value = torch.empty_like(x)
        buffer = codec.encode(x, KEY, first_row, reference=reference, value=value)
        received = torch.empty_like(x) if reference is None else reference.clone()
        codec.decode(buffer, x.shape, out=received, add=reference is not None)
        alone = codec.project(x, KEY, first_row)
    finally:
        cpu._library = kept
    return buffer, value.view(torch.int32), received.view(torch.int32), alone.view(torch.int32)


@built
@settings(deadline=None, max_examples=300)
@given(
    st.one_of(
        st.tuples(st.integers(0, 40), st.integers(0, 40)),
        st.sampled_from([(1,), (), (5000,), (300, 513), (2100, 1), (7, 640), (129, 64), (3, 2100), (2, 3, 5)]),
    ),
    st.sampled_from(BITS), st.sampled_from(sorted(GRIDS)), st.sampled_from(ROUNDINGS),
    st.sampled_from([1.0, 1e-6, 1e-40, 1e-44, 1e30, 1e38, 3.4e38]), st.booleans(), st.integers(0, 2**31),
    st.sampled_from([0, 1, 2**32 - 3, 2**33]),
)
def test_kernels_equal_torch(shape, bits, name, rounding, scale, with_reference, seed, first_row):
    generator = torch.Generator().manual_seed(seed)
    x = (torch.rand(shape, generator=generator) * 2 - 1) * scale
    x = torch.where(torch.rand(shape, generator=generator) < 0.2, -0.0, x)  # zeros of both signs, ties
    reference = None
    if with_reference:  # of the same sign as x, so that the difference cannot overflow
        reference = x * torch.rand(shape, generator=generator).roll(1)
    codec = Codec(build(name, bits), rounding)
    fast = run(codec, x, reference, first_row, cpu._library)
    plain = run(codec, x, reference, first_row, None)
    for one, other in zip(fast, plain):
        assert torch.equal(one, other)
    assert torch.equal(fast[1], fast[2])


@built
@pytest.mark.parametrize("bits", BITS)
def test_the_kernels_do_the_usual_messages(monkeypatch, bits):
    """Not a silent fall back: the torch path must not be entered."""
    monkeypatch.setattr("pdadmm.quantize.sweep._encode_torch", None)
    monkeypatch.setattr("pdadmm.quantize.sweep.unpack", None)
    for mode in ("difference", "value"):
        sender, receiver = make_coder(bits, mode), make_coder(bits, mode)
        x = torch.randn(50, 20)
        sender.start(torch.zeros_like(x))
        receiver.start(torch.zeros_like(x))
        for _ in range(3):
            assert torch.equal(receiver.decode(sender.encode(x)), sender.value)


@built
@pytest.mark.parametrize("position", [0, 5, 511, 512, 2047, 2048, 4999])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("columns", [1, 10, 1000])
def test_the_kernels_find_every_value_that_is_not_finite(position, bad, columns):
    x = torch.zeros(5000).view(-1, columns)
    x.view(-1)[position] = bad
    for codec in (Codec(build("column", 4)), Codec(build("paper", 8))):
        row, column = divmod(position, columns)
        with pytest.raises(NotFiniteError, match=rf"x\[{row}, {column}\]"):
            codec.encode(x)


@built
@pytest.mark.parametrize("mode", ["difference", "value"])
@pytest.mark.parametrize("bits", [1, 4, 32])
def test_no_tensor_is_allocated_per_message(bits, mode):
    sender, receiver = make_coder(bits, mode), make_coder(bits, mode)
    x = torch.randn(50, 20)
    sender.start(x)
    receiver.start(x)
    with torch.autograd.profiler.profile() as events:
        torch.empty(3)  # shows that the profiler sees an allocation
        for _ in range(3):
            receiver.decode(sender.encode(x))
    assert sum("empty" in event.name or "clone" in event.name for event in events.function_events) == 1


@built
def test_a_sweep_stays_inside_its_arrays():
    """Guard bytes around every output survive, for sizes around the vector and block lengths."""
    for count in [*range(1, 70), 2047, 2048, 2049, 4096]:
        for bits in BITS:
            codec = Codec(build("message", bits))
            size = codec.nbytes((count,))
            buffer = torch.full((size + 32,), 99, dtype=torch.uint8)
            value = torch.full((count + 16,), 7.0)
            x = torch.arange(count, dtype=torch.float32)
            codec.encode(x, out=buffer[16 : 16 + size], value=value[8 : 8 + count])
            codec.decode(buffer[16 : 16 + size], (count,), out=value[8 : 8 + count])
            assert (buffer[:16] == 99).all()
            assert (buffer[16 + size :] == 99).all()
            assert (value[:8] == 7).all()
            assert (value[8 + count :] == 7).all()


def test_an_environment_variable_forces_the_torch_path(monkeypatch):
    monkeypatch.setenv("PDADMM_KERNELS", "0")
    assert cpu._load() is None


def test_a_library_that_does_not_fit_is_not_used(monkeypatch):
    stale = SimpleNamespace(pdadmm_codec_interface=lambda: cpu.INTERFACE + 1)
    monkeypatch.setattr(cpu.ctypes, "CDLL", lambda path: stale)
    assert cpu._load() is None
    monkeypatch.setattr(cpu.ctypes, "CDLL", lambda path: SimpleNamespace())
    assert cpu._load() is None
    monkeypatch.setattr(cpu, "_library", None)
    assert not cpu.available()
    assert not cpu.takes(torch.zeros(2))
