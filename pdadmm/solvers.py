"""The family table of solvers: a name on the command line and the estimator behind it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from pdadmm.errors import InputError, did_you_mean

__all__ = ["SOLVERS", "SolverRow", "solver_class"]


@dataclass(frozen=True)
class SolverRow:
    """One row: the name users type, where the estimator lives, what it is, what it sees."""

    name: str
    module: str
    estimator: str
    description: str
    on_graph: bool = False  # sees the graph while it trains: another network, in a contest only where it is named


SOLVERS = {
    row.name: row
    for row in (
        SolverRow("pdadmm-g", "pdadmm.admm.estimator", "PDADMMG", "pdADMM-G: layers in parallel, no gradients"),
        SolverRow("pdadmm-g-q", "pdadmm.admm.estimator", "PDADMMGQ", "pdADMM-G with quantized messages"),
        SolverRow("gd", "pdadmm.baselines.estimator", "GD", "gradient descent with momentum"),
        SolverRow("adadelta", "pdadmm.baselines.estimator", "Adadelta", "backpropagation with Adadelta"),
        SolverRow("adagrad", "pdadmm.baselines.estimator", "Adagrad", "backpropagation with Adagrad"),
        SolverRow("adam", "pdadmm.baselines.estimator", "Adam", "backpropagation with Adam"),
        SolverRow("gcn", "pdadmm.baselines.gcn", "GCN", "GCN or GraphSAGE on the whole graph, nodes over ranks", True),
        SolverRow("mixgcn", "pdadmm.baselines.gcn", "MixGCN", "the same, features and nodes over ranks by turns", True),
        SolverRow("sage", "pdadmm.sampling.estimator", "SampledGNN", "GraphSAGE or GCN on pieces of the graph", True),
        SolverRow("gist", "pdadmm.gist.estimator", "GIST", "a wide GCN or GraphSAGE as narrow ones", True),
    )
}


def solver_class(name: str) -> type[Any]:
    """Return the estimator class of a row of SOLVERS; it is imported only now.

    >>> solver_class("pdadmm-g").__name__
    'PDADMMG'
    """
    if name not in SOLVERS:
        raise InputError("solver", name, "one of " + ", ".join(SOLVERS), did_you_mean(str(name), SOLVERS))
    row = SOLVERS[name]
    return getattr(importlib.import_module(row.module), row.estimator)
