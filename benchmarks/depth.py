"""Do hidden layers train, and does depth pay? Layers put back to their start, layers frozen, and a checkerboard.

    python benchmarks/depth.py                      (PDADMM_DATA names the data; about 5 min on one core)
    python benchmarks/depth.py budget               (likewise; about 4 min)
    python benchmarks/depth.py checkerboard         (needs no data; about 8 min on one core)

First: networks of 10 layers of 100 are trained with the defaults, once selected by validation accuracy ("best")
and once without selection ("last": the last iteration's network). Layers 2..L-1 started at W = I, b = 0.
For each of them |W - I| / |I|, and |W - c I| / |W| with the best multiple c of I, in Frobenius norms; then the
test accuracy of the network as trained, of the same network with those layers put back to I and 0, and of one trained
with their W held at I all along by a ridge (kappa_identity 1e6; their biases still train).

Second (budget): 2, 5, 10 and 20 layers with the same iterations in all stages together, by default 72.

Third (checkerboard): classes are the colours of a 3 x 3 checkerboard over two features, noisy but smoothed by the
graph; narrow networks of 2, 5 and 10 layers, by pdADMM-G and by Adam at equal total iterations.
"""

from __future__ import annotations

import argparse
import platform
import statistics
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from scipy.spatial import cKDTree

from pdadmm import GAMLP, PDADMMG, Adam, Graph, make_splits
from pdadmm.admm.settings import default_stages
from pdadmm.data import load_with_split

DATA = "cora,citeseer,pubmed,amazon_computers:random:20"
FROZEN = 1e6


def weights_of(model: GAMLP) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return (W, b) of every layer, first layer first."""
    return [(layer.weight.detach(), layer.bias.detach()) for layer in model.layers]


def departures(W: torch.Tensor) -> tuple[float, float]:
    """Return |W - I| / |I|, and |W - c I| / |W| with c = trace(W) / n, the multiple of I nearest to W."""
    W, identity = W.double(), torch.eye(len(W), dtype=torch.float64)
    c = W.trace() / len(W)
    return float((W - identity).norm() / identity.norm()), float((W - c * identity).norm() / W.norm())


def put_back(model: GAMLP) -> GAMLP:
    """Return the network with layers 2..L-1 at their start, W = I and b = 0."""
    first, *hidden, last = weights_of(model)
    start = [(torch.eye(len(W), dtype=W.dtype), torch.zeros_like(b)) for W, b in hidden]
    return GAMLP.from_weights([first, *start, last], model.activation_name)


def without_selection(graph: Graph) -> Graph:
    """Return the graph without validation nodes: the last iteration's network is kept."""
    return graph.with_splits({**graph.splits, "val": np.array([], dtype=np.int64)})


def measure(graph: Graph, options: dict) -> dict[str, list[float]]:
    """Train, put back, train frozen; return accuracies and the departures of layers 2..L-1."""
    solver = PDADMMG(**options).fit(graph)
    frozen = PDADMMG(**options, kappa_identity=FROZEN).fit(graph)
    found = [departures(W) for W, _ in weights_of(solver.model_)[1:-1]]
    result = {"from I": [near for near, _ in found], "off cI": [off for _, off in found]}
    result["accuracy"] = [solver.score(graph)]
    solver.model_ = put_back(solver.model_)
    result["accuracy"] += [solver.score(graph), frozen.score(graph)]
    result["held"] = [max(departures(W)[0] for W, _ in weights_of(frozen.model_)[1:-1])]
    return result


def spread(values: Iterable[float]) -> str:
    """Return mean and standard deviation (n - 1)."""
    values = list(values)
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {deviation:.3f}"


def graphs_of(entry: str, given: argparse.Namespace) -> tuple[str, Iterator[tuple[int, Graph]]]:
    """Return the name of an entry, NAME or NAME:SPLIT, and each seed with its graph."""
    name, _, split = entry.partition(":")
    return name, ((seed, load_with_split(name, given.data_dir, split or None, seed)) for seed in given.seeds)


def real_data(given: argparse.Namespace) -> None:
    """Print the tables of accuracies and of departures from I."""
    head = "| graph | kept | trained | hidden layers put back to I | W frozen at I | put back less trained (points) |"
    accuracy = [head, "|" + "---|" * 6]
    layers = " | ".join(f"{layer}" for layer in range(2, given.layers))
    table = [f"| graph | kept | what | {layers} |", "|" + "---|" * (given.layers + 1)]
    held = 0.0
    for entry in given.datasets.split(","):
        name, graphs = graphs_of(entry, given)
        runs: dict[str, list[dict]] = {"best": [], "last": []}
        for seed, graph in graphs:
            options = {"layers": given.layers, "hidden": given.hidden, "iterations": given.iterations, "seed": seed}
            runs["best"].append(measure(graph, options))
            runs["last"].append(measure(without_selection(graph), options))
        for kept, found in runs.items():
            held = max(held, *(run["held"][0] for run in found))
            columns = list(zip(*(run["accuracy"] for run in found)))
            gap = 100 * (statistics.mean(columns[1]) - statistics.mean(columns[0]))
            cells = " | ".join(spread(column) for column in columns)
            accuracy.append(f"| {name} | {kept} | {cells} | {gap:+.1f} |")
            for what in ("from I", "off cI"):
                means = (f"{statistics.mean(column):.3f}" for column in zip(*(run[what] for run in found)))
                table.append(f"| {name} | {kept} | {what} | {' | '.join(means)} |")
    print("\n".join(["Test accuracy", "", *accuracy, "", "Departure of W from I by layer", "", *table]))
    print(f"\nlargest |W - I| / |I| of a frozen layer: {held:.1e}")


def equal_budget(given: argparse.Namespace) -> None:
    """Print validation and test accuracy of 2, 5, 10 and 20 layers after equal iterations."""
    print("| graph | layers | iterations | validation | test |\n|" + "---|" * 5)
    for entry in given.datasets.split(","):
        for layers in (2, 5, 10, 20):
            name, graphs = graphs_of(entry, given)
            stages = default_stages(layers)
            iterations = 3 * given.iterations // len(stages)
            val, test = [], []
            for seed, graph in graphs:
                solver = PDADMMG(layers=layers, hidden=given.hidden, iterations=iterations, seed=seed).fit(graph)
                val.append(solver.summary_["val_accuracy"])
                test.append(solver.summary_["test_accuracy"])
            each = " + ".join([str(iterations)] * len(stages))
            print(f"| {name} | {layers} | {each} | {spread(val)} | {spread(test)} |", flush=True)


def checkerboard(squares: int = 3, nodes: int = 3000, noise: float = 0.15, seed: int = 0) -> Graph:
    """Classes are the colours of a checkerboard of squares x squares over the latent square [-1, 1]^2.

    Features are the latent point plus normal noise; a node is joined to its 6 nearest in the latent square.
    """
    random = np.random.default_rng(seed)
    x = random.uniform(-1, 1, (nodes, 2))
    labels = np.floor((x + 1) / 2 * squares).astype(int).sum(1) % 2
    _, near = cKDTree(x).query(x, k=7)
    pairs = np.stack([np.repeat(np.arange(nodes), 6), near[:, 1:].ravel()])
    features = (x + noise * random.standard_normal(x.shape)).astype(np.float32)
    graph = Graph.from_edges(pairs, features, labels, name=f"checkerboard:{squares}")
    return graph.with_splits(make_splits(graph, "fraction:60/20/20", seed))


def synthetic(given: argparse.Namespace) -> None:
    """Print test accuracy at 2, 5 and 10 layers on the checkerboard, also with the hidden W frozen at I."""
    common = {"hops": 2, "operator": "rw", "scaling": "standard", "eval_every": 4}
    admm = common | {"nu": 3.0, "first_scale": 1.0, "kappa_first": 0.001, "kappa_identity": 0.0}
    adam = common | {"iterations": 600, "learning_rate": 0.005, "weight_decay": 0.0, "initial": "he"}
    print("| width | solver | 2 layers | 5 layers | 10 layers |\n|---|---|---|---|---|")
    for hidden in (6, 12):
        rows: dict[str, list[list[float]]] = {"pdadmm-g": [], "pdadmm-g, W frozen at I": [], "adam": []}
        for seed in given.seeds:
            graph = checkerboard(seed=seed)
            for name, scores in rows.items():
                scores.append([])
                for layers, stages in ((2, 1), (5, 2), (10, 3)):
                    shape = {"layers": layers, "hidden": hidden, "seed": seed}
                    if name == "adam":
                        solver = Adam(**adam, **shape)
                    else:
                        held = {} if name == "pdadmm-g" else {"kappa_identity": FROZEN}
                        solver = PDADMMG(**{**admm, **held}, iterations=600 // stages, **shape)
                    scores[-1].append(solver.fit(graph).score(graph))
        for name, scores in rows.items():
            print(f"| {hidden} | {name} | {' | '.join(map(spread, zip(*scores)))} |", flush=True)


PARTS = {"graphs": real_data, "budget": equal_budget, "checkerboard": synthetic}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", default="graphs", choices=PARTS)
    parser.add_argument("--datasets", default=DATA, help="names, each with :SPLIT where it is not the data set's own")
    parser.add_argument("--data-dir")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="seeds, e.g. 0,1,2 (2 alone is the seed 2)")
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--hidden", type=int, default=100)
    parser.add_argument("--iterations", type=int, default=24, help="of each stage")
    given = parser.parse_args()
    given.seeds = [int(seed) for seed in given.seeds.split(",")]
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, Python {platform.python_version()}\n")
    PARTS[given.part](given)


if __name__ == "__main__":
    main()
