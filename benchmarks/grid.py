"""Grids of ranks against one process: do they agree, and what do shared nodes cost beside shared layers?

    mpirun -n 12 python benchmarks/grid.py agree --dataset digits                  (about 5 min on two cores)
    mpirun -n 2 python benchmarks/grid.py time                                     (about 4 min)

agree: rank 0 trains alone, then the first G N ranks on each grid GxN. The network grows 2, 5, 10 as by default, 17
iterations a stage (3 iterations: one a stage); "1 iteration" is one of the full depth from random weights. Gaps are
Frobenius norms of differences over those of the array itself for W, p, z, q, over nu |q| for u and |z| (a row) for b,
which are small differences of these; the worst layer's, and W's of all layers as one. "last bit": one process again
with a p_1 larger by one unit in the last place: what rounding alone does. time: two ranks hold one network as 2x1 and
one as 1x2, which iterate in turn.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import statistics
from typing import Any
from unittest import mock

import numpy as np
import torch
from ranks import spent
from shared import full_network, machine, random_problem, shape_parser

from pdadmm import PDADMMG, load_dataset
from pdadmm.admm.builder import NetworkBuilder
from pdadmm.admm.problem import Problem
from pdadmm.admm.solver import ADMMSolver
from pdadmm.parallel.launch import make_transport
from pdadmm.parallel.transport import LocalTransport, Transport

RUNS = (("float64", 17, None), ("float32", 1, None), ("float32", 1, 1), ("float32", 17, None))


class Watched(NetworkBuilder):
    """Keeps the layers' arrays as the last stage ended, before the best weights are put back."""

    def end(self, network, snapshot):
        self.arrays: dict[str, np.ndarray] = {}
        for layer in network.layers:
            W, b = layer.solver.weights() if layer.index == 0 else (layer.W, layer.b)
            found = {"W": W, "b": b, "z": layer.z}
            if layer.above is not None:
                found |= {"p": layer.above.p, "q": layer.above.q, "u": layer.above.u}
            self.arrays |= {f"{layer.index}.{name}": x.numpy().copy() for name, x in found.items()}
        super().end(network, snapshot)


def train(estimator: PDADMMG, problem: Problem, transport: Transport) -> tuple[dict[str, np.ndarray], dict] | None:
    """Train on the transport's ranks; return the arrays of all layers and the summary, on rank 0."""
    with mock.patch("pdadmm.admm.solver.NetworkBuilder", Watched):
        solver = ADMMSolver(problem, estimator.checked(), transport).run()
    summary = solver.summary()
    parts = transport.gather(solver.builder.arrays)
    solver.close()
    if parts is None:
        return None
    whole, shards = {}, solver.builder.grid.shards
    for first in range(0, len(parts), shards):
        group = parts[first : first + shards]
        for name in group[0]:
            shared = name[-1] in "Wb"
            whole[name] = group[0][name] if shared else np.concatenate([part[name] for part in group])
    return whole, summary


def gaps(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], nu: float) -> dict[str, float]:
    """Return the largest relative gap of each kind of array, over the layers."""
    result: dict[str, float] = {}
    for name, array in expected.items():
        layer, kind = name.split(".")
        beside = expected[{"u": f"{layer}.q", "b": f"{layer}.z"}.get(kind, name)]
        scale = {"u": 1 / nu, "b": len(beside) ** 0.5}.get(kind, 1.0)  # b stands beside every row of z
        gap = np.linalg.norm(array.astype(float) - found[name]) / np.linalg.norm(beside.astype(float)) * scale
        result[kind] = max(result.get(kind, 0.0), float(gap))
    Ws = [name for name in expected if name.endswith(".W")]
    apart = [np.linalg.norm(expected[name].astype(float) - found[name]) for name in Ws]
    result["all W"] = float(np.linalg.norm(apart) / np.linalg.norm([np.linalg.norm(expected[name]) for name in Ws]))
    return result


def row(name: str, found: tuple, expected: tuple, nu: float) -> str:
    """Return the last cells of a row of the table."""
    cells = gaps(found[0], expected[0], nu)
    numbers = " | ".join(f"{cells[kind]:.1e}" for kind in ("all W", *"Wpzqub"))
    return f"{name} | {numbers} | {found[1]['test_accuracy']:.4f} |"


def one_process(estimator: PDADMMG, problem: Problem) -> Any:
    return train(dataclasses.replace(estimator, grid="auto"), problem, LocalTransport())


def agree(given: argparse.Namespace) -> None:
    transport = make_transport()
    rank, layers = transport.rank, given.layers
    if rank == 0:
        names = "data | format | iterations | grid | W, all layers | W | p | z | q | u | b | test accuracy"
        print(f"| {names} |\n|" + "---|" * 12)
    for dtype, iterations, direct in RUNS:
        stages = (layers,) if direct else None
        estimator = PDADMMG(layers=layers, hidden=given.hidden, dtype=dtype, iterations=iterations, stages=stages)
        graph = load_dataset(given.dataset, given.data_dir)
        problem, _, _ = estimator._problem(estimator.checked(), graph, None, transport)
        expected = moved = None
        if rank == 0:
            expected = one_process(estimator, problem)
            near = copy.copy(problem)
            near.X = torch.nextafter(problem.X, torch.full_like(problem.X, torch.inf))
            moved = one_process(estimator, near)
        count = f"{iterations * (1 if direct else len(estimator.checked().stages))}"

        head = f"| {given.dataset} | {dtype} | {count} |"
        if rank == 0:
            for name, found in (("one process", expected), ("last bit", moved)):
                print(head, row(name, found, expected, estimator.nu), flush=True)
        for grid in given.grids.split(","):
            groups, shards = map(int, grid.split("x"))
            part = transport.split(int(rank < groups * shards))
            if rank < groups * shards:
                found = train(dataclasses.replace(estimator, grid=grid), copy.copy(problem), part)
                if rank == 0:
                    print(head, row(grid, found, expected, estimator.nu), flush=True)
            part.close()
            transport.barrier()
    if rank == 0:
        print("\n" + machine())


def measure(given: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    transport = make_transport()
    R = transport.size
    problem = random_problem(given.nodes, given.inputs, given.classes)
    if transport.rank:
        problem.X = None
    networks, sums = {}, {}
    for grid in (f"{R}x1", f"1x{R}"):
        solver, network = full_network(copy.copy(problem), given.layers, given.hidden, transport, grid=grid)
        sent = transport.ledger.bytes_sent
        network.iterate()
        networks[grid], sums[grid] = network, sum(transport.allgather(transport.ledger.bytes_sent - sent))
        del solver
    seconds: dict[str, list[float]] = {grid: [] for grid in networks}
    for _ in range(given.repeat):
        for grid, network in networks.items():
            seconds[grid].append(spent(transport, network.iterate))
    for network in networks.values():
        network.finish()
    if transport.rank:
        return
    print(f"V = {given.nodes}, n = {given.hidden}, L = {given.layers}, {R} ranks of one thread")
    print(machine(), "", "| grid | median ms | each | bytes an iteration, all ranks |", "|---|---|---|---|", sep="\n")
    for grid, values in seconds.items():
        each = " ".join(f"{1e3 * value:.1f}" for value in values)
        print(f"| {grid} | {1e3 * statistics.median(values):.1f} | {each} | {sums[grid]:,} |")
    layers, nodes = seconds[f"{R}x1"], seconds[f"1x{R}"]
    print(f"\n1x{R} / {R}x1: {statistics.median(b / a for a, b in zip(layers, nodes, strict=True)):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(required=True)
    one = tasks.add_parser("agree")
    one.set_defaults(run=agree)
    one.add_argument("--dataset", default="digits")
    one.add_argument("--data-dir")
    one.add_argument("--grids", default="1x2,2x2,5x2,2x3,6x2", help="the largest takes all ranks")
    one.add_argument("--layers", type=int, default=10)
    one.add_argument("--hidden", type=int, default=100)
    two = tasks.add_parser("time", parents=[shape_parser(None, repeat=5)], add_help=False)
    two.set_defaults(run=measure)
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    main()
