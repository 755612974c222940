"""Train with an activation of your own: f(z) = |z|, or any f(z) = z above 0 and slope z below.

pdADMM-G needs no derivative, but the exact minimiser of (z - a)^2 + (q - f(z))^2 + prox_z (z - z_old)^2 in each
entry. For an f of two straight pieces `PiecewiseLinear` has it in closed form, so a row in the table is all it
takes; every solver then knows it by name. A model saved with such an activation loads where the row has been
added. Run time: about 10 seconds.

    python examples/custom_activation.py
    python examples/custom_activation.py --slope 0.2
"""

from __future__ import annotations

import argparse

from pdadmm import PDADMMG, digits
from pdadmm.admm.activations import ACTIVATIONS, PiecewiseLinear


def main() -> None:
    parser = argparse.ArgumentParser(description="Train with f(z) = z above 0 and slope z below.")
    parser.add_argument("--slope", type=float, default=-1.0, help="-1 is |z|, 0 is relu")
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=24, help="of each stage of growth")
    given = parser.parse_args()

    ACTIVATIONS["mine"] = PiecewiseLinear("mine", given.slope)
    graph = digits()
    for name in ("relu", "mine"):
        solver = PDADMMG(layers=given.layers, hidden=given.hidden, iterations=given.iterations, activation=name)
        solver.fit(graph)
        print(f"{name:5} test accuracy {solver.score(graph):.3f} after {len(solver.history_)} iterations")


if __name__ == "__main__":
    main()
