"""Fit GNNs on 1 to 4 of this job's ranks and write what each rank ends with.

mpiexec -n 4 python tests/mpi_gnn.py OUT
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pdadmm import Graph, csbm
from pdadmm.solvers import solver_class

__all__ = ["APPROXIMATE", "CASES", "COMMON", "EXACT", "JOBS", "graph_of", "run_cases"]

COMMON = {"layers": 3, "hidden": 7, "iterations": 20, "dtype": "float64", "dropout": 0.3, "patience": None}
SHORT = {"iterations": 8}

# Equal to one process whatever the ranks: name -> (solver, graph, hyper-parameters)
EXACT = {
    "exact": ("gcn", "csbm", {"halo": "exact", "partition": "bfs"}),
    "sage": ("gcn", "odd", {"architecture": "sage", "partition": "hash"} | SHORT),
    "hash": ("gcn", "odd", {"partition": "hash", "activation": "leaky_relu"} | SHORT),
    "broadcast": ("gcn", "odd", {"halo": "broadcast", "partition": "bfs"} | SHORT),
    "auto": ("gcn", "csbm", {"halo": "auto", "partition": "hash"} | SHORT),
    "all-sampled": ("gcn", "odd", {"halo": "sampled", "boundary_share": 1.0, "partition": "hash"} | SHORT),
    "mixgcn": ("mixgcn", "csbm", {}),
    "mixgcn-chunks": ("mixgcn", "odd", {"architecture": "sage", "chunks": 3} | SHORT),
    "tiny": ("gcn", "tiny", {"hidden": 3, "partition": "hash"} | SHORT),  # fewer nodes than ranks
    "tiny-mixgcn": ("mixgcn", "tiny", {"hidden": 2, "chunks": 2} | SHORT),
    "one-layer": ("gcn", "csbm", {"layers": 1, "partition": "bfs"} | SHORT),
}
# Equal to the plain form of tests/gnn_reference.py for the same parts
APPROXIMATE = {
    "pipelined": ("gcn", "csbm", {"halo": "pipelined", "partition": "hash"} | SHORT),
    "smoothed": ("gcn", "odd", {"halo": "pipelined", "gamma": 0.9, "partition": "bfs", "architecture": "sage"} | SHORT),
    "sampled": ("gcn", "csbm", {"halo": "sampled", "boundary_share": 0.3, "partition": "hash"} | SHORT),
    "sampled-sage": ("gcn", "odd", {"halo": "sampled", "partition": "bfs", "architecture": "sage"} | SHORT),
    "isolated": ("gcn", "odd", {"halo": "sampled", "boundary_share": 0.0, "partition": "hash"} | SHORT),
    "quantized": ("gcn", "csbm", {"halo": "quantized", "bits": 2, "partition": "hash"} | SHORT),
    "quantized-8": ("gcn", "odd", {"halo": "quantized", "partition": "bfs", "architecture": "sage"} | SHORT),
}
CASES = EXACT | APPROXIMATE
# Ranks -> the cases that so many of them fit
JOBS = {
    4: ("exact", "mixgcn", "hash", "tiny", "tiny-mixgcn"),
    3: tuple(CASES),
    2: ("exact", "mixgcn", "auto"),
    1: ("exact", "mixgcn-chunks"),
}


def graph_of(name: str) -> Graph:
    """A usual graph; an odd one: directed, weighted, isolated and unlabelled nodes, few of them train; a tiny one."""
    if name == "csbm":
        return csbm(140, num_classes=3, num_features=5, avg_degree=5, seed=2)
    random = np.random.default_rng(3)
    if name == "tiny":
        return Graph.from_edges([[0, 1], [1, 2]], np.eye(3), [0, 1, 0], {"train": [0, 1], "val": [2], "test": []})
    pairs = random.integers(0, 40, size=(2, 110))
    labels = random.integers(-1, 3, size=45)  # nodes 40 to 44 have no edge
    labels[:3] = labels[42] = 1
    labelled = np.flatnonzero(labels >= 0)
    splits = {"train": [0, 42], "val": labelled[5:12], "test": labelled[12:20]}
    return Graph.from_edges(
        pairs, random.normal(size=(45, 4)), labels, splits, weights=random.random(110) + 0.1, undirected=False
    )


def run_cases(names: Iterable[str], out: Path, rank: int, comm=None) -> None:
    """Fit cases and write ``NAME.RANK.npz`` and ``NAME.RANK.json``."""
    for name in names:
        solver, graph, more = CASES[name]
        # no selection: the weights of the last epoch are what is compared
        trained = solver_class(solver)(**COMMON | more, eval_every=1000).fit(graph_of(graph), comm=comm)
        np.savez(out / f"{name}.{rank}.npz", **{k: v.numpy() for k, v in trained.model_.state_dict().items()})
        told = {"history": trained.history_, "summary": trained.summary_}
        (out / f"{name}.{rank}.json").write_text(json.dumps(told))


def main(out: Path) -> None:
    """Four ranks together, then three beside one, then two: a rank that waits takes a core from the others."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    for sizes in ((4,), (3, 1), (2, 2)):
        group = next(g for g in range(len(sizes)) if world.rank < sum(sizes[: g + 1]))
        comm = world.Split(color=group, key=world.rank)
        if sizes == (2, 2) and group:  # once is enough
            break
        folder = out / str(comm.size)
        if comm.rank == 0:
            folder.mkdir()
        comm.Barrier()
        run_cases(JOBS[comm.size], folder, comm.rank, comm)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
