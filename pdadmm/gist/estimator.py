"""GIST, in scikit-learn's manner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pdadmm.errors import InputError
from pdadmm.estimator import Outcome
from pdadmm.gist.slices import layer_of
from pdadmm.gist.solver import GISTSolver
from pdadmm.parallel.transport import Transport
from pdadmm.parameters import optional, param, whole
from pdadmm.sampling.estimator import BatchClassifier, BatchProblem, cluster_sampler

__all__ = ["GIST"]


@dataclass(eq=False, repr=False)
class GIST(BatchClassifier):
    """A wide GNN trained by GIST (Wolfe et al. 2021): each round, narrow networks of disjoint hidden dimensions.

    >>> from pdadmm import GIST, digits
    >>> GIST(parts=2, iterations=40).fit(digits()).score(digits()) > 0.8
    True
    """

    layers: int = param(2, whole(2), "number of layers L")
    hidden: int = param(256, whole(1), "neurons of each hidden layer")
    parts: int | None = param(None, optional(whole(1)), "narrow networks of a round (default: as many as ranks)")
    local_steps: int = param(20, whole(1), "steps of Adam that each narrow network takes in a round")
    clusters: int = param(1, whole(1), "parts that the graph is cut into for batches")
    clusters_per_batch: int = param(1, whole(1), "parts joined in a batch")

    def _checked(self, transport: Transport) -> GIST:
        settings = self.checked()
        if settings.parts is None:
            settings.parts = min(transport.size, settings.hidden)
        if settings.parts > settings.hidden:
            raise InputError("parts", settings.parts, f"at most {settings.hidden}, the hidden neurons")
        return settings

    def _train(
        self, problem: BatchProblem, settings: GIST, transport: Transport, watch: Callable[[dict], None]
    ) -> Outcome:
        sampler, seconds = cluster_sampler(problem, settings, transport)
        solver = GISTSolver(
            problem, problem.features, sampler, settings, transport, settings.eval_every, watch
        ).run()
        homes, (own, output) = solver.homes, solver.best
        parts = [item for part in transport.allgather(sorted(own.items()), "migration") for item in part]
        last = len(homes.matrices) - 1
        weights = {
            k: layer_of(matrix, torch.cat([values[k] for _, values in parts]), output if k == last else None)
            for k, matrix in enumerate(homes.matrices)
        }
        return Outcome(weights, solver.history, solver.stages, solver.summary() | seconds)
