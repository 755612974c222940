"""S @ X for sparse S and dense X: the one place where hops spend their time."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from pdadmm.kernels import spmm as kernel

__all__ = ["spmm"]

_BLOCK_BYTES = 1 << 20  # a block's product is copied to `out` while it is still in cache


def spmm(S: sp.csr_array, X: np.ndarray, out: np.ndarray) -> np.ndarray:
    """The product of a sparse operator and a dense block, out = S X.

    ``S`` [m, V] csr, ``X`` [V, w] and ``out`` [m, w] C-contiguous and of S's dtype, X and out apart. Each
    number adds up its row's terms in stored order, so a column's bits do not depend on the columns beside it.
    The C product gives scipy's bits (pdadmm/kernels/spmm.c); where it was not built scipy's own runs, which
    needs about 1 MiB besides ``out`` (or one row of it). Raises ValueError where the shapes do not fit.

    >>> import numpy as np, scipy.sparse as sp
    >>> spmm(sp.csr_array([[1.0, 1.0]]), np.array([[1.0], [2.0]]), np.empty((1, 1))).tolist()
    [[3.0]]
    """
    (m, V), w = S.shape, X.shape[1]
    if X.shape[0] != V or out.shape != (m, w):
        raise ValueError(f"spmm: S {S.shape}, X {X.shape} and out {out.shape} do not fit")
    if kernel.takes(S, X, out):
        kernel.spmm_(S, X, out)
        return out
    step = max(1, _BLOCK_BYTES // max(1, w * X.itemsize))
    for a in range(0, m, step):
        b = min(a + step, m)
        start, stop = S.indptr[a], S.indptr[b]
        rows = S.data[start:stop], S.indices[start:stop], S.indptr[a : b + 1] - start
        out[a:b] = sp.csr_array(rows, shape=(b - a, V), copy=False) @ X
    return out
