"""What goes with a message so that ranks which fell out of step end with words, not with wrong numbers.

p and q carry a header of their own (pdadmm.admm.channel); these are the others: single arrays and collectives.
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Sequence

import numpy

__all__ = ["CHECKSUMS", "ENVELOPE_BYTES", "Envelope", "check_arrays", "check_call", "checksums"]

CHECKSUMS = "PDADMM_CHECKSUMS"  # environment variable; 1: p and q carry a hash, sums and all-to-alls are agreed first
KINDS = ("init", "evaluation", "migration", "control", "other")
TYPES = {char.encode(): numpy.dtype(char).name for char in "?bBhHiIlLefd"}
ENVELOPE = struct.Struct("<BcHIQQ")  # kind, type, number of axes, number of the message, shape
ENVELOPE_BYTES = ENVELOPE.size
REMEDY = "do all ranks run the same program, settings and data?"


class Envelope:
    """Kind, type, shape and number of an array that one rank sends another: ``ENVELOPE_BYTES`` ahead of it.

    >>> sent = Envelope("init", numpy.zeros((3, 2), "f4"), 1)
    >>> sent.check(sent.packed, 0), Envelope("init", numpy.zeros((2, 3), "f4"), 1).packed == sent.packed
    (None, False)
    """

    def __init__(self, kind: str, array: numpy.ndarray, number: int) -> None:
        shape = (*array.shape, 0, 0)[:2]
        name = kind if kind in KINDS else "other"
        self.packed = ENVELOPE.pack(
            KINDS.index(name), array.dtype.char.encode(), array.ndim, number & 0xFFFFFFFF, *shape
        )

    def check(self, found: bytes, peer: int) -> None:
        """Raise RuntimeError where ``found``, which ``peer`` sent, is not this envelope."""
        if found != self.packed:
            told = f"rank {peer} sent {describe(found)}, where {describe(self.packed)} was due"
            raise RuntimeError(f"message out of order: {told}; {REMEDY}")


def checksums() -> bool:
    """Whether every message is checked, at a cost."""
    return os.environ.get(CHECKSUMS) == "1"


def check_arrays(told: Sequence[tuple[str, str, str, Sequence[int], Sequence[int]]]) -> None:
    """Raise RuntimeError, on all ranks alike, where they are not about to do one sum, or one all-to-all, together.

    ``told`` has what each rank is about to do: operation, kind, type, and how many numbers go to every rank and come
    from it (one number for all of them in a sum).

    >>> check_arrays([("sum", "gradients", "f", [3], [3])] * 2)
    """
    for (sender, theirs), (receiver, own) in itertools.product(enumerate(told), repeat=2):
        sent, due = theirs[3][receiver % len(theirs[3])], own[4][sender % len(own[4])]
        if theirs[:3] != own[:3] or sent != due:
            parts = (
                f"rank {rank} is in {call[0]} of kind {call[1]}, {count} numbers of type {numpy.dtype(call[2]).name}"
                for rank, call, count in ((sender, theirs, sent), (receiver, own, due))
            )
            raise RuntimeError(f"ranks out of step: {', '.join(parts)}; {REMEDY}")


def describe(packed: bytes) -> str:
    """Say what an envelope holds."""
    kind, char, axes, number, *shape = ENVELOPE.unpack(packed)
    name = KINDS[kind] if kind < len(KINDS) else f"kind {kind}"
    return f"{name} message {number}, {TYPES.get(char, 'unknown type')} of shape {tuple(shape[: min(axes, 2)])}"


def check_call(found: tuple[str, str, int], peer: int, due: tuple[str, str, int]) -> None:
    """Raise RuntimeError where ``peer`` is in another collective call (operation, kind, number) than this rank.

    >>> check_call(("bcast", "control", 3), 1, ("bcast", "control", 3))
    """
    if found != due:
        told = [f"{operation} {number} of kind {kind}" for operation, kind, number in (found, due)]
        raise RuntimeError(f"ranks out of step: rank {peer} is in {told[0]}, this one in {told[1]}; {REMEDY}")
