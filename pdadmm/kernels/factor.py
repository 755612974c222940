"""Loader of the C inverses and solves of small symmetric positive definite matrices (factor.c).

They work on contiguous CPU tensors, float32 or float64, up to the size at which LAPACK is as fast; ``takes`` says
whether they may be called. torch.linalg is the reference, and what runs where the library was not built.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from .library import fits, torch_functions

__all__ = ["available", "inverse", "solve", "takes"]

INTERFACE = 1  # must equal pdadmm_factor_interface() in factor.c: a stale build is not used
LARGEST_ROW = 1024  # bytes: 256 float32 or 128 float64, where one thread of LAPACK catches up
BLOCK, VECTOR = 4, 64  # rows, and bytes, that the C code pads to

_POINTER, _LONG, _DOUBLE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
_inverse = torch_functions(
    "_factor", INTERFACE, "pdadmm_inverse", [_POINTER, _LONG, _DOUBLE, _DOUBLE, _POINTER, _POINTER]
)
_solve = torch_functions("_factor", INTERFACE, "pdadmm_solve", [_POINTER, _POINTER, _LONG, _LONG, _POINTER, _POINTER])


def available() -> bool:
    """Whether the C functions were built and may be used."""
    return bool(_inverse)


def takes(*arrays: Tensor) -> bool:
    """Whether the C functions handle these arrays, the matrix first: small, contiguous, in main memory, one type."""
    return bool(_inverse) and len(arrays[0]) * arrays[0].element_size() <= LARGEST_ROW and fits(*arrays)


def _padded(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def inverse(A: Tensor, scale: float = 1.0, shift: float = 0.0) -> Tensor | None:
    """Return (scale A + shift I)^-1 for a symmetric A (n, n); None where that is not positive definite."""
    n, width = len(A), VECTOR // A.element_size()
    out, work = torch.empty_like(A), torch.empty(2 * _padded(n, BLOCK) * _padded(n, width), dtype=A.dtype)
    found = _inverse[A.dtype](A.data_ptr(), n, scale, shift, out.data_ptr(), work.data_ptr())
    return out if found else None


def solve(A: Tensor, B: Tensor) -> Tensor | None:
    """Return B A^-1 for A (n, n) and B (m, n); None where A is not positive definite."""
    n, width = len(A), VECTOR // A.element_size()
    work = torch.empty(_padded(n, BLOCK) * (_padded(n, width) + _padded(len(B), width)), dtype=A.dtype)
    out = torch.empty_like(B)
    found = _solve[A.dtype](A.data_ptr(), B.data_ptr(), n, len(B), out.data_ptr(), work.data_ptr())
    return out if found else None
