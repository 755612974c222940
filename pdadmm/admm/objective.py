"""Objective, augmented Lagrangian and residuals of the whole network from what its layers and shards add."""

from __future__ import annotations

import functools
import operator

from pdadmm.admm.layer import Penalties, Terms

__all__ = ["combine", "over_shards"]


def over_shards(parts: list[list[Terms]], shards: int) -> list[Terms]:
    """Return the layers' terms in layer order from those of every rank, added in the order of the shards."""
    groups = (parts[first : first + shards] for first in range(0, len(parts), shards))
    return [functools.reduce(operator.add, same) for group in groups for same in zip(*group, strict=True)]


def combine(terms: list[Terms], penalties: Penalties) -> dict[str, float]:
    """Return objective, augmented Lagrangian and squared residuals from the layers' terms, in layer order."""

    def total(name: str) -> float:
        return sum(getattr(term, name) for term in terms)

    linear, activation, link = total("linear"), total("activation"), total("link")
    objective = total("risk") + 0.5 * penalties.nu * (linear + activation) + total("ridge")
    return {
        "objective": objective,
        "lagrangian": objective + total("dual") + 0.5 * penalties.rho * link,
        "risk": total("risk"),
        "residual_link": link,
        "residual_linear": linear,
        "residual_activation": activation,
        "q_squared": total("q_squared"),
        "rho": penalties.rho,
    }
