"""Loader of the C reader of scattered rows (scattered.c), which releases the GIL."""

from __future__ import annotations

import ctypes
import os

import numpy as np

from .library import load_library

__all__ = ["available", "read_ranges"]

INTERFACE = 1  # must equal pdadmm_scattered_interface() in scattered.c: a stale build is not used

_POINTER, _LONG = ctypes.c_void_p, ctypes.c_int64
_library = load_library("_scattered", "pdadmm_scattered_interface", INTERFACE)
if _library is not None:
    _library.pdadmm_read_ranges.argtypes = [
        ctypes.c_int, _LONG, _LONG, _POINTER, _POINTER, _LONG, _LONG, _POINTER, _LONG, _POINTER, _POINTER,
    ]  # fmt: skip


def available() -> bool:
    """Whether the C function was built and may be used."""
    return _library is not None


def read_ranges(
    file: int, first: int, row_bytes: int, starts: np.ndarray, stops: np.ndarray, gap: int, stage: np.ndarray,
    out: np.ndarray,
) -> int:  # fmt: skip
    """Fill ``out`` with rows starts[k] to stops[k] of an open file for all k, and return the bytes read.

    ``first`` is the byte of row 0. The ranges, int64 and contiguous, rise; those with gaps of at most ``gap`` bytes are
    read together by way of ``stage``. OSError where the system says so or the file ends before.
    """
    assert _library is not None
    assert out.flags.c_contiguous
    assert all(x.dtype == np.int64 and x.flags.c_contiguous for x in (starts, stops))
    assert out.nbytes == int((stops - starts).sum()) * row_bytes
    moved = ctypes.c_int64()
    failed = _library.pdadmm_read_ranges(
        file, first, row_bytes, starts.ctypes.data, stops.ctypes.data, len(starts), gap, stage.ctypes.data,
        stage.nbytes, out.ctypes.data, ctypes.byref(moved),
    )  # fmt: skip
    if failed:
        raise OSError(None, "the file ends too early") if failed < 0 else OSError(failed, os.strerror(failed))
    return moved.value
