"""Fused CUDA kernels of pdADMM-G on torch memory; each has an equal in plain torch, named in its docstring.

Nothing here copies an array or, but for the sums, waits for the device: work goes to torch's current stream. All arrays
are contiguous and on one GPU, float32 or float64. Functions ending in ``_`` work in place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import gpu_launch as run
from .gpu_codec import decode, encode
from .gpu_launch import available
from .gpu_spmm import SpmmPlan, spmm
from .gpu_sums import distance, link_sums, movement, square

__all__ = [
    "MAX_CLASSES", "SpmmPlan", "assemble_p_", "available", "decode", "distance", "encode", "extrapolate_",
    "extrapolate_q_", "extrapolate_z_", "link_sums", "movement", "softmax_newton_", "spmm", "square", "step_p_",
    "takes", "update_q_u_", "update_u_", "update_z_",
]  # fmt: skip

MAX_CLASSES = 512  # softmax_newton_ keeps a node's classes in registers


def takes(*arrays: Tensor) -> bool:
    """Whether the kernels handle these arrays: contiguous, on one CUDA GPU, all float32 or all float64, CuPy there."""
    x = arrays[0]
    return (
        x.device.type == run.DEVICE
        and x.dtype in run.SUFFIX
        and all(y.dtype == x.dtype and y.device == x.device and y.is_contiguous() for y in arrays)
        and available(x.device)
    )


def update_z_(z: Tensor, r: Tensor, a: Tensor, q: Tensor, prox_z: float, negative_slope: float = 0.0) -> None:
    """Set z to argmin (z-a)^2 + (q-f(z))^2 + prox_z (z-z_old)^2 and r to z - a, in one pass.

    The z-subproblem of pdADMM-G; equal to ``PiecewiseLinear.minimise``. ``r`` is written only. Shapes: all (V, n).
    """
    run.check(z, r=r, a=a, q=q)
    _elementwise("update_z", (z, r, a, q), prox_z, negative_slope)


def update_q_u_(
    q: Tensor, u: Tensor, p: Tensor, z: Tensor, nu: float, rho: float, negative_slope: float = 0.0
) -> None:
    """Set q to (rho p + u + nu f(z)) / (rho + nu), then u to u + rho (p - q), in one pass.

    Equal to ``update_q_`` and ``update_u_`` where q is sent as it is. ``q`` is written only. Shapes: all (V, n).
    """
    run.check(q, u=u, p=p, z=z)
    _elementwise("update_q_u", (q, u, p, z), nu, rho, negative_slope)


def update_u_(u: Tensor, p: Tensor, q: Tensor, rho: float) -> None:
    """Add rho (p - q) to u, in one pass: dual ascent with p and q as transmitted; all (V, n)."""
    run.check(u, p=p, q=q)
    _elementwise("update_u", (u, p, q), rho)


def assemble_p_(right: Tensor, q: Tensor, u: Tensor, rho: float) -> None:
    """Add rho q - u to ``right``, the right-hand side of the exact p-update, in one pass; all (V, m)."""
    run.check(right, q=q, u=u)
    _elementwise("assemble_p", (right, q, u), rho)


def extrapolate_(x: Tensor, last: Tensor, beta: float) -> None:
    """Set x to x + beta (x - last) and ``last`` to the old x, in one pass, with plain torch's bits; both (V, n)."""
    run.check(x, last=last)
    _elementwise("extrapolate", (x, last), beta)


def extrapolate_q_(used: Tensor, q: Tensor, last: Tensor, beta: float) -> None:
    """Set ``used`` to q + beta (q - last) and ``last`` to q, in one pass, with plain torch's bits; all (V, n)."""
    run.check(used, q=q, last=last)
    _elementwise("extrapolate_q", (used, q, last), beta)


def extrapolate_z_(z: Tensor, last: Tensor, r: Tensor, beta: float) -> None:
    """Do ``extrapolate_`` of z and move r = z - a along, in one pass, with plain torch's bits; all (V, n)."""
    run.check(z, last=last, r=r)
    _elementwise("extrapolate_z", (z, last, r), beta)


def _elementwise(kernel: str, arrays: tuple[Tensor, ...], *scalars: float) -> None:
    x = arrays[0]
    count, width = x.numel(), 16 // x.element_size() if run.aligned(*arrays) else 1
    if count:
        blocks = run.divide_up(count, run.THREADS * width), 1
        args = *arrays, count, *map(float, scalars)
        run.launch("updates", f"{kernel}_{run.SUFFIX[x.dtype]}_{width}", blocks, run.THREADS, args, x.device)


def step_p_(p: Tensor, r: Tensor, g: Tensor, gW: Tensor, nu: float, rho: float) -> None:
    """Take p <- p - g / tau and r <- r + gW / tau, tau_i = rho + nu |gW_i|^2 / |g_i|^2 per node.

    The majorised p-subproblem from its gradient g and gW = g W^T; equal to the end of ``update_p_gradient_``. A
    node with g_i = 0 stays. Up to 4096 columns, one pass. Shapes: p, g (V, m); r, gW (V, n).
    """
    run.check(p, g=g)
    run.check(r, gW=gW)
    if p.dim() != 2 or r.dim() != 2 or len(p) != len(r) or p.dtype != r.dtype:
        raise run.InputError("p, r", (tuple(p.shape), tuple(r.shape)), "(V, m) and (V, n) of one dtype")
    (V, m), n = p.shape, r.shape[1]
    width = 16 // p.element_size()
    if m % width or n % width or not run.aligned(p, r, g, gW):
        width = 1
    if V == 0 or m + n == 0:
        return
    packs = run.divide_up(max(m, n), width)
    shape = next(((L, K) for L, K in _ROW_SHAPES if packs <= L * K), None)
    kind = "wide" if shape is None else f"{shape[0]}_{shape[1]}"
    blocks = V if shape is None else run.divide_up(V, run.THREADS // shape[0])
    args = p, r, g, gW, V, m, n, float(nu), float(rho)
    run.launch("updates", f"step_p_{run.SUFFIX[p.dtype]}_{width}_{kind}", (blocks, 1), run.THREADS, args, p.device)


_ROW_SHAPES = ((32, 1), (32, 2), (32, 4), (256, 2), (256, 4))  # threads per row, packs per thread
_CLASS_SHAPES = ((8, 1), (8, 2), (8, 4), (32, 2), (32, 4), (32, 8), (32, 16))  # lanes per node, classes per lane


def softmax_newton_(z: Tensor, a: Tensor, y: Tensor, nu: float, steps: int = 100) -> bool:
    """Move z to argmin logsumexp(z_i) - z_i[y_i] + nu/2 |z_i - a_i|^2 for every node i, all Newton steps in one launch.

    Equal to ``softmax_newton``, with its damping and stopping rule; z is the start. Returns False, and does nothing,
    for more than MAX_CLASSES classes. Shapes: z, a (V, C); y (V,) int64.
    """
    run.check(z, a=a)
    V, C = z.shape
    if y.shape != (V,) or y.dtype != torch.int64 or y.device != z.device or not y.is_contiguous():
        raise run.InputError("y", f"{y.dtype} of shape {tuple(y.shape)} on {y.device}", f"contiguous int64 ({V},)")
    if C > MAX_CLASSES:
        return False
    if V and C:
        lanes, classes = next((L, K) for L, K in _CLASS_SHAPES if C <= L * K)
        kernel = f"softmax_newton_{run.SUFFIX[z.dtype]}_{lanes}_{classes}"
        args = z, a, y, V, C, float(nu), steps
        run.launch("newton", kernel, (run.divide_up(V * lanes, run.THREADS), 1), run.THREADS, args, z.device)
    return True
