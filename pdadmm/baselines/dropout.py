"""Dropout masks that do not depend on which rank holds a node."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pdadmm.baselines.initial import MASK, generator
from pdadmm.quantize.noise import seed_words

__all__ = ["BLOCK", "draw_mask", "drop_nodes", "node_bits"]

BLOCK = 256  # training nodes that share a draw
CHUNK = 1 << 17  # random numbers made at a time: they stay in cache, which is three times as fast


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


def node_bits(key: tuple[int, ...], nodes: np.ndarray, width: int, bits: int = 16) -> np.ndarray:
    """Return random numbers of 16 or 32 bits, (nodes, width), each a function of (key, node, column) alone.

    ``nodes`` are global node numbers in any order, so every rank, halo and sampled block sees the same numbers.
    Four, or two, columns share one word of SplitMix64 (Steele, Lea, Flood 2014), about 2 ns a number.

    >>> whole = node_bits((0, 1), np.arange(9), 5)
    >>> bool((node_bits((0, 1), np.array([7, 2]), 5) == whole[[7, 2]]).all())
    True
    """
    lanes = 64 // bits
    words = -(-width // lanes)
    high, low = seed_words(key)
    z = nodes.astype(np.uint64)[:, None] * np.uint64(words) + np.arange(1, words + 1, dtype=np.uint64)
    z *= np.uint64(0x9E3779B97F4A7C15)
    z += np.uint64(high << 32 | low)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z ^= z >> np.uint64(shift)
        z *= np.uint64(factor)
    z ^= z >> np.uint64(31)
    return z.view(np.uint16 if bits == 16 else np.uint32)[:, :width]


def drop_nodes(h: Tensor, seed: int, iteration: int, layer: int, nodes: np.ndarray, share: float) -> Tensor:
    """Return h (nodes, width) with dropout: each number stays with probability 1 - share, divided by that.

    The mask is keyed by (seed, iteration, layer, global node number, column); the probability is rounded to a
    multiple of 2^-16. ``share`` 0 returns h itself.

    >>> h = drop_nodes(torch.ones(100, 8), 0, 1, 0, np.arange(100), 0.5)
    >>> sorted(set(h.flatten().tolist())), bool(abs(h.mean() - 1) < 0.2)
    ([0.0, 2.0], True)
    """
    if not share:
        return h
    kept = max(1, round((1.0 - share) * 65536))
    key, mask = (seed, MASK, iteration, layer), torch.empty(h.shape, dtype=h.dtype)
    step = max(1, CHUNK // max(1, h.shape[1]))
    for start in range(0, len(nodes), step):
        stays = node_bits(key, nodes[start : start + step], h.shape[1]) < kept
        mask[start : start + step].copy_(torch.from_numpy(stays)).mul_(65536 / kept)
    return h * mask
