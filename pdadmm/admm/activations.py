"""Activations: one row each in ACTIVATIONS, holding f and the exact minimiser of its z-subproblem."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pdadmm.errors import InputError
from pdadmm.kernels.fused import updates_for

__all__ = ["ACTIVATIONS", "PiecewiseLinear", "get_activation"]


@dataclass(frozen=True)
class PiecewiseLinear:
    """f(z) = z for z >= 0 and ``negative_slope`` z below; relu has slope 0, the identity slope 1, |z| slope -1.

    A row of your own: ``ACTIVATIONS["abs"] = PiecewiseLinear("abs", -1.0)``, then ``PDADMMG(activation="abs")``.

    >>> PiecewiseLinear("relu", 0.0)(torch.tensor([-1.0, 2.0])).tolist()
    [0.0, 2.0]
    """

    name: str
    negative_slope: float

    @property
    def idempotent(self) -> bool:
        """Whether f(f(z)) = f(z), so that a layer with W = I, b = 0 behind f changes nothing."""
        return self.negative_slope <= 0.0 or self.negative_slope == 1.0

    def __call__(self, z: Tensor) -> Tensor:
        if self.negative_slope == 0.0:
            return z.clamp_min(0.0)
        if self.negative_slope == 1.0:
            return z.clone()
        return torch.where(z >= 0, z, self.negative_slope * z)

    def minimise(self, a: Tensor, q: Tensor, z_old: Tensor, prox_z: float) -> Tensor:
        """Return argmin_z (z-a)^2 + (q-f(z))^2 + prox_z (z-z_old)^2, element by element.

        The z-subproblem of pdADMM-G (Wang et al. 2022) divided by nu/2; ``prox_z`` = 1 is the paper's.
        Each linear piece of f has one candidate, clipped to the piece; the lower objective wins.
        Shapes: all (V, n_l).
        """
        positive = ((a + q + prox_z * z_old) / (2.0 + prox_z)).clamp_min(0.0)
        slope = self.negative_slope
        negative = (a + slope * q + prox_z * z_old) / (1.0 + slope * slope + prox_z)
        if slope == 1.0:  # one piece: no clipping, no comparison
            return negative
        negative = negative.clamp_max(0.0)

        def objective(z: Tensor, s: float) -> Tensor:
            return (z - a).square() + (q - s * z).square() + prox_z * (z - z_old).square()

        return torch.where(objective(positive, 1.0) < objective(negative, slope), positive, negative)

    def squared_distance(self, q: Tensor, z: Tensor) -> float:
        """Return |q - f(z)|^2, summed in float64; both (V, n)."""
        fused = updates_for(q, z)
        if fused is not None:
            return fused.distance(q, z, self.negative_slope)
        return float((q.double() - self(z)).square().sum())

    def update_z_(self, z: Tensor, r: Tensor, q: Tensor, prox_z: float) -> None:
        """Set z to ``minimise(a, q, z, prox_z)`` and r, which holds a, to z - a: one pass where built; all (V, n)."""
        fused = updates_for(z, r, q)
        if fused is not None:
            fused.update_z_(z, r, r, q, prox_z, self.negative_slope)
        else:
            z.copy_(self.minimise(r, q, z, prox_z))
            torch.sub(z, r, out=r)


ACTIVATIONS = {
    row.name: row
    for row in (
        PiecewiseLinear("relu", 0.0),
        PiecewiseLinear("leaky_relu", 0.01),
        PiecewiseLinear("identity", 1.0),
    )
}


def get_activation(name: str) -> PiecewiseLinear:
    """Return the row of ACTIVATIONS called ``name``; InputError names the known ones."""
    if name not in ACTIVATIONS:
        raise InputError("activation", name, "one of " + ", ".join(ACTIVATIONS))
    return ACTIVATIONS[name]
