"""Ten ranks in one launch: they fit the cases of mpi_run.py, a layer each, then fit on the grids of mpi_grid.py.

mpiexec -n 10 python tests/mpi_many.py OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

from mpi4py import MPI
from mpi_grid import agree
from mpi_run import run_cases
from mpi_transport import check_transport

from pdadmm.parallel.launch import make_transport


def main(out: Path) -> None:
    transport = make_transport()
    check_transport(transport)
    run_cases(out, transport.rank)
    agree(MPI.COMM_WORLD, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
