"""Memory, bytes and seconds of a GCN's epoch on P ranks, by halo exchange or by all-to-alls (docs/gnn.md)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from pdadmm.parallel.ledger import ring_bytes
from pdadmm.parallel.placement import run_of
from pdadmm.planner.machine import Machine
from pdadmm.planner.simulate import Link

__all__ = ["GNNJob", "epoch_bytes", "epoch_memory", "epoch_seconds", "random_halo"]

INDEX = 4  # bytes of a column number of S


@dataclass(frozen=True)
class GNNJob:
    """A GCN of ``widths`` [n_0, .., n_L] on a graph of V ``nodes`` and ``nonzeros`` entries of S, dense features.

    ``halo_rows``: Vol, the rows that halo exchange moves for a layer one way.
    """

    nodes: int
    nonzeros: int
    widths: tuple[int, ...]
    halo_rows: int
    itemsize: int = 4

    @property
    def mixed(self) -> tuple[int, ...]:
        """The widths that are aggregated in every epoch: S X is computed once."""
        return self.widths[1:-1]

    def weights(self) -> int:
        return sum(n * (m + 1) for m, n in itertools.pairwise(self.widths))


def random_halo(nodes: int, nonzeros: int, parts: int) -> int:
    """Return Vol of a cut at random, expected: V (P - 1) (1 - (1 - 1/P)^d), d neighbours a node; METIS does better.

    >>> random_halo(1000, 10000, 1), random_halo(1000, 2000, 2)
    (0, 750)
    """
    return round(nodes * (parts - 1) * (1.0 - (1.0 - 1.0 / parts) ** (nonzeros / nodes)))


def epoch_bytes(job: GNNJob, ranks: int, mixed: bool) -> int:
    """Return the bytes that all ranks send in an epoch: features, as many adjoints, the sum of gradients."""
    V, P = job.nodes, ranks
    if mixed:
        numbers = 0
        for rank, width in itertools.product(range(P), job.mixed):
            block, own = len(run_of(V, rank, P)), len(run_of(width, rank, P))
            numbers += block * (width - own) + (V - block) * own
    else:
        numbers = job.halo_rows * sum(job.mixed)
    return 2 * job.itemsize * numbers + P * ring_bytes(job.itemsize * (job.weights() + 1), P)


def epoch_seconds(job: GNNJob, ranks: int, mixed: bool, machine: Machine, link: Link, crowd: int) -> float:
    """Return the seconds of an epoch, ``crowd`` ranks on each host: work, messages, waiting; none hides another."""
    V, s = -(-job.nodes // ranks), job.itemsize
    halo = 0 if mixed else job.halo_rows / ranks
    work = message = 0.0
    for l, (m, n) in enumerate(itertools.pairwise(job.widths)):
        product = machine.seconds_product(V, m, n)
        work += (2 if l == 0 else 3) * product + machine.mask * V * m
        work += machine.seconds_sweep(6, s * V * n) + machine.seconds_sweep(4, s * V * m)
        if l == 0:
            continue
        work += 2 * machine.sparse * job.nonzeros / ranks * m + machine.mask * halo * m
        work += machine.seconds_sweep(8, s * (V + halo) * m)
        if mixed:  # slices are packed and unpacked, there and back: in strides, which take twice the time
            work += machine.seconds_sweep(16, s * V * m)
        sent = 2 * V * m * (ranks - 1) / ranks if mixed else halo * m
        if ranks > 1:
            message += 2 * (link.seconds(s * sent) + (ranks - 1) * link.latency)
    work += machine.seconds_sweep(10, s * job.weights())
    summed = link.ring(s * (job.weights() + 1), ranks) if ranks > 1 else 0.0
    exchanges = (4 if mixed else 2) * len(job.mixed) + 1 if ranks > 1 else 0
    return work * machine.crowded(crowd) + message + summed + exchanges * machine.seconds_meeting(crowd)


def epoch_memory(job: GNNJob, ranks: int, mixed: bool) -> float:
    """Return the bytes of rank 0 above a process that does nothing and has the graph: S, features, layers, messages."""
    V, s, P = job.nodes, job.itemsize, ranks
    own, halo = -(-V // P), 0.0 if mixed else job.halo_rows / P
    S = job.nonzeros * (s + INDEX)
    n_0, layers = job.widths[0], sum(job.mixed)
    # X, S X, and the rows of S X for every rank while they are dealt
    dealt = S + 3 * s * V * n_0
    # the rows of a rank and their transpose; all-to-alls multiply whole columns, so they are the whole matrix
    operators = S + (2 * S if mixed or P == 1 else 3 * S / P)
    if mixed:  # a slice, a product, and what leaves for others and arrives, for features, adjoints and evaluation
        buffers = 3.0 * (2 + 2 * (P - 1) / P) * s * own * layers
    else:  # rows that leave and arrive, for the same three
        buffers = 3 * 2 * s * halo * layers
    # h, its mask and its aggregate stay until the way back; a few more pass
    widest = max(job.mixed, default=0)
    passing = s * own * (n_0 + 3 * layers + 4 * widest) + s * halo * (layers + 2 * widest)
    kept = s * V * n_0 + s * own * n_0 + operators + buffers
    return max(dealt, kept + passing + 6 * s * job.weights())
