"""PDADMMG: pdADMM-G in scikit-learn's manner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from pdadmm.admm.presets import preset_parameters
from pdadmm.admm.problem import Problem
from pdadmm.admm.products import PRODUCTS
from pdadmm.admm.quantizer import Quantizer
from pdadmm.admm.settings import ADMMSettings, check_device_memory, check_streamed, check_tol
from pdadmm.admm.solver import ADMMSolver
from pdadmm.admm.streamed import largest_state
from pdadmm.console import human_bytes
from pdadmm.disk.limits import Limit
from pdadmm.disk.storage import Storage
from pdadmm.errors import InputError
from pdadmm.estimator import Outcome
from pdadmm.graph_classifier import GraphClassifier
from pdadmm.parallel.device import check_device
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

    streams = True

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

    def _checked(self, transport: Transport) -> Self:
        settings = self.checked()
        check_device(settings.device)
        if settings.device_memory is not None and transport.size > 1:
            remedy = "start one process, or leave it out"
            raise InputError("device_memory", settings.device_memory, "left out on several ranks", remedy)
        check_grid(settings.grid, transport.size, settings.layers)
        return settings

    def _problem(
        self, settings, graph, y, transport: Transport, on_disk: bool = False
    ) -> tuple[Problem, torch.Tensor | None, float]:
        if on_disk and settings.device == "cuda":
            raise InputError("device", "cuda", "cpu or auto with memory", "training from disk runs on the CPU")
        if on_disk and settings.device_memory is not None:
            allowed, remedy = "left out with memory", "training from disk runs on the CPU"
            raise InputError("device_memory", settings.device_memory, allowed, remedy)
        problem, shift, seconds = super()._problem(settings, graph, y, transport, on_disk)
        check_grid(settings.grid, transport.size, settings.layers, problem.nodes)
        return problem, shift, seconds

    def _train(
        self,
        problem: Problem,
        settings: PDADMMG,
        transport: Transport,
        watch: Callable[[dict[str, Any]], None],
        saver: Saver | None = None,
        storage: Storage | None = None,
    ) -> Outcome:
        solver = ADMMSolver(
            problem, settings, transport, settings.eval_every, watch, saver=saver, storage=storage
        ).run()
        summary = solver.summary()
        if solver.storage is not None:
            summary |= solver.storage.summary()
            solver.storage.remove()
        outcome = Outcome(solver.best_weights(), solver.history, solver.stages, summary)
        solver.close()
        return outcome

    def _storage(self, problem: Problem, settings: ADMMSettings, folder: Path, limit: Limit) -> Storage:
        """Return where X and the state lie while training from disk; X leaves the memory."""
        check_streamed(settings, "memory")
        taken = limit.most()
        if taken > limit.limit:
            allowed = f"more than the {human_bytes(taken)} that the augmented features took"
            raise InputError("memory", human_bytes(limit.limit), allowed, "or augment to disk first")
        X, problem.X = problem.X, None
        columns, widths = largest_state(settings, problem.nodes, problem.inputs, problem.classes)
        dtype, terms = getattr(torch, settings.dtype), PRODUCTS[settings.products].terms
        return Storage(folder, limit.limit, X, problem.nodes, widths, columns, dtype, terms)


@dataclass(eq=False, repr=False)
class PDADMMGQ(PDADMMG, Quantizer):
    """pdADMM-G-Q: PDADMMG with quantized messages; its own parameters are those of Quantizer.

    It trains in memory: the scale of a message needs all nodes before any is quantized.

    >>> from pdadmm import PDADMMGQ, digits
    >>> solver = PDADMMGQ(bits=4, layers=3, hidden=32, iterations=5).fit(digits())
    >>> solver.score(digits()) > 0.8
    True
    """

    streams = False

    def checked(self) -> Self:
        """Return a copy with every value checked and the quantizer built."""
        if self.quantizer is not None:
            raise InputError("quantizer", "given", "left to PDADMMG", "PDADMMGQ takes bits, coding, delta, ..")
        settings = super().checked()
        settings.quantizer = Quantizer.checked(self)
        check_tol(settings)
        check_device_memory(settings)
        return settings
