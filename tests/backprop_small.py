"""Small problems of backpropagation, and its gradient written out by hand."""

from __future__ import annotations

import numpy as np
import torch

from pdadmm import GD, Adadelta, Adagrad, Adam, Graph, csbm
from pdadmm.admm.problem import Problem
from pdadmm.baselines.backprop import BackpropSolver
from pdadmm.parallel.transport import LocalTransport

__all__ = ["ACTIVATIONS", "ESTIMATORS", "by_hand", "copies", "made_problem", "made_solver", "small_graph"]

ESTIMATORS = (GD, Adadelta, Adagrad, Adam)
ACTIVATIONS = {"relu": 0.0, "leaky_relu": 0.01, "identity": 1.0}


def small_graph() -> Graph:
    return csbm(150, num_classes=3, num_features=6, seed=2)


def made_problem(V: int = 20, others: int = 9, inputs: int = 5, classes: int = 3, seed: int = 0) -> Problem:
    random = np.random.default_rng(seed)
    N = V + others
    X = torch.from_numpy(random.normal(size=(N, inputs)))
    parts = {"train": slice(0, V), "val": slice(V, V + others // 2), "test": slice(V + others // 2, N)}
    return Problem(X, torch.from_numpy(random.integers(classes, size=N)), inputs, classes, parts)


def made_solver(estimator, problem=None, **more) -> BackpropSolver:
    """A solver at its start, in float64."""
    chosen = {"layers": 3, "hidden": 4, "dtype": "float64"} | more
    checked = estimator(**chosen).checked()
    problem = problem or made_problem()
    solver = BackpropSolver(problem, checked, LocalTransport(), checked.optimizer)
    solver._start(checked.stages[0])
    return solver


def copies(solver) -> list[np.ndarray]:
    return [weight.detach().numpy().copy() for weight in solver.weights]


def by_hand(weights, X, y, slope, loss, masks=None, share=0.0):
    """Mean loss and gradients of every W and b, written out in numpy."""
    pairs = list(zip(weights[::2], weights[1::2]))
    inputs, pre = [X], []
    for number, (W, b) in enumerate(pairs):
        z = inputs[-1] @ W.T + b
        pre.append(z)
        if number + 1 < len(pairs):
            h = np.where(z > 0, z, slope * z)
            inputs.append(h if masks is None else h * masks[number] / (1 - share))
    z, V = pre[-1], len(X)
    target = np.eye(z.shape[1])[y]
    if loss == "squared_error":
        value, delta = 0.5 * ((z - target) ** 2).sum() / V, (z - target) / V
    else:
        exp = np.exp(z - z.max(1, keepdims=True))
        proba = exp / exp.sum(1, keepdims=True)
        value, delta = -np.log(proba[np.arange(V), y]).mean(), (proba - target) / V
    gradients = []
    for number in reversed(range(len(pairs))):
        gradients = [delta.T @ inputs[number], delta.sum(0), *gradients]
        if number:
            delta = delta @ pairs[number][0]
            if masks is not None:
                delta = delta * masks[number - 1] / (1 - share)
            delta = delta * np.where(pre[number - 1] > 0, 1.0, slope)
    return value, gradients
