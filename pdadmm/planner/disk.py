"""Bytes, memory and seconds of an iteration of pdADMM-G whose state is streamed from disk (docs/plan.md)."""

from __future__ import annotations

import dataclasses

import torch

from pdadmm.admm.products import PRODUCTS
from pdadmm.disk.state import BUFFERS, Layout
from pdadmm.disk.storage import Blocks, state_columns
from pdadmm.planner.job import Job
from pdadmm.planner.machine import Machine
from pdadmm.planner.seconds import layer_seconds

__all__ = ["block_nodes", "block_plan", "disk_bytes", "from_disk", "pass_memory", "pass_seconds"]

UNLIMITED = 1 << 62  # bytes
WORKED = 12  # arrays of a block, as wide as the widest layer, that live within an update


def _dtype(job: Job) -> torch.dtype:
    return torch.float64 if job.itemsize == 8 else torch.float32


def from_disk(job: Job) -> Job:
    """Return the job as it is trained from disk: layer 1 is ``gram`` where it would be chosen."""
    return dataclasses.replace(job, first_layer="gram") if job.first_layer == "auto" else job


def columns(job: Job) -> dict[str, int]:
    """Return what is kept of every node between two iterations: name -> columns."""
    stored = [layer for layer in range(1, job.layers) if not job.exact(layer)]
    return state_columns(job.widths, stored, job.accelerated)


def block_plan(job: Job, largest: dict[str, int] | None = None, products: str = "full") -> Blocks:
    """Return what blocks of nodes take by the solver's own plan, which is an upper bound.

    ``largest``: the state's columns in the stage with the most of them (default: the last stage's).
    """
    return Blocks.of(job.rows, job.widths, largest or columns(job), _dtype(job), PRODUCTS[products].terms)


def block_nodes(job: Job, memory: int | None, largest: dict[str, int] | None = None, products: str = "full") -> int:
    """Return the nodes of a block under a limit of ``memory`` bytes beyond the process, as the solver takes them.

    Without a limit a block is as large as the solver ever makes one.
    """
    return block_plan(job, largest, products).nodes(UNLIMITED if memory is None else memory)


def disk_bytes(job: Job, block: int) -> int:
    """Return the bytes that an iteration reads and writes in blocks of so many nodes: the state is read once and
    written once, X is read; each block has a header, and its arrays stand at multiples of 64 bytes.
    """
    layout, V = Layout(columns(job), _dtype(job)), job.nodes
    whole, rest = divmod(V, block)
    state = whole * layout.nbytes(block) + (layout.nbytes(rest) if rest else 0)
    return 2 * state + job.itemsize * V * job.widths[0]


def pass_memory(job: Job, block: int, in_memory: bool = True) -> float:
    """Return the bytes above a process that does nothing; X is ``in_memory`` as the run starts, or on disk too."""
    s, V, n_0 = job.itemsize, min(block, job.nodes), job.widths[0]
    widest, C = max(job.widths[1:]), job.widths[-1]
    state = min(BUFFERS, -(-job.nodes // block)) * Layout(columns(job), _dtype(job)).nbytes(V)
    gram = n_0 * n_0 * (2 if job.first.name == "gradient" else 1)
    moments = sum(m * m + n * m for m, n in zip(job.widths[1:], job.widths[2:]))
    fixed = s * (gram + 4 * job.weights() + 3 * moments) + 16 * job.rows
    found = [
        fixed + state + s * V * (WORKED * widest + 3 * C + n_0),
        s * (3 * n_0 * n_0 + min(block, job.rows) * n_0) + 16 * job.rows,
    ]
    if in_memory:
        found.append(s * job.rows * n_0)
    return max(found)


def pass_seconds(job: Job, block: int, machine: Machine) -> float:
    """Return the seconds of an iteration: work on blocks hides the disk, or the disk hides the work.

    Beside what a training in memory does, p of the last iteration and u are computed anew; the objective's terms
    are found on the way.
    """
    V, s, size = job.nodes, job.itemsize, min(block, job.nodes)
    calls = -(-V // size)
    work = 0.0
    for layer in range(job.layers):
        parts = layer_seconds(job, layer, size, machine)
        once = parts.total if layer == 0 else 0.0
        work += calls * (parts.total - once) + once
        if layer == 0:
            work += (calls - 1) * (parts.total - machine.seconds_product(job.widths[1], job.widths[0], job.widths[0]))
            continue
        m, n = job.widths[layer], job.widths[layer + 1]
        again = machine.seconds_product(size, n, m) + machine.seconds_product(size, m, m)
        if not job.exact(layer):  # a step and its residual for p of before, p^T p and r^T p
            again += 2 * machine.seconds_product(size, n, m)
        else:  # inverses and solves are of all nodes together, two inverses instead of one
            own = machine.seconds_inverse(m) + machine.seconds_solve(m, n) + machine.seconds_product(m, n, m)
            work += machine.seconds_inverse(m) - (calls - 1) * own
        work += calls * (again + machine.seconds_sweep(20, s * size * m))
    moved = disk_bytes(job, block)
    read = (moved + s * V * job.widths[0]) / 2
    return max(work * machine.crowded(1), read / machine.read + (moved - read) / machine.write)
