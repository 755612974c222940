"""Runs with checkpoints on this job's ranks: cut off by a signal to one rank, gone on with, or killed.

mpiexec -n 3 python tests/mpi_checkpoint.py stop|resume|kill FOLDER
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

from pdadmm import InputError, csbm
from pdadmm.parallel.launch import launched_rank, launched_size
from pdadmm.solvers import solver_class

__all__ = ["CASES", "GNN_CASES", "KILLED_IN", "STOPPED_IN", "fit", "outcome"]

SMALL = {"layers": 4, "hidden": 5, "hops": 1, "iterations": 6}  # stages of 2 and 4 layers
STOPPED_IN = 7
KILLED_IN = 10

# name -> (solver, hyper-parameters)
CASES = {
    "exact": ("pdadmm-g", {"form": "exact", "acceleration": "all-stages"}),
    "gradient": ("pdadmm-g", {"form": "gradient", "first_layer": "gradient", "dtype": "float64", "eval_every": 4}),
    "labels": ("pdadmm-g", {"initial": "labels", "first_layer": "cg", "acceleration": "all-stages"}),
    "leaky-stall": ("pdadmm-g", {"activation": "leaky_relu", "rho": 0.01, "rho_schedule": "stall", "stages": (2, 4)}),
    "stochastic": ("pdadmm-g-q", {"bits": 2, "rounding": "stochastic", "acceleration": "all-stages"}),
    "feedback": ("pdadmm-g-q", {"bits": 4, "coding": "value", "error_feedback": True, "q_bits": 8}),
    "constrained": ("pdadmm-g-q", {"bits": 8, "coding": "constrained"}),
    "backoff": ("pdadmm-g", {"form": "exact", "nu": 28.0, "rho": 1e-10, "on_divergence": "backoff"}),
}


GNN = {"layers": 3, "hidden": 6, "iterations": 9, "dtype": "float64"}
GNN_CASES = {
    "gcn": ("gcn", {"halo": "exact"}),
    "gcn-pipelined": ("gcn", {"halo": "pipelined", "gamma": 0.5, "architecture": "sage"}),
    "gcn-sampled": ("gcn", {"halo": "sampled", "boundary_share": 0.5}),
    "gcn-quantized": ("gcn", {"halo": "quantized", "bits": 4}),
    "mixgcn": ("mixgcn", {"chunks": 2}),
    "sage": ("sage", {"batch_size": 11}),
    "gist": ("gist", {"parts": 3, "local_steps": 4}),  # stopped in the midst of a round
}


def fit(name: str, folder: Path | None, watch=None, every: int = 3, resume: bool = False):
    solver, more = CASES[name] if name in CASES else GNN_CASES[name]
    graph = csbm(60, num_classes=3, num_features=5, avg_degree=5, seed=2)
    given = {"checkpoint": folder, "checkpoint_every": every, "resume": resume} if folder is not None else {}
    small = SMALL if name in CASES else GNN
    return solver_class(solver)(**small | more).fit(graph, watch=watch, **given)


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


def gnn(folder: Path) -> dict:
    """Run every GNN whole, and stopped and gone on with on as many ranks; return outcomes by name."""
    told = {}
    for name in GNN_CASES:
        told[name] = {"whole": outcome(fit(name, None))}
        try:
            fit(name, folder / name, watch=stop)
        except SystemExit as end:
            told[name]["status"] = end.code
        if launched_rank() == 0:  # the others wait for it before they read
            shutil.copytree(folder / name, folder / f"{name}.copy")
        told[name]["again"] = outcome(fit(name, folder / name, resume=True))
    return told


def gnn_resume(folder: Path) -> dict:
    """Go on with what ``gnn`` stopped, on another number of ranks; return outcomes, or the refusal's words."""
    told = {}
    for name in GNN_CASES:
        try:
            told[name] = outcome(fit(name, folder / f"{name}.copy", resume=True))
        except InputError as error:
            told[name] = str(error)
    return told


def layers(task: str, folder: Path) -> None:
    """Stop every run of pdADMM-G or go on with it; write what this rank ends with."""
    for name in CASES:
        status = 0
        try:
            trained = fit(name, folder / name, watch=stop if task == "stop" else None, resume=task == "resume")
        except SystemExit as end:
            status = end.code
        told = {"status": status}
        if task == "resume":
            told |= {"bytes": trained.history_.column("bytes")} | outcome(trained)
        (folder / f"{name}.{task}.{launched_rank()}.json").write_text(json.dumps(told))


def main(task: str, folder: Path) -> None:
    if task == "kill":
        fit("exact", folder / "exact", watch=killed)
        return
    layers(task, folder)
    told = (gnn if task == "stop" else gnn_resume)(folder)
    (folder / f"gnn.{task}.{launched_rank()}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
