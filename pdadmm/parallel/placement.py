"""Which rank holds which layers, or nodes: contiguous runs, balanced by cost, or by count."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

__all__ = ["layer_costs", "owner_of", "place_layers", "run_of"]


def place_layers(costs: Sequence[float], ranks: int) -> list[range]:
    """Split layers 0..len(costs)-1 into ``ranks`` contiguous runs whose largest cost is least.

    Ranks beyond the number of layers get an empty run. Among equal splits the one whose later runs
    are longer is taken, so that the result is a function of the arguments alone.

    >>> [list(run) for run in place_layers([4, 1, 1, 2], 2)]
    [[0], [1, 2, 3]]
    """
    layers, groups = len(costs), min(ranks, len(costs))
    prefix = [0.0]
    for cost in costs:
        prefix.append(prefix[-1] + cost)
    # best[g][i]: least possible maximum when the first i layers form g runs
    best = [[0.0] + [float("inf")] * layers]
    cut = [[0] * (layers + 1)]
    for g in range(1, groups + 1):
        row, choice = [float("inf")] * (layers + 1), [0] * (layers + 1)
        for i in range(g, layers + 1):
            for j in range(g - 1, i):
                worst = max(best[g - 1][j], prefix[i] - prefix[j])
                if worst < row[i]:
                    row[i], choice[i] = worst, j
        best.append(row)
        cut.append(choice)
    runs, end = [], layers
    for g in range(groups, 0, -1):
        runs.append(range(cut[g][end], end))
        end = cut[g][end]
    runs.reverse()
    return runs + [range(layers, layers)] * (ranks - groups)


def owner_of(placement: Sequence[range], layer: int) -> int:
    """Return the rank whose run holds ``layer`` (counted from 0)."""
    return next(rank for rank, run in enumerate(placement) if layer in run)


def run_of(count: int, rank: int, ranks: int) -> range:
    """Return the contiguous run of ``count`` rows that ``rank`` holds; runs differ by one row at most.

    >>> [list(run_of(5, rank, 2)) for rank in range(2)]
    [[0, 1], [2, 3, 4]]
    """
    return range(count * rank // ranks, count * (rank + 1) // ranks)


def layer_costs(nodes: int, widths: Sequence[int], first_cost: float) -> list[float]:
    """Estimate each layer's floating-point operations per iteration.

    ``widths`` = [n_0, n_1, .., n_L]; ``first_cost`` comes from the first layer's own form. A hidden layer
    has five products of V n_l n_{l-1} and Cholesky work of n^3; the last adds about ten Newton steps.
    """
    costs = [first_cost]
    for m, n in itertools.pairwise(widths[1:]):
        costs.append(10.0 * nodes * m * n + 2.0 * m**3)
    costs[-1] += 200.0 * nodes * widths[-1]
    return costs
