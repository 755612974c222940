"""Rank 1 raises in the middle of training: the job must end at once, with the traceback.

mpiexec -n 2 python tests/mpi_crash.py [tee | none]      (what stands in standard output's place)
"""

from __future__ import annotations

import sys

from pdadmm import PDADMMG, csbm
from pdadmm.parallel.launch import launched_rank


def watch(row) -> None:
    if launched_rank() == 1 and row["iteration"] == 3:
        raise ZeroDivisionError("rank 1 has had enough")


class Tee:
    """Writes on standard output, and is no file."""

    def __init__(self) -> None:
        self.write, self.flush = sys.stdout.write, sys.stdout.flush


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.stdout = {"tee": Tee, "none": lambda: None}[sys.argv[1]]()
    PDADMMG(layers=4, hidden=5, iterations=500).fit(csbm(80, num_classes=2, num_features=4), watch=watch)
    print("trained to the end")
