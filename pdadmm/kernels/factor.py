"""Loader of the C inverses and solves of small symmetric positive definite matrices (factor.c).

They work on contiguous CPU tensors, float32 or float64, up to the size at which LAPACK is as fast; ``takes`` says
whether they may be called. torch.linalg is the reference, and what runs where the library was not built.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

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
    """Whether the C functions handle these arrays, the matrix first: small, contiguous, in main memory, one type.

    Either all are one matrix or all are as many.
    """
    A = arrays[0]
    small = bool(_inverse) and A.shape[-1] * A.element_size() <= LARGEST_ROW
    return small and fits(*arrays) and all(x.shape[:-2] == A.shape[:-2] for x in arrays)


def _padded(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def inverse(A: Tensor, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """Return (scale A + shift I)^-1 for symmetric A (..., n, n), one after another; NaN where not positive definite."""
    n, width, out = A.shape[-1], VECTOR // A.element_size(), torch.empty_like(A)
    work = torch.empty(2 * _padded(n, BLOCK) * _padded(n, width), dtype=A.dtype)
    for one, result in _matrices(A, out):
        if not _inverse[A.dtype](one.data_ptr(), n, scale, shift, result.data_ptr(), work.data_ptr()):
            result.fill_(torch.nan)
    return out


def solve(A: Tensor, B: Tensor) -> Tensor:
    """Return B A^-1 for A (..., n, n) and B (..., m, n), one after another; NaN where A is not positive definite."""
    (m, n), width, out = B.shape[-2:], VECTOR // A.element_size(), torch.empty_like(B)
    work = torch.empty(_padded(n, BLOCK) * (_padded(n, width) + _padded(m, width)), dtype=A.dtype)
    for one, right, result in _matrices(A, B, out):
        if not _solve[A.dtype](one.data_ptr(), right.data_ptr(), n, m, result.data_ptr(), work.data_ptr()):
            result.fill_(torch.nan)
    return out


def _matrices(*arrays: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Return the matrices of arrays with as many each, side by side."""
    if arrays[0].dim() == 2:
        return (arrays,)
    return zip(*(x.flatten(0, -3) for x in arrays), strict=True)
