"""Whether MPI reads and writes GPU memory itself: what the user says, else what the MPI library says."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from pdadmm.errors import InputError

__all__ = ["SETTING", "Support", "setting", "support"]

SETTING = "PDADMM_GPU_AWARE"  # environment variable: 1, 0, or auto, which asks MPI
KINDS = "mpi_memory_alloc_kinds"  # info key of MPI 4.1, section 12.4.3
CUDA_QUERY, GPU_QUERY = "MPIX_Query_cuda_support", "MPIX_GPU_query_support"  # Open MPI has the first, MPICH both
CUDA = 0  # MPIX_GPU_SUPPORT_CUDA


class Support(NamedTuple):
    """Whether MPI takes GPU memory, None where nobody says; ``source`` is who says.

    >>> print(Support(True, "MPIX_Query_cuda_support"))
    yes (MPIX_Query_cuda_support)
    """

    takes: bool | None
    source: str = ""

    def __str__(self) -> str:
        return "unknown" if self.takes is None else f"{'yes' if self.takes else 'no'} ({self.source})"


def setting() -> bool | None:
    """Return what PDADMM_GPU_AWARE says, None for auto, its default; InputError for another value."""
    given = os.environ.get(SETTING) or "auto"
    answers = {"0": False, "1": True, "auto": None}
    if given not in answers:
        raise InputError(SETTING, given, "0, 1 or auto", "auto asks MPI whether it takes GPU memory")
    return answers[given]


def support(mpi: Any) -> Support:
    """Return the first answer: the setting's, the info's of MPI 4.1, the library's; ``mpi`` is mpi4py.MPI, started.

    MPI 4.1 need not name in its info what nobody requested, so that a list without CUDA leaves it open.
    """
    given = setting()
    if given is not None:
        return Support(given, f"{SETTING}={given:d}")
    if any(map(names_gpu_memory, memory_kinds(mpi))):
        return Support(True, KINDS)
    return queried(mpi)


def names_gpu_memory(kind: str) -> bool:
    """Whether a kind of memory, with or without restrictors behind it, is what torch allocates on a GPU.

    >>> [names_gpu_memory(kind) for kind in ("cuda", "cuda:device", "cuda:host", "rocm")]
    [True, True, False, False]
    """
    name, *restrictors = kind.strip().lower().split(":")
    return name == "cuda" and (not restrictors or "device" in restrictors)


def memory_kinds(mpi: Any) -> Iterator[str]:
    """Yield the kinds of memory that MPI names in the infos of the world and of its environment."""
    info = mpi.COMM_WORLD.Get_info()
    try:
        told = info.Get(KINDS)
    finally:
        info.Free()
    for text in (told, mpi.INFO_ENV.Get(KINDS) if mpi.INFO_ENV else None):
        yield from (text or "").split(",")


def queried(mpi: Any) -> Support:
    """Ask the MPI library that mpi4py is linked to."""
    try:
        library = ctypes.CDLL(mpi.__file__)  # finds the names in what it is linked to as well
    except OSError:
        return Support(None)
    query = getattr(library, CUDA_QUERY, None)
    if query is not None:
        return Support(bool(query()), CUDA_QUERY)
    query, answer = getattr(library, GPU_QUERY, None), ctypes.c_int(0)
    if query is None:
        return Support(None)
    known = query(CUDA, ctypes.byref(answer)) == 0  # MPI_SUCCESS
    return Support(known and bool(answer.value), GPU_QUERY)
