"""Who trains which hidden dimensions in a round, and what each worker's narrow network then consists of."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pdadmm.data.splits import generator
from pdadmm.models.gnn import ARCHITECTURES

__all__ = ["Groups", "Matrix", "columns_of", "deal_groups", "matrices"]


Groups = list[list[np.ndarray]]  # of each hidden layer, the dimensions of each worker


@dataclass(frozen=True)
class Matrix:
    """One weight matrix as GIST cuts it: its rows are the dimensions of hidden layer ``rows``, counted from 1.

    Layers 1 to L-1 are [W | b]. The last is transposed, a row for each hidden dimension with the classes' weights, for
    GraphSAGE those of the dimension itself and then those of its neighbours' mean. ``columns`` is the hidden layer
    whose dimensions the columns are, ``copies`` times over, before the bias; None for a matrix not cut there.
    """

    rows: int
    columns: int | None
    shape: tuple[int, int]
    copies: int

    @property
    def planes(self) -> int:
        """Numbers kept with each weight: w, Adam's m and v, and its steps where a part of the matrix rests."""
        return 3 if self.columns is None else 4


def columns_of(matrix: Matrix, groups: Groups, worker: int) -> np.ndarray | None:
    """Return a worker's columns: its group, for GraphSAGE also the group shifted by d, and the bias; None is all."""
    if matrix.columns is None:
        return None
    group, bias = groups[matrix.columns - 1][worker], matrix.shape[1] - 1
    return np.concatenate([*(group + copy * (bias // matrix.copies) for copy in range(matrix.copies)), [bias]])


def matrices(architecture: str, widths: Sequence[int]) -> list[Matrix]:
    """Return the matrices of the network ``widths`` = [n_0, .., n_L], L at least 2.

    >>> [matrix.shape for matrix in matrices("sage", [5, 8, 8, 3])]
    [(8, 11), (8, 17), (8, 6)]
    """
    copies, last = ARCHITECTURES[architecture].copies, len(widths) - 1
    inner = [
        Matrix(layer, layer - 1 or None, (n, copies * m + 1), copies)
        for layer, (m, n) in enumerate(itertools.pairwise(widths[:-1]), start=1)
    ]
    return [*inner, Matrix(last - 1, None, (widths[-2], copies * widths[-1]), copies)]


def deal_groups(seed: int, round_: int, widths: Sequence[int], parts: int) -> Groups:
    """Return the groups of each hidden layer: a random permutation dealt into ``parts``, each group in rising order.

    A draw depends on (seed, round, layer); group sizes differ by one at most.

    >>> [[len(group) for group in layer] for layer in deal_groups(0, 1, [5, 8, 9, 3], 2)]
    [[4, 4], [5, 4]]
    """
    return [
        [np.sort(part) for part in np.array_split(generator(seed, f"groups {round_} {layer}").permutation(n), parts)]
        for layer, n in enumerate(widths[1:-1], start=1)
    ]
