"""Hops on a GPU: S and a few slices of columns lie there, the features and the result in main memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from pdadmm.augment.hops import load_columns, num_columns, propagate
from pdadmm.console import Work, human_bytes
from pdadmm.errors import InputError
from pdadmm.kernels import gpu
from pdadmm.parallel.device import HostMemory, free_bytes

__all__ = ["propagate_on"]

_SLICE_BYTES = 1 << 28  # default size of one [V, w] slice; main memory pins as much, which torch keeps
_LEAST_WIDTH, _MOST_WIDTH = 32, 256  # columns: narrower slices gather less than 128 bytes an edge, wider gain nothing
_SHARE = 0.9  # of the free memory: cuSPARSE and loading of kernels take some


class Product(NamedTuple):
    """S on a device: ``multiply(X, out)`` sets out to S X, with ``column_bytes`` of further memory a column."""

    multiply: Callable[[Tensor, Tensor], Tensor]
    column_bytes: int


def propagate_on(
    device: torch.device,
    S: sp.csr_array,
    X,
    hops: int,
    weights: list[float] | None = None,
    rows: np.ndarray | None = None,
    slice_columns: int | None = None,
) -> np.ndarray:
    """``propagate`` with its hops on ``device``; the result lies in main memory and agrees to rounding.

    S is copied there once; then come columns of X, ``slice_columns`` at a time (default: 256 MiB a slice, from 32
    to 256 columns, as far as memory is free), each slice alone through all K hops. Memory of the device: S and two
    slices [V, w], one more of the kept ``rows`` where they are given, and one of the sum where hops are averaged; main
    memory: the result and a pinned slice (and one sparse copy of a sparse X). Where the device runs out of memory,
    slices are made narrower. With our kernel (``takes_kernel``) the bits are the same for every width.

    Raises InputError for a feature that is not finite in S's dtype, and where not even one column fits.
    """
    if hops == 0 or 0 in X.shape:  # there is nothing to multiply
        return propagate(S, X, hops, weights, rows, slice_columns)
    try:
        return _propagate(device, S, X, hops, weights, rows, slice_columns)
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()  # for the solver, and for other ranks with the same GPU


def takes_kernel(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether our kernel does S X, else torch's product (cuSPARSE): benchmarks/gpu.py tells which is faster."""
    return dtype == torch.float32 and gpu.available(device)


def product(S: sp.csr_array, device: torch.device) -> Product:
    """Copy S to ``device``, for the product that serves its dtype there."""

    def there(array: np.ndarray, dtype: type) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype)).to(device)

    values = there(S.data, S.data.dtype.type)
    wide = np.int32 if S.nnz <= np.iinfo(np.int32).max else np.int64
    pointers = there(S.indptr, wide)
    if takes_kernel(values.dtype, device):
        plan = gpu.SpmmPlan.of(pointers, there(S.indices, np.int32), values)
        partial = len(plan.begins) * values.element_size()
        return Product(lambda X, out: gpu.spmm(plan, X, out, ordered=True), partial)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "in beta state"
        S_there = torch.sparse_csr_tensor(pointers, there(S.indices, wide), values, S.shape, check_invariants=False)
    return Product(lambda X, out: torch.addmm(out, S_there, X, beta=0, out=out), 0)


def _propagate(device, S, X, hops: int, weights, rows, slice_columns: int | None) -> np.ndarray:
    V, F = X.shape
    out = np.empty((V if rows is None else len(rows), num_columns(F, hops, weights)), S.dtype)
    X = sp.csc_array(X) if sp.issparse(X) else X
    chain = _unless_full(lambda: _Chain(device, S, hops, weights, rows, out))
    if chain is None:
        raise _too_large(device, S)
    fitting = int(_SHARE * free_bytes(device)) // chain.column_bytes
    width = min(F, slice_columns or _default_width(V, S.dtype), max(1, fitting))
    work, a = Work("augmentation", F), 0
    # Overflow is for the caller to find in the result, where it can be reported with its place.
    with np.errstate(over="ignore", invalid="ignore"):
        while a < F:
            b = min(a + width, F)
            if _unless_full(lambda a=a, b=b: chain.take(X, a, b)):
                for _ in range(a, b):
                    work.step()
                a = b
            elif b - a > 1:
                width = (b - a) // 2
            else:
                raise _too_large(device, S, chain.column_bytes)
    return out


class _Chain:
    """S on the device, and the way of a slice of columns: to it, through all hops, and back into ``out``."""

    def __init__(self, device: torch.device, S: sp.csr_array, hops: int, weights, rows, out: np.ndarray) -> None:
        self.device, self.hops, self.weights = device, hops, weights
        self.multiply, partial = product(S, device)
        self.rows = None if rows is None else torch.from_numpy(np.ascontiguousarray(rows, np.int64)).to(device)
        self.out, self.memory = torch.from_numpy(out), HostMemory()
        arrays = 2 * S.shape[0] + len(out) * ((rows is not None) + (weights is not None))
        self.column_bytes = arrays * out.itemsize + partial  # of the device, for each column of a slice

    def take(self, X, a: int, b: int) -> bool:
        """Set what columns a..b of X make of ``out``; True, at the end."""
        (V, F), w, m = X.shape, b - a, len(self.out)
        there: dict[str, Any] = {"dtype": self.out.dtype, "device": self.device}
        # zeros, not empty: torch's product may read what it multiplies by 0
        now, free = torch.zeros(V, w, **there), torch.zeros(V, w, **there)
        kept = None if self.rows is None else torch.empty(m, w, **there)
        total = None if self.weights is None else torch.zeros(m, w, **there)
        host = self.memory.like(now)
        load_columns(X, a, b, host.numpy())
        now.copy_(host)
        for k in range(self.hops + 1):
            if k:
                self.multiply(now, free)
                now, free = free, now
            block = now if self.rows is None else torch.index_select(now, 0, self.rows, out=kept)
            if total is None:
                self._fetch(block, k * F + a)
            else:
                total.add_(block, alpha=float(self.weights[k]))
        if total is not None:
            self._fetch(total, a)
        return True

    def _fetch(self, block: Tensor, first: int) -> None:
        host = self.memory.like(block).copy_(block)  # pinned, and the same for every block
        self.out[:, first : first + block.shape[1]].copy_(host)


def _default_width(V: int, dtype: np.dtype) -> int:
    width = _SLICE_BYTES // (V * dtype.itemsize) // 4 * 4  # the kernel reads 4 columns at a time
    return min(max(width, _LEAST_WIDTH), _MOST_WIDTH)


def _unless_full(work: Callable):
    """Return what ``work`` returns, or None where the device ran out of memory: all that it held there is let go."""
    try:
        return work()
    except torch.OutOfMemoryError:
        return None


def _too_large(device: torch.device, S: sp.csr_array, column: int = 0) -> InputError:
    needed = S.data.nbytes + S.indices.nbytes + S.indptr.nbytes + column
    what = "S" + " and one column" * bool(column)
    value = f"{device.type}, where {what} of {S.shape[0]:,} nodes need {human_bytes(needed)}"
    allowed = f"cpu, or a GPU that holds them: {human_bytes(free_bytes(device))} are free"
    return InputError("device", value, allowed, "end what else runs there, or augment in main memory")
