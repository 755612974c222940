"""Train on a graph of your own, from csv files: edges, features, labels; predict every node; write the classes.

A folder with edges.csv (two node numbers a line), features.csv and labels.csv (a line a node, -1 or empty where the
class is not known) is a data set; docs/data.md has the other formats. Without a folder the script writes a small
one first, to show what the files look like. Run time: about 5 seconds.

    python examples/own_graph.py
    python examples/own_graph.py --folder my-graph --split random:20 --out my-classes.csv
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from pdadmm import PDADMMG, csbm, load_dataset, make_splits


def write_folder(folder: Path) -> None:
    """Write a random graph of three communities as three csv files; one label in ten is left open."""
    graph = csbm(600, num_classes=3, num_features=16, seed=0)
    folder.mkdir(parents=True)
    pairs = graph.adjacency.tocoo()
    once = pairs.row < pairs.col
    np.savetxt(folder / "edges.csv", np.column_stack([pairs.row[once], pairs.col[once]]), "%d", ",")
    np.savetxt(folder / "features.csv", graph.features, "%.5f", ",")
    np.savetxt(folder / "labels.csv", np.where(np.arange(600) % 10, graph.labels, -1), "%d")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train on a graph from csv files.")
    parser.add_argument("--folder", default="out/my-graph", help="with edges.csv, features.csv, labels.csv")
    parser.add_argument("--split", default="random:20", help="training, validation and test nodes; see docs/data.md")
    parser.add_argument("--out", default="out/classes.csv", help="node, class and certainty of every node")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=24, help="of each stage of growth")
    given = parser.parse_args()

    folder = Path(given.folder)
    if not folder.exists():
        write_folder(folder)
        print(f"wrote {folder}/edges.csv, features.csv, labels.csv")
    graph = load_dataset(folder)
    graph = graph.with_splits(make_splits(graph, given.split))
    print(graph)

    solver = PDADMMG(layers=given.layers, hidden=given.hidden, iterations=given.iterations).fit(graph)
    print(f"validation {solver.score(graph, split='val'):.3f}, test {solver.score(graph):.3f}")

    probability = solver.predict_proba(graph)  # of every node, those without a label too
    table = np.column_stack([np.arange(graph.num_nodes), solver.predict(graph), probability.max(axis=1)])
    Path(given.out).parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(given.out, table, ("%d", "%d", "%.4f"), ",", header="node,class,certainty", comments="")
    print(f"wrote {given.out}: {graph.num_nodes} nodes, of which {(graph.labels < 0).sum()} had no label")


if __name__ == "__main__":
    main()
