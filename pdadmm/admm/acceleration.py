"""Nesterov extrapolation of the outer loop, one boundary at a time."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pdadmm.admm.shard import WHOLE, Shard
from pdadmm.kernels.fused import updates_for

__all__ = ["ACCELERATIONS", "Momentum", "extrapolate_", "extrapolate_q_", "extrapolate_z_", "movement", "next_step"]

# Name -> whether stage number k (from 0) is accelerated.
ACCELERATIONS = {
    "none": lambda stage: False,
    "first-stage": lambda stage: stage == 0,
    "all-stages": lambda stage: True,
}


def next_step(t: float) -> tuple[float, float]:
    """Return beta_k and t_{k+1} of FISTA's sequence after t_k.

    >>> next_step(1.0)[0]
    0.0
    """
    following = 0.5 * (1.0 + math.sqrt(1.0 + 4.0 * t**2))
    return (t - 1.0) / following, following


def movement(p: Tensor, q: Tensor, used: Tensor) -> float:
    """Return |p - q|^2 + |q - used|^2, summed in float64; all (V, n)."""
    fused = updates_for(p, q, used)
    if fused is not None:
        return fused.movement(p, q, used)
    return float((p.double() - q).square().sum() + (q.double() - used).square().sum())


def extrapolate_(x: Tensor, last: Tensor, beta: float) -> None:
    """Set x to x + beta (x - last), and ``last`` to the old x; both (V, n).

    Three roundings, in this order: the fused forms have the same bits.
    """
    fused = updates_for(x, last)
    if fused is not None:
        fused.extrapolate_(x, last, beta)
        return
    step = (x - last).mul_(beta)
    last.copy_(x)
    x.add_(step)


def extrapolate_q_(used: Tensor, q: Tensor, last: Tensor, beta: float) -> None:
    """Set ``used`` to q + beta (q - last), and ``last`` to q, which stays; all (V, n)."""
    fused = updates_for(used, q, last)
    if fused is not None:
        fused.extrapolate_q_(used, q, last, beta)
        return
    torch.sub(q, last, out=used).mul_(beta).add_(q)
    last.copy_(q)


def extrapolate_z_(z: Tensor, last: Tensor, r: Tensor, beta: float) -> None:
    """Do ``extrapolate_`` of z and let r = z - a move along; all (V, n)."""
    fused = updates_for(z, last, r)
    if fused is not None:
        fused.extrapolate_z_(z, last, r, beta)
        return
    r.sub_(z)
    extrapolate_(z, last, beta)
    r.add_(z)


class Momentum:
    """Extrapolates q_l and u_l, and z_l on the lower side: x + beta_k (x - x_last), with x as it was updated.

    beta_k = (t_k - 1) / t_{k+1}, t_{k+1} = (1 + sqrt(1 + 4 t_k^2)) / 2 (Beck and Teboulle 2009, FISTA), started
    again when |p - q|^2 + |q - q_used|^2 does not fall (O'Donoghue and Candes 2015; Goldstein et al. 2014 for
    ADMM). Both sides of a boundary see the same p, q and u, so they find the same beta without a message; shards
    add up what they see, each side for itself.

    ``h`` is q of the stage's start, ``coded`` says whether the lower side's own q differs from the one sent.
    After ``step``, ``q`` (and ``own_q``) are what the next updates see; the u given there is changed in place.
    """

    def __init__(self, h: Tensor, coded: bool, shard: Shard = WHOLE) -> None:
        self.shard = shard
        self.q = h.clone()
        self.own_q = h.clone() if coded else self.q
        self.last_q, self.last_u = h.clone(), torch.zeros_like(h)
        self.last_z: Tensor | None = None
        self.t, self.measure = 1.0, math.inf

    def step(self, p: Tensor, q: Tensor, u: Tensor, restart: bool = False) -> None:
        """Take p, q and u of this iteration, as both sides know them, and extrapolate q and u."""
        measure, restarts = self.shard.sums(movement(p, q, self.q), restart)
        restart = restarts > 0
        if restart or not measure < self.measure:
            self.t = 1.0
        self.measure = math.inf if restart else measure
        self.beta, self.t = next_step(self.t)
        extrapolate_q_(self.q, q, self.last_q, self.beta)
        extrapolate_(u, self.last_u, self.beta)

    def step_lower(self, own_q: Tensor, q: Tensor, z: Tensor, r: Tensor) -> None:
        """Extrapolate what the lower side alone has: its own q, and z with its residual r; after ``step``."""
        if self.own_q is not self.q:
            torch.sub(self.q, q, out=self.own_q).add_(own_q)
        if self.last_z is None:
            self.last_z = z.clone()
        extrapolate_z_(z, self.last_z, r, self.beta)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs between two steps; on the upper side own_q and last_z mean nothing."""
        names = ("q", "own_q", "last_q", "last_u", "last_z")
        arrays = {name: getattr(self, name) for name in names}
        if self.own_q is self.q:
            del arrays["own_q"]
        return {"t": self.t, "measure": self.measure} | arrays

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from the lower side's ``state``."""
        for name, value in state.items():
            setattr(self, name, value)
        if "own_q" not in state:
            self.own_q = self.q
