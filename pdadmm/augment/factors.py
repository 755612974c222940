"""One factor for each hop, by the leave-one-out error of ridge regression onto the labels of few nodes."""

from __future__ import annotations

import numpy as np

__all__ = ["MOST_NODES", "LeaveOneOut", "hop_factors"]

MOST_NODES = 512  # a step costs (nodes)^3; with thousands of nodes equal hops are better (docs/benchmarks/accuracy.md)
# Both found on validation accuracy alone. The ridge is that of pdADMM-G's first layer, kappa_first.
_RIDGE = 0.2
_TOWARD_ONE = 0.001
_STEPS = 25
_FARTHEST = 100.0  # from log c = 0 that the error is asked at: a line search may try places whose squares overflow
_FINENESS = 64  # factors are powers of 2^(1/64): rounding of the sums does not reach them


def hop_factors(p: np.ndarray, labels: np.ndarray, blocks: int) -> np.ndarray:
    """Return a factor c_k for each of the hop ``blocks`` of p [m, blocks F], centred float64; ``labels`` [m] from 0.

        minimise over c:  |e|^2 / |Y|^2 + 0.001 sum_k (log c_k)^2

    Y are the one-hot labels less their mean, e the leave-one-out errors of ridge regression of Y on
    [c_0 p^(0), .., c_K p^(K)] with a ridge of 0.2 times the mean squared length of a row. By L-BFGS from c = 1. The
    factors keep the rows' mean squared length; they are 1 where fewer than two classes or hops are there to tell
    apart, or more than 512 nodes.

    Source: this library's; leave-one-out errors of linear smoothers by Allen 1974 (PRESS).

    >>> hop_factors(np.array([[1.0, 0.5], [1.0, -0.5], [-1.0, 0.5], [-1.0, -0.5]]), np.array([0, 0, 1, 1]), 2).round(2)
    array([1.11, 0.27])
    """
    m, classes = len(p), np.unique(labels)
    if blocks == 1 or len(classes) < 2 or m > MOST_NODES:
        return np.ones(blocks)
    hops = p.reshape(m, blocks, -1)
    kernels = np.stack([hops[:, k] @ hops[:, k].T for k in range(blocks)])
    traces = kernels.trace(axis1=1, axis2=2)
    if not traces.sum() > np.finfo(np.float64).tiny:  # zeros, or squares that are
        return np.ones(blocks)
    from scipy.optimize import minimize  # takes a while to import

    target = (labels[:, None] == classes).astype(np.float64)
    problem = LeaveOneOut(kernels, target - target.mean(axis=0))
    found = minimize(problem, np.zeros(blocks), jac=True, method="L-BFGS-B", options={"maxiter": _STEPS})
    logs = found.x - 0.5 * np.log((np.exp(2 * found.x) @ traces) / traces.sum())
    return np.exp2(np.round(logs / np.log(2) * _FINENESS) / _FINENESS)


class LeaveOneOut:
    """What hop_factors minimises, a function of log c, with its gradient; ``kernels`` [K + 1, m, m], ``target`` [m, C].

    With A = sum_k c_k^2 K_k + kappa I and G = A^-1, the error of node i by a fit without it is (G Y)_i / G_ii. kappa
    is 0.2 / m times the trace of sum_k c_k^2 K_k, held fixed when a node is left out.
    """

    def __init__(self, kernels: np.ndarray, target: np.ndarray) -> None:
        self.kernels, self.target = kernels, target
        self.ridges = _RIDGE / len(target) * kernels.trace(axis1=1, axis2=2)
        self.scale = 1.0 / (target**2).sum()

    def __call__(self, logs: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the value and the gradient at ``logs``, log c [K + 1]; beyond 100 the errors are those at 100."""
        near = logs.clip(-_FARTHEST, _FARTHEST)
        squares, Y = np.exp(2.0 * near), self.target
        A = np.tensordot(squares, self.kernels, 1)
        A.flat[:: len(A) + 1] += squares @ self.ridges
        G = np.linalg.inv(A)
        alpha, g = G @ Y, G.diagonal()[:, None]
        e = alpha / g
        value = self.scale * (e**2).sum() + _TOWARD_ONE * (logs**2).sum()
        # d e_i = -(G dA alpha)_i / g_i + alpha_i (G dA G)_ii / g_i^2, so the derivative by A is
        by_A = 2.0 * self.scale * ((G * (e * alpha / g**2).sum(axis=1)) @ G - (G @ (e / g)) @ alpha.T)
        by_square = np.tensordot(self.kernels, by_A, 2) + self.ridges * by_A.trace()
        return float(value), 2.0 * squares * by_square * (near == logs) + 2.0 * _TOWARD_ONE * logs
