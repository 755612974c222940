"""Train with a grid of your own for the messages between layers: pdADMM-G-Q on the finite set {0, .., top}.

Behind relu no value is negative, so half of a grid around 0 is never used. A row in GRIDS says where the points
of a uniform grid lie: lo + step {0, .., 2^bits - 1}; a fixed grid is known to both ends, so only codes are
sent. It is then a choice of `delta` like the library's own, for messages (coding="value") and for p itself
("constrained", Problem 3 of the paper). Run time: about 30 seconds.

    python examples/custom_quantizer.py
    python examples/custom_quantizer.py --top 3 --bits 8
"""

from __future__ import annotations

import argparse

from pdadmm import PDADMMGQ, digits
from pdadmm.quantize import GRIDS, Grid


def make_row(top: float) -> type[Grid]:
    """Return a grid of 2^bits points from 0 to ``top``."""

    class FromZero(Grid):
        name = "from-zero"
        fixed = True

        def __init__(self, bits: int) -> None:
            super().__init__(bits)
            self.lo, self.step = 0.0, top / (self.levels - 1)

    return FromZero


def main() -> None:
    parser = argparse.ArgumentParser(description="Quantize messages on a grid from 0 to TOP.")
    parser.add_argument("--top", type=float, default=2.0)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=24, help="of each stage of growth")
    given = parser.parse_args()

    GRIDS["from-zero"] = make_row(given.top)
    graph = digits()
    around_zero = {"delta": "linspace", "delta_low": -given.top, "delta_high": given.top}
    for coding in ("value", "constrained"):
        for grid in (around_zero, {"delta": "from-zero"}):
            solver = PDADMMGQ(layers=given.layers, hidden=given.hidden, iterations=given.iterations, bits=given.bits,
                              coding=coding, **grid).fit(graph)  # fmt: skip
            sent = solver.summary_["bytes_per_iteration"]
            print(f"{coding:11} {grid['delta']:9} test accuracy {solver.score(graph):.3f}, {sent} bytes an iteration")


if __name__ == "__main__":
    main()
