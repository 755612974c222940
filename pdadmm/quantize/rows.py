"""Rows to bytes and back, each row on a grid of its own: what a row becomes does not depend on its company."""

from __future__ import annotations

import torch
from torch import Tensor

from .packing import pack, packed_bytes, unpack
from .scale import NotFiniteError, dequantize, fit, quantize

__all__ = ["RowCodec"]


class RowCodec:
    """Encodes a matrix (n, w) as ``lo[0..n-1], step[0..n-1]`` in its dtype, then codes of ``bits`` bits.

    Every row has its own lo and step (Wan et al., AdaQP, MLSys 2023); codes are made with the transmitted pair and
    rounded up with the probability of their fraction, by the caller's ``noise``, so that the mean is kept.

    >>> codec, x = RowCodec(8), torch.tensor([[0.0, 255.0], [1.0, 1.0]])
    >>> codec.decode(codec.encode(x, torch.zeros(2, 2)), 2, 2, x.dtype).tolist(), codec.nbytes(2, 2, x.dtype)
    ([[0.0, 255.0], [1.0, 1.0]], 20)
    """

    def __init__(self, bits: int) -> None:
        self.bits, self.levels = bits, 2**bits

    def nbytes(self, rows: int, columns: int, dtype: torch.dtype) -> int:
        """Exact size of a message: 2 n itemsize + ceil(n w bits / 8)."""
        return 2 * rows * dtype.itemsize + packed_bytes(rows * columns, self.bits)

    def encode(self, x: Tensor, noise: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the message of x (n, w), flat uint8, ``out`` where given; ``noise`` (n, w) is uniform in [0, 1).

        A row that is not finite makes the whole message NaN: both ends see training diverge.
        """
        n, w = x.shape
        out = torch.empty(self.nbytes(n, w, x.dtype), dtype=torch.uint8) if out is None else out
        head = 2 * n * x.dtype.itemsize
        try:
            lo, step = fit(x.T, None, True, self.levels)
            codes = quantize(x, lo[:, None], step[:, None], self.levels, noise)
        except NotFiniteError:
            lo = step = torch.full((n,), torch.nan, dtype=x.dtype)
            codes = torch.zeros_like(x)
        out[:head] = torch.cat([lo, step]).view(torch.uint8)
        pack(codes.flatten(), self.bits, out[head:])
        return out

    def decode(self, buffer: Tensor, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """Return the matrix (rows, columns) in ``buffer``."""
        head = 2 * rows * dtype.itemsize
        # a copy: a slice of bytes need not be aligned for wider numbers
        lo, step = buffer[:head].clone().view(dtype).view(2, rows, 1)
        codes = unpack(buffer[head:], self.bits, rows * columns).view(rows, columns).to(dtype)
        return dequantize(codes, lo, step, self.levels)
