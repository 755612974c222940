"""Sparse times dense on the GPU: the hops S X of the augmentation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import gpu_launch as run

__all__ = ["SpmmPlan", "spmm"]

LIMIT = 256  # edges one warp takes; longer rows are cut
WARPS = 4  # per block: a block ends with its longest row
STORAGE = {torch.float32: "float", torch.float16: "half_t"}
INDEX = {torch.int32: "int32", torch.int64: "int64"}


@dataclass(frozen=True)
class SpmmPlan:
    """A CSR matrix and how its long rows are cut; made once per matrix, which waits for the device.

    ``pointers`` (V + 1,) int32 or int64, ``columns`` (E,) int32, ``values`` (E,) float32 or None for all ones.
    """

    pointers: Tensor
    columns: Tensor
    values: Tensor | None
    limit: int  # the longest row that one warp takes whole
    long_rows: Tensor  # (R,) int64
    first: Tensor  # (R + 1,): the segments of long row i are first[i] .. first[i + 1] - 1
    begins: Tensor  # (segments,): the edges of a segment
    ends: Tensor

    @classmethod
    def of(cls, pointers: Tensor, columns: Tensor, values: Tensor | None = None, limit: int = LIMIT) -> SpmmPlan:
        """Cut every row of more than ``limit`` edges into segments of at most ``limit``."""
        _check_csr(pointers, columns, values)
        starts, stops = pointers[:-1].long(), pointers[1:].long()
        long_rows = torch.nonzero(stops - starts > limit).flatten()
        pieces = (stops - starts)[long_rows].add(limit - 1).div(limit, rounding_mode="floor")
        first = torch.cat([pieces.new_zeros(1), pieces.cumsum(0)])
        row = torch.repeat_interleave(long_rows, pieces)
        piece = torch.arange(len(row), device=row.device) - torch.repeat_interleave(first[:-1], pieces)
        begins = starts[row] + piece * limit
        ends = torch.minimum(begins + limit, stops[row])
        return cls(pointers, columns, values, limit, long_rows, first, begins, ends)

    @property
    def rows(self) -> int:
        """The number of rows of the matrix."""
        return len(self.pointers) - 1


def spmm(
    plan: SpmmPlan,
    X: Tensor,
    out: Tensor,
    left: Tensor | None = None,
    right: Tensor | None = None,
    ordered: bool = False,
) -> Tensor:
    """The product ``out = diag(left) A diag(right) X``, summed in float32; ``left``, ``right`` None are ones.

    With A = 1 where the graph has an edge and left = right = D^-1/2 it is a hop of the default operator without
    its values. ``X`` (m, w) and ``out`` (V, w) lie apart; ``X`` is float32, or float16 and then ``out`` may be either;
    left (V,) and right (m,) are float32. Up to 2^31 - 1 columns. The reference is augment.product.spmm.
    ``ordered``: terms are added in stored order (in segments of ``plan.limit``), so that a column's bits do not depend
    on w; else a warp sums parts of a row side by side where w is 64 or less.
    """
    _check_dense(plan, X, out, left, right)
    w = X.shape[1]
    if plan.rows == 0 or w == 0:
        return out
    vector = w % 4 == 0 and X.data_ptr() % 16 == 0 and out.data_ptr() % 16 == 0
    columns, lanes = (4, next(L for L in (8, 16, 32) if L == 32 or w <= 4 * L)) if vector else (1, 32)
    if ordered and lanes < 32:
        columns, lanes = 1, 32  # the lanes of a warp have a column each, not a part of the row
    kind, tiles = f"{columns}_{lanes}", run.divide_up(w, columns * lanes)
    source, target = STORAGE[X.dtype], STORAGE[out.dtype]

    def warps(kernel: str, count: int, *args) -> None:
        blocks = run.divide_up(count, WARPS), tiles
        run.launch("spmm", kernel, blocks, 32 * WARPS, args, X.device)

    name = f"spmm_rows_{source}_{target}_{INDEX[plan.pointers.dtype]}_{kind}"
    args: tuple = plan.pointers, plan.columns, plan.values, left, right, X, out, plan.rows, w, plan.limit
    warps(name, plan.rows, *args)
    segments, count = len(plan.begins), len(plan.long_rows)
    if segments:
        partial = torch.empty(segments, w, dtype=torch.float32, device=X.device)
        args = plan.begins, plan.ends, plan.columns, plan.values, right, X, partial, segments, w
        warps(f"spmm_segments_{source}_{kind}", segments, *args)
        blocks = run.divide_up(count * w, run.THREADS), 1
        args = plan.long_rows, plan.first, left, partial, out, count, w
        run.launch("spmm", f"spmm_join_{target}", blocks, run.THREADS, args, X.device)
    return out


def _check_csr(pointers: Tensor, columns: Tensor, values: Tensor | None) -> None:
    allowed = {"pointers": tuple(INDEX), "columns": (torch.int32,), "values": (torch.float32,)}
    for (name, dtypes), x in zip(allowed.items(), (pointers, columns, values)):
        if x is not None and (x.dtype not in dtypes or x.dim() != 1 or not x.is_contiguous()):
            raise run.InputError(name, f"{x.dtype} of shape {tuple(x.shape)}", f"flat, contiguous, one of {dtypes}")
        if x is not None and x.device != columns.device:
            raise run.InputError(name, x.device, f"on {columns.device}, as the columns are")
    if len(pointers) == 0 or (values is not None and len(values) != len(columns)):
        raise run.InputError("pointers, values", (len(pointers), len(columns)), "(V + 1,) and one value per column")


def _check_dense(plan: SpmmPlan, X: Tensor, out: Tensor, left: Tensor | None, right: Tensor | None) -> None:
    if X.dim() != 2 or out.shape != (plan.rows, X.shape[1]):
        raise run.InputError("X, out", (tuple(X.shape), tuple(out.shape)), f"(m, w) and ({plan.rows}, w)")
    for name, x in (("X", X), ("out", out)):
        if x.dtype not in STORAGE or not x.is_contiguous() or x.device != plan.columns.device:
            raise run.InputError(name, f"{x.dtype} on {x.device}", "contiguous float32 or float16 beside the matrix")
    if X.dtype == torch.float32 != out.dtype:
        raise run.InputError("out", out.dtype, "float32 with a float32 X")
    if X.device.type != run.DEVICE:
        raise run.InputError("X", X.device, f"on a {run.DEVICE} device")
    for name, d, count in (("left", left, plan.rows), ("right", right, len(X))):
        if d is None:
            continue
        if d.dtype != torch.float32 or d.shape != (count,) or d.device != X.device or not d.is_contiguous():
            raise run.InputError(name, f"{d.dtype} of shape {tuple(d.shape)}", f"contiguous float32 ({count},)")
