"""Rank 1 raises before it has trained anything, while rank 0 waits for it: the job must end, with the traceback.

mpiexec -n 2 python tests/mpi_early.py
"""

from __future__ import annotations

from pdadmm import PDADMMG, csbm, load_dataset
from pdadmm.parallel.launch import launched_rank

if __name__ == "__main__":
    graph = csbm(80, num_classes=2, num_features=4) if launched_rank() == 0 else load_dataset("nowhere.npz")
    PDADMMG(layers=2, hidden=5, iterations=2).fit(graph)
    print("trained to the end")
