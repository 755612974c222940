"""Bytes and memory of an epoch of GIST (docs/plan.md)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from pdadmm.baselines.shards import run_of
from pdadmm.gist.groups import matrices
from pdadmm.gist.homes import round_bytes
from pdadmm.planner.sampled import SampledJob, batch_memory, epoch_memory

__all__ = ["GISTJob", "gist_bytes", "gist_memory"]


@dataclass(frozen=True)
class GISTJob:
    """A GNN that is trained as ``parts`` narrow ones, ``local_steps`` steps a round; ``wide`` has its own widths."""

    wide: SampledJob
    architecture: str
    parts: int
    local_steps: int

    def hosts(self, ranks: int) -> list[range]:
        """Return the homes, and workers, of each rank."""
        return [run_of(self.parts, rank, ranks) for rank in range(ranks)]

    def narrow(self) -> SampledJob:
        """Return a worker's network."""
        n_0, *hidden, C = self.wide.widths
        return dataclasses.replace(self.wide, widths=(n_0, *[-(-n // self.parts) for n in hidden], C))

    def numbers(self) -> tuple[float, float]:
        """Return what one home keeps, and what one worker has of it in a round: weights, moments, counts of steps."""
        home = block = 0.0
        for matrix in matrices(self.architecture, self.wide.widths):
            own = matrix.planes * matrix.shape[0] / self.parts
            home += own * matrix.shape[1]
            block += own * (matrix.shape[1] if matrix.columns is None else (matrix.shape[1] - 1) / self.parts + 1)
        return home, block


def gist_bytes(job: GISTJob, ranks: int) -> int:
    """Return the bytes that all ranks send in an epoch, on average over the draws of groups (docs/sampling.md)."""
    cut, wide = matrices(job.architecture, job.wide.widths), job.wide
    sent = round_bytes(cut, wide.widths[-1], job.hosts(ranks), wide.itemsize)
    return round(sent * wide.steps / job.local_steps)


def gist_memory(job: GISTJob, ranks: int) -> float:
    """Return the bytes of rank 0 above a process that does nothing and has the graph.

    Its homes, its workers' blocks and as much again twice while they travel, the best weights; and the larger of a
    worker's batch and an evaluation, in which it holds its homes' columns of each layer.
    """
    own, s, narrow = len(job.hosts(ranks)[0]), job.wide.itemsize, job.narrow()
    home, block = job.numbers()
    kept = s * own * (home * (1 + 2 / 3) + 3 * block)
    V, n_0, C, hidden = job.wide.nodes, job.wide.widths[0], job.wide.widths[-1], narrow.widths[1]
    copies, deep = job.wide.copies, len(job.wide.widths) > 3
    first = 0 if job.wide.sparse else n_0 * (2 + copies * (copies > 1))
    slices = s * V * (max(first + own * hidden, (3 * own if deep else own + 1) * hidden) + 2 * job.parts * copies * C)
    return epoch_memory(narrow, max(batch_memory(narrow), slices), evaluation=0.0) + kept
