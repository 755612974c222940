"""GraphSAGE from disk with a quarter of the graph in memory, beside the run in memory: accuracy, bytes, seconds.

    python benchmarks/disk_sage.py accuracy --data-dir DIR --scratch DIR
    python benchmarks/disk_sage.py limit --scratch DIR

accuracy: each graph is written to a folder on the disk, which the runs from disk open; runs in memory and from disk
take turns, seed by seed, on the same split and settings. --runs GRAPH/file/N has the nodes in the order of the data
set, GRAPH/random shuffled, GRAPH/metis by METIS parts; N is the batch size. From disk neighbours are drawn among all,
or with --disk-neighbours buffer among those in the buffer. The run from disk is --more times as long: its accuracy is
read off at equal epochs and at its end. Seconds and bytes of an epoch are without evaluation. limit: features of
several times the memory limit, and the peak of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from shared import machine

from pdadmm import Graph, SampledGNN, csbm, load_dataset, make_splits
from pdadmm.baselines.partition import partition
from pdadmm.disk.dataset import GraphFolder
from pdadmm.disk.graph import write_graph
from pdadmm.sampling.estimator import DISK_NEIGHBOURS

MIB = 1 << 20
ORDERS = {
    "file": lambda graph: np.arange(graph.num_nodes),
    "random": lambda graph: np.random.default_rng(0).permutation(graph.num_nodes),
    "metis": lambda graph: np.argsort(partition(graph.adjacency, min(128, graph.num_nodes), seed=0), kind="stable"),
}


def reordered(graph: Graph, order: np.ndarray) -> Graph:
    """Return the graph with node order[k] as its node k."""
    place = np.argsort(order)
    adjacency = graph.adjacency.tocoo()
    pairs = place[np.stack(adjacency.coords)]
    splits = {name: place[nodes] for name, nodes in graph.splits.items()}
    return Graph.from_edges(pairs, graph.features[order], graph.labels[order], splits, graph.name)


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values) if len(values) > 1 else 0:.4f}"


def best(history: list[dict], epochs: int) -> float:
    """Return the test accuracy of the epoch of best validation accuracy among the first ``epochs``."""
    rows = [row for row in history if row["iteration"] <= epochs and "val_accuracy" in row]
    return max(rows, key=lambda row: (row["val_accuracy"], -row["val_loss"]))["test_accuracy"]


def accuracy(given: argparse.Namespace, folder: Path) -> None:
    head = "graph | order | epochs | in memory | from disk | from disk - in memory | "
    head += f"{given.more} times the epochs | less in memory | epoch, s | from disk, s | waiting, s | "
    head += "read an epoch | of the graph | buffer | bytes an evaluation"
    print(f"| {head} |\n|" + "---|" * (head.count("|") + 1), flush=True)
    rows = []
    for run in given.runs.split(","):
        name, order, batch = run.split("/")
        graph = csbm(given.nodes, avg_degree=20, seed=0) if name == "csbm" else load_dataset(name, given.data_dir)
        if name != "csbm":
            graph = graph.with_splits(make_splits(graph, "fraction:60/20/20", 0))
        graph = reordered(graph, ORDERS[order](graph))
        write_graph(graph, folder / run.replace("/", "-"))
        own = []
        for seed in range(given.seeds):
            solver = SampledGNN(
                iterations=given.iterations, batch_size=int(batch), eval_every=given.eval_every, seed=seed, threads=1,
                fanouts=(given.fanout, given.fanout),
            )  # fmt: skip
            memory = solver.fit(graph).summary_
            own_way = {"buffer_share": given.share, "disk_neighbours": given.disk_neighbours}
            solver.set_params(**own_way, iterations=given.more * given.iterations)
            with GraphFolder(folder / run.replace("/", "-")) as opened:
                disk = solver.fit(opened, memory="4GiB", scratch=folder / f"run-{len(rows)}-{seed}").summary_
            row = {"graph": name, "order": order, "seed": seed, "total": disk["graph_bytes"]}
            row |= {"memory": memory["test_accuracy"], "seconds": memory["seconds_per_iteration"], "summary": disk}
            own.append(row | {"disk": best(solver.history_, given.iterations), "longer": disk["test_accuracy"]})
            if given.rows:
                given.rows.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *own]))
        rows += own
        print(line(own, given), flush=True)


def line(own: list[dict], given: argparse.Namespace) -> str:
    """Return the row of one graph."""
    disk = [row["summary"] for row in own]
    evaluations = 1 + -(-disk[0]["iterations"] // given.eval_every)
    read = statistics.mean(row["bytes_read_training"] / row["iterations"] for row in disk)
    total = statistics.mean(row["total"] for row in own)
    cells = [
        own[0]["graph"], own[0]["order"], str(given.iterations),
        spread([row["memory"] for row in own]), spread([row["disk"] for row in own]),
        spread([row["disk"] - row["memory"] for row in own]), spread([row["longer"] for row in own]),
        spread([row["longer"] - row["memory"] for row in own]),
        f"{statistics.median(row['seconds'] for row in own):.2f}",
        f"{statistics.median(row['seconds_per_iteration'] for row in disk):.2f}",
        f"{statistics.median(row['seconds_waiting'] / row['iterations'] for row in disk):.2f}",
        f"{read / 1e6:.1f} MB", f"{read / total:.2f}", f"{disk[0]['buffer_bytes'] / total:.3f}",
        f"{disk[0]['bytes_read_evaluation'] / evaluations / 1e6:.1f} MB",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def limit(given: argparse.Namespace, folder: Path) -> None:
    """Train on features of several times the limit; this process has done nothing else before."""
    child = os.fork()  # which takes the memory that the graph needed with it
    if child == 0:
        make_large(given, folder / "graph")
        os._exit(0)
    if os.waitpid(child, 0)[1] != 0:
        raise SystemExit("the graph could not be written")
    began = time.perf_counter()
    with GraphFolder(folder / "graph") as opened:
        size = (4 * opened.num_nodes * opened.num_features + 4 * opened.disk.num_edges) / MIB
        run = SampledGNN(
            iterations=2, batch_size=256, fanouts=(5, 5), threads=1, disk_neighbours=given.disk_neighbours
        )  # fmt: skip
        told = run.fit(opened, memory=given.memory * MIB, scratch=folder / "run").summary_
    print(f"features and edges {size:.0f} MiB, limit {given.memory} MiB: {size / given.memory:.2f} times the limit")
    peak, buffer = told["memory_peak_bytes"] / MIB, told["buffer_bytes"] / MIB
    print(f"resident memory beyond what the process held: {peak:.0f} MiB; within the limit: {peak <= given.memory}")
    kinds = "kept_nodes", "steps_together", "partitions", "buffer_partitions"
    held = ", ".join(f"{name} {told[name]}" for name in kinds if name in told)
    epoch = told["bytes_read_training"] / told["iterations"] / MIB
    print(f"{held}; features and edges in memory {buffer:.0f} MiB, read an epoch {epoch:.0f} MiB")
    print(f"epoch {told['seconds_per_iteration']:.1f} s, all {time.perf_counter() - began:.1f} s")
    print(f"read {told['bytes_read'] / MIB:.0f} MiB, written {told['bytes_written'] / MIB:.0f} MiB")


def make_large(given: argparse.Namespace, folder: Path) -> None:
    """Write a random graph with dense features and ten entries a row."""
    draw, V = np.random.default_rng(0), given.limit_nodes
    y, pairs = draw.integers(10, size=V), draw.integers(V, size=(2, 5 * V))
    X = draw.standard_normal(size=(V, given.features), dtype=np.float32)
    splits = {"train": np.arange(0, V, 10), "val": np.arange(1, V, 20), "test": np.arange(2, V, 20)}
    write_graph(Graph.from_edges(pairs, X, y, splits), folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["accuracy", "limit"])
    parser.add_argument("--data-dir")
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--rows", type=Path, help="write every run here (JSON lines)")
    parser.add_argument(
        "--runs", default="amazon_computers/file/512,coauthor_cs/file/512,pubmed/file/512,csbm/file/512",
        help="graph/order/batch size, ..",
    )  # fmt: skip
    for name, default in (
        ("nodes", 5000), ("iterations", 10), ("eval-every", 2), ("seeds", 5), ("fanout", 5), ("more", 1),
        ("limit-nodes", 600_000), ("features", 256), ("memory", 250),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--disk-neighbours", choices=DISK_NEIGHBOURS, default="all")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=given.scratch) as folder:
        print(machine())
        {"accuracy": accuracy, "limit": limit}[given.part](given, Path(folder))


if __name__ == "__main__":
    main()
