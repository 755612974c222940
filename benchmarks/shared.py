"""What the benchmarks of speed share: networks to time, timing in turn, tables, the machine."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy
import scipy
import torch

from pdadmm.admm.network import Network
from pdadmm.admm.problem import Problem
from pdadmm.admm.settings import ADMMSettings
from pdadmm.admm.solver import ADMMSolver
from pdadmm.parallel.transport import LocalTransport, Transport

__all__ = ["full_network", "machine", "random_problem", "ratio", "shape_parser", "table", "timed"]


def random_problem(nodes: int, inputs: int, classes: int) -> Problem:
    """Return a problem of the given shape with unit-length, centred rows; every node trains."""
    random = torch.Generator().manual_seed(0)
    X = torch.nn.functional.normalize(torch.randn(nodes, inputs, generator=random))
    X -= X.mean(0)
    y = torch.randint(classes, (nodes,), generator=random)
    empty = slice(nodes, nodes)
    return Problem(X, y, inputs, classes, {"train": slice(0, nodes), "val": empty, "test": empty})


def full_network(
    problem: Problem,
    layers: int,
    hidden: int,
    transport: Transport | None = None,
    warm: int = 3,
    grid: str = "auto",
    products: str = "full",
    device: str = "cpu",
) -> tuple[ADMMSolver, Network]:
    """Return a network of full depth, grown as by default after ``warm`` iterations a stage, and its solver.

    ``grid`` places it on the ranks of ``transport``; ``products`` is their number format, ``device`` where arrays live.
    """
    settings = ADMMSettings(layers=layers, hidden=hidden, grid=grid, products=products, device=device).checked()
    solver = ADMMSolver(problem, settings, transport or LocalTransport())
    for number, depth in enumerate(settings.stages):
        network = solver.builder.begin(number, depth)
        for _ in range(warm):
            network.iterate()
        if depth < layers:
            network.finish()
            solver.builder.end(network, network.snapshot())
            del network  # before the next is built
    return solver, network


def shape_parser(doc: str | None, repeat: int | None = None) -> argparse.ArgumentParser:
    """Return a parser of the flags that give a network's shape, and of --repeat where it has a default."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("nodes", 20000), ("inputs", 256), ("hidden", 256), ("layers", 10), ("classes", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    if repeat is not None:
        parser.add_argument("--repeat", type=int, default=repeat)
    return parser


def timed(runs: Mapping[str, Callable[[], object]], repeat: int, inner: int = 1) -> dict[str, list[float]]:
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


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Return the median of the ratios of measurements taken in turn."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def machine() -> str:
    """Return one line: processor, cores, versions."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.machine()
    versions = f"torch {torch.__version__}, numpy {numpy.__version__}, scipy {scipy.__version__}"
    return f"{name}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}"


def table(seconds: Mapping[str, Sequence[float]]) -> str:
    """Return a table of medians and of every repeat, in milliseconds."""
    rows = ["| what | median ms | each |", "|---|---|---|"]
    for name, values in seconds.items():
        each = " ".join(f"{1e3 * value:.2f}" for value in values)
        rows.append(f"| {name} | {1e3 * statistics.median(values):.2f} | {each} |")
    return "\n".join(rows)
