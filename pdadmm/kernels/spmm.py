"""Loader of the C product S X (spmm.c): rows shared out over threads, the GIL released meanwhile."""

from __future__ import annotations

import ctypes
import itertools
import os
import sys

import numpy as np

from .library import load_library, pool, typed_functions

__all__ = ["available", "registers", "spmm_", "takes"]

INTERFACE = 2  # must equal pdadmm_spmm_interface() in spmm.c: a stale build is not used
SMALLEST_SHARE = 1 << 18  # multiplications that are worth a thread of their own

_POINTER, _LONG = ctypes.c_void_p, ctypes.c_int64
_ARGUMENTS = [_POINTER] * 3 + [_LONG] * 3 + [_POINTER] * 2
_functions = typed_functions("_spmm", INTERFACE, "pdadmm_spmm", _ARGUMENTS, None)


def available() -> bool:
    """Whether the C product was built and may be used."""
    return bool(_functions)


def registers(most: int = 2) -> int:
    """Use registers of 16, 32 or 64 bytes (0, 1, 2), ``most`` or the widest of this processor; return which."""
    library = load_library("_spmm", "pdadmm_spmm_interface", INTERFACE)
    assert library is not None
    return library.pdadmm_spmm_registers(most)


def takes(S, X: np.ndarray, out: np.ndarray) -> bool:
    """Whether the C product handles these arrays: one type of the two, C-contiguous, 32-bit column numbers."""
    return (
        S.dtype in _functions
        and S.indices.dtype == np.int32
        and all(x.dtype == S.dtype and x.flags.c_contiguous for x in (X, out))
    )


def spmm_(S, X: np.ndarray, out: np.ndarray) -> None:
    """Set out (m, w) to S (m, V, csr) times X (V, w), with scipy's bits; shapes fit and nothing overlaps."""
    function, w = _functions[S.dtype], X.shape[1]
    offsets = S.indptr.astype(np.int64, copy=False)
    arrays = (S.data.ctypes.data, S.indices.ctypes.data, offsets.ctypes.data)
    pieces = max(1, min(_threads(), S.nnz * w // SMALLEST_SHARE))
    # every row is computed alone: shares of equal length in non-zeros leave no trace
    inner = np.searchsorted(offsets, np.linspace(0, S.nnz, pieces + 1)[1:-1])
    cuts = [0, *inner.tolist(), S.shape[0]]
    shares = [(*arrays, a, b, w, X.ctypes.data, out.ctypes.data) for a, b in itertools.pairwise(cuts)]
    if pieces == 1:
        function(*shares[0])
        return
    for job in [pool(pieces).submit(function, *share) for share in shares]:
        job.result()


def _threads() -> int:
    """Return torch's threads, which a run has set for its rank, or before torch is loaded what it would take."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return torch.get_num_threads()
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) else len(os.sched_getaffinity(0))
