"""Loader of the fused C updates (updates.c): z with r, q with u, the p-update's right side, the W-update's system,
Newton for z_L, the extrapolation, the sums of the objective.

Each function works on contiguous CPU tensors of one type, float32 or float64; ``takes`` says whether it
may be called. The torch forms in pdadmm.admm are the reference, and what runs where the library was not built.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .library import fits, pool, torch_functions

__all__ = [
    "assemble_W",
    "assemble_p_",
    "available",
    "distance",
    "extrapolate_",
    "extrapolate_q_",
    "extrapolate_z_",
    "link_sums",
    "movement",
    "softmax_newton_",
    "square",
    "takes",
    "update_q_u_",
    "update_u_",
    "update_z_",
]

INTERFACE = 4  # must equal pdadmm_updates_interface() in updates.c: a stale build is not used
SMALLEST_SHARE = 1 << 16  # elements that are worth a thread of their own
SUMMED_AT_ONCE = 1 << 20  # elements of a partial sum: fixed, so that the number of threads leaves no trace

_POINTER, _LONG, _DOUBLE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
_SIGNATURES: dict[str, list[Any]] = {
    "update_z": [_POINTER] * 4 + [_LONG] + [_DOUBLE] * 2,
    "update_q_u": [_POINTER] * 4 + [_LONG] + [_DOUBLE] * 3,
    "update_u": [_POINTER] * 3 + [_LONG, _DOUBLE],
    "assemble_p": [_POINTER] * 3 + [_LONG, _DOUBLE],
    "assemble_W": [_POINTER] * 6 + [_LONG] * 2 + [_DOUBLE] * 4 + [_POINTER] * 2,
    "extrapolate": [_POINTER] * 2 + [_LONG, _DOUBLE],
    "extrapolate_q": [_POINTER] * 3 + [_LONG, _DOUBLE],
    "extrapolate_z": [_POINTER] * 3 + [_LONG, _DOUBLE],
    "distance": [_POINTER] * 2 + [_LONG, _DOUBLE, _POINTER],
    "square": [_POINTER, _LONG, _POINTER],
    "link": [_POINTER] * 3 + [_LONG, _POINTER],
    "movement": [_POINTER] * 3 + [_LONG, _POINTER],
    "newton": [_POINTER] * 2 + [_DOUBLE] + [_POINTER] + [_LONG] * 2,
}


_functions: dict[tuple[str, torch.dtype], Callable[..., int]] = {
    (name, dtype): function
    for name, signature in _SIGNATURES.items()
    for dtype, function in torch_functions("_updates", INTERFACE, f"pdadmm_{name}", signature).items()
}


def available() -> bool:
    """Whether the C updates were built and may be used."""
    return bool(_functions)


def takes(*arrays: Tensor) -> bool:
    """Whether the C updates handle these arrays: contiguous, in main memory, one type of the two."""
    return bool(_functions) and fits(*arrays)


def _elementwise(name: str, arrays: tuple[Tensor, ...], *scalars: float) -> None:
    """Run an element-wise function over flat arrays, cut into one piece for each of torch's threads."""
    function, count, size = _functions[name, arrays[0].dtype], arrays[0].numel(), arrays[0].element_size()
    addresses = [x.data_ptr() for x in arrays]
    pieces = min(torch.get_num_threads(), count // SMALLEST_SHARE)
    if pieces < 2:
        function(*addresses, count, *scalars)
        return
    # every element is computed alike, so the cuts leave no trace; 64 bytes keep vectors aligned
    step = -(-count // pieces // 16) * 16
    jobs = []
    for start in range(0, count, step):
        shifted = [address + start * size for address in addresses]
        jobs.append(pool(pieces).submit(function, *shifted, min(step, count - start), *scalars))
    for job in jobs:
        job.result()


def update_z_(z: Tensor, r: Tensor, a: Tensor, q: Tensor, prox_z: float, negative_slope: float) -> None:
    """Set z to argmin (z-a)^2 + (q-f(z))^2 + prox_z (z-z_old)^2 and r, which may be a, to z - a; all (V, n)."""
    _elementwise("update_z", (a, q, z, r), prox_z, negative_slope)


def update_q_u_(
    q: Tensor, u: Tensor, p_next: Tensor, z: Tensor, nu: float, rho: float, negative_slope: float
) -> None:
    """Set q to (rho p_next + u + nu f(z)) / (rho + nu), then add rho (p_next - q) to u; all (V, n)."""
    _elementwise("update_q_u", (q, u, p_next, z), nu, rho, negative_slope)


def update_u_(u: Tensor, p_next: Tensor, q: Tensor, rho: float) -> None:
    """Add rho (p_next - q) to u, with the bits of update_q_u_; all (V, n)."""
    _elementwise("update_u", (u, p_next, q), rho)


def assemble_p_(right: Tensor, q: Tensor, u: Tensor, rho: float) -> None:
    """Add rho q - u to right; all (V, m)."""
    _elementwise("assemble_p", (right, q, u), rho)


def extrapolate_(x: Tensor, last: Tensor, beta: float) -> None:
    """Set x to x + beta (x - last) and ``last`` to the old x, with plain torch's bits; both (V, n)."""
    _elementwise("extrapolate", (x, last), beta)


def extrapolate_q_(used: Tensor, q: Tensor, last: Tensor, beta: float) -> None:
    """Set ``used`` to q + beta (q - last) and ``last`` to q, with plain torch's bits; all (V, n)."""
    _elementwise("extrapolate_q", (used, q, last), beta)


def extrapolate_z_(z: Tensor, last: Tensor, r: Tensor, beta: float) -> None:
    """Do ``extrapolate_`` of z and move r = z - a along, with plain torch's bits; all (V, n)."""
    _elementwise("extrapolate_z", (z, last, r), beta)


def assemble_W(
    sums: tuple[Tensor, Tensor, Tensor, Tensor],
    count: int,
    W_old: Tensor,
    target: Tensor | None,
    prox: float,
    ridge: float,
    kappa: float,
) -> tuple[Tensor, Tensor]:
    """Return the system (m, m) and the right side (n, m) of the exact W-update; ``sums`` are pp, zp, p_sum, z_sum."""
    system, right = torch.empty_like(sums[0]), torch.empty_like(sums[1])
    addresses = [x.data_ptr() for x in (*sums, W_old)] + [None if target is None else target.data_ptr()]
    function = _functions["assemble_W", W_old.dtype]
    function(*addresses, *W_old.shape, count, prox, ridge, kappa, system.data_ptr(), right.data_ptr())
    return system, right


def _sums(name: str, arrays: tuple[Tensor, ...], *scalars: float) -> list[float]:
    """Return the sums of a function over flat arrays, in float64, from partial sums of fixed size."""
    function, count, size = _functions[name, arrays[0].dtype], arrays[0].numel(), arrays[0].element_size()
    starts = range(0, max(1, count), SUMMED_AT_ONCE)
    # no tensor for a few numbers: on small graphs these calls are most of what the objective takes
    parts = [(ctypes.c_double * (3 if name == "link" else 1))() for _ in starts]
    calls = []
    for part, start in zip(parts, starts):
        addresses = [x.data_ptr() + start * size for x in arrays]
        calls.append((*addresses, min(SUMMED_AT_ONCE, count - start), *scalars, part))
    if len(calls) > 1 and torch.get_num_threads() > 1:
        for job in [pool(torch.get_num_threads()).submit(function, *call) for call in calls]:
            job.result()
    else:
        for call in calls:
            function(*call)
    return [sum(column) for column in zip(*parts)]


def square(x: Tensor) -> float:
    """Return |x|^2."""
    return _sums("square", (x,))[0]


def distance(q: Tensor, z: Tensor, negative_slope: float) -> float:
    """Return |q - f(z)|^2; both (V, n)."""
    return _sums("distance", (q, z), negative_slope)[0]


def link_sums(p: Tensor, q: Tensor, u: Tensor) -> list[float]:
    """Return |p - q|^2, <u, p - q> and |q|^2; all (V, n)."""
    return _sums("link", (p, q, u))


def movement(p: Tensor, q: Tensor, used: Tensor) -> float:
    """Return |p - q|^2 + |q - used|^2; all (V, n)."""
    return _sums("movement", (p, q, used))[0]


def softmax_newton_(z: Tensor, a: Tensor, y: Tensor, nu: float) -> bool:
    """Minimise softmax cross-entropy + nu/2 |z - a|^2 from z on, in place; False where C is too large for it."""
    function = _functions["newton", z.dtype]
    return function(a.data_ptr(), y.data_ptr(), nu, z.data_ptr(), *z.shape) == 0
