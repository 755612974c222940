"""What a training from disk holds in memory: what the limit and the share asked for leave room for."""

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

__all__ = ["BufferPlan", "Needs", "StreamPlan", "plan_buffer", "plan_stream"]

SLOTS = 32  # partitions that the buffer has room for
AHEAD = 8  # one slot in so many is for what is read ahead
LINE = 16  # columns of a slice, at the least
LEAST_SHARE = 1 / 128  # of the graph in the buffer: with less hardly any neighbour is there
ALLOWANCE = 64 << 20  # bytes for what no formula knows: the allocator's leftovers, code pages, BLAS
ENTRY_BYTES = 80  # of an entry of S while it is looked at
SAMPLED_BYTES = 64  # of an entry of a sampled block, what makes it included
STAGE_BYTES = 1 << 20  # for rows with gaps between them, at the most
HALF_BYTES = 64 << 20  # of features that are read together, at the most
CHUNK_BYTES = 2 << 20  # of features that are multiplied together, at the most


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

    def batch(self, buffered: int, features: bool = True) -> int:
        """Bytes of a step's largest batch where ``buffered`` nodes are at hand: layer l's inputs are at most
        (1 + fanout) times its outputs; 4 copies of the features if they are gathered, 12 of each product, 48 bytes an
        entry."""
        outputs = min(self.batch_size or self.train, self.train)
        total, layers = ENTRIES * ENTRY_BYTES, list(zip(self.fanouts, itertools.pairwise(self.widths)))
        for number in range(len(layers) - 1, -1, -1):
            fanout, (m, n) = layers[number]
            inputs = min(buffered, outputs * (1 + fanout))
            wide = inputs * m
            if number == 0:
                wide = min(wide, self.most_numbers(buffered)) if features else 0
            total += self.number_bytes * (4 * wide + 12 * inputs * n) + 48 * outputs * (1 + fanout)
            outputs = inputs
        return total

    def most_numbers(self, buffered: int) -> int:
        """Feature numbers that ``buffered`` nodes have at the most, indices counted as three more."""
        starts = self.files[1][1]
        if starts is None:
            return buffered * self.widths[0]
        return 4 * min(int(starts[-1]), buffered * int(np.diff(starts).max(initial=0)))

    def total(self) -> int:
        """Bytes of the files."""
        return sum(size * (self.nodes if starts is None else int(starts[-1])) for size, starts in self.files)

    def sampled(self, outputs: int, most: int) -> int:
        """Entries of the sampled blocks of so many training nodes, their diagonals included, where a layer has at most
        ``most`` nodes."""
        entries = 0
        for fanout in reversed(self.fanouts):
            entries += outputs * (1 + fanout)
            outputs = min(most, outputs * (1 + fanout))
        return entries

    def longest(self) -> tuple[int, int]:
        """The most entries of the adjacency, and the most rows of the feature files, that a node has."""
        degree, row = (1 if starts is None else int(np.diff(starts).max(initial=1)) for _, starts in self.files[:2])
        return degree, row

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


@dataclass(frozen=True)
class StreamPlan:
    """Rows of the files that are in memory: ``entries`` of the adjacency, twice; of the features ``cache``, and
    ``numbers`` twice, of which ``chunk`` are multiplied together; ``stage`` bytes to read them by. ``window`` steps are
    drawn together; exact inference with ``width`` columns at a time; ``memory`` is what all takes, in bytes."""

    entries: int
    cache: int
    numbers: int
    chunk: int
    stage: int
    window: int
    width: int
    memory: int


def plan_buffer(needs: Needs, memory: int, share: float) -> BufferPlan:
    """Return the plan with the largest buffer that fits ``memory`` and takes at most ``share`` of the files' bytes.

    Raises InputError where none does, with the least that would do.
    """
    least, part = math.inf, share
    while part >= LEAST_SHARE:
        plan, needed = _buffer(needs, memory, part)
        if plan is not None:
            return plan
        least, part = min(least, needed), 0.9 * part
    if least == math.inf:
        remedy = "give a larger one, or leave it out"
        raise InputError("buffer_share", share, "enough for two partitions of this graph", remedy)
    raise _too_little(memory, least)


def plan_stream(needs: Needs, memory: int, share: float) -> BufferPlan | StreamPlan:
    """Return the plan that holds most, fits ``memory`` and takes at most ``share`` of the files' bytes: a buffer of the
    whole graph where all fits.

    Raises InputError where none does, with the least that would do.
    """
    whole = _buffer(needs, memory, 1.0)[0] if share == 1.0 else None
    if whole is not None:
        return whole
    least, part = math.inf, share
    while (rooms := _rooms(needs, part)) is not None:
        plan, needed = _stream(needs, memory, part, *rooms)
        if plan is not None:
            return plan
        least, part = min(least, needed), 0.9 * part
    if least == math.inf:
        longest = [size * rows for (size, _), rows in zip(needs.files, needs.longest())]
        enough = [p / 1000 for p in range(1, 1000) if _rooms(needs, p / 1000) is not None]
        remedy = f"give at least {enough[0]}, or leave it out" if enough else "leave it out"
        allowed = f"enough for the largest rows, of {longest[0]} and {longest[1]} bytes"
        raise InputError("buffer_share", share, allowed, remedy)
    raise _too_little(memory, least)


def _too_little(memory: int, least: float) -> InputError:
    remedy = f"give at least {-(-int(least) // 2**20)}MiB, or smaller fanouts or batches"
    return InputError("memory", f"{memory // 2**20}MiB", "enough for this network and this graph", remedy)


def _buffer(needs: Needs, memory: int, part: float) -> tuple[BufferPlan | None, float]:
    """Return the plan for a buffer of a part of the files' bytes, or None, and the least memory that it needs."""
    cut, slots = _cut(needs, part)
    if slots < min(2, cut.count):
        return None, math.inf
    taken, batch = needs.fixed() + slots * needs.slot(cut), needs.batch(slots * cut.rows)
    width, whole = _width(needs, memory, taken, batch)
    swapped = 0 if slots == cut.count else max(1, slots // AHEAD)
    return BufferPlan(cut, slots, slots - swapped, swapped, width, whole) if width else None, whole


def _rooms(needs: Needs, part: float) -> tuple[int, int, int, int, int] | None:
    """Return what a StreamPlan has of each kind where all takes a part of the files' bytes; None where it is too small.

    Of 16 parts 2 are for the adjacency, 1 to read by, 4 for features on their way, 2 for a chunk of them, as they are
    and with dropout, and what is left for those that stay.
    """
    room = int(part * needs.total() * (1 + 1e-12))
    (entry, indptr), *features = needs.files
    assert indptr is not None
    row, (degree, longest) = sum(size for size, _ in features), needs.longest()
    stage = min(STAGE_BYTES, room // 16)
    entries = max(degree, min(ENTRIES, int(indptr[-1]), room // 16 // entry))
    numbers = max(longest, min(HALF_BYTES, room // 8) // row)
    chunk = max(longest, min(CHUNK_BYTES, room // 16) // row)
    cache = (room - stage - 2 * entries * entry - (2 * numbers + 2 * chunk) * row) // row
    return None if cache < 0 else (entries, cache, numbers, chunk, stage)


def _stream(
    needs: Needs, memory: int, part: float, entries: int, cache: int, numbers: int, chunk: int, stage: int
) -> tuple[StreamPlan | None, float]:
    """Return the plan with these rooms, or None, and the least memory that it needs."""
    size, room = min(needs.batch_size or needs.train, needs.train), int(part * needs.total())
    sampled = SAMPLED_BYTES * needs.sampled(size, needs.nodes)
    window = max(1, min(room // 4 // sampled, -(-needs.train // size)))
    taken = needs.fixed() + 16 * needs.nodes + room + window * sampled  # 16: to choose the features that stay
    width, whole = _width(needs, memory, taken, needs.batch(needs.nodes, features=False))
    return StreamPlan(entries, cache, numbers, chunk, stage, window, width, whole) if width else None, whole


def _width(needs: Needs, memory: int, taken: int, batch: int) -> tuple[int, int]:
    """Return how many columns inference has room for, or 0, and the bytes of all; with 0 the least that would do."""
    most = needs.copies * max(needs.widths[1:])
    least = taken + max(batch, needs.evaluation(min(LINE, most)))
    if least > memory:
        return 0, least
    width = next(w for w in range(most, 0, -1) if w <= LINE or taken + needs.evaluation(w) <= memory)
    return width, taken + max(batch, needs.evaluation(width))


def _cut(needs: Needs, share: float) -> tuple[Cut, int]:
    """Return partitions, and how many of them, 32 or fewer, have slots that take ``share`` of the files' bytes."""
    count = min(needs.nodes, math.ceil(SLOTS / share))
    cut = Cut(needs.nodes, -(-needs.nodes // count))
    if share == 1.0:
        return cut, cut.count
    total = sum(int(cut.sizes(starts).sum()) * size for size, starts in needs.files)
    return cut, min(SLOTS, cut.count, int(share * total * (1 + 1e-12) / needs.slot(cut)))
