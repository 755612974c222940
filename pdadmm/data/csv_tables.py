"""Reader of folders with an edge list and tables of features and labels: edges.csv, features.csv, labels.csv."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pdadmm.data.checks import SPLIT_NAMES
from pdadmm.data.graph import Graph
from pdadmm.data.npz import in_file
from pdadmm.data.parts import class_numbers
from pdadmm.data.tables import find_table, read_table
from pdadmm.errors import InputError

__all__ = ["holds_csv", "read_csv"]


def holds_csv(path: Path) -> bool:
    """Whether ``path`` is a folder in this format."""
    return find_table(path, "edges") is not None


def read_csv(folder: str | Path, name: str | None = None, own_split: str = "file") -> Graph:
    """Read a graph from a folder of tables, .csv or .csv.gz, with or without a line of column names.

    ``edges``: two node numbers a line and, optionally, a weight; ``features``: a line for each node, from node 0
    on; ``labels``: its class, -1 or nan for unlabelled; and, all or none, ``train``, ``val``, ``test``: a node
    number a line. Commas, semicolons, tabs or spaces stand between numbers. Edges are undirected.

    Raises InputError for a file that is missing, damaged or does not fit the others.

    >>> read_csv("folder")  # doctest: +SKIP
    Graph(folder: 3 nodes, 2 edges, 4 dense features, 2 classes, no splits)
    """
    folder = Path(folder)
    labels = _column(folder, "labels", "f8")
    features = read_table(folder, "features", "f4", labels.size, names=True)
    edges = read_table(folder, "edges", "f8", names=True)
    if edges.size and edges.shape[1] not in (2, 3):
        value = f"{folder / 'edges.csv'} with {edges.shape[1]} columns"
        raise InputError("dataset", value, "two columns of nodes and, optionally, one of weights")
    weights = edges[:, 2] if edges.shape[1] == 3 else None
    splits = None
    if any(find_table(folder, part) for part in SPLIT_NAMES):
        splits = {part: _column(folder, part, "i8") for part in SPLIT_NAMES}
    with in_file(folder):
        pairs = edges[:, :2].T if edges.size else np.empty((2, 0))
        return Graph.from_edges(pairs, features, class_numbers("labels", labels), splits, name or folder.resolve().name,
                                weights, own_split=own_split if splits else "")  # fmt: skip


def _column(folder: Path, stem: str, dtype: str) -> np.ndarray:
    table = read_table(folder, stem, dtype, names=True)
    if table.size and table.shape[1] != 1:
        raise InputError("dataset", f"{folder / stem}.csv with {table.shape[1]} columns", "one number a line")
    return table.reshape(-1)
