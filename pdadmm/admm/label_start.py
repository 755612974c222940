"""A start from the labels: W_1 by ridge regression onto random codes of the classes, W_L onto the classes."""

from __future__ import annotations

import torch
from torch import Tensor

from pdadmm.admm.growth import normal_numbers
from pdadmm.admm.shard import Shard
from pdadmm.admm.updates import spd_solve

__all__ = ["INITIAL", "RANDOM_SHARE", "centred_labels", "class_codes", "regress_labels"]

INITIAL = ("random", "labels")

# Found on validation accuracy alone (docs/benchmarks/accuracy.md): the random part of z_1 beside that of the codes, and
# the ridge of W_L in units of the mean diagonal of p^T p.
RANDOM_SHARE = 0.3
OUTPUT_RIDGE = 0.1


def centred_labels(y: Tensor, classes: int, dtype: torch.dtype, shard: Shard) -> tuple[Tensor, Tensor]:
    """Return the one-hot labels (V, C) of this shard's nodes less their mean over all nodes, and that mean (C,)."""
    Y = torch.nn.functional.one_hot(y, classes).to(dtype)
    mean = shard.mean(Y, "init")
    return Y - mean, mean


def class_codes(seed: int, Y: Tensor, width: int, deviation: float, shard: Shard) -> Tensor:
    """Return codes (``width``, C): normal numbers for which Y codes^T has this deviation over nodes and neurons.

    With no more than C neurons a neuron is a class. The draw depends on the seed alone.
    """
    classes = Y.shape[1]
    if width <= classes:
        codes = torch.eye(width, classes, dtype=Y.dtype, device=Y.device)
    else:
        codes = normal_numbers((seed, 0, 1), width, classes).to(Y)
    (squared,) = shard.sums(float((Y @ codes.mT).double().square().sum()))
    return codes * (deviation / ((squared / (shard.nodes * width)) ** 0.5 or 1.0))


def regress_labels(p: Tensor, centre: Tensor, Y: Tensor, mean: Tensor, shard: Shard) -> tuple[Tensor, Tensor]:
    """Return W (C, m) and b (C,) of the ridge regression of Y + mean on p (V, m), whose mean is ``centre``."""
    about = p - centre
    gram, cross = shard.totals((about.mT @ about, Y.mT @ about))
    gram.diagonal().add_(OUTPUT_RIDGE * float(gram.diagonal().mean()) or 1.0)
    W = spd_solve(gram, cross)
    return W, mean - W @ centre
