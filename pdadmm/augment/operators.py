"""The graph operators S: how one hop mixes a node's features with its neighbours'."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from pdadmm.errors import InputError

__all__ = ["OPERATORS", "Operator", "propagation_matrix"]


class Operator(NamedTuple):
    """S = D_r^-left (A + I) D_c^-right, with D_r and D_c the row and column sums of A + I."""

    left: float
    right: float
    formula: str


OPERATORS: dict[str, Operator] = {
    "sym": Operator(0.5, 0.5, "D^-1/2 (A + I) D^-1/2"),
    "rw": Operator(1.0, 0.0, "D^-1 (A + I)"),
    "col": Operator(0.0, 1.0, "(A + I) D^-1"),
}

_BLOCK = 1 << 20  # least number of non-zeros handled at once


def propagation_matrix(graph, operator: str = "sym", dtype="float32") -> sp.csr_array:
    """The graph operator S that carries features over one hop.

        sym   S = D_r^-1/2 (A + I) D_c^-1/2     D_r = diag((A + I) 1),  D_c = diag(1^T (A + I))
        rw    S = D_r^-1 (A + I)                each output is the mean over a node and its neighbours
        col   S = (A + I) D_c^-1                each node hands its features out in equal parts

    Source: "sym" is the renormalised adjacency of GCN (Kipf & Welling 2017) that SGC (Wu et al. 2019), SIGN
    (Frasca et al. 2020) and pdADMM-G (Wang et al. 2022) use; on undirected graphs D_r = D_c = D. On directed
    graphs row i of A lists the nodes that node i reads from, and |S|_2 <= 1 holds for "sym" because both sums
    are used.

    ``graph.adjacency`` is a scipy sparse array [V, V] with weights >= 0. A self-loop already there is kept
    and gets the 1 on top of it; an isolated node gets a self-loop of weight 1. Degrees and products are
    computed in float64 and rounded once. Returns a csr_array [V, V] of ``dtype`` with sorted indices: 8 bytes
    per non-zero in float32 (scipy needs 64-bit indices from 2^31 non-zeros on), and as much again while it
    is built.

    Raises InputError for an unknown operator, an adjacency that is not square, or weights that are negative
    or not finite.

    >>> import types, scipy.sparse as sp
    >>> path = types.SimpleNamespace(adjacency=sp.csr_array([[0.0, 1.0], [1.0, 0.0]]))
    >>> propagation_matrix(path, "rw").toarray().tolist()
    [[0.5, 0.5], [0.5, 0.5]]
    """
    if not isinstance(operator, str) or operator not in OPERATORS:
        raise InputError("operator", operator, "one of " + ", ".join(OPERATORS))
    family, dtype = OPERATORS[operator], np.dtype(dtype)
    A = _checked_adjacency(graph, dtype)
    S = sp.csr_array(A + sp.eye_array(A.shape[0], dtype=dtype, format="csr"))
    S.sort_indices()
    rows, columns = _degrees(S)
    left, right = rows**-family.left, columns**-family.right
    for a, b in _row_blocks(S):
        part = slice(S.indptr[a], S.indptr[b])
        factor = np.repeat(left[a:b], np.diff(S.indptr[a : b + 1]))
        factor *= right[S.indices[part]]
        S.data[part] *= factor  # float64 inside, one rounding
    return S


def _checked_adjacency(graph, dtype: np.dtype) -> sp.csr_array:
    A = graph.adjacency
    if not sp.issparse(A) or A.ndim != 2 or A.shape[0] != A.shape[1]:
        got = f"{type(A).__name__} of shape {getattr(A, 'shape', None)}"
        raise InputError("graph.adjacency", got, "a square scipy sparse array")
    A = sp.csr_array(A).astype(dtype, copy=False)
    if A.nnz and not (A.data.min() >= 0 and np.isfinite(A.data.max())):  # a NaN fails the first comparison
        bad = A.data[~(np.isfinite(A.data) & (A.data >= 0))][0]
        raise InputError("graph.weights", bad.item(), "finite and at least 0", "drop or rescale such edges")
    if A.indices.dtype != np.int32 and A.nnz + A.shape[0] <= np.iinfo(np.int32).max:
        narrow = A.data, A.indices.astype(np.int32), A.indptr.astype(np.int32)  # halves what each hop reads
        return sp.csr_array(narrow, shape=A.shape)
    return A


def _degrees(S: sp.csr_array) -> tuple[np.ndarray, np.ndarray]:
    """Row and column sums of A + I in float64; both are at least 1, thanks to the self-loops."""
    rows, columns = np.empty(S.shape[0]), np.zeros(S.shape[1])
    for a, b in _row_blocks(S):
        start, stop = S.indptr[a], S.indptr[b]
        # No row is empty (self-loops), which reduceat relies on.
        rows[a:b] = np.add.reduceat(S.data[start:stop], S.indptr[a:b] - start, dtype=np.float64)
        columns += np.bincount(S.indices[start:stop], weights=S.data[start:stop], minlength=len(columns))
    return rows, columns


def _row_blocks(S: sp.csr_array) -> Iterator[tuple[int, int]]:
    """Row ranges of about max(2^20, V) non-zeros: temporaries stay O(V) and so does the work per block."""
    size, a = max(_BLOCK, S.shape[0]), 0
    while a < S.shape[0]:
        b = int(np.searchsorted(S.indptr, S.indptr[a] + size, side="right")) - 1
        b = min(max(b, a + 1), S.shape[0])
        yield a, b
        a = b
