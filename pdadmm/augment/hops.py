"""Augmented features p_1 from powers of S, one slice of columns at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import scipy.sparse as sp

from pdadmm.augment.product import spmm
from pdadmm.console import Work
from pdadmm.errors import InputError

__all__ = [
    "WEIGHTINGS",
    "add_hop",
    "cache_lines",
    "default_slice_columns",
    "hop_weights",
    "load_columns",
    "num_columns",
    "propagate",
]


def _ppr(hops: int, alpha: float, heat_time: float) -> list[float]:
    return [alpha * (1 - alpha) ** k for k in range(hops)] + [(1 - alpha) ** hops]


def _heat(hops: int, alpha: float, heat_time: float) -> list[float]:
    if heat_time == 0:
        return [1.0] + [0.0] * hops
    logs = [k * math.log(heat_time) - math.lgamma(k + 1) for k in range(hops + 1)]
    weights = [math.exp(x - max(logs)) for x in logs]  # e^-t cancels in the normalisation
    return [w / math.fsum(weights) for w in weights]


# name -> weights of the averaged block; None keeps the hops apart
WEIGHTINGS: dict[str, Callable[[int, float, float], list[float]] | None] = {
    "powers": None,
    "ppr": _ppr,
    "heat": _heat,
}

_SLICE_BYTES = 8 << 20  # default size of one [V, w] buffer: what a hop gathers from stays in cache
_LINE = 16  # columns: one cache line of float32
_MOST_WIDTH = 256  # wider slices gain nothing
_STORE_BYTES = 1 << 20


def hop_weights(weighting: str, hops: int, alpha: float = 0.1, heat_time: float = 5.0) -> list[float] | None:
    """The weight of each hop in the averaged block, or None for "powers", which concatenates the hops.

        ppr    w_k = alpha (1 - alpha)^k for k < K,  w_K = (1 - alpha)^K    so that sum_k w_k = 1
        heat   w_k = (t^k / k!) / sum_{j<=K} t^j / j!                       (e^-t cancels)

    Source: APPNP (Gasteiger et al. 2019, ICLR; its K power iterations give exactly this w_K) and the heat
    kernel of GDC (Gasteiger et al. 2019, NeurIPS). ``alpha`` in [0, 1] (0: SGC's S^K X), ``heat_time`` >= 0.
    Raises InputError for an unknown weighting.

    >>> hop_weights("ppr", 2, alpha=0.5)
    [0.5, 0.25, 0.25]
    """
    if not isinstance(weighting, str) or weighting not in WEIGHTINGS:
        raise InputError("weighting", weighting, "one of " + ", ".join(WEIGHTINGS))
    family = WEIGHTINGS[weighting]
    return None if family is None else family(hops, alpha, heat_time)


def propagate(
    S: sp.csr_array,
    X,
    hops: int,
    weights: list[float] | None = None,
    rows: np.ndarray | None = None,
    slice_columns: int | None = None,
) -> np.ndarray:
    """The augmented features before scaling.

        weights None    [X, S X, S^2 X, .., S^K X]    [V, (K + 1) F], hop after hop
        weights w       sum_k w_k S^k X               [V, F]

    Source: SIGN (Frasca et al. 2020), pdADMM-G (Wang et al. 2022) for the first; APPNP, GDC for the second.

    ``S`` csr [V, V], ``X`` dense or scipy sparse [V, F], ``hops`` K >= 0. ``rows``: node numbers; only these
    rows are kept, though the hops run over all nodes. Columns travel in slices of ``slice_columns`` (default:
    8 MiB a slice, from 16 to 256 columns), each alone through all K hops, so memory is the output plus two
    slices [V, w] (and one sparse copy of a sparse X); the result is bitwise the same for every width. Returns
    a C-contiguous array of S's dtype. Raises InputError for a feature that is not finite in that dtype.

    >>> import numpy as np, scipy.sparse as sp
    >>> S = sp.csr_array([[0.5, 0.5], [0.5, 0.5]])
    >>> propagate(S, np.array([[2.0], [4.0]]), hops=1).tolist()
    [[2.0, 3.0], [4.0, 3.0]]
    """
    (V, F), dtype = X.shape, S.dtype
    kept = V if rows is None else len(rows)
    out = np.empty((kept, num_columns(F, hops, weights)), dtype)
    width = min(F, slice_columns or default_slice_columns(V, dtype)) or 1
    buffers = [cache_lines(V * width, dtype) for _ in range(2)]
    S_last = S if rows is None or hops == 0 else S[rows]  # the last hop is needed on the kept rows alone
    X = sp.csc_array(X) if sp.issparse(X) else X
    work = Work("augmentation", (hops + 1) * len(range(0, F, width)))
    # Overflow is for the caller to find in the result, where it can be reported with its place.
    with np.errstate(over="ignore", invalid="ignore"):
        for a in range(0, F, width):
            b = min(a + width, F)
            slices = [buffer[: V * (b - a)].reshape(V, b - a) for buffer in buffers]
            load_columns(X, a, b, slices[0])
            for k, (block, index) in enumerate(_chain(S, S_last, slices, hops, rows)):
                if weights is None:
                    add_hop(out[:, k * F + a : k * F + b], block, index)
                else:
                    # A numpy scalar would turn float32 work into float64; a Python number does not.
                    add_hop(out[:, a:b], block, index, float(weights[k]), add=k > 0)
                work.step()
    return out


def num_columns(F: int, hops: int, weights: list[float] | None) -> int:
    """The columns of the augmented features: every hop's, or one sum's."""
    return F * (hops + 1) if weights is None else F


def cache_lines(count: int, dtype: np.dtype) -> np.ndarray:
    """Return an empty array that begins with a cache line: a row of 16 columns is then one line, not a part of two."""
    line = _LINE * 4
    memory = np.empty(count * dtype.itemsize + line, np.uint8)
    start = -memory.ctypes.data % line
    return memory[start : start + count * dtype.itemsize].view(dtype)


def default_slice_columns(V: int, dtype: np.dtype) -> int:
    """Columns in a slice of about 8 MiB: a multiple of 16 (one cache line of float32), from 16 to 256."""
    width = _SLICE_BYTES // (max(V, 1) * dtype.itemsize) // _LINE * _LINE
    return min(max(width, _LINE), _MOST_WIDTH)


def _chain(S, S_last, slices, hops: int, rows) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Yield (block, index) for k = 0..K: S^k X on the kept rows is block[index] (index None: all of it)."""
    now, free = slices
    yield now, rows
    for _ in range(1, hops):
        spmm(S, now, free)
        now, free = free, now
        yield now, rows
    if hops:
        m = S_last.shape[0]
        # Repeated rows can make the kept part larger than a slice.
        last = free[:m] if m <= len(free) else np.empty((m, free.shape[1]), free.dtype)
        yield spmm(S_last, now, last), None


def load_columns(X, a: int, b: int, out: np.ndarray) -> None:
    """Columns a..b of X as a dense slice in S's dtype; the input is checked here, where it is read once."""
    if sp.issparse(X):
        X[:, a:b].astype(out.dtype).toarray(out=out)
    else:
        out[...] = X[:, a:b]
    if not np.isfinite(out).all():
        i, j = np.argwhere(~np.isfinite(out))[0]
        raise InputError(
            "graph.features",
            f"{out[i, j]} at node {i}, column {a + j}",
            f"finite in {out.dtype}",
            "clean or rescale the features",
        )


def add_hop(target: np.ndarray, block: np.ndarray, index, weight: float = 1.0, add: bool = False) -> None:
    """target (+)= weight * block[index], in blocks of rows so that the temporary stays in cache."""
    step = max(1, _STORE_BYTES // max(1, target.shape[1] * target.itemsize))
    for a in range(0, len(target), step):
        part = slice(a, a + step)
        source = block[part if index is None else index[part]]
        if weight != 1.0:
            source = weight * source
        if add:
            target[part] += source
        else:
            target[part] = source
