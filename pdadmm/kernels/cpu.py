"""Loader of the fused C codec: one call a message, no numpy, no torch threads, the GIL released meanwhile.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from .library import load_library

__all__ = ["DONE", "NOT_FINITE", "available", "decode", "encode", "takes"]

DONE, NOT_FINITE = 0, 1  # any other status: this message needs the torch path
INTERFACE = 1  # must equal pdadmm_codec_interface() in codec.c: a stale build is not used

_POINTER, _LONG, _INT, _FLOAT, _WORD = (
    ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float, ctypes.c_uint32,
)
_ENCODE = [_POINTER] * 4 + [_LONG] * 2 + [_INT] * 3 + [_FLOAT] * 2 + [_INT, _WORD, _WORD, _LONG]
_DECODE = [_POINTER] * 2 + [_INT] + [_LONG] * 2 + [_INT] * 3 + [_FLOAT] * 2


def _load() -> ctypes.CDLL | None:
    library = load_library("_codec", "pdadmm_codec_interface", INTERFACE)
    if library is not None:
        library.pdadmm_encode.argtypes, library.pdadmm_decode.argtypes = _ENCODE, _DECODE
    return library


_library = _load()


def available() -> bool:
    """Whether the C codec was built and may be used."""
    return _library is not None


def takes(x: Tensor) -> bool:
    """Whether the C codec handles this array: float32 in main memory."""
    return _library is not None and x.dtype == torch.float32 and x.device.type == "cpu"


def encode(x, reference, value, packed, rows, columns, grid, stochastic, words, first) -> int:
    """Quantize ``x - reference``, write the message and the result; None skips an array. Returns a status."""
    return _library.pdadmm_encode(
        x.data_ptr(), _address(reference), _address(value), _address(packed), rows, columns,
        grid.bits, grid.levels, _kind(grid), grid.lo, grid.step, stochastic, *words, first,
    )


def decode(packed, value, add, rows, columns, grid) -> int:
    """Write the grid points of a message to ``value``, or add them to it. Returns a status."""
    return _library.pdadmm_decode(
        packed.data_ptr(), value.data_ptr(), add, rows, columns,
        grid.bits, grid.levels, _kind(grid), grid.lo, grid.step,
    )


def _kind(grid) -> int:
    return 0 if grid.fixed else 2 if grid.columnwise else 1


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()
