"""Losses R(z_L; y), summed over the training nodes: value and exact z_L-update, one row each in LOSSES."""

from __future__ import annotations

import torch
from torch import Tensor

from pdadmm.errors import InputError
from pdadmm.kernels.fused import updates_for

__all__ = ["LOSSES", "CrossEntropy", "SquaredError", "get_loss", "softmax_newton"]

MAX_NEWTON_STEPS = 100


class CrossEntropy:
    """R(z; y) = sum_i [ logsumexp(z_i) - z_i[y_i] ], the softmax cross-entropy."""

    name = "cross_entropy"

    def value(self, z: Tensor, y: Tensor) -> float:
        """Return R(z; y) in float64; z (V, C), y (V,) class numbers."""
        return float(torch.nn.functional.cross_entropy(z.double(), y, reduction="sum"))

    def minimise(self, a: Tensor, y: Tensor, nu: float, z: Tensor) -> Tensor:
        """Return argmin_z R(z; y) + nu/2 |z - a|^2, started from ``z``."""
        start = z.clone()
        fused = updates_for(start, a)
        if fused is not None and fused.softmax_newton_(start, a, y, nu):
            return start
        return softmax_newton(a, y, nu, z)


class SquaredError:
    """R(z; y) = 1/2 sum_i |z_i - onehot(y_i)|^2."""

    name = "squared_error"

    def value(self, z: Tensor, y: Tensor) -> float:
        """Return R(z; y) in float64; z (V, C), y (V,) class numbers."""
        target = torch.nn.functional.one_hot(y, z.shape[1]).double()
        return float(0.5 * (z.double() - target).square().sum())

    def minimise(self, a: Tensor, y: Tensor, nu: float, z: Tensor) -> Tensor:
        """Return argmin_z R(z; y) + nu/2 |z - a|^2 in closed form: (onehot(y) + nu a) / (1 + nu)."""
        target = torch.nn.functional.one_hot(y, a.shape[1]).to(a.dtype)
        return (target + nu * a) / (1.0 + nu)


def softmax_newton(a: Tensor, y: Tensor, nu: float, z: Tensor) -> Tensor:
    """Minimise logsumexp(z_i) - z_i[y_i] + nu/2 |z_i - a_i|^2 for every node i by damped Newton steps.

    The Hessian diag(pi + nu) - pi pi^T is inverted by Sherman-Morrison, its denominator
    1 - sum pi^2/(pi+nu) written without cancellation as nu sum pi/(pi+nu). Undamped steps D cycle for small
    nu; scaled per node by log(1+d)/d, d = max(D) - min(D), they always descend, but slowly from far away. So
    where d > 1 the shares 1, 1/4, 1/16, .. of the step are tried first, and the first one taken that descends
    by a tenth of what its slope promises. Nodes leave the iteration once their gradient is at rounding level.
    Shapes: a, z (V, C), y (V,); z is the start.
    """
    z = z.clone()
    active = torch.arange(len(z), device=z.device)
    tolerance = 4.0 * torch.finfo(z.dtype).eps
    for _ in range(MAX_NEWTON_STEPS):
        z_i, a_i, y_i = z[active], a[active], y[active]
        pi = torch.softmax(z_i, dim=1)
        gradient = pi + nu * (z_i - a_i)
        gradient[torch.arange(len(active), device=z.device), y_i] -= 1.0
        # pi moves by at most a quarter of a move of z: that is the rounding of the gradient
        scale = 1.0 + (nu + 0.25) * (z_i.abs() + a_i.abs()).amax(dim=1)
        unsolved = ~(gradient.abs().amax(dim=1) <= tolerance * scale)  # NaN stays, and shows
        if not bool(unsolved.any()):
            break
        active, z_i, a_i, y_i = active[unsolved], z_i[unsolved], a_i[unsolved], y_i[unsolved]
        pi, gradient = pi[unsolved], gradient[unsolved]
        weight = 1.0 / (pi + nu)
        share = pi * weight
        correction = (share * gradient).sum(1, keepdim=True) / (nu * share.sum(1, keepdim=True))
        step = weight * gradient + share * correction
        spread = step.amax(1, keepdim=True) - step.amin(1, keepdim=True)
        damping = torch.where(spread > 1e-6, torch.log1p(spread) / spread.clamp_min(1e-30), 1.0)
        promised = (gradient * step).sum(1)
        size = damping.squeeze(1)
        open_, share_tried, now = spread.squeeze(1) > 1.0, 1.0, _objective(z_i, a_i, y_i, nu)
        while bool((open_ & (share_tried > size)).any()):
            gained = now - _objective(z_i - share_tried * step, a_i, y_i, nu)
            taken = open_ & (share_tried > size) & (gained >= 0.1 * share_tried * promised)
            size = torch.where(taken, share_tried, size)
            open_, share_tried = open_ & ~taken, share_tried / 4
        z[active] = z_i - size.unsqueeze(1) * step
    return z


def _objective(z: Tensor, a: Tensor, y: Tensor, nu: float) -> Tensor:
    """Return logsumexp(z_i) - z_i[y_i] + nu/2 |z_i - a_i|^2 of every node."""
    own = z.gather(1, y.unsqueeze(1)).squeeze(1)
    return torch.logsumexp(z, 1) - own + 0.5 * nu * (z - a).square().sum(1)


LOSSES = {row.name: row for row in (CrossEntropy(), SquaredError())}


def get_loss(name: str) -> CrossEntropy | SquaredError:
    """Return the row of LOSSES called ``name``; InputError names the known ones."""
    if name not in LOSSES:
        raise InputError("loss", name, "one of " + ", ".join(LOSSES))
    return LOSSES[name]
