"""What an augmentation from disk will need: the width of a slice that fits in memory, bytes read and written."""

from __future__ import annotations

from dataclasses import dataclass, field

from pdadmm.augment.scaling import SCALINGS
from pdadmm.disk.operator import BLOCK_ENTRIES, STREAM_ENTRIES
from pdadmm.errors import InputError

__all__ = ["Plan", "Shape", "make_plan", "memory_needed"]

LINE = 16  # columns: 64 bytes of float32, the narrowest slice
WORK_BYTES = 80 << 20  # blocks of 16 MiB on their way from and to files, and what Python itself takes meanwhile


@dataclass(frozen=True)
class Shape:
    """The sizes that decide: nodes V, stored ``entries`` of A, the longest row ``widest``, F features, K hops, what is
    kept (``blocks`` of columns, ``kept`` rows, ``fit_rows`` of them to learn the scaling from, written ``fit_apart``
    where they are not the first), bytes of a number."""

    nodes: int
    entries: int
    widest: int
    index_bytes: int
    features: int
    feature_bytes: int
    hops: int
    blocks: int
    averaged: bool
    kept: int
    fit_rows: int
    fit_apart: bool
    number_bytes: int
    scaling: str

    @property
    def feature_total(self) -> int:
        """Bytes of the features, V F s."""
        return self.nodes * self.features * self.feature_bytes

    @property
    def fit_bytes(self) -> int:
        """Bytes of the augmented features of the rows that the scaling is learned from, H V_fit F s."""
        return self.blocks * self.fit_rows * self.features * self.number_bytes


@dataclass(frozen=True)
class Plan:
    """``width`` columns a slice, ``slices`` of them, the adjacency ``resident`` or streamed; all in bytes:

        memory    16 V + 2 V w s + B_A or two blocks of it (+ V_keep w s for "ppr" and "heat") + 80 MiB, or
                  16 V + 8 V_fit (2 H F + (H + 6) V_fit) + 80 MiB where "hop-loo" learns factors and that is more
        reads     V F s (twice where there are several slices) + B_A + [A streamed] S K 4 nnz
                  + H V_keep F s + (passes of the scaling: 0 to 3) H V_fit F s
        writes    V F s where there are several slices + 2 H V_keep F s + [fit rows apart] H V_fit F s

    Source: the design of this library's augmentation from disk (docs/big-graphs.md); B_A is the adjacency.
    ``exchange``: what all ranks together send, by kind, where each has a folder to itself (pdadmm.disk.exchange).
    """

    shape: Shape
    width: int
    resident: bool
    memory: int
    exchange: dict[str, int] = field(default_factory=dict)

    @property
    def slices(self) -> int:
        """How many slices the features are cut into, S."""
        return -(-self.shape.features // self.width)

    @property
    def read_bytes(self) -> int:
        """Bytes that a run on one rank reads."""
        x = self.shape
        features = x.feature_total * (1 if self.slices == 1 else 2)
        columns = x.entries * x.index_bytes * (1 if self.resident else 1 + self.slices * x.hops)
        return features + columns + 8 * (x.nodes + 1) + self.passes * x.fit_bytes + self.result_bytes

    @property
    def passes(self) -> int:
        """How often the scaling goes over the rows that it is learned from."""
        return SCALINGS[self.shape.scaling].passes(self.shape.blocks, self.shape.fit_rows)

    @property
    def written_bytes(self) -> int:
        """Bytes that a run on one rank writes, and the most that its folder takes."""
        split = 0 if self.slices == 1 else self.shape.feature_total
        return split + 2 * self.result_bytes + self.shape.fit_apart * self.shape.fit_bytes

    @property
    def result_bytes(self) -> int:
        """Bytes of the augmented features, H V_keep F s."""
        x = self.shape
        return x.blocks * x.kept * x.features * x.number_bytes


def memory_needed(shape: Shape, width: int, resident: bool) -> int:
    """Return the bytes that a run with slices of ``width`` columns takes, as Plan has them."""
    x = shape
    nodes = 8 * (x.nodes + 1) + 8 * x.nodes + (32 * x.kept if x.kept != x.nodes else 0)
    slices = 2 * x.nodes * width * x.number_bytes + (x.kept * width * x.number_bytes if x.averaged else 0)
    streamed = 2 * min(x.entries, max(STREAM_ENTRIES, x.widest))
    columns = (x.entries if resident else streamed) * x.index_bytes
    rows = (2 * BLOCK_ENTRIES + x.widest) * (x.index_bytes + x.number_bytes)
    learned = 0
    if SCALINGS[x.scaling].learns_factors(x.blocks, x.fit_rows):  # rows in float64, twice; matrices of them
        learned = 8 * x.fit_rows * (2 * x.blocks * x.features + (x.blocks + 6) * x.fit_rows)
    return nodes + max(slices + columns + rows, learned) + WORK_BYTES


def make_plan(shape: Shape, memory: int, width: int | None = None, slices: int = 1) -> Plan:
    """Return the plan with the widest slices, the adjacency in memory where it fits beside slices of 64 bytes.

    ``width``: that of a run that is resumed; ``slices``: how many at least, as far as they are 64 bytes wide. Raises
    InputError where ``memory`` is too small, with the least that does.
    """
    if width is not None:
        widths = [width]
    else:  # all slices about alike, so that the last is not a thin one
        most = -(-shape.features // LINE)
        counts = range(min(slices, most), most + 1)
        widths = sorted({min(shape.features, -(-most // count) * LINE) for count in counts}, reverse=True)
    for resident in (True, False):
        for each in widths:
            needed = memory_needed(shape, each, resident)
            if needed <= memory:
                return Plan(shape, each, resident, needed)
    least = min(memory_needed(shape, widths[-1], resident) for resident in (True, False))
    remedy = f"give at least {-(-least // 2**20)}MiB"
    if width is not None:
        remedy += f", as the run in this folder has slices of {width} columns"
    raise InputError("memory", f"{memory} bytes", f"at least {least} bytes for this graph", remedy)
