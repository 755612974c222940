"""Fit the baselines by backpropagation on this job's ranks and write what each rank ends with.

mpiexec -n 3 python tests/mpi_backprop.py OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from pdadmm import csbm
from pdadmm.solvers import solver_class

__all__ = ["CASES", "run_cases"]

COMMON = {"layers": 4, "hidden": 8, "hops": 2, "iterations": 6, "dtype": "float64", "learning_rate": 0.02}

# name -> (solver, hyper-parameters)
CASES = {
    "gd": ("gd", {"dropout": 0.3, "batch_size": 37}),
    "adadelta": ("adadelta", {"stages": (2, 3, 4), "activation": "leaky_relu"}),
    "adagrad": ("adagrad", {"loss": "squared_error", "dropout": 0.5, "initial": "orthogonal"}),
    "adam": ("adam", {"dropout": 0.3, "batch_size": 50, "stages": (2, 4), "initial": "identity", "patience": 4}),
    "rare": ("adam", {"batch_size": 1, "iterations": 1, "activation": "identity"}),  # most ranks get no row
    "few": ("gd", {"layers": 1, "split": "few", "eval_every": 4}),  # fewer training nodes than ranks
}


def run_cases(out: Path, rank: int) -> None:
    """Fit every case and write ``NAME.RANK.npz`` and ``NAME.RANK.json``."""
    for name, (solver, more) in CASES.items():
        given = COMMON | more
        graph = csbm(700, num_classes=3, num_features=6, avg_degree=6, seed=2)
        if given.pop("split", None):
            graph = graph.with_splits({"train": [5, 9], "val": [0, 1, 2], "test": [3]})
        trained = solver_class(solver)(**given).fit(graph)
        np.savez(out / f"{name}.{rank}.npz", **{k: v.numpy() for k, v in trained.model_.state_dict().items()})
        told = {"history": trained.history_, "summary": trained.summary_}
        (out / f"{name}.{rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    from pdadmm.parallel.launch import launched_rank

    run_cases(Path(sys.argv[1]), launched_rank())
