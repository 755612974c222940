"""The one sweep over the data each way: the C or CUDA kernels where they apply, else plain torch, to the same bits."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import InputError
from ..kernels import cpu
from ..kernels.fused import gpu_for
from . import noise as counter
from .packing import pack, packed_bytes, unpack
from .scale import dequantize, difference, fit, quantize, raise_not_finite, row_chunks

__all__ = ["check_array", "decode_into", "encode_into", "message_bytes", "table_view"]

DTYPES = (torch.float32, torch.float64)


def table_view(shape: torch.Size | tuple[int, ...]) -> tuple[int, int]:
    """(rows, columns) as the grids see an array: the last dimension is the columns; a 1-D array is one column."""
    if len(shape) > 1:
        return math.prod(shape[:-1]), shape[-1]
    return math.prod(shape), 1


def check_array(name: str, x: Tensor, like: Tensor | None = None) -> None:
    """Refuse what is not a float32 or float64 tensor (of the shape, dtype and device of ``like``, where given)."""
    if not isinstance(x, Tensor) or x.dtype not in DTYPES:
        raise InputError(name, getattr(x, "dtype", type(x).__name__), "a torch tensor of float32 or float64")
    if like is not None and not _matches(x, like.shape, like.dtype, like.device):
        raise InputError(name, _describe(x), _describe(like), "a channel keeps the array it was started with")


def plain(x: Tensor) -> Tensor:
    """``x`` without a gradient history, row-major: a copy only where it is neither."""
    if x.requires_grad:
        x = x.detach()
    return x if x.is_contiguous() else x.contiguous()


def check_output(name: str, out: Tensor, shape, dtype: torch.dtype, device: torch.device | None) -> None:
    """Refuse a buffer or output that is not a contiguous tensor of this shape, dtype and device."""
    if not isinstance(out, Tensor) or not _matches(out, tuple(shape), dtype, device):
        raise InputError(name, _describe(out), f"{dtype} of shape {tuple(shape)} on {device}")
    if not out.is_contiguous():
        raise InputError(name, "a strided view", "contiguous", f"pass {name}.contiguous()")


def _matches(x: Tensor, shape, dtype: torch.dtype, device: torch.device | None) -> bool:
    return x.shape == shape and x.dtype == dtype and x.device == device


def _describe(x) -> str:
    return f"{x.dtype} of shape {tuple(x.shape)} on {x.device}" if isinstance(x, Tensor) else type(x).__name__


def message_bytes(grid, shape, dtype: torch.dtype) -> int:
    """Bytes of a message: the (lo, step) pairs, then the packed codes; an empty array sends nothing."""
    rows, columns = table_view(shape)
    if rows * columns == 0:
        return 0
    return 2 * grid.pairs(columns) * dtype.itemsize + packed_bytes(rows * columns, grid.bits)


def encode_into(
    grid, x: Tensor, reference: Tensor | None, value: Tensor | None, packed: Tensor | None,
    stochastic: bool = False, key: tuple[int, ...] = (), first_row: int = 0,
) -> None:
    """Quantize ``x - reference`` (``x`` where None), write the message to ``packed`` and the result to ``value``.

    ``value`` is ``reference`` plus the quantized difference and may share its storage. Either output may be None.
    All are contiguous. Nothing is written when a value is not finite (``NotFiniteError``).
    """
    rows, columns = table_view(x.shape)
    words = counter.seed_words(key) if stochastic else (0, 0)
    if rows * columns == 0:
        return
    kernels = cpu if cpu.takes(x) else gpu_for(x)
    if kernels is not None:
        first = first_row * columns
        status = int(kernels.encode(x, reference, value, packed, rows, columns, grid, stochastic, words, first))
        if status == cpu.DONE:
            return
        if status == cpu.NOT_FINITE:
            raise_not_finite(x, reference, x.shape)
    table = (rows, columns)
    _encode_torch(
        grid, x.view(table), None if reference is None else reference.view(table),
        None if value is None else value.view(table), packed, words if stochastic else None, first_row, x.shape,
    )


def _encode_torch(grid, x, reference, value, packed, words, first_row, shape) -> None:
    rows, columns = x.shape
    lo, step = _scales(grid, x, reference, shape)
    if packed is not None and grid.pairs(columns):
        header = torch.cat([lo, step]).view(torch.uint8)
        packed[: header.numel()] = header
        packed = packed[header.numel() :]
    for part in row_chunks(rows, columns):
        ref = None if reference is None else reference[part]
        d = difference(x[part], ref)
        u = None
        if words is not None:
            first = (first_row + part.start) * columns
            u = counter.uniform(words, first, d.numel(), d.device).view(d.shape)
        codes = quantize(d, lo, step, grid.levels, u)
        if packed is not None:
            begin = packed_bytes(part.start * columns, grid.bits)
            target = packed[begin : begin + packed_bytes(d.numel(), grid.bits)]
            pack(codes.flatten(), grid.bits, target)
        if value is not None:
            point = dequantize(codes, lo, step, grid.levels)
            value[part] = point if ref is None else point.add_(ref)


def _scales(grid, x: Tensor, reference: Tensor | None, shape) -> tuple[Tensor, Tensor]:
    if grid.fixed:
        for part in row_chunks(*x.shape):
            if not bool(torch.isfinite(difference(x[part], None if reference is None else reference[part])).all()):
                raise_not_finite(x, reference, shape)
        return x.new_tensor([grid.lo]), x.new_tensor([grid.step])
    try:
        return fit(x, reference, grid.columnwise, grid.levels)
    except InputError:
        raise_not_finite(x, reference, shape)
        raise


def decode_into(grid, packed: Tensor, value: Tensor, add: bool = False) -> None:
    """Write the grid points of message ``packed`` to the contiguous ``value``, or add them to it."""
    rows, columns = table_view(value.shape)
    if rows * columns == 0:
        return
    kernels = cpu if cpu.takes(value) else gpu_for(value)
    if kernels is not None and int(kernels.decode(packed, value, add, rows, columns, grid)) == cpu.DONE:
        return
    pairs = grid.pairs(columns)
    if pairs:
        size = 2 * pairs * value.dtype.itemsize
        lo, step = packed[:size].clone().view(value.dtype).split(pairs)  # a clone is aligned, a slice may not be
        packed = packed[size:]
        if not bool((torch.isfinite(lo) & torch.isfinite(step) & (step >= 0)).all()):
            raise InputError("buffer", "a header that is not finite", "a message made by encode")
    else:
        lo, step = value.new_tensor([grid.lo]), value.new_tensor([grid.step])
    table = value.view(rows, columns)
    for part in row_chunks(rows, columns):
        target = table[part]
        begin = packed_bytes(part.start * columns, grid.bits)
        bytes_ = packed[begin : begin + packed_bytes(target.numel(), grid.bits)]
        codes = unpack(bytes_, grid.bits, target.numel()).view(target.shape).to(value.dtype)
        point = dequantize(codes, lo, step, grid.levels)
        target.copy_(point.add_(target) if add else point)
