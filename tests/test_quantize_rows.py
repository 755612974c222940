"""Rows on grids of their own: sizes, errors, expectation, and independence of company."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdadmm.quantize import BITS, rows
from pdadmm.quantize.rows import RowCodec


def arrays(n: int, w: int, seed: int, dtype=torch.float32):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(n, w, generator=random, dtype=dtype), torch.rand(n, w, generator=random, dtype=dtype)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 9), st.sampled_from(BITS), st.integers(0, 99),
    st.sampled_from([torch.float32, torch.float64]),
)  # fmt: skip
def test_a_message_brings_each_row_within_a_step(n, w, bits, seed, dtype):
    x, noise = arrays(n, w, seed, dtype)
    codec = RowCodec(bits)
    buffer = codec.encode(x, noise)
    assert buffer.numel() == codec.nbytes(n, w, dtype) == 2 * n * dtype.itemsize + -(-n * w * bits // 8)
    back = codec.decode(buffer, n, w, dtype)
    for row in range(n):  # its company does not matter
        alone = codec.decode(codec.encode(x[row : row + 1], noise[row : row + 1]), 1, w, dtype)
        assert torch.equal(back[row : row + 1], alone)
    if bits > 1:
        step = (x.amax(1) - x.amin(1)) / (2**bits - 1)
        assert bool(((back - x).abs() <= step[:, None] * (1 + 1e-5) + 1e-5).all())


def test_rounding_keeps_the_mean():
    x, _ = arrays(4, 6, 0, torch.float64)
    noise = torch.from_numpy(np.random.default_rng(0).random((16_000, 6)))
    codec = RowCodec(2)
    total = codec.decode(codec.encode(x.repeat(4000, 1), noise), 16_000, 6, x.dtype).view(4000, 4, 6).mean(0)
    torch.testing.assert_close(total, x, rtol=0, atol=0.03)


def test_a_constant_row_is_exact_and_a_bad_one_shows():
    codec, noise = RowCodec(4), torch.full((2, 3), 0.9)
    x = torch.tensor([[2.5, 2.5, 2.5], [0.0, 0.0, 0.0]])
    assert torch.equal(codec.decode(codec.encode(x, noise), 2, 3, x.dtype), x)
    x[1, 1] = torch.inf
    assert bool(codec.decode(codec.encode(x, noise), 2, 3, x.dtype).isnan().any())


@pytest.mark.parametrize("module", [rows])
def test_the_examples_in_the_docstrings_run(module):
    assert doctest.testmod(module).failed == 0
