"""Rank 1 raises in the middle of training: the job must end at once, with the traceback.

mpiexec -n 2 python tests/mpi_crash.py
"""

from __future__ import annotations

from pdadmm import PDADMMG, csbm
from pdadmm.parallel.launch import launched_rank


def watch(row) -> None:
    if launched_rank() == 1 and row["iteration"] == 3:
        raise ZeroDivisionError("rank 1 has had enough")


if __name__ == "__main__":
    PDADMMG(layers=4, hidden=5, iterations=500).fit(csbm(80, num_classes=2, num_features=4), watch=watch)
    print("trained to the end")
