"""Bytes, memory and seconds of an iteration of training by backpropagation (docs/plan.md)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from pdadmm.parallel.ledger import ring_bytes
from pdadmm.planner.machine import Machine
from pdadmm.planner.simulate import Link

__all__ = ["OPTIMISERS", "BackpropJob", "Optimiser", "optimiser_of", "pass_bytes", "pass_memory", "pass_seconds"]


@dataclass(frozen=True)
class Optimiser:
    """What an optimiser keeps: ``state`` numbers a weight, ``passes`` over arrays of the weights' size in a step."""

    state: int
    passes: int


# fused steps read and write weight and state and read the gradient once; Adadelta has a call for each operation
OPTIMISERS = {
    "GD": Optimiser(1, 6), "Adagrad": Optimiser(1, 6), "Adam": Optimiser(2, 8), "Adadelta": Optimiser(2, 28),
}  # fmt: skip
DRAW = 3.5  # a mask entry of draw_mask over one of node_mask, which is what was calibrated


def optimiser_of(settings: Any) -> Optimiser:
    """Return the row of OPTIMISERS of an estimator; gradient descent without momentum keeps nothing."""
    found = OPTIMISERS[type(settings).__name__]
    return found if getattr(settings, "momentum", 1.0) else Optimiser(0, 4)


@dataclass(frozen=True)
class BackpropJob:
    """A GA-MLP of ``widths`` [n_0, .., n_L] on V training ``nodes`` out of N labelled ``rows``.

    ``batch``: training nodes of a step over all ranks; ``dropout``: whether there is any; ``one_hot``: whether the loss
    takes the classes as rows of the identity.
    """

    nodes: int
    rows: int
    widths: tuple[int, ...]
    batch: int
    optimiser: Optimiser
    dropout: bool = False
    one_hot: bool = False
    itemsize: int = 4

    @property
    def steps(self) -> int:
        """Steps of the optimiser in an iteration."""
        return -(-self.nodes // self.batch)

    def weights(self) -> int:
        """Return the numbers of all W and b."""
        return sum(n * (m + 1) for m, n in itertools.pairwise(self.widths))


def pass_bytes(job: BackpropJob, ranks: int) -> int:
    """Return the bytes that all ranks send in an iteration: in each step the sum of the gradients and the loss."""
    return job.steps * ranks * ring_bytes(job.itemsize * (job.weights() + 1), ranks)


def training_arrays(job: BackpropJob, ranks: int) -> float:
    """Return the bytes at the height of a step: what the way back needs, and two arrays that pass along it."""
    rows = -(-min(job.batch, job.nodes) // ranks)
    hidden, C, s = job.widths[1:-1], job.widths[-1], job.itemsize
    own = s * sum(hidden) * (3 if job.dropout else 1)  # h in place of z; the mask in numbers, and h with it
    batch = rows * (own + 2 * s * max(hidden, default=0) + 3 * s * C)
    if job.batch < job.nodes:  # the rows of X and of the masks are copies
        batch += rows * (s * job.widths[0] + job.dropout * sum(hidden))
    return batch


def pass_memory(job: BackpropJob, ranks: int) -> float:
    """Return the bytes of rank 0, which has X, above a process that does nothing."""
    V, N, s = -(-job.nodes // ranks), -(-job.rows // ranks), job.itemsize
    n_0, C, widest = job.widths[0], job.widths[-1], max(job.widths[1:])
    X, weights = s * job.rows * n_0, s * job.weights()
    # weights, their gradients of before and now, the best ones, the optimiser's state; sums are one array more
    held = weights * (4 + job.optimiser.state + (ranks > 1)) + 16 * job.rows
    if job.dropout:
        held += V * sum(job.widths[1:-1])
    if job.one_hot:
        held += s * V * C
    passing = 2 * s * widest * max(V, N - V) + 2 * s * N * C
    return X + held + max(training_arrays(job, ranks), passing)


def pass_seconds(job: BackpropJob, ranks: int, machine: Machine, link: Link, crowd: int) -> float:
    """Return the seconds of an iteration, ``crowd`` ranks on each host: for each layer three products, two for the
    first, and passes over its output; for each step the optimiser's and the sum of the gradients.
    """
    rows, s = -(-job.batch // ranks), job.itemsize
    work = 0.0
    for layer, (m, n) in enumerate(itertools.pairwise(job.widths)):
        last = layer == len(job.widths) - 2
        work += (2 if layer == 0 else 3) * machine.seconds_product(rows, m, n)
        # the bias goes in and its gradient comes out; f and its derivative, or softmax, loss and theirs
        work += machine.seconds_sweep(3 + (10 if last else 5), s * rows * n)
        if job.dropout and not last:
            work += machine.seconds_sweep(10, s * rows * n)
    if job.batch < job.nodes:
        work += machine.seconds_sweep(2, s * rows * job.widths[0])
    for m, n in itertools.pairwise(job.widths):
        work += machine.seconds_sweep(job.optimiser.passes, s * m * n)
        work += machine.seconds_sweep(job.optimiser.passes, s * n)
    if ranks > 1:
        work += machine.seconds_sweep(4, s * job.weights())
    drawn = DRAW * machine.mask * -(-job.nodes // ranks) * sum(job.widths[1:-1]) if job.dropout else 0.0
    summed = link.ring(s * (job.weights() + 1), ranks) + machine.seconds_meeting(crowd) if ranks > 1 else 0.0
    return (job.steps * work + drawn) * machine.crowded(crowd) + job.steps * summed
