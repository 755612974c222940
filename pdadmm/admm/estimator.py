"""PDADMMG: pdADMM-G in scikit-learn's manner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pdadmm.admm.problem import Problem
from pdadmm.admm.settings import ADMMSettings
from pdadmm.admm.solver import ADMMSolver
from pdadmm.errors import InputError
from pdadmm.estimator import GraphClassifier, Outcome
from pdadmm.parallel.transport import Transport

__all__ = ["PDADMMG"]


@dataclass(eq=False, repr=False)
class PDADMMG(GraphClassifier, ADMMSettings):
    """A GA-MLP trained by pdADMM-G: gradient-free, all layers in parallel (Wang et al. 2022, Algorithm 1).

    In one process, or under ``mpirun -n R`` with the layers spread over R <= L ranks, with the same result.
    The network grows through ``stages``; the model kept is the full-depth iteration of best validation
    accuracy (the last iteration without validation nodes).

    >>> from pdadmm import PDADMMG, digits
    >>> solver = PDADMMG(layers=3, hidden=32, iterations=5).fit(digits())
    >>> solver.score(digits()) > 0.8
    True
    """

    def _checked(self, transport: Transport) -> ADMMSettings:
        settings = self.checked()
        if transport.size > settings.layers:
            remedy = f"start at most {settings.layers} ranks (mpirun -n {settings.layers})"
            raise InputError("ranks", transport.size, f"at most layers = {settings.layers}", remedy)
        return settings

    def _train(
        self,
        problem: Problem,
        settings: ADMMSettings,
        transport: Transport,
        watch: Callable[[dict[str, Any]], None],
    ) -> Outcome:
        solver = ADMMSolver(problem, settings, transport, settings.eval_every, watch).run()
        weights = dict(solver.weights)
        if transport.rank == 0:
            weights[0] = solver.first.weights()
        return Outcome(weights, solver.history, solver.stages, solver.summary())
