"""Adam on a block of weights that keeps its own count of steps, number by number where parts of a matrix rest."""

from __future__ import annotations

from torch import Tensor

__all__ = ["adam_step_"]

BETA_1, BETA_2, EPS = 0.9, 0.999, 1e-8


def adam_step_(block: Tensor, gradient: Tensor, learning_rate: float, weight_decay: float, step: int) -> None:
    """Take one step of Adam (Kingma and Ba 2015) in place, with g the gradient plus weight_decay w:

        m <- 0.9 m + 0.1 g        v <- 0.999 v + 0.001 g^2
        w <- w - eta (m / (1 - 0.9^t)) / (sqrt(v / (1 - 0.999^t)) + 1e-8)

    ``block`` holds the planes w, m, v, and a fourth of t where every number has its own; else t is ``step``.

    >>> import torch
    >>> block = torch.zeros(3, 1)
    >>> adam_step_(block, torch.ones(1), 0.1, 0.0, 1)
    >>> round(float(block[0]), 6)
    -0.1
    """
    w, m, v = block[:3]
    g = gradient.add(w, alpha=weight_decay)
    m.lerp_(g, 1.0 - BETA_1)
    v.mul_(BETA_2).addcmul_(g, g, value=1.0 - BETA_2)
    if len(block) == 3:
        denominator = v.sqrt().div_((1.0 - BETA_2**step) ** 0.5).add_(EPS)
        w.addcdiv_(m, denominator, value=-learning_rate / (1.0 - BETA_1**step))
        return
    t = block[3].add_(1.0)
    denominator = v.div(1.0 - BETA_2**t).sqrt_().add_(EPS)
    w.addcdiv_(m.div(1.0 - BETA_1**t), denominator, value=-learning_rate)
