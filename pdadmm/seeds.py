"""Random generators that depend on what a draw is for, never on the rank that makes it."""

from __future__ import annotations

import torch

from pdadmm.quantize.noise import seed_words

__all__ = ["BOUNDARY", "MASK", "ORDER", "ROUNDING", "WEIGHTS", "generator"]

# What a draw is for: the second word of its key.
WEIGHTS, ORDER, MASK, ROUNDING, BOUNDARY = 1, 2, 3, 4, 5


def generator(seed: int, purpose: int, *place: int) -> torch.Generator:
    """Return a generator that depends on (seed, purpose, place), as (iteration, layer, block), alone."""
    high, low = seed_words((seed, purpose, *place))
    return torch.Generator().manual_seed(high << 31 | low >> 1)
