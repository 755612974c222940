"""Integer codes to bytes and back, in plain torch: the layout every other path must reproduce."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["pack", "packed_bytes", "unpack"]


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that ``count`` codes of ``bits`` bits take: the last byte is padded with zeros.

    >>> packed_bytes(9, 4), packed_bytes(9, 1), packed_bytes(9, 16)
    (5, 2, 18)
    """
    return (count * bits + 7) // 8


def pack(codes: Tensor, bits: int, out: Tensor) -> None:
    """Pack flat ``codes`` (any dtype holding whole numbers below 2^bits) into ``out`` (uint8).

    The earlier element takes the lower bits; 16 bits are two bytes, little endian on every machine.
    """
    codes = codes.to(torch.int32)
    if bits == 16:
        out[0::2] = codes & 255
        out[1::2] = codes >> 8
    elif bits == 8:
        out.copy_(codes)
    else:
        per_byte = 8 // bits
        codes = torch.nn.functional.pad(codes, (0, out.numel() * per_byte - codes.numel()))
        shifts = torch.arange(0, 8, bits, dtype=torch.int32, device=codes.device)
        out.copy_((codes.view(-1, per_byte) << shifts).sum(dim=1))


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The first ``count`` codes of ``packed`` (uint8), flat, int32."""
    wide = packed.to(torch.int32)
    if bits == 16:
        return wide[0::2] | (wide[1::2] << 8)
    if bits == 8:
        return wide
    shifts = torch.arange(0, 8, bits, dtype=torch.int32, device=packed.device)
    return ((wide[:, None] >> shifts) & (2**bits - 1)).view(-1)[:count]
