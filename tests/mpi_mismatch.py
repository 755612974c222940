"""Two ranks that do not fit together, in many ways one after another; what each rank was told."""

from __future__ import annotations

import numpy as np
import torch
from mpi4py import MPI

from pdadmm import PDADMMG, PDADMMGQ, Trace, csbm
from pdadmm.cli import main
from pdadmm.parallel import agreement
from pdadmm.parallel.envelope import CHECKSUMS
from pdadmm.parallel.mpi import MPITransport

__all__ = ["mismatches"]

SMALL = {"layers": 2, "hidden": 4, "iterations": 2, "hops": 1}


def fit(rank: int, solver=PDADMMG, graph=None, y=None, **more) -> str:
    data = csbm(60, num_classes=2, num_features=3, seed=0) if graph is None else graph
    solver(**SMALL | more).fit(data, y)
    return "fitted"


def keep(rank: int, graph=True, **more) -> str:
    """Rank 0 alone is given ``more``; both, or rank 0 alone, the graph."""
    data = csbm(60, num_classes=2, num_features=3, seed=0) if graph or rank == 0 else None
    PDADMMG(**SMALL).fit(data, **more if rank == 0 else {})
    return "fitted"


def command(rank: int, more: list[str]) -> str:
    """The command line, with ``more`` on rank 1 alone."""
    line = ["train", "--dataset", "csbm:60", "--layers", "2", "--iterations", "2", "--quiet"]
    return f"status {main(line + (more if rank else []))}"


def with_version(rank: int) -> str:
    known = agreement.__version__
    agreement.__version__ = "9.9.9" if rank else known
    try:
        return fit(rank)
    finally:
        agreement.__version__ = known


def with_checksums(rank: int, **environ: str) -> str:
    import os

    if rank:
        os.environ[CHECKSUMS] = "1"
    try:
        return fit(rank)
    finally:
        os.environ.pop(CHECKSUMS, None)


def single(rank: int, kind: str, array: torch.Tensor) -> str:
    """Rank 0 sends ``array`` where rank 1 waits for a float32 one of shape (2, 3) and kind init."""
    transport = MPITransport(MPI.COMM_WORLD.Dup())
    if rank == 0:
        transport.send(array, 1, kind)
        return "sent"
    transport.receive(torch.empty(2, 3), 0, "init")
    return "received"


def calls(rank: int, before: int, kinds: tuple[str, str]) -> str:
    transport = MPITransport(MPI.COMM_WORLD.Dup())
    transport.calls += before * rank
    transport.allgather(rank, kinds[rank])
    return "gathered"


def sums(rank: int, kinds: tuple[str, str], sizes: tuple[int, int]) -> str:
    """A sum of two arrays, agreed first."""
    transport = MPITransport(MPI.COMM_WORLD.Dup())
    transport.checks = True
    transport.sum_(torch.ones(sizes[rank]), kinds[rank])
    return "summed"


def all_to_all(rank: int, due: int) -> str:
    """Each rank sends two numbers, where rank 0 waits for ``due``; agreed first."""
    transport = MPITransport(MPI.COMM_WORLD.Dup())
    transport.checks = True
    incoming = [0, due] if rank == 0 else [2, 0]
    counts = [0, 2] if rank == 0 else [2, 0]
    transport.alltoall(torch.ones(2), counts, torch.empty(sum(incoming)), incoming, "blocks")
    return "sent"


def too_long(rank: int) -> str:
    """Rank 0's repeated message is longer than rank 1's buffer."""
    transport = MPITransport(MPI.COMM_WORLD.Dup())
    if rank == 0:
        message = transport.sender(torch.zeros(64, dtype=torch.uint8), 1, 3, "p")
    else:
        message = transport.receiver(torch.zeros(32, dtype=torch.uint8), 0, 3, "p")
    message.start()
    message.wait()
    return "waited"


def cases(rank: int):
    X, y = np.arange(24.0).reshape(8, 3), np.arange(8) % 2
    yield "nu", lambda: fit(rank, nu=(0.3, 0.5)[rank])
    yield "solver", lambda: fit(rank, (PDADMMG, PDADMMGQ)[rank])
    yield "graph", lambda: fit(rank, graph=csbm(60, num_classes=2, num_features=3, seed=rank))
    yield "checkpoint", lambda: keep(rank, checkpoint="nowhere")
    yield "trace", lambda: keep(rank, trace=Trace())
    yield "no graph", lambda: keep(rank, graph=False)
    yield "comm", lambda: PDADMMG().fit(X, y, comm="world")
    yield "flag", lambda: command(rank, ["--koala", "3"])
    yield "config", lambda: command(rank, ["--config", "nowhere.toml"])
    yield "arrays", lambda: fit(rank, graph=X, y=(y, 1 - y)[rank])
    yield "version", lambda: with_version(rank)
    yield "checksums", lambda: with_checksums(rank)
    yield "shape", lambda: single(rank, "init", torch.zeros(3, 2))
    yield "kind", lambda: single(rank, "evaluation", torch.zeros(2, 3, dtype=torch.int64))
    yield "call", lambda: calls(rank, 0, ("control", "evaluation"))
    yield "number", lambda: calls(rank, 1, ("control", "control"))
    yield "sum", lambda: sums(rank, ("gradients", "gradients"), (4, 5))
    yield "sum's kind", lambda: sums(rank, ("gradients", "moments"), (4, 4))
    yield "right sum", lambda: sums(rank, ("gradients", "gradients"), (4, 4))
    yield "all-to-all", lambda: all_to_all(rank, 3)
    yield "right all-to-all", lambda: all_to_all(rank, 2)
    yield "long", lambda: too_long(rank)
    yield "agreed", lambda: fit(rank)


def mismatches(rank: int) -> dict[str, str]:
    """Go through the cases on both ranks; return by name how each ended on this one."""
    told = {}
    for name, work in cases(rank):
        try:
            told[name] = work()
        except (ValueError, RuntimeError) as error:
            told[name] = f"{type(error).__name__}: {error}"
        MPI.COMM_WORLD.Barrier()
    return told
