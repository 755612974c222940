"""Peak memory of an iteration against the state that the algorithm must hold.

    python benchmarks/memory.py --nodes 20000 --hidden 256 --layers 10          (about 30 s)

The state is p, z, q, u and r of every boundary and layer, W and b, the factor of the first layer, and the augmented
features. The peak is that of this process over the growth to full depth and ten iterations with their objectives, less
its peak after the imports.
"""

from __future__ import annotations

import torch
from shared import full_network, machine, random_problem, shape_parser

from pdadmm.contest import peak_bytes


def state_bytes(nodes: int, inputs: int, hidden: int, layers: int, classes: int) -> dict[str, int]:
    """Return the bytes of what must be held, by name, in float32."""
    boundaries = layers - 1
    own = {
        "features": nodes * inputs,
        "factor of the first layer": min(nodes, inputs) ** 2,
        "p, q, u": 3 * boundaries * nodes * hidden,
        "z, r": 2 * (boundaries * nodes * hidden + nodes * classes),
        "W, b": hidden * (inputs + 1) + (boundaries - 1) * hidden * (hidden + 1) + classes * (hidden + 1),
    }
    return {name: 4 * count for name, count in own.items()}


def main() -> None:
    given = shape_parser(__doc__).parse_args()
    torch.set_num_threads(1)
    torch.linalg.cholesky(torch.eye(4))  # LAPACK is an import too: it is loaded on first use
    before = peak_bytes()
    if before is None:
        raise SystemExit("this system does not tell a process its peak memory (/proc/self/status)")
    problem = random_problem(given.nodes, given.inputs, given.classes)
    _, network = full_network(problem, given.layers, given.hidden)
    for _ in range(10):
        network.iterate()
        network.terms()
    peak = peak_bytes() - before
    state = state_bytes(given.nodes, given.inputs, given.hidden, given.layers, given.classes)
    print(f"V = {given.nodes}, n_0 = {given.inputs}, n = {given.hidden}, L = {given.layers}; {machine()}")
    print("\n| what | MB |\n|---|---|")
    for name, value in {**state, "all of it": sum(state.values()), "peak, imports subtracted": peak}.items():
        print(f"| {name} | {value / 1e6:.1f} |")
    print(f"\npeak / state: {peak / sum(state.values()):.3f}")


if __name__ == "__main__":
    main()
