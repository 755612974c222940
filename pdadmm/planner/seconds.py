"""Seconds of an iteration of pdADMM-G: products, factorisations and passes over memory at a machine's rates."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pdadmm.planner.job import Job
from pdadmm.planner.machine import Machine

if TYPE_CHECKING:  # plans are made without torch
    from pdadmm.quantize import Coder

__all__ = ["Layer", "layer_seconds"]


@dataclass(frozen=True)
class Layer:
    """Seconds of one layer's updates on one thread, in their order; ``moments`` and ``solve`` make the W, b update.

    ``receive_u``: what the upper side of a boundary between ranks does when q arrives; ``code_p``, ``code_q``:
    encoding of the layer's p and q; ``decode_p``, ``decode_q``: at the receiver.
    """

    prepare_p: float = 0.0
    update_p: float = 0.0
    moments: float = 0.0
    solve: float = 0.0
    update_z: float = 0.0
    update_q: float = 0.0
    receive_u: float = 0.0
    code_p: float = 0.0
    code_q: float = 0.0
    decode_p: float = 0.0
    decode_q: float = 0.0

    @property
    def total(self) -> float:
        """Seconds of an iteration that nobody else shares."""
        own = self.prepare_p + self.update_p + self.moments + self.solve + self.update_z + self.update_q
        return own + self.code_p + self.code_q


def layer_seconds(job: Job, layer: int, V: int, machine: Machine) -> Layer:
    """Return the seconds of ``layer`` (from 0) on V training nodes."""
    m, n, last = job.widths[layer], job.widths[layer + 1], layer == job.layers - 1
    sweep = functools.partial(machine.seconds_sweep, nbytes=job.itemsize * V * n)
    parts: dict[str, float] = {}
    if layer == 0:
        parts |= _first_layer(job, V, machine)
    elif job.exact(layer):
        parts |= _exact(job, V, m, n, machine)
    else:
        parts |= _gradient(job, V, m, n, machine)
    if last:
        parts["update_z"] = machine.newton * V * n + sweep(3)
    else:
        parts["update_z"] = sweep(5)
        parts["update_q"] = sweep(6) + (_momentum(sweep, lower=True) if job.accelerated else 0.0)
        coder = _coder(job, "q")
        if coder is not None:
            parts["update_q"] += sweep(6)  # f(z), q and u in passes of their own
            parts["code_q"] = parts["decode_q"] = machine.seconds_coding(V * n, _bits(coder))
    if layer > 0:
        below = functools.partial(machine.seconds_sweep, nbytes=job.itemsize * V * m)
        parts["receive_u"] = below(4) + (_momentum(below, lower=False) if job.accelerated else 0.0)
        coder = _coder(job, "p")
        if coder is not None:
            parts["code_p"] = parts["decode_p"] = machine.seconds_coding(V * m, _bits(coder))
    return Layer(**parts)


def _coder(job: Job, kind: str) -> Coder | None:
    return None if job.quantizer is None else job.quantizer.coder(kind)


def _bits(coder: Coder) -> int:
    """Return the bits of a number; 0 are counted as the fewest that were measured."""
    return 0 if coder.codec is None else coder.codec.grid.bits


def _momentum(sweep, lower: bool) -> float:
    """Passes of the extrapolation: its measure, q and u on both sides; z and r on the lower one."""
    return sweep(12) + (sweep(6) if lower else 0.0)


def _exact(job: Job, V: int, m: int, n: int, machine: Machine) -> dict[str, float]:
    """The p-update through (nu W^T W + rho I)^-1, the W, b update through moments and a Cholesky solve."""
    s, product = job.itemsize, machine.seconds_product
    small = 8 * machine.overhead + machine.seconds_sweep(6, s * m * m)
    summed = machine.seconds_sweep(1, s * V * (m + n)) + machine.seconds_sweep(2, s * V * m)  # p is centred before
    return {
        "prepare_p": product(m, n, m) + product(V, n, m) + machine.seconds_inverse(m) + small / 2,
        "update_p": machine.seconds_sweep(4, s * V * m) + product(V, m, m),
        "moments": product(m, V, m) + product(n, V, m) + summed,
        "solve": machine.seconds_solve(m, n) + small + product(V, m, n),
    }


def _gradient(job: Job, V: int, m: int, n: int, machine: Machine) -> dict[str, float]:
    """One majorised step in p and one in W, two products each; three in p where it is constrained to a grid."""
    s, product = job.itemsize, machine.seconds_product
    constrained = job.quantizer is not None and job.quantizer.constrained
    passes = machine.seconds_sweep(18 if constrained else 12, s * V * m) + machine.seconds_sweep(6, s * V * n)
    return {
        "update_p": (3 if constrained else 2) * product(V, n, m) + passes,
        "moments": product(n, V, m),
        "solve": product(V, m, n) + machine.seconds_sweep(11, s * V * n) + machine.seconds_sweep(8, s * n * m),
    }


def _first_layer(job: Job, V: int, machine: Machine) -> dict[str, float]:
    """The W, b update of layer 1 in its form."""
    n_0, n_1 = job.widths[:2]
    s, product = job.itemsize, machine.seconds_product
    sweep = functools.partial(machine.seconds_sweep, nbytes=s * V * n_1)
    if job.first.name == "kernel":
        return {"moments": sweep(1), "solve": sweep(9) + product(n_1, V, V)}
    if job.first.name == "gradient":
        return {"moments": sweep(3) + product(n_1, V, n_0), "solve": product(V, n_0, n_1) + sweep(15)}
    if job.first.name == "cg":
        weights = machine.seconds_sweep(18, s * n_0 * n_1)
        return {"moments": sweep(5) + product(n_1, V, n_0), "solve": product(V, n_0, n_1) + weights + sweep(18)}
    solve = product(n_1, n_0, n_0) + product(V, n_0, n_1) + sweep(3)
    return {"moments": sweep(1) + product(n_1, V, n_0), "solve": solve}
