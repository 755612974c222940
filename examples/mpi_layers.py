"""Train with one layer per MPI rank, and show which rank holds which layers and what it sends.

Each iteration, the rank of layer l + 1 sends p_{l+1} down and the rank of layer l sends q_l up:
V x n numbers each and a header of 16 bytes, V training nodes, n neurons. u never travels.
Run time: about 20 seconds on two cores.

    mpirun -n 4 python examples/mpi_layers.py                 (4 layers)
    mpirun -n 4 python examples/mpi_layers.py --layers 10     (2 or 3 layers a rank)
"""

from __future__ import annotations

import argparse
import os

# One BLAS thread per rank, set before torch loads: the same bits for every number of ranks.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from mpi4py import MPI

from pdadmm import PDADMMG, Graph, load_dataset
from pdadmm.admm.channel import HEADER_BYTES
from pdadmm.admm.first_layer import choose_first_layer
from pdadmm.console import human_bytes
from pdadmm.parallel.placement import layer_costs, place_layers


def placement(solver: PDADMMG, graph: Graph, depth: int, ranks: int) -> list[range]:
    """Return which layers (counted from 0) each rank holds in the stage with ``depth`` layers."""
    nodes = len(graph.splits["train"])
    inputs = solver.model_.widths[0]
    widths = [inputs, *[solver.hidden] * (depth - 1), graph.num_classes]
    first_cost = choose_first_layer(solver.first_layer, nodes, inputs).cost(nodes, inputs, widths[1])
    return place_layers(layer_costs(nodes, widths, first_cost), ranks)


def report(solver: PDADMMG, graph: Graph, ranks: int) -> None:
    """Print the layers of each rank, stage by stage, and the bytes of p and q that it sends an iteration."""
    message = HEADER_BYTES + len(graph.splits["train"]) * solver.hidden * 4  # float32
    total = 0
    for stage in solver.stages_:
        print(f"\n{stage['layers']} layers, {stage['iterations']} iterations, test {stage['test_accuracy']:.3f}")
        held = placement(solver, graph, stage["layers"], ranks)
        for rank, run in enumerate(held):
            down = message if run and run.start > 0 else 0
            up = message if run and run.stop < stage["layers"] else 0
            total += (down + up) * stage["iterations"]
            if run:
                names = ", ".join(str(layer + 1) for layer in run)
                print(f"  rank {rank}: layers {names:9} p down {human_bytes(down):>8}, q up {human_bytes(up):>8}")
            else:
                print(f"  rank {rank}: waits for its layers")
    counted = solver.summary_["bytes_sent"]
    print(f"\nover all iterations {human_bytes(total)}; counted by the ranks' ledgers {human_bytes(counted)}")
    print(f"test accuracy of the {solver.layers}-layer network {solver.summary_['test_accuracy']:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="One layer per MPI rank.")
    parser.add_argument("--dataset", default="digits", help="a name of `pdadmm datasets` or a FILE.npz with a split")
    parser.add_argument("--layers", type=int, default=None, help="default: as many as ranks, at least 2")
    parser.add_argument("--hidden", type=int, default=100)
    parser.add_argument("--iterations", type=int, default=24, help="of each stage of growth")
    given = parser.parse_args()

    comm = MPI.COMM_WORLD
    graph = load_dataset(given.dataset)  # on every rank; only rank 0 augments it
    layers = given.layers or max(2, comm.Get_size())
    solver = PDADMMG(layers=layers, hidden=given.hidden, iterations=given.iterations).fit(graph, comm=comm)
    if comm.Get_rank() == 0:
        report(solver, graph, comm.Get_size())


if __name__ == "__main__":
    main()
