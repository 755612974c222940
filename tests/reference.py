"""One iteration of pdADMM-G in numpy float64, written from the paper's equations: slow and plain.

Nothing here is shared with the library. Layers are numbered from 0; lists hold one array a layer, with None
where a layer has no such array (q, u of the last one). p[0] is the fixed input, with the ridge kappa[0] on W[0];
kappa[l] pulls a hidden W toward target[l] (None: no pull), prox[l] holds it at its last value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Extrapolation", "Setting", "State", "activation", "iterate", "lagrangian", "newton_z", "scan_z"]


@dataclass
class State:
    p: list
    W: list
    b: list
    z: list
    q: list
    u: list
    last_step: np.ndarray | None = None  # of W[0], for "cg"


@dataclass
class Setting:
    nu: float
    rho: float
    mu: float
    prox_z: float
    kappa: list
    prox: list
    target: list
    slope: float  # of the activation below 0
    exact: list  # one truth value a layer: Cholesky solves, or majorised steps; "cg" for layer 0's plane of two
    y: np.ndarray
    loss: str = "cross_entropy"
    floor: float = 0.0  # in exact steps W[l], l > 0, is held at its last value by floor (|p|^2 + 1) besides prox


def activation(z, slope):
    return np.where(z >= 0, z, slope * z)


def scan_z(a, q, z_old, prox_z, slope):
    """argmin (z-a)^2 + (q-f(z))^2 + prox_z (z-z_old)^2 for one element: the best of each piece's minimiser."""

    def objective(z):
        f = z if z >= 0 else slope * z
        return (z - a) ** 2 + (q - f) ** 2 + prox_z * (z - z_old) ** 2

    right = max(0.0, (a + q + prox_z * z_old) / (2 + prox_z))
    left = min(0.0, (a + slope * q + prox_z * z_old) / (1 + slope**2 + prox_z))
    return min((left, right), key=objective)


def newton_z(a, y, nu):
    """argmin logsumexp(z) - z[y] + nu/2 |z - a|^2 for one node: Newton, backtracking until close."""

    def value(z):
        return z.max() + np.log(np.exp(z - z.max()).sum()) - z[y] + nu / 2 * ((z - a) ** 2).sum()

    z = np.array(a, dtype=float)
    for _ in range(500):
        pi = np.exp(z - z.max())
        pi /= pi.sum()
        gradient = pi + nu * (z - a)
        gradient[y] -= 1
        step = np.linalg.solve(np.diag(pi + nu) - np.outer(pi, pi), gradient)
        t = 1.0
        while abs(step).max() > 1e-4 and t > 1e-8 and value(z - t * step) > value(z) - 1e-4 * t * gradient @ step:
            t /= 2
        z = z - t * step
        if abs(t * step).max() < 1e-15 * (1 + abs(z).max()):
            break
    return z


def exact_p(z, W, b, q, u, nu, rho):
    """Solve nu (p W^T + b - z) W + u + rho (p - q) = 0 for p."""
    H = nu * W.T @ W + rho * np.eye(W.shape[1])
    return np.linalg.solve(H, (nu * (z - b) @ W + rho * q - u).T).T


def gradient_p(p, z, W, b, q, u, nu, rho):
    """One gradient step for every node, its tau the curvature along the gradient."""
    p = p.copy()
    for i in range(len(p)):
        g = nu * (p[i] @ W.T + b - z[i]) @ W + u[i] + rho * (p[i] - q[i])
        if g @ g > 0:
            tau = (nu * (W @ g) @ (W @ g) + rho * g @ g) / (g @ g)
            p[i] -= g / tau
    return p


def exact_W_b(p, z, W_old, ridge, prox, kappa, target):
    """Minimise |z - p W^T - b|^2 + ridge |W|^2 + prox |W - W_old|^2 + kappa |W - target|^2 over W and b at once."""
    V, m = p.shape
    A = np.hstack([p, np.ones((V, 1))])
    weights = np.append(np.full(m, ridge + prox + kappa), 0.0)
    right = A.T @ z
    right[:m] += prox * W_old.T
    if target is not None:
        right[:m] += kappa * target.T
    solution = np.linalg.solve(A.T @ A + np.diag(weights), right)
    return solution[:m].T, solution[m]


def gradient_W_b(p, z, W, b, nu, mu, kappa, target):
    """One gradient step on nu/2 |z - p W^T - b|^2 + mu/2 |W|^2 + nu kappa/2 |W - target|^2, then the exact b."""
    pull = W if target is None else W - target
    G = nu * (p @ W.T + b - z).T @ p + mu * W + nu * kappa * pull
    if (G * G).sum() > 0:
        theta = (nu * ((p @ G.T) ** 2).sum() + (mu + nu * kappa) * (G * G).sum()) / (G * G).sum()
        W = W - G / theta
    return W, b + (z - p @ W.T - b).mean(axis=0)


def conjugate_W_b(p, z, W, b, last, kappa):
    """The exact b, then for each neuron the best W in the plane of its gradient and its last step; p has mean zero."""
    b = b + (z - p @ W.T - b).mean(axis=0)
    G = (z - p @ W.T - b).T @ p - kappa * W
    steps = np.zeros_like(W)
    for j in range(len(W)):
        D = np.stack([G[j], last[j]])
        H, g = (p @ D.T).T @ (p @ D.T) + kappa * D @ D.T, D @ G[j]
        if np.linalg.det(H) > np.finfo(float).eps ** 0.5 * H[0, 0] * H[1, 1]:
            steps[j] = np.linalg.solve(H, g) @ D
        elif H[0, 0] > 0:
            steps[j] = g[0] / H[0, 0] * G[j]
    return W + steps, b, steps


def iterate(state: State, setting: Setting) -> State:
    """Return the state after one iteration: every p, then every W and b, every z, every q, every u."""
    s, L = setting, len(state.W)
    p, W, b, z = list(state.p), list(state.W), list(state.b), list(state.z)
    q, u, step = list(state.q), list(state.u), None
    for l in range(1, L):
        arguments = state.z[l], state.W[l], state.b[l], state.q[l - 1], state.u[l - 1], s.nu, s.rho
        p[l] = exact_p(*arguments) if s.exact[l] else gradient_p(state.p[l], *arguments)
    for l in range(L):
        mu = 0.0 if l == 0 else s.mu
        if s.exact[l] == "cg":
            W[l], b[l], step = conjugate_W_b(p[l], state.z[l], state.W[l], state.b[l], state.last_step, s.kappa[l])
        elif s.exact[l]:
            prox = s.prox[l] + (s.floor * ((p[l] ** 2).sum() + 1) if l > 0 else 0.0)
            W[l], b[l] = exact_W_b(p[l], state.z[l], state.W[l], mu / s.nu, prox, s.kappa[l], s.target[l])
        else:
            W[l], b[l] = gradient_W_b(p[l], state.z[l], state.W[l], state.b[l], s.nu, mu, s.kappa[l], s.target[l])
    for l in range(L):
        a = p[l] @ W[l].T + b[l]
        if l < L - 1:
            elements = zip(a.ravel(), state.q[l].ravel(), state.z[l].ravel())
            z[l] = np.array([scan_z(*e, s.prox_z, s.slope) for e in elements]).reshape(a.shape)
        elif s.loss == "cross_entropy":
            z[l] = np.stack([newton_z(a[i], s.y[i], s.nu) for i in range(len(a))])
        else:
            z[l] = (np.eye(a.shape[1])[s.y] + s.nu * a) / (1 + s.nu)
    for l in range(L - 1):
        q[l] = (s.rho * p[l + 1] + state.u[l] + s.nu * activation(z[l], s.slope)) / (s.rho + s.nu)
        u[l] = state.u[l] + s.rho * (p[l + 1] - q[l])
    return State(p, W, b, z, q, u, step)


class Extrapolation:
    """Nesterov momentum over the iterations of one stage: x_k + (t_k - 1)/t_{k+1} (x_k - x_{k-1}) for x = q, u, z.

    x_k is what ``iterate`` returns, x_0 the stage's start. t_1 = 1, t_{k+1} = (1 + sqrt(1 + 4 t_k^2))/2. Where
    |p_k - q_k|^2 + |q_k - q^_{k-1}|^2 is not below its last value, with q^ what the iteration saw, t_k = 1 again.
    ``ties`` tells whether such a comparison was so close that rounding decides it; ``restarts`` counts.
    """

    def __init__(self, start: State) -> None:
        self.inner = range(len(start.W) - 1)
        self.last = [(start.q[l], start.u[l], start.z[l]) for l in self.inner]
        self.t, self.measures = [1.0 for _ in self.inner], [np.inf for _ in self.inner]
        self.betas = [[] for _ in self.inner]
        self.ties, self.restarts = False, 0

    def extrapolate(self, seen: State, state: State) -> State:
        """Return what follows ``state``, which ``iterate`` made of ``seen``; p, W and b stay."""
        q, u, z = list(state.q), list(state.u), list(state.z)
        for l in self.inner:
            gap, step = state.p[l + 1] - state.q[l], state.q[l] - seen.q[l]
            measure, before = (gap**2).sum() + (step**2).sum(), self.measures[l]
            rounding = 1e-20 * (1 + (state.q[l] ** 2).sum())  # below it steps are too short to matter
            self.ties |= bool(rounding < before < np.inf and abs(measure - before) <= 1e-6 * before)
            if not measure < before:
                self.t[l] = 1.0
                self.restarts += 1
            following = (1 + np.sqrt(1 + 4 * self.t[l] ** 2)) / 2
            beta = (self.t[l] - 1) / following
            self.t[l], self.measures[l] = following, measure
            self.betas[l].append(beta)
            now = state.q[l], state.u[l], state.z[l]
            q[l], u[l], z[l] = (x + beta * (x - old) for x, old in zip(now, self.last[l]))
            self.last[l] = now
        return State(state.p, state.W, state.b, z, q, u, state.last_step)


def risk(z, y, loss):
    if loss == "squared_error":
        return 0.5 * ((z - np.eye(z.shape[1])[y]) ** 2).sum()
    shifted = z - z.max(axis=1, keepdims=True)
    return (np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(y)), y]).sum()


def lagrangian(state: State, setting: Setting) -> float:
    """The augmented Lagrangian, ridges included; W[0]'s is nu/2 kappa[0] |W|^2."""
    s, L = setting, len(state.W)
    value = risk(state.z[-1], s.y, s.loss)
    for l in range(L):
        value += s.nu / 2 * ((state.z[l] - state.p[l] @ state.W[l].T - state.b[l]) ** 2).sum()
        value += (s.mu / 2 if l > 0 else 0.0) * (state.W[l] ** 2).sum()
        pull = state.W[l] if s.target[l] is None else state.W[l] - s.target[l]
        value += s.nu / 2 * s.kappa[l] * (pull**2).sum()
    for l in range(L - 1):
        gap = state.p[l + 1] - state.q[l]
        value += s.nu / 2 * ((state.q[l] - activation(state.z[l], s.slope)) ** 2).sum()
        value += (state.u[l] * gap).sum() + s.rho / 2 * (gap**2).sum()
    return float(value)
