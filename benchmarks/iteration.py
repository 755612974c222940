"""One iteration of pdADMM-G against its own limits, in one run: its products alone, memory traffic, an Adam epoch.

    python benchmarks/iteration.py --nodes 20000 --hidden 256 --layers 10 --repeat 7       (about 2 min)
    python benchmarks/iteration.py --nodes 140 --inputs 7165 --hidden 100 --layers 10      (Cora's shape)

"products" are the matrix products and Cholesky factorisations that the exact form needs, on arrays of the same shapes;
"traffic" is every state array (p, z, q, u, r of each layer) read and written once at the copy bandwidth measured
beside it; "Adam" is one full-batch epoch of torch.optim.Adam on the same network. Medians, one process.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch

from pdadmm.admm.problem import Problem
from pdadmm.admm.settings import ADMMSettings
from pdadmm.admm.solver import ADMMSolver
from pdadmm.admm.updates import cholesky, spd_inverse
from pdadmm.models.gamlp import GAMLP
from pdadmm.parallel.transport import LocalTransport


def random_problem(nodes: int, inputs: int, classes: int) -> Problem:
    """Return a problem of the given shape with unit-length, centred rows; every node trains."""
    random = torch.Generator().manual_seed(0)
    X = torch.nn.functional.normalize(torch.randn(nodes, inputs, generator=random))
    X -= X.mean(0)
    y = torch.randint(classes, (nodes,), generator=random)
    empty = slice(nodes, nodes)
    return Problem(X, y, inputs, classes, {"train": slice(0, nodes), "val": empty, "test": empty})


def stage_network(problem: Problem, layers: int, hidden: int):
    """Return a network of full depth that has trained for a few iterations, grown as by default."""
    settings = ADMMSettings(layers=layers, hidden=hidden, iterations=3).checked()
    solver = ADMMSolver(problem, settings, LocalTransport())
    solver.eval_every = 10**9
    placement = None
    for depth in settings.stages:
        placement = solver._enter_stage(depth, placement)
        network = solver._build(depth, placement)
        for _ in range(3):
            network.iterate()
        solver._keep(network, network.snapshot())
    return solver, solver._build(layers, placement)


def products(problem: Problem, first, layers: int, hidden: int) -> Callable[[], None]:
    """Return a function that does one iteration's products and factorisations and nothing else."""
    V, C = problem.nodes, problem.classes
    outputs = [hidden] * (layers - 2) + [C]
    p, z = torch.rand(V, hidden), {n: torch.rand(V, n) for n in {hidden, C}}
    W = {n: torch.rand(n, hidden) / hidden for n in {hidden, C}}
    out, system = torch.empty(V, hidden), torch.eye(hidden) * 2
    gram, cross = torch.empty(hidden, hidden), {n: torch.empty(n, hidden) for n in W}
    a = {n: torch.empty(V, n) for n in W}

    def run() -> None:
        first.update(z[hidden])
        for n in outputs:
            torch.mm(W[n].mT, W[n], out=gram)
            spd_inverse(system)
            torch.mm(z[n], W[n], out=out)
            torch.mm(out, system, out=p)
            torch.mm(p.mT, p, out=gram)
            torch.mm(z[n].mT, p, out=cross[n])
            torch.cholesky_solve(cross[n].mT, cholesky(system))
            torch.mm(p, W[n].mT, out=a[n])

    return run


def adam_epoch(problem: Problem, layers: int, hidden: int) -> Callable[[], None]:
    """Return a function that does one full-batch epoch of Adam on the same network."""
    model = GAMLP([problem.inputs, *[hidden] * (layers - 1), problem.classes]).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def run() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(problem.X), problem.y, reduction="sum").backward()
        optimizer.step()

    return run


def timed(runs: dict[str, Callable[[], None]], repeat: int, inner: int) -> dict[str, list[float]]:
    """Time every function in turn, ``repeat`` times over, so that drift of the machine meets all alike."""
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeat):
        for name, run in runs.items():
            start = time.perf_counter()
            for _ in range(inner):
                run()
            seconds[name].append((time.perf_counter() - start) / inner)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=20000)
    parser.add_argument("--inputs", type=int, default=256)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--inner", type=int, default=1, help="runs per measurement: more for small shapes")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    problem = random_problem(given.nodes, given.inputs, given.classes)
    solver, network = stage_network(problem, given.layers, given.hidden)
    state = 5 * given.nodes * given.hidden * (given.layers - 1)  # values of p, z, q, u, r in the hidden layers
    source, target = torch.ones(state), torch.empty(state)
    runs = {
        "iteration": network.iterate,
        "products": products(problem, solver.first, given.layers, given.hidden),
        "traffic": lambda: target.copy_(source),
        "Adam epoch": adam_epoch(problem, given.layers, given.hidden),
    }
    seconds = timed(runs, given.repeat, given.inner)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"V = {given.nodes}, n_0 = {given.inputs}, n = {given.hidden}, L = {given.layers}, {given.threads} thread(s)")
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}")
    print("\n| what | median ms | each |\n|---|---|---|")
    for name, values in seconds.items():
        print(f"| {name} | {1e3 * middle[name]:.2f} | {' '.join(f'{1e3 * v:.2f}' for v in values)} |")
    limit = middle["products"] + middle["traffic"]
    print(f"\niteration / products: {middle['iteration'] / middle['products']:.2f}")
    print(f"iteration / (products + traffic): {middle['iteration'] / limit:.2f}")
    print(f"iteration / Adam epoch: {middle['iteration'] / middle['Adam epoch']:.2f}")


if __name__ == "__main__":
    main()
