"""Dropout masks that do not depend on which rank holds a node."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pdadmm.baselines.initial import MASK, generator
from pdadmm.quantize.noise import seed_words

__all__ = ["BLOCK", "draw_mask", "drop_nodes", "dropped", "entry_mask", "node_bits", "node_mask"]

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
    z = mixed(key, nodes.astype(np.uint64)[:, None] * np.uint64(words), np.arange(words))
    return z.astype("<u8", copy=False).view(f"<u{bits // 8}")[:, :width]


def mixed(key: tuple[int, ...], first: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Return the words number ``first + place`` of SplitMix64 started from ``key``."""
    high, low = seed_words(key)
    z = first + (place.astype(np.uint64) + np.uint64(1))
    z *= np.uint64(0x9E3779B97F4A7C15)
    z += np.uint64(high << 32 | low)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z ^= z >> np.uint64(shift)
        z *= np.uint64(factor)
    z ^= z >> np.uint64(31)
    return z


def node_mask(
    key: tuple[int, ...], nodes: np.ndarray, width: int, share: float, dtype: torch.dtype
) -> Tensor | None:
    """Return what dropout multiplies h (nodes, width) with: 0, or 1 / (1 - share); None where ``share`` is 0.

    ``key`` is (seed, iteration, layer). The probability is rounded to a multiple of 2^-16.
    """
    if not share:
        return None
    mask = torch.empty(len(nodes), width, dtype=dtype)
    for rows, stays in _kept(key, nodes, width, share):
        mask[rows].copy_(stays).mul_(65536 / kept_of(share))
    return mask


def dropped(x: Tensor, key: tuple[int, ...], nodes: np.ndarray, share: float) -> tuple[Tensor, float]:
    """Return x (nodes, width) with its dropped numbers set to 0, and what the others are still to be multiplied with.

    In one sweep, for an x that is too large to hold a mask beside it; ``share`` is above 0.
    """
    out = torch.empty_like(x)
    for rows, stays in _kept(key, nodes, x.shape[1], share):
        torch.mul(x[rows], stays, out=out[rows])
    return out, 65536 / kept_of(share)


def _kept(key: tuple[int, ...], nodes: np.ndarray, width: int, share: float) -> Iterator[tuple[slice, Tensor]]:
    """Yield which numbers of (nodes, width) stay, in pieces of rows."""
    step = max(1, CHUNK // max(1, width))
    for start in range(0, len(nodes), step):
        bits = node_bits((key[0], MASK, *key[1:]), nodes[start : start + step], width)
        yield slice(start, start + step), torch.from_numpy(bits < kept_of(share))


def kept_of(share: float) -> int:
    """Return how many of 65536 numbers stay where ``share`` of them is dropped, at least one."""
    return max(1, round((1.0 - share) * 65536))


def entry_mask(key: tuple[int, ...], nodes: np.ndarray, columns: np.ndarray, width: int, share: float) -> np.ndarray:
    """Return the entries (node, column) of ``node_mask`` one by one, in float64: for sparse matrices.

    >>> whole = node_mask((0, 1, 0), np.arange(5), 7, 0.5, torch.float64)
    >>> entry_mask((0, 1, 0), np.array([4, 2]), np.array([6, 0]), 7, 0.5).tolist() == [whole[4, 6], whole[2, 0]]
    True
    """
    lanes, kept = 4, kept_of(share)
    words = mixed((key[0], MASK, *key[1:]), nodes.astype(np.uint64) * np.uint64(-(-width // lanes)), columns // lanes)
    found = words >> (columns % lanes * 16).astype(np.uint64) & np.uint64(0xFFFF)
    return (found < kept) * (65536 / kept)


def drop_nodes(h: Tensor, seed: int, iteration: int, layer: int, nodes: np.ndarray, share: float) -> Tensor:
    """Return h (nodes, width) with dropout: each number stays with probability 1 - share, divided by that.

    The mask is keyed by (seed, iteration, layer, global node number, column).

    >>> h = drop_nodes(torch.ones(100, 8), 0, 1, 0, np.arange(100), 0.5)
    >>> sorted(set(h.flatten().tolist())), bool(abs(h.mean() - 1) < 0.2)
    ([0.0, 2.0], True)
    """
    mask = node_mask((seed, iteration, layer), nodes, h.shape[1], share, h.dtype)
    return h if mask is None else h * mask
