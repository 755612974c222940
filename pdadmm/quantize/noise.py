"""Counter-based random numbers: each is a pure function of (key, element index), never of a rank."""

from __future__ import annotations

from hashlib import blake2b

import torch
from torch import Tensor

from ..errors import InputError

__all__ = ["seed_words", "uniform"]

_MASK = 0xFFFFFFFF


def seed_words(key: tuple[int, ...]) -> tuple[int, int]:
    """Two 32-bit words from a tuple of integers such as (seed, iteration, layer, node block).

    Errors: ``InputError`` for an empty key (every message would round alike) or one not of 64-bit integers.

    >>> seed_words((0, 1, 2)) == seed_words((0, 1, 2)), seed_words((0, 1, 2)) == seed_words((0, 1, 3))
    (True, False)
    """
    allowed = "a non-empty tuple of 64-bit integers, as (seed, iteration, layer, node block)"
    try:
        packed = b"".join(int.to_bytes(part, 8, "little", signed=True) for part in key)
    except (TypeError, OverflowError):
        raise InputError("key", key, allowed) from None
    if not packed:
        raise InputError("key", key, allowed, "stochastic rounding needs a new key for every message")
    digest = blake2b(packed, digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def _mix(h: Tensor) -> Tensor:
    """A bijection of 32-bit words that lets every input bit reach every output bit ("lowbias32")."""
    h = ((h ^ (h >> 16)) * 0x7FEB352D) & _MASK
    h = ((h ^ (h >> 15)) * 0x846CA68B) & _MASK
    return h ^ (h >> 16)


def uniform(words: tuple[int, int], first: int, count: int, device: torch.device | None = None) -> Tensor:
    """Uniform float32 numbers in [0, 1), multiples of 2^-24, for the flat indices first .. first + count - 1.

    >>> bool((uniform((1, 2), 0, 9)[4:] == uniform((1, 2), 4, 5)).all())
    True
    """
    index = torch.arange(first, first + count, dtype=torch.int64, device=device)
    h = _mix((index & _MASK) ^ words[0])
    h = _mix((h + words[1] + (index >> 32) * 0x9E3779B9) & _MASK)
    return (h >> 8).float().mul_(2.0**-24)
