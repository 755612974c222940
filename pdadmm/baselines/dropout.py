"""Dropout masks that do not depend on which rank holds a node."""

from __future__ import annotations

import torch
from torch import Tensor

from pdadmm.baselines.initial import MASK, generator

__all__ = ["BLOCK", "draw_mask"]

BLOCK = 256  # training nodes that share a draw


def draw_mask(seed: int, iteration: int, layer: int, rows: range, width: int, share: float) -> Tensor:
    """Return which of the activations (rows, width) behind ``layer`` stay: each does with probability 1 - share.

    The draw is keyed by (seed, iteration, layer, block of 256 training nodes), so any cut of the nodes into
    ranks sees the same mask.

    >>> whole = draw_mask(0, 1, 0, range(600), 5, 0.5)
    >>> bool((draw_mask(0, 1, 0, range(300, 500), 5, 0.5) == whole[300:500]).all())
    True
    """
    mask = torch.empty(len(rows), width, dtype=torch.bool)
    for block in range(rows.start // BLOCK, -(-rows.stop // BLOCK) if len(rows) else 0):
        start, stop = max(rows.start, block * BLOCK), min(rows.stop, (block + 1) * BLOCK)
        # drawn to the block's end, whoever holds it
        kept = torch.empty(BLOCK, width, dtype=torch.bool)
        kept.bernoulli_(1.0 - share, generator=generator(seed, MASK, iteration, layer, block))
        mask[start - rows.start : stop - rows.start] = kept[start - block * BLOCK : stop - block * BLOCK]
    return mask
