"""Joining a run: which transport, how many threads, and errors that all ranks share."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any, TypeVar, cast

from pdadmm.errors import InputError
from pdadmm.parallel.transport import LocalTransport, Transport

__all__ = [
    "cores",
    "crowded",
    "install_abort_hook",
    "launched_rank",
    "launched_size",
    "local_rank",
    "local_ranks",
    "make_transport",
    "set_threads",
    "together",
]

# What Hydra (MPICH, Intel MPI), Open MPI and Slurm's PMIx set in every rank.
SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")
RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK")
LOCAL_SIZES = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE")
LOCAL_RANKS = ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID")

LONGEST_START = 30.0  # seconds for MPI to start and end the job

T = TypeVar("T")


def _from_environment(names: tuple[str, ...], default: int) -> int:
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), default)


def launched_size() -> int:
    """Return the number of ranks mpirun (or srun) started, 1 outside of it; MPI is not touched."""
    if "PMIX_RANK" in os.environ:  # srun --mpi=pmix says the size elsewhere
        return _from_environment((*SIZES, "SLURM_NTASKS"), 1)
    return _from_environment(SIZES, 1)


def launched_rank() -> int:
    """Return this process's rank as the launcher says, 0 outside of mpirun; MPI is not touched."""
    return _from_environment(RANKS, 0)


def cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_ranks() -> int:
    """Return how many ranks the launcher says share this host; 0 where it does not say."""
    found = _from_environment(LOCAL_SIZES, 0)
    if found:
        return found
    # srun: "4(x2),3" are two nodes of 4 tasks and one of 3
    tasks, node = os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""), os.environ.get("SLURM_NODEID", "")
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks):
        counts += [int(count)] * min(int(times or 1), 1 << 20)
    return counts[int(node)] if node.isdigit() and int(node) < len(counts) else 0


def local_rank() -> int:
    """Return this process's number among the ranks of its host; -1 where the launcher does not say."""
    return _from_environment(LOCAL_RANKS, -1)


def crowded() -> bool:
    """Whether more ranks than cores share this host; all ranks of the job where the launcher does not say."""
    return (local_ranks() or launched_size()) > cores()


def make_transport(comm: Any = None) -> Transport:
    """Return the transport of a run: ``comm`` if given, the world's under mpirun, else in-process."""
    if comm is None and launched_size() == 1:
        return LocalTransport()
    if crowded():
        # waiting ranks must not keep the others from a core; read when MPI starts
        os.environ.setdefault("MPIR_CVAR_ENABLE_HEAVY_YIELD", "1")
        os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
    from pdadmm.parallel.mpi import MPITransport

    transport = MPITransport(comm)
    return transport if transport.size > 1 else LocalTransport(transport.local_size, transport.local_rank)


def install_abort_hook(size: int) -> None:
    """Let an error that nobody catches end a job of ``size`` ranks: mpiexec alone would leave the others waiting.

    Does nothing for one rank alone.
    """
    if size == 1 or getattr(sys.excepthook, "ends_mpi_job", False):
        return

    def abort(kind, value, trace):
        try:
            text = "".join(traceback.format_exception(kind, value, trace))
            sys.stderr.write(f"rank {launched_rank()} of {size} failed:\n{text}")
        finally:  # whatever stands in stderr's place: the other ranks wait
            _end_job()

    abort.ends_mpi_job = True  # type: ignore[attr-defined]
    sys.excepthook = abort


def _end_job() -> None:
    """Abort MPI, which may not have started here yet: the others, starting it, wait for this rank."""
    import threading

    def end() -> None:
        from pdadmm.parallel.mpi import abort

        abort(1)

    if "mpi4py.MPI" in sys.modules:
        return end()
    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    thread.join(LONGEST_START)  # others that never start MPI would be waited for in vain
    os._exit(1)


def set_threads(threads: int | None, transport: Transport) -> int:
    """Set the BLAS threads of this rank and return their number.

    None: OMP_NUM_THREADS where it is set, cores / ranks of this host under MPI, torch's own otherwise.
    """
    import torch

    if threads is None and transport.local_size > 1 and not os.environ.get("OMP_NUM_THREADS"):
        threads = max(1, cores() // transport.local_size)
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def together(transport: Transport, work: Callable[[], T]) -> T:
    """Do ``work`` on every rank; an InputError on any of them is raised on all, the lowest rank's first.

    Without it one rank would stop and the others wait for it.
    """
    result, error = None, None
    try:
        result = work()
    except InputError as caught:
        error = caught
    for shared in transport.allgather(error):
        if shared is not None:
            raise shared from error
    return cast(T, result)
