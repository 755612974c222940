"""Uniform grids ``lo + step * {0, .., levels - 1}``: the finite sets Delta_l of pdADMM-G-Q (Wang et al. 2022)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from . import sweep

__all__ = ["BITS", "GRIDS", "ROUNDINGS", "Grid", "make_grid"]

BITS = (1, 2, 4, 8, 16)
ROUNDINGS = ("nearest", "stochastic")
LARGEST = 1e37  # the ends of a fixed grid: above this float32 differences could overflow


class Grid:
    """A uniform grid of at most ``2^bits`` points; a row of ``GRIDS`` says where its (lo, step) come from.

    ``levels``: number of points. ``columnwise``: one (lo, step) per column, else one for the array. ``fixed``: both
    ends know ``lo`` and ``step``, nothing but codes is sent.

    Source: Problem 3 of pdADMM-G-Q, Wang et al. 2022, arXiv 2105.09837.

    >>> make_grid("paper", 8).project(torch.tensor([-3.0, 0.4, 7.6, 99.0]))
    tensor([-1.,  0.,  8., 20.])
    """

    name: str
    columnwise = False
    fixed = False
    ends = False  # whether the user gives lo and hi
    lo = step = 0.0

    def __init__(self, bits: int) -> None:
        self.bits, self.levels = bits, 2**bits

    def pairs(self, columns: int) -> int:
        """How many (lo, step) pairs the header of a message with so many columns holds."""
        return 0 if self.fixed else columns if self.columnwise else 1

    def project(
        self, x: Tensor, rounding: str = "nearest", key: tuple[int, ...] = (), first_row: int = 0,
        out: Tensor | None = None,
    ) -> Tensor:
        """The grid point nearest to each element of ``x``: ``lo + step * clamp(round((x - lo) / step))``.

        Ties go to the even code. ``rounding="stochastic"`` rounds up with the probability of the fraction; its
        random numbers depend on ``key`` (integers, as (seed, iteration, layer, node block)) and on the element's
        index counted from row ``first_row`` alone. Shapes: any; the last dimension is the columns, a 1-D array is
        one column. A non-contiguous ``x`` is copied. ``out`` must be contiguous and may be ``x`` itself.
        Errors: ``NotFiniteError`` (a ``ValueError``) for NaN or infinity, ``InputError`` for a wrong array.

        >>> make_grid("linspace", 2, lo=0, hi=3).project(torch.tensor([0.5, 1.5, 2.4]))
        tensor([0., 2., 2.])
        """
        check_rounding(rounding)
        sweep.check_array("x", x)
        x = sweep.plain(x)
        out = torch.empty_like(x) if out is None else out
        sweep.check_output("out", out, x.shape, x.dtype, x.device)
        sweep.encode_into(self, x, None, out, None, rounding == "stochastic", key, first_row)
        return out


class ColumnGrid(Grid):
    """One (lo, step) per column, chosen from the data: min and max; for 1 bit the mean -+ the mean deviation."""

    name = "column"
    columnwise = True


class MessageGrid(Grid):
    """One (lo, step) for the whole array, chosen from the data as ``ColumnGrid`` does."""

    name = "message"


class LinspaceGrid(Grid):
    """``2^bits`` points from ``lo`` to ``hi``, known to both ends; values outside are clamped."""

    name = "linspace"
    fixed = ends = True

    def __init__(self, bits: int, lo: float, hi: float) -> None:
        super().__init__(bits)
        if not (math.isfinite(lo) and math.isfinite(hi) and max(abs(lo), abs(hi)) <= LARGEST):
            raise InputError("lo, hi", (lo, hi), f"finite and at most {LARGEST:g} in size")
        if not lo < hi:
            raise InputError("lo, hi", (lo, hi), "two numbers with lo < hi")
        self.lo, self.step = float(lo), (hi - lo) / (self.levels - 1)


class PaperGrid(Grid):
    """The paper's own grid {-1, 0, 1, .., 20}: 22 points, so 8 bits are enough and 4 too few."""

    name = "paper"
    fixed = True
    lo, step = -1.0, 1.0

    def __init__(self, bits: int) -> None:
        if bits < 5:
            raise InputError("bits", bits, "8 or 16 with the paper's grid", "its 22 points need 5 bits")
        super().__init__(bits)
        self.levels = 22


GRIDS: dict[str, type[Grid]] = {row.name: row for row in (ColumnGrid, MessageGrid, PaperGrid, LinspaceGrid)}


def make_grid(name: str = "column", bits: int = 8, lo: float | None = None, hi: float | None = None) -> Grid:
    """Build a grid of the table ``GRIDS`` with ``2^bits`` points; ``lo`` and ``hi`` belong to "linspace" alone.

    Errors: ``InputError`` for an unknown name, a width not in ``BITS``, ends given where they have no meaning.

    >>> make_grid("linspace", 2, lo=0, hi=3).step
    1.0
    """
    if name not in GRIDS:
        raise InputError("grid", name, "one of " + ", ".join(GRIDS))
    if isinstance(bits, bool) or bits not in BITS:
        raise InputError("bits", bits, "one of " + ", ".join(map(str, BITS)))
    row: Any = GRIDS[name]  # takes bits, and lo and hi where it has ends
    if not row.ends:
        if lo is not None or hi is not None:
            raise InputError("lo, hi", (lo, hi), "left out with this grid", 'only grid="linspace" takes ends')
        return row(int(bits))
    if lo is None or hi is None:
        raise InputError("lo, hi", (lo, hi), 'given with grid="linspace"')
    return row(int(bits), lo, hi)


def check_rounding(rounding: str) -> None:
    """Refuse an unknown rounding."""
    if rounding not in ROUNDINGS:
        raise InputError("rounding", rounding, "one of " + ", ".join(ROUNDINGS))
