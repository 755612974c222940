"""Inverses of and solves with small symmetric positive definite matrices on the GPU, many in one launch."""

from __future__ import annotations

import torch
from torch import Tensor

from . import gpu
from . import gpu_launch as run

__all__ = ["inverse", "solve", "takes"]

TILE, STRIDE = 16, 272  # as in factor.cu: rows of a tile, and numbers from one tile to the next
BANDS = 2  # tiles of rows of B that a block takes along where they fit


def takes(A: Tensor, B: Tensor | None = None) -> bool:
    """Whether ``inverse(A)``, or ``solve(A, B)``, runs here: arrays that the kernels take, A's triangle small enough.

    With the 227 KiB of shared memory that a block can have on an H100 that is up to 304 columns, 208 in float64.
    """
    if A.dim() not in (2, 3) or A.shape[-1] != A.shape[-2] or A.shape[-1] == 0:
        return False
    if B is not None and (B.shape[:-2] != A.shape[:-2] or B.dim() != A.dim() or B.shape[-1] != A.shape[-1]):
        return False
    return gpu.takes(A, *(() if B is None else (B,))) and _shared(A, 1) <= run.shared_memory(A.device)


def inverse(A: Tensor, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """Return (scale A + shift I)^-1 of every matrix of A (m, m) or (K, m, m), NaN where it has no Cholesky factor.

    Equal to ``spd_inverse`` in plain torch, to rounding, and symmetric to the bit. A is symmetric: its upper triangle
    is read. A matrix's bits do not depend on the others, nor does its NaN. InputError for what ``takes`` declines.
    """
    _check(A, None)
    out, m = torch.empty_like(A), A.shape[-1]
    args = A, out, m, float(scale), float(shift)
    if out.numel():
        _launch("inverse", A, out.numel() // (m * m), args, 1)
    return out


def solve(A: Tensor, B: Tensor) -> Tensor:
    """Return B A^-1 for every matrix of A (m, m) and B (n, m), or A (K, m, m) and B (K, n, m).

    Equal to ``spd_solve`` in plain torch, to rounding: substitution, no inverse. Otherwise as ``inverse``.
    """
    _check(A, B)
    out, (n, m) = torch.empty_like(B), B.shape[-2:]
    if out.numel():
        bands = BANDS if n > TILE and _shared(A, BANDS) <= run.shared_memory(A.device) else 1
        blocks = out.numel() // (n * m) * run.divide_up(n, bands * TILE)
        _launch("solve", A, blocks, (A, B, out, n, m, bands), bands)
    return out


def _launch(kernel: str, A: Tensor, blocks: int, args: tuple, bands: int) -> None:
    name = f"spd_{kernel}_{run.SUFFIX[A.dtype]}"
    run.launch("factor", name, (blocks, 1), run.THREADS, args, A.device, _shared(A, bands))


def _shared(A: Tensor, bands: int) -> int:
    """The bytes of a block: the tiles of A's triangle, and ``bands`` rows of tiles behind it."""
    count = run.divide_up(A.shape[-1], TILE)
    return (count * (count + 1) // 2 + bands * count) * STRIDE * A.element_size()


def _check(A: Tensor, B: Tensor | None) -> None:
    if not takes(A, B):
        given = " and ".join(f"{x.dtype} of shape {tuple(x.shape)} on {x.device}" for x in (A, B) if x is not None)
        shapes = "(m, m) or (K, m, m)" if B is None else "(m, m) and (n, m), or (K, m, m) and (K, n, m)"
        allowed = f"contiguous {shapes} of float32 or float64 on a {run.DEVICE} device, m such that A's triangle fits"
        raise run.InputError("A" if B is None else "A, B", given, allowed)
