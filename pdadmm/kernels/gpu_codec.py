"""Messages on the GPU: quantize and pack, unpack and dequantize, to the same bits as pdadmm.quantize on the CPU."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import gpu_launch as run

__all__ = ["DONE", "NOT_FINITE", "decode", "encode"]

DONE, NOT_FINITE = 0, 1  # as in cpu.py
GROUP = 4  # numbers a thread takes at a time
ROWS = 128  # as in scale.py: rows summed one after another before joining the running total
WAVES = 16  # blocks per multiprocessor of the sweeps; the results do not depend on it


def encode(
    x: Tensor, reference: Tensor | None, value: Tensor | None, packed: Tensor | None, rows: int, columns: int, grid,
    stochastic: bool, words: tuple[int, int], first: int,
) -> Tensor:
    """Quantize ``x - reference``, write the message to ``packed`` and what the receiver will hold to ``value``.

    Takes what ``cpu.encode`` takes; None skips an array, ``value`` may be ``x`` or ``reference``. One sweep finds the
    range (1 bit: two more sum), one writes. Returns the status on the device, int32 of shape (1,): DONE, or
    NOT_FINITE, and then nothing was written. It is the caller's to read, which waits for the device.
    """
    arrays = {"reference": reference, "value": value}
    run.check(x, **{name: array for name, array in arrays.items() if array is not None})
    sweep = _Sweep(x, rows, columns, grid, run.aligned(x, reference, value))
    keys = torch.full((2 * sweep.pairs + 1,), -1, dtype=_KEYS[x.dtype], device=x.device)
    sweep.start("range", x, reference, keys, x.numel(), sweep.lanes, sweep.columns, sweep.pairs)
    mean = deviation = None
    if grid.levels == 2 and sweep.pairs:
        mean = _averages(sweep, x, reference, None, keys, rows, columns)
        deviation = _averages(sweep, x, reference, mean, keys, rows, columns)
    scale, status = sweep.scale()
    args = keys, mean, deviation, scale, packed, status, sweep.pairs, grid.levels, float(grid.lo), float(grid.step)
    sweep.launch("fit", run.divide_up(max(sweep.pairs, 1), run.THREADS), *args)
    codes = None if packed is None else packed[2 * sweep.pairs * x.element_size() :]
    sweep.start(
        "encode", x, reference, value, codes, scale, status, x.numel(), sweep.lanes, sweep.columns,
        max(sweep.pairs, 1), grid.bits, grid.levels, int(stochastic), *words, first, _whole_words(codes),
    )  # fmt: skip
    return status


def decode(packed: Tensor, value: Tensor, add: bool, rows: int, columns: int, grid) -> Tensor:
    """Write the grid points of a message to ``value``, or add them to it, in one sweep.

    Takes what ``cpu.decode`` takes. Returns the status on the device: NOT_FINITE for a header that no encode made,
    and then nothing was written.
    """
    run.check(value)
    sweep = _Sweep(value, rows, columns, grid, run.aligned(value))
    scale, status = sweep.scale()
    sweep.launch("header", 1, packed, scale, status, sweep.pairs, float(grid.lo), float(grid.step))
    codes = packed[2 * sweep.pairs * value.element_size() :]
    sweep.start(
        "decode", codes, value, scale, status, value.numel(), sweep.lanes, sweep.columns, max(sweep.pairs, 1),
        grid.bits, grid.levels, int(add), _whole_words(codes),
    )  # fmt: skip
    return status


_KEYS = {torch.float32: torch.int32, torch.float64: torch.int64}


class _Sweep:
    """How one array is cut into super-rows of whole groups, each thread keeping to its columns.

    A super-row holds a whole number of rows and an even number of groups, so that 1-bit codes end on whole bytes
    between pairs of neighbouring threads.
    """

    def __init__(self, x: Tensor, rows: int, columns: int, grid, aligned: bool) -> None:
        if x.numel() != rows * columns or x.numel() == 0:
            raise run.InputError("rows, columns", (rows, columns), f"those of an array of {x.numel()} > 0 numbers")
        self.x, self.type = x, run.SUFFIX[x.dtype]
        self.pairs, self.columns = grid.pairs(columns), columns if grid.columnwise else 1
        self.lanes = math.lcm(self.columns, 2 * GROUP) // GROUP
        self.width = 16 // x.element_size() if aligned else 1

    def scale(self) -> tuple[Tensor, Tensor]:
        """Room for lo and step of every pair, and for a status."""
        scale = torch.empty(2 * max(self.pairs, 1), dtype=self.x.dtype, device=self.x.device)
        return scale, torch.empty(1, dtype=torch.int32, device=self.x.device)

    def launch(self, kernel: str, blocks: int, *args) -> None:
        """Start a kernel with one thread per number of its small array."""
        run.launch("scale", f"codec_{kernel}_{self.type}", (blocks, 1), run.THREADS, args, self.x.device)

    def start(self, kernel: str, *args) -> None:
        """Start a kernel that sweeps the array."""
        width = min(self.lanes, run.THREADS)
        rows, tiles = run.THREADS // width, run.divide_up(self.lanes, width)
        needed = run.divide_up(run.divide_up(self.x.numel(), GROUP * self.lanes), rows)
        blocks = min(needed, max(1, WAVES * run.multiprocessors(self.x.device) // tiles))
        name = f"codec_{kernel}_{self.type}_{self.width}"
        source = "scale" if kernel == "range" else "codec"
        run.launch(source, name, (blocks, tiles), width * rows, args, self.x.device)


def _averages(sweep: _Sweep, x, reference, centre: Tensor | None, keys: Tensor, rows: int, columns: int) -> Tensor:
    """Float64 means of d, or of |d - centre|, per column or (in the first place) of the message."""
    blocks = run.divide_up(rows, ROWS)
    partial = torch.empty(blocks * columns, dtype=torch.float64, device=x.device)
    total = torch.empty(columns, dtype=torch.float64, device=x.device)
    stride = int(sweep.pairs == columns)
    args: tuple = x, reference, centre, stride, keys, partial, rows, columns, sweep.pairs
    sweep.launch("sums", run.divide_up(blocks * columns, run.THREADS), *args)
    columnwise = sweep.columns == columns
    args = partial, total, blocks, columns, float(rows if columnwise else 1)
    run.launch("scale", "codec_fold", (run.divide_up(columns, run.THREADS), 1), run.THREADS, args, x.device)
    if not columnwise:
        run.launch("scale", "codec_join", (1, 1), 1, (total, columns, float(rows * columns)), x.device)
    return total


def _whole_words(codes: Tensor | None) -> int:
    return int(codes is not None and codes.data_ptr() % 8 == 0)
