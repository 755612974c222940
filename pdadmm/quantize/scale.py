"""The (lo, step) of a uniform grid: how it is chosen, and the arithmetic that uses it, in plain torch.

One pair serves a column or a whole array. Every operation is a single correctly rounded one of the array's
dtype in a fixed order, so that any other path (the C kernels, another rank) can give the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError

__all__ = ["CHUNK", "ROWS", "NotFiniteError", "dequantize", "difference", "fit", "quantize"]

CHUNK = 1 << 18  # elements the torch path works on at a time: bounds its temporaries, and they stay in cache
ROWS = 128  # rows that are summed one after another before joining the running total


class NotFiniteError(InputError):
    """A value to be quantized is NaN or infinite; the argument names the first one, as ``x[3, 5]``."""


def difference(x: Tensor, reference: Tensor | None) -> Tensor:
    """What is to be quantized: ``x - reference``, or ``x`` itself."""
    return x if reference is None else x - reference


def row_chunks(rows: int, columns: int):
    """Slices of whole rows, about CHUNK elements each, that start on a byte boundary at every width."""
    size = max(8, CHUNK // max(columns, 1) // 8 * 8)
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def fit(x: Tensor, reference: Tensor | None, columnwise: bool, levels: int) -> tuple[Tensor, Tensor]:
    """Choose ``lo`` and ``step`` for ``x`` (rows, columns), or for its difference from ``reference``.

    More than two levels: ``lo = min`` and ``step = (max - min) / (levels - 1)``. Two levels: the mean minus and
    plus the mean absolute deviation. Shapes: both (columns,) where ``columnwise``, else (1,); dtype of ``x``.
    ``step = 0`` only where max = min, and then ``lo`` is that value. Errors: ``NotFiniteError``.

    >>> fit(torch.tensor([[0.0], [3.0]]), None, True, 4)
    (tensor([0.]), tensor([1.]))
    """
    low, high = _range(x, reference)
    if not columnwise:
        low, high = low.amin().view(1), high.amax().view(1)
    low, high = low + 0.0, high + 0.0  # -0.0 becomes 0.0: which of the two a minimum returns is not defined
    if levels == 2:
        lo, step = _mean_deviation(x, reference, columnwise, low, high)
    else:
        lo, step = low, _spacing(low, high, levels)
    return lo, _representable(lo, step, low, high, levels)


def _range(x: Tensor, reference: Tensor | None) -> tuple[Tensor, Tensor]:
    """Minimum and maximum of every column."""
    low, high = x.new_full(x.shape[1:], torch.inf), x.new_full(x.shape[1:], -torch.inf)
    for rows in row_chunks(*x.shape):
        part = difference(x[rows], None if reference is None else reference[rows])
        a, b = torch.aminmax(part, dim=0)
        low, high = torch.minimum(low, a), torch.maximum(high, b)
    if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):  # both propagate NaN
        raise_not_finite(x, reference)
    return low, high


def raise_not_finite(x: Tensor, reference: Tensor | None, shape: torch.Size | None = None) -> None:
    """Raise ``NotFiniteError`` naming the first element of ``x - reference`` that is NaN or infinite."""
    values = difference(x, reference)
    position = int((~torch.isfinite(values)).flatten().nonzero()[0])
    overflow = bool(torch.isfinite(x.flatten()[position]))
    index: list[int] = []
    for size in reversed(shape or x.shape):
        position, at = divmod(position, size)
        index.insert(0, at)
    where = f"x{index}" + (" - reference" if overflow else "")
    raise NotFiniteError(
        where, values.view(shape or x.shape)[tuple(index)].item(), "finite",
        "training has diverged or the input holds missing values",
    )


def _spacing(low: Tensor, high: Tensor, levels: int) -> Tensor:
    if low.dtype == torch.float32:  # a float64 difference of float32 numbers cannot overflow
        return ((high.double() - low.double()) / (levels - 1)).float()
    half = torch.where(torch.maximum(low.abs(), high.abs()) >= 2.0**1022, 0.5, 1.0)
    return (high * half - low * half) / (levels - 1) / half


def _mean_deviation(x, reference, columnwise, low, high) -> tuple[Tensor, Tensor]:
    """Two levels at the mean -+ the mean absolute deviation, both sums in float64."""
    top = torch.finfo(x.dtype).max
    peak = float(torch.maximum(low.abs(), high.abs()).max())
    unit = 2.0**-100 if peak >= 2.0**900 else 1.0  # float64 only: keeps the sums finite
    count = x.shape[0] * (1 if columnwise else x.shape[1])
    mean = _sums(x, reference, None, unit, columnwise) / count
    spread = _sums(x, reference, mean, unit, columnwise) / count
    lo = ((mean - spread) / unit).to(x.dtype).clamp_(-top, top)
    step = (2.0 * spread / unit).to(x.dtype).clamp_(max=top)
    return torch.where(high > low, lo, low) + 0.0, step


def _sums(x, reference, centre, unit, columnwise) -> Tensor:
    """Float64 sums of ``d``, or of ``|d - centre|``, in an order that depends on the shape alone.

    Blocks of ROWS rows are added row by row, the blocks one after another, then (one pair per array) the columns
    from left to right.
    """
    total = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    height = max(1, CHUNK // x.shape[1] // ROWS) * ROWS
    for start in range(0, x.shape[0], height):
        rows = slice(start, start + height)
        d = difference(x[rows], None if reference is None else reference[rows]).double() * unit
        d = d if centre is None else (d - centre).abs_()
        whole = len(d) // ROWS
        blocks = d[: whole * ROWS].view(whole, ROWS, d.shape[1])
        sums = torch.zeros(whole, x.shape[1], dtype=torch.float64, device=x.device)
        for row in range(ROWS if whole else 0):
            sums += blocks[:, row]
        for block in sums:
            total += block
        if whole * ROWS < len(d):
            rest = torch.zeros_like(total)
            for row in d[whole * ROWS :]:
                rest += row
            total += rest
    if columnwise:
        return total
    joined = 0.0
    for column in total.tolist():  # not sum(): it compensates from Python 3.12 on
        joined += column
    return total.new_tensor([joined])


def _representable(lo: Tensor, step: Tensor, low: Tensor, high: Tensor, levels: int) -> Tensor:
    """Mend a step that underflowed, or whose top point overflows; zero where the values are all equal."""
    info = torch.finfo(step.dtype)
    varies = high > low
    # A subnormal step has few digits: rounded down, the grid would end far below max. Round it up.
    up = torch.nextafter(step, torch.full_like(step, torch.inf))
    step = torch.where(varies & (step < info.tiny), up, step)
    half = _halving(lo, step, levels)
    if half is not None:
        top = (lo * half + step * half * (levels - 1)) / half
        inside = (high * half - lo * half) / (levels - 1) / half * (1 - 4 * info.eps)
        step = torch.where(torch.isfinite(top), step, torch.minimum(step, inside))
    return torch.where(varies, step, torch.zeros_like(step))


def _halving(lo: Tensor, step: Tensor, levels: int) -> Tensor | None:
    """The factor 0.5 for pairs so wide that ``x - lo`` may overflow, 1 elsewhere; None where all are 1.

    It depends on what is transmitted alone, so both ends agree.
    """
    limit = torch.finfo(lo.dtype).max / 4
    wide = ~(torch.maximum(lo.abs(), step * (levels - 1)) < limit)
    return torch.where(wide, 0.5, 1.0).to(lo.dtype) if bool(wide.any()) else None


def quantize(d: Tensor, lo: Tensor, step: Tensor, levels: int, noise: Tensor | None = None) -> Tensor:
    """Codes of ``d``, whole numbers 0 .. levels - 1 held in its dtype: round((d - lo) / step), clamped.

    Ties go to the even code; with ``noise`` (uniform in [0, 1), shape of ``d``) the code is rounded up with the
    probability of its fraction, so that grid points stay where they are.

    >>> quantize(torch.tensor([-1.0, 0.5, 1.5, 9.0]), torch.zeros(1), torch.ones(1), 4)
    tensor([0., 0., 2., 3.])
    """
    half = _halving(lo, step, levels)
    if half is not None:
        d, lo, step = d * half, lo * half, step * half
    t = (d - lo).div_(torch.where(step > 0, step, torch.ones_like(step))).clamp_(0, levels - 1)
    if noise is None:
        return t.round_()
    whole = t.floor()
    return whole + (noise < t - whole)


def dequantize(codes: Tensor, lo: Tensor, step: Tensor, levels: int) -> Tensor:
    """Grid points ``lo + step * codes``; a product and a sum, never one fused operation.

    >>> dequantize(torch.tensor([0.0, 3.0]), torch.ones(1), torch.full((1,), 0.5), 4)
    tensor([1.0000, 2.5000])
    """
    half = _halving(lo, step, levels)
    if half is None:
        return (codes * step).add_(lo)
    return (codes * (step * half)).add_(lo * half).div_(half)
