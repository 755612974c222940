"""What the layers of a Network hold, as numpy arrays by name; used in one process and on every rank."""

from __future__ import annotations

import numpy as np

__all__ = ["state_of"]


def state_of(network) -> dict[str, np.ndarray]:
    """Return copies of W, b, z, r of each layer, and p, q, u as the layer itself sees them.

    Names are ``LAYER.W``, and ``LAYER.below.p`` or ``LAYER.above.p`` for the links, layers counted from 0:
    ``l.above`` and ``l+1.below`` are the two sides of one boundary.
    """
    found = {}
    for layer in network.layers:
        W, b = layer.solver.weights() if layer.index == 0 else (layer.W, layer.b)
        found |= {f"{layer.index}.{name}": x for name, x in (("W", W), ("b", b), ("z", layer.z), ("r", layer.r))}
        for side in ("below", "above"):
            link = getattr(layer, side)
            if link is not None:
                found |= {f"{layer.index}.{side}.{name}": getattr(link, name) for name in "pqu"}
    return {name: x.detach().numpy().copy() for name, x in found.items()}
