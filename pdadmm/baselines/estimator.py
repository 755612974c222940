"""GD, Adadelta, Adagrad and Adam: the same network trained by backpropagation, in scikit-learn's manner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch

from pdadmm.admm.problem import Problem
from pdadmm.baselines.backprop import BackpropSolver
from pdadmm.baselines.settings import BackpropSettings, learning_rate
from pdadmm.estimator import Outcome
from pdadmm.graph_classifier import GraphClassifier
from pdadmm.parallel.device import check_device
from pdadmm.parallel.transport import Transport
from pdadmm.parameters import below_one, param
from pdadmm.saver import Saver

__all__ = ["GD", "Adadelta", "Adagrad", "Adam", "Backprop"]


@dataclass(eq=False, repr=False)
class Backprop(GraphClassifier, BackpropSettings):
    """A GA-MLP trained by backpropagation; a subclass says by which optimiser of torch.optim.

    In one process, or under ``mpirun -n R`` with the training nodes dealt over the ranks and their gradients
    summed. The model kept is the full-depth iteration of best validation accuracy (the last iteration
    without validation nodes).
    """

    def optimizer(self, weights: list[Any]) -> torch.optim.Optimizer:
        """Return the optimiser of these weights, or groups of weights; the settings are checked ones."""
        raise NotImplementedError

    def _checked(self, transport: Transport) -> Self:
        settings = self.checked()
        check_device(settings.device)
        # torch imports its compiler, for seconds, when it makes its first optimiser: that is no training
        settings.optimizer([torch.zeros(1)])
        return settings

    def _train(
        self,
        problem: Problem,
        settings: Backprop,
        transport: Transport,
        watch: Callable[[dict[str, Any]], None],
        saver: Saver | None = None,
    ) -> Outcome:
        every = settings.eval_every
        solver = BackpropSolver(problem, settings, transport, settings.optimizer, every, watch, saver).run()
        layers = [(W.detach().cpu(), b.detach().cpu()) for W, b in solver.layers()]
        weights = dict(enumerate(layers)) if transport.rank == 0 else {}  # all ranks hold the same
        return Outcome(weights, solver.history, solver.stages, solver.summary())


def device_of(weights: list[Any]) -> str:
    """Return the kind of device that weights, or the first group of them, lie on."""
    first = weights[0]["params"][0] if isinstance(weights[0], dict) else weights[0]
    return first.device.type


def form(weights: list[Any], fused: tuple[str, ...]) -> dict[str, Any]:
    """Return which form of an optimiser to take: its fused one on the devices that torch has it for, else foreach."""
    return {"fused": True} if device_of(weights) in fused else {"foreach": True}


@dataclass(eq=False, repr=False)
class GD(Backprop):
    """Gradient descent, with momentum: ``torch.optim.SGD`` on all training nodes, or on batches.

    >>> from pdadmm import GD, digits
    >>> GD(layers=3, hidden=32, iterations=50).fit(digits()).score(digits()) > 0.8
    True
    """

    learning_rate: float = learning_rate(0.03)
    momentum: float = param(0.9, below_one, "share of the last step that is added to the next")

    def optimizer(self, weights: list[Any]) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            weights, self.learning_rate, self.momentum, weight_decay=self.weight_decay, **form(weights, ("cpu", "cuda"))
        )


@dataclass(eq=False, repr=False)
class Adadelta(Backprop):
    """Adadelta (Zeiler 2012): ``torch.optim.Adadelta`` with rho 0.9 and eps 1e-6.

    >>> from pdadmm import Adadelta, digits
    >>> Adadelta(layers=3, hidden=32, iterations=50).fit(digits()).score(digits()) > 0.8
    True
    """

    learning_rate: float = learning_rate(1.0)

    def optimizer(self, weights: list[Any]) -> torch.optim.Optimizer:
        # no fused form exists; on a CPU foreach is slower
        return torch.optim.Adadelta(
            weights, self.learning_rate, weight_decay=self.weight_decay, foreach=device_of(weights) != "cpu"
        )


@dataclass(eq=False, repr=False)
class Adagrad(Backprop):
    """Adagrad (Duchi, Hazan, Singer 2011): ``torch.optim.Adagrad`` with eps 1e-10.

    >>> from pdadmm import Adagrad, digits
    >>> Adagrad(layers=3, hidden=32, iterations=50).fit(digits()).score(digits()) > 0.8
    True
    """

    learning_rate: float = learning_rate(0.01)

    def optimizer(self, weights: list[Any]) -> torch.optim.Optimizer:
        return torch.optim.Adagrad(
            weights, self.learning_rate, weight_decay=self.weight_decay, **form(weights, ("cpu",))
        )


@dataclass(eq=False, repr=False)
class Adam(Backprop):
    """Adam (Kingma and Ba 2015): ``torch.optim.Adam`` with betas 0.9, 0.999 and eps 1e-8.

    >>> from pdadmm import Adam, digits
    >>> Adam(layers=3, hidden=32, iterations=50).fit(digits()).score(digits()) > 0.8
    True
    """

    learning_rate: float = learning_rate(0.001)

    def optimizer(self, weights: list[Any]) -> torch.optim.Optimizer:
        return torch.optim.Adam(
            weights, self.learning_rate, weight_decay=self.weight_decay, **form(weights, ("cpu", "cuda"))
        )
