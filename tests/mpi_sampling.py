"""Fit GIST and sample-based GNNs on 2 to 4 of this job's ranks and write what each rank ends with.

mpiexec -n 4 python tests/mpi_sampling.py OUT
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from mpi_gnn import graph_of

from pdadmm.solvers import solver_class

__all__ = ["CASES", "RANKS", "fit", "run_cases"]

COMMON = {"layers": 3, "hidden": 10, "iterations": 9, "dropout": 0.3, "eval_every": 2}
WALK = {"sampler": "walk", "batch_size": 7, "batches": 3}
CLUSTER = {"sampler": "cluster", "clusters": 5, "clusters_per_batch": 1, "batches": 3}

# name -> (solver, graph, hyper-parameters); the odd graph is directed and weighted, has isolated and unlabelled nodes
CASES = {
    "gist": ("gist", "csbm", {"parts": 3, "local_steps": 4, "clusters": 4, "clusters_per_batch": 2}),
    "gist-sage": ("gist", "odd", {"parts": 3, "local_steps": 2, "architecture": "sage"}),
    "gist-shallow": ("gist", "odd", {"parts": 10, "layers": 2, "clusters": 9}),  # most clusters have no training node
    "gist-deep": ("gist", "csbm", {"parts": 4, "layers": 4, "dtype": "float64", "local_steps": 1}),
    "neighbour": ("sage", "csbm", {"fanouts": (2, 3, 2), "batch_size": 19, "dtype": "float64"}),
    "neighbour-odd": ("sage", "odd", {"fanouts": (1, 1, 1), "dtype": "float64"}),  # fewer training nodes than ranks
    "walk": ("sage", "csbm", {"architecture": "gcn", "dtype": "float64"} | WALK),
    "walk-odd": ("sage", "odd", {"dtype": "float64"} | WALK),
    "cluster": ("sage", "csbm", {"architecture": "gcn", "dtype": "float64"} | CLUSTER),
    "cluster-odd": ("sage", "odd", {"dtype": "float64"} | CLUSTER),
}
RANKS = (2, 3, 4)


def fit(name: str, comm=None):
    solver, graph, more = CASES[name]
    return solver_class(solver)(**COMMON | more).fit(graph_of(graph), comm=comm)


def run_cases(names: Iterable[str], out: Path, rank: int, comm) -> None:
    """Fit cases and write ``NAME.RANK.npz`` and ``NAME.RANK.json``."""
    for name in names:
        trained = fit(name, comm)
        np.savez(out / f"{name}.{rank}.npz", **{k: v.numpy() for k, v in trained.model_.state_dict().items()})
        told = {"history": trained.history_, "summary": trained.summary_}
        (out / f"{name}.{rank}.json").write_text(json.dumps(told))


def main(out: Path) -> None:
    """The first R of this job's ranks fit every case, one number of ranks after another."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    for ranks in RANKS:
        comm = world.Split(color=int(world.rank < ranks), key=world.rank)
        if world.rank < ranks:
            folder = out / str(ranks)
            folder.mkdir(exist_ok=True)
            run_cases(CASES, folder, world.rank, comm)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
