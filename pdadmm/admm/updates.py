"""The subproblems of pdADMM-G, one pure function each (Wang et al. 2022, Algorithm 1; docs/math.md).

Names are the paper's. V training nodes, n = n_l, m = n_{l-1}; arrays are node-major. A function ending
in ``_`` works in place. All of them see one block of nodes at a time and none communicates, but for W and b:
these need sums over all nodes, which come as Moments or through a Shard. Products with an array of nodes are done by
``products``, in its number format.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pdadmm.admm.activations import PiecewiseLinear
from pdadmm.admm.products import FULL, Parts, Products, transposed
from pdadmm.admm.shard import WHOLE, Shard
from pdadmm.kernels import factor
from pdadmm.kernels import updates as compiled
from pdadmm.kernels.fused import gpu_factor_for, gpu_for, updates_for
from pdadmm.quantize import Grid

__all__ = [
    "Moments",
    "assemble_W",
    "assemble_p_",
    "cholesky",
    "dual",
    "inverse_p",
    "prepare_p_exact",
    "spd_inverse",
    "spd_solve",
    "squared_norm",
    "update_W_b_exact",
    "update_W_b_gradient",
    "update_W_gradient_",
    "update_b_",
    "update_p_constrained_",
    "update_p_exact_",
    "update_p_gradient_",
    "update_q_",
    "update_q_u_",
    "update_u_",
]


def cholesky(A: Tensor) -> Tensor:
    """Return the Cholesky factor of each matrix of A (..., n, n), NaN where it has none.

    NaN shows in the objective after the iteration, on every rank at once; an exception here would end one
    rank while the others wait for it.
    """
    factor, info = torch.linalg.cholesky_ex(A)
    return factor.masked_fill_((info != 0)[..., None, None], torch.nan)  # without waiting for a device


def spd_inverse(A: Tensor, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """Return (scale A + shift I)^-1 through its Cholesky factor, NaN where it has none; A (..., n, n) is symmetric."""
    if factor.takes(A):
        return factor.inverse(A, scale, shift)
    if (gpu_factor := gpu_factor_for(A)) is not None:
        return gpu_factor.inverse(A, scale, shift)
    if (scale, shift) != (1.0, 0.0):
        A = scale * A
        A.diagonal(dim1=-2, dim2=-1).add_(shift)
    return torch.cholesky_inverse(cholesky(A))


def spd_solve(A: Tensor, B: Tensor) -> Tensor:
    """Return B A^-1 for symmetric positive definite A through its Cholesky factor, NaN where it has none.

    Shapes: A (..., n, n), B (..., m, n).
    """
    if factor.takes(A, B):
        return factor.solve(A, B)
    if (gpu_factor := gpu_factor_for(A, B)) is not None:
        return gpu_factor.solve(A, B)
    return torch.cholesky_solve(B.mT, cholesky(A)).mT.contiguous()


def squared_norm(x: Tensor) -> float:
    """Return |x|^2, summed in float64."""
    fused = updates_for(x)
    if fused is not None:
        return fused.square(x)
    return float(x.double().square().sum())


def inverse_p(W: Tensor, nu: float, rho: float) -> Tensor:
    """Return (nu W^T W + rho I)^-1 (m, m), which all nodes share in the exact p-update."""
    return spd_inverse(W.mT @ W, nu, rho)


def prepare_p_exact(
    z: Tensor,
    W: Tensor,
    b: Tensor,
    nu: float,
    rho: float,
    out: Tensor | None = None,
    inverse: Tensor | None = None,
    products: Products = FULL,
) -> tuple[Tensor, Tensor]:
    """Return nu (z - b) W, in ``out`` if given, and (nu W^T W + rho I)^-1: the part that needs no q.

    It runs while q is still on its way from the rank below; blocks of nodes share one ``inverse``, by inverse_p.
    Shapes: z (V, n), W (n, m), out (V, m).
    """
    if inverse is None:
        inverse = inverse_p(W, nu, rho)
    return products.addmm(b @ W, z, W, beta=-nu, alpha=nu, out=out), inverse


def update_p_exact_(
    p: Tensor, prepared: tuple[Tensor, Tensor], q: Tensor, u: Tensor, rho: float, products: Products = FULL
) -> None:
    """Set p to argmin nu/2 |z - p W^T - b|^2 + <u, p - q> + rho/2 |p - q|^2 (p-subproblem, exact).

    p = [nu (z - b) W + rho q - u] (nu W^T W + rho I)^-1, ``prepared`` by prepare_p_exact.
    Shapes: p, q, u (V, m).
    """
    right, inverse = prepared
    assemble_p_(right, q, u, rho)
    products.mm(right, inverse, out=p)


def assemble_p_(right: Tensor, q: Tensor, u: Tensor, rho: float) -> None:
    """Add rho q - u to ``right``, the right-hand side of the exact p-update; all (V, m), or (K, V, m) of K layers."""
    fused = updates_for(right, q, u)
    if fused is not None:
        fused.assemble_p_(right, q, u, rho)
    else:
        right.add_(q, alpha=rho).sub_(u)


def update_p_gradient_(
    p: Tensor, r: Tensor, W: Tensor, q: Tensor, u: Tensor, nu: float, rho: float, products: Products = FULL
) -> None:
    """Take p <- p - g/tau, one tau per node, and carry r = z - p W^T - b along (p-subproblem, majorised).

    g = -nu r W + u + rho (p - q) and tau_i = (nu |g_i W^T|^2 + rho |g_i|^2) / |g_i|^2 is the curvature
    along g, so the quadratic majoriser holds with equality and no backtracking is needed.
    """
    g = products.addmm(u + rho * (p - q), r, W, alpha=-nu)
    gW = products.mm(g, W.mT)
    fused = gpu_for(p, r, g, gW)
    if fused is not None:
        fused.step_p_(p, r, g, gW, nu, rho)
        return
    g_squared = g.square().sum(1, keepdim=True)
    tau = rho + nu * gW.square().sum(1, keepdim=True) / _floored(g_squared)
    p.sub_(g / tau)
    r.add_(gW / tau)


def update_p_constrained_(
    p: Tensor,
    r: Tensor,
    W: Tensor,
    q: Tensor,
    u: Tensor,
    nu: float,
    rho: float,
    grid: Grid,
    products: Products = FULL,
) -> None:
    """Move p to the point of the grid nearest to p - g/tau, and carry r along (Problem 3 of the paper).

    The step d to a grid point is not parallel to g, so the curvature along g does not bound it. tau_i is tried
    first; a node whose own step bends more, (nu |d_i W^T|^2 + rho |d_i|^2) / |d_i|^2 > tau_i, takes the bound
    nu |W|_2^2 + rho instead. With p on the grid before, the Lagrangian does not rise.
    """
    g = products.addmm(u + rho * (p - q), r, W, alpha=-nu)
    tau = rho + nu * products.mm(g, W.mT).square().sum(1, keepdim=True) / _floored(g.square().sum(1, keepdim=True))
    point = p - g / tau
    if not bool(torch.isfinite(point).all()):
        # no grid point is near: the objective shows it after this iteration, on all ranks at once
        p.fill_(torch.nan)
        r.fill_(torch.nan)
        return
    target = grid.project(point)
    d = target - p
    dW = products.mm(d, W.mT)
    bends = nu * dW.square().sum(1) > (tau.squeeze(1) - rho) * d.square().sum(1)
    if bool(bends.any()):
        bound = rho + nu * float(torch.linalg.matrix_norm(W, 2)) ** 2 * (1 + 1e-5)
        target[bends] = grid.project(p[bends] - g[bends] / bound)
        dW[bends] = products.mm(target[bends] - p[bends], W.mT)
    p.copy_(target)
    r.sub_(dW)


def _floored(x: Tensor) -> Tensor:
    return x.clamp_min(torch.finfo(x.dtype).tiny)


def update_W_gradient_(
    W: Tensor,
    r: Tensor,
    p: Tensor,
    nu: float,
    mu: float,
    kappa: float = 0.0,
    target: Tensor | None = None,
    shard: Shard = WHOLE,
    products: Products = FULL,
) -> None:
    """Take W <- W - G/theta on nu/2 |r|^2 + mu/2 |W|^2 + nu kappa/2 |W - target|^2, carrying r along.

    theta = (nu |p G^T|^2 + (mu + nu kappa) |G|^2) / |G|^2 is the curvature along the gradient G.
    W stays where its gradient is 0. Shapes: W (n, m), r (V, n), p (V, m), the rows of ``shard``.
    """
    P = products.operand(p)
    G = shard.total(products.addmm_parts((mu if shard.leads else 0.0) * W, products.operand(r.mT), P, alpha=-nu))
    if kappa:
        G.add_(W if target is None else W - target, alpha=nu * kappa)
    pG = products.mm_parts(P, products.operand(G.mT))
    G_squared = G.square().sum()
    theta = nu * shard.total(pG.square().sum()) + (mu + nu * kappa) * G_squared
    step = torch.where(theta > 0, G_squared / theta, 0.0)
    W.sub_(step * G)
    r.add_(step * pG)


def update_b_(b: Tensor, r: Tensor, shard: Shard = WHOLE) -> None:
    """Add to b the mean over nodes of r = z - p W^T - b: the exact b-subproblem; r is carried along."""
    shift = shard.mean(r)
    b.add_(shift)
    r.sub_(shift)


@dataclass
class Moments:
    """Sums over nodes that the exact W, b update needs: p^T p (m, m), z^T p (n, m), sums of p, z, count.

    They add up over blocks of nodes, so a layer cut into blocks or shards uses the same update. With a ``centre`` (m,)
    it is p - centre that is summed, of all blocks the same.
    """

    pp: Tensor
    zp: Tensor
    p_sum: Tensor
    z_sum: Tensor
    count: int
    centre: Tensor | None = None

    @classmethod
    def of(cls, p: Tensor, z: Tensor, products: Products = FULL, P: Parts = ()) -> Moments:
        """Return the sums of one block of nodes; p (V, m), z (V, n), ``P`` the parts of p where they are known.

        p and z are rounded as ``products`` has it before anything is summed: W and b then are exact for the p and z so
        rounded, whatever the condition of p^T p.
        """
        P, Z = P or products.parts(p), products.parts(z)
        pp, zp = products.mm_parts(transposed(P), P), products.mm_parts(transposed(Z), P)
        if len(P) == 1:
            p, z = P[0], Z[0]
        return cls(pp, zp, p.sum(0, dtype=pp.dtype), z.sum(0, dtype=pp.dtype), len(p))

    @classmethod
    def about(
        cls, centre: Tensor, p: Tensor, z: Tensor, products: Products = FULL, P: Parts = (), out: Tensor | None = None
    ) -> Moments:
        """Return the sums of one block with p - ``centre``, which lies in ``out`` if given.

        Near the mean of p that spares the W-update the difference of large numbers, where the rows of p are much alike.
        ``products`` in bf16 sum p itself, as ``of`` does with its parts ``P``.
        """
        if not products.centres:
            return cls.of(p, z, products, P)
        p = torch.sub(p, centre, out=out)
        P, Z = products.operand(p), products.operand(z)
        pp, zp = products.mm_parts(transposed(P), P), products.mm_parts(transposed(Z), P)
        return cls(pp, zp, p.sum(0), z.sum(0), len(p), centre)

    def over(self, shard: Shard) -> Moments:
        """Return the sums over all shards from those of one."""
        if shard.alone:
            return self
        pp, zp, p_sum, z_sum = shard.totals((self.pp, self.zp, self.p_sum, self.z_sum))
        return Moments(pp, zp, p_sum, z_sum, shard.nodes, self.centre)

    def mean_p(self) -> Tensor:
        """Return the mean of p over the nodes, of sums with a centre."""
        assert self.centre is not None
        return torch.add(self.centre, self.p_sum, alpha=1.0 / self.count)

    def __add__(self, other: Moments) -> Moments:
        assert self.centre is other.centre
        return Moments(
            self.pp + other.pp,
            self.zp + other.zp,
            self.p_sum + other.p_sum,
            self.z_sum + other.z_sum,
            self.count + other.count,
            self.centre,
        )


def update_W_b_exact(
    moments: Moments,
    W_old: Tensor,
    mu_over_nu: float = 0.0,
    prox: float = 0.0,
    kappa: float = 0.0,
    target: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return argmin over W, b of |z - p W^T - b|^2 + mu/nu |W|^2 + prox |W - W_old|^2 + kappa |W - target|^2.

    The W- and b-subproblems solved together: b is eliminated by centring, W solves a Cholesky system of
    the centred p^T p plus the ridge. ``target`` None stands for 0. Returns W (n, m) and b (n,).
    """
    system, right = assemble_W(moments, W_old, mu_over_nu, prox, kappa, target)
    W = spd_solve(system, right)
    share = 1.0 / moments.count
    b = torch.addmv(moments.z_sum, W, moments.p_sum, beta=share, alpha=-share)
    return W, b if moments.centre is None else b.addmv_(W, moments.centre, alpha=-1.0)


def assemble_W(
    moments: Moments,
    W_old: Tensor,
    mu_over_nu: float,
    prox: float | Tensor,
    kappa: float | Tensor,
    target: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the system (m, m) and the right-hand side (n, m) of update_W_b_exact.

    Of K layers at once, sums and W have one more dimension in front, and prox and kappa are (K,).
    """
    sums = (moments.pp, moments.zp, moments.p_sum, moments.z_sum)
    arrays = (*sums, W_old, W_old if target is None else target)
    if not isinstance(prox, Tensor) and not isinstance(kappa, Tensor) and compiled.takes(*arrays):  # C: of one layer
        return compiled.assemble_W(sums, moments.count, W_old, target, prox, mu_over_nu + kappa, kappa)
    p_mean = moments.p_sum / moments.count
    system = moments.pp - p_mean[..., :, None] * moments.p_sum[..., None, :]
    right = moments.zp - moments.z_sum[..., :, None] * p_mean[..., None, :]
    # dead or equal columns leave p^T p singular: a proximal weight at rounding level keeps it definite
    trace = moments.pp.diagonal(dim1=-2, dim2=-1).sum(-1)
    weight = prox + 16.0 * torch.finfo(system.dtype).eps * (trace + 1.0)
    system.diagonal(dim1=-2, dim2=-1).add_((weight + (mu_over_nu + kappa))[..., None])
    right.addcmul_(W_old, weight[..., None, None])
    if target is not None:
        if isinstance(kappa, Tensor):
            right.addcmul_(target, kappa[..., None, None])
        else:
            right.add_(target, alpha=kappa)
    return system, right


def update_W_b_gradient(
    moments: Moments, W: Tensor, b: Tensor, nu: float, mu: float, kappa: float = 0.0, target: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return W and b after update_W_gradient_ and update_b_, from sums over nodes: ``moments`` are those of p and r.

    |p G^T|^2 = <G, G p^T p>, and the mean of r after the step follows from the sums of r and p.
    """
    G = mu * W - nu * moments.zp
    if kappa:
        G.add_(W if target is None else W - target, alpha=nu * kappa)
    G_squared = G.square().sum()
    theta = nu * (G * (G @ moments.pp)).sum() + (mu + nu * kappa) * G_squared
    step = torch.where(theta > 0, G_squared / theta, 0.0)
    return W - step * G, b + (moments.z_sum + step * (G @ moments.p_sum)) / moments.count


def update_q_(q: Tensor, p_next: Tensor, u: Tensor, f_z: Tensor, nu: float, rho: float) -> None:
    """Set q to (rho p_next + u + nu f(z)) / (rho + nu), the exact q-subproblem; all (V, n)."""
    torch.mul(p_next, rho, out=q)
    q.add_(u).add_(f_z, alpha=nu).div_(rho + nu)


def update_u_(u: Tensor, p_next: Tensor, q: Tensor, rho: float) -> None:
    """Dual ascent u <- u + rho (p_next - q) with p_next and q as transmitted; all (V, n)."""
    fused = updates_for(u, p_next, q)
    if fused is not None:
        fused.update_u_(u, p_next, q, rho)
    else:
        u.add_(p_next - q, alpha=rho)


def update_q_u_(
    q: Tensor, u: Tensor, p_next: Tensor, z: Tensor, activation: PiecewiseLinear, nu: float, rho: float
) -> None:
    """Do update_q_ with f(z) and then update_u_, in one pass over the data where that was built; all (V, n)."""
    fused = updates_for(q, u, p_next, z)
    if fused is not None:
        fused.update_q_u_(q, u, p_next, z, nu, rho, activation.negative_slope)
    else:
        update_q_(q, p_next, u, activation(z), nu, rho)
        update_u_(u, p_next, q, rho)


def dual(q: Tensor, z: Tensor, activation: PiecewiseLinear, nu: float, out: Tensor) -> Tensor:
    """Return u = nu (q - f(z)) in ``out``: what update_q_ and update_u_ leave, whatever u was before; all (V, n)."""
    return torch.sub(q, activation(z), out=out).mul_(nu)
