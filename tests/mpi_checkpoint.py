"""Runs with checkpoints on this job's ranks: cut off by a signal to one rank, gone on with, or killed.

mpiexec -n 3 python tests/mpi_checkpoint.py stop|resume|kill FOLDER
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from pdadmm import csbm
from pdadmm.parallel.launch import launched_rank, launched_size
from pdadmm.solvers import solver_class

__all__ = ["CASES", "KILLED_IN", "STOPPED_IN", "fit", "outcome"]

SMALL = {"layers": 4, "hidden": 5, "hops": 1, "iterations": 6}  # stages of 2 and 4 layers
STOPPED_IN = 7
KILLED_IN = 10

# name -> (solver, hyper-parameters)
CASES = {
    "exact": ("pdadmm-g", {"form": "exact", "acceleration": "all-stages"}),
    "gradient": ("pdadmm-g", {"form": "gradient", "first_layer": "gradient", "dtype": "float64", "eval_every": 4}),
    "leaky-stall": ("pdadmm-g", {"activation": "leaky_relu", "rho": 0.01, "rho_schedule": "stall", "stages": (2, 4)}),
    "stochastic": ("pdadmm-g-q", {"bits": 2, "rounding": "stochastic", "acceleration": "all-stages"}),
    "feedback": ("pdadmm-g-q", {"bits": 4, "coding": "value", "error_feedback": True, "q_bits": 8}),
    "constrained": ("pdadmm-g-q", {"bits": 8, "coding": "constrained"}),
    "backoff": ("pdadmm-g", {"form": "exact", "nu": 28.0, "rho": 1e-10, "on_divergence": "backoff"}),
}


def fit(name: str, folder: Path | None, watch=None, every: int = 3, resume: bool = False):
    solver, more = CASES[name]
    graph = csbm(60, num_classes=3, num_features=5, avg_degree=5, seed=2)
    given = {"checkpoint": folder, "checkpoint_every": every, "resume": resume} if folder is not None else {}
    return solver_class(solver)(**SMALL | more).fit(graph, watch=watch, **given)


def outcome(trained) -> dict:
    """All that two runs with the same result share, fit for JSON."""
    machine = ("seconds", "bytes", "peak_rss")
    rows = [{k: v for k, v in row.items() if not k.startswith(machine)} for row in trained.history_]
    weights = {name: value.numpy().tobytes().hex() for name, value in trained.model_.state_dict().items()}
    return {"weights": weights, "history": rows, "stages": trained.stages_}


def stop(row) -> None:
    """The last rank alone is told to leave: all do, after the next iteration."""
    if launched_rank() == launched_size() - 1 and row["iteration"] == STOPPED_IN - 1:
        signal.raise_signal(signal.SIGTERM)


def killed(row) -> None:
    if launched_rank() == 1 and row["iteration"] == KILLED_IN:
        os.kill(os.getpid(), signal.SIGKILL)


def main(task: str, folder: Path) -> None:
    if task == "kill":
        fit("exact", folder / "exact", watch=killed)
    for name in CASES if task != "kill" else ():
        status = 0
        try:
            trained = fit(name, folder / name, watch=stop if task == "stop" else None, resume=task == "resume")
        except SystemExit as end:
            status = end.code
        told = {"status": status}
        if task == "resume":
            told |= {"bytes": trained.history_.column("bytes")} | outcome(trained)
        (folder / f"{name}.{task}.{launched_rank()}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
