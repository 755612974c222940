"""Fit GIST and sample-based GNNs on 3 ranks and write what each rank ends with.

mpiexec -n 3 python tests/mpi_sampling.py OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from mpi_gnn import graph_of

from pdadmm.parallel.launch import launched_rank
from pdadmm.solvers import solver_class

__all__ = ["CASES", "RANKS", "fit"]

COMMON = {"layers": 3, "hidden": 10, "iterations": 9, "dropout": 0.3, "eval_every": 2}
WALK = {"sampler": "walk", "batch_size": 7, "batches": 3}
CLUSTER = {"sampler": "cluster", "clusters": 5, "clusters_per_batch": 1, "batches": 3}

# name -> (solver, graph, hyper-parameters); the odd graph is directed and weighted, has isolated and unlabelled nodes
CASES = {
    "gist": ("gist", "csbm", {"parts": 3, "local_steps": 4, "clusters": 4, "clusters_per_batch": 2}),
    "gist-sage": ("gist", "odd", {"parts": 2, "local_steps": 2, "architecture": "sage"}),  # a rank has nothing to do
    "gist-shallow": ("gist", "odd", {"parts": 10, "layers": 2, "clusters": 9}),  # most clusters have no training node
    "gist-deep": ("gist", "csbm", {"parts": 4, "layers": 4, "dtype": "float64", "local_steps": 1}),
    "neighbour": ("sage", "csbm", {"fanouts": (2, 3, 2), "batch_size": 19, "dtype": "float64"}),
    "neighbour-odd": ("sage", "odd", {"fanouts": (1, 1, 1), "dtype": "float64"}),  # fewer training nodes than ranks
    "walk": ("sage", "csbm", {"architecture": "gcn", "dtype": "float64"} | WALK),
    "walk-odd": ("sage", "odd", {"dtype": "float64"} | WALK),
    "cluster": ("sage", "csbm", {"architecture": "gcn", "dtype": "float64"} | CLUSTER),
    "cluster-odd": ("sage", "odd", {"dtype": "float64"} | CLUSTER),
}
RANKS = 3


def fit(name: str):
    solver, graph, more = CASES[name]
    return solver_class(solver)(**COMMON | more).fit(graph_of(graph))


def main(out: Path) -> None:
    """Fit every case and write ``NAME.RANK.npz`` and ``NAME.RANK.json``; the sliced network answers on all ranks."""
    rank = launched_rank()
    for name in CASES:
        trained = fit(name)
        np.savez(out / f"{name}.{rank}.npz", **{k: v.numpy() for k, v in trained.model_.state_dict().items()})
        told = {"history": trained.history_, "summary": trained.summary_}
        (out / f"{name}.{rank}.json").write_text(json.dumps(told))
    solver, graph, more = CASES["gist"]
    sliced = solver_class(solver)(**COMMON | more, ultra_wide=True).fit(graph_of(graph))
    held = sum(array.numel() for array in sliced.model_.state_dict().values())
    np.savez(out / f"sliced.{rank}.npz", proba=sliced.predict_proba(graph_of(graph)), held=held)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
