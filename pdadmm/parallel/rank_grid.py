"""The grid of ranks, layer groups x node shards: which shapes there are, which one is taken, who talks to whom."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pdadmm.errors import InputError
from pdadmm.parallel.placement import layer_costs, place_layers
from pdadmm.parallel.transport import Transport, alone
from pdadmm.parameters import Check, whole

__all__ = ["RankGrid", "check_grid", "choose_grid", "grid_name", "grids_of", "join_grid", "numbers_of_moments"]

# What a number summed over the ranks costs, in floating-point operations: 4 bytes at 1 GB/s beside 25 GFlop/s.
FLOPS_PER_NUMBER = 100.0


@dataclass(frozen=True)
class RankGrid:
    """``groups`` runs of layers times ``shards`` blocks of nodes; rank = group * shards + shard.

    The ranks of one group are neighbours, since their sums are waited for while p and q travel behind work: a
    launcher that fills one host after the other keeps the sums inside it.

    >>> str(RankGrid(2, 3))
    '2x3'
    """

    groups: int
    shards: int

    def __str__(self) -> str:
        return f"{self.groups}x{self.shards}"


def _accept(value: Any) -> str:
    if value == "auto":
        return "auto"
    groups, shards = (whole(1).accept(part) for part in str(value).split("x"))
    return str(RankGrid(groups, shards))


grid_name = Check(_accept, "auto, or layer groups x node shards such as 2x3", "GRID")


def grids_of(ranks: int, layers: int, nodes: int | None = None) -> list[RankGrid]:
    """Return every grid of so many ranks with a layer, and a node, or more in each part; most groups first.

    >>> [str(grid) for grid in grids_of(12, 10)]
    ['6x2', '4x3', '3x4', '2x6', '1x12']
    """
    divisors = (groups for groups in range(min(ranks, layers), 0, -1) if ranks % groups == 0)
    grids = [RankGrid(groups, ranks // groups) for groups in divisors]
    return [grid for grid in grids if nodes is None or grid.shards <= nodes]


def check_grid(name: str, ranks: int, layers: int, nodes: int | None = None) -> None:
    """Raise InputError where the grid ``name`` is none of this number of ranks, or "auto" has none to choose from.

    ``nodes`` are the training nodes, where they are known.
    """
    names = [str(grid) for grid in grids_of(ranks, layers, nodes)]
    if name in names or (name == "auto" and names):
        return
    for_what = f"with {_count(layers, 'layer')}" + ("" if nodes is None else f" and {_count(nodes, 'training node')}")
    if not names:
        raise InputError("ranks", ranks, f"a number that a grid of layer groups x node shards can have {for_what}")
    allowed = "auto or " + ("one of " if len(names) > 1 else "") + ", ".join(names)
    remedy = "layer groups x node shards are the number of ranks"
    raise InputError("grid", name, f"{allowed} on {_count(ranks, 'rank')} {for_what}", remedy)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def choose_grid(name: str, ranks: int, nodes: int, widths: Sequence[int], first_cost: float) -> RankGrid:
    """Return the grid called ``name``; "auto" gives each rank layers of its own while there are enough.

    Beyond that it is the grid whose slowest rank has least to do in an iteration: the operations of its layers for
    its share of the ``nodes``, and ``FLOPS_PER_NUMBER`` for each number of the moments that it sends. Among equals
    the one with more groups. ``widths`` = [n_0, .., n_L]; ``first_cost`` is layer 1's for all nodes.
    """
    layers = len(widths) - 1
    check_grid(name, ranks, layers, nodes)
    grids = grids_of(ranks, layers, nodes)
    if name != "auto":
        return next(grid for grid in grids if str(grid) == name)
    if grids[0].shards == 1:
        return grids[0]
    numbers = numbers_of_moments(widths)

    def cost(grid: RankGrid) -> float:
        costs = layer_costs(-(-nodes // grid.shards), widths, first_cost / grid.shards)
        share = 2.0 * (grid.shards - 1) / grid.shards
        costs = [flops + FLOPS_PER_NUMBER * share * sent for flops, sent in zip(costs, numbers, strict=True)]
        return max(sum(costs[run.start : run.stop]) for run in place_layers(costs, grid.groups))

    return min(grids, key=cost)


def numbers_of_moments(widths: Sequence[int]) -> list[int]:
    """Return how many numbers the shards sum for each layer's W and b in an iteration, exact form.

    Layer 1 has n_0 n_1 + n_1 (its p^T p is summed once), layer l has m^2 + n m + m + n with m inputs and n outputs.

    >>> numbers_of_moments([5, 2, 3])
    [12, 15]
    """
    first = widths[0] * widths[1] + widths[1]
    return [first, *((m + n) * m + m + n for m, n in itertools.pairwise(widths[1:]))]


def join_grid(transport: Transport, grid: RankGrid) -> tuple[Transport, Transport]:
    """Return the transports of this rank's column (its shard in all groups) and row (its group, all shards).

    A rank of the column is a layer group, a rank of the row a shard. Collective. A grid of one column, or of one
    row, uses ``transport`` itself: nothing is sent that was not before.
    """
    if grid.shards == 1:
        return transport, alone(transport)
    if grid.groups == 1:
        return alone(transport), transport
    group, shard = divmod(transport.rank, grid.shards)
    return transport.split(shard), transport.split(group)
