"""What a training from disk holds of a graph in memory: a buffer of partitions, or rows as they are read."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from pdadmm.console import human_bytes
from pdadmm.disk.blocks import DiskArray
from pdadmm.disk.buffer import PartitionBuffer
from pdadmm.disk.scattered import ScatteredReader, ScatteredRows
from pdadmm.sampling.buffered import BufferFeatures, BufferSampler, OperatorRows
from pdadmm.sampling.sizes import BufferPlan, StreamPlan
from pdadmm.sampling.states import BufferStates
from pdadmm.sampling.stored import StoredFeatures, StoredSampler, most_read

__all__ = ["BufferHolding", "Source", "StreamHolding"]

log = logging.getLogger("pdadmm")

SCATTERED = 1_000_000  # rows an epoch: a disk finds some ten thousand a second


@dataclass(frozen=True)
class Source:
    """A graph on the disk: ``files`` "columns", "features" and, of sparse ones, "feature columns", each with where a
    node's rows begin; the operator's ``rows``, the nodes ``train`` and the number of features ``width``."""

    files: dict[str, tuple[DiskArray, np.ndarray | None]]
    rows: OperatorRows
    train: np.ndarray
    width: int

    @property
    def starts(self) -> np.ndarray | None:
        """Where the features of a node begin, None of dense ones."""
        return self.files["features"][1]


class BufferHolding:
    """A buffer of partitions: neighbours are drawn among those in it."""

    def __init__(self, source: Source, plan: BufferPlan, settings: Any) -> None:
        self.source, self.plan, self.settings = source, plan, settings
        self.buffer = PartitionBuffer(plan.cut, plan.slots, source.files)
        message = "%d partitions of %d nodes, %d of them in the buffer (%s)"
        log.info(message, plan.cut.count, plan.cut.rows, plan.slots, human_bytes(self.buffer.nbytes))

    def sampler(self) -> BufferSampler:
        """Return the sampler of the settings."""
        s, cut = self.settings, self.plan.cut
        states = BufferStates(self.source.train, cut.rows, cut.count, self.plan.held, self.plan.swapped, s.seed)
        return BufferSampler(self.source.rows, self.buffer, states, s.fanouts, s.batch_size, s.seed)

    def features(self) -> BufferFeatures:
        """Return the features of the nodes in the buffer."""
        return BufferFeatures(self.buffer, self.source.width, self.source.starts)

    def summary(self) -> dict[str, int]:
        """Return the sizes of what is held."""
        most, cut = self.buffer.most, self.plan.cut
        sizes = {"partitions": cut.count, "buffer_partitions": most, "block_nodes": cut.rows}
        return sizes | {"buffer_bytes": self.buffer.nbytes}

    def close(self) -> None:
        """Give the memory back."""
        self.buffer.close()


class StreamHolding:
    """Rows of the adjacency and of features as a batch needs them, and the features of the nodes with most neighbours:
    neighbours are drawn among all."""

    def __init__(self, source: Source, plan: StreamPlan, settings: Any) -> None:
        self.source, self.plan, self.settings = source, plan, settings
        reader = ScatteredReader(plan.stage)
        adjacency = {"columns": source.files["columns"]}
        features = {name: file for name, file in source.files.items() if name != "columns"}
        self.adjacency = [ScatteredRows(adjacency, plan.entries, reader) for _ in range(2)]
        self.cache = ScatteredRows(features, plan.cache, reader)
        self.halves = [ScatteredRows(features, plan.numbers, reader) for _ in range(2)]
        self.kept = most_read(source.rows.indptr, source.starts, plan.cache)
        chunk = 2 * plan.chunk * sum(array.row_bytes for array, _ in features.values())  # as it is, and with dropout
        self.nbytes = plan.stage + chunk + sum(rows.nbytes for rows in (*self.adjacency, self.cache, *self.halves))
        message = "%d nodes' features stay in memory (%s in all), neighbours of %d steps are drawn together"
        log.info(message, len(self.kept), human_bytes(self.nbytes), plan.window)
        scattered = self.scattered()
        if scattered > SCATTERED:
            message = "up to %d scattered rows an epoch: disk_neighbours buffer reads whole parts, should that be slow"
            log.info(message, scattered)

    def scattered(self) -> int:
        """Return how many nodes' features an epoch reads at the most, there and back."""
        s, train = self.settings, len(self.source.train)
        size = min(s.batch_size or train, train)
        own = size * math.prod(1 + fanout for fanout in s.fanouts)
        return 2 * -(-train // size) * min(own, len(self.source.rows.indptr) - 1 - len(self.kept))

    def sampler(self) -> StoredSampler:
        """Return the sampler of the settings."""
        s, plan = self.settings, self.plan
        own = s.fanouts, s.batch_size, s.seed
        return StoredSampler(self.source.rows, self.adjacency, plan.entries, self.source.train, *own, plan.window)

    def features(self) -> StoredFeatures:
        """Return the features of all nodes; this reads those that stay."""
        source, plan = self.source, self.plan
        return StoredFeatures(
            self.cache, self.kept, self.halves, source.width, source.starts, plan.numbers, plan.chunk
        )  # fmt: skip

    def summary(self) -> dict[str, int]:
        """Return the sizes of what is held."""
        return {"kept_nodes": len(self.kept), "steps_together": self.plan.window, "buffer_bytes": self.nbytes}

    def close(self) -> None:
        """Give the memory back."""
        for rows in (*self.adjacency, self.cache, *self.halves):
            rows.close()
