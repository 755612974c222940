"""``pdadmm doctor``: what is installed, what the machine offers, and whether it works."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

from pdadmm import doctor
from pdadmm.errors import InputError
from pdadmm.parallel.gpu_aware import setting
from pdadmm.parallel.launch import cores, launched_rank, make_transport, set_threads

__all__ = ["run"]


def run(arguments: list[str]) -> int:
    """Print the facts and the outcome of each check; 1 with a sentence where one failed. Collective under mpirun."""
    from pdadmm.cli import Parser

    Parser(
        prog="pdadmm doctor",
        description="Print versions, MPI, threads, cores and kernels, and test this installation in a few seconds.",
    ).parse_args(arguments)
    setting()  # a wrong one is for the user to put right before anything is tested
    failed: list[str] = []
    shown = launched_rank() == 0
    for name, passed, told in _lines():
        if shown:
            mark = "" if passed is None else "ok: " if passed else "FAILED: "
            print(f"{name + ':':15} {mark}{told}", flush=True)
        if passed is False:
            failed.append(f"{name}: {told}")
    if failed and shown:
        print(f"pdadmm: doctor: {len(failed)} of the checks failed, first {failed[0]}", file=sys.stderr)
    return 1 if failed else 0


def _lines() -> Iterator[tuple[str, bool | None, str]]:
    """Yield (name, whether a check passed, None for a fact, what to print)."""
    try:
        transport = make_transport()
    except InputError as error:
        yield "mpi", False, str(error)
        return
    for name, told in doctor.facts().items():
        yield name, None, told
    yield "threads", None, _threads(transport)
    for name, check in doctor.checks().items():
        passed, told = doctor.run_check(check) if transport.rank == 0 else (True, "")
        passed, told = transport.bcast((passed, told))
        yield name, passed, told
    if transport.size > 1:
        yield from _under_mpirun(transport)
        return
    mpiexec = doctor.starter()
    if mpiexec is None:
        yield "mpi", None, "none: mpi4py or mpiexec is missing (pip install mpi4py mpich); one process works"
        return
    answer: dict[str, Any] = {}
    passed, told = doctor.run_check(lambda: answer.update(doctor.launch_ranks(mpiexec)) or answer["told"])
    for name, fact in answer.get("facts", {}).items():
        yield name, None, fact
    yield "ranks", passed, told


def _under_mpirun(transport: Any) -> Iterator[tuple[str, bool | None, str]]:
    for name, told in doctor.mpi_facts().items():
        yield name, None, told
    outcomes = transport.allgather(doctor.run_check(lambda: doctor.same_on_ranks(transport.comm)))
    yield "ranks", *next((one for one in outcomes if not one[0]), outcomes[0])


def _threads(transport: Any) -> str:
    """Say how ranks and threads share this host's cores."""
    threads, ranks = set_threads(None, transport), transport.local_size
    source = "OMP_NUM_THREADS" if os.environ.get("OMP_NUM_THREADS") else "cores / ranks" if ranks > 1 else "torch's own"
    told = f"{threads} for each of {ranks} rank{'s' if ranks > 1 else ''} of this host ({source})"
    if ranks > cores():
        return f"{told}; oversubscribed: {ranks} ranks on {cores()} cores, so waiting ranks yield"
    if threads * ranks > cores():
        return f"{told}; oversubscribed: {threads * ranks} threads on {cores()} cores"
    return told
