"""Starting python under mpiexec from a test."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import pdadmm

__all__ = ["NEEDS_MPI", "mpiexec"]

MPIEXEC = Path(sys.executable).with_name("mpiexec")

NEEDS_MPI = [
    pytest.mark.skipif(not MPIEXEC.exists(), reason=f"no mpiexec beside {sys.executable}: pip install mpich"),
    pytest.mark.skipif(importlib.util.find_spec("mpi4py") is None, reason="mpi4py is not installed"),
]


def mpiexec(ranks: int, *arguments: str | Path, timeout: float = 400) -> subprocess.CompletedProcess:
    """Run python under mpiexec; the whole job is killed after ``timeout`` seconds."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "MPIR_CVAR_ENABLE_HEAVY_YIELD": "1",
        "OMPI_MCA_mpi_yield_when_idle": "1",
        # Open MPI: containers run as root, and tests start more ranks than cores
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "PYTHONPATH": str(Path(pdadmm.__file__).parents[1]),
    }
    command = [str(MPIEXEC), "-n", str(ranks), sys.executable, *map(str, arguments)]
    job = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    try:
        out, err = job.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)
        out, err = job.communicate()
        pytest.fail(f"{' '.join(command)} hung for {timeout} s\n{out}\n{err}")
    return subprocess.CompletedProcess(command, job.returncode, out, err)
