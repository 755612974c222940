"""Fit the baselines by backpropagation on three ranks, then on one beside two; what each rank ends with.

mpiexec -n 3 python tests/mpi_backprop.py OUT
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import numpy as np

from pdadmm import csbm
from pdadmm.checkpoint import found
from pdadmm.solvers import solver_class

__all__ = ["CASES", "run_cases"]

COMMON = {"layers": 4, "hidden": 8, "hops": 2, "iterations": 6, "dtype": "float64", "learning_rate": 0.02}

# name -> (solver, hyper-parameters)
CASES = {
    "gd": ("gd", {"dropout": 0.3, "batch_size": 37, "prior": (1, 2, 3), "prior_weight": 0.5}),
    "adadelta": ("adadelta", {"stages": (2, 3, 4), "activation": "leaky_relu"}),
    "adagrad": ("adagrad", {"loss": "squared_error", "dropout": 0.5, "initial": "orthogonal"}),
    "adam": ("adam", {"dropout": 0.3, "batch_size": 50, "stages": (2, 4), "initial": "identity", "patience": 4}),
    "rare": ("adam", {"batch_size": 1, "iterations": 1, "activation": "identity"}),  # most ranks get no row
    "few": ("gd", {"layers": 1, "split": "few", "eval_every": 4}),  # fewer training nodes than ranks
}


def run_cases(out: Path, comm=None) -> None:
    """Fit every case and write ``NAME.RANK.npz`` and ``NAME.RANK.json``."""
    rank = 0 if comm is None else comm.rank
    for name, (solver, more) in CASES.items():
        given = COMMON | more
        graph = csbm(280, num_classes=3, num_features=6, avg_degree=6, seed=2)
        if given.pop("split", None):
            graph = graph.with_splits({"train": [5, 9], "val": [0, 1, 2], "test": [3]})
        trained = solver_class(solver)(**given).fit(graph, comm=comm)
        np.savez(out / f"{name}.{rank}.npz", **{k: v.numpy() for k, v in trained.model_.state_dict().items()})
        told = {"history": trained.history_, "summary": trained.summary_}
        (out / f"{name}.{rank}.json").write_text(json.dumps(told))
        if name == "adam":
            goes_on(solver_class(solver)(**given), graph, out / "checkpoints", trained, rank, comm)


def goes_on(solver, graph, folder: Path, expected, rank: int, comm) -> None:
    """Cut a run off by a signal to rank 0, go on with it on as many ranks, and compare the bits."""

    def watch(row) -> None:
        if row["iteration"] == 7 and rank == 0:
            signal.raise_signal(signal.SIGTERM)

    try:
        solver.fit(graph, checkpoint=folder, checkpoint_every=3, watch=watch, comm=comm)
    except SystemExit as end:
        assert end.code == 143  # noqa: PT017 (not a test)
    assert [path.name for path in found(folder)] == ["iteration-000008", "iteration-000006"]
    solver.fit(graph, checkpoint=folder, resume=True, comm=comm)
    ours, theirs = solver.model_.state_dict(), expected.model_.state_dict()
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def main(out: Path) -> None:
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    for comm in (world, world.Split(color=int(world.rank > 0), key=world.rank)):
        folder = out / str(comm.size)
        folder.mkdir(exist_ok=True)
        comm.Barrier()
        run_cases(folder, comm)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
