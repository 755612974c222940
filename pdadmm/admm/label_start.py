"""A start from the labels: W_1 by ridge regression onto random codes of the classes, W_L onto the classes."""

from __future__ import annotations

import torch
from torch import Tensor

from pdadmm.admm.growth import normal_numbers
from pdadmm.admm.shard import Shard
from pdadmm.admm.updates import spd_solve

__all__ = ["INITIAL", "RANDOM_SHARE", "CentredLabels", "regress_labels"]

INITIAL = ("random", "labels")

# Found on validation accuracy alone (docs/benchmarks/accuracy.md): the random part of z_1 beside that of the codes, and
# the ridge of W_L in units of the mean diagonal of p^T p.
RANDOM_SHARE = 0.3
OUTPUT_RIDGE = 0.1


class CentredLabels:
    """The one-hot labels of the training nodes less their mean, Y (V, C), made for some nodes at a time.

    ``y`` (V,) are the classes of this shard's nodes, and may lie elsewhere than on ``device``, where Y is wanted.
    ``mean`` (C,) is that of the one-hot labels.
    """

    def __init__(
        self, y: Tensor, classes: int, dtype: torch.dtype, shard: Shard, device: torch.device | None = None
    ) -> None:
        self.y, self.classes = y, classes
        counts = torch.bincount(y.cpu(), minlength=classes).double()
        self.shares = shard.total(counts, "init") / shard.nodes
        self.mean = self.shares.to(device, dtype)

    def of(self, y: Tensor) -> Tensor:
        """Return the rows of Y of nodes with the classes ``y``."""
        return torch.nn.functional.one_hot(y, self.classes).to(self.mean.dtype) - self.mean

    def codes(self, seed: int, width: int, deviation: float) -> Tensor:
        """Return codes (``width``, C): normal numbers for which Y codes^T has this deviation over nodes and neurons.

        With no more than C neurons a neuron is a class. The draw depends on the seed alone.
        """
        if width <= self.classes:
            codes = torch.eye(width, self.classes, dtype=torch.float64)
        else:
            codes = normal_numbers((seed, 0, 1), width, self.classes)
        about = codes - (codes @ self.shares)[:, None]
        # of Y codes^T, whose rows are the codes of the nodes' classes less their mean
        variance = float((about.square() @ self.shares).mean())
        return (codes * (deviation / (variance**0.5 or 1.0))).to(self.mean)


def regress_labels(gram: Tensor, cross: Tensor, centre: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Return W (C, m) and b (C,) of the ridge regression of Y + ``mean`` on p (V, m), whose mean is ``centre``.

    ``gram`` (m, m) and ``cross`` (C, m) are the sums over the nodes of about^T about and Y^T about, about = p - centre.
    """
    gram.diagonal().add_(OUTPUT_RIDGE * float(gram.diagonal().mean()) or 1.0)
    W = spd_solve(gram, cross)
    return W, mean - W @ centre
