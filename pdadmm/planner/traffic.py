"""Bytes of an iteration of pdADMM-G: messages between layer groups, sums over node shards."""

from __future__ import annotations

from pdadmm.parallel.ledger import ring_bytes
from pdadmm.parallel.placement import run_of
from pdadmm.parallel.rank_grid import RankGrid
from pdadmm.planner.job import Job, placement

__all__ = ["iteration_bytes", "sums_of_layer"]


def sums_of_layer(job: Job, layer: int) -> list[int]:
    """Return the bytes of each array that the node shards sum for a layer's W, b update.

    Exact form: p^T p, z^T p and the sums of p and z in one; layer 1 has the sum of z, then z^T p (gram) or all of z
    (kernel); the gradient form has the gradient, the curvature along it, the sum of r; cg the sum of z, the gradient
    and three curvatures for each neuron.
    """
    m, n, s = job.widths[layer], job.widths[layer + 1], job.itemsize
    if layer > 0 and job.exact(layer):
        return [s * (m * m + n * m + m + n)]
    if layer == 0 and job.first.name == "gram":
        return [s * n, s * n * m]
    if layer == 0 and job.first.name == "kernel":
        return [s * job.nodes * n]
    if layer == 0 and job.first.name == "cg":
        return [s * n, s * n * m, 3 * s * n]
    return [s * n * m, s, s * n]


def iteration_bytes(job: Job, grid: RankGrid) -> int:
    """Return the bytes that all ranks send in an iteration, as the ledger counts them; a resent value is not in it.

    p and q of each boundary between groups, shard by shard, and ring_bytes of every sum on every rank.
    """
    N = grid.shards
    runs = [layers for layers in placement(job, grid) if len(layers)]
    between = [layers.stop - 1 for layers in runs[:-1]]
    sizes = [len(run_of(job.nodes, shard, N)) for shard in range(N)]
    # two sizes at most: V // N and one more
    messages = sum(
        sizes.count(V) * job.message_bytes(boundary, kind, V)
        for V in set(sizes) for boundary in between for kind in ("p", "q")
    )  # fmt: skip
    sums = sum(N * ring_bytes(nbytes, N) for layer in range(job.layers) for nbytes in sums_of_layer(job, layer))
    if job.accelerated and N > 1:  # each side of a boundary sums its two measures, a place for every shard
        sides = job.layers - 1 + len(between)
        sums += sides * N * ring_bytes(2 * 8 * N, N)
    return messages + sums

