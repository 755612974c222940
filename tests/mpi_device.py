"""Train on four ranks with a stand-in device each, and without: the same bits; MPI reads and writes main memory.

mpiexec -n 4 python tests/mpi_device.py
"""

from __future__ import annotations

import os

os.environ["PDADMM_KERNELS"] = "0"  # the device has plain torch, so must the CPU

from stand_in_device import DEVICE, StandIn
from test_device import CASES, CPU, assert_same, problem_of, settings_of, train_rank

from pdadmm.admm import solver
from pdadmm.parallel.launch import make_transport
from pdadmm.parallel.ledger import Ledger


def main() -> None:
    solver.choose_device = lambda name, transport: DEVICE if name == "cuda" else CPU
    transport = make_transport()
    assert transport.size == transport.local_size == 4
    assert sorted(transport.allgather(transport.local_rank)) == [0, 1, 2, 3]
    for case, grid in (("default", "2x2"), ("4 bits", "4x1"), ("gradient", "2x2")):
        more = CASES[case] | {"loss": "squared_error"}
        results = []
        for device in ("cuda", "cpu"):
            transport.ledger = Ledger()
            with StandIn():
                results.append(train_rank(problem_of(case), settings_of(device, grid, more), transport))
        assert_same(*results)


if __name__ == "__main__":
    main()
