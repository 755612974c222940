"""Arrays to bytes and back: the message of pdADMM-G-Q (Wang et al. 2022), exact to the byte."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError
from . import sweep
from .grid import Grid, check_rounding, make_grid

__all__ = ["Codec", "make_codec"]


class Codec:
    """Encode an array on ``grid`` as bytes: the transmitted (lo, step), then codes of ``grid.bits`` bits each.

    The message is ``lo[0..k-1], step[0..k-1]`` in the array's dtype and the machine's byte order, then the codes of
    the flat row-major array, lower bits first, 16 bits as two bytes little endian, the last byte padded with zeros.
    k is the number of columns ("column"), 1 ("message") or 0 (fixed grids). Codes are made with the transmitted
    scale, so ``decode(encode(x)) == project(x)`` bit for bit.

    >>> codec = make_codec(bits=2, grid="message")
    >>> x = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    >>> buffer = codec.encode(x)
    >>> buffer.numel(), codec.decode(buffer, x.shape, x.dtype).tolist()
    (9, [[0.0, 1.0], [2.0, 3.0]])
    """

    def __init__(self, grid: Grid, rounding: str = "nearest") -> None:
        check_rounding(rounding)
        self.grid, self.rounding = grid, rounding
        self.stochastic = rounding == "stochastic"

    def nbytes(self, shape, dtype: torch.dtype = torch.float32) -> int:
        """Exact size of a message: ``2 k itemsize + ceil(count bits / 8)``; an empty array takes 0 bytes.

        >>> make_codec(bits=4).nbytes((1000, 100))
        50800
        """
        return sweep.message_bytes(self.grid, tuple(shape), dtype)

    def project(self, x: Tensor, key: tuple[int, ...] = (), first_row: int = 0, out: Tensor | None = None) -> Tensor:
        """What the receiver of ``encode(x)`` gets; see ``Grid.project``."""
        return self.grid.project(x, self.rounding, key, first_row, out)

    def encode(
        self, x: Tensor, key: tuple[int, ...] = (), first_row: int = 0, out: Tensor | None = None,
        reference: Tensor | None = None, value: Tensor | None = None,
    ) -> Tensor:
        """The message for ``x`` (any shape, float32 or float64): a flat uint8 tensor, ``out`` where given.

        With ``reference`` the difference ``x - reference`` is encoded. ``value`` (may be ``reference``) receives what
        the receiver will hold, from the same sweep. A non-contiguous ``x`` is copied; outputs must be contiguous.
        Errors: ``NotFiniteError`` before anything is written; ``InputError`` for a wrong array or an empty ``key``
        with stochastic rounding.
        """
        sweep.check_array("x", x)
        x = sweep.plain(x)
        size = sweep.message_bytes(self.grid, x.shape, x.dtype)
        out = torch.empty(size, dtype=torch.uint8, device=x.device) if out is None else out
        sweep.check_output("out", out, (size,), torch.uint8, x.device)
        for name, array in (("reference", reference), ("value", value)):
            if array is not None:
                sweep.check_output(name, array, x.shape, x.dtype, x.device)
        sweep.encode_into(self.grid, x, reference, value, out, self.stochastic, key, first_row)
        return out

    def decode(
        self, buffer: Tensor, shape, dtype: torch.dtype = torch.float32, out: Tensor | None = None, add: bool = False,
    ) -> Tensor:
        """The array of ``shape`` and ``dtype`` in ``buffer``, written to ``out`` where given (added: ``add``).

        Errors: ``InputError`` for a buffer of another length, an unusable ``out`` or a header that is not finite.
        """
        if dtype not in sweep.DTYPES:
            raise InputError("dtype", dtype, "torch.float32 or torch.float64")
        if add and out is None:
            raise InputError("add", add, "False without out")
        size = sweep.message_bytes(self.grid, tuple(shape), dtype)
        device = getattr(out if out is not None else buffer, "device", None)
        sweep.check_output("buffer", buffer, (size,), torch.uint8, device)
        out = torch.empty(tuple(shape), dtype=dtype, device=device) if out is None else out
        sweep.check_output("out", out, shape, dtype, device)
        sweep.decode_into(self.grid, buffer, out, add)
        return out


def make_codec(
    bits: int, grid: str = "column", rounding: str = "nearest", lo: float | None = None, hi: float | None = None,
) -> Codec:
    """A ``Codec`` by names: ``bits`` of ``BITS``, ``grid`` of ``GRIDS`` and ``rounding`` of ``ROUNDINGS``."""
    return Codec(make_grid(grid, bits, lo, hi), rounding)
