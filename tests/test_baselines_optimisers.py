"""Each optimiser takes the step of its formula."""

from __future__ import annotations

import numpy as np
import pytest
from backprop_small import ESTIMATORS, by_hand, copies, made_problem, made_solver

from pdadmm import GD, Adadelta, Adagrad, Adam


class HandGD:
    def __init__(self, rate, momentum):
        self.rate, self.momentum, self.v = rate, momentum, None

    def __call__(self, w, g):
        self.v = g if self.v is None else self.momentum * self.v + g
        return w - self.rate * self.v


class HandAdam:
    def __init__(self, rate):
        self.rate, self.m, self.v, self.t = rate, 0.0, 0.0, 0

    def __call__(self, w, g):
        self.t += 1
        self.m, self.v = 0.9 * self.m + 0.1 * g, 0.999 * self.v + 0.001 * g * g
        m, v = self.m / (1 - 0.9**self.t), self.v / (1 - 0.999**self.t)
        return w - self.rate * m / (np.sqrt(v) + 1e-8)


class HandAdagrad:
    def __init__(self, rate):
        self.rate, self.s = rate, 0.0

    def __call__(self, w, g):
        self.s = self.s + g * g
        return w - self.rate * g / (np.sqrt(self.s) + 1e-10)


class HandAdadelta:
    def __init__(self, rate):
        self.rate, self.s, self.d = rate, 0.0, 0.0

    def __call__(self, w, g):
        self.s = 0.9 * self.s + 0.1 * g * g
        step = np.sqrt(self.d + 1e-6) / np.sqrt(self.s + 1e-6) * g
        self.d = 0.9 * self.d + 0.1 * step * step
        return w - self.rate * step


HANDS = {
    "gd": (GD, {"learning_rate": 0.3, "momentum": 0.7}, lambda: HandGD(0.3, 0.7)),
    "gd-plain": (GD, {"learning_rate": 0.3, "momentum": 0.0}, lambda: HandGD(0.3, 0.0)),
    "adam": (Adam, {"learning_rate": 0.02}, lambda: HandAdam(0.02)),
    "adagrad": (Adagrad, {"learning_rate": 0.05}, lambda: HandAdagrad(0.05)),
    "adadelta": (Adadelta, {"learning_rate": 0.8}, lambda: HandAdadelta(0.8)),
}


@pytest.mark.parametrize("decay", [0.0, 0.03])
@pytest.mark.parametrize("name", HANDS)
def test_steps_are_the_formulas(name, decay):
    estimator, chosen, hand = HANDS[name]
    problem = made_problem()
    solver = made_solver(estimator, problem, weight_decay=decay, **chosen)
    weights = copies(solver)
    hands = [hand() for _ in weights]
    X, y = problem.X[:20].numpy(), problem.y[:20].numpy()
    for iteration in range(1, 6):
        solver._pass(iteration)
        _, gradients = by_hand(weights, X, y, 0.0, "cross_entropy")
        weights = [rule(w, g + decay * w) for rule, w, g in zip(hands, weights, gradients)]
        for ours, theirs in zip(copies(solver), weights):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_steps_do_not_depend_on_memory_order(estimator, monkeypatch):
    """Fused optimisers walk through weight and gradient as they lie in memory."""
    solver, transposed = made_solver(estimator), made_solver(estimator)
    keep = transposed._summed

    def turned(gradients, loss):
        gradients, loss = keep(gradients, loss)
        return [g.mT.contiguous().mT if g.dim() == 2 else g for g in gradients], loss

    monkeypatch.setattr(transposed, "_summed", turned)
    transposed._adopt([(W.mT.contiguous().mT, b) for W, b in transposed.layers()])
    for iteration in range(1, 4):
        solver._pass(iteration)
        transposed._pass(iteration)
    for one, other in zip(copies(solver), copies(transposed)):
        np.testing.assert_allclose(one, other, rtol=1e-12)
