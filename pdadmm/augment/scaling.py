"""Scaling of the augmented features; it decides the accuracy more than anything else in this package."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pdadmm.augment.factors import MOST_NODES, hop_factors
from pdadmm.errors import InputError

__all__ = ["SCALINGS", "Scaler", "Scaling"]


class Scaling(NamedTuple):
    """What a scaling does: unit length for each ``unit`` ("hop", "row", ""), then centre, divide columns.

    ``divide`` is "deviation", "shrunk" (the deviation drawn toward that of all columns) or ""; ``labelled`` says
    that hops then get factors that are learned from labels.
    """

    unit: str
    centre: bool
    divide: str
    labelled: bool = False

    def learns_factors(self, blocks: int, rows: int) -> bool:
        """Whether so many hop blocks get factors from so many fitting rows: these are in memory meanwhile."""
        return self.labelled and blocks > 1 and rows <= MOST_NODES

    def passes(self, blocks: int, rows: int) -> int:
        """How often fitting goes over its rows."""
        return self.centre + bool(self.divide) + self.learns_factors(blocks, rows)


SCALINGS: dict[str, Scaling] = {
    "hop-std": Scaling("hop", True, "shrunk"),
    "hop-loo": Scaling("hop", True, "shrunk", labelled=True),
    "hop-l2": Scaling("hop", True, ""),
    "row-l2": Scaling("row", False, ""),
    "standard": Scaling("", True, "deviation"),
    "none": Scaling("", False, ""),
}

# A column's variance counts as if 0.3 further columns a node had the mean variance: found on validation
# accuracy alone (docs/benchmarks/accuracy.md).
_SHRINKAGE = 0.3

_BLOCK = 1 << 17  # numbers handled at once: their float64 copy stays in cache


class Scaler:
    """Row normalisation, then one shift and one scale per column.

        x <- x / |x|                 per row and hop block ("hop-*"), per row ("row-l2"); zero rows stay zero
        x <- (x - shift) * scale     shift: column means over the fitting rows ("hop-*", "standard"), else 0
                                     scale: 1 / standard deviation over them ("standard"),
                                     c / sqrt(v_j + 0.3 (n_0 / m) mean(v)) ("hop-std", "hop-loo"), else 1
        x <- c_k x                   per hop block ("hop-loo"), c by hop_factors

    where v_j is the variance of column j over the m fitting rows and c keeps their mean squared length. "hop-loo" is
    "hop-std" with more than 512 fitting rows, where one block holds all hops, and where no label is known.

    Source: this library's scaling for the features of pdADMM-G (Wang et al. 2022, who use them raw);
    "standard" is the z-score with the population deviation; "hop-std" nears it as nodes outnumber columns, and
    nears "hop-l2" where they are few. A "standard" column constant over the fitting rows, up to
    16 units of rounding, gets scale 0; where no column varies more than that, "hop-std" keeps scale 1.

    ``scaling``: a name in SCALINGS; ``blocks``: the number of hop blocks a row is made of. After ``fit``,
    ``shift`` and ``scale`` are arrays [n0] in the dtype of the features, accumulated in float64.

    >>> import numpy as np
    >>> X = np.array([[3.0, 4.0], [0.0, 2.0]])
    >>> Scaler("row-l2").fit(X).transform(X).round(9).tolist()
    [[0.6, 0.8], [0.0, 1.0]]
    """

    def __init__(self, scaling: str = "hop-std", blocks: int = 1) -> None:
        if not isinstance(scaling, str) or scaling not in SCALINGS:
            raise InputError("scaling", scaling, "one of " + ", ".join(SCALINGS))
        self.scaling, self.blocks = scaling, blocks
        self.shift: np.ndarray | None = None
        self.scale: np.ndarray | None = None

    def fit(self, X: np.ndarray, rows: np.ndarray | None = None, labels: np.ndarray | None = None) -> Scaler:
        """Take shift and scale from these rows of X [m, n0] (default: all), which stays as it is.

        ``labels``: the class of each of these rows, -1 where it is not known; "hop-loo" needs them.
        Raises InputError where no row is given, labels are missing or a value is not finite.
        """
        (m, n0), family = X.shape, SCALINGS[self.scaling]
        count = m if rows is None else len(rows)
        if count == 0:
            raise InputError("fit_rows", "no rows", "at least one row", "give the training nodes")
        if n0 % self.blocks:
            raise InputError("X", f"{n0} columns", f"a multiple of {self.blocks} columns, one block per hop")
        if family.labelled and (labels is None or len(labels) != count):
            given = "not given" if labels is None else f"{len(labels)} labels"
            raise InputError("labels", given, f"one for each fitting row, {count}, with scaling {self.scaling}")
        mean, scale, varies = np.zeros(n0), np.ones(n0), True
        if family.centre:
            for _, block in self._normalised(X, rows):
                mean += block.sum(axis=0)
            mean /= count
        if family.divide == "deviation":
            scale = self._inverse_deviation(X, rows, mean, count)
        elif family.divide == "shrunk":
            scale, varies = self._inverse_shrunk(X, rows, mean, count)
        if family.labelled and varies:
            scale *= np.repeat(self._factors(X, rows, mean, scale, labels, count), n0 // self.blocks)
        self.shift, self.scale = mean.astype(X.dtype), scale.astype(X.dtype)
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        """Scale X [m, n0] in place, in blocks of rows, and return it.

        Raises InputError where X's width is not the fitted one, or a value, given or computed, is not finite.
        """
        if self.shift is None:
            raise InputError("scaler", "unfitted", "fitted", "call fit first")
        if X.shape[1] != len(self.shift):
            raise InputError("X", f"{X.shape[1]} columns", f"{len(self.shift)} columns wide, as fitted")
        family = SCALINGS[self.scaling]
        shift, scale = self.shift.astype(np.float64), self.scale.astype(np.float64)
        for part, block in self._normalised(X, None):
            if family.centre:
                block -= shift
            if family.divide:
                block *= scale
            if family != SCALINGS["none"]:
                with np.errstate(over="ignore"):  # checked next
                    X[part] = block
            if family.divide == "deviation":  # the others give values of moderate size
                _check_finite(X[part], part)
        return X

    def _inverse_shrunk(self, X, rows, mean: np.ndarray, count: int) -> tuple[np.ndarray, bool]:
        """Return the scale, and whether any column varies beyond rounding: else there is nothing to learn from."""
        variance, largest = self._moments(X, rows, mean, count)
        if np.sqrt(variance.sum()) <= 16 * np.finfo(X.dtype).eps * largest.max():
            return np.ones(len(mean)), False
        shrunk = variance + _SHRINKAGE * len(mean) / count * variance.mean()
        return np.sqrt(variance.sum() / (variance / shrunk).sum() / shrunk), True

    def _factors(self, X, rows, mean: np.ndarray, scale: np.ndarray, labels, count: int) -> np.ndarray:
        """Return a factor for each hop block."""
        if not SCALINGS[self.scaling].learns_factors(self.blocks, count):
            return np.ones(self.blocks)
        p, labels = np.empty((count, len(mean))), np.asarray(labels)
        for part, block in self._normalised(X, rows):
            p[part] = (block - mean) * scale
        return hop_factors(p[labels >= 0], labels[labels >= 0], self.blocks)

    def _inverse_deviation(self, X, rows, mean: np.ndarray, count: int) -> np.ndarray:
        variance, largest = self._moments(X, rows, mean, count)
        deviation = np.sqrt(variance)
        # Hops round: a constant column comes out constant only up to a few units, and must not be blown up.
        constant = deviation <= 16 * np.finfo(X.dtype).eps * largest
        return np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, deviation))

    def _moments(self, X, rows, mean: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return variance and largest magnitude of each column."""
        squares, largest = np.zeros(len(mean)), np.zeros(len(mean))
        for _, block in self._normalised(X, rows):
            np.maximum(largest, np.abs(block).max(axis=0), out=largest)
            block -= mean
            squares += np.einsum("ij,ij->j", block, block)
        return squares / count, largest

    def _normalised(self, X: np.ndarray, rows: np.ndarray | None) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield (range, those rows of X in float64, row-normalised), checked to be finite."""
        unit = SCALINGS[self.scaling].unit
        count, n0 = (X.shape[0] if rows is None else len(rows)), X.shape[1]
        step = max(1, _BLOCK // max(n0, 1))
        for a in range(0, count, step):
            part = slice(a, min(a + step, count))
            index = part if rows is None else rows[part]
            block = X[index].astype(np.float64)
            if unit:
                groups = block.reshape(len(block), self.blocks if unit == "hop" else 1, -1)
                # einsum, not BLAS: its order of addition does not depend on the number of threads.
                with np.errstate(over="ignore"):  # squares of float64 values above 1e154
                    length = np.sqrt(np.einsum("vbf,vbf->vb", groups, groups))
                _check_finite(length, index)  # also finds what is not finite in the block
                length[length == 0] = 1.0  # zero rows stay zero
                groups *= (1.0 / length)[:, :, None]
            else:
                _check_finite(block, index)
            yield part, block


def _check_finite(block: np.ndarray, index: slice | np.ndarray) -> None:
    if np.isfinite(block).all():
        return
    i, j = np.argwhere(~np.isfinite(block))[0]
    row = index.start + i if isinstance(index, slice) else index[i]
    raise InputError(
        "augmented features",
        f"{block[i, j]} (row {row})",
        "finite",
        "values overflow: rescale the features or the edge weights, or use dtype='float64'",
    )
