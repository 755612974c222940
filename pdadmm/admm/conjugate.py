"""Ridge regression on p_1 by conjugate gradients, which needs no factor of the first layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pdadmm.admm.products import Parts, Products, transposed
from pdadmm.admm.shard import Shard

__all__ = ["best_steps", "conjugate_gradients", "conjugate_ridge", "steps_in_plane"]

ROWS = 128  # of p that stay in cache from one product to the next


def conjugate_ridge(p: Parts, Y: Tensor, kappa: float, steps: int, shard: Shard, products: Products) -> Tensor:
    """Return W (C, n_0) near the minimiser of |Y - p W^T|^2 + kappa |W|^2, for Y (V, C) and p (V, n_0), or its parts.

    Two products of width C a step, where a factor would take V n_0^2. Y and p are the rows of ``shard``.
    """
    cross = shard.total(products.mm_parts(transposed(products.operand(Y)), p))
    return conjugate_gradients(cross, lambda D: shard.totals(_there_and_back(p, D, products)), kappa, steps)


def conjugate_gradients(
    cross: Tensor, curved: Callable[[Tensor], tuple[Tensor, ...]], kappa: float, steps: int
) -> Tensor:
    """Return W (C, n_0) near the solution of W (p^T p + kappa I) = ``cross``, from W = 0, each row of W for itself.

    ``steps`` of conjugate gradients (Hestenes and Stiefel 1952). ``curved`` (D) are D p^T p and the squared lengths of
    the rows of D p^T.
    """
    G = cross  # half of the negative gradient
    W, D, squared = torch.zeros_like(G), G.clone(), G.square().sum(1)
    for _ in range(steps):
        along, lengths = curved(D)
        curvature = lengths + kappa * D.square().sum(1)
        step = torch.where(curvature > 0, squared / curvature, 0.0)[:, None]
        W += step * D
        G = G - step * (along + kappa * D)
        before, squared = squared, G.square().sum(1)
        D = G + torch.where(before > 0, squared / before, 0.0)[:, None] * D
    return W


def _there_and_back(p: Parts, D: Tensor, products: Products) -> tuple[Tensor, Tensor]:
    """Return D p^T p (C, n_0) and the squared lengths of the rows of D p^T (C,), in one pass over p."""
    count = len(p[0])
    rows = ROWS if D.device.type == "cpu" else max(count, 1)
    curved, lengths, left = torch.zeros_like(D), D.new_zeros(len(D)), products.operand(D)
    for start in range(0, count, rows):
        block = tuple(part[start : start + rows] for part in p)
        P = products.mm_parts(left, transposed(block))
        products.addmm_parts(curved, products.operand(P), block, out=curved)
        lengths += P.square().sum(1)
    return curved, lengths


def steps_in_plane(
    G: Tensor, E: Tensor, curvatures: tuple[Tensor, Tensor, Tensor], kappa: float
) -> tuple[Tensor, Tensor]:
    """Return s and t (n,): from W, s G + t E is each row's best step in its plane for |Z - p W^T|^2 + kappa |W|^2.

    ``G`` (n, n_0) is half of the negative gradient, ``E`` another direction, ``curvatures`` the rows' <G p^T, G p^T>,
    <G p^T, E p^T> and <E p^T, E p^T>.
    """
    (PP, PQ, QQ), (GG, GE, EE) = curvatures, ((G * G).sum(1), (G * E).sum(1), (E * E).sum(1))
    return best_steps((GG, GE), (PP + kappa * GG, PQ + kappa * GE, QQ + kappa * EE))


def best_steps(
    slopes: tuple[Tensor, Tensor], curvatures: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return s and t (n,) that minimise h_11 s^2 / 2 + h_12 s t + h_22 t^2 / 2 - g_1 s - g_2 t, entry by entry.

    ``slopes`` g_1, g_2 and ``curvatures`` h_11, h_12, h_22 (n,). t is 0 where the two directions are parallel to
    half the digits, and both where there is no curvature.

    >>> best_steps((torch.ones(1), torch.zeros(1)), (torch.full((1,), 2.0), torch.ones(1), torch.ones(1)))
    (tensor([1.]), tensor([-1.]))
    """
    (g_1, g_2), (h_11, h_12, h_22) = slopes, curvatures
    determinant = h_11 * h_22 - h_12.square()
    apart = determinant > torch.finfo(g_1.dtype).eps ** 0.5 * h_11 * h_22
    apart &= (h_11 > 0) & (h_22 > 0)  # rounding may leave two curvatures below 0
    alone = torch.where(h_11 > 0, g_1 / h_11, 0.0)
    s = torch.where(apart, (h_22 * g_1 - h_12 * g_2) / determinant, alone)
    return s, torch.where(apart, (h_11 * g_2 - h_12 * g_1) / determinant, 0.0)
