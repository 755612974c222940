"""Sums of the objective, the residuals and the extrapolation on the GPU, in float64, each array read once.

The order in which numbers are added follows from their type and count: neither from the GPU nor from where an array
starts. All arrays of a call are contiguous and alike; its sums come over as one copy, which waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import gpu_launch as run

__all__ = ["distance", "link_sums", "movement", "square"]

BLOCKS = 2048  # at most, whatever the GPU: fixed, so that its size leaves no trace
PACKS = 4  # of 16 bytes that a thread reads before there are more blocks


def square(x: Tensor) -> float:
    """Return |x|^2; equal to ``squared_norm``."""
    return _sums("square", (x,))[0]


def distance(q: Tensor, z: Tensor, negative_slope: float) -> float:
    """Return |q - f(z)|^2; equal to ``PiecewiseLinear.squared_distance``; both (V, n)."""
    return _sums("distance", (q, z), negative_slope)[0]


def link_sums(p: Tensor, q: Tensor, u: Tensor) -> list[float]:
    """Return |p - q|^2, <u, p - q> and |q|^2; equal to ``pdadmm.admm.layer.link_sums``; all (V, n)."""
    return _sums("link", (p, q, u), kinds=3)


def movement(p: Tensor, q: Tensor, used: Tensor) -> float:
    """Return |p - q|^2 + |q - used|^2; equal to ``pdadmm.admm.acceleration.movement``; all (V, n)."""
    return _sums("movement", (p, q, used))[0]


def _sums(kernel: str, arrays: tuple[Tensor, ...], *scalars: float, kinds: int = 1) -> list[float]:
    x, count = arrays[0], arrays[0].numel()
    run.check(x, **{f"array {number}": other for number, other in enumerate(arrays[1:], 2)})
    if count == 0:
        return [0.0] * kinds
    pack = 16 // x.element_size()
    blocks = min(BLOCKS, run.divide_up(count, run.THREADS * PACKS * pack))
    partial = torch.empty(kinds, blocks, dtype=torch.float64, device=x.device)
    total = torch.empty(kinds, dtype=torch.float64, device=x.device)
    name = f"{kernel}_{run.SUFFIX[x.dtype]}_{pack if run.aligned(*arrays) else 1}"
    run.launch("sums", name, (blocks, 1), run.THREADS, (*arrays, count, *map(float, scalars), partial), x.device)
    run.launch("sums", "sums_fold", (kinds, 1), run.THREADS, (partial, total, blocks), x.device)
    return total.tolist()
