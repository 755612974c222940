"""Loader of the C rows of the graph operator (operator.c)."""

from __future__ import annotations

import ctypes

import numpy as np

from .library import typed_functions

__all__ = ["available", "operator_rows"]

INTERFACE = 1  # must equal pdadmm_operator_interface() in operator.c: a stale build is not used

_POINTER, _LONG = ctypes.c_void_p, ctypes.c_int64
_ARGUMENTS = [_POINTER] * 2 + [_LONG] * 3 + [_POINTER] * 5
_functions = typed_functions("_operator", INTERFACE, "pdadmm_operator_rows", _ARGUMENTS, _LONG)


def available() -> bool:
    """Whether the C function was built and may be used."""
    return bool(_functions)


def operator_rows(
    indptr: np.ndarray,
    columns: np.ndarray,
    first: int,
    last: int,
    left: np.ndarray | None,
    right: np.ndarray | None,
    offsets: np.ndarray,
    into: np.ndarray,
    values: np.ndarray,
) -> int:
    """Fill ``offsets`` (rows + 1,), ``into`` and ``values`` with rows of S and return the number of entries.

    ``indptr`` int64 (V + 1,), ``columns`` int32 the entries of rows ``first`` to ``last`` of A, ``left`` and ``right``
    float64 (V,) or None for ones; all contiguous, ``into`` and ``values`` with room for entries and rows. -1 where a
    column is outside the nodes.
    """
    factors = [None if factor is None else factor.ctypes.data for factor in (left, right)]
    out = [array.ctypes.data for array in (offsets, into, values)]
    function = _functions[values.dtype]
    return function(indptr.ctypes.data, columns.ctypes.data, first, last, len(indptr) - 1, *factors, *out)
