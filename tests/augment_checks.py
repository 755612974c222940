"""What hops on a device are compared with: exact ones, and how far rounding may lead."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

__all__ = ["assert_hops", "hub_graph", "reference_hops"]


def reference_hops(S, X, hops: int, weights, rows) -> tuple[np.ndarray, np.ndarray]:
    """[X, SX, .., S^K X] or their sum in float64 from dense matrices; the same of |S| and |X|, its size."""
    dense = np.asarray(X.todense() if sp.issparse(X) else X).astype(S.dtype).astype(np.float64)
    results = []
    for matrix, block in ((S.toarray().astype(np.float64), dense), (abs(S).toarray().astype(np.float64), abs(dense))):
        blocks = [block]
        for _ in range(hops):
            blocks.append(matrix @ blocks[-1])
        whole = np.hstack(blocks) if weights is None else sum(w * part for w, part in zip(weights, blocks, strict=True))
        results.append(whole if rows is None else whole[rows])
    return results[0], results[1]


def assert_hops(found: np.ndarray, exact: np.ndarray, size: np.ndarray) -> None:
    """Rounding: 32 units of ``size``, the sum of the magnitudes of a number's terms, at most."""
    unit = np.finfo(found.dtype).eps
    assert found.shape == exact.shape
    worst = np.max(abs(found - exact) - 32 * unit * size, initial=0.0)
    assert worst <= np.finfo(found.dtype).tiny, worst


def hub_graph(V: int, F: int, seed: int = 0) -> tuple[sp.csr_array, np.ndarray]:
    """S with a row of all nodes, one of most and one of none, in float32; features with a row of zeros."""
    rng = np.random.default_rng(seed)
    S = sp.random_array((V, V), density=4 / V, rng=rng, dtype=np.float32, format="lil")
    S[3], S[7, : V * 3 // 4], S[11] = rng.random(V), rng.random(V * 3 // 4), 0
    S = sp.csr_array(S, dtype=np.float32)
    S.data /= V
    S.eliminate_zeros()
    X = rng.normal(size=(V, F)).astype(np.float32)
    X[5] = 0
    return S, X
