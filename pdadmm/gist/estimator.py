"""GIST, in scikit-learn's manner."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from pdadmm.data import Graph
from pdadmm.errors import InputError
from pdadmm.estimator import Outcome
from pdadmm.gist.slices import SlicedGNN, layer_of
from pdadmm.gist.solver import GISTSolver
from pdadmm.models.gnn import Aggregation, operator_of
from pdadmm.parallel.launch import make_transport
from pdadmm.parallel.transport import Transport
from pdadmm.parameters import boolean, optional, param, whole
from pdadmm.sampling.estimator import BatchClassifier, BatchProblem, cluster_sampler
from pdadmm.sampling.network import Features
from pdadmm.saver import Saver

__all__ = ["GIST"]


@dataclass(eq=False, repr=False)
class GIST(BatchClassifier):
    """A wide GNN trained by GIST (Wolfe et al. 2021): each round, narrow networks of disjoint hidden dimensions.

    >>> from pdadmm import GIST, digits
    >>> GIST(parts=2, hidden=32, iterations=30).fit(digits()).score(digits()) > 0.8
    True
    """

    layers: int = param(2, whole(2), "number of layers L")
    hidden: int = param(256, whole(1), "neurons of each hidden layer")
    parts: int | None = param(None, optional(whole(1)), "narrow networks of a round (default: as many as ranks)")
    local_steps: int = param(5, whole(1), "steps of Adam that each narrow network takes in a round")
    clusters: int = param(1, whole(1), "parts that the graph is cut into for batches")
    clusters_per_batch: int = param(1, whole(1), "parts joined in a batch")

    ultra_wide: bool = param(
        False, boolean, "leave the trained network in slices on the ranks, none of which ever holds all of it"
    )

    def fit(self, graph: Graph, y: Any = None, comm: Any = None, *args: Any, **more: Any) -> Self:
        """Train as every solver does; with ``ultra_wide`` the ranks of ``comm`` predict and score together later."""
        self._comm = comm
        return super().fit(graph, y, comm, *args, **more)

    def _checked(self, transport: Transport) -> Self:
        settings = self.checked()
        if settings.parts is None:
            settings.parts = min(transport.size, settings.hidden)
        if settings.parts > settings.hidden:
            raise InputError("parts", settings.parts, f"at most {settings.hidden}, the hidden neurons")
        return settings

    def _train(
        self,
        problem: BatchProblem,
        settings: GIST,
        transport: Transport,
        watch: Callable[[dict], None],
        saver: Saver | None = None,
    ) -> Outcome:
        sampler, seconds = cluster_sampler(problem, settings, transport)
        solver = GISTSolver(
            problem, problem.features, sampler, settings, transport, settings.eval_every, watch, saver
        ).run()
        homes, (own, output) = solver.homes, solver.best
        summary = solver.summary() | seconds
        if settings.ultra_wide:
            homes.state = {}
            sliced = SlicedGNN(homes, own, output, settings.activation)
            return Outcome(sliced, solver.history, solver.stages, summary)
        parts = [item for part in transport.allgather(sorted(own.items()), "migration") for item in part]
        last = len(homes.matrices) - 1
        weights = {
            k: layer_of(matrix, torch.cat([values[k] for _, values in parts]), output if k == last else None)
            for k, matrix in enumerate(homes.matrices)
        }
        return Outcome(weights, solver.history, solver.stages, summary)

    def _adopt(self, outcome, settings, problem, shift: None, transport: Transport) -> None:
        if not settings.ultra_wide:
            super()._adopt(outcome, settings, problem, shift, transport)
            return
        self.model_ = outcome.weights
        self.augmenter_ = transport.bcast(self.augmenter_, kind="migration")

    def _logits(self, graph: Graph) -> Tensor:
        model = getattr(self, "model_", None)
        if not isinstance(model, SlicedGNN):
            return super()._logits(graph)
        self._check_graph("graph", graph)
        transport = make_transport(self._comm)
        S = Aggregation(operator_of(graph, model.architecture, self.augmenter_.dtype))
        logits = model.infer(S, Features(self.augmenter_.transform(graph)), transport)
        transport.close()
        return logits

    def save(self, path: str | os.PathLike) -> None:
        """Write the trained model; InputError for one in slices, which no rank could write."""
        if isinstance(getattr(self, "model_", None), SlicedGNN):
            raise InputError("save", str(path), "left out with ultra_wide", "its slices stay on the ranks")
        super().save(path)
