"""Start weights of networks trained by backpropagation, and the random numbers behind them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pdadmm.quantize.noise import seed_words

__all__ = ["INITIAL", "generator", "start_weights"]

# What a draw is for: the second word of its key.
WEIGHTS, ORDER, MASK, ROUNDING, BOUNDARY = 1, 2, 3, 4, 5


def generator(seed: int, purpose: int, *place: int) -> torch.Generator:
    """Return a generator that depends on (seed, purpose, place), as (iteration, layer, block), alone."""
    high, low = seed_words((seed, purpose, *place))
    return torch.Generator().manual_seed(high << 31 | low >> 1)


def he(shape: tuple[int, int], gain: float, draw: torch.Generator) -> Tensor:
    """Normal entries of variance gain^2 / n_{l-1} (He et al. 2015, equation 10); gain^2 = 2 for relu."""
    return torch.randn(shape, generator=draw, dtype=torch.float64) * (gain / math.sqrt(shape[1]))


def orthogonal(shape: tuple[int, int], gain: float, draw: torch.Generator) -> Tensor:
    """Gain times orthonormal rows, or columns where there are fewer (Saxe et al. 2014)."""
    rows, columns = max(shape), min(shape)
    Q, R = torch.linalg.qr(torch.randn(rows, columns, generator=draw, dtype=torch.float64))
    Q *= torch.where(R.diagonal() < 0, -1.0, 1.0)  # uniform over orthogonal matrices
    return gain * (Q if shape[0] >= shape[1] else Q.mT)


def like_linear(shape: tuple[int, int], draw: torch.Generator) -> Tensor:
    """Uniform entries within 1 / sqrt(n_{l-1}), as torch.nn.Linear draws them."""
    bound = 1.0 / math.sqrt(shape[1])
    return (2.0 * torch.rand(shape, generator=draw, dtype=torch.float64) - 1.0) * bound


# The layers between the first and the last of each scheme; "identity" needs no draw there.
INITIAL: dict[str, Callable[..., Tensor] | None] = {"he": he, "orthogonal": orthogonal, "identity": None}


def start_weights(
    scheme: str, seed: int, widths: Sequence[int], negative_slope: float, dtype: torch.dtype
) -> list[tuple[Tensor, Tensor]]:
    """Return (W, b) of every layer of the network ``widths`` = [n_0, .., n_L]; b is 0.

    "he" and "orthogonal" draw every layer alike, with gain^2 = 2 / (1 + s^2) for an activation of slope s
    below 0. "identity" starts hidden layers at W = I, the first as "he" and the last as torch.nn.Linear, so
    that the network starts as one of two layers. Each draw depends on (seed, layer) and is made in float64.

    >>> [W.shape for W, b in start_weights("he", 0, [4, 3, 2], 0.0, torch.float32)]
    [torch.Size([3, 4]), torch.Size([2, 3])]
    """
    gain = math.sqrt(2.0 / (1.0 + negative_slope**2))
    last, hidden = len(widths) - 2, INITIAL[scheme]
    weights = []
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        shape, draw = (outputs, inputs), generator(seed, WEIGHTS, layer)
        if hidden is not None:
            W = hidden(shape, gain, draw)
        elif layer == last:
            W = like_linear(shape, draw)
        elif layer == 0:
            W = he(shape, gain, draw)
        else:
            W = torch.eye(outputs, dtype=torch.float64)
        weights.append((W.to(dtype).contiguous(), torch.zeros(outputs, dtype=dtype)))
    return weights
