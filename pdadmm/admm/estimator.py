"""PDADMMG: pdADMM-G in scikit-learn's manner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pdadmm.admm.presets import preset_parameters
from pdadmm.admm.problem import Problem
from pdadmm.admm.quantizer import Quantizer
from pdadmm.admm.settings import ADMMSettings, check_tol
from pdadmm.admm.solver import ADMMSolver
from pdadmm.errors import InputError
from pdadmm.estimator import GraphClassifier, Outcome
from pdadmm.parallel.rank_grid import check_grid
from pdadmm.parallel.transport import Transport
from pdadmm.saver import Saver

__all__ = ["PDADMMG", "PDADMMGQ"]


@dataclass(eq=False, repr=False)
class PDADMMG(GraphClassifier, ADMMSettings):
    """A GA-MLP trained by pdADMM-G: gradient-free, all layers in parallel (Wang et al. 2022, Algorithm 1).

    In one process, or under ``mpirun -n R`` with the layers spread over R <= L ranks, with the same result; with the
    nodes cut into shards too (``grid``), on any number of ranks, the result is the same to rounding.
    The network grows through ``stages``; the model kept is the full-depth iteration of best validation
    accuracy (the last iteration without validation nodes).

    >>> from pdadmm import PDADMMG, digits
    >>> solver = PDADMMG(layers=3, hidden=32, iterations=5).fit(digits())
    >>> solver.score(digits()) > 0.8
    True
    """

    @classmethod
    def preset_parameters(cls, name: str) -> dict[str, Any]:
        """Return the parameters that a row of PRESETS changes; InputError for a name that is not one."""
        return preset_parameters(name, issubclass(cls, Quantizer))

    @classmethod
    def preset(cls, name: str, **changes: Any) -> PDADMMG:
        """Return an estimator with the parameters of a row of PRESETS, then ``changes``.

        >>> PDADMMG.preset("paper", nu=0.01, layers=2).hops
        3
        """
        return cls(**{**cls.preset_parameters(name), **changes})

    def _checked(self, transport: Transport) -> ADMMSettings:
        settings = self.checked()
        check_grid(settings.grid, transport.size, settings.layers)
        return settings

    def _problem(self, settings, graph, y, transport: Transport) -> tuple[Problem, np.ndarray | None, float]:
        problem, shift, seconds = super()._problem(settings, graph, y, transport)
        check_grid(settings.grid, transport.size, settings.layers, problem.nodes)
        return problem, shift, seconds

    def _train(
        self,
        problem: Problem,
        settings: ADMMSettings,
        transport: Transport,
        watch: Callable[[dict[str, Any]], None],
        saver: Saver | None = None,
    ) -> Outcome:
        solver = ADMMSolver(problem, settings, transport, settings.eval_every, watch, saver=saver).run()
        outcome = Outcome(solver.best_weights(), solver.history, solver.stages, solver.summary())
        solver.close()
        return outcome


@dataclass(eq=False, repr=False)
class PDADMMGQ(PDADMMG, Quantizer):
    """pdADMM-G-Q: PDADMMG with quantized messages; its own parameters are those of Quantizer.

    >>> from pdadmm import PDADMMGQ, digits
    >>> solver = PDADMMGQ(bits=4, layers=3, hidden=32, iterations=5).fit(digits())
    >>> solver.score(digits()) > 0.8
    True
    """

    def checked(self) -> ADMMSettings:
        """Return a copy with every value checked and the quantizer built."""
        if self.quantizer is not None:
            raise InputError("quantizer", "given", "left to PDADMMG", "PDADMMGQ takes bits, coding, delta, ..")
        settings = PDADMMG.checked(self)
        settings.quantizer = Quantizer.checked(self)
        return check_tol(settings)
