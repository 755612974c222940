"""A graph larger than memory, start to end: convert its edges, augment it, train on it, each within a limit of memory.

The three commands of docs/big-graphs.md and docs/disk-training.md, on a graph that the script makes, of a size you
choose. With the defaults it would fit; a hundred times the nodes would go the same way. Every command may be killed
at any moment and given again: it goes on. Run time: about 30 seconds.

    python examples/big_graph.py
    python examples/big_graph.py --nodes 2000000 --features 128 --memory 1GiB --folder /scratch/big
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np

BLOCK = 100_000  # nodes made at a time: the script keeps to its limit, too


def make_files(folder: Path, nodes: int, features: int, classes: int = 5) -> None:
    """Write edges as text, features and labels as .npy: communities of equal size, block by block."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    labels = random.integers(classes, size=nodes)
    np.save(folder / "labels.npy", labels)
    columns = np.lib.format.open_memmap(folder / "features.npy", "w+", np.float32, (nodes, features))
    with open(folder / "edges.csv", "w", encoding="ascii") as edges:
        for start in range(0, nodes, BLOCK):
            own = np.arange(start, min(start + BLOCK, nodes))
            noise = random.normal(size=(len(own), features))
            columns[own] = noise + 2.0 * np.eye(classes, features)[labels[own]]
            # five edges a node; for four of five the other end is moved to the next node of the same class
            for node, other in zip(np.repeat(own, 5), random.integers(nodes, size=5 * len(own))):
                while random.random() < 0.8 and labels[other] != labels[node]:
                    other = (other + 1) % nodes
                edges.write(f"{node},{other}\n")
    columns.flush()


def run(*words: str) -> None:
    """Run a command of pdadmm, and show it."""
    print("\n$ pdadmm", *words, flush=True)
    subprocess.run([sys.executable, "-m", "pdadmm", *words], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Convert, augment and train within a limit of memory.")
    parser.add_argument("--nodes", type=int, default=20_000)
    parser.add_argument("--features", type=int, default=32)
    parser.add_argument("--memory", default="256MiB", help="limit of every command, above the interpreter")
    parser.add_argument("--folder", default="out/big-graph", help="where files and results go")
    parser.add_argument("--layers", default="5")
    parser.add_argument("--hidden", default="64")
    parser.add_argument("--iterations", default="10", help="of each stage of growth")
    given = parser.parse_args()

    folder = Path(given.folder)
    if not folder.exists():
        make_files(folder, given.nodes, given.features)
    lists = ("--edges", f"{folder}/edges.csv", "--features", f"{folder}/features.npy")
    lists += ("--labels", f"{folder}/labels.npy")
    if not (folder / "graph").exists():
        run("convert", *lists, "--out", f"{folder}/graph", "--memory", given.memory)
    split = ("--split", "fraction:60/20/20")
    out = ("--out", f"{folder}/augmented")
    run("augment", "--dataset", f"{folder}/graph", *split, "--hops", "2", "--memory", given.memory, *out)
    network = ("--hops", "2", "--layers", given.layers, "--hidden", given.hidden, "--iterations", given.iterations)
    disk = ("--memory", given.memory, "--scratch", f"{folder}/scratch", "--resume")
    run("train", "--dataset", f"{folder}/augmented", *network, *disk, "--save", f"{folder}/model.safetensors")


if __name__ == "__main__":
    main()
