"""Fit on grids of ranks and write what each rank ends with; cut them off and go on with them.

mpiexec -n 4 python tests/mpi_grid.py OUT
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
from mpi_state import state_of

from pdadmm import csbm
from pdadmm.admm.network import Network
from pdadmm.solvers import solver_class

__all__ = ["CASES", "CUT", "GRIDS", "SAVED", "agree", "fit", "fit_saved"]

DATA = {"num_nodes": 150, "num_classes": 3, "num_features": 6, "avg_degree": 6, "seed": 2}
SMALL = {"layers": 10, "hidden": 8, "hops": 2, "eval_every": 17}
# Grown as by default: ten layers from random weights amplify rounding a millionfold, in one process too.
CASES = {
    "float64-51": {"dtype": "float64", "iterations": 17},
    "float32-1": {"dtype": "float32", "iterations": 1, "stages": (10,)},
    "float32-51": {"dtype": "float32", "iterations": 17},
}
# What the ten ranks do at once: grids side by side, each on a communicator of its own.
GRIDS = [["5x2"], ["4x2", "1x2"], ["2x3", "2x2"]]

CUT = 7  # iterations before a signal
SAVED = {
    "kernel": ("pdadmm-g", {"first_layer": "kernel", "activation": "leaky_relu", "acceleration": "all-stages"}),
    "stochastic": ("pdadmm-g-q", {"bits": 8, "rounding": "stochastic", "coding": "value", "error_feedback": True}),
}


def size_of(grid: str) -> int:
    groups, shards = map(int, grid.split("x"))
    return groups * shards


def fit(case: str, grid: str, comm=None) -> tuple:
    """Return the trained estimator, the state of this rank's layers, its shard's rows and its ledger."""
    found, finish = {}, Network.finish

    def collecting(network):
        finish(network)
        found.update(state=state_of(network), network=network)  # the last stage's stays

    Network.finish = collecting
    try:
        trained = solver_class("pdadmm-g")(grid=grid, **SMALL | CASES[case]).fit(csbm(**DATA), comm=comm)
    finally:
        Network.finish = finish
    return trained, found["state"], found["network"].shard.rows, found["network"].transport.ledger


def wait_for_all(world) -> None:
    """A barrier that leaves the cores to those who still work."""
    request = world.Ibarrier()
    while not request.Test():
        time.sleep(0.01)


def agree(world, out: Path) -> None:
    """Fit every case on every grid, those side by side at once."""
    for side_by_side in GRIDS:
        ends = np.cumsum([size_of(grid) for grid in side_by_side])
        mine = int(np.searchsorted(ends, world.rank, side="right"))
        part = world.Split(color=mine, key=world.rank)
        for case in CASES:
            grid = side_by_side[mine]
            trained, state, rows, ledger = fit(case, grid, part)
            np.savez(out / f"{case}.{grid}.{part.rank}.npz", **state)
            model = {name: value.numpy().tobytes().hex() for name, value in trained.model_.state_dict().items()}
            told = {"rows": [rows.start, rows.stop], "sent": ledger.sent, "received": ledger.received, "model": model}
            told |= {"summary": trained.summary_, "history": trained.history_}
            (out / f"{case}.{grid}.{part.rank}.json").write_text(json.dumps(told))
        wait_for_all(world)


def fit_saved(name: str, grid: str, folder: Path | None, stops: bool = False) -> dict | int:
    """Fit with checkpoints, or go on with those there are; return what a run finds, or how a signal ended it."""
    solver, more = SAVED[name]
    settings = {"layers": 4, "hidden": 5, "hops": 1, "iterations": 6, "dtype": "float64"} | more

    def stop(row):
        if row["iteration"] == CUT:
            signal.raise_signal(signal.SIGTERM)

    saving = {} if folder is None else {"checkpoint": folder, "checkpoint_every": 3, "resume": not stops}
    try:
        trained = solver_class(solver)(grid=grid, **settings).fit(
            csbm(**DATA), watch=stop if stops else None, **saving
        )
    except SystemExit as end:
        return end.code
    weights = {name: value.numpy().tolist() for name, value in trained.model_.state_dict().items()}
    return {"weights": weights, "objective": trained.history_.column("objective")}


def checkpoint(out: Path) -> None:
    """Cut 2x2 off and go on with it there, on 1x4 and on 4x1; go on on 2x2 with what one process left in OUT."""
    from pdadmm.parallel.launch import launched_rank, make_transport

    transport = make_transport()
    for name in SAVED:
        told = {"whole": fit_saved(name, "2x2", None), "cut": fit_saved(name, "2x2", out / name, stops=True)}
        for grid in ("2x2", "1x4", "4x1"):
            folder = out / f"{name}-{grid}"
            if transport.rank == 0:
                shutil.copytree(out / name, folder)
            transport.barrier()
            told[grid] = fit_saved(name, grid, folder)
        told["from one"] = fit_saved(name, "2x2", out / f"{name}-one")
        (out / f"{name}.{launched_rank()}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    checkpoint(Path(sys.argv[1]))
