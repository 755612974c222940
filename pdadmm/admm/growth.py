"""Start weights, and growth: a stage's weights become the start of a deeper one with the same function."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import torch
from torch import Tensor

from pdadmm.parallel.placement import owner_of
from pdadmm.parallel.transport import Transport

__all__ = ["grow", "normal_numbers", "random_layer"]

Weights = dict[int, tuple[Tensor, Tensor]]


def normal_numbers(words: tuple[int, ...], rows: int, columns: int) -> Tensor:
    """Return (rows, columns) independent normal numbers in float64, which depend on ``words`` alone."""
    state = numpy.random.SeedSequence(words).generate_state(2)
    generator = torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def random_layer(
    seed: int, index: int, outputs: int, inputs: int, deviation: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return W (outputs, inputs) with independent normal entries, and b = 0, for layer ``index``.

    The draw depends on (seed, layer) and never on the rank; it is made in float64, so that every number
    format starts alike.
    """
    W = normal_numbers((seed, index), outputs, inputs)
    return (deviation * W).to(dtype), torch.zeros(outputs, dtype=dtype)


def grow(
    weights: Weights,
    old: Sequence[range],
    new: Sequence[range],
    widths: Sequence[int],
    shift: Tensor | None,
    dtype: torch.dtype,
    transport: Transport,
    device: torch.device | None = None,
) -> Weights:
    """Return the weights of this rank's layers above the first in a deeper network of the same function.

    The last layer keeps its W and b and becomes layer L_new; identity layers (W = I, b = 0) go in before
    it (section 6 of docs/math.md). Layers whose rank changes are sent there (kind "migration"). ``old`` and
    ``new`` are placements, ``widths`` [n_0, .., n_L] of the new network. ``shift`` (n,), for an activation
    with f(f(z)) != f(z), is added by the first inserted layer's bias, so that its input lies where f is
    linear, and taken off again by the last layer's. Arrays live on ``device``, by default in main memory.
    """
    old_depth, new_depth = (max(run.stop for run in placement) for placement in (old, new))
    target = {layer: layer for layer in range(1, old_depth - 1)} | {old_depth - 1: new_depth - 1}
    moved: Weights = {}
    for source, layer in target.items():
        if source == 0:  # the one layer of a linear model: rank 0 keeps it
            continue
        sender, receiver = owner_of(old, source), owner_of(new, layer)
        if transport.rank == sender and sender == receiver:
            moved[layer] = weights[source]
        elif transport.rank == sender:
            for array in weights[source]:
                transport.send(array.contiguous(), receiver, "migration")
        elif transport.rank == receiver:
            shapes = (widths[layer + 1], widths[layer]), (widths[layer + 1],)
            rooms = (torch.empty(shape, dtype=dtype, device=device) for shape in shapes)
            W, b = (transport.receive(room, sender, "migration") for room in rooms)
            moved[layer] = W, b
    for layer in new[transport.rank]:
        if old_depth - 1 <= layer < new_depth - 1:
            n = widths[layer]
            moved[layer] = torch.eye(n, dtype=dtype, device=device), torch.zeros(n, dtype=dtype, device=device)
    if shift is not None and new_depth > old_depth:
        if old_depth - 1 in moved:
            moved[old_depth - 1][1].add_(shift)
        if new_depth - 1 in moved:
            W, b = moved[new_depth - 1]
            moved[new_depth - 1] = W, b - W @ shift
    return moved
