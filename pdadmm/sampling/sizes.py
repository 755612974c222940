"""How large the buffer of a training from disk is: what the memory limit and the share asked for leave room for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pdadmm.disk.buffer import Cut, longest_stretch
from pdadmm.errors import InputError
from pdadmm.sampling.inference import BLOCK_NUMBERS
from pdadmm.sampling.neighbours import ENTRIES

__all__ = ["BufferPlan", "Needs", "plan_buffer"]

SLOTS = 32  # partitions that the buffer has room for
AHEAD = 8  # one slot in so many is for what is read ahead
LINE = 16  # columns of a slice, at the least
LEAST_SHARE = 1 / 128  # of the graph in the buffer: with less hardly any neighbour is there
ALLOWANCE = 64 << 20  # bytes for what no formula knows: the allocator's leftovers, code pages, BLAS
ENTRY_BYTES = 80  # of an entry of S while it is looked at


@dataclass(frozen=True)
class Needs:
    """What decides: nodes V, training nodes N, widths [n_0, .., n_L], matrices side by side (``copies``), fanouts,
    ``batch_size``, bytes of a number, and ``files``: for every file (bytes of a row, where each node's rows begin or
    None for one row a node)."""

    nodes: int
    train: int
    widths: Sequence[int]
    copies: int
    fanouts: Sequence[int]
    batch_size: int | None
    number_bytes: int
    files: Sequence[tuple[int, np.ndarray | None]]

    def fixed(self) -> int:
        """Bytes that do not depend on the buffer: 48 a node, 32 a training node, 16 weight matrices, 64 MiB."""
        weights = self.copies * sum(m * n for m, n in itertools.pairwise(self.widths))
        return ALLOWANCE + 48 * self.nodes + 32 * self.train + 16 * weights * self.number_bytes

    def batch(self, buffered: int) -> int:
        """Bytes of a step's largest batch where ``buffered`` nodes are at hand: layer l's inputs are at most
        (1 + fanout) times its outputs; 4 copies of the features, 12 of each product, 48 bytes an entry."""
        outputs = min(self.batch_size or self.train, self.train)
        total, layers = ENTRIES * ENTRY_BYTES, list(zip(self.fanouts, itertools.pairwise(self.widths)))
        for number in range(len(layers) - 1, -1, -1):
            fanout, (m, n) = layers[number]
            inputs = min(buffered, outputs * (1 + fanout))
            wide = min(inputs * m, self.most_numbers(buffered)) if number == 0 else inputs * m
            total += self.number_bytes * (4 * wide + 12 * inputs * n) + 48 * outputs * (1 + fanout)
            outputs = inputs
        return total

    def most_numbers(self, buffered: int) -> int:
        """Feature numbers that ``buffered`` nodes have at the most, indices counted as three more."""
        starts = self.files[1][1]
        if starts is None:
            return buffered * self.widths[0]
        return 4 * min(int(starts[-1]), buffered * int(np.diff(starts).max(initial=0)))

    def slot(self, cut: Cut) -> int:
        """Bytes of one slot: of every file as much as the largest partition has."""
        return sum(longest_stretch(cut, starts) * size for size, starts in self.files)

    def evaluation(self, width: int) -> int:
        """Bytes of exact inference with ``width`` columns in memory."""
        blocks = (4 * self.number_bytes + ENTRY_BYTES // 4) * BLOCK_NUMBERS
        return self.nodes * width * self.number_bytes + blocks


@dataclass(frozen=True)
class BufferPlan:
    """The graph in ``cut.count`` partitions; ``held`` of them are trained on, ``swapped`` read ahead meanwhile, all
    in ``slots``; exact inference with ``width`` columns at a time; ``memory`` is what all takes, in bytes."""

    cut: Cut
    slots: int
    held: int
    swapped: int
    width: int
    memory: int


def plan_buffer(needs: Needs, memory: int, share: float) -> BufferPlan:
    """Return the plan with the largest buffer that fits ``memory`` and takes at most ``share`` of the files' bytes.

    Raises InputError where none does, with the least that would do.
    """
    least, most = math.inf, needs.copies * max(needs.widths[1:])
    part = share
    while part >= LEAST_SHARE:
        cut, slots = _cut(needs, part)
        part *= 0.9
        if slots < min(2, cut.count):
            continue
        taken = needs.fixed() + slots * needs.slot(cut)
        needed = max(needs.batch(slots * cut.rows), needs.evaluation(min(LINE, most)))
        least = min(least, taken + needed)
        if taken + needed <= memory:
            width = next(w for w in range(most, 0, -1) if w <= LINE or taken + needs.evaluation(w) <= memory)
            swapped = 0 if slots == cut.count else max(1, slots // AHEAD)
            needed = max(needed, needs.evaluation(width))
            return BufferPlan(cut, slots, slots - swapped, swapped, width, taken + needed)
    if least == math.inf:
        remedy = "give a larger one, or leave it out"
        raise InputError("buffer_share", share, "enough for two partitions of this graph", remedy)
    remedy = f"give at least {-(-int(least) // 2**20)}MiB, or smaller fanouts or batches"
    raise InputError("memory", f"{memory // 2**20}MiB", "enough for this network and this graph", remedy)


def _cut(needs: Needs, share: float) -> tuple[Cut, int]:
    """Return partitions, and how many of them, 32 or fewer, have slots that take ``share`` of the files' bytes."""
    count = min(needs.nodes, math.ceil(SLOTS / share))
    cut = Cut(needs.nodes, -(-needs.nodes // count))
    if share == 1.0:
        return cut, cut.count
    total = sum(int(cut.sizes(starts).sum()) * size for size, starts in needs.files)
    return cut, min(SLOTS, cut.count, int(share * total * (1 + 1e-12) / needs.slot(cut)))
