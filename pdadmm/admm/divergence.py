"""Words about a training that left the finite numbers."""

from __future__ import annotations

import math

from pdadmm.admm.layer import Penalties, Terms

__all__ = ["describe_divergence"]


def describe_divergence(
    iteration: int, found: list[tuple[int, int, str]], terms: list[Terms], penalties: Penalties
) -> str:
    """Say where the numbers stopped being finite.

    ``found``: (place in the order of updates, layer, variable) of all that is not finite; ``terms`` in layer order.
    """
    first = min(found, default=None)
    if first is not None:
        bad, which = first[1] + 1, f" ({first[2]} first)"
    else:  # the variables are finite, their squares are not
        sums = [sum(vars(term).values()) for term in terms]
        bad = next((n for n, value in enumerate(sums, 1) if not math.isfinite(value)), len(terms))
        which = ""
    return (
        f"iteration {iteration}: layer {bad} of {len(terms)} is not finite{which} with "
        f"nu = {penalties.nu:g}, rho = {penalties.rho:g}; raise rho, lower nu, or use dtype float64"
    )
